"""Networks and agent graphs as networkx multigraphs, for analysis and for files.

All attributes are strings, numbers or booleans, and what does not apply is left out, so ``networkx.write_graphml`` and
``networkx.write_gexf`` write them as they are. A shape is text: ``"3x28x28"``, and ``"single"`` for one agent.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from mpgraph.network.network import Network, Unit, Wire

if TYPE_CHECKING:
    import networkx

    from mpgraph.graph.arrows import Arrow
    from mpgraph.graph.wiring import AgentGraph


def network_to_networkx(network: Network) -> networkx.MultiDiGraph:
    """A network as a graph for analysis.

    Nodes are inputs, units, operations and losses, with ``kind``, ``shape`` (``"3x28x28"``), ``function`` (the
    activation, operation or loss as text, of an input ``""``) and ``bias`` (whether there is one). Edges are the
    connections, keyed by their names, with ``connection`` (as text), ``trained``, ``delay``, ``transposed`` and, if its
    weights are those of another one, ``tied`` (its name); an operation's operands, keyed ``operand``, with their
    ``position``; and what losses stand on, keyed ``loss``. Edges too have a ``kind``: connection, operand, loss.
    """
    import networkx

    graph = networkx.MultiDiGraph()
    for unit in network.units.values():
        function = "" if unit.is_input else repr(unit.activation)
        kind = node_type(unit, network)
        graph.add_node(unit.name, kind=kind, shape=shape_text(unit.shape), function=function, bias=unit.bias)
    for loss in network.losses.values():
        shape = shape_text(network.shape(loss.name))
        graph.add_node(loss.name, kind="loss", shape=shape, function=repr(loss.loss), bias=False)
    for wire in network.wires.values():
        graph.add_edge(
            wire.pre,
            wire.post,
            key=wire.name,
            kind="connection",
            connection=repr(wire.connection),
            trained=is_trained(wire, network),
            delay=wire.delay,
            transposed=wire.transposed,
            **({"tied": wire.tied} if wire.tied else {}),
        )
    for unit in network.units.values():
        for position, operand in enumerate(unit.operands):
            graph.add_edge(operand, unit.name, key="operand", kind="operand", position=position)
    for loss in network.losses.values():
        graph.add_edge(loss.pre, loss.name, key="loss", kind="loss")
    return graph


def graph_to_networkx(graph: AgentGraph) -> networkx.MultiDiGraph:
    """The nodes and arrows of a network under a rule.

    Nodes have ``kind``, ``shape`` (``"3x28x28"``, of one agent ``"single"``) and ``agent`` (its class). There is an
    edge for each arrow, keyed ``pass:role`` (a second one ``pass:role#1``), with ``pass_name``, ``role`` and ``how``
    messages are aggregated (a function by its name); of sequences with ``delay``, the ticks that a message takes.
    """
    import networkx

    drawn = networkx.MultiDiGraph()
    for node in graph.nodes.values():
        agent = type(graph.agents[node.name]).__name__
        drawn.add_node(node.name, kind=node.type, shape=shape_text(node.shape), agent=agent)
    for arrow in graph.all_arrows():
        ends, key = (arrow.source.name, arrow.target.name), f"{arrow.pass_name}:{arrow.role}"
        parallel = sum(known.split("#")[0] == key for known in drawn.get_edge_data(*ends, default=()))
        drawn.add_edge(
            *ends,
            key=f"{key}#{parallel}" if parallel else key,
            pass_name=arrow.pass_name,
            role=arrow.role,
            how=_how(arrow),
            **({"delay": arrow.delay} if arrow.delay else {}),
        )
    return drawn


def node_type(unit: Unit, network: Network) -> str:
    """Input, operation, output or unit."""
    if unit.is_input or unit.operands:
        return "input" if unit.is_input else "operation"
    return "output" if unit.name in network.outputs else "unit"


def is_trained(wire: Wire, network: Network) -> bool:
    """Whether a rule may change the weights of a connection."""
    owner = network.wires[wire.tied] if wire.tied else wire
    return owner.connection.weighted and owner.trained


def shape_text(shape: Iterable[int]) -> str:
    """``3x28x28``."""
    return "x".join(map(str, shape)) or "single"


def _how(arrow: Arrow) -> str:
    if isinstance(arrow.how, str):
        return arrow.how
    return str(getattr(arrow.how, "__name__", type(arrow.how).__name__))
