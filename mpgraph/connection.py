"""How the agents of a connection meet those of the units at its two ends.

A connection's agents have axes of their own, named by end; for each end the connection says which of its axes are
axes of the unit there. A message between them is renamed on the way, and the axes that the receiver lacks are
aggregated. Nothing else distinguishes one connection from another.
"""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping

from .algebra import Axis
from .errors import NetworkError, unknown
from .registry import lookup

Index = tuple[int, ...]


class Connection(ABC):
    """Which synapses exist between two nodes. A new pattern is one subclass; every rule then works on it."""

    @property
    def name(self) -> str:
        """What people read in listings."""
        return type(self).__name__.lower()

    @abstractmethod
    def check(self, pre: tuple[int, ...], post: tuple[int, ...]) -> str | None:
        """Why units of these shapes cannot be connected so, or ``None``."""

    @abstractmethod
    def build(
        self, name: str, pre: tuple[Axis, ...], post: tuple[Axis, ...]
    ) -> tuple[tuple[Axis, ...], Mapping[Axis, Axis], Mapping[Axis, Axis]]:
        """Axes of the synapses, and which of them stands for each axis of ``pre`` and of ``post``."""

    @abstractmethod
    def fans(self, pre: tuple[int, ...], post: tuple[int, ...]) -> tuple[int, int]:
        """Synapses that reach one agent of ``post``, and that leave one agent of ``pre``."""

    def __repr__(self) -> str:
        return self.name


class Dense(Connection):
    """All to all: one synapse for each pair. Weights are laid out ``(post, pre)``, as in torch."""

    def check(self, pre: tuple[int, ...], post: tuple[int, ...]) -> str | None:  # noqa: D102
        return None

    def build(  # noqa: D102
        self, name: str, pre: tuple[Axis, ...], post: tuple[Axis, ...]
    ) -> tuple[tuple[Axis, ...], Mapping[Axis, Axis], Mapping[Axis, Axis]]:
        rows = {axis: Axis(axis.name, axis.size) for axis in post}
        columns = {axis: Axis(axis.name, axis.size) for axis in pre}
        return (*rows.values(), *columns.values()), columns, rows

    def fans(self, pre: tuple[int, ...], post: tuple[int, ...]) -> tuple[int, int]:  # noqa: D102
        return math.prod(pre), math.prod(post)


class OneToOne(Connection):
    """Each agent to its namesake: a gain for each unit."""

    @property
    def name(self) -> str:  # noqa: D102
        return "one_to_one"

    def check(self, pre: tuple[int, ...], post: tuple[int, ...]) -> str | None:  # noqa: D102
        return None if pre == post else f"one_to_one needs equal shapes, got {pre} and {post}"

    def build(  # noqa: D102
        self, name: str, pre: tuple[Axis, ...], post: tuple[Axis, ...]
    ) -> tuple[tuple[Axis, ...], Mapping[Axis, Axis], Mapping[Axis, Axis]]:
        own = tuple(Axis(axis.name, axis.size) for axis in post)
        return own, dict(zip(pre, own, strict=True)), dict(zip(post, own, strict=True))

    def fans(self, pre: tuple[int, ...], post: tuple[int, ...]) -> tuple[int, int]:  # noqa: D102
        return 1, 1


CONNECTIONS: dict[str, type[Connection]] = {"dense": Dense, "one_to_one": OneToOne}


def connection(given: str | Connection) -> Connection:
    """A connection from its name, or as it is.

    Raises:
        NetworkError: for a name that is neither built in nor registered under ``mpgraph.connections``.
    """
    if isinstance(given, Connection):
        return given
    found = CONNECTIONS.get(str(given)) or lookup("mpgraph.connections", str(given))
    if found is None:
        raise NetworkError(unknown("connection", given, CONNECTIONS))
    return found()


def indices(shape: tuple[int, ...]) -> Iterator[Index]:
    """All agents of a node, by position."""
    return itertools.product(*(range(size) for size in shape))
