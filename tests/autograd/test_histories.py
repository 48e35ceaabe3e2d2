"""Histories: the meta-gradient is that of the plain unroll, and autograd keeps a fraction of what it kept."""

import gc

import pytest
import torch

import mpgraph as mg
from mpgraph.architectures import mlp
from mpgraph.budget import Live
from mpgraph.protocols import MPLP, Backprop, FeedbackAlignment, Plasticity

STEPS = 12


def rules():
    return {
        "backprop": Backprop(lr=mg.learnable(0.05)),
        "momentum": Backprop(optimizer=mg.SGD(mg.learnable(0.05), momentum=mg.learnable(0.6))),
        "adam": Backprop(optimizer=mg.Adam(lr=mg.learnable(0.01))),
        "alignment": FeedbackAlignment(lr=mg.learnable(0.05)),
        "bio": Plasticity(pseudo=mg.learnable(0.02), ehebb=mg.learnable(-0.01), oja=mg.learnable(-0.01)),
    }


class Unrolled:
    """An online unroll of a 160-100-60 network; of several networks by vmap."""

    def __init__(self, rule, networks=0, batch=1, dtype=torch.float64):
        self.program = mg.compile(mlp([160, 100, 60], "tanh", "cross_entropy"), rule, dtype=dtype)
        generator = torch.Generator().manual_seed(0)
        shape = (STEPS, networks, batch) if networks else (STEPS, batch)
        self.x = torch.randn(*shape, 160, generator=generator, dtype=dtype)
        self.y = torch.randint(60, shape, generator=generator)
        self.state = self.program.init(range(networks) if networks else 0)
        self.networks = networks
        self.theta = {n: p.detach().clone().requires_grad_() for n, p in self.program.protocol.named_parameters()}

    def loss(self, change=None):
        def step(state, x, y):
            state, out = self.program.step(state, x, y, parameters=self.theta)
            return state, out.loss

        step = torch.func.vmap(step) if self.networks else step
        state, total = self.state, 0.0
        for t in range(STEPS):
            state, loss = step(state, self.x[t], self.y[t])
            state = change(t, state) if change else state
            total = total + loss.sum()
        return total + self.program.predict(state, self.x[0]).square().mean() if not self.networks else total

    def gradient(self, loss, **options):
        return torch.autograd.grad(loss, list(self.theta.values()), **options)


def close(found, wanted):
    for one, two in zip(found, wanted, strict=True):
        assert bool(two.any())
        assert (one - two).abs().max() <= 1e-12 * two.abs().max()


@pytest.mark.parametrize("name", list(rules()))
@pytest.mark.parametrize(("networks", "batch"), [(0, 1), (3, 1), (0, 4)], ids=["online", "vmap", "batch"])
def test_meta_gradients_are_those_of_the_plain_unroll(name, networks, batch):
    unrolled = Unrolled(rules()[name], networks, batch)
    for _ in range(3):  # a step that is run often has a backward pass of its own
        wanted = unrolled.gradient(unrolled.loss())
        with unrolled.program.histories(every=4):
            loss = unrolled.loss()
        close(unrolled.gradient(loss), wanted)


def test_networks_within_networks():
    unrolled = Unrolled(rules()["bio"])

    def step(state, x, y):
        state, out = unrolled.program.step(state, x, y, parameters=unrolled.theta)
        return state, out.loss

    def total():
        states = mg.stack([unrolled.program.init(range(2)), unrolled.program.init(range(2, 4))])
        losses = 0.0
        for t in range(STEPS - 4):
            x, y = unrolled.x[t : t + 4].unflatten(0, (2, 2)), unrolled.y[t : t + 4].unflatten(0, (2, 2))
            states, loss = torch.func.vmap(torch.func.vmap(step))(states, x, y)
            losses = losses + loss.sum()
        return losses

    wanted = unrolled.gradient(total())
    with unrolled.program.histories(every=3):
        loss = total()
    close(unrolled.gradient(loss), wanted)


@pytest.mark.parametrize("name", ["backprop", "bio", "adam"])
@pytest.mark.parametrize("networks", [0, 2])
def test_autograd_keeps_a_fraction(name, networks):
    unrolled, kept = Unrolled(rules()[name], networks), []
    for every in (None, 4):
        with Live() as live:
            if every is None:
                loss = unrolled.loss()
            else:
                with unrolled.program.histories(every):
                    loss = unrolled.loss()
            kept.append(live.now)
            del loss
    assert kept[1] < 0.45 * kept[0], kept  # a third of the weights, and vectors


def test_what_was_kept_goes_with_the_graph():
    unrolled = Unrolled(rules()["bio"], 2)
    gc.disable()
    try:
        with Live() as live:
            for _ in range(2):
                with unrolled.program.histories(every=4):
                    loss = unrolled.loss()
                assert live.now > 500_000
                gradient = unrolled.gradient(loss)
                del loss
            numbers = sum(g.nbytes for g in gradient)
            assert live.now <= numbers + 64, live.now
    finally:
        gc.enable()


def test_a_graph_may_be_used_again_and_differentiated_again():
    unrolled = Unrolled(rules()["bio"])
    plain = unrolled.loss()
    with unrolled.program.histories(every=4):
        loss = unrolled.loss()
    first = unrolled.gradient(loss, retain_graph=True)
    close(unrolled.gradient(loss, retain_graph=True), first)
    second = []
    for one in (plain, loss):
        slopes = unrolled.gradient(one, create_graph=True)
        second.append(unrolled.gradient(sum(s.square() for s in slopes)))
    close(second[1], second[0])


def test_weights_that_the_user_changes_are_kept_as_they_are():
    def halved(t, state):
        if t == 5:
            state = {n: dict(c) for n, c in state.items()}
            state["x->h1"]["w"] = 0.5 * state["x->h1"]["w"]
        return state

    def in_place(t, state):
        if t == 5:
            with torch.no_grad():
                state["h1->y"]["w"].detach().mul_(0.5)
        return state

    for change in (halved, in_place):
        unrolled = Unrolled(rules()["alignment"])
        wanted = unrolled.gradient(unrolled.loss(halved)) if change is halved else None
        with unrolled.program.histories(every=4):
            loss = unrolled.loss(change)
        if wanted is None:  # plain autograd refuses, or keeps what was there before
            try:
                wanted = unrolled.gradient(unrolled.loss(change))
            except RuntimeError:
                continue
        close(unrolled.gradient(loss), wanted)


def test_rules_without_such_writes_are_left_alone():
    program = mg.compile(mlp([12, 10, 4], "sigmoid"), MPLP(k=2, n=2), dtype=torch.float64)
    state, x, y = program.init(batch_size=2), torch.randn(4, 2, 12, dtype=torch.float64), torch.tensor([[0, 1]] * 4)
    theta = {n: p.detach().clone().requires_grad_() for n, p in program.protocol.named_parameters()}

    def loss():
        s = state
        for a, b in zip(x, y, strict=True):
            s, out = program.step(s, a, b, parameters=theta)
        return out.loss

    wanted = torch.autograd.grad(loss(), list(theta.values()), allow_unused=True)
    with program.histories(every=2):
        found = torch.autograd.grad(loss(), list(theta.values()), allow_unused=True)
    for one, two in zip(found, wanted, strict=True):
        assert (one is None) == (two is None)
        assert one is None or (one - two).abs().max() <= 1e-12 * two.abs().max()


def test_what_is_refused():
    unrolled = Unrolled(rules()["backprop"])
    with (
        pytest.raises(mg.ProtocolError, match=r"program.histories: every=0 must be an integer"),
        unrolled.program.histories(every=0),
    ):
        pass
