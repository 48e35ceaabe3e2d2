"""BLUR against autograd, the interpreter and its own equations written out."""

import hypothesis
import pytest
import torch
from graphs import GRAPHS, batch
from hypothesis import strategies as st
from reference import autograd_steps, distance, networks, randomised, weights_of
from reference import batch as random_batch
from torch.nn import functional

import mpgraph as mg
from mpgraph import interpreter
from mpgraph.architectures import convnet, mlp
from mpgraph.protocols import BLUR

pytestmark = pytest.mark.filterwarnings("ignore::mpgraph.FlatUnitWarning")
GENERAL = {"initial": "random", "activation": "unit", "backward_activation": "unit", "eta_tilde": -0.05}
WIDE = {**GENERAL, "single": False, "symmetric": False, "backward": "additive", "feedback": "target"}
RULES = {
    "backprop": {},
    "additive": WIDE,
    "three states": {**WIDE, "k": 3, "feedback": "sign", "batch": "mean"},
    "one channel, both ways": {**WIDE, "single": True, "symmetric": True, "backward": "multiplicative"},
    "second, derivative": {**WIDE, "k": 3, "backward": "second", "activation": "derivative"},
    "standardised": {**WIDE, "normalise": True},
    "stored lengths": {**WIDE, "lengths": "stored", "rescale": True},
    "symmetric, stored lengths": {**WIDE, "symmetric": True, "lengths": "stored", "early": True},
    "computing lengths": {**WIDE, "lengths": "computing", "early": True, "early_pre": True},
    "oja, activation": {**WIDE, "oja": "activation", "saturation": "exp"},
    "oja, weights": {**WIDE, "oja": "weights", "single": True, "saturation": "tanh"},
    "oja, whole": {**WIDE, "oja": "whole", "early": True, "layers": ("h*", "*"), "steps": 2},
    "symmetric oja": {**WIDE, "oja": "whole", "symmetric": True, "saturation": torch.tanh},
    "kept states": {**WIDE, "keep_states": True, "input_backward": True},
}


def scattered(rule, seed=3):
    """The rule with random numbers in all of its genome, gates near one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in rule.genome.parameters():
            parameter.add_(0.2 * torch.rand(parameter.shape, generator=generator))
    return rule


# -- backpropagation is one of its genomes --------------------------------------------------------------------


def assert_descends(network, rate=1 / 128, examples=6, steps=3):
    """``BLUR()`` makes the steps of gradient descent on the sum of the loss over the batch."""
    generator = torch.Generator().manual_seed(1)
    program = mg.compile(network, BLUR(eta_tilde=-rate), dtype=torch.float64)
    state = program.init()
    batches = [random_batch(network, examples, generator) for _ in range(steps)]
    wanted = autograd_steps(network, weights_of(state), batches, rate * examples)
    for x, y in batches:
        state, _ = program.step(state, x, y)
    found = weights_of(state)
    assert max(float((found[n].detach() - wanted[n]).abs().max()) for n in wanted) < 1e-12


def test_backprop_genome_is_gradient_descent_on_a_chain():
    assert_descends(mlp([5, 6, 4, 3], activation="tanh"))


@hypothesis.given(networks(activations=("identity", "tanh", "sigmoid", "relu", "softplus")))
def test_backprop_genome_is_gradient_descent_on_random_graphs(network):
    assert_descends(network)


def test_backprop_genome_is_gradient_descent_on_a_convnet():
    network = convnet((1, 8, 8), (2, 3), (5,), 4, kernel=3)
    program = mg.compile(network, BLUR(eta_tilde=-1 / 128), dtype=torch.float64)
    state = program.init()
    w = {n: t.clone().requires_grad_() for n, t in weights_of(state).items()}
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        x, y = torch.randn(6, 1, 8, 8, generator=generator, dtype=torch.float64), torch.arange(6) % 4
        c1 = torch.tanh(functional.conv2d(x, w["x->c1"], w["c1.bias"], padding=1))
        c2 = torch.tanh(functional.conv2d(functional.max_pool2d(c1, 2), w["p1->c2"], w["c2.bias"]))
        h1 = torch.tanh(functional.linear(functional.max_pool2d(c2, 2).flatten(1), w["flat->h1"], w["h1.bias"]))
        loss = functional.cross_entropy(functional.linear(h1, w["h1->y"], w["y.bias"]), y, reduction="sum")
        gradients = torch.autograd.grad(loss, list(w.values()))
        w = {n: (t - g / 128).detach().requires_grad_() for (n, t), g in zip(w.items(), gradients, strict=True)}
        state, _ = program.step(state, x, y)
        found = weights_of(state)
        assert max(float((found[n] - w[n]).detach().abs().max()) for n in w) < 1e-12


@pytest.mark.parametrize("kind", ["residual", "operations", "recurrence", "tied", "sparse", "pieces"])
def test_backprop_genome_is_backprop_elsewhere(kind):
    """Where the small oracles do not reach, the backprop protocol, which is held to autograd elsewhere."""
    network = GRAPHS[kind]()
    x, y = batch(network, 4)
    rules = BLUR(eta_tilde=-1 / 128), mg.make_protocol("backprop", lr=4 / 128)
    programs = [mg.compile(network, rule, dtype=torch.float64) for rule in rules]
    states = [program.init() for program in programs]
    for _ in range(3):
        states = [program.step(state, x, y)[0] for program, state in zip(programs, states, strict=True)]
    found, wanted = map(weights_of, states)
    assert max(float((found[n].detach() - wanted[n]).abs().max()) for n in wanted) < 1e-12


# -- the interpreter ------------------------------------------------------------------------------------------


def assert_meaning(network, rule, x, y, examples):
    program = mg.compile(network, rule, dtype=torch.float64)
    state = randomised(program.init(batch_size=examples), torch.Generator().manual_seed(0))
    state["program"]["step"] = torch.tensor(1)
    after, out = program.step(state, x, y)
    targets = y if isinstance(y, dict) else {"y": torch.eye(2, dtype=torch.float64)[y]}
    meaning, predictions = interpreter.step(program, state, x, targets, {})
    scale = max(1.0, *(float(t.detach().abs().max()) for k in meaning.values() for t in k.values()))
    assert distance(after, meaning) < 1e-10 * scale
    prediction = out.prediction if isinstance(out.prediction, dict) else {network.outputs[0]: out.prediction}
    for name, wanted in predictions.items():
        torch.testing.assert_close(prediction[name], wanted.to(torch.float64), rtol=1e-10, atol=1e-10)


SOME = ["additive", "second, derivative", "symmetric, stored lengths", "computing lengths", "symmetric oja"]


@pytest.mark.parametrize(
    ("rule", "kind"),
    [*((rule, kind) for rule in RULES for kind in ("small convolution", "sparse"))]
    + [(rule, kind) for rule in SOME for kind in ("recurrence", "tied", "pieces")]
    + [("additive", "operations"), ("additive", "residual")],
)
def test_compiled_means_what_the_interpreter_does(rule, kind):
    network = small_convolution() if kind == "small convolution" else GRAPHS[kind]()
    assert_meaning(network, scattered(BLUR(**RULES[rule])), *batch(network, 2), 2)


def small_convolution():
    """A strided and a padded one, an operation, a skip."""
    network = mg.Network()
    network.input("x", (1, 4, 3))
    network.unit("h", (2, 2, 2), "tanh"), network.unit("g", (1, 2, 2), "step")
    network.connect("x", "h", mg.Conv2d(2, stride=(2, 1)))
    network.connect("h", "g", mg.Conv2d((2, 3), padding=1, dilation=(2, 1)))
    network.operation("row", "flatten", "g")
    network.unit("y", 2), network.connect("row", "y"), network.connect("h", "y"), network.loss("y", "cross_entropy")
    return network


@hypothesis.given(networks(), st.sampled_from([o for o in RULES.values() if "layers" not in o]))
def test_compiled_means_what_the_interpreter_does_on_random_graphs(network, options):
    x, y = random_batch(network, 3, torch.Generator().manual_seed(2))
    assert_meaning(network, scattered(BLUR(**options)), x, y, 3)
