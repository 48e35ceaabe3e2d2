"""Probes against closed forms, autograd and published numbers; a run is the same with and without them."""

import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from graphs import GRAPHS, batch
from reference import distance, forward, randomised
from torch.nn import functional as F

import mpgraph as mg
from mpgraph import experiments, probes
from mpgraph.architectures import mlp, recurrent
from mpgraph.data.datasets import Dataset
from mpgraph.experiments import plots
from mpgraph.probes.channels import recorded
from mpgraph.protocols import Backprop, FeedbackAlignment, NodePerturbation
from mpgraph.protocols.backprop import Weight
from mpgraph.registry import lookup

pytestmark = pytest.mark.usefixtures("double")


def drawn(network, rule, size=6, seed=0):
    """A program with random weights, biases too, and a batch."""
    program = mg.compile(network, rule)
    generator = torch.Generator().manual_seed(seed)
    state = randomised(program.init(batch_size=size), generator)
    x, y = batch(program.graph.network, size, seed)
    return program, state, x, y


def linear(w, b, **options):
    """A net without bends, biases or chance: x -> h by one, h -> y by w, errors back by b; loss l2."""
    w, b = torch.tensor(w), torch.tensor(b)
    network = mg.Network()
    network.input("x", w.shape[1]), network.unit("h", w.shape[1], bias=False), network.unit("y", len(w), bias=False)
    network.connect("x", "h", "one_to_one", weight=1.0), network.connect("h", "y", weight=w)
    network.loss("y", "l2")
    program = mg.compile(network, FeedbackAlignment(**options))
    state = program.init()
    state["h->y"]["b"] = b
    return program, state


# -- errors -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [n for n in GRAPHS if n not in ("step", "sign", "winner take all", "quantizer")])
def test_an_exact_rule_has_the_gradient_at_every_unit(name):
    program, state, x, y = drawn(GRAPHS[name](), Backprop())
    true = probes.gradients(program, state, x, y)
    units = [n for n, node in program.graph.nodes.items() if "e" in program.graph.channels[n] and n in true]
    assert len(units) >= 2
    _, out = program.step(state, x, y, record={n: ["e"] for n in units})
    for unit in units:
        torch.testing.assert_close(true[unit], out.recorded[unit]["e"], rtol=0, atol=1e-10)
    found = probes.angles(program, state, x, y)
    assert set(found) <= set(units)
    assert max(a for a in found.values() if not math.isnan(a)) < 1e-5
    assert {"h", "y"} <= set(found) or "late" in name or name in ("tied", "residual", "operations")


def test_gradients_are_those_of_a_network_written_in_torch():
    network = mlp([3, 4, 2], "sigmoid")
    program, state, x, y = drawn(network, FeedbackAlignment())
    w = {n: c["w"] for n, c in state.items() if "w" in c}
    z = (x["x"] @ w["x->h1"].T + w["h1.bias"]).requires_grad_()
    out = torch.sigmoid(z) @ w["h1->y"].T + w["y.bias"]
    expected = torch.autograd.grad(F.cross_entropy(out, y, reduction="sum"), [z, out])
    torch.testing.assert_close(out, forward(network, w, x)["y"])
    found = probes.gradients(program, state, x, y)
    assert set(found) == {"h1", "y"}
    torch.testing.assert_close(found["h1"], expected[0])
    torch.testing.assert_close(found["y"], expected[1])


def test_the_angle_of_random_feedback_is_that_of_its_weights():
    """With one output every error is a multiple of b, and every gradient the same multiple of w."""
    program, state = linear([[2.0, 0.0]], [[0.5, 0.5 * math.sqrt(3.0)]])
    x, t = torch.randn(5, 2), torch.randn(5, 1)
    assert probes.angles(program, state, x, t)["h"] == pytest.approx(60.0, abs=1e-9)
    torch.testing.assert_close(probes.angles_by_example(program, state, x, t)["h"], torch.full((5,), 60.0))
    assert probes.angles(program, state, x, t)["y"] == 0.0
    assert probes.weight_angles(state) == {"x->h": pytest.approx(angle_of(state, "x->h")), "h->y": pytest.approx(60.0)}
    assert probes.norm_ratios(state)["h->y"] == pytest.approx(2.0)


def angle_of(state, name):
    w, b = (state[name][c].flatten().numpy() for c in ("w", "b"))
    return np.degrees(np.arccos(w @ b / np.linalg.norm(w) / np.linalg.norm(b)))


def test_the_mean_vector_is_not_the_mean_angle():
    """Errors (1, 0) and (0, 1) come back swapped: wrong for each example, right for their mean."""
    program, state = linear([[1.0, 0.0], [0.0, 1.0]], [[0.0, 1.0], [1.0, 0.0]])
    x = torch.randn(2, 2)
    t = x - torch.eye(2)
    assert probes.angles(program, state, x, t)["h"] == pytest.approx(0.0, abs=1e-9)
    torch.testing.assert_close(probes.angles_by_example(program, state, x, t)["h"], torch.full((2,), 90.0))


@pytest.mark.parametrize("build", [lambda: mlp([3, 4, 4, 2]), lambda: recurrent([2, 3, 2], 3), GRAPHS["convolution"]])
def test_the_rule_with_its_weights_for_feedback_is_the_gradient(build):
    program, state, x, y = drawn(build(), FeedbackAlignment())
    one = probes.angles(program, state, x, y)
    two = probes.angles(program, state, x, y, against={"b": "w"})
    assert one == pytest.approx(two, abs=1e-6)
    assert max(one.values()) > 5.0
    equal = {n: {**c, "b": c["w"]} if "b" in c else c for n, c in state.items()}
    assert max(probes.angles(program, equal, x, y).values()) < 1e-5


@pytest.mark.filterwarnings("ignore::mpgraph.FlatUnitWarning")
def test_no_gradient_no_angle():
    program, state, x, y = drawn(mlp([3, 4, 2], "step"), FeedbackAlignment(surrogate="tanh"))
    assert math.isnan(probes.angles(program, state, x, y)["h1"])
    outside = mlp([3, 4, 2], lambda z: torch.from_numpy(np.floor(z.numpy())))
    program, state, x, y = drawn(outside, FeedbackAlignment(surrogate="tanh"))
    with pytest.raises(mg.ProtocolError, match=r"autograd cannot follow.*against="):
        probes.angles(program, state, x, y)
    assert probes.angles(program, state, x, y, against={"b": "w"})["h1"] > 1.0


def test_small_and_large_angles_are_exact():
    one = torch.tensor([1.0, 0.0])
    for degrees in (1e-7, 30.0, 90.0, 179.9999999, 180.0):
        radians = math.radians(degrees)
        two = 7.0 * torch.tensor([math.cos(radians), math.sin(radians)])
        assert float(probes.angle(one, two)) == pytest.approx(degrees, rel=1e-7)
    assert math.isnan(probes.angle(one, torch.zeros(2)))


class TwoNumbers(mg.UnitAgent):
    """An error with a second number beside it."""

    both = mg.fast(2)

    def backward_update(self, s, post):
        s = super().backward_update(s, post)
        return s.set(both=torch.stack([3.0 * s.e, 0.0 * s.e + 1.0]))


def test_one_number_of_a_channel():
    program, state, x, y = drawn(mlp([3, 4, 2]), Backprop(unit=TwoNumbers()))
    assert max(probes.angles(program, state, x, y, error=("both", 0)).values()) < 1e-5
    assert min(probes.angles(program, state, x, y, error=("both", 1)).values()) > 5.0
    with pytest.raises(mg.ProtocolError, match=r"'both' of node 'h1' holds 2 numbers.*error=\('both', 0\)"):
        probes.angles(program, state, x, y, error="both")


class PairWeight(mg.Agent):
    """Two numbers a message."""

    w, x, e = mg.slow(2, init=0.3), mg.fast(), mg.fast()

    def forward_update(self, s, pre):
        return s.set(x=pre)

    def forward_message(self, s):
        return s.w * s.x

    def backward_update(self, s, post):
        return s.set(e=post)

    def learn_update(self, s):
        return s.descend(w=s.examples(s.e * s.x))


class PairUnit(mg.Agent):
    """An output that says the first number it hears, less three times the second."""

    z, e = mg.fast(2), mg.fast(2)

    def forward_update(self, s, pre):
        return s.set(z=pre)

    def forward_message(self, s):
        return s.z[0] - 3.0 * s.z[1]

    def backward_update(self, s, post):
        return s.set(e=torch.stack([post, -3.0 * post]))

    def backward_message(self, s):
        return s.e


def test_gradients_where_units_hear_several_numbers():
    network = mlp([3, 2], loss="l2", bias=False)
    program = mg.compile(network, mg.Protocol(weight=PairWeight(), unit=PairUnit()))
    state, x, t = program.init(), torch.randn(4, 3), torch.randn(4, 2)
    error = x @ torch.full((3, 2), 0.3 - 0.9) - t
    torch.testing.assert_close(probes.gradients(program, state, x, t)["y"], error)
    torch.testing.assert_close(probes.gradients(program, state, x, t, at=1)["y"], -3.0 * error)
    assert probes.angles(program, state, x, t, error=("e", 0))["y"] == pytest.approx(0.0, abs=1e-6)
    assert probes.angles(program, state, x, t, error=("e", 1))["y"] == pytest.approx(180.0, abs=1e-6)


# -- published numbers --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def golden():
    path = ROOT.parent / "shared" / "reference" / "golden" / "plasticity_small.npz"
    if not Path(path).is_file():
        pytest.skip("the reference vectors of the released code are not here")
    with np.load(path) as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays}


def query(golden, program):
    """The state and batch on which the released statistics were taken."""
    state = program.init()
    for layer, name in enumerate(("x->h1", "h1->h2", "h2->y"), start=1):
        state[name] = {"w": golden[f"bio_Wfinal{layer}"], "b": golden[f"B{layer}"]}
    return state, golden["query_x"], golden["query_label"]


def test_angles_of_the_released_code(golden):
    network = mlp([6, 5, 4, 3], mg.Softplus(10.0), bias=False)
    program = mg.compile(network, FeedbackAlignment())
    given = query(golden, program)
    published = golden["metric_angles_deg_e0_to_eL"]
    for against in (None, {"b": "w"}):
        found = probes.angles(program, *given, against=against)
        torch.testing.assert_close(torch.tensor([found["h1"], found["h2"]]), published[1:3], rtol=0, atol=1e-6)
        assert found["y"] == pytest.approx(0.0, abs=1e-6)


def test_statistics_of_the_released_code_at_inputs_and_of_weights(golden):
    rule = lookup("mpgraph.protocols", "plasticity")
    if rule is None:
        pytest.skip("the rule of that code is not registered")
    slope = rule(pseudo=1.0, input_slope=lambda value: 1.0 - torch.exp(-10.0 * value))
    program = mg.compile(mlp([6, 5, 4, 3], mg.Softplus(10.0), bias=False), slope)
    given = query(golden, program)
    found = probes.angles(program, *given, against={"b": "w"}, nodes=["x", "h1", "h2"])
    torch.testing.assert_close(
        torch.tensor(list(found.values())), golden["metric_angles_deg_e0_to_eL"][:3], rtol=0, atol=1e-6
    )
    found = probes.orthonormality(program, *given, activity="activity")  # an output's is its softmax
    torch.testing.assert_close(
        torch.tensor(list(found.values())), golden["metric_orth_E1_per_layer"], rtol=0, atol=1e-10
    )


# -- weights ------------------------------------------------------------------------------------------------------


def test_orthonormal_rows_reconstruct_what_they_span():
    w = torch.linalg.qr(torch.randn(5, 3)).Q.T.contiguous()
    network = mg.Network()
    network.input("x", 5), network.unit("y", 3, bias=False), network.connect("x", "y"), network.loss("y", "l2")
    program = mg.compile(network, Backprop())
    state, x, t = program.init(), torch.randn(7, 5), torch.randn(7, 3)
    state["x->y"]["w"] = w
    assert probes.orthonormality(program, state, x, t)["x->y"] < 1e-20
    state["x->y"]["w"] = 2.0 * w  # W x - W W' W x = (2 - 8) w x
    expected = 36.0 * float((x @ w.T).square().sum())
    assert probes.orthonormality(program, state, x, t)["x->y"] == pytest.approx(expected)


def test_orthonormality_of_a_convolution_and_through_time():
    program, state, x, y = drawn(GRAPHS["convolution"](), Backprop())
    found = probes.orthonormality(program, state, x, y)
    w, below = state["x->h"]["w"], x["x"]
    h = torch.tanh(F.conv2d(below, w, state["h.bias"]["w"]))
    residual = F.conv2d(below - F.conv_transpose2d(h, w), w)
    assert found["x->h"] == pytest.approx(float(residual.square().sum()))
    assert set(found) == {"x->h", "flat->y"}
    program, state, x, y = drawn(recurrent([2, 3, 2], 3), Backprop())
    w = state["h1->h1"]["w"]
    ticks = ["h1@0", "h1@1", "h1"]
    h = [recorded(program, state, x, y, {tick: "y"})[tick] for tick in ticks]
    expected = sum(float((a @ w.T - b @ w @ w.T).square().sum()) for a, b in pairwise(h))
    assert probes.orthonormality(program, state, x, y)["h1->h1"] == pytest.approx(expected)


# -- updates ------------------------------------------------------------------------------------------------------


def test_norms_of_updates():
    program, state = linear([[2.0, 0.0]], [[0.0, 3.0]], lr=0.5)
    x, t = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.zeros(2, 1)
    e = x @ state["h->y"]["w"].T  # 2 and 6
    change = 0.5 * (e * x).mean(0).norm()
    found = probes.update_norms(program, state, x, t)
    assert found["h->y"] == pytest.approx(float(change))
    assert probes.update_norms(program, state, x, t, relative=True)["h->y"] == pytest.approx(float(change) / 2.0)
    assert probes.update_norms(program, state, x, t, channel="b") == {"x->h": 0.0, "h->y": 0.0}


def test_a_gradient_has_a_symmetric_jacobian_the_hessian():
    program, state, x, y = drawn(mlp([3, 4, 2]), Backprop(lr=0.1))
    found = probes.asymmetry(program, state, x, y)
    assert found.share < 1e-14
    assert found.matrix.shape == (4 * 3 + 4 + 2 * 4 + 2,) * 2
    assert found.places["x->h1"].stop - found.places["x->h1"].start == 12
    assert probes.asymmetry(program, state, x, y, nodes=["h1->y"]).matrix.shape == (8, 8)


def test_random_feedback_is_no_gradient():
    """x -> h -> y, one each: dU_1/dw_2 = -b x h, dU_2/dw_1 = -(e + w_2 h) x, both times the rate."""
    program, state = linear([[0.7]], [[-0.4]], lr=0.5)
    state["x->h"]["w"] = torch.tensor([1.3])
    x, t = torch.tensor([[2.0]]), torch.tensor([[0.9]])
    h = 1.3 * 2.0
    e = 0.7 * h - 0.9
    first, second = 0.5 * -0.4 * 2.0 * h, 0.5 * (e + 0.7 * h) * 2.0
    own = (0.5 * -0.4 * 2.0 * 0.7 * 2.0, 0.5 * h * h)  # on the diagonal
    found = probes.asymmetry(program, state, x, t)
    torch.testing.assert_close(found.matrix, abs(first - second) * (1.0 - torch.eye(2)))
    whole = math.sqrt(first**2 + second**2 + own[0] ** 2 + own[1] ** 2)
    assert found.share == pytest.approx(abs(first - second) * math.sqrt(2.0) / (2.0 * whole))


class Turning(Weight):
    """Adds a (b'w) + sign b (a'w) to the weights of a connection: with sign -1 it turns them."""

    a, b = mg.slow(frozen=True), mg.slow(frozen=True)

    def __init__(self, sign):
        super().__init__()
        self.sign = sign

    def learn_update(self, s):
        return s.set(w=s.w + s.a * s.population(s.b * s.w) + self.sign * s.b * s.population(s.a * s.w))


@pytest.mark.parametrize(("sign", "share"), [(-1.0, 1.0), (1.0, 0.0)])
def test_jacobians_that_are_all_symmetric_or_not_at_all(sign, share):
    program, state, x, y = drawn(mlp([3, 2], bias=False), Backprop(weight=Turning(sign)))
    found = probes.asymmetry(program, state, x, y)
    assert found.share == pytest.approx(share, abs=1e-15)
    a, b = (state["x->y"][c].flatten() for c in "ab")
    expected = torch.outer(a, b) + sign * torch.outer(b, a)
    torch.testing.assert_close(found.matrix, (expected - expected.T).abs())


def test_asymmetry_of_rules_with_noise_and_phases():
    class Turns(Backprop):
        phases = {"rest": ("forward",), "learn": Backprop.passes}  # noqa: RUF012

    program, state, x, y = drawn(mlp([3, 2]), Turns())
    state["program"]["step"] = torch.tensor(0)
    assert not probes.asymmetry(program, state, x, y).matrix.any()
    assert probes.update_norms(program, state, x, y)["x->y"] == 0.0
    assert probes.update_norms(program, state, x, y, phase="learn")["x->y"] > 0.0
    program, state, x, y = drawn(mlp([3, 3, 2]), NodePerturbation())
    state["program"]["seed"], state["program"]["step"] = torch.tensor(1), torch.tensor(0)
    assert probes.asymmetry(program, state, x, y).share > 0.0


# -- units --------------------------------------------------------------------------------------------------------


def test_dead_units_are_counted():
    program, state, x, y = drawn(mlp([3, 4, 2], "relu"), Backprop(), size=50)
    bias = state["h1.bias"]["w"] = torch.tensor([-1e3, 0.0, -1e3, -1e3])
    assert probes.dead_units(program, state, x, y) == {"h1": 0.75, "y": 0.0}
    state["h1.bias"]["w"] = bias + 1e3 * torch.tensor([1.0, -1.0, 1.0, 1.0])
    assert probes.dead_units(program, state, x, y)["h1"] == 0.25
    assert probes.dead_units(program, state, x, y, tolerance=1e9) == {"h1": 1.0, "y": 1.0}
    saturated, state, x, y = drawn(mlp([3, 4, 2], "tanh"), Backprop(), size=50)
    state["h1.bias"]["w"] = torch.tensor([1e3, -1e3, 0.0, 1e3])
    assert probes.dead_units(saturated, state, x, y)["h1"] == 0.75
    with pytest.raises(mg.InputError, match="at least two examples"):
        probes.dead_units(program, state, {"x": x["x"][:1]}, y[:1])


# -- probes read --------------------------------------------------------------------------------------------------


def digits_like():
    generator = torch.Generator().manual_seed(5)
    x, y = torch.randn(60, 6, generator=generator), torch.randint(0, 3, (60,), generator=generator)
    return Dataset("numbers", x[:40], y[:40], x[40:], y[40:], classes=3)


def everything(program, state, x, y):
    """Every probe there is, as measures to follow."""
    found = {
        "error angle": lambda s: probes.angles(program, s, x, y),
        "angle of examples": lambda s: probes.angles_by_example(program, s, x, y),
        "update": lambda s: probes.update_norms(program, s, x, y),
        "dead": lambda s: probes.dead_units(program, s, x, y),
        "orthonormality": lambda s: probes.orthonormality(program, s, x, y),
        "asymmetry": lambda s: {"all": probes.asymmetry(program, s, x, y).share},
    }
    if any("b" in channels for channels in state.values()):
        found |= {"weight angle": probes.weight_angles, "norm ratio": probes.norm_ratios}
    return found


@pytest.mark.parametrize(
    "rule",
    [
        FeedbackAlignment(optimizer=mg.Adam(0.01)),
        NodePerturbation(),
        Backprop(optimizer=mg.SGD(0.1, momentum=0.9)),
    ],
    ids=lambda rule: type(rule).__name__,
)
def test_a_run_is_the_same_to_the_bit_with_and_without(rule):
    data = digits_like()
    program = mg.compile(mlp([6, 5, 3]), rule)
    alone = experiments.train(program, data, epochs=2, batch=8, seed=3)
    follow = probes.Follow(everything(program, program.init(), data.test_x, data.test_y))
    seen = torch.get_rng_state()
    watched = experiments.train(program, data, epochs=2, batch=8, seed=3, follow=follow)
    assert torch.equal(seen, torch.get_rng_state())
    assert distance(alone[0], watched[0]) == 0.0
    assert alone[1:] == watched[1:]
    assert follow.steps == [0, 1, 2]
    assert all(len(numbers) == 3 for lines in follow.history.values() for numbers in lines.values())


def test_a_state_that_is_measured_stays_as_it_is():
    program, state, x, y = drawn(mlp([3, 4, 2]), FeedbackAlignment())
    before = {n: {c: t.clone() for c, t in k.items()} for n, k in state.items()}
    for measure in everything(program, state, x, y).values():
        measure(state)
    assert distance(before, state) == 0.0
    assert not any(t.requires_grad for k in state.values() for t in k.values())


def test_followed_measures_are_those_of_each_state_and_are_drawn(tmp_path):
    data = digits_like()
    program = mg.compile(mlp([6, 5, 3]), FeedbackAlignment())
    kept = []
    follow = probes.Follow({"weight angle": probes.weight_angles, "dead": lambda s: kept.append(s) or {}}, every=2)
    experiments.train(program, data, epochs=4, batch=8, follow=follow)
    assert follow.steps == [0, 2, 4]
    expected = [probes.weight_angles(state)["x->h1"] for state in kept]
    assert follow.history["weight angle"]["x->h1"] == expected
    assert len(set(expected)) == 3
    plots.followed(follow, tmp_path / "angles.png", "random feedback")
    assert (tmp_path / "angles.png").stat().st_size > 5000
    with pytest.raises(mg.InputError, match="every=0"):
        probes.Follow({}, every=0)


# -- any rule, and mistakes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", mg.list_protocols())
def test_every_rule_can_be_measured_or_says_what_it_lacks(name):
    program = mg.compile(mlp([3, 4, 2]), lookup("mpgraph.protocols", name)())
    state = program.init(batch_size=5)
    x, y = torch.randn(5, 3), torch.tensor([0, 1, 1, 0, 1])
    measured = 0
    for measure in everything(program, state, x, y).values():
        try:
            found = measure(state)
        except mg.ProtocolError as error:
            words = ("allowed are", "the channels of this state are", "its passes are")
            assert any(one in str(error) for one in words)  # noqa: PT017
        else:
            measured += 1
            assert found
            assert not any(torch.isinf(torch.as_tensor(value)).any() for value in found.values())
    assert measured


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda p, s, x, y: probes.angles(p, s, x, y, error="eror"), r"no unit.*'eror'.*allowed are e, y, z"),
        (lambda p, s, x, y: probes.angles(p, s, x, y, nodes=["h2"]), r"unknown node 'h2'.*h1"),
        (lambda p, s, x, y: probes.angles(p, s, x, y, nodes=["x->h1"]), r"'x->h1' receives no summed.*h1, y"),
        (lambda p, s, x, y: probes.angles(p, s, x, y, against={"b": "v"}), r"keeps 'b' and 'v'.*are w, b"),
        (lambda p, s, x, y: probes.weight_angles(s, partner="v"), r"keeps 'w' and 'v'.*are w, b"),
        (lambda p, s, x, y: probes.update_norms(p, s, x, y, channel="v"), r"keeps 'v'.*are w, b"),
        (lambda p, s, x, y: probes.asymmetry(p, s, x, y, nodes=["h1"]), r"unknown node 'h1'.*h1\.bias"),
        (lambda p, s, x, y: probes.dead_units(p, s, x, y, activity="rate"), r"'rate'.*allowed are e, y, z"),
        (lambda p, s, x, y: probes.orthonormality(p, s, x, y, activity="rate"), r"'x->h1'|'h1' has no.*'rate'"),
        (lambda p, s, x, y: probes.orthonormality(p, s, x, y, weight="v"), r"keeps 'v'"),
    ],
)
def test_mistakes_name_what_there_is(call, words):
    with pytest.raises(mg.ProtocolError, match=words):
        call(*drawn(mlp([3, 4, 2]), FeedbackAlignment()))


class Forgetful(mg.UnitAgent):
    """Has a place for an error and never writes to it."""

    other = mg.fast()


def test_a_channel_that_nothing_is_written_to():
    with pytest.raises(mg.ProtocolError, match=r"'other' is read before it is written.* z, y, e, other"):
        probes.angles(*drawn(mlp([3, 4, 2]), FeedbackAlignment(unit=Forgetful())), error="other")


def test_too_large_and_without_a_loss():
    program, state, x, y = drawn(mlp([3, 4, 2]), Backprop())
    with pytest.raises(mg.InputError, match=r"26 weights.*limit is 10.*nodes=\['x->h1'\]"):
        probes.asymmetry(program, state, x, y, limit=10)
    program = mg.compile(mlp([3, 2], loss=None), Forward())
    with pytest.raises(mg.ProtocolError, match="no loss"):
        probes.gradients(program, program.init(), torch.randn(2, 3))


class Forward(mg.Protocol):
    """Runs and learns nothing."""

    passes = ("forward",)

    def __init__(self):
        super().__init__(weight=Weight())


# -- updates beside the gradient ----------------------------------------------------------------------------------


def test_updates_of_backprop_are_the_learning_rate_times_the_gradient():
    for network in (mlp([4, 5, 3]), recurrent([4, 5, 3], ticks=3)):
        program, state, x, y = drawn(network, Backprop(lr=0.3))
        found = probes.updates(program, state, x, y)
        assert {"all", "y.bias"} <= found.keys()
        for name, row in found.items():
            assert row.angle < 1e-5, name
            assert row.ratio == pytest.approx(0.3, rel=1e-9), name


def test_weight_gradients_and_angles_are_those_of_plain_torch():
    program, state, given, y = drawn(mlp([4, 5, 3]), FeedbackAlignment(lr=0.1))
    x = given["x"]
    names = ("x->h1", "h1.bias", "h1->y", "y.bias")
    w1, b1, w2, b2 = (state[name]["w"].clone().requires_grad_() for name in names)
    h = torch.tanh(x @ w1.T + b1)
    logits = h @ w2.T + b2
    true = torch.autograd.grad(F.cross_entropy(logits, y), (w1, b1, w2, b2))
    found = probes.weight_gradients(program, state, x, y)
    assert found.keys() == set(names)
    for name, gradient in zip(names, true, strict=True):
        torch.testing.assert_close(found[name], gradient)
    error = (logits.softmax(1) - F.one_hot(y, 3)) / 6.0
    hidden = (error @ state["h1->y"]["b"]) * (1.0 - h**2)  # through fixed feedback
    update = (-0.1 * hidden.T @ x).detach()
    cosine = float(-(update * true[0]).sum() / (update.norm() * true[0].norm()))
    row = probes.updates(program, state, x, y)["x->h1"]
    assert row.angle == pytest.approx(math.degrees(math.acos(cosine)))
    assert row.ratio == pytest.approx(float(update.norm() / true[0].norm()))


def test_silent_units_are_those_that_send_zero():
    program = mg.compile(mlp([2, 4, 1], "relu", "l2"), Backprop())
    state = program.init()
    state["x->h1"]["w"] = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    x = torch.tensor([[1.0, 2.0], [3.0, 1.0], [1.0, -1.0]])  # relu passes the signs: each example leaves two of four
    found = probes.silent_units(program, state, x, torch.zeros(3, 1))
    assert found["h1"] == 0.5
    assert probes.silent_units(program, state, x[:1], torch.zeros(1, 1), tolerance=1.0)["h1"] == 0.75
