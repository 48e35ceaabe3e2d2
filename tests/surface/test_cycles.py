"""Graphs of neurons with cycles: which edges take a tick, and what the network then computes."""

import networkx as nx
import numpy as np
import pytest
import torch

import mpgraph as mg
from mpgraph.convert.cycles import closing_edges
from mpgraph.protocols import Backprop

TICKS = 4


def tangled(seed, neurons=9, edges=22):
    """A random graph with cycles, self-loops among them, an input and an output."""
    generator = np.random.default_rng(seed)
    graph = nx.DiGraph()
    graph.add_nodes_from(range(neurons), bias=0.1)
    while graph.number_of_edges() < edges:
        graph.add_edge(*(int(i) for i in generator.integers(0, neurons, 2)))
    graph.add_edges_from([("in", i) for i in range(neurons)])
    graph.add_node("in", kind="input"), graph.add_node("out", kind="output")
    graph.add_edges_from([(0, "out"), (1, "out")])
    for one, two in graph.edges:
        graph.edges[one, two]["weight"] = float(generator.normal())
    return graph


def values(graph, x, late):
    """Every neuron at the last tick, one after the other: ``late`` edges bring what was said a tick before."""
    at_once = nx.DiGraph()
    at_once.add_nodes_from(graph)
    at_once.add_edges_from(edge for edge in graph.edges if edge not in late)
    order, before = list(nx.topological_sort(at_once)), dict.fromkeys(graph, 0.0)
    for tick in range(TICKS):
        now = {"in": x[tick]}
        for neuron in (n for n in order if n != "in"):
            z = graph.nodes[neuron].get("bias", 0.0)
            for one, two, weight in graph.in_edges(neuron, data="weight"):
                z += weight * (before if (one, two) in late else now)[one]
            now[neuron] = z if neuron == "out" else np.tanh(z)
        before = now
    return before


@pytest.mark.parametrize("cycles", ["synchronous", "feedback_arcs"])
@pytest.mark.parametrize("seed", range(3))
def test_a_graph_with_cycles_computes_what_its_neurons_do(seed, cycles):
    graph = tangled(seed)
    network = mg.Network.from_networkx(graph, loss="l2", ticks=TICKS, cycles=cycles)
    delayed = {e for e in graph.edges if network.wires[network.edge(*e)[0]].delay == 1}
    if cycles == "synchronous":
        assert delayed == {e for e in graph.edges if e[0] != "in"}
    program = mg.compile(network, Backprop(), dtype=torch.float64)
    state, x = program.init(), np.random.default_rng(seed).normal(size=TICKS)
    found = program.predict(state, torch.from_numpy(x).reshape(1, TICKS, 1))
    assert float(found) == pytest.approx(values(graph, x, delayed)["out"], abs=1e-12)
    after, _ = program.step(state, torch.from_numpy(x).reshape(1, TICKS, 1), torch.ones(1, 1, dtype=torch.float64))
    assert any(not torch.equal(after[n]["w"], k["w"]) for n, k in state.items() if "w" in k)


def arcs(graph):
    one, two = (np.array(ends) for ends in zip(*graph.edges, strict=True))
    late = closing_edges(one, two, np.ones(len(one), bool), len(graph))
    return {(int(a), int(b)) for a, b in zip(one[late], two[late], strict=True)}


@pytest.mark.parametrize("seed", range(20))
def test_feedback_arcs_are_few_and_on_cycles(seed):
    graph = nx.gnm_random_graph(12, 30, seed=seed, directed=True)
    chosen = arcs(graph)
    rest = nx.DiGraph(graph)
    rest.remove_edges_from(chosen)
    assert nx.is_directed_acyclic_graph(rest)
    parts = [part for part in nx.strongly_connected_components(graph) if len(part) > 1]
    assert all(any({a, b} <= part for part in parts) for a, b in chosen)
    inside = sum(graph.subgraph(part).number_of_edges() for part in parts)
    assert len(chosen) <= inside / 2  # what an order or its reverse always reaches


def test_feedback_arcs_of_known_graphs():
    assert arcs(nx.DiGraph([(0, 1), (1, 2), (0, 2)])) == set()
    assert len(arcs(nx.cycle_graph(7, create_using=nx.DiGraph))) == 1
    assert arcs(nx.DiGraph([(0, 1), (1, 1)])) == {(1, 1)}
    two = nx.DiGraph([(0, 1), (1, 0), (1, 2), (2, 3), (3, 2)])  # two cycles and a bridge
    assert len(arcs(two)) == 2
    assert (1, 2) not in arcs(two)
    assert len(arcs(nx.complete_graph(5, create_using=nx.DiGraph))) == 10  # each pair has one edge backwards


def test_what_does_not_fit_is_refused():
    ring = nx.DiGraph([("in", 0), (0, 1), (1, 0), (1, "out")])
    with pytest.raises(mg.NetworkError, match=r"cycle without a delay.*cycles=\"feedback_arcs\""):
        mg.Network.from_networkx(ring, ticks=2)
    with pytest.raises(mg.NetworkError, match="runs for 1 tick, too few for the delay"):
        mg.Network.from_networkx(ring, cycles="feedback_arcs")
    with pytest.raises(mg.NetworkError, match="cycles: unknown word 'synchron'.*did you mean 'synchronous'"):
        mg.Network.from_networkx(ring, ticks=2, cycles="synchron")
