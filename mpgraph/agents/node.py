"""The agents of one place in the multigraph: all weights of a connection, all units of a layer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from mpgraph.network.activations import Activation
from mpgraph.network.axes import BATCH, Axis
from mpgraph.network.losses import Loss

from .channel import Channel


@dataclass(eq=False)
class AgentNode:
    """All agents of one type at one place.

    Attributes:
        name: as in ``state[name]``.
        type: input, target, unit, operation, output, weight, bias, constant, loss, or the class name of a user's
            activation.
        types: under which a protocol may hold its agent, in order of preference.
        axes: one for each dimension of the population.
        shared: axes along which the agents are uses of one: what is kept between steps does not depend on them.
        ends: for a weight, which of its axes belong to its ``pre`` and ``post`` end.
        inner: for an operation, the axes of each operand by the node it comes from.
        function: the unit's activation, or the loss.
        fan_in: weights of the connection that reach one agent of the unit above.
        fan_out: weights of the connection that leave one agent of the unit below.
        trained: whether the channel ``w`` may be written.
        value: initial value of ``w`` given by the network.
        owner: the node that keeps the state of this one, where several are uses of the same (ticks, tied weights).
        tick: of a network that unrolls in time, counted from 0.
        serves: for a constant, the bias or unit that it was made for; others of the same rule share it.
    """

    name: str
    type: str
    axes: tuple[Axis, ...] = ()
    shared: tuple[Axis, ...] = ()
    ends: Mapping[str, tuple[Axis, ...]] = field(default_factory=dict)
    inner: Mapping[str, tuple[Axis, ...]] = field(default_factory=dict)
    function: Activation | Loss | None = None
    fan_in: int = 1
    fan_out: int = 1
    trained: bool = True
    value: Tensor | None = None
    types: tuple[str, ...] = ()
    owner: str = ""
    tick: int = 0
    serves: str = ""

    def __post_init__(self) -> None:
        self.types = self.types or ((self.type, "weight") if self.type == "bias" else (self.type,))
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

    def layout(self, channel: Channel) -> tuple[Axis, ...]:
        """Axes of a kept channel's tensor, without local ones."""
        if channel.extent == "common":
            return ()
        axes = self.axes if channel.end is None else tuple(self.ends.get(channel.end, self.axes))
        if channel.per == "agent":
            axes = tuple(a for a in axes if a not in self.shared)
        return (BATCH, *axes) if channel.extent == "carry" else axes

    def keeper(self, channel: Channel) -> str:
        """Name of the node under which the state holds a kept channel of this one."""
        return self.owner if channel.per == "agent" else self.name

    def __repr__(self) -> str:
        return f"{self.name} ({self.type} {'x'.join(map(str, self.shape)) or 'single'})"
