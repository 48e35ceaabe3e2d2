"""Channels by name, for those who look at a run from outside: which there are, and what they hold after a step."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from mpgraph.agents.node import AgentNode
from mpgraph.errors import ProtocolError, unknown
from mpgraph.network.activations import Activation
from mpgraph.network.operations import Operation
from mpgraph.program.program import Batch, Program, State

Part = str | tuple[str, int]  # a channel, or one number of a channel that holds several


def recorded(
    program: Program, state: State, x: Batch, y: Batch | None, parts: Mapping[str, Part], phase: str | None = None
) -> dict[str, Tensor]:
    """A channel of each node at the end of a step, ``(batch, *node)``; the step itself is thrown away.

    Args:
        program: a network with a rule.
        state: before the step.
        x, y: the batch of the step.
        parts: for each node a channel, or ``(channel, index)`` for one number of several.
        phase: of a rule whose steps are not all alike.

    Raises:
        ProtocolError: for an unknown node or channel, or a program of sequences.
    """
    refuse_sequences(program)
    graph = program.graph
    split = {name: (part, None) if isinstance(part, str) else part for name, part in parts.items()}
    for name, (channel, _) in split.items():
        if name not in graph.nodes:
            raise ProtocolError("probe: " + unknown("node", name, graph.nodes))
        if channel not in graph.channels[name]:
            raise ProtocolError(f"probe: node {name!r} has no " + unknown("channel", channel, graph.channels[name]))
    record = {name: [channel] for name, (channel, _) in split.items()}
    try:
        with torch.no_grad():
            _, out = program.step(state, x, y, record=record, phase=phase)
    except ProtocolError as error:  # the agent has the channel, but nothing is written to it
        there = dict.fromkeys(c for name in split for c in graph.channels[name])
        raise ProtocolError(f"probe: {error}; allowed are, where written, {', '.join(there)}") from None
    found = {}
    for name, (channel, index) in split.items():
        tensor = out.recorded[name][channel]
        found[name] = tensor if index is None else tensor[..., index]
    return found


def refuse_sequences(program: Program) -> None:
    """Refuse a program whose channels have a dimension of ticks, which probes would take for one of the node."""
    if program.sequences:
        raise ProtocolError(
            "probe: this program takes sequences of any length, whose channels have a value for each tick. Measure an "
            "unrolled network, mg.compile(...) without sequences=True: its weights have the same names"
        )


def is_unit(node: AgentNode) -> bool:
    """Whether a node applies a function to the sum of the messages that it receives."""
    fed = node.type in ("input", "target")
    return isinstance(node.function, Activation) and not isinstance(node.function, Operation) and not fed


def units_with(program: Program, part: Part) -> list[str]:
    """Units of the network whose agents have a channel.

    Raises:
        ProtocolError: if there are none; it lists the channels of units.
    """
    graph, channel = program.graph, part if isinstance(part, str) else part[0]
    units = [n for n, node in graph.nodes.items() if is_unit(node) and node.owner in graph.network.units]
    found = [name for name in units if channel in graph.channels[name]]
    if not found:
        there = dict.fromkeys(c for name in units for c in graph.channels[name])
        raise ProtocolError("probe: no unit has the " + unknown("channel", channel, there))
    return found


def nodes_with(state: State, *channels: str) -> list[str]:
    """Nodes that keep all of these channels.

    Raises:
        ProtocolError: if there are none; it lists the channels that are kept.
    """
    found = [n for n, kept in state.items() if n != "program" and all(c in kept for c in channels)]
    if not found:
        there = dict.fromkeys(c for name, kept in state.items() if name != "program" for c in kept)
        listed = " and ".join(map(repr, channels))
        raise ProtocolError(f"probe: no node keeps {listed}; the channels of this state are {', '.join(there)}")
    return found
