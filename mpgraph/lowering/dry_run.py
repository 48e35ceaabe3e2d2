"""Dry runs: a rule traced once before any code is kept, to learn what only its methods know.

That is which channels it hands to the inner optimizer, and of what shape its messages are.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from mpgraph.agents.channel import Channel
from mpgraph.agents.node import AgentNode
from mpgraph.agents.optimizers import Optimizer
from mpgraph.agents.protocol import Protocol
from mpgraph.agents.repeat import Repeat
from mpgraph.errors import MPGraphError, ProtocolError
from mpgraph.graph.arrows import Arrow
from mpgraph.graph.wiring import AgentGraph
from mpgraph.network.network import Network

from .trace import Trace
from .value import Value

Shapes = set[torch.Size]


class DryRun(Trace):
    """A trace that notes what happens; inner optimizers do nothing in it.

    Attributes:
        descended: node and channel of every signal for an inner optimizer.
        shapes: local shapes of messages, by ``str(arrow)``, ``(pass, source)`` and ``(pass, target, role)``.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        self.descended: list[tuple[str, str]] = []
        self.shapes: dict[Any, Shapes] = {}

    def through(self, passes: Sequence[str | Repeat]) -> None:
        """Run the agents through a schedule."""
        with self.parameters_of(nn.ModuleList([self.graph.protocol, *dict.fromkeys(self.graph.agents.values())])):
            self.follow(passes)

    def predict(self, pass_name: str) -> None:
        """Nothing is predicted."""

    def descend(self, view: Any, channel: str, signal: Value) -> Any:
        """A note in place of the optimizer's step."""
        self.descended.append((view.node.owner, channel))
        return view

    def delivered(self, index: int, arrow: Arrow) -> Any:
        """The message, whose shape is noted."""
        message = super().delivered(index, arrow)
        parts = message.values() if isinstance(message, dict) else [message]
        name, source, target = arrow.pass_name, arrow.source.owner, arrow.target.owner
        for key in (str(arrow), (name, source), (name, target, arrow.role)):
            self.shapes.setdefault(key, set()).update(part.shape for part in parts)
        return message


def optimizer_channels(graph: AgentGraph, dtype: torch.dtype) -> Mapping[str, Mapping[str, Channel]]:
    """By node, the channels that inner optimizers keep: of the nodes whose rule hands them a signal, and no others."""
    if not any(isinstance(m, Optimizer) and m.channels() for m in graph.protocol.modules()):
        return {}
    descended: list[tuple[str, str]] = []
    for phase in graph.protocol.phases or [None]:
        run = DryRun(graph, dtype)
        run.through(graph.protocol.passes_of(phase))
        descended += run.descended
    added: dict[str, dict[str, Channel]] = {}
    for name, channel in dict.fromkeys(descended):
        present = {**graph.channels[name], **added.get(name, {})}
        own = graph.protocol.optimizer_of(graph.nodes[name], channel).declare(channel, present)
        for use in graph.uses[name]:
            added.setdefault(use, {}).update(own)
    return added


class Alone(DryRun):
    """A dry run of one rule on the whole network, also where other rules will serve.

    There it may fail in any way, as it was never meant for these nodes. So a node that fails is left out, and those
    that need its messages after it. Where the rule does serve, the same failure comes up again, as an error, when the
    whole graph is compiled.

    Attributes:
        problems: why nodes were left out.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        self.problems: list[str] = []

    def run(self, name: str, index: int, node: AgentNode) -> None:
        """The update of one node, if it works."""
        try:
            super().run(name, index, node)
        except Exception as error:
            self.problems.append(f"node {node.name!r}, pass {name!r}: {error}")


def _alone(network: Network, rule: Protocol, online: bool, sequences: bool) -> tuple[dict[Any, Shapes], str]:
    """Local shapes of the messages if the rule served the whole network, and what failed in that, if anything."""
    rule = copy.deepcopy(rule)  # one that makes an agent for each node must not keep those of other regions
    try:
        run = Alone(AgentGraph(network, rule, online, sequences), torch.get_default_dtype())
    except MPGraphError:
        # It is a rule for a part: it has no agent for other nodes, or refuses something in another region. A single
        # agent that translates between two rules is such a rule, and nothing tells what it would send to itself.
        return {}, ""
    run.through(rule.all_passes)
    return run.shapes, next(iter(run.problems), "")


def check_borders(graph: AgentGraph) -> None:
    """Refuse borders between rules over which messages do not fit.

    Every message between regions must have the local shape that both rules give it on a network of their own; one that
    broadcasts would otherwise pass unnoticed.

    Raises:
        ProtocolError: naming the arrow and both rules.

    Warns:
        UserWarning: for a border that was not checked, as a rule that accepts the whole network fails in it.
    """

    def rule_of(node: AgentNode) -> Protocol:
        return graph.protocol.rule_at(node.serves or node.owner)

    crossing = [arrow for arrow in graph.all_arrows() if rule_of(arrow.source) is not rule_of(arrow.target)]
    wide = any(graph.agents[n].size_of(c) for n, channels in graph.channels.items() for c in channels.values())
    if not crossing or not wide:  # every message is a single number, so they fit
        return
    alone = {rule: _alone(graph.network, rule, graph.online, graph.sequences) for rule in graph.protocol.parts}
    unchecked: dict[Protocol, list[str]] = {}
    for arrow in crossing:
        name, sender, receiver = arrow.pass_name, rule_of(arrow.source), rule_of(arrow.target)
        # The second key is for an arrow that the rule alone would not have: its target reads another role, say.
        sent = _shapes_at(alone[sender][0], str(arrow), (name, arrow.source.owner))
        expected = _shapes_at(alone[receiver][0], str(arrow), (name, arrow.target.owner, arrow.role))
        if sent and expected and sent != expected:
            raise ProtocolError(
                f"Regions: at the border {arrow} messages do not fit: {sender!r} (of {arrow.source.name!r}) sends "
                f"numbers of local shape {_listed(sent)}, {receiver!r} (of {arrow.target.name!r}) expects "
                f"{_listed(expected)}. Rules that meet must exchange messages of one width; () is a single number"
            )
        for rule, found in ((sender, sent), (receiver, expected)):
            if not found and alone[rule][1]:
                unchecked.setdefault(rule, []).append(str(arrow))
    for rule, arrows in unchecked.items():
        warnings.warn(
            f"Regions: {rule!r} fails on a network of its own ({alone[rule][1]}), so it was not checked "
            f"whether messages fit at the borders {'; '.join(arrows)}",
            stacklevel=3,
        )


def _shapes_at(shapes: Mapping[Any, Shapes], *keys: Any) -> Shapes:
    return next((shapes[key] for key in keys if shapes.get(key)), set())


def _listed(shapes: Shapes) -> str:
    return ", ".join(str(tuple(shape)) for shape in shapes)
