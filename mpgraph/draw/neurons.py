"""Single neurons as dots and synapses as lines: weights of a state, and what the neurons say of an example."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from mpgraph.agents.node import AgentNode
from mpgraph.errors import InputError, StateError, unknown
from mpgraph.graph.arrows import Link

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from mpgraph.graph.wiring import AgentGraph

MOST_NEURONS, MOST_SYNAPSES = 2000, 50_000  # more of them could not be told apart
COLORS = "RdBu_r"  # of numbers below and above zero
NO_NUMBER = "#DDDDDD"
COLUMN, ROW, LONGEST = 1.7, 0.22, 9.0  # inches: between columns, between neurons, the longest column
POINTS = 12  # of a line between neurons of one column


@dataclass(frozen=True)
class Synapses:
    """The lines of one connection: flat indices of the neurons at both ends, and a weight for each pair."""

    pre: str
    post: str
    source: np.ndarray
    target: np.ndarray
    weight: np.ndarray


def draw_neurons(
    graph: AgentGraph,
    state: Mapping[str, Mapping[str, Tensor]],
    activity: Mapping[str, Any] | None = None,
    channel: str = "w",
) -> Figure:
    """A picture of every neuron of a small network.

    Units of one depth stand in a column. A line is a synapse, red where its weight is above zero and blue below, as
    wide as the weight is large beside the largest one of its connection. Operations have no synapses, so that no lines
    lead to them; of a network with ticks it is the last one.

    Args:
        graph: of a network and a protocol.
        state: whose weights are drawn.
        activity: numbers that color the neurons, by unit: tensors ``(*unit)``, or ``(batch, *unit)`` of which the first
            example counts; also what a step recorded, with one channel a unit. Neurons without a number are grey.
        channel: of the synapses, drawn as their weight.

    Raises:
        InputError: for a network that is too large to see single neurons, or numbers of another shape than the unit.
        StateError: for a state without that channel at a connection.
    """
    from matplotlib.figure import Figure

    units = graph.network.units
    numbers = {name: _numbers(name, given, graph) for name, given in (activity or {}).items()}
    count = sum(_size(unit.shape) for unit in units.values())
    if count > MOST_NEURONS:
        raise InputError(f"{count} neurons are too many to draw single ones, at most {MOST_NEURONS}; leave state out")
    lines = {name: synapses(graph, name, state, channel) for name in graph.network.wires if _is_drawn(graph, name)}
    total = sum(len(one.weight) for one in lines.values())
    if total > MOST_SYNAPSES:
        raise InputError(f"{total} synapses are too many to draw, at most {MOST_SYNAPSES}; leave state out")
    places = _places(graph)
    width = COLUMN * (max(column for column, _ in places.values()) + 1)
    longest = max(len(rows) for _, rows in places.values())
    height = min(ROW * longest, LONGEST) + 1.0
    figure = Figure(figsize=(width + 1.0, max(height, 2.5)))
    axes = figure.add_axes((0.02, 0.02, 0.86, 0.9))
    axes.set_axis_off()
    for name, one in lines.items():
        _draw_lines(axes, name, one, places)
    limit = max((float(np.abs(values).max()) for values in numbers.values()), default=1.0) or 1.0
    size = (72 * 0.6 * min(ROW, (height - 1.0) / longest)) ** 2
    for name, (column, rows) in places.items():
        values = numbers.get(name)
        color: dict[str, Any] = {"color": NO_NUMBER} if values is None else {"c": values, "cmap": COLORS}
        dots = axes.scatter(np.full(len(rows), column), rows, s=size, edgecolors="#444444", zorder=3, **color)
        dots.set_gid(name)
        if values is not None:
            dots.set_clim(-limit, limit)
        top = float(rows.max()) + 0.02
        axes.annotate(name, (column, top), (0, 6), textcoords="offset points", ha="center", size=8, parse_math=False)
    if numbers:
        from matplotlib.cm import ScalarMappable
        from matplotlib.colors import Normalize

        bar = figure.add_axes((0.92, 0.25, 0.02, 0.45))
        figure.colorbar(ScalarMappable(Normalize(-limit, limit), COLORS), cax=bar, label="activity")
    return figure


def _size(shape: tuple[int, ...]) -> int:
    return int(np.prod(shape, dtype=int))


def _numbers(name: str, given: Any, graph: AgentGraph) -> np.ndarray:
    """One number for each neuron of a unit."""
    if name not in graph.network.units:
        raise InputError("activity: " + unknown("unit", name, graph.network.units))
    shape = graph.network.shape(name)
    if isinstance(given, Mapping):
        if len(given) != 1:
            raise InputError(f"activity of {name!r} must be one channel, got {', '.join(given) or 'none'}")
        given = next(iter(given.values()))
    tensor = torch.as_tensor(given).detach()
    if tuple(tensor.shape) == (*tensor.shape[:1], *shape) and tensor.ndim == len(shape) + 1 and len(tensor):
        tensor = tensor[0]
    if tuple(tensor.shape) != shape:
        raise InputError(
            f"activity of {name!r} must be {shape} or (batch, {', '.join(map(str, shape))}), got {tuple(tensor.shape)}"
        )
    return tensor.double().cpu().flatten().numpy()


def _is_drawn(graph: AgentGraph, wire: str) -> bool:
    """Whether a connection has synapses between two units."""
    there = graph.network.wires[wire]
    return wire in graph.nodes and there.post in graph.network.units


def synapses(graph: AgentGraph, wire: str, state: Mapping[str, Mapping[str, Tensor]], channel: str = "w") -> Synapses:
    """Which neurons the synapses of a connection join, and their weights; those of a kernel at each of its places.

    Raises:
        StateError: for a state without that channel at this connection.
    """
    node = graph.nodes[wire]
    kept = state.get(node.owner, {}).get(channel)
    if kept is None or kept.ndim != len(node.kept):
        there = [name for name, tensor in state.get(node.owner, {}).items() if tensor.ndim == len(node.kept)]
        raise StateError(
            f"the state has no channel {channel!r} with one number for each synapse of {wire!r}; allowed are "
            f"{', '.join(there) or 'none'}"
        )
    sizes = [axis.size or 1 for axis in node.axes]
    at = dict(zip(node.axes, np.indices(sizes).reshape(len(sizes), -1), strict=True))
    below = next(link for link in graph.links if link.post is node)
    above = next(link for link in graph.links if link.pre is node)
    source = _agents(below, below.pre, dict(below.names), at)
    target = _agents(above, above.post, {axis: own for own, axis in above.names.items()}, at)
    weight = kept.detach().double().cpu().numpy()[tuple(at[axis] for axis in node.kept)]
    inside = (source >= 0) & (target >= 0)  # not padding
    ends = graph.network.wires[wire]
    return Synapses(ends.pre, ends.post, source[inside], target[inside], np.broadcast_to(weight, inside.shape)[inside])


def _agents(link: Link, unit: AgentNode, own: Mapping[Any, Any], at: Mapping[Any, np.ndarray]) -> np.ndarray:
    """Flat index of the agent of a unit that each synapse joins, -1 for none."""
    count = len(next(iter(at.values()))) if at else 1
    known = {axis: at[name] for axis, name in own.items()}
    nobody = np.zeros(count, dtype=bool)
    if link.incidence is not None:
        found = link.incidence.grid.numpy()[tuple(at[site] for site in link.incidence.sites)]
        nobody = found < 0
        sizes = [axis.size or 1 for axis in link.incidence.unit]
        known |= dict(zip(link.incidence.unit, np.unravel_index(np.maximum(found, 0), sizes), strict=True))
    flat = np.zeros(count, dtype=int)
    for axis in unit.axes:
        flat = flat * (axis.size or 1) + known[axis]
    return np.where(nobody, -1, flat)


def _places(graph: AgentGraph) -> dict[str, tuple[float, np.ndarray]]:
    """The column of every unit and the heights of its neurons, from the top down."""
    import networkx

    network = graph.network
    links = [(wire.pre, wire.post) for wire in network.wires.values() if not wire.delay and wire.post in network.units]
    links += [(operand, unit.name) for unit in network.units.values() for operand in unit.operands]
    drawn = networkx.DiGraph(link for link in links if link[0] != link[1])
    drawn.add_nodes_from(network.units)
    parts = networkx.condensation(drawn)  # units that drive each other stand in one column
    columns = {name: i for i, group in enumerate(networkx.topological_generations(parts)) for name in group}
    stacked: dict[int, list[str]] = {}
    for name in network.units:
        stacked.setdefault(columns[parts.graph["mapping"][name]], []).append(name)
    places = {}
    for column, names in stacked.items():
        sizes = [_size(network.shape(name)) for name in names]
        heights = np.linspace(1.0, 0.0, sum(sizes) + 2 * len(sizes) + 1)  # two places between units
        start = 1
        for name, size in zip(names, sizes, strict=True):
            places[name] = (float(column), heights[start : start + size])
            start += size + 2
    return places


def _draw_lines(axes: Any, name: str, one: Synapses, places: Mapping[str, tuple[float, np.ndarray]]) -> None:
    from matplotlib import colormaps
    from matplotlib.collections import LineCollection

    (left, sources), (right, targets) = places[one.pre], places[one.post]
    y, z = sources[one.source], targets[one.target]
    along = np.linspace(0.0, 1.0, POINTS if left == right else 2)[None, :, None]
    ends = [np.stack([np.full(len(h), x), h], 1)[:, None] for x, h in ((left, y), (right, z))]
    paths = (1 - along) * ends[0] + along * ends[1]
    if left == right:  # a bow to the right, the wider the further apart
        paths[..., 0] += (4 * along * (1 - along))[..., 0] * (0.1 + 0.3 * np.abs(y - z))[:, None]
    share = np.abs(one.weight) / max(float(np.abs(one.weight).max(initial=0.0)), 1e-30)
    colors = colormaps[COLORS](np.where(one.weight > 0, 0.9, 0.1))
    colors[:, 3] = 0.15 + 0.75 * share
    lines = LineCollection(list(paths), colors=list(colors), linewidths=list(0.2 + 1.8 * share), zorder=1)
    lines.set_gid(name)
    axes.add_collection(lines)
