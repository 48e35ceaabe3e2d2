"""Several processes share the tasks of an outer step; what is random does not know how many there are."""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from .estimators.base import Estimate

TIMEOUT = timedelta(seconds=60)


class Group:
    """The processes of a run. One process alone is a group too, and calls nothing.

    Attributes:
        rank: of this process.
        size: how many there are.
    """

    def __init__(self) -> None:
        on = dist.is_available() and dist.is_initialized()
        self.rank, self.size = (dist.get_rank(), dist.get_world_size()) if on else (0, 1)

    def wait(self) -> None:
        """Until all processes are here."""
        if self.size > 1:
            dist.barrier()

    def mean(self, estimate: Estimate) -> Estimate:
        """The estimate over the tasks of all processes, from those of each."""
        if self.size == 1:
            return estimate
        metrics = self.gathered(estimate.metrics)
        gradient: dict[str, Tensor | None] = {}
        for name, tensor in estimate.gradient.items():
            used = torch.tensor([0.0 if tensor is None else 1.0])
            dist.all_reduce(used)
            if not float(used):
                gradient[name] = None
                continue
            given = metrics["loss"].new_zeros(()) if tensor is None else tensor.contiguous().clone()
            dist.all_reduce(given)
            gradient[name] = given / self.size
        loss = estimate.loss.detach().clone()
        dist.all_reduce(loss)
        return Estimate(loss / self.size, gradient, metrics)

    def gathered(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors with a leading axis of tasks, of all processes one after the other."""
        if self.size == 1:
            return dict(tensors)
        found = {}
        for name, tensor in tensors.items():
            parts = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for _ in range(self.size)]
            dist.all_gather(parts, tensor.contiguous())
            found[name] = torch.cat(parts)
        return found

    def share(self, rows: Tensor) -> Tensor:
        """The rows that this process takes of some, equally many for each: the last ones may take the last row again.

        What :meth:`gathered` makes of results for them begins with those for all rows, in order.
        """
        each = -(-len(rows) // self.size)
        mine = torch.arange(self.rank * each, (self.rank + 1) * each).clamp(max=len(rows) - 1)
        return rows[mine]

    def own(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The rows of this process, of tensors that :meth:`gathered` made."""
        share = {name: len(tensor) // self.size for name, tensor in tensors.items()}
        return {name: t[self.rank * share[name] : (self.rank + 1) * share[name]] for name, t in tensors.items()}


def join() -> Group:
    """The group that ``torchrun`` started this process in; one process alone otherwise.

    A process that waits for another for longer than a minute ends with an error, and so does the run.
    """
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ and not dist.is_initialized():
        dist.init_process_group("gloo", timeout=TIMEOUT)
    return Group()


def leave() -> None:
    """Leave the group, if there is one, once all processes are done with it."""
    if dist.is_available() and dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()
