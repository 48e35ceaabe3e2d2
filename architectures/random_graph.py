"""Random graphs of single neurons."""

from __future__ import annotations

import mpgraph as mg
from mpgraph.arguments import Arguments
from mpgraph.errors import unknown

MODELS = ("watts_strogatz", "erdos_renyi", "barabasi_albert")


def random_graph(
    neurons: int = 200,
    model: str = "watts_strogatz",
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
    """Single hidden neurons connected at random, read with ``Network.from_networkx``; edges lead to later neurons.

    Neurons are called 0, 1, ..., inputs ``("x", i)``, outputs ``("y", i)``. Every input is connected to each of the
    first neurons, and each of the last neurons to every output. Neurons with no incoming (outgoing) edge are connected
    from the previous (to the next) neuron.

    Args:
        neurons: number of hidden neurons.
        model: of the undirected random graph that gives the edges: ``watts_strogatz`` (a ring of neighbors, some
            edges rewired), ``erdos_renyi`` (every pair with the same probability), ``barabasi_albert`` (preferential
            attachment).
        inputs, outputs: their numbers.
        first: number of neurons that receive the inputs; a quarter by default.
        last: number of neurons that send to the outputs; a quarter by default.
        degree: average number of edges of a neuron, in both directions together.
        rewired: fraction of rewired edges (``watts_strogatz``).
        activation: of the hidden neurons; outputs are linear.
        loss: on the outputs ``y``; ``None`` for a network without one.
        seed: of the graph.

    Raises:
        NetworkError: for an unknown model or numbers that do not fit together.
    """
    check = Arguments("random_graph", mg.NetworkError)
    if model not in MODELS:
        raise mg.NetworkError("random_graph: " + unknown("model", model, MODELS))
    neurons, inputs = check.integer("neurons", neurons, 3), check.integer("inputs", inputs, 1)
    outputs, degree = check.integer("outputs", outputs, 1), check.integer("degree", degree, 2, neurons - 1)
    rewired, seed = check.number("rewired", rewired, 0.0, 1.0), check.integer("seed", seed)
    first, last = (
        max(1, neurons // 4) if value is None else check.integer(name, value, 1, neurons)
        for name, value in (("first", first), ("last", last))
    )
    import networkx as nx

    graph = nx.DiGraph()
    graph.add_nodes_from((("x", i) for i in range(inputs)), kind="input")
    graph.add_nodes_from(range(neurons), kind="unit", activation=activation)
    graph.add_nodes_from((("y", i) for i in range(outputs)), kind="output")
    if model == "watts_strogatz":
        undirected = nx.watts_strogatz_graph(neurons, degree, rewired, seed=seed)
    elif model == "erdos_renyi":
        undirected = nx.fast_gnp_random_graph(neurons, degree / (neurons - 1), seed=seed)
    else:
        undirected = nx.barabasi_albert_graph(neurons, degree // 2, seed=seed)
    graph.add_edges_from(sorted((min(edge), max(edge)) for edge in undirected.edges))
    graph.add_edges_from((("x", i), j) for i in range(inputs) for j in range(first))
    graph.add_edges_from((j, ("y", i)) for i in range(outputs) for j in range(neurons - last, neurons))
    graph.add_edges_from([(j - 1, j) for j in range(first, neurons) if not graph.in_degree(j)])
    graph.add_edges_from([(j, j + 1) for j in range(neurons - last) if not graph.out_degree(j)])
    return mg.Network.from_networkx(graph, loss=loss)
