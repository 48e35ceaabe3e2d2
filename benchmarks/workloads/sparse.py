"""A graph of single neurons: a step of backprop against the three raw products that it consists of."""

from __future__ import annotations

import functools
from typing import Any

import networkx as nx
import numpy as np
import torch
from torch import Tensor

import mpgraph as mg
from benchmarks.harness import OURS, Case, Contestant, Workload, cost
from mpgraph.protocols import Backprop

RAW = "three raw products"


def uniform(edges: int) -> nx.DiGraph:
    """A random acyclic graph with ten edges a neuron, each from any neuron to any later one: about 60 levels."""
    count, generator = edges // 10, np.random.default_rng(0)
    first = count // 10  # inputs
    target = generator.integers(first, count, edges)
    source = (generator.random(edges) * target).astype(np.int64)
    return connected(count, source, target)


def layered(edges: int) -> nx.DiGraph:
    """Ten layers; three in four edges come from the layer before, the others from any earlier one."""
    count, generator = edges // 10, np.random.default_rng(0)
    layer = count // 10
    target = generator.integers(layer, count, edges)
    depth = target // layer
    before = np.where(generator.random(edges) < 0.75, depth - 1, (generator.random(edges) * depth).astype(np.int64))
    return connected(count, before * layer + generator.integers(0, layer, edges), target)


def connected(count: int, source: Any, target: Any) -> nx.DiGraph:
    """A graph of these edges, and one more to each neuron after the first tenth that has no incoming edge."""
    reached = np.zeros(count, bool)
    reached[target] = True
    missing = np.flatnonzero(~reached[count // 10 :]) + count // 10
    graph = nx.DiGraph()
    graph.add_nodes_from(range(count))
    graph.add_edges_from(zip(source.tolist(), target.tolist(), strict=True))
    graph.add_edges_from((neuron - count // 10, neuron) for neuron in missing.tolist())
    return graph


def raw(network: Any, batch: int, device: str) -> Contestant:
    """Forward, transposed and outer product on one matrix with all edges of the network, and nothing else."""
    starts: dict[str, int] = {}  # of each unit among all neurons
    total = 0
    for name, unit in network.units.items():
        if not unit.operands:
            starts[name], total = total, total + unit.shape[0]
    places = {name: torch.arange(network.shape(name)[0]) + start for name, start in starts.items()}
    for name, unit in network.units.items():
        if unit.operands:
            places[name] = torch.cat([places[operand] for operand in unit.operands])
    ends = [
        (places[wire.pre][wire.connection.edge_index[0]], places[wire.post][wire.connection.edge_index[1]])
        for wire in network.wires.values()
    ]
    pre, post = (torch.cat(end) for end in zip(*ends, strict=True))
    values = torch.randn(len(pre))
    forward = _matrix(post, pre, values, total).to(device)
    backward = _matrix(pre, post, values, total).to(device)
    x, e = torch.randn(total, batch, device=device), torch.randn(total, batch, device=device)

    def step() -> None:
        _ = forward @ x, backward @ e, torch.sparse.sampled_addmm(forward, e, x.t(), beta=0.0)

    return step


def _matrix(row: Tensor, column: Tensor, values: Tensor, size: int) -> Tensor:
    """A CSR matrix of these entries, with the indices that torch's kernels need not convert."""
    order = torch.argsort(row * size + column)
    starts = torch.cat([torch.zeros(1, dtype=torch.long), torch.bincount(row, minlength=size).cumsum(0)])
    return torch.sparse_csr_tensor(
        starts.int(), column[order].int(), values[order], (size, size), check_invariants=False
    )


def make(graph: Any, batch: int, quick: bool, device: str) -> Case:
    """A graph with a million edges."""
    network = mg.Network.from_networkx(graph(10**4 if quick else 10**6), loss="l2")
    program = mg.compile(network, Backprop(lr=1e-6), device=device)
    x = torch.randn(batch, network.shape("x")[0], device=device)
    y = torch.randn(batch, network.shape("y")[0], device=device)
    own = [program.init()]

    def step() -> None:
        with torch.no_grad():
            own[0], _ = program.step(own[0], x, y)

    return Case({OURS: step, RAW: raw(network, batch, device)}, RAW, cost(program, batch, 1))


WORKLOADS = [
    Workload(f"{name}_edges", f"10^6 edges, {what}, batch 1", functools.partial(make, graph, 1), wanted)
    for name, graph, what, wanted in (
        ("layered", layered, "ten layers", None),
        ("uniform", uniform, "random levels", 2.3),
    )
]
