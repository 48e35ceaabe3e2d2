"""Connections, operations, delays and tied weights: meaning, autograd, transforms, and what is refused."""

import math

import pytest
import torch
from graphs import GRAPHS, batch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import distance, randomised
from refusals import refuses
from rules import Memories
from torch.nn import functional as F

import mpgraph as mg
from mpgraph.architectures import autoencoder, convnet, recurrent, resnet
from mpgraph.interpreter import interpreter
from mpgraph.protocols import Backprop, FeedbackAlignment

pytestmark = pytest.mark.filterwarnings("ignore::mpgraph.FlatUnitWarning")


def agree(network, rule, size=3, seed=0):
    program = mg.compile(network, rule(lr=0.3), dtype=torch.float64)
    state = randomised(program.init(), torch.Generator().manual_seed(seed))
    x, y = batch(network, size, seed)
    after, out = program.step(state, x, y)
    meaning, predictions = interpreter.step(program, state, x, {"y": torch.eye(2, dtype=torch.float64)[y]})
    assert distance(after, meaning) < 1e-9
    assert (out.prediction - predictions["y"]).abs().max() < 1e-10


@pytest.mark.parametrize("rule", [Backprop, FeedbackAlignment])
@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("name", GRAPHS)
def test_compiled_means_what_the_interpreter_does(name, rule, size):
    if name == "residual" and size == 1:
        size = 2  # batch statistics of one example have no unbiased variance at one position
    agree(GRAPHS[name](), rule, size)


@st.composite
def convolutions(draw):
    image = (draw(st.integers(1, 2)) * 2, draw(st.integers(2, 5)), draw(st.integers(2, 5)))
    options = {
        "kernel": (draw(st.integers(1, 3)), draw(st.integers(1, 3))),
        "stride": (draw(st.integers(1, 3)), draw(st.integers(1, 3))),
        "padding": (draw(st.integers(0, 2)), draw(st.integers(0, 2))),
        "dilation": (draw(st.integers(1, 2)), draw(st.integers(1, 2))),
        "groups": draw(st.sampled_from([1, 2])),
    }
    return image, options


@given(convolutions(), st.integers(0, 99))
def test_backprop_through_any_convolution_is_autograd(drawn, seed):
    image, options = drawn
    connection, generator = mg.Conv2d(**options), torch.Generator().manual_seed(seed)
    size = connection.size(image, 4)
    network = mg.Network()
    network.input("x", image), network.unit("h", image, "tanh"), network.unit("y", size if min(size) > 0 else (4, 1, 1))
    network.connect("x", "h", "one_to_one")
    if min(size) < 1:
        with pytest.raises(mg.NetworkError, match="larger than its input"):
            network.connect("h", "y", connection)
        return
    network.connect("h", "y", connection), network.loss("y", "l2")
    program = mg.compile(network, Backprop(lr=0.1), dtype=torch.float64)
    state = randomised(program.init(), generator)
    x, t = (torch.randn(3, *s, generator=generator, dtype=torch.float64) for s in (image, size))
    names = ("x->h", "h->y", "h.bias", "y.bias")
    gain, w, hidden, bias = leaves = [state[n]["w"].clone().requires_grad_() for n in names]
    kernel = {k: v for k, v in options.items() if k != "kernel"}
    y = F.conv2d(torch.tanh(gain * x + hidden[:, None, None]), w, bias, **kernel)
    gradients = torch.autograd.grad(0.5 * ((y - t) ** 2).sum() / 3, leaves)
    after, out = program.step(state, x, t)
    torch.testing.assert_close(out.prediction, y.detach())
    for name, leaf, gradient in zip(names, leaves, gradients, strict=True):
        torch.testing.assert_close(after[name]["w"], leaf.detach() - 0.1 * gradient, rtol=1e-10, atol=1e-10)


@st.composite
def kernels(draw):
    """A convolution of one, two or three dimensions, plain or transposed, and an image that it fits."""
    dims, transposed = draw(st.sampled_from([1, 2, 3])), draw(st.booleans())

    def numbers(low, high):
        return tuple(draw(st.integers(low, high)) for _ in range(dims))

    kernel, stride, dilation, groups = numbers(1, 2), numbers(1, 2), numbers(1, 2), draw(st.sampled_from([1, 2]))
    kind = getattr(mg, f"Conv{'Transpose' * transposed}{dims}d")
    padding = (0,) * dims if transposed else numbers(0, 1)
    return kind(kernel, stride, padding, dilation, groups), (2, *numbers(3, 4)), transposed, dims


@settings(max_examples=12)
@given(kernels(), st.integers(0, 99))
def test_convolutions_of_any_dimension_are_those_of_torch(drawn, seed):
    """A step by autograd, and by agents one by one."""
    connection, image, transposed, dims = drawn
    size, generator = connection.size(image, 2), torch.Generator().manual_seed(seed)
    network = mg.Network()
    network.input("x", image), network.unit("h", image, "tanh", bias=False), network.unit("y", size, bias=False)
    network.connect("x", "h", "one_to_one"), network.connect("h", "y", connection), network.loss("y", "l2")
    program = mg.compile(network, Backprop(lr=0.1), dtype=torch.float64)
    assert not any(word in program.code for word in ("index_select", "index_add"))
    state = randomised(program.init(), generator)
    x, t = (torch.randn(2, *s, generator=generator, dtype=torch.float64) for s in (image, size))
    gain, w = (state[n]["w"].clone().requires_grad_() for n in ("x->h", "h->y"))
    call = getattr(F, f"conv{'_transpose' * transposed}{dims}d")
    options = {k: getattr(connection, k) for k in ("stride", "padding", "dilation", "groups")}
    y = call(torch.tanh(gain * x), w, **options)
    gradients = torch.autograd.grad(0.5 * ((y - t) ** 2).sum() / 2, [gain, w])
    after, out = program.step(state, x, t)
    torch.testing.assert_close(out.prediction, y.detach())
    for name, leaf, gradient in zip(("x->h", "h->y"), (gain, w), gradients, strict=True):
        torch.testing.assert_close(after[name]["w"], leaf.detach() - 0.1 * gradient, rtol=1e-10, atol=1e-10)
    if math.prod(size) < 40:
        meaning, _ = interpreter.step(program, state, {"x": x}, {"y": t})
        assert distance(after, meaning) < 1e-10


def tokens():
    """Symbols, a layer over tokens and the same weights transposed, and a product of two units."""
    network = mg.Network()
    network.input("x", 3), network.operation("symbols", mg.OneHot(4, padding=0), "x")
    network.unit("e", (3, 2)), network.connect("symbols", "e", mg.Embedding(shared=(0,)))
    network.unit("h", (3, 4), "tanh"), network.connect("e", "h", mg.Dense(shared=(0,)))
    network.unit("g", (3, 2), mg.LayerNorm(dims=1), bias=False)
    network.connect("h", "g", mg.Dense((0,)), tied="e->h", transposed=True)
    network.operation("p", lambda e, g: e @ g.mT, "e", "g")
    network.unit("y", 2), network.connect("p", "y"), network.loss("y", "l2")
    return network


def test_tokens_by_autograd_and_by_agents():
    program = mg.compile(tokens(), Backprop(lr=0.1), dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    state = randomised(program.init(), generator)
    x, t = torch.tensor([[0.0, 1.0, 3.0], [2.0, 2.0, 1.0]]).double(), torch.randn(2, 2, generator=generator).double()
    names = [name for name in state if "w" in state[name]]
    leaves = {name: state[name]["w"].clone().requires_grad_() for name in names}
    e = (F.one_hot(x.long(), 4) * (x > 0)[..., None]).double() @ leaves["symbols->e"] + leaves["e.bias"]
    h = torch.tanh(F.linear(e, leaves["e->h"]) + leaves["h.bias"])
    g = F.layer_norm(h @ leaves["e->h"], (2,))
    y = torch.einsum("bij,oij->bo", e @ g.mT, leaves["p->y"]) + leaves["y.bias"]
    gradients = torch.autograd.grad(0.5 * ((y - t) ** 2).sum() / 2, list(leaves.values()))
    after, out = program.step(state, x, t)
    torch.testing.assert_close(out.prediction, y.detach())
    for (name, leaf), gradient in zip(leaves.items(), gradients, strict=True):
        torch.testing.assert_close(after[name]["w"], leaf.detach() - 0.1 * gradient, rtol=1e-10, atol=1e-10)
    meaning, _ = interpreter.step(program, state, {"x": x}, {"y": t})
    assert distance(after, meaning) < 1e-10


def test_operations_and_connections_over_tokens_that_do_not_fit():
    network = tokens()
    with refuses(mg.NetworkError, "'q'", "mixes the examples", "dimension 0"):
        network.operation("q", lambda e: e - e.mean(0), "e")
    with refuses(mg.NetworkError, "'q'", "batch first", "(2, 2)"):
        network.operation("q", lambda e, p: e.flatten(1) @ p.flatten(1).mT[:6], "e", "p")
    with refuses(mg.NetworkError, "'q'", "failed", "(2, 3, 2)"):
        network.operation("q", lambda e, p: e @ p.flatten(), "e", "p")
    with refuses(mg.NetworkError, "dense(shared=(1,))", "equal sizes", "(3, 4)", "(3, 2)"):
        network.connect("h", "g", mg.Dense(shared=(1,)))
    with refuses(mg.NetworkError, "'n'", "layernorm(dims=3)", "fewer dims"):
        network.unit("n", (3, 2), mg.LayerNorm(dims=3)), network.connect("e", "n", "identity")
        mg.compile(network, Backprop())


def follows_autograd(network, function, labels=10, size=4, steps=3):
    """Three steps of backprop are three steps of autograd on ``function(weights, x)``."""
    generator = torch.Generator().manual_seed(0)
    program = mg.compile(network, Backprop(lr=0.05), dtype=torch.float64)
    state = program.init(seed=1)
    weights = {n: c["w"].clone() for n, c in state.items() if "w" in c}
    ticks = (network.ticks,) if network.ticks > 1 else ()
    for _ in range(steps):
        x = torch.randn(size, *ticks, *network.shape("x"), generator=generator, dtype=torch.float64)
        y = torch.randint(0, labels, (size,), generator=generator)
        leaves = {n: w.requires_grad_() for n, w in weights.items()}
        z = function(leaves, x)
        gradients = torch.autograd.grad(F.cross_entropy(z, y), list(leaves.values()))
        weights = {n: (w - 0.05 * g).detach() for (n, w), g in zip(leaves.items(), gradients, strict=True)}
        state, out = program.step(state, x, y)
        torch.testing.assert_close(out.prediction, z.detach(), rtol=1e-9, atol=1e-9)
    for name, weight in weights.items():
        torch.testing.assert_close(state[name]["w"], weight, rtol=1e-9, atol=1e-9)
    return program, state


@pytest.mark.parametrize("pool", ["max", "avg"])
def test_lenet_is_autograd(pool):
    pooled = F.max_pool2d if pool == "max" else F.avg_pool2d

    def lenet(w, x):
        x = pooled(torch.tanh(F.conv2d(x, w["x->c1"], w["c1.bias"], padding=2)), 2)
        x = pooled(torch.tanh(F.conv2d(x, w["p1->c2"], w["c2.bias"])), 2).flatten(1)
        x = torch.tanh(F.linear(x, w["flat->h1"], w["h1.bias"]))
        x = torch.tanh(F.linear(x, w["h1->h2"], w["h2.bias"]))
        return F.linear(x, w["h2->y"], w["y.bias"])

    follows_autograd(convnet(pool=pool), lenet)


def norm(w, x, name, below):
    """A convolution with batch normalization."""
    stride = 2 if (".1" in name or ".short" in name) and name.startswith(("s2b1", "s3b1")) else 1
    x = F.conv2d(x, w[below], stride=stride, padding=w[below].shape[-1] // 2)
    return F.batch_norm(x, None, None, training=True)


def test_resnet_is_autograd_and_predicts_with_running_statistics():
    def affine(w, x, wire, bias):
        return x * w[wire][:, None, None] + w[f"{bias}.bias"][:, None, None]

    def network(w, x):
        x = torch.relu(affine(w, norm(w, x, "stem", "x->stem.norm"), "stem.norm->stem", "stem"))
        below = "stem"
        for name in ("s1b1", "s2b1", "s3b1"):
            one, two = f"{name}.1", f"{name}.2"
            y = norm(w, x, one, f"{below}->{one}.norm")
            y = torch.relu(affine(w, y, f"{one}.norm->{one}", one))
            y = affine(w, norm(w, y, two, f"{one}->{two}.norm"), f"{two}.norm->{two}", two)
            short = x
            if name != "s1b1":
                short = norm(w, x, f"{name}.short", f"{below}->{name}.short")
                short = short * w[f"{name}.short->{two}"][:, None, None]
            x, below = torch.relu(y + short), two
        return F.linear(x.mean((-2, -1)), w["pool->y"], w["y.bias"])

    follows_autograd(resnet(8, (2, 8, 8), width=4), network, steps=2)


def test_running_statistics_are_those_of_torch():
    network = mg.Network()
    network.input("x", (3, 4, 4)), network.unit("n", (3, 4, 4), mg.BatchNorm(momentum=0.2), bias=False)
    network.connect("x", "n", "identity"), network.unit("y", 2)
    network.connect(network.operation("pool", "global_avg_pool", "n"), "y"), network.loss("y", "l2")
    program = mg.compile(network, Backprop(lr=0.0), dtype=torch.float64)
    module = torch.nn.BatchNorm2d(3, momentum=0.2, affine=False, dtype=torch.float64)
    state, generator = program.init(), torch.Generator().manual_seed(0)
    for _ in range(3):
        x = torch.randn(5, 3, 4, 4, generator=generator, dtype=torch.float64) * 3 + 1
        state, _ = program.step(state, x, torch.zeros(5, 2, dtype=torch.float64))
        module(x)
    torch.testing.assert_close(state["n"]["mean"], module.running_mean)
    torch.testing.assert_close(state["n"]["var"], module.running_var)
    expected = F.linear(module.eval()(x).mean((-2, -1)), state["pool->y"]["w"], state["y.bias"]["w"])
    torch.testing.assert_close(program.predict(state, x), expected)
    torch.testing.assert_close(program.predict(state, x[:1]), expected[:1])


def test_recurrence_is_backpropagation_through_time():
    def elman(w, x):
        h = torch.zeros(len(x), 6, dtype=x.dtype)
        for tick in range(5):
            z = F.linear(x[:, tick], w["x->h1"], w["h1.bias"])
            h = torch.tanh(z + F.linear(h, w["h1->h1"]) if tick else z)
        return F.linear(h, w["h1->y"], w["y.bias"])

    follows_autograd(recurrent([3, 6, 4], ticks=5), elman, labels=4)


def test_delays_of_several_ticks():
    network = mg.Network(ticks=4)
    network.input("x", 2), network.unit("y", 1, bias=False)
    network.connect("x", "y", delay=2, weight=torch.tensor([[1.0, 10.0]]))
    network.connect("y", "y", "one_to_one", delay=3, weight=100.0), network.loss("y", "l2")
    program = mg.compile(network, Backprop())
    x = torch.arange(1.0, 9.0).reshape(1, 4, 2)
    assert program.predict(program.init(), x).item() == 3.0 + 40.0  # tick 3 hears tick 1; y of tick 0 was zero


def test_tied_weights_are_one_tensor_that_sums_its_gradients():
    def function(w, x):
        h = torch.tanh(F.linear(x, w["x->code"], w["code.bias"]))
        return F.linear(h, w["x->code"].T, w["y.bias"])

    network = autoencoder([4, 3], loss="cross_entropy", tied=True)
    _, state = follows_autograd(network, function, labels=4)
    assert "code->y" not in state
    assert sorted(n for n in state if n != "program") == ["code.bias", "x->code", "y.bias"]


@pytest.mark.parametrize("name", ["convolution", "grouped", "sparse", "recurrence", "tied", "residual", "operations"])
def test_transforms(name):
    network = GRAPHS[name]()
    rate = torch.nn.Parameter(torch.tensor(0.1, dtype=torch.float64))
    program = mg.compile(network, Backprop(lr=rate), dtype=torch.float64)
    states = [program.init(seed) for seed in range(3)]
    x, y = batch(network, 4)
    alone = [program.step(s, x, y)[0] for s in states]
    stack = mg.stack(states)
    mapped, _ = torch.func.vmap(lambda s: program.step(s, x, y))(stack)
    for i, state in enumerate(alone):
        assert distance(state, {n: {c: t[i] for c, t in k.items()} for n, k in mapped.items()}) < 1e-10
    compiled, _ = torch.compile(program.step, fullgraph=True, backend="aot_eager")(states[0], x, y)
    assert distance(compiled, alone[0]) < 1e-10

    def unrolled(value):
        state = states[0]
        for _ in range(3):
            parameters = {"optimizer.lr": value}
            state, out = program.step(state, x, y, parameters=parameters)
        return out.loss

    value = torch.tensor(0.1, dtype=torch.float64)
    slope = (unrolled(value + 1e-6) - unrolled(value - 1e-6)) / 2e-6
    torch.testing.assert_close(torch.func.grad(unrolled)(value), slope.detach(), rtol=1e-4, atol=1e-7)


def test_aggregation_by_name_and_by_module():
    from torch_geometric.nn import aggr

    class Unit(mg.UnitAgent):
        def __init__(self, how):
            super().__init__()
            self.aggregate = {"pre": how}

    expected = {
        "mean": lambda m: m.mean(-1),
        "max": lambda m: m.amax(-1),
        aggr.MeanAggregation(): lambda m: m.mean(-1),
        aggr.MedianAggregation(): lambda m: m.median(-1).values,
        aggr.SoftmaxAggregation(t=0.5): lambda m: (m * (0.5 * m).softmax(-1)).sum(-1),
    }
    for how, function in expected.items():
        network = mg.Network()
        network.input("x", 3), network.unit("h", 4, bias=False), network.unit("y", 2, bias=False)
        network.connect("x", "h"), network.connect("h", "y"), network.loss("y", "cross_entropy")
        program = mg.compile(network, Backprop(unit=Unit(how), output=Unit("sum")), dtype=torch.float64)
        state = program.init()
        x, y = batch(network, 5)
        w, v = state["x->h"]["w"], state["h->y"]["w"]
        hidden = function(w[None] * x["x"][:, None, :])
        torch.testing.assert_close(program.predict(state, x), hidden @ v.T)
        after, _ = program.step(state, x, y)
        meaning, _ = interpreter.step(program, state, x, {"y": torch.eye(2, dtype=torch.float64)[y]})
        assert distance(after, meaning) < 1e-10
    for how in ("mean", "max", aggr.MaxAggregation(), aggr.MeanAggregation()):  # agents with different numbers of edges
        network = mg.Network()
        network.input("x", 3), network.unit("h", 3, bias=False), network.unit("y", 2, bias=False)
        network.connect("x", "h", mg.Sparse([[0, 1, 2, 2], [0, 0, 0, 1]])), network.connect("h", "y")
        network.connect("x", "h", mg.Sparse([[0, 1], [0, 1]])), network.loss("y", "cross_entropy")
        program = mg.compile(network, Backprop(unit=Unit(how), output=Unit("sum")), dtype=torch.float64)
        state = randomised(program.init(), torch.Generator().manual_seed(3))
        x, y = batch(network, 2)
        after, out = program.step(state, x, y)
        m, n = state["x->h"]["w"] * x["x"][:, [0, 1, 2, 2]], state["x->h#1"]["w"] * x["x"][:, [0, 1]]
        bags = [torch.stack([m[:, 0], m[:, 1], m[:, 2], n[:, 0]], 1), torch.stack([m[:, 3], n[:, 1]], 1)]
        mean = how == "mean" or isinstance(how, aggr.MeanAggregation)
        hidden = [bag.mean(1) if mean else bag.amax(1) for bag in bags]
        z = torch.stack([*hidden, torch.zeros(2)], 1) @ state["h->y"]["w"].T
        torch.testing.assert_close(out.prediction, z)
        meaning, _ = interpreter.step(program, state, x, {"y": torch.eye(2, dtype=torch.float64)[y]})
        assert distance(after, meaning) < 1e-10


def test_max_pool_breaks_ties_like_torch():
    network = mg.Network()
    network.input("x", (1, 2, 2)), network.unit("h", (1, 2, 2), bias=False), network.unit("y", 1, bias=False)
    network.connect("x", "h", "one_to_one", weight=0.0)
    network.connect(network.operation("f", "flatten", network.operation("p", "max_pool", "h")), "y", weight=1.0)
    network.loss("y", "l2")
    state, _ = (p := mg.compile(network, Backprop(lr=1.0))).step(p.init(), torch.ones(1, 1, 2, 2), torch.ones(1, 1))
    assert state["x->h"]["w"].flatten().tolist() == [1.0, 0.0, 0.0, 0.0]


def drawn(ticks=1):
    network = mg.Network(ticks)
    network.input("x", (1, 4, 4)), network.unit("h", 3, "tanh"), network.unit("y", 2)
    return network


REFUSED = {
    "kernel": (lambda n: n.connect("x", n.unit("c", (1, 1, 1)), mg.Conv2d(5)), "'x', 'c'.*larger than its input"),
    "conv shape": (lambda n: n.connect("x", n.unit("c", (1, 4, 4)), mg.Conv2d(3)), r"gives \(1, 2, 2\)"),
    "conv of a row": (lambda n: n.connect("h", "y", mg.Conv2d(3)), "channels, height, width"),
    "groups": (lambda n: n.connect("x", n.unit("c", (3, 4, 4)), mg.Conv2d(1, groups=2)), "2 groups do not divide"),
    "stride": (lambda n: mg.Conv2d(3, stride=0), "stride=0 must be one or two"),
    "edge index": (lambda n: n.connect("h", "y", mg.Sparse([[0, 3], [0, 0]])), "edge 1 names agent 3 at the pre end"),
    "edges": (lambda n: mg.Sparse(torch.zeros(3, 2)), r"\(2, edges\)"),
    "no edges": (lambda n: n.connect("h", "y", mg.Sparse(torch.zeros(2, 0, dtype=torch.long))), "no edges"),
    "window": (lambda n: n.operation("p", mg.MaxPool(5), "x"), "'p'.*larger than its input"),
    "operand": (lambda n: n.operation("p", "product", "h", "hh"), "'p'.*unknown unit 'hh'.*did you mean 'h'"),
    "operation": (lambda n: n.operation("p", "produkt", "h"), "unknown operation.*'product'"),
    "operand shapes": (lambda n: n.operation("p", "product", "h", "y"), "one shape"),
    "reshape": (lambda n: n.operation("p", mg.Reshape(5), "x"), "16 numbers"),
    "into operation": (lambda n: n.connect("h", n.operation("f", "flatten", "x")), "'f' is an operation"),
    "unit operation": (lambda n: n.unit("p", 3, mg.MaxPool(2)), "network.operation"),
    "duplicate": (lambda n: n.operation("h", "flatten", "x"), "already a node called 'h'"),
    "dangling": (lambda n: n.connect("h", "z"), "unknown unit 'z'"),
    "tied": (lambda n: n.connect("h", "y", tied="x->z"), "tied to an unknown connection 'x->z'"),
    "tied shape": (
        lambda n: (n.connect("x", "h"), n.connect("h", "y", tied="x->h")),
        r"needs weights of shape \(2, 3\)",
    ),
    "transposed": (lambda n: n.connect("h", "y", transposed=True), "needs tied="),
    "delay": (lambda n: n.connect("h", "h", delay=-1), "delay=-1 must be an integer of at least 0"),
    "ticks": (lambda n: mg.Network(ticks=0), "ticks=0 must be an integer of at least 1"),
    "shared": (lambda n: n.connect("h", n.unit("g", 3), mg.OneToOne(shared=(1,))), "names dimensions"),
    "reserved": (lambda n: n.unit("h.bias", 3), "those of biases"),
    "weight": (lambda n: n.connect("x", n.unit("c", (2, 2, 2)), mg.Conv2d(3), weight=torch.ones(2, 1, 3, 2)), "3, 3"),
    "identity weight": (lambda n: n.connect("h", n.unit("g", 3), "identity", weight=1.0), "takes no weight"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_graphs_are_refused_when_drawn(name):
    make, message = REFUSED[name]
    with pytest.raises(mg.NetworkError, match=message):
        make(drawn())


def test_bad_graphs_are_refused_before_compiling():
    def compiled(network):
        return mg.compile(network, Backprop())

    network = drawn()
    network.connect("x", "h"), network.connect("h", "y"), network.connect("h", "h")
    with pytest.raises(mg.NetworkError, match="cycle without a delay: h -> h.*delay=1"):
        compiled(network)
    network = drawn()
    network.connect("x", "h"), network.connect("h", "y"), network.connect("h", "h", delay=1)
    with pytest.raises(mg.NetworkError, match=r"1 tick, too few for 'h->h' \(delay 1\)"):
        compiled(network)
    network = drawn()
    network.connect("h", "y")
    with pytest.raises(mg.NetworkError, match="nothing is connected to 'h'"):
        compiled(network)
    network = drawn(ticks=2)
    network.connect("h", "y"), network.connect("y", "h", delay=1), network.loss("y", "l2")
    with pytest.raises(mg.NetworkError, match="output 'y' is not reached from any input"):
        compiled(network)
    network = drawn()
    network.connect("x", "h"), network.connect("h", "y")
    with pytest.raises(mg.ProtocolError, match="'y' has no 'post' neighbor.*put a loss on it"):
        compiled(network)


def test_ticks_in_batches_and_states():
    program = mg.compile(recurrent([3, 4, 2], ticks=3), Backprop())
    state = program.init()
    with pytest.raises(mg.InputError, match=r"expected shape \(batch, 3, 3\), got \(5, 3\)"):
        program.step(state, torch.randn(5, 3), torch.zeros(5, dtype=torch.long))
    _, out = program.step(
        state, torch.randn(5, 3, 3), torch.zeros(5, dtype=torch.long), record={"h1": ["e"], "h1@0": ["e"]}
    )
    assert out.recorded["h1"]["e"].shape == out.recorded["h1@0"]["e"].shape == (5, 4)
    assert not torch.equal(out.recorded["h1"]["e"], out.recorded["h1@0"]["e"])


def test_explain_names_what_products_became():
    text = mg.compile(convnet(), Backprop()).explain(4)
    for line, call in (("x->c1 => c1 (pre)", "conv2d"), ("p1->c2 => p1 (post)", "conv2d_input")):
        assert any(line in row and call in row for row in text.splitlines()), line
    assert "conv2d_weight" in text
    assert "materialised" not in text
    assert "materialised" not in mg.compile(GRAPHS["sparse"](), Backprop()).explain(4)


def test_names_of_units_may_hold_a_dot():
    """Also where the code holds a constant of theirs: how many messages reach each agent."""
    network = mg.Network()
    network.input("x", 3), network.unit("a.b", 3, "tanh"), network.unit("y", 2)
    network.connect("x", "a.b"), network.connect("a.b", "y", mg.Sparse([[0, 1, 2, 2], [0, 1, 0, 1]]))
    network.loss("y", "l2")
    program = mg.compile(network, Memories())
    _, out = program.step(program.init(batch_size=2), torch.randn(2, 3), torch.randn(2, 2))
    assert "degrees_a_b" in program.code
    assert torch.isfinite(out.loss)
