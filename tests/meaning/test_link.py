"""The softmax or sigmoid of a loss of logits as an agent of its own: the mathematics stays the same."""

import pytest
import torch
from reference import batch, distance, randomised, weights_of
from torch.nn import functional as F

import mpgraph as mg
from mpgraph.architectures import mlp
from mpgraph.interpreter import interpreter
from mpgraph.protocols import Backprop


class Apart(Backprop):
    link = "between"


@pytest.mark.parametrize("loss", ["cross_entropy", "sigmoid_cross_entropy", "l2"])
def test_backprop_through_the_link_is_backprop(loss):
    generator = torch.Generator().manual_seed(0)
    network = mlp([3, 4, 3], "tanh", loss)
    whole, parts = (mg.compile(network, rule, dtype=torch.float64) for rule in (Backprop(lr=0.5), Apart(lr=0.5)))
    state = randomised(whole.init(), generator)
    x, targets = batch(network, 5, generator)
    expected, before = whole.step(state, x, targets)
    after, out = parts.step(state, x, targets)
    assert distance(after, expected) < 1e-12
    torch.testing.assert_close(out.prediction, before.prediction, rtol=0, atol=0)  # logits still
    torch.testing.assert_close(out.loss, before.loss, rtol=0, atol=0)
    assert distance(after, interpreter.step(parts, state, x, targets)[0]) < 1e-12
    assert ("loss.link" in parts.graph.nodes) == (loss != "l2")


def test_the_link_is_the_softmax_and_the_loss_hears_probabilities():
    program = mg.compile(mlp([3, 4, 3]), Apart(), dtype=torch.float64)
    state = randomised(program.init(), torch.Generator().manual_seed(1))
    x, y = torch.randn(5, 3, dtype=torch.float64), torch.randint(0, 3, (5,))
    _, out = program.step(state, x, y, record={"loss": ["z", "e"], "loss.link": ["e"]})
    p = torch.softmax(out.prediction, -1)
    torch.testing.assert_close(out.recorded["loss"]["z"], p)
    torch.testing.assert_close(out.recorded["loss"]["e"], -F.one_hot(y, 3) / p)
    torch.testing.assert_close(out.recorded["loss.link"]["e"], p - F.one_hot(y, 3))


def test_softmax_is_an_activation():
    network = mlp([3, 4, 2], "softmax", "l2")
    program = mg.compile(network, Backprop(lr=1.0), dtype=torch.float64)
    state = randomised(program.init(), torch.Generator().manual_seed(2))
    w = {name: t.clone().requires_grad_() for name, t in weights_of(state).items()}
    x, t = torch.randn(6, 3, dtype=torch.float64), torch.randn(6, 2, dtype=torch.float64)
    h = torch.softmax(x @ w["x->h1"].T + w["h1.bias"], -1)
    loss = 0.5 * (h @ w["h1->y"].T + w["y.bias"] - t).pow(2).sum(-1).mean()
    gradients = torch.autograd.grad(loss, list(w.values()))
    after, _ = program.step(state, x, t)
    for (name, tensor), gradient in zip(w.items(), gradients, strict=True):
        torch.testing.assert_close(after[name]["w"], tensor.detach() - gradient)


def test_units_may_not_take_the_links_name():
    with pytest.raises(mg.NetworkError, match=r"\.link"):
        mg.Network().input("loss.link", 3)
