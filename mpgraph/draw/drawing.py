"""Pictures of networks and agent graphs."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpgraph.agents.node import AgentNode
from mpgraph.agents.repeat import Repeat, names_of, repeats_of
from mpgraph.errors import InputError, NetworkError, ProtocolError, unknown
from mpgraph.graph.arrows import Arrow
from mpgraph.network.network import Network, Wire

from .diagrams import LOOKS, Box, Diagram, Line, Stroke, graphviz, mermaid
from .multigraph import is_trained, node_type, shape_text
from .neurons import draw_neurons
from .render import figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

    from mpgraph.graph.wiring import AgentGraph

TEXTS = {"mermaid": mermaid, "graphviz": graphviz}
SUFFIXES = (".pdf", ".png", ".svg")
CONNECTIONS = {
    "trained connection": Stroke("#0072B2"),
    "untrained connection": Stroke("#555555", (4, 2)),
    "delayed connection": Stroke("#D55E00", (1.5, 1.5)),
    "operand, loss": Stroke("#999999"),
}
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#7A5195", "#B8860B", "#222222")
DASHES: tuple[tuple[float, ...], ...] = ((), (4, 2), (1.5, 1.5), (6, 2, 1.5, 2))
DPI, MOST_PIXELS = 150.0, 30_000


def draw_network(network: Network, path: str | Path | None = None, format: str = "matplotlib") -> Any:
    """A picture of a network: what was drawn, with the size and function of every node and the type of connection.

    Args:
        network: with or without a loss.
        path: where to write it; the suffix sets the format of a figure: .png, .svg or .pdf.
        format: ``matplotlib``, ``mermaid`` or ``graphviz``.

    Returns:
        A matplotlib figure, or the text.

    Raises:
        NetworkError: for an unknown format or suffix, or an empty network.
    """
    _check(path, format)
    if not network.units:
        raise NetworkError("there is nothing to draw yet; add an input with network.input(name, size)")
    return _render(_network_diagram(network), path, format)


def draw_graph(
    graph: AgentGraph,
    path: str | Path | None = None,
    format: str = "matplotlib",
    passes: Sequence[str] = (),
    state: Mapping[str, Mapping[str, Tensor]] | None = None,
    activity: Mapping[str, Any] | None = None,
) -> Any:
    """A picture of an agent graph: every node of agents and the arrows of each pass, or every neuron and synapse.

    The nodes of a network that is unrolled are drawn once for all ticks; messages between ticks say so.

    Args:
        graph: of a network and a protocol.
        path: where to write it; the suffix sets the format of a figure: .png, .svg or .pdf.
        format: ``matplotlib``, ``mermaid`` or ``graphviz``.
        passes: whose arrows are drawn; by default all.
        state: if given, single neurons are drawn, with its weights; see :func:`mpgraph.draw.neurons.draw_neurons`.
        activity: numbers that color the neurons.

    Returns:
        A matplotlib figure, or the text.

    Raises:
        NetworkError: for an unknown format or suffix, or a picture of neurons as text.
        ProtocolError: for a pass that the protocol lacks.
        InputError: for neurons that are too many, or activities that do not fit.
        StateError: for a state without weights.
    """
    _check(path, format)
    if state is None and activity is not None:
        raise InputError("activity colors single neurons, which are drawn with a state: draw(state=..., activity=...)")
    if state is not None:
        if format != "matplotlib" or passes:
            raise NetworkError("single neurons are drawn by matplotlib, without passes; leave format and passes out")
        return _saved(draw_neurons(graph, state, activity), path)
    passes = (passes,) if isinstance(passes, str) else passes
    for name in passes:
        if name not in graph.order:
            raise ProtocolError(unknown("pass", name, graph.order))
    return _render(_graph_diagram(graph, passes or tuple(graph.order)), path, format)


def _check(path: str | Path | None, format: str) -> None:
    if format not in ("matplotlib", *TEXTS):
        raise NetworkError(unknown("format of a picture", format, ("matplotlib", *TEXTS)))
    if format == "matplotlib" and path is not None and Path(path).suffix not in SUFFIXES:
        raise NetworkError(f"{str(path)!r}: " + unknown("suffix of a picture", Path(path).suffix, SUFFIXES))


def _render(diagram: Diagram, path: str | Path | None, format: str) -> Any:
    if format in TEXTS:
        text = TEXTS[format](diagram)
        if path is not None:
            Path(path).write_text(text, encoding="utf-8")
        return text
    return _saved(figure(diagram.labels_as_boxes()), path)


def _saved(picture: Figure, path: str | Path | None) -> Figure:
    if path is not None:
        picture.savefig(path, dpi=min(DPI, MOST_PIXELS / max(picture.get_size_inches())))
    return picture


# -- what is drawn ------------------------------------------------------------------------------------------------


def _rows(function: object, size: Sequence[int]) -> tuple[str, ...]:
    """What a unit computes, unless it is nothing, and its size."""
    text = repr(function) if function is not None and repr(function) != "identity" else ""
    shape = shape_text(size)
    return (f"{text} {shape}".strip(),) if len(text) <= 10 else (*textwrap.wrap(text, 24), shape)


def _network_diagram(network: Network) -> Diagram:
    boxes = {u.name: Box(u.name, node_type(u, network), _rows(u.activation, u.shape)) for u in network.units.values()}
    for loss in network.losses.values():
        boxes[loss.name] = Box(loss.name, "loss", _rows(loss.loss, network.shape(loss.name)))
    lines = [Line(w.pre, w.post, _group(w, network), _label(w, network)) for w in network.wires.values()]
    plain = [(operand, unit.name) for unit in network.units.values() for operand in unit.operands]
    plain += [(loss.pre, loss.name) for loss in network.losses.values()]
    lines += [Line(one, two, "operand, loss") for one, two in plain]
    used = {line.group for line in lines}
    strokes = {group: stroke for group, stroke in CONNECTIONS.items() if group in used}
    return Diagram(boxes, lines, _links(network, plain), strokes)


def _links(network: Network, links: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """What lies before what: a delayed connection that closes a cycle lies against the others."""
    import networkx

    links = links + [(w.pre, w.post) for w in network.wires.values() if not w.delay]
    order = networkx.DiGraph(links)
    order.add_nodes_from(network.units)
    for wire in network.wires.values():
        if wire.delay:
            closes = networkx.has_path(order, wire.post, wire.pre)
            link = (wire.post, wire.pre) if closes else (wire.pre, wire.post)
            links.append(link)
            if wire.pre != wire.post:
                order.add_edge(*link)
    return links


def _group(wire: Wire, network: Network) -> str:
    if wire.delay:
        return "delayed connection"
    return "trained connection" if is_trained(wire, network) else "untrained connection"


def _label(wire: Wire, network: Network) -> str:
    rows = textwrap.wrap(repr(wire.connection), 18)
    if wire.tied:
        rows += textwrap.wrap(f"weights of {wire.tied}", 24) + ["transposed"] * wire.transposed
    if wire.connection.weighted and not is_trained(wire, network):
        rows.append("fixed")
    if wire.delay:
        rows.append(f"delay {wire.delay}")
    return "\n".join(rows)


def _graph_diagram(graph: AgentGraph, passes: Sequence[str]) -> Diagram:
    """The nodes of all ticks as one, with the arrows that each of them has."""
    names = {name: name if node.type == "delay" else name.partition("@")[0] for name, node in graph.nodes.items()}
    ticks = Counter(names.values())
    boxes = {
        name: Box(name, _drawn_type(node), _agent_rows(node) + (f"at {ticks[name]} ticks",) * (ticks[name] > 1))
        for name, node in graph.nodes.items()
        if names[name] == name
    }
    shown = {name: _shown(name, graph) for name in passes}
    lines: dict[object, Line] = {}
    for number, arrow in enumerate(arrow for arrow in graph.all_arrows() if arrow.pass_name in passes):
        ends, delay = (names[arrow.source.name], names[arrow.target.name]), _delay(arrow)
        label = f"{abs(delay)} tick{'s' * (abs(delay) > 1)} {'later' if delay > 0 else 'earlier'}" if delay else ""
        one = ticks[ends[0]] == ticks[ends[1]] == 1  # of such nodes every arrow is drawn
        lines.setdefault(
            (arrow.pass_name, *ends, arrow.role, delay, number * one), Line(*ends, shown[arrow.pass_name], label)
        )
    strokes = {  # a pass looks the same whichever others are drawn
        shown[name]: Stroke(COLORS[i % len(COLORS)], DASHES[i % len(DASHES)])
        for i, name in enumerate(graph.order)
        if name in passes
    }
    links = [(names[link.pre.name], names[link.post.name]) for link in graph.links]
    return Diagram(boxes, list(lines.values()), links, strokes)


def _delay(arrow: Arrow) -> int:
    """How many ticks later a message arrives, also in a network that is unrolled."""
    placed = {"target", "loss", "link", "constant", "zero", "delay"}
    if arrow.delay or {arrow.source.type, arrow.target.type} & placed:
        return arrow.delay
    return arrow.target.tick - arrow.source.tick


def _shown(name: str, graph: AgentGraph) -> str:
    """A pass in the legend: how many times it runs where the schedule repeats it."""

    def times(schedule: Sequence[str | Repeat]) -> int:
        parts = [one.times * times(one.passes) if isinstance(one, Repeat) else int(one == name) for one in schedule]
        return sum(parts)

    rule = graph.protocol
    schedules = list(rule.phases.values()) if rule.phases else [rule.passes]
    repeated = any(name in names_of(one.passes) for passes in schedules for one in repeats_of(passes))
    return f"{name} ({max(map(times, schedules))} times)" if repeated else name


def _drawn_type(node: AgentNode) -> str:
    """The built-in node type to draw it as."""
    return next((kind for kind in (node.type, *node.types) if kind in LOOKS), "constant")


def _agent_rows(node: AgentNode) -> tuple[str, ...]:
    if "weight" not in node.types:
        return _rows(node.function, node.shape)
    rows = _rows(None, [axis.size or 1 for axis in node.kept])
    rows += (f"at {node.uses} places",) if node.uses > 1 else ()
    rows += () if node.trained else ("fixed",)
    shared = node.owner != node.name
    return rows + ((f"weights of {node.owner}",) if shared else ())
