"""Random graphs of single neurons."""

from __future__ import annotations

from typing import Any

import mpgraph as mg
from mpgraph.arguments import Arguments

KINDS = ("watts_strogatz", "erdos_renyi", "barabasi_albert")


def random_graph(
    neurons: int = 200,
    kind: str = "watts_strogatz",
    inputs: int = 64,
    outputs: int = 10,
    *,
    first: int | None = None,
    last: int | None = None,
    degree: int = 8,
    rewired: float = 0.25,
    activation: str = "tanh",
    loss: str | mg.Loss | None = "cross_entropy",
    seed: int = 0,
) -> mg.Network:
    """Hidden neurons joined at random, read with ``Network.from_networkx``; edges lead to later neurons.

    Neurons are called 0, 1, ... , inputs ``("x", i)``, outputs ``("y", i)``. Every input leads to each of the first
    neurons, every output hears each of the last. A neuron that would hear nobody hears the one before it, and one that
    would lead nowhere leads to the next.

    Args:
        neurons: number of hidden neurons.
        kind: of the undirected random graph whose edges are drawn: ``watts_strogatz`` (a ring of neighbours, some
            edges rewired), ``erdos_renyi`` (each pair alike), ``barabasi_albert`` (preferential attachment).
        inputs, outputs: their numbers.
        first: how many neurons the inputs reach; a quarter by default.
        last: how many neurons the outputs hear; a quarter by default.
        degree: edges of a neuron on average, both directions together.
        rewired: fraction of rewired edges (``watts_strogatz``).
        activation: of the hidden neurons; outputs are linear.
        loss: on the outputs ``y``; ``None`` for a network without one.
        seed: of the graph.

    Raises:
        NetworkError: for an unknown kind or numbers that do not fit together.
    """
    check = Arguments("random_graph", mg.NetworkError)
    neurons, degree = check.integer("neurons", neurons, 1), check.integer("degree", degree)
    inputs, outputs = check.integer("inputs", inputs, 1), check.integer("outputs", outputs, 1)
    rewired, seed = check.number("rewired", rewired, 0, 1), check.seed("seed", seed)
    quarter = max(1, neurons // 4)
    first = quarter if first is None else check.integer("first", first)
    last = quarter if last is None else check.integer("last", last)
    if min(inputs, outputs, first, last) < 1 or max(first, last) > neurons:
        raise mg.NetworkError(
            f"random_graph: needs inputs and outputs and 1 <= first, last <= neurons, got {inputs} inputs, {outputs} "
            f"outputs, first={first}, last={last}, {neurons} neurons"
        )
    import networkx as nx

    graph = nx.DiGraph()
    graph.add_nodes_from((("x", i) for i in range(inputs)), kind="input")
    graph.add_nodes_from(range(neurons), kind="unit", activation=activation)
    graph.add_nodes_from((("y", i) for i in range(outputs)), kind="output")
    graph.add_edges_from(sorted((min(edge), max(edge)) for edge in _drawn(kind, neurons, degree, rewired, seed).edges))
    graph.add_edges_from((("x", i), j) for i in range(inputs) for j in range(first))
    graph.add_edges_from((j, ("y", i)) for i in range(outputs) for j in range(neurons - last, neurons))
    graph.add_edges_from([(j - 1, j) for j in range(first, neurons) if not graph.in_degree(j)])
    graph.add_edges_from([(j, j + 1) for j in range(neurons - last) if not graph.out_degree(j)])
    return mg.Network.from_networkx(graph, loss=loss)


def _drawn(kind: str, neurons: int, degree: int, rewired: float, seed: int) -> Any:
    import networkx as nx

    if not 2 <= degree < neurons:
        raise mg.NetworkError(f"random_graph: degree must lie between 2 and the number of neurons, got {degree}")
    if kind == "watts_strogatz":
        return nx.watts_strogatz_graph(neurons, degree, rewired, seed=seed)
    if kind == "erdos_renyi":
        return nx.fast_gnp_random_graph(neurons, degree / (neurons - 1), seed=seed)
    if kind == "barabasi_albert":
        return nx.barabasi_albert_graph(neurons, degree // 2, seed=seed)
    raise mg.NetworkError(f"unknown kind {kind!r}: allowed are {', '.join(KINDS)}")
