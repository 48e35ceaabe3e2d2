"""From a network and a rule to what a program runs: the steps of ``mg.compile`` before code is written."""

from __future__ import annotations

import pickle
from typing import Any

import torch
from torch import nn

from mpgraph.agents.protocol import Protocol
from mpgraph.errors import MPGraphError, NetworkError, ProtocolError, unknown
from mpgraph.graph.wiring import AgentGraph
from mpgraph.lowering.dry_run import check_borders, optimizer_channels
from mpgraph.network.network import Network
from mpgraph.network.validation import check_functions


def agent_graph(
    network: Network,
    protocol: Protocol,
    device: torch.device,
    dtype: torch.dtype,
    online: bool = False,
    sequences: bool = False,
) -> AgentGraph:
    """The agents of a network under a rule, and their arrows.

    ``online`` if a step is one tick, ``sequences`` if it is a sequence of any length.

    Raises:
        NetworkError, ProtocolError: for a network or a rule that cannot be, or that do not fit each other.
    """
    rewritten = protocol.rewrite(network.copy())
    if not isinstance(rewritten, Network):
        raise ProtocolError(f"{type(protocol).__name__}.rewrite must return a network, got {rewritten!r}")
    place = torch.device("cpu") if device.type == "meta" else device  # values are compared
    check_functions(rewritten, dtype, place)  # before the graph: a function that fails is named as such
    graph = AgentGraph(rewritten, protocol, online, sequences)
    if len(protocol.parts) > 1:
        check_borders(graph)
    graph = graph.with_channels(optimizer_channels(graph, dtype))
    _check_values(graph)
    return graph


def _check_values(graph: AgentGraph) -> None:
    """Refuse initial values for channels that nothing keeps."""
    for unit in graph.network.units.values():
        if unit.values:
            uses = [name for name in graph.nodes if name.partition("@")[0] == unit.name]
            kept = {c for name in uses for c, declared in graph.channels[name].items() if declared.kept}
            for channel in unit.values:
                if channel not in kept and channel not in unit.activation.kept:  # statistics, which a rule may ignore
                    problem = unknown("channel", channel, kept | set(unit.activation.kept))
                    raise ProtocolError(f"unit {unit.name!r}: values: {problem}")


def own_agents(graph: AgentGraph) -> nn.ModuleList:
    """Agents with parameters that the protocol does not hold itself.

    What it holds is found there, and once: torch.func.functional_call cannot restore a module with two names.
    """
    held = {*graph.protocol.parameters(), *graph.protocol.buffers()}
    agents = dict.fromkeys(graph.agents.values())
    return nn.ModuleList([a for a in agents if not held.issuperset([*a.parameters(), *a.buffers()])])


def check_pickles(network: Network, protocol: Protocol) -> None:
    """Refuse to pickle what holds a function that another process could not import.

    Raises:
        NetworkError, ProtocolError: naming the unit, connection, loss or rule.
    """
    parts: list[tuple[str, Any, type[MPGraphError]]] = [
        *((f"unit {name!r}, {unit.activation}", unit.activation, NetworkError) for name, unit in network.units.items()),
        *((f"connection {name!r}", wire.connection, NetworkError) for name, wire in network.wires.items()),
        *((f"loss {name!r}, {node.loss}", node.loss, NetworkError) for name, node in network.losses.items()),
        ("the torch module that the network was read from", network.module, NetworkError),
        ("the graph that the network was read from", network.edges, NetworkError),
        (f"the rule {type(protocol).__name__}", protocol, ProtocolError),
    ]
    for what, part, error in parts:
        try:
            pickle.dumps(part)
        except (AttributeError, TypeError, RuntimeError, pickle.PickleError) as problem:
            raise error(
                f"{what}: a program is pickled with its functions and classes by name, and this one holds what cannot "
                f"be: {problem}. Define the function or class at the top level of a module, instead of as a lambda or "
                "inside a function"
            ) from None


def place_parameters(protocol: Protocol, agents: nn.ModuleList, device: torch.device, dtype: torch.dtype) -> None:
    """Move the rule's parameters to the program's device and dtype, then fill those that a file still holds.

    In this order: a number of the file would be rounded to torch's default dtype otherwise.
    """
    protocol.to(device=device, dtype=dtype)
    agents.to(device=device, dtype=dtype)
    if protocol.pending:
        protocol.pending.fill(protocol)
