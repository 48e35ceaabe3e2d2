"""The compiled program means what the interpreter does, and backprop is what autograd computes."""

import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference import (
    ACTIVATIONS,
    LOSSES,
    autograd_steps,
    batch,
    distance,
    forward,
    largest,
    networks,
    randomised,
    weights_of,
)

import mpgraph as mg
from mpgraph.architectures import mlp
from mpgraph.interpreter import interpreter
from mpgraph.protocols import Backprop, FeedbackAlignment

SMOOTH = tuple(name for name in ACTIVATIONS if name != "step")


def compiled(network, protocol, dtype=torch.float64):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", mg.FlatUnitWarning)
        return mg.compile(network, protocol, dtype=dtype)


@given(
    networks((*ACTIVATIONS, "sin")),
    st.sampled_from([Backprop, FeedbackAlignment]),
    st.integers(1, 3),
    st.integers(0, 99),
)
def test_compiled_equals_interpreter(network, rule, size, seed):
    generator = torch.Generator().manual_seed(seed)
    program = compiled(network, rule(lr=0.3))
    state = randomised(program.init(), generator)
    x, targets = batch(network, size, generator)
    after, out = program.step(state, x if len(x) > 1 else x["x0"], targets)
    meaning, predictions = interpreter.step(program, state, x, targets)
    assert distance(after, meaning) < 1e-10
    found = out.prediction if isinstance(out.prediction, dict) else dict.fromkeys(predictions, out.prediction)
    assert all((found[n] - p).abs().max() < 1e-10 for n, p in predictions.items())


@pytest.mark.parametrize("rule", [Backprop, FeedbackAlignment])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("activation", [*ACTIVATIONS, mg.Softplus(3.0), torch.sin])
def test_every_unit_and_loss_in_the_interpreter(activation, loss, rule):
    generator = torch.Generator().manual_seed(0)
    network = mlp([3, 4, 2], activation, loss)
    program = compiled(network, rule(surrogate="tanh"))
    state = randomised(program.init(), generator)
    x, targets = batch(network, 3, generator)
    after, _ = program.step(state, x, targets)
    assert distance(after, interpreter.step(program, state, x, targets)[0]) < 1e-10


@given(networks((*SMOOTH, "sin")), st.integers(0, 99))
def test_backprop_is_autograd_on_random_graphs(network, seed):
    generator = torch.Generator().manual_seed(seed)
    program = compiled(network, Backprop(lr=0.05))
    state = randomised(program.init(), generator)
    batches = [batch(network, 4, generator) for _ in range(5)]
    expected = autograd_steps(network, weights_of(state), batches, 0.05)
    for x, targets in batches:
        state, _ = program.step(state, x, targets)
    for name, weight in weights_of(state).items():  # linear units may let weights grow: relative beyond one
        torch.testing.assert_close(weight, expected[name], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("activation", SMOOTH)
def test_backprop_is_autograd_on_mlps(activation, loss, dtype, tolerance):
    generator = torch.Generator().manual_seed(1)
    network = mlp([5, 7, 6, 3], activation, loss)
    program = compiled(network, Backprop(lr=0.1), dtype)
    state = program.init(3)
    batches = [batch(network, 8, generator) for _ in range(5)]
    batches = [({k: v.to(dtype) for k, v in x.items()}, {k: v.to(dtype) for k, v in t.items()}) for x, t in batches]
    expected = autograd_steps(network, weights_of(state), batches, 0.1)
    for x, targets in batches:
        before = forward(network, weights_of(state), x)["y"]
        state, out = program.step(state, x, targets)
        torch.testing.assert_close(out.prediction, before)
        torch.testing.assert_close(out.loss, LOSSES[loss](before, targets["y"]))
    assert largest(w - expected[k] for k, w in weights_of(state).items()) < tolerance


@pytest.mark.parametrize("size", [1, 2, 7])
def test_labels_are_one_hot_targets(size):
    generator = torch.Generator().manual_seed(0)
    program = compiled(mlp([4, 5, 3]), Backprop())
    state = program.init()
    x = torch.randn(size, 4, generator=generator, dtype=torch.float64)
    y = torch.randint(0, 3, (size,), generator=generator)
    one, out = program.step(state, x, y)
    two, _ = program.step(state, x, torch.nn.functional.one_hot(y, 3).double())
    assert distance(one, two) == 0.0
    torch.testing.assert_close(out.loss, torch.nn.functional.cross_entropy(out.prediction, y))


def test_units_with_several_axes():
    """A unit may have a shape: it is the flat unit with its agents renumbered."""
    generator = torch.Generator().manual_seed(0)
    grid, flat = mg.Network(), mg.Network()
    for network, size in ((grid, (2, 3)), (flat, 6)):
        network.input("x", 4), network.unit("h", size, "tanh"), network.unit("y", size, "tanh")
        network.connect("x", "h"), network.connect("h", "y"), network.loss("y", "l2")
    one, two = compiled(grid, Backprop()), compiled(flat, Backprop())
    state = randomised(two.init(), generator)
    shapes = {n: {c: t.shape for c, t in channels.items()} for n, channels in one.init().items()}
    folded = {n: {c: t.reshape(shapes[n][c]) for c, t in channels.items()} for n, channels in state.items()}
    x = torch.randn(5, 4, generator=generator, dtype=torch.float64)
    t = torch.randn(5, 6, generator=generator, dtype=torch.float64)
    after, _ = one.step(folded, x, t.reshape(5, 2, 3))
    expected, _ = two.step(state, x, t)
    for name, channels in expected.items():
        for channel, tensor in channels.items():
            torch.testing.assert_close(after[name][channel].reshape(tensor.shape), tensor, rtol=0, atol=1e-12)


def test_predict_is_the_forward_pass_at_any_batch_size_and_leaves_the_state():
    program = compiled(mlp([4, 5, 3]), Backprop())
    state = program.init(2)
    copies = {n: {c: t.clone() for c, t in channels.items()} for n, channels in state.items()}
    for size in (1, 9):
        x = torch.randn(size, 4, dtype=torch.float64)
        expected = forward(program.graph.network, weights_of(state), {"x": x})["y"]
        torch.testing.assert_close(program.predict(state, x), expected)
    assert distance(state, copies) == 0.0
