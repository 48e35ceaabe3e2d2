"""Graphs of single neurons mean what their neurons say one by one."""

import math
import random
import warnings

import networkx as nx
import pytest
import torch
from reference import ACTIVATIONS, LOSSES, distance, randomised

import mpgraph as mg
from mpgraph.architectures import layered_sparse, mlp, random_graph
from mpgraph.convert.gathering import Gather
from mpgraph.interpreter import interpreter
from mpgraph.protocols import Backprop, FeedbackAlignment

SMOOTH = ("identity", "tanh", "sigmoid", "softplus", "relu")


def random_dag(seed, size, *, parallel=False, activations=SMOOTH, delays=0, feeding=False):
    """A random graph whose edges lead to later neurons (delayed ones anywhere), with every attribute set."""
    draw = random.Random(seed)
    graph = nx.MultiDiGraph() if parallel else nx.DiGraph()
    names = [f"n{i}" for i in draw.sample(range(size), size)]  # the order of the graph says nothing
    order = draw.sample(names, size)
    inputs, outputs, mixed = order[:4], order[-3:], draw.sample(activations, 3)
    for name in names:
        kind = "input" if name in inputs else "output" if name in outputs else "unit"
        graph.add_node(name, kind=kind)
        if kind != "input":
            graph.nodes[name].update(activation=draw.choice(mixed), bias=draw.gauss(0, 1))
    for kind in (inputs, outputs):
        for name, index in zip(kind, draw.sample(range(9), len(kind)), strict=True):
            graph.nodes[name]["index"] = index
    ends = [n for n in order if feeding or n not in outputs]
    for place, name in enumerate(order[4:], start=4):
        before = [n for n in order[:place] if n in ends]
        for source in draw.sample(before, min(len(before), draw.randint(1, 4))):
            for key in range(draw.randint(1, 2) if parallel else 1):
                extra = {"key": f"k{key}"} if parallel else {}
                graph.add_edge(source, name, weight=draw.gauss(0, 1), **extra)
    for _ in range(6 if delays else 0):
        source, target = draw.choice(ends), draw.choice([n for n in order[4:] if n not in outputs])
        if not graph.has_edge(source, target):
            graph.add_edge(source, target, weight=draw.gauss(0, 1), delay=draw.randint(1, delays))
    return graph


def named(graph):
    """Edges as ``(u, v, key)``."""
    return list(graph.edges(keys=True)) if graph.is_multigraph() else [(*e, 0) for e in graph.edges()]


def order_of(graph, kind):
    found = [n for n, d in graph.nodes(data=True) if d["kind"] == kind]
    return sorted(found, key=lambda n: graph.nodes[n]["index"])


def by_neuron(graph, weights, biases, x, ticks=1):
    """The outputs, one neuron after the other; ``x`` is ``(batch, ticks, inputs)``."""
    at_once = nx.DiGraph((u, v) for u, v, d in graph.edges(data=True) if not d.get("delay"))
    at_once.add_nodes_from(graph)
    into = {n: [] for n in graph}
    for (u, v, key), (_, _, data) in zip(named(graph), graph.edges(data=True), strict=True):
        into[v].append((u, key, data.get("delay", 0)))
    inputs, values = order_of(graph, "input"), {}
    for tick in range(ticks):
        for name in nx.topological_sort(at_once):
            if name in inputs:
                values[name, tick] = x[:, tick, inputs.index(name)]
                continue
            z = biases[name].expand(len(x))
            for u, key, delay in into[name]:
                if tick >= delay:
                    z = z + weights[u, name, key] * values[u, tick - delay]
            values[name, tick] = ACTIVATIONS[graph.nodes[name]["activation"]](z)
    return torch.stack([values[n, ticks - 1] for n in order_of(graph, "output")], 1)


def numbers(graph):
    data = [d for *_, d in graph.edges(data=True)]
    weights = {
        e: torch.tensor(d["weight"], dtype=torch.float64).requires_grad_()
        for e, d in zip(named(graph), data, strict=True)
    }
    return weights, {
        n: torch.tensor(d["bias"], dtype=torch.float64).requires_grad_()
        for n, d in graph.nodes(data=True)
        if "bias" in d
    }


def compiled(network, rule=None):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", mg.FlatUnitWarning)
        return mg.compile(network, rule or Backprop(lr=0.1), dtype=torch.float64)


VARIANTS = [{}, {"parallel": True}, {"delays": 2}, {"feeding": True}, {"feeding": True, "parallel": True, "delays": 2}]


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@pytest.mark.parametrize("seed", range(4))
def test_backprop_on_single_neurons_is_autograd(seed, variant):
    ticks = 4 if variant.get("delays") else 1
    graph = random_dag(seed, 30 + 7 * seed, **variant)
    network = mg.Network.from_networkx(graph, loss="l2", ticks=ticks)
    program = compiled(network)
    state = program.init()
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(5, ticks, 4, generator=generator, dtype=torch.float64)
    y = torch.randn(5, 3, generator=generator, dtype=torch.float64)
    weights, biases = numbers(graph)
    for edge in named(graph):
        assert program.edge_weight(state, *edge) == weights[edge]
    for _ in range(2):
        prediction = by_neuron(graph, weights, biases, x, ticks)
        leaves = [*weights.values(), *biases.values()]
        gradients = torch.autograd.grad(LOSSES["l2"](prediction, y), leaves, allow_unused=True)
        state, out = program.step(state, x if ticks > 1 else x[:, 0], y)
        torch.testing.assert_close(out.prediction, prediction.detach(), rtol=1e-10, atol=1e-10)
        new = [
            (leaf if g is None else leaf - 0.1 * g).detach().requires_grad_()
            for leaf, g in zip(leaves, gradients, strict=True)
        ]
        weights = dict(zip(weights, new, strict=False))
        biases = dict(zip(biases, new[len(weights) :], strict=True))
        for edge, weight in weights.items():
            torch.testing.assert_close(program.edge_weight(state, *edge), weight.detach(), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("rule", [Backprop, FeedbackAlignment])
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_compiled_is_the_interpreter_on_small_graphs(variant, rule):
    ticks = 3 if variant.get("delays") else 1
    graph = random_dag(5, 13, activations=(*SMOOTH, "step"), **variant)
    program = compiled(mg.Network.from_networkx(graph, loss="l2", ticks=ticks), rule(lr=0.1, surrogate="tanh"))
    generator = torch.Generator().manual_seed(0)
    state = randomised(program.init(), generator)
    x = torch.randn(*((2, 4) if ticks == 1 else (2, ticks, 4)), generator=generator, dtype=torch.float64)
    y = torch.randn(2, 3, generator=generator, dtype=torch.float64)
    after, _ = program.step(state, x, y)
    assert distance(after, interpreter.step(program, state, {"x": x}, {"y": y})[0]) < 1e-10


# -- grouping -----------------------------------------------------------------------------------------------


def grouped(edges, nodes=(), **options):
    graph = nx.MultiDiGraph() if any(len(e) == 4 for e in edges) else nx.DiGraph()
    graph.add_nodes_from(nodes)
    graph.add_edges_from(edges)
    return mg.Network.from_networkx(graph, **options)


def test_complete_pairs_of_levels_are_dense_and_others_sparse():
    network = grouped([(i, j) for i in "ab" for j in "cd"] + [("c", "e"), ("d", "e"), ("d", "f")])
    assert {w.name: str(w.connection) for w in network.wires.values()} == {
        "x->level1": "dense",
        "level1->y": "sparse(3 edges)",
    }
    assert network.edge("b", "c") == ("x->level1", (0, 1))
    assert network.edge("d", "e") == ("level1->y", (1,))


def test_one_connection_a_level_and_buses_of_linear_size():
    chain = [(i, j) for j in range(3, 60) for i in (j - 1, j - 2, j - 3)]
    network = grouped(chain)
    levels = [u for u in network.units.values() if not u.is_input and not u.operands]
    assert len(network.wires) == len(levels) == 57
    buses = [u for u in network.units.values() if u.operands]
    assert sum(len(u.operands) for u in buses) <= 3 * len(levels)
    assert sum(u.shape[0] for u in buses) <= 8 * len(levels)


def test_what_connections_read_are_the_sources_side_by_side():
    program = compiled(mg.Network.from_networkx(random_dag(2, 40, activations=("tanh", "tanh", "tanh")), loss="l2"))
    units = program.graph.network.units
    record = {name: ["y"] for name, unit in units.items() if not unit.is_input}
    gathered = [name for name, unit in units.items() if unit.operands]
    assert len(gathered) > 3
    state, seen = program.init(), []
    for size in (5, 1, 5):
        x = torch.randn(size, 4).double()
        seen.append((x, program.step(state, x, torch.randn(size, 3).double(), record=record)[1].recorded))
    for x, recorded in seen:
        values = {"x": x, **{name: channels["y"] for name, channels in recorded.items()}}
        for name in gathered:
            chosen = zip(units[name].operands, units[name].activation.index, strict=True)
            parts = [values[n] if index is None else values[n][:, index] for n, index in chosen]
            torch.testing.assert_close(values[name], torch.cat(parts, 1))


@pytest.mark.parametrize("index", [(None, [2, 0], []), ([1], None, [0, 1, 2]), ([0, 1, 2], [], None)], ids=str)
def test_gather_carries_back_what_autograd_does(index):
    operation = Gather(*index).on((2,), (3,), (3,)) if index[0] != [0, 1, 2] else Gather(*index).on((3,), (3,), (3,))
    z = [torch.randn(4, *shape, dtype=torch.float64, requires_grad=True) for shape in operation.operands]
    kept = [tensor.detach().clone() for tensor in z]
    parts = [of if chosen is None else of[:, chosen] for of, chosen in zip(z, index, strict=True)]
    expected = torch.cat(parts, 1)
    y = operation.apply(*z)
    assert torch.equal(y, expected)
    e = torch.randn_like(y)
    for one, two in zip(operation.vjp(e, z, y), torch.autograd.grad(expected, z, e), strict=True):
        assert torch.equal(one, two)
    own = operation.apply(*(tensor.detach() for tensor in z)).add_(1)  # what comes out is not what went in
    assert own.shape == y.shape
    assert all(torch.equal(one, two) for one, two in zip(z, kept, strict=True))


def test_gather_refuses_what_does_not_fit():
    for operands in [((3,),), ((3,), (2, 2))]:
        with pytest.raises(mg.NetworkError, match="2 flat operands"):
            Gather(None, [0]).on(*operands)
    with pytest.raises(mg.NetworkError, match="an operand of 2 numbers has no number 5"):
        Gather([1, 5]).on((2,))


def test_deep_graphs_hold_no_more_than_their_edges_and_blocks():
    """Every level reads neurons of all levels before: copies of all of them would be 40 * 40 / 2 units."""
    draw, width, depth = random.Random(0), 6, 40
    graph = nx.DiGraph()
    for level in range(1, depth):
        for neuron in range(width):
            graph.add_edge((level - 1, neuron), (level, neuron))
            graph.add_edge((draw.randrange(level), draw.randrange(width)), (level, neuron))
    network = mg.Network.from_networkx(graph)
    gathered = {n: u for n, u in network.units.items() if u.operands}
    blocks = {n: u for n, u in gathered.items() if not n.endswith(".sources")}
    assert sum(u.shape[0] for n, u in gathered.items() if n not in blocks) <= graph.number_of_edges()
    assert sum(u.shape[0] for u in blocks.values()) <= len(graph) * math.log2(depth)
    assert all(len(u.operands) <= 2 * math.log2(depth) for u in gathered.values())


def test_activations_of_a_level_are_units_of_their_own():
    nodes = [("b", {"activation": "step"}), ("c", {"activation": "tanh"}), ("d", {"activation": "step"})]
    network = grouped([("a", "b"), ("a", "c"), ("a", "d"), ("b", "e"), ("c", "e"), ("d", "e")], nodes)
    assert {n: u.shape for n, u in network.units.items() if "level" in n} == {
        "level1.step": (2,),
        "level1.tanh": (1,),
    }


def test_neurons_that_lead_nowhere_keep_their_weights():
    nodes = [("dead", {"kind": "unit"}), ("deader", {"kind": "unit"})]
    edges = [("a", "y", {"weight": 2.0}), ("a", "dead", {"weight": 1.0}), ("dead", "deader", {"weight": 3.0})]
    network = grouped(edges, nodes, loss="l2")
    program = compiled(network)
    state, out = program.step(program.init(), torch.ones(1, 1).double(), torch.ones(1, 1).double())
    assert out.prediction.item() == 2.0
    assert program.edge_weight(state, "dead", "deader") == 3.0
    assert program.edge_weight(state, "a", "y") == pytest.approx(1.9)


def test_inputs_and_outputs_keep_their_order():
    nodes = [("p", {"index": 7}), ("q", {"index": 3}), ("u", {"index": 1}), ("v", {"index": 0})]
    network = grouped([("p", "u", {"weight": 1.0}), ("q", "v", {"weight": 1.0})], nodes, loss="l2")
    program = compiled(network)
    x = torch.tensor([[10.0, 20.0]]).double()  # q, p
    assert program.predict(program.init(), x).tolist() == [[10.0, 20.0]]  # v, u


@pytest.mark.parametrize(
    ("edges", "nodes", "options", "match"),
    [
        ([("a", "b"), ("b", "c"), ("c", "b"), ("c", "d")], (), {}, "cycle without a delay: '[bc]' -> '[bc]' -> '[bc]'"),
        ([("a", "b"), ("b", "b"), ("b", "c")], (), {}, "itself need a delay: 'b' -> 'b'"),
        ([("a", "b", {"delay": 1})], (), {}, "1 tick, too few for the delay of 'a' -> 'b'"),
        ([("a", "b", {"delay": 2})], (), {"ticks": 2}, "2 ticks, too few"),
        ([("a", "b", {"delay": 0.5})], (), {"ticks": 2}, "edge 'a' -> 'b': delay must be a number of ticks"),
        ([("a", "b", {"weight": "x"})], (), {}, "edge 'a' -> 'b': weight must be a finite number, got 'x'"),
        ([("a", "b", {"weight": math.nan})], (), {}, "edge 'a' -> 'b': weight must be a finite number"),
        ([("a", "b", {"weight": 1}), ("a", "c")], (), {}, "'a' -> 'b' has a weight but edge 'a' -> 'c' has none"),
        ([("a", "b")], [("a", {"kind": "inpt"})], {}, "neuron 'a': unknown kind 'inpt'.*did you mean 'input'"),
        ([("a", "b")], [("b", {"activation": "tan"})], {}, "neuron 'b': unknown activation 'tan'"),
        ([("a", "b")], [("b", {"activation": "winner_take_all"})], {}, "'b'.*needs a whole population"),
        ([("a", "b")], [("a", {"activation": "tanh"})], {}, "'a' is an input and has no activation"),
        ([("a", "b")], [("a", {"bias": 1.0})], {}, "inputs have no bias: 'a'"),
        ([("a", "b")], [("b", {"bias": math.inf})], {}, "neuron 'b': bias must be a finite number"),
        ([("a", "b"), ("b", "c")], [("b", {"kind": "input"})], {}, "edges into inputs: 'a' -> 'b'"),
        ([("a", "b")], [("a", {"kind": "unit"})], {}, "the graph has no input"),
        ([("a", "b")], [("b", {"kind": "unit"})], {}, "the graph has no output"),
        ([("a", "b"), ("c", "b")], [("c", {"kind": "unit"})], {}, "no edge leads to 'c'"),
        ([("a", "b")], ["lonely"], {}, "neuron 'lonely' has no edges"),
        ([], ["a"], {}, "the graph has no edges"),
        ([("a", "b"), ("c", "b")], [("a", {"index": 0})], {}, "some inputs have an index and others not: 'c'"),
        ([("a", "b"), ("c", "b")], [("a", {"index": 0}), ("c", {"index": 0})], {}, "inputs 'a' and 'c' have the same"),
        (
            [("a", "b"), ("c", "c", {"delay": 1}), ("c", "d")], [("c", {"kind": "unit"})], {"ticks": 2},
            "outputs that no input reaches: 'd'",
        ),
    ],
)  # fmt: skip
def test_bad_graphs_are_refused_with_names(edges, nodes, options, match):
    with pytest.raises(mg.NetworkError, match=match):
        grouped(edges, nodes, **options)


def test_unknown_edges_and_undirected_graphs_are_refused():
    network = grouped([("a", "b", "k", {}), ("a", "b", "l", {})])
    for edge, match in (
        (("a", "z"), "no neuron 'z'"), (("b", "a"), "no edge 'b' -> 'a'"), (("a", "b"), "key 0; its keys are 'k', 'l'"),
    ):  # fmt: skip
        with pytest.raises(mg.NetworkError, match=match):
            network.edge(*edge)
    assert [network.edge("a", "b", key)[1] for key in ("k", "l")] == [(0,), (1,)]
    with pytest.raises(mg.NetworkError, match="undirected"):
        mg.Network.from_networkx(nx.Graph([(0, 1)]))


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_step_on_a_graph_compiles_maps_and_differentiates(backend):
    torch.compiler.reset()  # programs share the code object of step, and torch counts its compilations
    graph = random_dag(1, 30)
    program = compiled(mg.Network.from_networkx(graph, loss="l2"))
    state = program.init()
    x, y = torch.randn(4, 4).double(), torch.randn(4, 3).double()
    after, out = program.step(state, x, y)
    fast, fast_out = torch.compile(program.step, fullgraph=True, backend=backend)(state, x, y)
    assert distance(after, fast) < 1e-12
    torch.testing.assert_close(out.loss, fast_out.loss)
    pair = torch.func.vmap(lambda x, y: program.step(state, x, y)[1].loss)(torch.stack([x, x]), torch.stack([y, y]))
    torch.testing.assert_close(pair, out.loss.expand(2))

    def second_loss(w):
        wire = next(iter(network_wires(program)))
        return program.step(program.step({**state, wire: {"w": w}}, x, y)[0], x, y)[1].loss

    w = state[next(iter(network_wires(program)))]["w"].clone().requires_grad_()
    assert torch.autograd.gradcheck(second_loss, (w,))


def network_wires(program):
    return program.graph.network.wires


# -- PyTorch Geometric ------------------------------------------------------------------------------------------


def image_network():
    network = mg.Network()
    network.input("x", (2, 3, 3)), network.unit("h", (2, 3, 3), "relu"), network.operation("flat", "flatten", "h")
    network.unit("g", 18, mg.Softplus(2.0), bias=False), network.unit("y", 4)
    network.connect("x", "h", mg.OneToOne(shared=(1, 2))), network.connect("flat", "g"), network.connect("x", "y")
    network.operation("p", "product", "flat", "g"), network.operation("both", "concat", "p", "g")
    network.connect("both", "y", trained=False), network.connect("g", "g", "identity", delay=1)
    network.connect("flat", "y", tied=network.connect("p", "y")), network.loss("y", "cross_entropy")
    network.ticks = 2
    return network.frozen("y.bias")


@pytest.mark.parametrize(
    "network",
    [
        mlp([4, 6, 3]),
        mg.Network.from_networkx(random_dag(0, 30, feeding=True), loss="l2"),
        mg.Network.from_networkx(random_dag(3, 30, parallel=True, delays=2), loss="l2", ticks=3),
        layered_sparse([5, 7, 6, 3], 2),
        image_network(),
    ],
    ids=["mlp", "feeding", "delays", "layered", "image"],
)
def test_to_pyg_and_back(network):
    program = compiled(network)
    state = randomised(program.init(), torch.Generator().manual_seed(0))
    data = program.to_pyg(state)
    data.validate()
    back = mg.Network.from_pyg(data)
    again = compiled(back)
    ticks = (network.ticks,) if network.ticks > 1 else ()
    x = torch.randn(3, *ticks, *network.shape("x"), generator=torch.Generator().manual_seed(1)).double()
    torch.testing.assert_close(again.predict(again.init(), x), program.predict(state, x), rtol=0, atol=1e-12)
    assert list(back.losses) == list(network.losses)
    y = torch.softmax(torch.randn(3, *network.shape("y"), generator=torch.Generator().manual_seed(2)), 1).double()
    one, two = program.step(state, x, y)[0], again.step(again.init(), x, y)[0]
    assert set(one) == set(two)
    assert distance(*({n: c for n, c in s.items() if n != "program"} for s in (one, two))) < 1e-12


def test_pyg_data_holds_what_the_state_does():
    program = compiled(mlp([4, 6, 3]), FeedbackAlignment())
    state = randomised(program.init(), torch.Generator().manual_seed(0))
    data = program.to_pyg(state)
    edges = data["x", "x->h1", "h1"]
    for e in (0, 7, 23):
        pre, post = edges.edge_index[:, e]
        assert edges.w[e] == state["x->h1"]["w"][post, pre]
    hidden = data["h1", "h1->y", "y"]
    pre, post = hidden.edge_index[:, 5]
    assert hidden.b[5] == state["h1->y"]["b"][post, pre]
    torch.testing.assert_close(data["h1"].bias, state["h1.bias"]["w"])
    assert data["h1"].x.shape[0] == data["h1"].num_nodes == 6


def test_convolutions_and_bad_data_are_refused():
    from torch_geometric.data import Data, HeteroData

    network = mg.Network()
    network.input("x", (1, 4, 4)), network.unit("y", (1, 4, 4))
    network.connect("x", "y", mg.Conv2d(3, padding=1)), network.loss("y", "l2")
    program = compiled(network)
    with pytest.raises(mg.NetworkError, match="'x->y' is conv2d"):
        program.to_pyg(program.init())
    with pytest.raises(mg.StateError, match="'w' at node 'y.bias'"):
        compiled(mlp([2, 3])).to_pyg({})
    data = HeteroData()
    data["a"].num_nodes = 3
    data["a", "to", "b"].edge_index = torch.tensor([[0], [0]])
    with pytest.raises(mg.NetworkError, match="joins 'b', which is no node type"):
        mg.Network.from_pyg(data)
    data["b"].num_nodes = 2
    data["a", "to", "b"].w = torch.ones(5)
    with pytest.raises(mg.NetworkError, match="has 1 edges but 5 weights"):
        mg.Network.from_pyg(data)
    with pytest.raises(mg.NetworkError, match="has no edge_index"):
        mg.Network.from_pyg(Data(num_nodes=3))
    with pytest.raises(mg.NetworkError, match="kind must be a list with one entry for each of 2 nodes"):
        mg.Network.from_pyg(Data(num_nodes=2, edge_index=torch.tensor([[0], [1]]), kind=["input"]))


def test_single_neurons_from_pyg():
    from torch_geometric.data import Data, HeteroData

    edge_index = torch.tensor([[0, 0, 1, 2, 2], [1, 2, 3, 3, 3]])
    w = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])
    data = Data(edge_index=edge_index, w=w, num_nodes=4, activation=[None, "identity", "identity", None])
    program = compiled(mg.Network.from_pyg(data, loss="l2"))
    state = program.init()
    assert [float(program.edge_weight(state, 2, 3, key)) for key in (0, 1)] == [4.0, 5.0]
    assert program.predict(state, torch.ones(1, 1).double()).item() == 1 * 3 + 2 * 9
    populations = HeteroData()
    populations["a"].num_nodes, populations["b"].num_nodes = 2, 3
    populations["a", "to", "b"].edge_index, populations["a", "to", "b"].w = torch.tensor([[0, 1], [2, 0]]), w[:2]
    program = compiled(mg.Network.from_pyg(populations, loss="l2"))
    assert program.predict(program.init(), torch.ones(1, 2).double()).tolist() == [[2.0, 0.0, 1.0]]


# -- architectures ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["watts_strogatz", "erdos_renyi", "barabasi_albert"])
def test_random_graph(model):
    network = random_graph(200, model, activation="step", first=50, last=50)
    assert (network.shape("x"), network.shape("y")) == ((64,), (10,))
    again = random_graph(200, model, activation="step", first=50, last=50)
    assert repr(network) == repr(again)
    network.edge(("x", 0), 49)
    with pytest.raises(mg.NetworkError, match="no edge"):
        network.edge(("x", 63), 50)
    network.edge(150, ("y", 9))
    with pytest.raises(mg.NetworkError, match="no edge"):
        network.edge(149, ("y", 9))
    program = compiled(network, Backprop(surrogate="tanh"))
    _, out = program.step(program.init(), torch.randn(2, 64).double(), torch.tensor([1, 2]))
    assert out.loss.isfinite()
    with pytest.raises(mg.NetworkError, match="unknown model 'ring'"):
        random_graph(model="ring")
    with pytest.raises(mg.NetworkError, match="first=300"):
        random_graph(first=300)


def test_layered_sparse():
    network = layered_sparse([20, 30, 8, 4], 10)
    for wire, heard in zip(network.wires.values(), (10, 10, 8), strict=True):
        pre, post = wire.connection.edge_index
        assert torch.equal(post.bincount(), torch.full((network.shape(wire.post)[0],), heard))
        assert len(torch.unique(post * 100 + pre)) == len(pre)
    with pytest.raises(mg.NetworkError, match="fan_in=0 must be"):
        layered_sparse([3, 2], 0)
