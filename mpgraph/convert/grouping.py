"""Graphs of single neurons, read from networkx and grouped so that each group is computed at once.

Every node is one neuron with a bias (inputs have none), every edge one weight. Attributes of a node:

    kind        ``input``, ``unit`` or ``output``; by default ``input`` without incoming edges, ``output`` without
                outgoing ones, else ``unit``
    activation  a name, function or kind that acts on single numbers; by default ``tanh``, of outputs ``identity``
    index       place among the inputs or the outputs; by default their order in the graph
    bias        initial value, by default 0

and of an edge: ``weight``, its initial value (of all edges or of none: then the rule draws them), and ``delay`` in
ticks, by default 0. Other attributes are ignored.

All inputs are the unit ``x``, all outputs the unit ``y``. A neuron's level is the longest path without delay that
leads to it from the inputs; the neurons of a level with the same activation are one unit, ``level1`` or, where a level
has several activations, ``level1.step`` and ``level1.tanh``. Each unit has one sparse connection for each delay: where
its sources are spread over several units it reads ``level3.sources``, in which they lie side by side. Edges between
two units that join all their neurons once are a dense connection.

Outputs that feed other neurons, or differ in activation, are grouped like all others, and ``y`` selects them.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from mpgraph.errors import NetworkError
from mpgraph.network.connections import Connection, Dense, Sparse
from mpgraph.network.losses import Loss
from mpgraph.network.network import Network

from .gathering import Gather
from .neurons import INPUT, OUTPUT, Edges, Neurons, check, levels, read_edges, read_neurons

FEW = 4  # units whose neurons are taken from each; of more they are taken from blocks


def from_networkx(graph: Any, *, loss: str | Loss | None = None, ticks: int = 1) -> Network:
    """A network in which every node of a networkx graph is one neuron and every edge one weight.

    Args:
        graph: an ``nx.DiGraph`` or ``nx.MultiDiGraph`` with the attributes of the module's description.
        loss: on the outputs, as in :meth:`Network.loss`; ``None`` for a network without one.
        ticks: how often the network runs for one example; delays must be smaller.

    Raises:
        NetworkError: naming the neurons or edges: for unknown or missing attributes, no inputs or outputs, edges into
            an input, neurons that nothing reaches, a delay that is too long, or a cycle without delay.
    """
    if not graph.is_directed():
        raise NetworkError("the graph is undirected: give edges a direction, for example with nx.DiGraph(edges)")
    edges = read_edges(graph)
    return group(read_neurons(graph, edges), edges, loss=loss, ticks=ticks)


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
        idle: units that it reads too, though it has no edge from them: so that somebody does.
    """

    unit: int
    delay: int
    rows: np.ndarray
    idle: list[int] = field(default_factory=list)


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
        """Add units, concatenations and connections to a network."""
        inlets = self._inlets()
        idle = self._unread(inlets)
        if self.direct:  # a unit that leads nowhere is read by the last one, so that it has somebody to hear from
            next(inlet for inlet in inlets if inlet.unit == len(self.level) - 1).idle = idle
        self._units(network)
        if not self.direct:
            chosen = self.number[self._outputs()]
            name, found = self._sources(network, "y.sources", chosen, idle)
            network.operation("y", Gather(np.searchsorted(found, chosen)), name)
        wires = [self._connect(network, inlet) for inlet in inlets]
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
            first = part[0]
            found.append(_Inlet(int(unit[first]), int(self.delay[first]), part))
        return found

    def _unread(self, inlets: Sequence[_Inlet]) -> list[int]:
        """Units of which no neuron has an edge to another one."""
        read = np.zeros(len(self.level), bool)
        read[self.unit_of[self.pre]] = True
        return [unit for unit in range(len(self.level) - self.direct) if not read[unit]]

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

    def _sources(
        self, network: Network, name: str, neurons: np.ndarray, idle: Sequence[int] = ()
    ) -> tuple[str, np.ndarray]:
        """A node that holds some neurons side by side, and which these are; no copy where they are of one unit.

        Neurons of many units are taken from blocks, concatenations of 2, 4, 8, ... units that all readers share: so
        each reader has few operands, and all together hold no more numbers than there are edges.

        Args:
            network: gets the node, and blocks.
            name: of the node.
            neurons: by number, in any order.
            idle: units of which nothing is taken.
        """
        units = np.unique(self.unit_of[neurons])
        idle = [unit for unit in idle if unit not in units]
        if len(units) == 1 and not idle:
            return self.names[units[0]], np.arange(*self.starts[units[0] : units[0] + 2])
        found = np.unique(neurons)
        blocks = [(int(unit), 1) for unit in units] if len(units) <= FEW else _blocks(int(units[0]), int(units[-1]) + 1)
        names, index = [], []
        for first, count in blocks:
            start, end = self.starts[first], self.starts[first + count]
            chosen = found[slice(*np.searchsorted(found, (start, end)))] - start
            if len(chosen):
                names.append(self._block(network, first, count))
                index.append(None if len(chosen) == end - start else chosen)
        names += [self.names[unit] for unit in idle]
        return network.operation(name, Gather(*index, *([()] * len(idle))), *names), found

    def _block(self, network: Network, first: int, count: int) -> str:
        """The concatenation of some units, made of those of its two halves."""
        if count == 1:
            return self.names[first]
        name = f"units{first}to{first + count - 1}"
        if name not in network.units:
            halves = [self._block(network, start, count // 2) for start in (first, first + count // 2)]
            network.operation(name, Gather(None, None), *halves)
        return name

    def _connect(self, network: Network, inlet: _Inlet) -> tuple[str, int]:
        """Add one connection; returns its name and, if it is dense, the number of its sources, else 0."""
        unit, sources = self.names[inlet.unit], self.pre[inlet.rows]
        name = f"{unit}.sources{inlet.delay or ''}"
        source, found = self._sources(network, name, sources, inlet.idle)
        post, pre = self.post[inlet.rows] - self.starts[inlet.unit], np.searchsorted(found, sources)
        sizes = network.shape(source)[0], network.shape(unit)[0]
        complete = len(pre) == sizes[0] * sizes[1] and bool((np.diff(self.pairs[inlet.rows]) != 0).all())
        dense = complete and source in self.names
        connection: Connection = Dense() if dense else Sparse(torch.from_numpy(np.stack([pre, post])))
        weight = None if self.weight is None else torch.from_numpy(self.weight[inlet.rows])
        if weight is not None and dense:
            weight = weight.reshape(sizes[1], sizes[0])
        wire = network.connect(source, unit, connection, weight=weight, delay=inlet.delay)
        return wire, sizes[0] if dense else 0


def _blocks(low: int, high: int) -> list[tuple[int, int]]:
    """Blocks that cover the units from ``low`` to before ``high``: first unit and count, a power of two.

    A block starts at a multiple of its count, so that whoever needs one of about the same units needs the same.
    """
    blocks = []
    while low < high:
        count = 1 << ((high - low).bit_length() - 1)
        while low % count:
            count //= 2
        blocks.append((low, count))
        low += count
    return blocks


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
