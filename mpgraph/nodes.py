"""What an agent graph is made of: nodes, links between neighbours, and the arrows of a pass."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from .agent import Channel
from .kinds import Kind
from .losses import Loss
from .lowering.algebra import BATCH, Axis
from .lowering.incidence import Incidence


@dataclass(eq=False)
class AgentNode:
    """All agents of one kind at one place.

    Attributes:
        kind: input, target, unit, operation, output, weight, bias, constant, loss, or the name of a user's kind.
        kinds: under which a protocol may hold its agent, in order of preference.
        axes: one for each dimension of the population.
        shared: axes along which the agents are uses of one: what is kept between steps does not depend on them.
        ends: for a weight, which of its axes belong to its ``pre`` and ``post`` end.
        inner: for an operation, the axes of each operand by the node it comes from.
        function: the unit's kind or the loss.
        trained: whether the channel ``w`` may be written.
        value: initial value of ``w`` given by the network.
        owner: the node that keeps the state of this one, where several are uses of the same (ticks, tied weights).
        tick: of a network that unrolls in time, counted from 0.
        serves: for a constant, the bias or unit that it was made for; others of the same rule share it.
    """

    name: str
    kind: str
    axes: tuple[Axis, ...] = ()
    shared: tuple[Axis, ...] = ()
    ends: Mapping[str, tuple[Axis, ...]] = field(default_factory=dict)
    inner: Mapping[str, tuple[Axis, ...]] = field(default_factory=dict)
    function: Kind | Loss | None = None
    fan_in: int = 1
    fan_out: int = 1
    trained: bool = True
    value: Tensor | None = None
    kinds: tuple[str, ...] = ()
    owner: str = ""
    tick: int = 0
    serves: str = ""

    def __post_init__(self) -> None:
        self.kinds = self.kinds or ((self.kind, "weight") if self.kind == "bias" else (self.kind,))
        self.owner = self.owner or self.name

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of agents along each axis."""
        return tuple(axis.size for axis in self.axes if axis.size is not None)

    @property
    def kept(self) -> tuple[Axis, ...]:
        """The axes of what is kept between steps."""
        return tuple(axis for axis in self.axes if axis not in self.shared)

    def free_at(self, end: str) -> tuple[Axis, ...]:
        """The axes of one end of a connection that are neither shared nor the other end's as well."""
        others = {axis for name, axes in self.ends.items() if name != end for axis in axes}
        return tuple(axis for axis in self.ends.get(end, ()) if axis not in self.shared and axis not in others)

    @property
    def uses(self) -> int:
        """At how many places of one example each agent's kept state is used."""
        return math.prod(axis.size or 1 for axis in self.shared)

    def __repr__(self) -> str:
        return f"{self.name} ({self.kind} {'x'.join(map(str, self.shape)) or 'single'})"


def layout(node: AgentNode, channel: Channel) -> tuple[Axis, ...]:
    """Axes of a kept channel's tensor, without local ones."""
    if channel.extent == "common":
        return ()
    axes = node.axes if channel.end is None else tuple(node.ends.get(channel.end, node.axes))
    if channel.per == "agent":
        axes = tuple(a for a in axes if a not in node.shared)
    return (BATCH, *axes) if channel.extent == "carry" else axes


def keeper(node: AgentNode, channel: Channel) -> str:
    """Name of the node under which the state holds a kept channel of this one."""
    return node.owner if channel.per == "agent" else node.name


@dataclass(frozen=True, eq=False)
class Link:
    """Two neighbours: ``pre`` fills ``role`` at ``post``, ``post`` fills ``back`` at ``pre``.

    ``names`` match axes of ``pre`` with axes of ``post``; ``incidence`` says who meets whom along the others.
    """

    pre: AgentNode
    post: AgentNode
    names: Mapping[Axis, Axis]
    role: str = "pre"
    incidence: Incidence | None = None
    back: str = "post"


@dataclass(frozen=True, eq=False)
class Arrow:
    """Message, aggregation and update between two nodes in one pass."""

    pass_name: str
    source: AgentNode
    target: AgentNode
    role: str
    names: Mapping[Axis, Axis]  # axes of the source -> axes of the target
    how: Any  # a name of agent.AGGREGATIONS, or a module that aggregates
    incidence: Incidence | None = None

    @property
    def looks_up(self) -> bool:
        """Whether the incidence leads from a unit to the sites of a connection."""
        return self.incidence is not None and self.incidence.unit[0] in self.source.axes

    @property
    def adds_up(self) -> bool:
        """Whether the incidence leads from the sites of a connection to a unit."""
        return self.incidence is not None and not self.looks_up

    @property
    def aggregated(self) -> tuple[Axis, ...]:
        """Axes of the source that the target lacks."""
        if self.is_answer:
            return ()
        met = self.names if self.incidence is None else {*self.names, *self.incidence.unit, *self.incidence.sites}
        return tuple(axis for axis in self.source.axes if axis not in met)

    @property
    def is_answer(self) -> bool:
        """Whether an operation sends an operand its part, which has the operand's own axes."""
        return any(axis in self.names for axis in self.source.inner.get(self.target.name, ()))

    def __str__(self) -> str:
        return f"{self.pass_name}: {self.source.name} => {self.target.name} ({self.role})"
