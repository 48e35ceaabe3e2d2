"""A rule run once on lazy values before any code is written, to learn what only its methods know.

That is which channels it hands to the inner optimiser, and of what size its messages are.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import nn

from mpgraph.agents.optimizers import Optimizer
from mpgraph.agents.protocol import Protocol
from mpgraph.errors import MPGraphError, ProtocolError
from mpgraph.graph.arrows import Arrow
from mpgraph.graph.wiring import AgentGraph
from mpgraph.network.network import Network

from .algebra import Value
from .compiler import Trace

Shapes = dict[Any, set[torch.Size]]  # local shapes of messages: by arrow, and by who says and hears them in a pass


class Rehearsal(Trace):
    """A trace that notes what happens; inner optimisers do nothing in it.

    Attributes:
        descended: node and channel of every signal for an inner optimiser.
        shapes: of messages, by ``str(arrow)``, ``(pass, source)`` and ``(pass, target, role)``.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        self.descended: list[tuple[str, str]] = []
        self.shapes: Shapes = {}

    def rehearse(self, modules: nn.Module, passes: Sequence[str]) -> None:
        """Run the agents, whose parameters ``modules`` hold, through a schedule."""
        with self.parameters_of(modules):
            self.follow(passes)

    def descend(self, view: Any, channel: str, signal: Value) -> Any:
        """A note in place of the optimiser's step."""
        self.descended.append((view.node.owner, channel))
        return view

    def delivered(self, index: int, arrow: Arrow) -> Any:
        """The message, of which the shape is noted."""
        message = super().delivered(index, arrow)
        parts = message.values() if isinstance(message, dict) else [message]
        name, source, target = arrow.pass_name, arrow.source.owner, arrow.target.owner
        for key in (str(arrow), (name, source), (name, target, arrow.role)):
            self.shapes.setdefault(key, set()).update(part.shape for part in parts)
        return message


def declare_optimizers(graph: AgentGraph, modules: nn.Module, dtype: torch.dtype) -> None:
    """Give the channels of inner optimisers to the nodes whose rule hands them a signal, and to no others."""
    if not any(isinstance(m, Optimizer) and m.channels() for m in graph.protocol.modules()):
        return
    descended: list[tuple[str, str]] = []
    for phase in graph.protocol.phases or [None]:
        trace = Rehearsal(graph, dtype)
        trace.rehearse(modules, graph.protocol.passes_of(phase))
        descended += trace.descended
    for name, channel in dict.fromkeys(descended):
        optimizer = graph.protocol.optimizer_of(graph.nodes[name], channel)
        added = optimizer.declare(channel, graph.channels[name])
        for use in graph.uses[name]:
            graph.channels[use] = {**graph.channels[use], **added}


def check_borders(graph: AgentGraph) -> None:
    """Every message between regions must have the local shape that both rules give it when alone.

    Raises:
        ProtocolError: naming the arrow and both rules.
    """
    if len(graph.protocol.parts) < 2:
        return
    rule_of = graph.protocol.rule_of
    crossing = [a for a in graph.all_arrows() if rule_of(a.source) is not rule_of(a.target)]
    wide = any(graph.agents[n].size_of(c) for n, channels in graph.channels.items() for c in channels.values())
    if not crossing or not wide:  # every number is a single one, so they fit
        return
    alone = {rule: message_shapes(graph.network, rule) for rule in graph.protocol.parts}
    for arrow in crossing:
        rules = rule_of(arrow.source), rule_of(arrow.target)
        name, source, target = arrow.pass_name, arrow.source.owner, arrow.target.owner
        # by the keys after the first for an arrow that one of the rules alone would not have
        sent = alone[rules[0]].get(str(arrow)) or alone[rules[0]].get((name, source))
        received = alone[rules[1]].get(str(arrow)) or alone[rules[1]].get((name, target, arrow.role))
        if sent and received and sent != received:
            shapes = [", ".join(str(tuple(shape)) for shape in found) for found in (sent, received)]
            raise ProtocolError(
                f"Regions: at the border {arrow} messages do not fit: {rules[0]!r} (of {arrow.source.name!r}) sends "
                f"numbers of local shape {shapes[0]}, {rules[1]!r} (of {arrow.target.name!r}) expects {shapes[1]}. "
                "Rules that meet must exchange messages of one width; () is a single number"
            )


def message_shapes(network: Network, rule: Protocol) -> Shapes:
    """Local shapes of all messages if the rule served the whole network, as far as it can."""
    shapes: Shapes = {}
    with suppress(MPGraphError, RuntimeError):  # it cannot serve the whole network: what is known until then must do
        rule = copy.deepcopy(rule)  # one that makes an agent for each node must not keep those of other regions
        graph = AgentGraph(network, rule)
        trace = Rehearsal(graph, torch.get_default_dtype())
        shapes = trace.shapes
        trace.rehearse(nn.ModuleList([rule, *dict.fromkeys(graph.agents.values())]), rule.all_passes)
    return shapes
