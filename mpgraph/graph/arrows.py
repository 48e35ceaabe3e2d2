"""The two sorts of edges of the multigraph.

A :class:`Link` states that two nodes are neighbors, and how the axes of one match those of the other. An :class:`Arrow`
is a link in use: it carries messages of one pass from one node to another, to be aggregated there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mpgraph.agents.node import AgentNode
from mpgraph.network.axes import Axis
from mpgraph.network.incidence import Incidence


@dataclass(frozen=True, eq=False)
class Link:
    """Two neighbors: ``pre`` fills ``role`` at ``post``, ``post`` fills ``back`` at ``pre``.

    ``names`` match axes of ``pre`` with axes of ``post``; along other axes ``incidence`` gives the joined agents. With
    a ``delay``, ``post`` is a neighbor of what ``pre`` was that many ticks ago.
    """

    pre: AgentNode
    post: AgentNode
    names: Mapping[Axis, Axis]
    role: str = "pre"
    incidence: Incidence | None = None
    back: str = "post"
    delay: int = 0


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
    to: str = "post"  # what the target is to the source
    delay: int = 0  # ticks that the message takes; negative for one to an earlier tick

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

    @property
    def label(self) -> str:
        """Source, target, role and delay, for people."""
        ticks = f", {self.delay:+} tick{'s' * (abs(self.delay) > 1)}" if self.delay else ""
        return f"{self.source.name} => {self.target.name} ({self.role}{ticks})"

    def __str__(self) -> str:
        return f"{self.pass_name}: {self.label}"
