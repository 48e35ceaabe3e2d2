"""Rules with feedback weights: reference vectors, autograd of the losses they descend, and algebra.

The vectors named ``fc_reversal`` are not reproduced: they are of an option of the published code, the mean of
|W'B'x|^2 in place of |B W x|^2, which the paper does not have and which would take two more passes through W.
"""

import inspect
from itertools import pairwise

import numpy as np
import pytest
import torch
from conftest import ROOT
from graphs import GRAPHS, batch
from reference import distance, largest, randomised
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import mpgraph as mg
from mpgraph import data, experiments, probes
from mpgraph.agents.schedules import Cycle, Linear
from mpgraph.architectures import convnet, mlp, recurrent
from mpgraph.interpreter import interpreter
from mpgraph.protocols import (
    ActivationAlignment,
    Alignment,
    Backprop,
    FeedbackAlignment,
    Hebb,
    InformationAlignment,
    KolenPollack,
    NoisyUpdates,
    Oja,
    Plasticity,
    Sanger,
    SignSymmetry,
    SymmetricAlignment,
    WeightMirror,
)
from mpgraph.protocols.alignment.primitives import PRIMITIVES as PRIMITIVES_OF_RULES

FAMILY = (SymmetricAlignment, ActivationAlignment, WeightMirror, InformationAlignment, KolenPollack)


# -- one connection, against the reference vectors ------------------------------------------------------------


@pytest.fixture(scope="module")
def golden():
    path = ROOT.parent / "shared" / "reference" / "golden" / "alignment_primitives.npz"
    if not path.is_file():
        pytest.skip(f"no reference vectors at {path}")
    return {name: torch.from_numpy(array) for name, array in np.load(path).items()}


class Connection:
    """A unit ``x``, which copies what is fed, below a unit ``y``: what one step does to the weights between them."""

    def __init__(self, rule, w, b, x, kind="identity", meeting="dense", **options):
        shape = tuple(x.shape[1:])
        out = len(w) if meeting == "dense" else meeting.size(shape, len(w))
        network = mg.Network()
        network.input("u", shape), network.unit("x", shape, bias=False), network.unit("y", out, kind, bias=False)
        network.connect("u", "x", "identity"), network.connect("x", "y", meeting)
        network.loss("y", "l2")
        self.program = mg.compile(network, rule, dtype=torch.float64)
        state = self.program.init()
        self.state = {**state, "x->y": {**state["x->y"], "w": w.contiguous(), "b": b.contiguous()}}
        self.x, self.options = x, options

    def step(self, error=None, noise=None):
        """One step, with the error that is given sent to y (of an identity unit)."""
        y = self.program.predict(self.state, self.x)
        noise = {**self.program.noise(self.state, len(self.x)), **(noise or {})}
        target = y if error is None else y - error
        return self.program.step(self.state, self.x, target, noise=noise, record={"x": ["e"]})

    def gradient(self, **options):
        """With respect to B, from a step of rate 1."""
        after, _ = self.step(**options)
        return self.state["x->y"]["b"] - after["x->y"]["b"]


def descend(**terms):
    return Alignment(1.0, **terms)


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=0.0, atol=1e-12)


PRIMITIVES = ("decay", "amp", "null", "sparse", "self")
DENSE = {  # variant of the reference: options of the rule, primitives that it has vectors for
    "lin": ({}, PRIMITIVES),
    "reluF": ({"forward": "activation"}, PRIMITIVES),
    "reluFB": ({"forward": "activation", "backward": "activation"}, PRIMITIVES),
    "noise": ({"noise": 1.0}, PRIMITIVES),
    "noise_reluF": ({"noise": 1.0, "forward": "activation"}, PRIMITIVES),
    "bcbackin": ({"backward": "batch_centre"}, ("amp", "sparse")),  # centering what B' projects centres the projection
    "centerin": ({"driving": "centre"}, ("amp", "null", "sparse")),
    "normin": ({"driving": "normalise"}, ("amp", "null", "sparse")),
    "bcfwdout": ({"forward": "batch_centre"}, ("amp", "null")),
    "centerfwdout": ({"forward": "centre"}, ("amp", "null")),
    "normfwdout": ({"forward": "normalise"}, ("amp", "null")),
    "centerbackout": ({"backward": "centre"}, ("amp", "sparse")),
    "normbackout": ({"backward": "normalise"}, ("amp", "sparse")),
    "reconamp": ({}, ("amp",)),  # x' (B W x) is what amp says already
}


@pytest.mark.parametrize(("variant", "primitive"), [(v, p) for v, (_, found) in DENSE.items() for p in found])
def test_primitives_as_the_published_code_has_them(golden, variant, primitive):
    acting = PRIMITIVES_OF_RULES[primitive].options  # what does not act on a primitive is refused
    options = {name: value for name, value in DENSE[variant][0].items() if name in acting}
    rule = descend(scaling="code", **options, **{primitive: 1.0})
    at = Connection(rule, golden["fc_W"], golden["fc_B"].T, golden["fc_x"], kind="relu")
    noise = {"x.drive.0": golden["fc_noise"]} if "noise" in options else {}
    close(at.gradient(noise=noise).T, golden[f"code_fc_{variant}_{primitive}_dB"])


@pytest.mark.parametrize("primitive", PRIMITIVES)
@pytest.mark.parametrize("how", ["sum", "mean"])
@pytest.mark.parametrize("kind", ["lin", "relu"])
def test_primitives_as_the_paper_has_them(golden, kind, how, primitive):
    options = {"batch": how, "forward": "activation" if kind == "relu" else ()}
    acting = {name: value for name, value in options.items() if name in PRIMITIVES_OF_RULES[primitive].options}
    rule = descend(**acting, **{primitive: 1.0})
    at = Connection(rule, golden["fc_W"], golden["fc_B"].T, golden["fc_x"], kind="relu")
    close(at.gradient().T, golden[f"paper_{kind}_{how}_{primitive}"])


CONVOLUTIONS = {"s1same": mg.Conv2d(3, padding=1), "s2valid": mg.Conv2d(3, stride=2)}


def channels_first(kernel):
    """A kernel of (height, width, in, out) as (out, in, height, width)."""
    return kernel.permute(3, 2, 0, 1)


@pytest.mark.parametrize("primitive", PRIMITIVES)
@pytest.mark.parametrize("forward", ["", "activation"])
@pytest.mark.parametrize("variant", CONVOLUTIONS)
def test_primitives_of_a_convolution(golden, variant, forward, primitive):
    x, w, b = golden["conv_x"].permute(0, 3, 1, 2), *map(channels_first, (golden["conv_W"], golden["conv_B"]))
    options = {"forward": forward or (), "places": "sum"}
    acting = {name: value for name, value in options.items() if name in PRIMITIVES_OF_RULES[primitive].options}
    rule = descend(scaling="code", **acting, **{primitive: 1.0})
    at = Connection(rule, w, b, x, "relu", CONVOLUTIONS[variant])
    name = f"code_conv_{variant}{'_reluF' * bool(forward)}_{primitive}_dB"
    close(at.gradient(), channels_first(golden[name]))


PUBLISHED = {  # the published code's default coefficients
    "SA": {"decay": 1e-3, "self": 2e-3},
    "AA": {"sparse": 1e-3, "amp": 2e-3},
    "WM": {"decay": 1e-3, "amp": 1e-3},
    "WM_noise": {"decay": 1e-3, "amp": 1e-3, "noise": 1.0},
    "IA": {"amp": 2e-3, "null": 1e-3, "decay": 1e-3},
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_rules_are_sums_of_primitives(golden, name):
    at = Connection(descend(scaling="code", **PUBLISHED[name]), golden["fc_W"], golden["fc_B"].T, golden["fc_x"])
    noise = {"x.drive.0": golden["fc_noise"]} if name == "WM_noise" else {}
    close(at.gradient(noise=noise).T, golden[f"rule_{name}_dB"])


def test_kolen_pollack_and_the_backward_pass(golden):
    rule = KolenPollack(1.0, decay=2e-3, forward_decay=0.0)  # the published code's 1e-3 counts twice
    at = Connection(rule, golden["fc_W"], golden["fc_B"].T, golden["fc_x"])
    after, out = at.step(error=golden["fc_dy"])
    w, b = (at.state["x->y"][c] - after["x->y"][c] for c in "wb")
    close(w * 3, golden["bwd_dW"])  # the vector sums over the three examples
    close((b - 2e-3 * at.state["x->y"]["b"]).T * 3, golden["kp_dB_taskpart"])
    close(golden["kp_dB_alpha1e-3"] - golden["kp_dB_taskpart"], (b - w).T)
    close(out.recorded["x"]["e"], golden["bwd_dx_pseudo"])


@pytest.mark.parametrize("variant", CONVOLUTIONS)
def test_the_backward_pass_of_a_convolution(golden, variant):
    x, w, b = golden["conv_x"].permute(0, 3, 1, 2), *map(channels_first, (golden["conv_W"], golden["conv_B"]))
    at = Connection(descend(), w, b, x, "identity", CONVOLUTIONS[variant])
    after, out = at.step(error=golden[f"conv_{variant}_dy"].permute(0, 3, 1, 2))
    close((w - after["x->y"]["w"]) * 2, channels_first(golden[f"conv_{variant}_dW"]))
    close(out.recorded["x"]["e"].permute(0, 2, 3, 1), golden[f"conv_{variant}_dx_pseudo"])


OPTIMIZERS = {
    "sgd_B_SA_lr0.1": lambda: mg.SGD(0.1),
    "adam_torch_B_SA_lr1e-3": lambda: mg.Adam(1e-3),
    "noisy_sgd_B_SA_lr0.1_sigma0.01": lambda: NoisyUpdates(mg.SGD(0.1), 0.01),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimisers_of_the_feedback_weights(golden, name):
    rule = descend(scaling="code", feedback_optimizer=OPTIMIZERS[name](), **PUBLISHED["SA"])
    at = Connection(rule, golden["fc_W"], golden["fc_B"].T, golden["fc_x"])
    after, _ = at.step(noise=dict.fromkeys(at.program.noise(at.state, 3), golden["noise_xi"].T))
    close(after["x->y"]["b"].T, golden[name])
    assert torch.equal(after["x->y"]["w"], at.state["x->y"]["w"])  # the error was zero


# -- autograd of the losses that primitives descend ---------------------------------------------------------------


def spread(v):
    return tuple(range(1, v.ndim))


def centred(v):
    return v - v.mean(spread(v), keepdim=True)


def normalised(v):
    return centred(v) / centred(v).pow(2).sum(spread(v), keepdim=True).sqrt()


OPERATIONS = {
    "centre": centred,
    "normalise": normalised,
    "batch_centre": lambda v: v - v.mean(0),
    "activation": torch.tanh,
}


def through(names, v):
    for name in names:
        v = OPERATIONS[name](v)
    return v


def loss_of(b, w, x, product, back, driving, forward, backward, terms):
    """What a rule descends for one connection, for an average over the batch."""
    x = through(driving, x)
    y, q = through(forward, product(x, w)), through(backward, product(x, b))
    over_reconstruction = [n for n in forward if n in ("centre", "normalise")]
    bare = through([n for n in forward if n not in over_reconstruction], product(x, w))
    r = through(over_reconstruction, back(bare, b))
    primitives = {
        "decay": b.pow(2).sum() / 2,
        "amp": -(q * y).sum() / len(x),
        "null": r.pow(2).sum() / 2 / len(x),
        "sparse": q.pow(2).sum() / 2 / len(x),
        "self": -(w * b).sum(),
    }
    return sum(c * primitives[name] for name, c in terms.items())


MEETINGS = {
    "dense": ((5,), 4, "dense", F.linear, lambda y, b: y @ b),
    "convolution": ((2, 5, 4), 3, mg.Conv2d(3, padding=1),
                    lambda x, w: F.conv2d(x, w, padding=1), lambda y, b: F.conv_transpose2d(y, b, padding=1)),
}  # fmt: skip


@pytest.mark.parametrize("meeting", MEETINGS)
@pytest.mark.parametrize(
    ("driving", "forward", "backward"),
    [
        ((), (), ()),
        (("batch_centre",), ("centre",), ("centre",)),
        (("normalise",), ("activation", "normalise"), ("batch_centre", "normalise")),
        (("centre", "batch_centre"), ("batch_centre",), ("activation", "centre")),
    ],
)
def test_all_primitives_with_operations_descend_their_loss(meeting, driving, forward, backward):
    shape, out, drawn, product, back = MEETINGS[meeting]
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(6, *shape, generator=generator, dtype=torch.float64)
    size = (out, shape[0], *((3, 3) if meeting == "convolution" else ()))
    w, b = (torch.randn(size, generator=generator, dtype=torch.float64) / 3 for _ in range(2))
    terms = {"decay": 0.3, "amp": 0.7, "null": 0.4, "sparse": 0.2, "self": 0.6}
    options = {"driving": driving, "forward": forward, "backward": backward, "places": "sum"}
    found = Connection(descend(**options, **terms), w, b, x, "tanh", drawn).gradient()
    leaf = b.clone().requires_grad_()
    loss = loss_of(leaf, w, x, product, back, driving, forward, backward, terms)
    close(found, torch.autograd.grad(loss, leaf)[0])


def test_information_alignment_is_a_regularised_linear_autoencoder():
    w, b, x = random_connection()
    found = Connection(descend(amp=0.4, null=0.4, decay=0.3), w, b, x).gradient()
    leaf = b.clone().requires_grad_()
    decay = 0.3 / 0.4
    loss = (x - (x @ w.T) @ leaf).pow(2).sum() / 2 / len(x) + decay / 2 * (w.pow(2).sum() + leaf.pow(2).sum())
    close(found, 0.4 * torch.autograd.grad(loss, leaf)[0])


@pytest.mark.parametrize(("terms", "name"), [({"decay": 1.0, "self": 1.0}, "SA"), ({"sparse": 1.0, "amp": 1.0}, "AA")])
def test_symmetric_and_activation_alignment_descend_a_distance(terms, name):
    w, b, x = random_connection()
    found = Connection(descend(**terms), w, b, x).gradient()
    leaf = b.clone().requires_grad_()
    difference = w - leaf if name == "SA" else (x @ w.T - x @ leaf.T) / len(x) ** 0.5
    close(found, torch.autograd.grad(difference.pow(2).sum() / 2, leaf)[0])


def random_connection(examples=7):
    generator = torch.Generator().manual_seed(1)
    sizes = ((4, 5), (4, 5), (examples, 5))
    return [torch.randn(size, generator=generator, dtype=torch.float64) for size in sizes]


# -- synapses that an example uses at several places ---------------------------------------------------------------


@pytest.mark.parametrize("primitive", PRIMITIVES)
def test_primitives_are_averaged_over_places_unless_summed(primitive):
    shape, out, drawn, product, back = MEETINGS["convolution"]
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(6, *shape, generator=generator, dtype=torch.float64)
    w, b = (torch.randn(out, 2, 3, 3, generator=generator, dtype=torch.float64) / 3 for _ in range(2))
    found = Connection(descend(**{primitive: 1.0}), w, b, x, "identity", drawn).gradient()
    leaf = b.clone().requires_grad_()
    places = 1 if primitive in ("decay", "self") else 5 * 4
    loss = loss_of(leaf, w, x, product, back, (), (), (), {primitive: 1.0})
    close(found, torch.autograd.grad(loss, leaf)[0] / places)


SHARED = {
    "lenet": (convnet, (1, 28, 28), 10),
    "convolution": (lambda: convnet((1, 12, 12), (4, 6), (8,), kernel=3), (1, 12, 12), 10),
    "recurrence": (lambda: recurrent([6, 8, 3], 8), (8, 6), 3),
}


def steps_on_noise(rule, graph, steps):
    make, shape, classes = SHARED[graph]
    generator = torch.Generator().manual_seed(0)
    program = mg.compile(make(), rule)
    state = program.init(0)
    for _ in range(steps):
        x = torch.randn(16, *shape, generator=generator)
        state, _ = program.step(state, x, torch.randint(0, classes, (16,), generator=generator))
    return state


@pytest.mark.parametrize("graph", ["lenet", "recurrence"])
@pytest.mark.parametrize("rule", [Hebb, InformationAlignment, Oja, Plasticity, Sanger, WeightMirror])
def test_defaults_stay_finite_where_synapses_are_shared(rule, graph):
    state = steps_on_noise(rule(), graph, 100)
    assert all(torch.isfinite(t).all() for channels in state.values() for t in channels.values())


@pytest.mark.parametrize("graph", ["convolution", "recurrence"])
def test_a_mirror_is_as_large_as_what_it_mirrors_where_synapses_are_shared(graph):
    ratios = probes.norm_ratios(steps_on_noise(WeightMirror(), graph, 100))
    assert ratios
    assert all(0.6 < ratio < 1.7 for ratio in ratios.values()), ratios


# -- where feedback weights go --------------------------------------------------------------------------------


def follow(connection, steps):
    for _ in range(steps):
        connection.state, _ = connection.step()
    return connection.state["x->y"]["b"]


def test_fixed_points():
    w, b, _ = random_connection()
    x = 5**0.5 * torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2)))[0]
    rules = {  # <x x'> = 1, as of noise on average
        SymmetricAlignment(decay=0.3, self=0.3): w,
        SymmetricAlignment(decay=0.4, self=0.2): w / 2,
        ActivationAlignment(0.5, feedback_optimizer=mg.SGD(0.5)): w,
        WeightMirror(amp=0.3, decay=0.6, noise=None): w / 2,
        InformationAlignment(amp=0.06, null=0.03, decay=0.05, noise=None): torch.linalg.solve(
            0.03 * w @ w.T + 0.05 * torch.eye(4, dtype=torch.float64), 0.06 * w
        ),
    }
    for rule, settled in rules.items():
        torch.testing.assert_close(follow(Connection(rule, w, b, x), 600), settled, rtol=0, atol=1e-9)
        close(follow(Connection(rule, w, settled.contiguous(), x), 1), settled)


def test_a_mirror_of_noise_settles_at_the_transpose_on_average():
    w, b, _ = random_connection()
    rule = WeightMirror(amp=0.005, decay=0.02, noise=2.0)
    connection = Connection(rule, w, b, torch.zeros(64, 5, dtype=torch.float64))
    follow(connection, 500)
    mean = sum(follow(connection, 1) for _ in range(500)) / 500  # of about 32 000 examples
    torch.testing.assert_close(mean, w, rtol=0, atol=5 * float(w.norm(dim=1).max()) / 32_000**0.5)


def trained(rule, steps, sizes=(6, 5, 4, 3)):
    """States of a chain before and after each step on random data."""
    generator = torch.Generator().manual_seed(3)
    program = mg.compile(mlp(list(sizes)), rule, dtype=torch.float64)
    states = [program.init()]
    for _ in range(steps):
        x = torch.randn(8, sizes[0], generator=generator, dtype=torch.float64)
        y = torch.randint(0, sizes[-1], (8,), generator=generator)
        states.append(program.step(states[-1], x, y)[0])
    return states


@pytest.mark.parametrize("optimizer", [None, mg.SGD(0.3, momentum=0.5)])
def test_kolen_pollack_forgets_the_difference_at_the_stated_rate(optimizer):
    states = trained(KolenPollack(0.3, decay=0.2, optimizer=optimizer), 12)
    gaps = [state["h1->h2"]["b"] - state["h1->h2"]["w"] for state in states]
    assert (states[0]["h1->h2"]["w"] - states[-1]["h1->h2"]["w"]).abs().max() > 0.01
    if optimizer is None:
        for i, gap in enumerate(gaps):
            close(gap, (1.0 - 0.3 * 0.2) ** i * gaps[0])
    else:  # a heavy ball without a force: v <- v / 2 + decay gap; gap <- gap - lr v
        gap, v = gaps[0], torch.zeros_like(gaps[0])
        for found in gaps[1:]:
            v = 0.5 * v + 0.2 * gap
            gap = gap - 0.3 * v
            close(found, gap)


def test_forward_weights_decay_and_biases_do_not():
    generator = torch.Generator().manual_seed(5)
    x, y = torch.randn(8, 6, generator=generator, dtype=torch.float64), torch.randint(0, 3, (8,), generator=generator)
    programs = [
        mg.compile(mlp([6, 5, 4, 3]), KolenPollack(0.3, decay=0.0, forward_decay=decay), dtype=torch.float64)
        for decay in (0.0, 0.2)
    ]
    state = randomised(programs[0].init(), generator)
    plain, decayed = (program.step(state, x, y)[0] for program in programs)
    for name in ("x->h1", "h1->h2", "h2->y"):
        close(decayed[name]["w"], plain[name]["w"] - 0.3 * 0.2 * state[name]["w"])
    assert all(torch.equal(decayed[f"{unit}.bias"]["w"], plain[f"{unit}.bias"]["w"]) for unit in ("h1", "h2", "y"))


# -- against backprop and feedback alignment -------------------------------------------------------------------


def same_steps(rule, other, prepare, channel="b"):
    """Whether two rules move every ``w`` alike, from states that ``prepare`` makes of the first rule's."""
    generator = torch.Generator().manual_seed(4)
    programs = [mg.compile(mlp([5, 6, 4, 3]), r, dtype=torch.float64) for r in (rule, other)]
    state = prepare(randomised(programs[0].init(), generator))
    x, y = torch.randn(7, 5, generator=generator, dtype=torch.float64), torch.randint(0, 3, (7,), generator=generator)
    kept = {n: set(c) for n, c in programs[1].init().items()}
    plain = {n: {c: t for c, t in channels.items() if c in kept[n]} for n, channels in state.items()}
    plain = {n: {**programs[1].init()[n], **channels} for n, channels in plain.items()}
    after = [p.step(s, x, y)[0] for p, s in zip(programs, (state, plain), strict=True)]
    return largest(after[0][n]["w"] - after[1][n]["w"] for n in after[0] if n != "program")


def symmetric(state):
    return {n: {**c, "b": c["w"]} if "b" in c else c for n, c in state.items()}


@pytest.mark.parametrize("rule", [Alignment, *FAMILY])
def test_with_transposed_weights_the_errors_are_backprops(rule):
    options = {"forward_decay": 0.0}  # else W decays, which backprop's does not
    assert same_steps(rule(0.2, **options), Backprop(0.2), symmetric) < 1e-12
    assert same_steps(rule(0.2, **options), Backprop(0.2), lambda s: s) > 1e-3


def test_without_primitives_it_is_feedback_alignment():
    assert same_steps(Alignment(0.2), FeedbackAlignment(0.2), lambda s: s) < 1e-12


def test_sign_symmetry_is_backprop_where_magnitudes_agree():
    def fixed(state):
        return {n: {**c, "m": c["w"].abs()} if "m" in c else c for n, c in state.items()}

    def uniform(state):
        magnitude = torch.tensor(0.7, dtype=torch.float64)
        return {n: {**c, "m": magnitude, "w": magnitude * c["w"].sign()} if "m" in c else c for n, c in state.items()}

    assert same_steps(SignSymmetry(0.2, magnitudes="fixed"), Backprop(0.2), fixed) < 1e-12
    assert same_steps(SignSymmetry(0.2), Backprop(0.2), uniform) < 1e-12
    assert same_steps(SignSymmetry(0.2), Backprop(0.2), lambda s: s) > 1e-3


def test_magnitudes_are_those_of_weights_and_stay():
    sizes = (300, 200, 100, 10)
    for magnitudes, spread in (("uniform", 0.0), ("fixed", (1 / 3 - 1 / 4) ** 0.5)):
        states = trained(SignSymmetry(0.2, magnitudes=magnitudes), 2, sizes)
        m, w = states[0]["h1->h2"]["m"], states[0]["h1->h2"]["w"]
        torch.testing.assert_close(m.pow(2).mean().sqrt(), w.std(), rtol=0.02, atol=0)
        assert m.var(correction=0).sqrt() == pytest.approx(spread * (6 / 300) ** 0.5, rel=0.02)
        assert torch.equal(states[-1]["h1->h2"]["m"], m)
        assert "m" not in states[0]["x->h1"]  # no error goes back through it


# -- options ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", FAMILY)
def test_alternation_leaves_idle_weights_exactly_still(rule):
    optimizers = {"optimizer": mg.SGD(0.1, momentum=0.9), "feedback_optimizer": mg.Adam(0.01)}
    states = trained(rule(alternate=2, align_first=2, **optimizers), 9)
    for step, (before, after) in enumerate(pairwise(states)):
        moved = {c for n in before for c in before[n] if n != "program" and not torch.equal(before[n][c], after[n][c])}
        aligns = step in (0, 1, 2, 5, 8)
        assert moved == ({"b", *(f"b_{c}" for c in mg.Adam().channels())} if aligns else {"w", "w_momentum"})


@pytest.mark.parametrize("phase", ["align", "task"])
@pytest.mark.parametrize("graph", ["convolution", "recurrence", "tied"])
def test_phases_and_every_option_mean_what_the_interpreter_does(graph, phase):
    network = GRAPHS[graph]()
    rule = Alignment(
        decay=Linear(0.3, 0.1, 4), amp=mg.learnable(0.2), null=0.1, sparse=0.3, self=Cycle(0.1, 0.2, 5), task=0.4,
        noise=0.5, driving=("batch_centre",), forward=("centre",), backward=("centre", "batch_centre"),
        inputs=True, alternate=1, forward_decay=0.1, feedback_optimizer=NoisyUpdates(mg.Adam(0.01), 0.1),
    )  # fmt: skip
    program = mg.compile(network, rule, dtype=torch.float64)
    state = randomised(program.init(), torch.Generator().manual_seed(0))
    state = {n: {c: t.abs() + 0.5 if "_" in c else t for c, t in k.items()} for n, k in state.items()}
    state["program"]["step"] = torch.tensor(["align", "task"].index(phase))
    x, y = batch(network, 3)
    after, _ = program.step(state, x, y)
    targets = {"y": torch.eye(2, dtype=torch.float64)[y]}
    meaning, _ = interpreter.step(program, state, x, targets, program.noise(state, 3))
    assert distance(after, meaning) < 1e-10
    assert distance(after, state) > 1e-4


def test_coefficients_may_follow_a_schedule_or_be_learned():
    w, b, x = random_connection()
    scheduled = Connection(descend(decay=Linear(0.5, 0.1, 4)), w, b, x)
    for step in range(6):
        before = scheduled.state["x->y"]["b"]
        close(follow(scheduled, 1), before * (1.0 - (0.5 - 0.1 * min(step, 4))))
    coefficient = mg.learnable(0.3)
    learned = Connection(descend(decay=coefficient), w, b, x)
    learned.step()[0]["x->y"]["b"].sum().backward()
    torch.testing.assert_close(coefficient.grad.double(), -b.sum(), rtol=1e-6, atol=0)


def test_noise_drives_primitives_and_nothing_else():
    w, b, x = random_connection()
    one, two = (Connection(WeightMirror(noise=sigma), w, b, x) for sigma in (1.0, 0.1))
    (a, out), (c, other) = one.step(error=x[:, :4]), two.step(error=x[:, :4])
    assert torch.equal(a["x->y"]["w"], c["x->y"]["w"])
    assert torch.equal(out.prediction, other.prediction)
    assert not torch.allclose(a["x->y"]["b"], c["x->y"]["b"])


def test_connections_from_inputs_have_feedback_weights_only_if_asked():
    assert "b" not in trained(InformationAlignment(), 0)[0]["x->h1"]
    states = trained(InformationAlignment(inputs=True), 1)
    assert not torch.equal(states[0]["x->h1"]["b"], states[1]["x->h1"]["b"])
    tied = mg.compile(GRAPHS["tied"](), WeightMirror())  # an error does go back through this one, at its second use
    assert "b" in tied.init()["x->h"]


@pytest.mark.parametrize("rule", [*FAMILY, SignSymmetry])
def test_a_surrogate_teaches_units_without_derivative(rule):
    assert "surrogate" in inspect.signature(rule).parameters  # the command line looks there
    network = mlp([4, 3, 2], activation="step")
    program = mg.compile(network, rule(surrogate="tanh"))
    state = program.init()
    after, _ = program.step(state, torch.randn(5, 4), torch.randint(0, 2, (5,)))
    assert not torch.equal(state["x->h1"]["w"], after["x->h1"]["w"])


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (
            lambda: Alignment(decoy=1.0),
            "Alignment: decoy=1.0 is neither one of its arguments nor an agent.* are lr, .*, decay, amp",
        ),
        (lambda: Alignment(amp=1.0, forward="center"), "forward='center' is not an operation; allowed are centre"),
        (lambda: Alignment(amp=1.0, driving="activation"), "driving='activation' is not an operation"),
        (lambda: Alignment(scaling="tf"), "scaling='tf' must be one of 'paper', 'code'"),
        (lambda: Alignment(batch="max"), "batch='max' must be one of 'mean', 'sum'"),
        (lambda: Alignment(alternate=0), "alternate=0 must be an integer of at least 1"),
        (lambda: Alignment(align_first=3), "align_first=3 must be 0 where steps do not alternate"),
        (lambda: Alignment(amp=1.0, places="max"), "places='max' must be one of 'mean', 'sum'"),
        (lambda: Alignment(alternate=1.5), "alternate=1.5 must be an integer"),
        (lambda: Alignment(alternate=True), "alternate=True must be an integer"),
        (lambda: Alignment(alternate=1, align_first=2.0), "align_first=2.0 must be an integer"),
        (lambda: Alignment(inputs="yes"), "inputs='yes' must be True or False"),
        (
            lambda: Alignment(decay=1.0, feedback_optimizer=0.1),
            "feedback_optimizer=0.1 must be an mg.Optimizer",
        ),
        (lambda: WeightMirror(noise=-1.0), "WeightMirror: noise=-1.0 must be a finite number"),
        (lambda: KolenPollack(noise=1), "KolenPollack: noise=1 acts only on amp, null, sparse, but the primitives"),
        (
            lambda: SymmetricAlignment(driving="centre"),
            "SymmetricAlignment: driving=.'centre',. acts only on amp, null",
        ),
        (lambda: SymmetricAlignment(forward="centre"), "forward=.'centre',. acts only on amp, null, .* decay, self;"),
        (lambda: Alignment(null=1.0, backward="centre"), "backward=.'centre',. acts only on amp, sparse"),
        (lambda: Alignment(batch="sum"), "batch='sum' acts only on amp, null, sparse, .* are none; leave it out"),
        (lambda: KolenPollack(scaling="code"), "scaling='code' would decay B twice as fast as W"),
        (lambda: NoisyUpdates(0.1), "takes an mg.SGD or mg.Adam"),
        (lambda: NoisyUpdates(mg.SGD(0.1), -1.0), "sigma=-1.0 must not be negative"),
        (
            lambda: SignSymmetry(magnitudes="random"),
            "SignSymmetry: magnitudes='random' must be one of 'uniform', 'fixed'",
        ),
    ],
)
def test_mistakes_are_named(make, text):
    with pytest.raises(mg.ProtocolError, match=text):
        make()


def test_repr_shows_what_is_not_as_by_default():
    assert repr(Alignment(0.2, decay=0.5)) == "Alignment(lr=0.2, decay=0.5)"
    assert repr(
        Alignment(
            amp=1.0, scaling="code", batch="sum", places="sum", driving="centre", forward="activation",
            backward=("centre", "batch_centre"), inputs=True, alternate=2, align_first=3, noise=0.5, forward_decay=0.1,
        )
    ) == (
        "Alignment(lr=0.1, amp=1, forward_decay=0.1, scaling='code', batch='sum', places='sum', noise=0.5, "
        "driving=('centre',), forward=('activation',), backward=('centre', 'batch_centre'), alternate=2, "
        "align_first=3, inputs=True)"
    )  # fmt: skip


# -- that it works, and what it costs --------------------------------------------------------------------------


def test_feedback_weights_find_the_forward_weights_with_the_defaults():
    digits = data.load("digits", seed=0).flat()
    bounds = dict(zip(FAMILY, (5.0, 5.0, 20.0, 40.0, 25.0), strict=True))
    for rule, bound in bounds.items():
        program = mg.compile(mlp([64, 32, 10]), rule())
        state, curve, _ = experiments.train(program, digits, epochs=20, seed=0)
        w, b = (state["h1->y"][c].flatten() for c in "wb")
        angle = torch.rad2deg(torch.acos(torch.dot(w, b) / (w.norm() * b.norm())))
        assert angle <= bound, (rule, float(angle))
        assert curve[-1] >= 0.94, rule


@pytest.mark.parametrize("rule", FAMILY)
def test_no_outer_product_over_the_batch_is_ever_formed(rule):
    program = mg.compile(mlp([11, 7, 5, 3]), rule(inputs=True))
    table = program.explain(batch_size=13)
    shapes = {size for line in table.splitlines() for size in line.split() if size.count("x") >= 2}
    assert not shapes  # a synapse's value for each example would be 13x7x11


def test_what_a_step_costs():
    """Multiplications in those of backprop: hidden feedback weights are small, those of inputs are not."""

    def flops(rule):
        program = mg.compile(mlp([784, 512, 10]), rule)
        state, x, y = program.init(), torch.randn(128, 784), torch.zeros(128, dtype=torch.long)
        with FlopCounterMode(display=False) as counter:
            program.step(state, x, y)
        return counter.get_total_flops()

    backprop = flops(Backprop())
    for rule in (*FAMILY, SignSymmetry):
        assert flops(rule()) < 1.05 * backprop
    assert flops(SymmetricAlignment(inputs=True)) == backprop
    # W x and x y' of the first layer beside its forward product and its gradient, and B W x
    assert flops(WeightMirror(inputs=True)) == pytest.approx(2.0 * backprop, rel=0.01)
    assert flops(InformationAlignment(inputs=True)) == pytest.approx(2.5 * backprop, rel=0.01)


def test_phases_under_transforms_are_named_by_the_caller():
    program = mg.compile(mlp([4, 3, 2]), InformationAlignment(alternate=1), dtype=torch.float64)
    state, x, y = program.init(), torch.randn(5, 4, dtype=torch.float64), torch.randint(0, 2, (5,))
    noise = program.noise(state, 5)
    for phase in ("align", "task"):
        plain, _ = program.step(state, x, y, noise=noise if phase == "align" else None, phase=phase)
        given = {"noise": noise, "phase": phase} if phase == "align" else {"phase": phase}
        stack = {n: {c: torch.stack([t, t]) for c, t in k.items()} for n, k in state.items()}
        mapped, _ = torch.func.vmap(lambda s, given=given: program.step(s, x, y, **given))(stack)
        assert distance(plain, {n: {c: t[1] for c, t in k.items()} for n, k in mapped.items()}) < 1e-12
        compiled = torch.compile(
            lambda s, given=given: program.step(s, x, y, **given)[0], backend="eager", fullgraph=True
        )
        assert distance(plain, compiled(state)) < 1e-12
    with pytest.raises(mg.InputError, match="say which phase a step is: phase='align'"):
        torch.func.vmap(lambda s: program.step(s, x, y)[0])(stack)


def test_noise_is_the_same_in_every_dtype():
    drawn = []
    for dtype in (torch.float32, torch.float64):
        program = mg.compile(mlp([4, 3, 2]), WeightMirror(), dtype=dtype)
        drawn.append(program.noise(program.init(seed=3), 1000)["h1.drive.0"])
    assert torch.equal(drawn[0].double(), drawn[1])
    assert abs(float(drawn[1].mean())) < 5 / 3000**0.5
    assert abs(float(drawn[1].var()) - 1.0) < 5 * (2 / 3000) ** 0.5
