"""Graphs of single neurons mean what their neurons say one by one."""

import math
import random
import warnings
from fractions import Fraction

import networkx as nx
import numpy as np
import pytest
import scipy.sparse
import torch
from reference import ACTIVATIONS, LOSSES, distance, randomised

import mpgraph as mg
from mpgraph.architectures import layered_sparse, mlp, random_graph
from mpgraph.convert.grouping import Bus
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


def test_buses_are_concatenations_and_never_change():
    program = compiled(mg.Network.from_networkx(random_dag(2, 40, activations=("tanh", "tanh", "tanh")), loss="l2"))
    units = program.graph.network.units
    record = {name: ["y"] for name, unit in units.items() if not unit.is_input}
    buses = [name for name, unit in units.items() if unit.operands]
    assert len(buses) > 3
    state, seen = program.init(), []
    for size in (5, 1, 5):
        x = torch.randn(size, 4).double()
        seen.append((x, program.step(state, x, torch.randn(size, 3).double(), record=record)[1].recorded))
    for x, recorded in seen:
        values = {"x": x, **{name: channels["y"] for name, channels in recorded.items()}}
        for bus in buses:
            torch.testing.assert_close(values[bus], torch.cat([values[n] for n in units[bus].operands], 1))


def test_a_bus_is_a_new_tensor_and_leaves_its_operands_alone():
    parts = [torch.randn(3, 2), torch.randn(3, 4)]
    kept = [part.clone() for part in parts]
    bus = Bus().on((2,), (4,))
    once = bus.apply(*parts)
    longer = Bus().on((6,), (2,)).apply(once, parts[0])
    assert torch.equal(longer, torch.cat([*kept, kept[0]], 1))
    longer.zero_()
    assert torch.equal(once, torch.cat(kept, 1))
    once.zero_()
    assert all(map(torch.equal, parts, kept))
    assert not vars(once)


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
        ([("a", "b"), ("b", "b"), ("b", "c")], (), {}, "itself need a delay .*: 'b' -> 'b'"),
        ([("a", "b", {"delay": 1})], (), {}, "1 tick, too few for the delay of 'a' -> 'b'"),
        ([("a", "b", {"delay": 2})], (), {"ticks": 2}, "2 ticks, too few"),
        ([("a", "b", {"delay": 0.5})], (), {"ticks": 2}, "edge 'a' -> 'b': delay must be a number of ticks"),
        ([("a", "b", {"delay": True})], (), {"ticks": 2}, "edge 'a' -> 'b': delay must be a finite number, got True"),
        ([("a", "b", {"trained": False})], (), {}, "edge 'a' -> 'b': trained=False; .*network.frozen"),
        ([("a", "b", {"trained": np.int64(0)})], (), {}, "edge 'a' -> 'b': trained=0; .*network.frozen"),
        ([("a", "b", {"trained": "no"})], (), {}, "edge 'a' -> 'b': trained='no'; .*network.frozen"),
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


@pytest.mark.parametrize(
    ("given", "call"),
    [
        ([(0, 1)], r"nx.DiGraph\(edges\)"), (((0, 1),), r"nx.DiGraph\(edges\)"), (None, "nx.DiGraph"),
        (np.eye(2), "nx.from_numpy_array"), (torch.eye(2), r"matrix.numpy\(\)"),
        (scipy.sparse.eye_array(2).tocsr(), "nx.from_scipy_sparse_array"), (nx.DiGraph, "the class DiGraph"),
    ],
    ids=lambda given: type(given).__name__,
)  # fmt: skip
def test_what_is_no_graph_is_refused_with_the_call_that_makes_one(given, call):
    with pytest.raises(mg.NetworkError, match=f"takes a networkx.DiGraph or MultiDiGraph, got .*{call}"):
        mg.Network.from_networkx(given)


@pytest.mark.parametrize(
    "weight",
    [
        torch.nn.Parameter(torch.tensor(2.0)), torch.tensor(2), torch.tensor([2.0], requires_grad=True), np.float32(2),
        np.array(2.0), np.int8(2), Fraction(4, 2), 2,
    ],
    ids=repr,
)  # fmt: skip
def test_weights_of_any_number(weight):
    edges = [("a", "b", {"weight": weight, "delay": np.int64(1)}), ("c", "b", {"weight": 0.5})]
    nodes = [("a", {"kind": np.str_("input")}), ("b", {"kind": np.str_("output"), "bias": weight})]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        network = grouped(edges, nodes, loss="l2", ticks=2)
    program = compiled(network)
    if isinstance(weight, torch.Tensor):
        weight.detach().zero_()
    x = torch.tensor([[[10.0, 0.0], [0.0, 4.0]]]).double()
    assert program.predict(program.init(), x).item() == 2 * 10 + 0.5 * 4 + 2


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (10**400, "1000"), (math.inf, "inf"), (-math.inf, "-inf"), (10**5000, "bits"), (1j, "1j"), (True, "True"),
        ("1", "'1'"), (b"1", "b'1'"), (np.str_("1"), "1"), ([1.0], r"\[1.0\]"), (torch.ones(2), "tensor"),
        (torch.tensor(True), "True"), (np.ones((2, 2)), "array"),
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_what_is_no_number_is_refused(value, shown):
    for name in ("weight", "delay"):
        with pytest.raises(mg.NetworkError, match=f"edge 'a' -> 'b': {name} must be a finite number, got .*{shown}"):
            grouped([("a", "b", {name: value})], ticks=3)
    with pytest.raises(mg.NetworkError, match=f"neuron 'b': bias must be a finite number, got .*{shown}"):
        grouped([("a", "b")], [("b", {"bias": value})])


@pytest.mark.parametrize("delay", [1e300, 2**70, -1, 0.5, np.float64(1.5)])
def test_delays_are_numbers_of_ticks(delay):
    with pytest.raises(mg.NetworkError, match="edge 'a' -> 'b': delay must be a number of ticks"):
        grouped([("a", "b", {"delay": delay})], ticks=3)
    assert not any(w.delay for w in grouped([("a", "b", {"delay": None})]).wires.values())


def test_activations_that_cannot_be_are_refused_and_those_that_are_one_share_a_unit():
    for given, match in ((["tanh"], "an activation is a name"), ({"a": 1}, "is a name"), (3, "is a name")):
        with pytest.raises(mg.NetworkError, match=f"neuron 'b': .*{match}"):
            grouped([("a", "b")], [("b", {"activation": given})])
    nodes = [(n, {"activation": np.str_("relu")}) for n in "bc"] + [("d", {"activation": "relu"})]
    network = grouped([("a", n) for n in "bcd"] + [(n, "e") for n in "bcd"], nodes)
    assert network.shape("level1") == (3,)


def test_why_there_is_no_input_or_output():
    with pytest.raises(
        mg.NetworkError, match="no input: of the neurons without incoming edges, 'a' is marked 'output'"
    ):
        grouped([("a", "b"), ("b", "c")], [("a", {"kind": "output"})])
    with pytest.raises(mg.NetworkError, match="no output: .* without outgoing edges, 'c' is marked 'unit'; mark one"):
        grouped([("a", "b"), ("b", "c")], [("c", {"kind": "unit"})])
    with pytest.raises(mg.NetworkError, match="no input: every neuron has incoming edges"):
        grouped([("a", "b", {"delay": 1}), ("b", "a", {"delay": 1})], ticks=2)


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


def chain(**attributes):
    """Two inputs, one unit and one output, as a ``Data``."""
    from torch_geometric.data import Data

    return Data(**{"edge_index": torch.tensor([[0, 1, 2], [2, 2, 3]]), "num_nodes": 4, **attributes})


def populations(**attributes):
    """Two inputs into two outputs, as a ``HeteroData``; the attributes are those of its edges."""
    from torch_geometric.data import HeteroData

    data = HeteroData()
    data["a"].num_nodes, data["b"].num_nodes = 2, 2
    data["a", "to", "b"].update({"edge_index": torch.tensor([[0, 1, 1], [0, 0, 1]]), **attributes})
    return data


WEIGHTS = [2.0, 0.5, -1.0]


@pytest.mark.parametrize("name", ["w", "weight", "edge_weight", "edge_attr"])
@pytest.mark.parametrize(
    "make",
    [
        torch.tensor, lambda w: torch.tensor(w, dtype=torch.float64), lambda w: torch.tensor(w)[:, None], np.array,
        list, lambda w: torch.nn.Parameter(torch.tensor(w)),
    ],
    ids=["float", "double", "column", "numpy", "list", "parameter"],
)  # fmt: skip
def test_edge_weights_are_read_under_their_usual_names(name, make):
    given = {name: make(WEIGHTS)}
    program = compiled(mg.Network.from_pyg(chain(activation=[None, None, "identity", None], **given), loss="l2"))
    prediction = program.predict(program.init(), torch.tensor([[1.0, 4.0]]).double())
    assert prediction.item() == (2 * 1 + 0.5 * 4) * -1
    program = compiled(mg.Network.from_pyg(populations(**given), loss="l2"))
    prediction = program.predict(program.init(), torch.tensor([[1.0, 4.0]]).double())
    assert prediction.tolist() == [[2 * 1 + 0.5 * 4, -4.0]]


@pytest.mark.parametrize("make", [chain, populations])
def test_weights_under_two_names_must_agree(make):
    mg.Network.from_pyg(make(weight=torch.tensor(WEIGHTS), edge_attr=torch.tensor(WEIGHTS)[:, None]))
    with pytest.raises(mg.NetworkError, match="weight and edge_weight, that differ"):
        mg.Network.from_pyg(make(weight=torch.tensor(WEIGHTS), edge_weight=torch.ones(3)))
    with pytest.raises(mg.NetworkError, match="edge_attr of 2 columns.*edge_weight"):
        mg.Network.from_pyg(make(edge_attr=torch.ones(3, 2)))
    mg.Network.from_pyg(make(edge_attr=torch.ones(3, 2), weight=torch.tensor(WEIGHTS)))


@pytest.mark.parametrize("trained", [False, torch.tensor(False), torch.tensor([0]), np.bool_(False), [False] * 3, 0])
def test_whether_weights_are_trained_is_read_by_value(trained):
    (wire,) = mg.Network.from_pyg(populations(trained=trained)).wires.values()
    assert wire.trained is False
    (wire,) = mg.Network.from_pyg(populations(trained=~torch.as_tensor(trained).bool())).wires.values()
    assert wire.trained is True
    with pytest.raises(mg.NetworkError, match=r"the data has trained=False.*frozen"):
        mg.Network.from_pyg(chain(trained=trained))


@pytest.mark.parametrize("dtype", [torch.int16, torch.int32, torch.int64, torch.uint8])
@pytest.mark.parametrize("make", [chain, populations])
def test_edges_of_any_integers(make, dtype):
    reference = mg.Network.from_pyg(make(weight=torch.tensor(WEIGHTS)))
    index = make()["edge_index"] if make is chain else make()["a", "to", "b"].edge_index
    for given in (index.to(dtype), index.to(dtype).numpy()):
        network = mg.Network.from_pyg(make(edge_index=given, weight=torch.tensor(WEIGHTS)))
        assert repr(network) == repr(reference)
    assert repr(mg.Network.from_pyg(make(edge_index=index.tolist(), weight=WEIGHTS))) == repr(reference)


@pytest.mark.parametrize("delay", [1, torch.tensor(1), torch.tensor([1, 1, 1]), torch.tensor([1.0] * 3), np.int64(1)])
def test_one_delay_of_a_type(delay):
    (wire,) = mg.Network.from_pyg(populations(delay=delay), ticks=2).wires.values()
    assert wire.delay == 1


BAD = [
    (
        {"edge_index": torch.tensor([[0, 1], [2, 9], [1, 3]])},
        r"shape \(3, 2\), not \(2, edges\).*\.t\(\)",
    ),
    ({"edge_index": torch.tensor([0, 1, 2])}, r"edge_index of shape \(3,\)"),
    ({"edge_index": torch.tensor([[0.0, 1.0], [1.0, 1.0]])}, "edge_index of torch.float32; give integers"),
    ({"edge_index": "all"}, "edge_index that is not a tensor"),
    ({"edge_index": torch.tensor([[0, 1], [1, 9]])}, "edge 1 whose target is 9, but there are [24] nodes, 0 to [13]"),
    ({"edge_index": torch.tensor([[0, -1], [1, 1]])}, "edge 1 whose source is -1, but there are"),
    ({"edge_index": torch.zeros(2, 0, dtype=torch.long)}, "no connections"),
    ({"weight": torch.ones(2)}, r"3 edges but 2 weights \(weight\)"),
    ({"weight": torch.tensor([1.0, math.nan, 1.0])}, "edge 1: weight must be a finite number, got nan"),
    ({"weight": ["1", 2, 3]}, "edge 0: weight must be a finite number, got '1'"),
    ({"delay": torch.tensor([0.5, 0.5, 0.5])}, "edge .*: delay must be a number of ticks.* got .*0.5"),
    ({"delay": torch.tensor([-1, -1, -1])}, "edge .*: delay must be a number of ticks.* got .*-1"),
    ({"delay": ["a", "b", "c"]}, "edge .*: delay must be a finite number, got 'a'"),
    ({"trained": [True, False, True]}, "trained that differs"),
    ({"trained": 7}, "trained=7; allowed are True and False"),
    ({"edge_index": "all"}, "has an edge_index that is not .* of type str"),
    ({"weights": torch.ones(3)}, "has weights, which is read nowhere; did you mean 'weight'"),
    ({"edge_weights": torch.ones(3)}, "has edge_weights, which is read nowhere; did you mean 'edge_weight'"),
    ({"delay": torch.tensor([True] * 3)}, "delay must be a finite number, got True"),
]


@pytest.mark.parametrize(("attributes", "match"), BAD)
@pytest.mark.parametrize("make", [chain, populations])
def test_bad_edges_of_pyg_data_are_refused_by_name(make, attributes, match):
    where = "the data" if make is chain else r"edge type \('a', 'to', 'b'\)"
    with pytest.raises(mg.NetworkError, match=f"^from_pyg: {where} .*{match}"):
        mg.Network.from_pyg(make(**attributes), ticks=3)


def test_bad_types_of_pyg_data_are_refused_by_name():
    with pytest.raises(mg.NetworkError, match=r"edge type \('a', 'to', 'b'\) has edges with the delays 0, 1.*for each"):
        mg.Network.from_pyg(populations(delay=torch.tensor([0, 1, 1])), ticks=2)
    for attributes, match in (
        ({"kind": "inputs"}, "kind 'inputs'; allowed are input, unit"),
        ({"bias": torch.ones(3)}, "3 values of bias"),
        ({"activation": ["tanh", "relu"]}, "an activation is a name"),
        ({"activation": "tan"}, "unknown activation 'tan'"),
        ({"kind": "operation"}, "its operation and operands"),
        ({"shape": [3]}, r"shape \(3,\) but 2 nodes"),
        ({"initial": 5}, "initial=5; give a dictionary"),
        ({"bias": torch.ones(2), "bias_trained": 5}, "bias_trained=5"),
    ):
        data = populations()
        data["b"].update(attributes)
        with pytest.raises(mg.NetworkError, match=f"^from_pyg: node type 'b' .*{match}"):
            mg.Network.from_pyg(data)
    for attributes, match in (
        (
            {"activation": "tanh"},
            r"has activation='tanh'; activation must be a list with one entry for each of 4 nodes.*\['tanh'\] \* 4",
        ),
        ({"trained": False}, "trained=False; .*network.frozen"),
        ({"bias": torch.ones(3)}, "3 values of bias"),
        ({"delay": torch.ones(2)}, "2 values of delay, of shape"),
    ):
        with pytest.raises(mg.NetworkError, match=f"^from_pyg: the data .*{match}"):
            mg.Network.from_pyg(chain(**attributes), ticks=2)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("ticks", torch.tensor([2, 3]), r"ticks=tensor\(\[2, 3\]\) must be an integer"),
        ("ticks", torch.tensor(2.5), "ticks=2.5 must be an integer"),
        ("ticks", math.nan, "ticks=nan must be an integer"),
        ("losses", [1, 2], r"losses=\[1, 2\] must be a dictionary of pairs"),
        ("losses", {"loss": "b"}, "losses=.* must be a dictionary of pairs"),
        ("losses", {"loss": ("b", "l3")}, "loss 'loss' on 'b': unknown loss 'l3'"),
    ],
)
def test_what_does_not_fit_a_whole_network_is_refused(name, value, words):
    data = populations()
    data[name] = value
    with pytest.raises(mg.NetworkError, match=f"^from_pyg: {words}"):
        mg.Network.from_pyg(data)


@pytest.mark.parametrize("ticks", [torch.tensor(2), torch.tensor([2]), torch.tensor(2.0), np.int64(2), 2])
def test_ticks_are_one_number(ticks):
    data = populations()
    data.ticks = ticks
    assert mg.Network.from_pyg(data).ticks == 2


@pytest.mark.parametrize("trained", [True, 1, np.True_, torch.tensor(True), 1.0])
def test_edges_of_a_graph_may_say_that_they_are_trained(trained):
    (wire,) = grouped([("a", "b", {"trained": trained})], ()).wires.values()
    assert wire.trained


@pytest.mark.parametrize("given", [{"edge_index": 0}, torch.zeros(2, 3), [[0], [1]], nx.DiGraph([(0, 1)]), None, int])
def test_what_is_no_pyg_data_is_refused(given):
    with pytest.raises(mg.NetworkError, match=r"torch_geometric.data.Data or HeteroData, got (the|an object of) class"):
        mg.Network.from_pyg(given)


def test_what_was_given_stays_the_callers():
    """Changing it later changes neither networks nor programs made before; nor does data that was written."""
    from torch_geometric.data import HeteroData

    x, tensors = torch.tensor([[1.0, 4.0]]).double(), {"w": torch.tensor(WEIGHTS).double()}
    for make in (chain, populations):
        data = make(**tensors)
        index = data["edge_index"] if make is chain else data["a", "to", "b"].edge_index
        if make is populations:
            tensors["bias"] = data["b"].bias = torch.ones(2).double()
        network = mg.Network.from_pyg(data, loss="l2")
        program = compiled(network)
        expected = program.predict(program.init(), x)
        for tensor in (*tensors.values(), index):
            tensor.zero_()
        assert torch.equal(program.predict(program.init(), x), expected)
        assert torch.equal(compiled(network).predict(compiled(network).init(), x), expected)
        tensors["w"] = torch.tensor(WEIGHTS).double()
    program = compiled(layered_sparse([2, 4, 3], 2))
    state = program.init()
    expected, written = program.predict(state, x), program.to_pyg(state)
    assert isinstance(written, HeteroData)
    for store in written.stores:
        for value in store.values():
            if isinstance(value, torch.Tensor):
                value.zero_()
    assert torch.equal(program.predict(state, x), expected)
    assert torch.equal(compiled(program.graph.network).predict(state, x), expected)


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
