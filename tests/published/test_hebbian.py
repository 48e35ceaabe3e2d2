"""Hebb's, Oja's and Sanger's rules: formulas, what they converge to, who is taught, sums in the order of a unit."""

import pytest
import torch
from reference import distance, randomised

import mpgraph as mg
from mpgraph import Agent, Protocol, data
from mpgraph.architectures import mlp
from mpgraph.experiments import train
from mpgraph.interpreter import interpreter
from mpgraph.protocols import Backprop, Hebb, Oja, Sanger

SPECTRUM = torch.tensor([6.0, 4.0, 2.5, 1.5, 0.5, 0.3, 0.2, 0.1], dtype=torch.float64)


def close(one, two, atol=1e-12):
    torch.testing.assert_close(one, two, rtol=0, atol=atol)


# -- formulas -------------------------------------------------------------------------------------------------------


@pytest.fixture
def problem():
    generator = torch.Generator().manual_seed(0)
    network = mlp([5, 6, 4, 3])
    x = torch.randn(7, 5, generator=generator, dtype=torch.float64)
    return network, x, torch.randint(0, 3, (7,), generator=generator), generator


def activities(state, x):
    w = {n: channels["w"] for n, channels in state.items() if "w" in channels}
    h1 = torch.tanh(x @ w["x->h1"].T + w["h1.bias"])
    h2 = torch.tanh(h1 @ w["h1->h2"].T + w["h2.bias"])
    return w, h1, h2, torch.softmax(h2 @ w["h2->y"].T + w["y.bias"], -1)


def local(form, w, x, y):
    """The increment of one example, by loops over neurons as the papers print it."""
    new = torch.zeros_like(w)
    for j in range(len(y)):
        explained = {
            "hebb": torch.zeros_like(x),
            "subspace": sum(w[k] * y[k] for k in range(len(y))),
            "neuron": w[j] * y[j],
            "sanger": sum(w[k] * y[k] for k in range(j + 1)),
        }[form]
        new[j] = y[j] * (x - explained)
    return new


RULES = {
    "hebb": Hebb,
    "subspace": Oja,
    "neuron": lambda *a, **k: Oja(*a, form="neuron", **k),
    "sanger": Sanger,
}


@pytest.mark.parametrize("form", RULES)
@pytest.mark.parametrize("supervision", [0.0, 0.3])
def test_one_step_is_the_formula(problem, form, supervision):
    network, x, t, generator = problem
    program = mg.compile(network, RULES[form](0.2, 0.05, supervision), dtype=torch.float64)
    state = randomised(program.init(), generator)
    w, h1, h2, p = activities(state, x)
    e3 = p - torch.nn.functional.one_hot(t, 3)
    e2 = (e3 @ w["h2->y"]) * (1 - h2**2)
    e1 = (e2 @ w["h1->h2"]) * (1 - h1**2)
    after, _ = program.step(state, x, t)
    for name, below, above, e in (("x->h1", x, h1, e1), ("h1->h2", h1, h2, e2)):
        change = sum(local(form, w[name], below[i], above[i]) for i in range(7)) / 7
        close(after[name]["w"], w[name] + 0.05 * change - supervision * e.T @ below / 7)
    close(after["h2->y"]["w"], w["h2->y"] - 0.2 * e3.T @ h2 / 7)
    close(after["y.bias"]["w"], w["y.bias"] - 0.2 * e3.mean(0))
    close(after["h1.bias"]["w"], w["h1.bias"] - supervision * e1.mean(0))


def test_without_a_local_rate_and_fully_supervised_it_is_backprop(problem):
    network, x, t, generator = problem
    program = mg.compile(network, Oja(0.2, 0.0, 0.2), dtype=torch.float64)
    backprop = mg.compile(network, Backprop(0.2), dtype=torch.float64)
    state = randomised(program.init(), generator)
    assert distance(program.step(state, x, t)[0], backprop.step(state, x, t)[0]) < 1e-12


@pytest.mark.parametrize("rule", [Hebb, Oja, Sanger])
def test_no_error_goes_below_unless_supervised(problem, rule):
    network, x, t, generator = problem
    program = mg.compile(network, rule(), dtype=torch.float64)
    state = randomised(program.init(), generator)
    one, _ = program.step(state, x, t)
    two, _ = program.step({**state, "h2->y": {"w": -state["h2->y"]["w"]}}, x, (t + 1) % 3)
    assert all(torch.equal(one[n]["w"], two[n]["w"]) for n in ("x->h1", "h1->h2", "h1.bias", "h2.bias"))
    below = [a for a in program.graph.all_arrows() if a.pass_name == "backward" and a.source.type == "weight"]
    assert not below
    taught = mg.compile(network, rule(supervision=0.1))
    assert [a for a in taught.graph.all_arrows() if a.pass_name == "backward" and a.source.type == "weight"]


def test_an_output_without_a_loss_is_a_feature_and_supervision_and_rates_are_learnable(double):
    program = mg.compile(
        mlp([5, 3], "identity", None, bias=False), Oja(rate=mg.learnable(0.1), supervision=mg.learnable(0.0))
    , dtype=torch.float64)  # fmt: skip
    state, x = program.init(), torch.randn(4, 5)
    w = state["x->y"]["w"]
    after, _ = program.step(state, x)
    change = sum(local("subspace", w, v, w @ v) for v in x) / 4
    close(after["x->y"]["w"].detach(), w + 0.1 * change)
    (gradient,) = torch.autograd.grad(after["x->y"]["w"].sum(), [program.protocol.agents["unit"].local])
    close(gradient, change.sum())


@pytest.mark.parametrize(("rule", "explains"), [(Hebb, False), (Oja, True)])
def test_local_increments_of_a_convolution_are_averaged_over_positions(rule, explains):
    network = mg.Network()
    network.input("x", (2, 4, 5)), network.unit("c", (3, 3, 4), bias=False)
    network.connect("x", "c", mg.Conv2d(2))
    program = mg.compile(network, rule(rate=0.1), dtype=torch.float64)
    state, x = program.init(), torch.randn(6, 2, 4, 5, dtype=torch.float64)
    w = state["x->c"]["w"].clone().requires_grad_()
    y = torch.nn.functional.conv2d(x, w).detach()
    heard = x - explains * torch.nn.functional.conv_transpose2d(y, w).detach()
    total = (torch.nn.functional.conv2d(heard, w) * y).sum()  # its gradient is the sum of y_j heard_i over all uses
    (change,) = torch.autograd.grad(total, w)
    close(program.step(state, x)[0]["x->c"]["w"], (w + 0.1 * change / (6 * 3 * 4)).detach())


# -- convergence ----------------------------------------------------------------------------------------------------


def trained(rule, neurons, steps=3000, seed=0):
    """Linear units that hear centered Gaussian data with a known spectrum: W, the directions, and |W| on the way."""
    generator = torch.Generator().manual_seed(seed)
    directions, _ = torch.linalg.qr(torch.randn(8, 8, generator=generator, dtype=torch.float64))
    network = mlp([8, neurons], "identity", None, bias=False)
    program = mg.compile(network, rule, dtype=torch.float64)
    state, norms = program.init(seed), []
    for _ in range(steps):
        z = torch.randn(64, 8, generator=generator, dtype=torch.float64) * SPECTRUM.sqrt()
        state, _ = program.step(state, z @ directions.T)
        norms.append(float(state["x->y"]["w"].norm()))
    return state["x->y"]["w"], directions, norms


def test_hebb_grows_without_bound_along_the_first_direction():
    w, directions, norms = trained(Hebb(rate=0.005), 3, steps=400)
    assert norms[-1] > 1000 * norms[0]
    growth = torch.tensor(norms[-100:]).log().diff().mean()
    assert float(growth) == pytest.approx(
        torch.log1p(0.005 * SPECTRUM[0]).item(), rel=0.1
    )  # (1 + rate lambda_1) a step
    aligned = (w @ directions[:, 0]).abs() / w.norm(dim=1)
    assert float(aligned.min()) > 0.99


def test_ojas_neuron_settles_on_the_first_direction():
    w, directions, norms = trained(Oja(rate=0.005, form="neuron"), 1)
    assert max(norms) < 3.0
    assert float(w.norm()) == pytest.approx(1.0, abs=0.03)
    assert abs(float(w @ directions[:, 0])) > 0.99


def test_ojas_layer_settles_on_the_principal_subspace():
    w, directions, norms = trained(Oja(rate=0.005), 3)
    assert max(norms) < 3.0
    identity = torch.eye(3, dtype=torch.float64)
    assert float((w @ w.T - identity).norm()) < 0.05  # orthonormal rows
    projector = w.T @ torch.linalg.inv(w @ w.T) @ w
    principal = directions[:, :3] @ directions[:, :3].T
    assert float((projector - principal).norm()) < 0.2  # of sqrt(6) at most


def test_ojas_layer_knows_its_subspace_but_no_order_of_neurons():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(9, 8, generator=generator, dtype=torch.float64)
    turn, _ = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64))
    for rule, same in ((Oja(rate=0.1), True), (Sanger(rate=0.1), False)):
        program = mg.compile(mlp([8, 3], "identity", None, bias=False), rule, dtype=torch.float64)
        state = program.init()
        turned = {**state, "x->y": {"w": turn @ state["x->y"]["w"]}}
        one, two = (program.step(s, x)[0]["x->y"]["w"] for s in (state, turned))
        assert torch.allclose(turn @ one, two, rtol=0, atol=1e-12) is same


def test_sangers_layer_settles_on_the_principal_directions_in_order():
    w, directions, norms = trained(Sanger(rate=0.005), 3)
    assert max(norms) < 3.0
    close((w @ directions[:, :3]).abs(), torch.eye(3, dtype=torch.float64), atol=0.1)


@pytest.mark.parametrize(("rule", "least"), [(Oja, 0.89), (Sanger, 0.87), (Hebb, 0.84)])
def test_defaults_on_digits(rule, least):
    digits = data.load("digits").flat()
    curve = train(mg.compile(mlp([64, 32, 10]), rule()), digits, epochs=20)[1]
    assert curve[-1] > least


# -- sums in the order of a unit, which Sanger's rule needs ---------------------------------------------------------


class Ordering(Agent):
    """Writes sums over the synapses before it at one end."""

    w, up, down = mg.slow(init=mg.xavier_uniform), mg.slow(), mg.slow()
    x = mg.fast()

    def forward_update(self, s, pre):
        return s.set(x=pre)

    def forward_message(self, s):
        return s.w * s.x

    def learn_update(self, s):
        return s.set(up=s.cumsum(s.w * s.x) * s.x, down=s.cumsum(torch.tanh(s.w + s.x), "pre"))


class Orders(Protocol):
    passes = ("forward", "learn")

    def __init__(self):
        super().__init__(weight=Ordering())


def test_sums_up_to_an_agent_at_either_end():
    network = mg.Network()
    network.input("x", (2, 2)), network.unit("y", (3, 2), bias=False)
    network.connect("x", "y")
    program = mg.compile(network, Orders(), dtype=torch.float64)
    state, x = program.init(), torch.randn(5, 2, 2, dtype=torch.float64)
    after, _ = program.step(state, x)
    w = state["x->y"]["w"].reshape(6, 4)
    wx = w * x.reshape(5, 1, 4)
    close(after["x->y"]["up"].reshape(6, 4), (wx.cumsum(1) * x.reshape(5, 1, 4)).mean(0))
    down = torch.tanh(w + x.reshape(5, 1, 4)).cumsum(2).mean(0)
    close(after["x->y"]["down"].reshape(6, 4), down)
    meaning, _ = interpreter.step(program, state, {"x": x}, {})
    assert distance(after, meaning) < 1e-12


def test_sums_over_channels_of_a_convolution_and_over_nothing_elsewhere():
    network = mg.Network()
    network.input("x", (2, 4, 3)), network.unit("c", (3, 3, 2), "tanh", bias=False)
    network.unit("o", (3, 3, 2), bias=False)
    network.connect("x", "c", mg.Conv2d(2)), network.connect("c", "o", "one_to_one")
    program = mg.compile(network, Orders(), dtype=torch.float64)
    state, x = program.init(), torch.randn(2, 2, 4, 3, dtype=torch.float64)
    after, _ = program.step(state, x)
    meaning, _ = interpreter.step(program, state, {"x": x}, {})
    assert distance(after, meaning) < 1e-12
    c = torch.tanh(torch.nn.functional.conv2d(x, state["x->c"]["w"]))
    close(after["c->o"]["up"], (state["c->o"]["w"] * c * c).mean(0))
    patches = torch.nn.functional.unfold(x, 2).reshape(2, 1, 2, 2, 2, 6)  # example, -, channel, kernel, position
    up = (state["x->c"]["w"][None, ..., None] * patches).cumsum(1) * patches
    close(after["x->c"]["up"], up.mean((0, 5)))


def test_sangers_sum_is_a_triangle_of_correlations_not_a_cube():
    program = mg.compile(mlp([64, 32, 10]), Sanger())
    assert "materialised" not in program.explain(128)
    assert "tril" not in program.code
    network = mlp([64, 32, 10])
    shapes = []

    class Shapes(torch.fx.Interpreter):
        def run_node(self, node):
            result = super().run_node(node)
            if isinstance(result, torch.Tensor):
                shapes.append(result.ndim)
            return result

    program = mg.compile(network, Sanger(rate=mg.learnable(0.01)))
    target = torch.nn.functional.one_hot(torch.tensor([3, 4]), 10).float()
    Shapes(program._function().module).run(program.init(), program._parameters_now(), {}, torch.rand(2, 64), target)
    assert max(shapes) == 2


def test_what_is_refused():
    with pytest.raises(mg.ProtocolError, match="Oja: form='layer' must be one of 'subspace', 'neuron'"):
        Oja(form="layer")
    assert Oja(0.1, form="neuron").name == "Oja(lr=0.1, form='neuron')"
