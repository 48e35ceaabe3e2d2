"""The processes that share a batch, and what generated code calls to reach all of them.

Only torch's own collective is called, ``torch.distributed.all_reduce``, on all tensors of a round at once.

The first round of a step also compares the processes: each must have a slice of the same size, and a state of the same
seed and step. For that every binary digit of these numbers is added up as 1 or -1, which is exact in every dtype; where
a sum is not plus or minus the number of processes, they differ.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor

from mpgraph.environment import inside_transform
from mpgraph.errors import GroupError, InputError, StateError

DIGITS = 64  # of an integer
DIFFERENT = "processes of a group differ in the size of their slices, or in the seed or step of their states"


class Ranks:
    """The processes of a group, and calls of generated code that reach all of them.

    Args:
        group: of ``torch.distributed``; this process is in it.
        check: whether the first round of every call compares slices, seeds and steps.

    Attributes:
        rank: of this process in the group.
        size: how many there are.
        add: in code that is not finished, the sum of one tensor over the processes; likewise ``largest``, ``smallest``.
    """

    def __init__(self, group: dist.ProcessGroup, *, check: bool = True) -> None:
        self.group: dist.ProcessGroup | None = group  # until Python ends
        self.check = check
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        self.add = _named("all_reduce_sum", self._add)
        self.largest = _named("all_reduce_max", self._largest)
        self.smallest = _named("all_reduce_min", self._smallest)
        self.add_compared = _named("all_reduce_sum_compared", self._add_compared)
        self.marks = _named("marks", _marks)

    @property
    def reductions(self) -> tuple[Callable[..., Any], ...]:
        """All that wait for other processes."""
        return self.add, self.largest, self.smallest, self.add_compared

    def _add(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """The sum of each over the processes; differentiable and mappable."""
        if torch.compiler.is_compiling():  # torch.compile knows the derivative of all_reduce itself
            return self.reduced(tensors, dist.ReduceOp.SUM)
        return _Sum.apply(self, *tensors)

    def _add_compared(self, marks: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        """The same, once it is sure that the processes belong together.

        Raises:
            InputError: for slices of different sizes.
            StateError: for states of different seeds or steps.
        """
        total, *sums = self._add(marks, *tensors)
        if torch.compiler.is_compiling():  # compiled code can stop, but not say what differs
            torch._assert_async((total.abs() == self.size).all(), DIFFERENT)
        elif not inside_transform() and not total.is_meta:
            self._compare(total)
        return tuple(sums)

    def _largest(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        return self._extremum(dist.ReduceOp.MAX, *tensors)

    def _smallest(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        return self._extremum(dist.ReduceOp.MIN, *tensors)

    def _extremum(self, how: Any, *tensors: Tensor) -> tuple[Tensor, ...]:
        if torch.compiler.is_compiling():
            return self.reduced([tensor.detach() for tensor in tensors], how)
        return _Extremum.apply(self, how, *tensors)

    def reduced(self, tensors: Sequence[Tensor], how: Any) -> tuple[Tensor, ...]:
        """All tensors in one call, as parts of new memory."""
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        if torch.compiler.is_compiling():
            dist.all_reduce(flat, how, group=self.group)
        elif not flat.is_meta:
            try:
                dist.all_reduce(flat, how, group=self.group)
            except RuntimeError as error:
                self._lost(error)
        parts = flat.split([tensor.numel() for tensor in tensors])
        return tuple(part.reshape(tensor.shape) for part, tensor in zip(parts, tensors, strict=True))

    def _lost(self, error: RuntimeError) -> NoReturn:
        raise GroupError(
            f"process {self.rank} of {self.size} could not add up over the processes: {str(error).splitlines()[0]}. "
            "Another process has ended, took longer than the timeout of the group "
            "(torch.distributed.init_process_group(timeout=...)), or called something else meanwhile: all processes "
            "must call step, and predict where it reduces over the batch, equally often and in one order. Start them "
            "again from a saved state"
        ) from error

    def _compare(self, total: Tensor) -> None:
        """Whether the digits of all processes were the same."""
        same = (total.abs() == self.size).reshape(3, DIGITS).all(1).tolist()
        if all(same):
            return
        if not same[0]:
            raise InputError(
                f"process {self.rank} of {self.size}: the slices of the batch differ in size between processes; give "
                "every process the same number of examples, and leave out a rest that cannot be shared equally"
            )
        what = "step" if same[1] else "seed"
        raise StateError(
            f"process {self.rank} of {self.size}: the states of the processes differ in their {what}; start all of "
            "them from program.init of one seed, or from one saved state, and let them take the same steps"
        )

    def rows(self, tensor: Tensor, size: int) -> Tensor:
        """The ``size`` rows of this process, of a tensor of all processes one after the other."""
        return tensor[self.rank * size : (self.rank + 1) * size]


class _Sum(torch.autograd.Function):
    """Sums over processes.

    Each process differentiates a loss that all of them have. What comes back through a sum is the sum of what came
    back in each process, so that the mean of a gradient over the processes is the gradient of the one loss.
    """

    @staticmethod
    def forward(ranks: Ranks, *tensors: Tensor) -> tuple[Tensor, ...]:
        return ranks.reduced(tensors, dist.ReduceOp.SUM)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.ranks = inputs[0]

    @staticmethod
    def backward(ctx: Any, *errors: Tensor) -> tuple[Tensor | None, ...]:
        return (None, *_Sum.apply(ctx.ranks, *errors))

    @staticmethod
    def vmap(info: Any, dims: Sequence[int | None], ranks: Ranks, *tensors: Tensor) -> tuple[Any, Any]:
        return _Sum.apply(ranks, *tensors), tuple(dims[1:])


class _Extremum(torch.autograd.Function):
    @staticmethod
    def forward(ranks: Ranks, how: Any, *tensors: Tensor) -> tuple[Tensor, ...]:
        return ranks.reduced(tensors, how)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None: ...

    @staticmethod
    def backward(ctx: Any, *errors: Tensor) -> NoReturn:
        raise GroupError(
            "an extremum over a batch that is spread over processes has no derivative here, as its ties may lie in "
            "several of them; differentiate in one process, or use a sum or mean in the rule"
        )

    @staticmethod
    def vmap(info: Any, dims: Sequence[int | None], ranks: Ranks, how: Any, *tensors: Tensor) -> tuple[Any, Any]:
        return _Extremum.apply(ranks, how, *tensors), tuple(dims[2:])


def _named(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of this name, for generated code to call."""

    def call(*tensors: Tensor) -> Any:
        return function(*tensors)

    call.__name__ = call.__qualname__ = name
    call.__module__ = "mpgraph"
    return call


def _marks(x: Tensor, seed: Tensor, step: Tensor) -> Tensor:
    """What all processes must agree on, each binary digit as 1 or -1: the size of a slice, the seed, the step."""
    numbers = torch.stack([torch.full_like(seed, x.shape[0]), seed, step])
    digits = (numbers.unsqueeze(-1) >> torch.arange(DIGITS, device=numbers.device)) & 1
    return (2 * digits - 1).flatten().to(x.dtype)
