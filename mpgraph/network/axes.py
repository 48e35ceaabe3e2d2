"""Named axes: how the agents of a node are told apart. A rule never sees them."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

_order = itertools.count()


class Axis:
    """A named axis. Two axes are the same only if they are the same object.

    Args:
        name: what people read, for example ``h1``.
        size: its length; ``None`` for the batch, whose length the generated code reads from its input.
        rank: axes are laid out by rank, then by age: the batch first (-1), populations (0), local axes last (1).
    """

    __slots__ = ("key", "name", "size")

    def __init__(self, name: str, size: int | None, rank: int = 0) -> None:
        self.name, self.size = name, size
        self.key = (rank, next(_order))

    def fresh(self) -> Axis:
        """An axis of the same name and size that is another one: what a bound axis is renamed to."""
        return Axis(self.name, self.size, self.key[0])

    @property
    def is_local(self) -> bool:
        """Whether the rule sees this axis (a state of size k) rather than the engine."""
        return self.key[0] == 1

    def __repr__(self) -> str:
        return self.name


BATCH = Axis("batch", None, rank=-1)


def ordered(axes: Iterable[Axis]) -> tuple[Axis, ...]:
    """Axes in the order in which tensors are laid out, each once."""
    return tuple(sorted(set(axes), key=lambda axis: axis.key))


def local_axes(shape: Iterable[int]) -> tuple[Axis, ...]:
    """New axes for the dimensions that a rule sees itself: a state of size k."""
    return tuple(Axis(f"k{n}", n, rank=1) for n in shape)
