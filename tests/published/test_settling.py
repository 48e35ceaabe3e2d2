"""Rules that settle: equilibrium propagation is the gradient of its fixed point, predictive coding of its energy."""

import pytest
import torch
from reference import distance

import mpgraph as mg
from mpgraph.architectures import mlp
from mpgraph.interpreter import interpreter
from mpgraph.protocols import Backprop, EquilibriumPropagation, PredictiveCoding

DOUBLE = torch.float64


def problem(inputs, outputs, size=4):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(size, inputs, generator=generator, dtype=DOUBLE)
    return x, torch.randn(size, outputs, generator=generator, dtype=DOUBLE)


def tangle(loss="l2"):
    """Three units of which each drives all, itself too; one of them is the output."""
    network = mg.Network()
    network.input("x", 3)
    network.unit("a", 4, "tanh"), network.unit("b", 3, "sigmoid"), network.unit("y", 2)
    network.connect("x", "a"), network.connect("x", "b")
    for pre, post in (("a", "a"), ("b", "b"), ("a", "b"), ("b", "a"), ("a", "y"), ("b", "y")):
        network.connect(pre, post)
    network.loss("y", loss)
    return network


FUNCTIONS = {"tanh": torch.tanh, "sigmoid": torch.sigmoid, "identity": lambda z: z}


def fixed_point(network, weights, x, rounds=400):
    """The free state of the output, by plain loops over connections that act in both directions."""
    values = {n: torch.zeros(len(x), *u.shape, dtype=DOUBLE) for n, u in network.units.items() if not u.is_input}
    for _ in range(rounds):
        y = {n: x if u.is_input else FUNCTIONS[u.activation.name](values[n]) for n, u in network.units.items()}
        total = {n: weights[f"{n}.bias"].expand(len(x), -1) for n in values}
        for wire in network.wires.values():
            total[wire.post] = total[wire.post] + y[wire.pre] @ weights[wire.name].T
            if wire.pre in values:
                total[wire.pre] = total[wire.pre] + y[wire.post] @ weights[wire.name]
        values = {n: 0.5 * v + 0.5 * total[n] for n, v in values.items()}
    return values["y"]


@pytest.mark.parametrize("build", [tangle, lambda: mlp([3, 4, 2], "tanh", "l2")])
@pytest.mark.parametrize(("symmetric", "order"), [(False, 1), (True, 2)])
def test_equilibrium_propagation_is_the_gradient_of_the_free_state(build, symmetric, order):
    """Its error falls as beta with one nudge, and as beta squared with two."""
    network, (x, y) = build(), problem(3, 2)
    errors, scale = [], 0.0
    for beta in (0.02, 0.01):
        rule = EquilibriumPropagation(1.0, beta=beta, symmetric=symmetric, gain=0.2)
        program = mg.compile(network, rule, dtype=DOUBLE)
        state = program.init()
        after, out = program.step(state, x, y, repeat={"free": 400, "nudged": 400})
        leaves = {n: state[n]["w"].clone().requires_grad_() for n in state if n != "program"}
        free = fixed_point(network, leaves, x)
        loss = (0.5 * (free - y) ** 2).sum(1).mean()
        assert torch.allclose(out.loss, loss, atol=1e-10)
        exact = torch.autograd.grad(loss, list(leaves.values()))
        found = [state[n]["w"] - after[n]["w"] for n in leaves]
        errors.append(max((a - b).abs().max() for a, b in zip(found, exact, strict=True)))
        scale = max(g.abs().max() for g in exact)
    assert errors[0] < 0.05 * scale
    assert 2**order == pytest.approx(float(errors[0] / errors[1]), rel=0.15)


def test_equilibrium_propagation_sees_no_target_in_its_prediction():
    x, y = problem(3, 2)
    program = mg.compile(tangle(), EquilibriumPropagation(), dtype=DOUBLE)
    state = program.init()
    one, two = (program.step(state, x, target)[1].prediction for target in (y, -y))
    assert torch.equal(one, two)
    assert torch.equal(one, program.predict(state, x))


@pytest.mark.parametrize("loss", ["l2", "sigmoid_cross_entropy"])
def test_one_step_of_errors_is_backpropagation_times_its_rate(loss):
    """At hidden layers; the output, whose error is not a variable, learns as it does there."""
    network = mlp([5, 6, 4, 5, 3], "tanh", loss)
    x, y = problem(5, 3)
    y = y.sigmoid()
    exact = mg.compile(network, Backprop(0.3), dtype=DOUBLE)
    state = exact.init()
    after, _ = exact.step(state, x, y)
    program = mg.compile(network, PredictiveCoding(0.3, variant="error", rate=0.4, steps=1), dtype=DOUBLE)
    found, _ = program.step(state, x, y)
    for name in (n for n in state if n != "program"):
        share = 1.0 if name in ("h3->y", "y.bias") else 0.4
        change = after[name]["w"] - state[name]["w"]
        torch.testing.assert_close(found[name]["w"] - state[name]["w"], share * change, rtol=0, atol=1e-10)


def test_errors_rest_where_values_do():
    """The same energy in other variables has the same minimum."""
    network = mlp([5, 6, 4, 3], "tanh", "l2")
    x, y = problem(5, 3)
    rules = [PredictiveCoding(0.3, variant=v, rate=0.3, precision=0.8, steps=600) for v in ("strict", "error")]
    programs = [mg.compile(network, rule, dtype=DOUBLE) for rule in rules]
    state = programs[0].init()
    one, two = (program.step(state, x, y)[0] for program in programs)
    assert distance(one, two) < 1e-10
    assert distance(one, state) > 1e-3


@pytest.mark.parametrize(("variant", "order"), [("strict", 1), ("centred", 2)])
def test_nudged_predictive_coding_approaches_the_gradient(variant, order):
    """Its error falls as beta with one nudge, and as beta squared with two."""
    network = mlp([5, 6, 4, 3], "tanh", "l2")
    x, y = problem(5, 3)
    exact = mg.compile(network, Backprop(1.0), dtype=DOUBLE)
    state = exact.init()
    after, _ = exact.step(state, x, y)
    errors = []
    for beta in (0.02, 0.01):
        rule = PredictiveCoding(1.0, variant=variant, rate=0.3, beta=beta, steps=400)
        found, out = mg.compile(network, rule, dtype=DOUBLE).step(state, x, y)
        errors.append(distance(found, after))
        assert torch.allclose(out.prediction, exact.predict(state, x))
    assert errors[0] / errors[1] == pytest.approx(2.0**order, rel=0.1)


def deep(depth, width=64):
    """A residual network: each hidden unit also receives what the one below says."""
    network = mg.Network()
    below = network.input("x", width)
    for i in range(depth):
        name = network.unit(f"h{i}", width, "tanh", bias=False)
        network.connect(below, name)
        if i:
            network.connect(below, name, "identity")
        below = name
    network.unit("y", 3, bias=False), network.connect(below, "y"), network.loss("y", "l2")
    return network


def test_scaling_keeps_activity_of_deep_networks():
    """Innocenti et al. (2025): a = 1 / sqrt(n), 1 / sqrt(n L) beside a skip, 1 / n at the output."""
    network, depth, width = deep(10), 10, 64
    rule = PredictiveCoding(0.3, scaling="mupc", variant="fixed", rate=1.0, steps=depth + 1)
    program = mg.compile(network, rule, dtype=DOUBLE)
    state = program.init()
    gains = {n: program.graph.agents[n].gain for n in state if "->" in n}
    assert gains["x->h0"] == pytest.approx(width**-0.5)
    assert gains["h3->h4"] == pytest.approx((width * (depth - 1)) ** -0.5)
    assert gains["h9->y"] == pytest.approx(1 / width)
    w = torch.cat([k["w"].flatten() for n, k in state.items() if n.startswith("h") and n != "h9->y"])
    assert abs(float(w.std()) - 1.0) < 0.02
    x = torch.randn(50, width, dtype=DOUBLE, generator=torch.Generator().manual_seed(1))
    y = torch.zeros(50, 3, dtype=DOUBLE)
    leaves = {n: k["w"].clone().requires_grad_() for n, k in state.items() if "w" in k}
    h = torch.tanh(gains["x->h0"] * x @ leaves["x->h0"].T)
    sizes = [float(h.detach().std())]
    for i in range(1, depth):
        h = torch.tanh(gains[f"h{i - 1}->h{i}"] * h @ leaves[f"h{i - 1}->h{i}"].T + h)
        sizes.append(float(h.detach().std()))
    assert max(sizes) < 2 * min(sizes)
    loss = 0.5 * (gains["h9->y"] * h @ leaves["h9->y"].T - y).pow(2).sum(1).mean()
    after, out = program.step(state, x, y)
    torch.testing.assert_close(out.loss, loss)
    for (name, leaf), gradient in zip(leaves.items(), torch.autograd.grad(loss, list(leaves.values())), strict=True):
        torch.testing.assert_close(after[name]["w"], leaf.detach() - 0.3 * gradient)


@pytest.mark.parametrize("variant", ["fixed", "z_il"])
@pytest.mark.parametrize("loss", ["l2", "sigmoid_cross_entropy"])
def test_predictive_coding_that_is_backpropagation(variant, loss):
    """Millidge et al. (2022), Song et al. (2020): rate 1 and as many steps as layers."""
    network = mlp([5, 6, 4, 5, 3], "tanh", loss)
    x, y = problem(5, 3)
    y = y.sigmoid()
    exact = mg.compile(network, Backprop(0.3), dtype=DOUBLE)
    program = mg.compile(network, PredictiveCoding(0.3, variant=variant, rate=1.0, steps=4), dtype=DOUBLE)
    state = exact.init()
    for _ in range(3):
        after, out = exact.step(state, x, y)
        found, same = program.step(state, x, y)
        assert distance(found, after) < 1e-10
        assert torch.equal(out.prediction, same.prediction)
        state = after


def energy(weights, values, x, y, precision):
    """F of a chain of tanh layers with a squared error."""
    total, below = 0.0, x
    for layer, value in enumerate([*values, None], start=1):
        name, post = (
            ("h2->y", "y") if value is None else (("x->h1", "h2->y", "h1->h2")[0 if layer == 1 else 2], f"h{layer}")
        )
        a = below @ weights[name].T + weights[f"{post}.bias"]
        error = (a - y) if value is None else (value - torch.tanh(a))
        total = total + 0.5 * (1.0 if value is None else precision) * (error**2).sum()
        below = value
    return total


@pytest.mark.parametrize(("steps", "variant"), [(1, "strict"), (5, "strict"), (3, "incremental")])
def test_predictive_coding_descends_its_energy(steps, variant):
    """Values by gradient descent on F from the forward pass, then weights, both by autograd."""
    x, y = problem(4, 2)
    rate, precision, lr = 0.15, 0.8, 0.1
    rule = PredictiveCoding(lr, steps=steps, rate=rate, precision=precision, variant=variant)
    program = mg.compile(mlp([4, 5, 3, 2], "tanh", "l2"), rule, dtype=DOUBLE)
    state = program.init()
    after, _ = program.step(state, x, y)
    w = {n: state[n]["w"].clone() for n in state if n != "program"}
    values, below = [], x
    for name, post in (("x->h1", "h1"), ("h1->h2", "h2")):
        below = torch.tanh(below @ w[name].T + w[f"{post}.bias"])
        values.append(below)

    def descended(numbers, step, total):
        leaves = [n.detach().requires_grad_() for n in numbers]
        gradients = torch.autograd.grad(total(leaves), leaves)
        return [n.detach() - step * g for n, g in zip(leaves, gradients, strict=True)]

    def of_weights(leaves):
        return energy(dict(zip(w, leaves, strict=True)), values, x, y, precision)

    def of_values(leaves):
        return energy(w, leaves, x, y, precision)

    for number in range(steps):
        values = descended(values, rate, of_values)
        if variant == "incremental" or number == steps - 1:
            w = dict(zip(w, descended(w.values(), lr / len(x), of_weights), strict=True))
    assert max((after[n]["w"] - w[n]).abs().max() for n in w) < 1e-12


@pytest.mark.parametrize("options", [{"variant": "centred"}, {"variant": "error"}, {"scaling": "mupc"}], ids=str)
def test_variants_mean_what_the_interpreter_does(options):
    network = mg.Network()
    network.input("x", 3), network.unit("h", 3, "tanh"), network.unit("g", 3, "sigmoid"), network.unit("y", 2)
    network.connect("x", "h"), network.connect("h", "g"), network.operation("p", "product", "h", "g")
    network.connect("p", "y"), network.connect("g", "y"), network.loss("y", "l2")
    program = mg.compile(network, PredictiveCoding(rate=0.3, steps=3, beta=0.5, **options), dtype=DOUBLE)
    state, (x, y) = program.init(), problem(3, 2)
    after, _ = program.step(state, x[:2], y[:2])
    meaning, _ = interpreter.step(program, state, {"x": x[:2]}, {"y": y[:2]})
    assert distance(after, meaning) < 1e-10
    assert distance(after, state) > 1e-4
