"""Graphs of single neurons: import, compile, and a step against the three raw products it consists of.

python benchmarks/sparse.py [largest number of edges]
"""

import resource
import subprocess
import sys
import time
import warnings

import networkx as nx
import numpy as np
import torch
from common import compare, conditions, report

import mpgraph as mg
from mpgraph.protocols import Backprop

RAW = "three raw products"


def uniform(edges):
    """A random acyclic graph with ten edges a neuron, each from any neuron to any later one: about 60 levels."""
    count, generator = edges // 10, np.random.default_rng(0)
    first = count // 10  # inputs
    target = generator.integers(first, count, edges)
    source = (generator.random(edges) * target).astype(np.int64)
    return connected(count, source, target)


def layered(edges):
    """Ten layers; three in four edges come from the layer before, the others from any earlier one."""
    count, generator = edges // 10, np.random.default_rng(0)
    layer = count // 10
    target = generator.integers(layer, count, edges)
    depth = target // layer
    before = np.where(generator.random(edges) < 0.75, depth - 1, (generator.random(edges) * depth).astype(np.int64))
    return connected(count, before * layer + generator.integers(0, layer, edges), target)


def connected(count, source, target):
    """A graph of these edges, and one more to each neuron after the first tenth that has no incoming edge."""
    reached = np.zeros(count, bool)
    reached[target] = True
    missing = np.flatnonzero(~reached[count // 10 :]) + count // 10
    graph = nx.DiGraph()
    graph.add_nodes_from(range(count))
    graph.add_edges_from(zip(source.tolist(), target.tolist(), strict=True))
    graph.add_edges_from((neuron - count // 10, neuron) for neuron in missing.tolist())
    return graph


GRAPHS = {"layered": layered, "uniform": uniform}


def build(model, edges):
    """Import and compile one graph; prints seconds and what that added to the largest resident memory."""
    graph = GRAPHS[model](edges)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    network = mg.Network.from_networkx(graph, loss="l2")
    read = time.perf_counter()
    program = mg.compile(network, Backprop())
    state = program.init()
    done = time.perf_counter()
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    levels = sum(not unit.is_input and not unit.operands for unit in network.units.values())
    print(
        f"  {model:8} {graph.number_of_edges():8} edges {len(graph):7} neurons {levels:3} levels: "
        f"import {read - start:6.2f} s, compile and init {done - read:6.2f} s, "
        f"memory +{(after - before) / 1024:5.0f} MiB, in all {after / 1024:5.0f} MiB"
    )
    return network, program, state


def raw(network, batch):
    """Forward, transposed and outer product on one matrix with all edges of the network, and nothing else."""
    starts, total = {}, 0  # of each unit among all neurons
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
    forward, backward = matrix(post, pre, values, total), matrix(pre, post, values, total)
    x, e = torch.randn(total, batch), torch.randn(total, batch)

    def step():
        return forward @ x, backward @ e, torch.sparse.sampled_addmm(forward, e, x.t(), beta=0.0)

    return step


def matrix(row, column, values, size):
    """A CSR matrix of these entries, with the indices that torch's kernels need not convert."""
    order = torch.argsort(row * size + column)
    starts = torch.cat([torch.zeros(1, dtype=torch.long), torch.bincount(row, minlength=size).cumsum(0)])
    return torch.sparse_csr_tensor(
        starts.int(), column[order].int(), values[order], (size, size), check_invariants=False
    )


def steps(model, edges):
    """Times a step at batch 1 and 32."""
    network, program, state = build(model, edges)
    inputs, outputs = network.shape("x")[0], network.shape("y")[0]
    for batch, rounds in ((1, 30), (32, 10)):
        x, y = torch.randn(batch, inputs), torch.randn(batch, outputs)
        medians = compare(
            {RAW: raw(network, batch), "program.step": lambda x=x, y=y: program.step(state, x, y)}, rounds, calls=1
        )
        report(f"\n{model}, {edges} edges, batch {batch}: us, ratio to the raw products", medians, RAW)


def main():
    """Print all figures; each size in a process of its own, so that each has its own largest memory."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
    if len(sys.argv) == 4:  # one of the processes
        build(sys.argv[2], int(sys.argv[3]))
        return
    most = int(sys.argv[1]) if len(sys.argv) == 2 else 10**6
    print(conditions())
    print("import and compile")
    for model in GRAPHS:
        for edges in (most // 100, most // 10, most):
            subprocess.run([sys.executable, __file__, "build", model, str(edges)], check=True)
    for model in GRAPHS:
        print()
        steps(model, most)


if __name__ == "__main__":
    main()
