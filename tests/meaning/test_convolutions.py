"""Messages of several numbers along a convolution: one call of torch for all of them, which means the same."""

import pytest
import torch
from graphs import batch
from reference import distance, randomised

import mpgraph as mg
from mpgraph.interpreter import interpreter
from mpgraph.protocols import BLUR, Backprop

UNFOLDED = ("index_select", "index_add")  # what a convolution becomes where no call of torch says the same
KINDS = {
    "plain": mg.Conv2d((2, 1)),
    "padding": mg.Conv2d(2, padding=(1, 0)),
    "stride": mg.Conv2d((1, 2), stride=(2, 1)),
    "dilation": mg.Conv2d((2, 1), dilation=(2, 1), padding=(1, 0)),
    "groups": mg.Conv2d((2, 1), groups=2),
}
GENOMES = {
    "one channel": {},
    "one channel, both ways": {"symmetric": False},
    "a channel for each state": {"k": 3, "single": False, "symmetric": False, "backward": "additive"},
    "standardised, mean": {"single": False, "normalise": True, "batch": "mean"},
}


def made(kind):
    """A convolution between maps of two channels, under a readout; the lower ones see one number."""
    network = mg.Network()
    network.input("x", 1)
    network.unit("a", (2, 3, 2), "tanh", bias=False)
    network.connect("x", "a")
    network.unit("b", KINDS[kind].size((2, 3, 2), 2), "tanh")
    network.connect("a", "b", KINDS[kind])
    network.operation("row", "flatten", "b")
    network.unit("y", 2)
    network.connect("row", "y")
    network.loss("y", "cross_entropy")
    return network


WIDE = "a channel for each state"


@pytest.mark.parametrize(
    ("kind", "genome"),
    [*((kind, WIDE) for kind in KINDS), *(("padding", g) for g in GENOMES if g != WIDE), ("groups", "one channel")],
)
def test_states_share_one_convolution(kind, genome):
    generator = torch.Generator().manual_seed(1)
    rule = BLUR(eta_tilde=-0.1, **GENOMES[genome])
    with torch.no_grad():
        for p in rule.parameters():
            p.add_(0.3 * torch.rand(p.shape, generator=generator))
    network = made(kind)
    program = mg.compile(network, rule, dtype=torch.float64)
    assert not any(word in program.code for word in UNFOLDED)
    state = randomised(program.init(), generator)
    x, y = batch(network, 2)
    after, out = program.step(state, x, y)
    meaning, predictions = interpreter.step(program, state, x, {"y": torch.eye(2, dtype=torch.float64)[y]}, {})
    assert distance(after, meaning) < 1e-10
    torch.testing.assert_close(out.prediction, predictions["y"].to(torch.float64), rtol=1e-10, atol=1e-10)


def test_a_meta_gradient_goes_through_them():
    """By the backward pass that is written for a step, and by autograd of the code as it is."""
    network = made("padding")
    program = mg.compile(network, BLUR(k=3, single=False, symmetric=False), dtype=torch.float64)
    x, y = batch(network, 2)
    found = []
    for keep in (False, True):
        theta = {n: p.detach().clone().requires_grad_() for n, p in program.protocol.named_parameters()}
        state = program.init(0)
        for _ in range(2):
            state, out = program.step(state, x, y, parameters=theta)
        gradient = torch.autograd.grad(out.loss, list(theta.values()), create_graph=keep, allow_unused=True)
        found.append([g for g in gradient if g is not None])
    assert any(float(g.detach().abs().max()) > 1e-6 for g in found[0])
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(one, two.detach(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("kernel", "stride"), [(1, 2), ((1, 1), (3, 1)), ((1, 2), 2)])
def test_places_that_single_ones_skip_are_left_out_before_the_call(kernel, stride):
    """Of images with channels last, as users hand them over; see ``_Convolution.skips`` for what happened."""
    network, connection = mg.Network(), mg.Conv2d(kernel, stride=stride)
    network.input("x", (3, 6, 6)), network.unit("y", connection.size((3, 6, 6), 5), bias=False)
    network.connect("x", "y", connection), network.loss("y", "l2")
    program = mg.compile(network, Backprop(lr=1.0))
    generator, state = torch.Generator().manual_seed(0), program.init(seed=0)
    x = torch.randn(4, 3, 6, 6, generator=generator).to(memory_format=torch.channels_last)
    t = torch.randn(4, *connection.size((3, 6, 6), 5), generator=generator)
    w = state["x->y"]["w"].clone().requires_grad_()
    y = torch.conv2d(x.contiguous(), w, stride=connection.stride)
    (0.5 * ((y - t) ** 2).sum() / 4).backward()
    for _ in range(100):  # a write outside the memory of one call aborts a later one
        after, out = program.step(state, x, t)
    torch.testing.assert_close(out.prediction, y.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(after["x->y"]["w"], (w - w.grad).detach(), rtol=1e-5, atol=1e-5)
