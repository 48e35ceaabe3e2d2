"""Numbers of several units side by side: what one sparse connection reads, and what an output selects."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mpgraph.errors import NetworkError
from mpgraph.network.operations import Operation, Shape


class Gather(Operation):
    """Chosen numbers of its operands, one operand after the other.

    The result lies agent by agent, ``(batch, agents)`` with strides ``(1, batch)``, as sparse products read and write
    it.

    Args:
        index: for each operand which of its numbers, as integers, each at most once; ``None`` for all in their order.
    """

    def __init__(self, *index: Sequence[int] | Tensor | None) -> None:
        self.index = tuple(None if i is None else torch.tensor(i, dtype=torch.long) for i in index)

    def shape(self, *operands: Shape) -> Shape:  # noqa: D102
        if len(operands) != len(self.index) or any(len(shape) != 1 for shape in operands):
            raise NetworkError(f"gather takes {len(self.index)} flat operands, got {list(operands)}")
        chosen = 0
        for (size,), index in zip(operands, self.index, strict=True):
            if index is not None and len(index) and not 0 <= int(index.min()) <= int(index.max()) < size:
                raise NetworkError(f"gather: an operand of {size} numbers has no number {int(index.max())}")
            chosen += size if index is None else len(index)
        return (chosen,)

    def apply(self, *z: Tensor) -> Tensor:  # noqa: D102
        parts = [
            of.t() if index is None else torch.index_select(of.t(), 0, index.to(of.device))
            for of, index in zip(z, self.index, strict=True)
        ]
        return (torch.cat(parts, 0) if len(parts) > 1 else parts[0].clone()).t()

    def vjp(self, e: Tensor, z: Any, y: Tensor) -> tuple[Tensor, ...]:  # noqa: D102
        sizes = [
            size if index is None else len(index) for (size,), index in zip(self.operands, self.index, strict=True)
        ]
        return tuple(
            (
                part
                if index is None
                else torch.index_add(part.new_zeros(size, part.shape[1]), 0, index.to(part.device), part)
            ).t()
            for part, (size,), index in zip(e.t().split(sizes), self.operands, self.index, strict=True)
        )

    def __repr__(self) -> str:
        return f"gather({self.size[0]})" if self.size else "gather"
