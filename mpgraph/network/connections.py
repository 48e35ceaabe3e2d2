"""Connections: which synapses exist between two units, and which agents of the units each of them joins.

A connection's agents, the synapses, have axes of their own. For each end the connection says which of its axes stand
for axes of the unit there; a message between them is renamed on the way, and axes that the receiver lacks are
aggregated. Where an end is not one axis for one axis, an :class:`~mpgraph.network.incidence.Incidence` says which
agents are joined. Nothing else distinguishes one connection from another, so every rule works on all of them.
"""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from mpgraph.arguments import Arguments
from mpgraph.errors import NetworkError, unknown
from mpgraph.registry import lookup

from .axes import Axis
from .given import own_tensor, with_own_tensors
from .incidence import Edges, Incidence, Pattern

Index = tuple[int, ...]
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Endpoints:
    """A connection between two given units.

    Attributes:
        axes: of the synapses.
        pre, post: which axis of the synapses stands for an axis of the unit, at either end.
        shared: axes along which one synapse is used again and again (positions of a convolution): what is kept
            between steps does not depend on them.
        pre_incidence, post_incidence: for the axes that have no namesake.
    """

    axes: tuple[Axis, ...]
    pre: Mapping[Axis, Axis]
    post: Mapping[Axis, Axis]
    shared: tuple[Axis, ...] = ()
    pre_incidence: Incidence | None = None
    post_incidence: Incidence | None = None

    def end(self, name: str) -> tuple[Axis, ...]:
        """Axes of the synapses that tell the agent at one end."""
        names, incidence = (self.pre, self.pre_incidence) if name == "pre" else (self.post, self.post_incidence)
        return (*names.values(), *(incidence.sites if incidence else ()))


class Connection(ABC):
    """Which synapses exist between two nodes. A new pattern is one subclass; every rule then works on it.

    Class attributes:
        weighted: whether there are synapses at all; else messages pass from unit to unit as they are.
    """

    weighted: bool = True

    @property
    def name(self) -> str:
        """What people read in listings."""
        return type(self).__name__.lower()

    @abstractmethod
    def check(self, pre: Shape, post: Shape) -> str | None:
        """Why units of these shapes cannot be connected so, or ``None``."""

    @abstractmethod
    def build(self, pre: tuple[Axis, ...], post: tuple[Axis, ...]) -> Endpoints:
        """The synapses between two units."""

    @abstractmethod
    def fans(self, pre: Shape, post: Shape) -> tuple[int, int]:
        """Synapses that reach one agent of ``post``, and that leave one agent of ``pre``."""

    def weight_shape(self, pre: Shape, post: Shape) -> Shape:
        """Shape of the weights."""
        endpoints = self.build(_axes("pre", pre), _axes("post", post))
        return tuple(axis.size or 0 for axis in endpoints.axes if axis not in endpoints.shared)

    def __repr__(self) -> str:
        return self.name


def _axes(name: str, shape: Shape) -> tuple[Axis, ...]:
    return tuple(Axis(name, size) for size in shape)


class Dense(Connection):
    """All to all: one synapse for each pair. Weights are laid out ``(post, pre)``, as in torch.

    Args:
        shared: dimensions that both ends have, at each place of which the same weights connect what lies there:
            ``(0,)`` joins ``(tokens, features)`` to ``(tokens, features)`` token by token, as ``torch.nn.Linear`` does.
    """

    def __init__(self, shared: tuple[int, ...] = ()) -> None:
        self.shared = Arguments("dense", NetworkError).dimensions("shared", shared)

    def check(self, pre: Shape, post: Shape) -> str | None:  # noqa: D102
        for dim in self.shared:
            if dim >= min(len(pre), len(post)) or pre[dim] != post[dim]:
                return f"{self!r} needs equal sizes along the dimensions that are shared, got {pre} and {post}"
        return None

    def build(self, pre: tuple[Axis, ...], post: tuple[Axis, ...]) -> Endpoints:  # noqa: D102
        rows = {axis: Axis(axis.name, axis.size) for axis in post}
        shared = tuple(rows[post[dim]] for dim in self.shared)
        columns = {axis: Axis(axis.name, axis.size) for dim, axis in enumerate(pre) if dim not in self.shared}
        at_pre = {pre[dim]: rows[post[dim]] for dim in self.shared} | columns
        return Endpoints((*rows.values(), *columns.values()), at_pre, rows, shared)

    def fans(self, pre: Shape, post: Shape) -> tuple[int, int]:  # noqa: D102
        fan_in, fan_out = (math.prod(n for dim, n in enumerate(end) if dim not in self.shared) for end in (pre, post))
        return fan_in, fan_out

    def __repr__(self) -> str:
        return f"{self.name}(shared={self.shared})" if self.shared else self.name


class Embedding(Dense):
    """All to all like :class:`Dense`, with weights laid out ``(pre, post)``: a row for each agent of ``pre``.

    After ``mg.OneHot`` that is ``torch.nn.Embedding``: the agent of each symbol sends its row.
    """

    def build(self, pre: tuple[Axis, ...], post: tuple[Axis, ...]) -> Endpoints:  # noqa: D102
        other = super().build(post, pre)
        return Endpoints(other.axes, other.post, other.pre, other.shared)


class OneToOne(Connection):
    """Each agent to its namesake: a gain for each unit.

    Args:
        shared: dimensions along which one gain serves all agents: ``(1, 2)`` for a gain for each channel of an image.
    """

    def __init__(self, shared: tuple[int, ...] = ()) -> None:
        self.shared = Arguments("one_to_one", NetworkError).dimensions("shared", shared)

    @property
    def name(self) -> str:  # noqa: D102
        return "one_to_one"

    def check(self, pre: Shape, post: Shape) -> str | None:  # noqa: D102
        if pre != post:
            return f"{self.name} needs equal shapes, got {pre} and {post}"
        if any(not 0 <= dim < len(post) for dim in self.shared):
            return f"{self.name}: shared={self.shared} names dimensions that units of shape {post} do not have"
        return None

    def build(self, pre: tuple[Axis, ...], post: tuple[Axis, ...]) -> Endpoints:  # noqa: D102
        own = tuple(Axis(axis.name, axis.size) for axis in post)
        shared = tuple(own[dim] for dim in self.shared)
        at_pre = dict(zip(pre, own, strict=True)) if pre else {}
        return Endpoints(own, at_pre, dict(zip(post, own, strict=True)), shared)

    def fans(self, pre: Shape, post: Shape) -> tuple[int, int]:  # noqa: D102
        return 1, 1


class Identity(OneToOne):
    """Each agent to its namesake with no synapse between: a skip connection."""

    weighted = False

    @property
    def name(self) -> str:  # noqa: D102
        return "identity"


class Sparse(Connection):
    """An edge for each pair that is listed; one weight for each edge, in the order of the list.

    Args:
        edge_index: ``(2, edges)`` integers: the first row the agents of ``pre``, the second those of ``post`` (flat
            indices where a unit has several dimensions), as in PyTorch Geometric. A pair may be listed twice. It is
            copied: changing it later changes no connection.

    Raises:
        NetworkError: for anything but integers of that shape.
    """

    def __init__(self, edge_index: Tensor | Any) -> None:
        given = own_tensor("sparse: edge_index", edge_index)
        if given.ndim != 2 or len(given) != 2 or given.dtype.is_floating_point:
            raise NetworkError(
                f"sparse: edge_index must be integers of shape (2, edges), got {given.dtype} of shape "
                f"{tuple(given.shape)}"
            )
        self.edge_index = given.long()

    def check(self, pre: Shape, post: Shape) -> str | None:  # noqa: D102
        if not self.edge_index.shape[1]:
            return "sparse: there are no edges"
        for row, end, shape in zip(self.edge_index, ("pre", "post"), (pre, post), strict=True):
            low, high, size = int(row.min()), int(row.max()), math.prod(shape)
            if low < 0 or high >= size:
                edge = int(((row < 0) | (row >= size)).nonzero()[0])
                return (
                    f"sparse: edge {edge} names agent {int(row[edge])} at the {end} end, which has agents 0..{size - 1}"
                )
        return None

    def build(self, pre: tuple[Axis, ...], post: tuple[Axis, ...]) -> Endpoints:  # noqa: D102
        edges = Axis("edge", self.edge_index.shape[1])
        sizes = tuple(math.prod(axis.size or 0 for axis in end) for end in (pre, post))
        pattern = Pattern(self.edge_index[0], self.edge_index[1], sizes)  # type: ignore[arg-type]
        ends = (Edges(pre, (edges,), pattern, "pre"), Edges(post, (edges,), pattern, "post"))
        return Endpoints((edges,), {}, {}, (), *ends)

    def fans(self, pre: Shape, post: Shape) -> tuple[int, int]:  # noqa: D102
        edges = self.edge_index.shape[1]
        return max(1, edges // math.prod(post)), max(1, edges // math.prod(pre))

    def __repr__(self) -> str:
        return f"sparse({self.edge_index.shape[1]} edges)"


CONNECTIONS: dict[str, type[Connection]] = {"dense": Dense, "one_to_one": OneToOne, "identity": Identity}


def connection(given: str | Connection) -> Connection:
    """A connection from its name, or as it is.

    Raises:
        NetworkError: for a name that is neither built in nor registered under ``mpgraph.connections``.
    """
    if isinstance(given, Connection):
        return with_own_tensors(given)
    if isinstance(given, type) or not isinstance(given, str):
        hint = f"; pass an instance, {given.__name__}(...)" if isinstance(given, type) else ""
        raise NetworkError(f"a connection is a name or an mg.Connection, got {given!r}{hint}")
    found = CONNECTIONS.get(given) or lookup("mpgraph.connections", given)
    if found is None:
        raise NetworkError(unknown("connection", given, CONNECTIONS))
    return found()


def indices(shape: tuple[int, ...]) -> Iterator[Index]:
    """All agents of a node, by position."""
    return itertools.product(*(range(size) for size in shape))
