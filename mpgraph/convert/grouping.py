"""Graphs of single neurons, read from networkx and grouped so that each group is computed at once.

Every node is one neuron with a bias (inputs have none), every edge one weight. Attributes of a node:

    kind        ``input``, ``unit`` or ``output``; by default ``input`` without incoming edges, ``output`` without
                outgoing ones, otherwise ``unit``
    activation  a name, function or kind that acts on single numbers; by default ``tanh``, of outputs ``identity``
    index       place among the inputs or the outputs; by default their order in the graph
    bias        initial value, by default 0

and of an edge: ``weight``, its initial value (of all edges, or of none for the rule to choose), and ``delay``, how many
ticks later its message arrives, by default 0 (within the tick). Other attributes are ignored. Edges without a delay
may form no cycle, but for ``cycles="synchronous"`` and ``"feedback_arcs"``, which give some of them one tick.

All inputs are the unit ``x``, all outputs the unit ``y``. A neuron's level is the longest path without delay that
leads to it from the inputs; the neurons of a level with the same activation are one unit, ``level1`` or, where a level
has several activations, ``level1.step`` and ``level1.tanh``. Each unit has one sparse connection for each delay: where
its sources are spread over several units it reads a bus, the concatenation of levels, ``bus0to3``, that continues an
earlier bus where one starts near enough. Edges between two units that join all their neurons once are a dense
connection.

Outputs that feed other neurons, or differ in activation, are grouped like all others, and ``y`` selects them.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mpgraph.errors import NetworkError
from mpgraph.network.connections import Connection, Dense, Sparse
from mpgraph.network.losses import Loss
from mpgraph.network.network import Network
from mpgraph.network.operations import Concat, Operation, Shape

from .cycles import Cycles, with_delays
from .neurons import INPUT, OUTPUT, Edges, Neurons, check, levels, read_edges, read_neurons


class Select(Operation):
    """Some numbers of a unit, in a given order.

    Args:
        index: which, as integers, each at most once.
    """

    def __init__(self, index: Sequence[int]) -> None:
        self.index = torch.as_tensor(index, device="cpu").long()

    def shape(self, *operands: Shape) -> Shape:  # noqa: D102
        if len(operands) != 1 or len(operands[0]) != 1 or int(self.index.max()) >= operands[0][0]:
            raise NetworkError(f"select needs one operand with more than {int(self.index.max())} numbers")
        return (len(self.index),)

    def apply(self, *z: Tensor) -> Tensor:  # noqa: D102
        return torch.index_select(z[0], 1, self.index.to(z[0].device))

    def vjp(self, e: Tensor, z: Sequence[Tensor], y: Tensor) -> tuple[Tensor, ...]:  # noqa: D102
        return (torch.index_add(torch.zeros_like(z[0]), 1, self.index.to(e.device), e),)

    def __repr__(self) -> str:
        return f"select({len(self.index)})"


class Bus(Concat):
    """Units one after the other, laid out agent by agent as sparse products read and write them.

    The result is ``(batch, agents)`` with strides ``(1, batch)``. A plain concatenation would transpose every operand.
    """

    def apply(self, *z: Tensor) -> Tensor:  # noqa: D102
        return torch.cat([operand.t() for operand in z], 0).t()

    @property
    def name(self) -> str:  # noqa: D102
        return "concat"


def from_networkx(graph: Any, *, loss: str | Loss | None = None, ticks: int = 1, cycles: Cycles = "refused") -> Network:
    """A network in which every node of a networkx graph is one neuron and every edge one weight.

    Args:
        graph: an ``nx.DiGraph`` or ``nx.MultiDiGraph`` with the attributes of the module's description.
        loss: on the outputs, as in :meth:`Network.loss`; ``None`` for a network without one.
        ticks: how often the network runs for one example; delays must be smaller.
        cycles: what happens to edges without a delay where they form cycles, see :meth:`Network.from_networkx`.

    Raises:
        NetworkError: naming the neurons or edges: for unknown or missing attributes, no inputs or outputs, edges into
            an input, neurons that nothing reaches, a delay that is too long, or a cycle without delay.
    """
    _directed(graph)
    edges = read_edges(graph)
    neurons = read_neurons(graph, edges)
    return group(neurons, with_delays(neurons, edges, cycles), loss=loss, ticks=ticks)


def _directed(graph: Any) -> None:
    """Refuse what is not a directed graph, with the call that makes one of it."""
    import networkx

    if not isinstance(graph, networkx.Graph):
        calls = {
            "list": "nx.DiGraph(edges)",
            "ndarray": "nx.from_numpy_array(matrix, create_using=nx.DiGraph)",
            "Tensor": "nx.from_numpy_array(matrix.numpy(), create_using=nx.DiGraph)",
            "scipy": "nx.from_scipy_sparse_array(matrix, create_using=nx.DiGraph)",
        }
        given = graph if isinstance(graph, type) else type(graph)
        kind = "scipy" if given.__module__.startswith("scipy.sparse") else given.__name__
        received = f"the class {given.__name__}" if given is graph else f"an object of class {given.__name__}"
        raise NetworkError(
            f"Network.from_networkx takes a networkx.DiGraph or MultiDiGraph, got {received}; make a graph of it, for "
            f"example {calls.get(kind, calls['list'])}"
        )
    if not graph.is_directed():
        raise NetworkError(
            "the graph is undirected: give edges a direction, for example with nx.DiGraph(edges), or both with "
            "graph.to_directed() and a delay for one of the two"
        )


def group(neurons: Neurons, edges: Edges, *, loss: str | Loss | None = None, ticks: int = 1) -> Network:
    """The network of single neurons that were read; see the module's description.

    Args:
        neurons, edges: as read by :mod:`mpgraph.convert.neurons`.
        loss, ticks: as in :func:`from_networkx`.

    Raises:
        NetworkError: as in :func:`from_networkx`.
    """
    network = Network(ticks)
    check(neurons, edges, ticks)
    _Grouping(neurons, edges, levels(neurons, edges)).build(network)
    if loss is not None:
        network.loss("y", loss)
    return network


@dataclass
class _Inlet:
    """All edges with one delay into one unit.

    Attributes:
        unit: number of the unit.
        delay: in ticks.
        rows: which edges, in the order of the table.
        low, high: the first and the last unit that has sources.
        single: whether it reads that one unit rather than a bus.
    """

    unit: int
    delay: int
    rows: np.ndarray
    low: int
    high: int
    single: bool


class _Grouping:
    """Units and connections of the neurons.

    Neurons are numbered by unit, and within it by activation and order in the graph. Units are numbered by level.
    """

    def __init__(self, neurons: Neurons, edges: Edges, level: np.ndarray) -> None:
        self.neurons = neurons
        outputs = neurons.kind == OUTPUT
        feeding = bool(outputs[edges.source].any())
        self.direct = not feeding and len(np.unique(neurons.activation[outputs])) == 1
        if self.direct:  # nothing waits for them, so they can all be the last unit
            level = np.where(outputs, level.max() + 1, level)
        self.order = np.lexsort((neurons.place, neurons.activation, level))
        self.number = np.empty_like(self.order)
        self.number[self.order] = np.arange(len(self.order))
        steps = (np.diff(level[self.order]) != 0) | (np.diff(neurons.activation[self.order]) != 0)
        self.starts = np.concatenate([[0], np.flatnonzero(steps) + 1, [len(level)]])  # of each unit, and the end
        self.level = level[self.order][self.starts[:-1]]  # of each unit
        self.unit_of = np.repeat(np.arange(len(self.level)), np.diff(self.starts))
        pairs = self.number[edges.target] * len(level) + self.number[edges.source]
        by_target = np.argsort(pairs, kind="stable")
        self.pairs = pairs[by_target]
        self.post, self.pre = np.divmod(self.pairs, len(level))
        self.delay = edges.delay[by_target]
        self.weight = None if edges.weight is None else edges.weight[by_target]
        self.keys = None if edges.keys is None else [edges.keys[i] for i in by_target]
        self.names: list[str] = []

    def build(self, network: Network) -> None:
        """Add units, buses and connections to a network."""
        inlets = self._inlets()
        dead = self._unread(inlets)
        if self.direct and dead:  # what y reads includes units that lead nowhere, as every unit needs a reader
            last = next(inlet for inlet in inlets if inlet.unit == len(self.level) - 1)
            last.low, last.high, last.single = min(last.low, *dead), max(last.high, *dead), False
        buses = [(inlet.low, inlet.high) for inlet in inlets if not inlet.single]
        chosen = self.number[self._outputs()]
        if not self.direct:
            ends = [*self.unit_of[chosen], *dead]
            selected = (int(min(ends)), int(max(ends)))
            buses += [selected] if selected[0] < selected[1] else []
        self._units(network)
        bus = self._buses(network, buses)
        if not self.direct:
            name, start = bus[selected] if selected[0] < selected[1] else self._unit(selected[0])
            network.operation("y", Select(chosen - start), name)
        wires = [self._connect(network, inlet, bus) for inlet in inlets]
        network.edges = EdgeTable(self, inlets, wires, network)

    def _outputs(self) -> np.ndarray:
        outputs = np.flatnonzero(self.neurons.kind == OUTPUT)
        return outputs[np.argsort(self.neurons.place[outputs])]

    def _inlets(self) -> list[_Inlet]:
        unit, count = self.unit_of[self.post], int(self.delay.max()) + 1
        which = unit * count + self.delay
        rows = np.argsort(which, kind="stable")
        cuts = np.flatnonzero(np.diff(which[rows])) + 1
        found = []
        for part in np.split(rows, cuts):
            sources = self.unit_of[self.pre[part]]
            low, high = int(sources.min()), int(sources.max())
            first = part[0]
            found.append(_Inlet(int(unit[first]), int(self.delay[first]), part, low, high, low == high))
        return found

    def _unread(self, inlets: Sequence[_Inlet]) -> list[int]:
        """Units that no connection reads."""
        covered = np.zeros(len(self.level) + 1, np.int64)
        for inlet in inlets:
            covered[inlet.low] += 1
            covered[inlet.high + 1] -= 1
        read = np.cumsum(covered) > 0
        return [unit for unit in range(len(self.level) - self.direct) if not read[unit]]

    def _last(self, unit: int) -> int:
        """The last unit of the same level."""
        return int(np.searchsorted(self.level, self.level[unit], "right")) - 1

    def _units(self, network: Network) -> None:
        kinds, bias = self.neurons.kinds, self.neurons.bias
        for unit, (start, end) in enumerate(pairwise(self.starts)):
            members = self.order[start:end]
            kind = kinds[self.neurons.activation[members[0]]]
            if self.neurons.kind[members[0]] == INPUT:
                self.names.append(network.input("x", len(members)))
                continue
            name = f"level{self.level[unit]}"
            if self.direct and unit == len(self.level) - 1:
                name = "y"
            elif np.count_nonzero(self.level == self.level[unit]) > 1:
                name = f"{name}.{kind.name}"
            while name in network.units:  # two functions of one name
                name += "_"
            given = True if bias is None else torch.from_numpy(bias[members])
            self.names.append(network.unit(name, len(members), kind, bias=given))

    def _unit(self, unit: int) -> tuple[str, int]:
        return self.names[unit], int(self.starts[unit])

    def _buses(self, network: Network, wanted: Sequence[tuple[int, int]]) -> dict[tuple[int, int], tuple[str, int]]:
        """For each range of units that is read a concatenation that covers it: its name and first neuron.

        A bus may start before the range, up to twice its size, so that it can be an earlier one continued.
        """
        found: dict[tuple[int, int], tuple[str, int]] = {}
        made: list[tuple[int, int, str]] = []  # first and last unit
        for low, high in sorted(set(wanted), key=lambda ends: ends[::-1]):
            end, first = self._last(high), int(np.searchsorted(self.level, self.level[low]))
            earliest = 2 * self.starts[first] - self.starts[end + 1]
            near = [bus for bus in made if bus[0] <= first and self.starts[bus[0]] >= earliest]
            start, done, before = max(near, key=lambda bus: bus[1], default=(first, first, self.names[first]))
            if done < end:
                name = f"bus{self.level[start]}to{self.level[end]}"
                before = network.operation(name, Bus(), before, *self.names[done + 1 : end + 1])
                made.append((start, end, before))
            found[low, high] = (before, int(self.starts[start]))
        return found

    def _connect(self, network: Network, inlet: _Inlet, bus: dict[tuple[int, int], tuple[str, int]]) -> tuple[str, int]:
        """Add one connection; returns its name and, if it is dense, the number of its sources, else 0."""
        source, start = self._unit(inlet.low) if inlet.single else bus[inlet.low, inlet.high]
        post = self.post[inlet.rows] - self.starts[inlet.unit]
        pre = self.pre[inlet.rows] - start
        sizes = network.shape(source)[0], network.shape(self.names[inlet.unit])[0]
        dense = inlet.single and len(pre) == sizes[0] * sizes[1] and bool((np.diff(self.pairs[inlet.rows]) != 0).all())
        connection: Connection = Dense() if dense else Sparse(torch.from_numpy(np.stack([pre, post])))
        weight = None if self.weight is None else torch.from_numpy(self.weight[inlet.rows])
        if weight is not None and dense:
            weight = weight.reshape(sizes[1], sizes[0])
        name = network.connect(source, self.names[inlet.unit], connection, weight=weight, delay=inlet.delay)
        return name, sizes[0] if dense else 0


class EdgeTable:
    """Where the weight of each edge lies; called with an edge as networkx names it."""

    def __init__(
        self, grouping: _Grouping, inlets: Iterable[_Inlet], wires: Sequence[tuple[str, int]], network: Network
    ) -> None:
        self.wires = wires
        self.number = dict(zip(grouping.neurons.names, grouping.number.tolist(), strict=True))
        self.pairs, self.keys = grouping.pairs, grouping.keys
        self.wire = np.empty(len(self.pairs), dtype=np.int32)
        self.index = np.empty(len(self.pairs), dtype=np.int64)
        for wire, inlet in enumerate(inlets):
            self.wire[inlet.rows], self.index[inlet.rows] = wire, np.arange(len(inlet.rows))

    def __call__(self, u: Hashable, v: Hashable, key: Hashable = 0) -> tuple[str, tuple[int, ...]]:
        """Name of the connection and the index of the weight in it.

        Raises:
            NetworkError: if there is no such edge.
        """
        for neuron in (u, v):
            if neuron not in self.number:
                raise NetworkError(f"the graph has no edge {u!r} -> {v!r}: it has no neuron {neuron!r}")
        pair = self.number[v] * len(self.number) + self.number[u]
        low, high = (int(np.searchsorted(self.pairs, pair, side)) for side in ("left", "right"))
        keys: Sequence[Hashable] = range(high - low) if self.keys is None else self.keys[low:high]
        if key not in keys:
            there = f"; its keys are {', '.join(map(repr, keys))}" if keys else ""
            raise NetworkError(f"the graph has no edge {u!r} -> {v!r} with key {key!r}{there}")
        row = low + keys.index(key)
        name, columns = self.wires[self.wire[row]]
        place = int(self.index[row])
        return name, divmod(place, columns) if columns else (place,)
