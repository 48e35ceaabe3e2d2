"""A backend changes how code is run, never what it means."""

import copy
import pickle

import pytest
import torch
from graphs import GRAPHS
from graphs import batch as batch_of
from reference import distance
from torch.utils._python_dispatch import TorchDispatchMode

import mpgraph as mg
from mpgraph.architectures import mlp
from mpgraph.program.backends import CudaGraphs, Inductor
from mpgraph.protocols import VSML, Backprop, FeedbackAlignment

TRACED = Inductor("aot_eager")  # everything that inductor does but writing and compiling C++


class Copying(CudaGraphs):
    """CUDA graphs without CUDA: replaying computes the results anew in the memory of the first ones."""

    def check(self, device):
        pass

    def record(self, function):
        results = function()

        def again():
            for old, new in zip(results, function(), strict=True):
                if old is not new:
                    old.copy_(new)

        return results, again


BACKENDS = {"traced": TRACED, "recorded": Copying()}


def programs(network, rule, backend=TRACED, **options):
    """An eager program and one of the same rule with another backend."""
    options = {"dtype": torch.float64, **options}
    return mg.compile(network, rule, **options), mg.compile(network, rule, backend=backend, **options)


def data(size, steps=3, inputs=3):
    generator = torch.Generator().manual_seed(size)
    xs = torch.randn(steps, size, inputs, generator=generator, dtype=torch.float64)
    return xs, torch.randint(0, 2, (steps, size), generator=generator)


@pytest.fixture(params=mg.list_protocols())
def rule(request):
    return mg.make_protocol(request.param)


@pytest.mark.parametrize("kind", BACKENDS)
@pytest.mark.parametrize("size", [1, 4])
def test_steps_and_predictions(rule, size, kind):
    eager, fast = programs(mlp([3, 4, 2], "tanh"), rule, BACKENDS[kind])
    xs, ys = data(size)
    one = two = start = eager.init(batch_size=size)
    with torch.no_grad():
        for x, y in zip(xs, ys, strict=True):
            (one, expected), (two, found) = eager.step(one, x, y), fast.step(two, x, y)
            assert distance(one, two) < 1e-12
            assert torch.allclose(found.prediction, expected.prediction, rtol=0, atol=1e-12)
            assert torch.allclose(found.loss, expected.loss, rtol=0, atol=1e-12)
        assert torch.allclose(fast.predict(two, xs[0]), eager.predict(one, xs[0]), rtol=0, atol=1e-12)
    assert distance(start, eager.init(batch_size=size)) == 0
    what = {c.what for c in fast.compilations}
    assert "predict" in what
    assert any(w.startswith("step") for w in what)


def test_stacked_states_under_vmap(rule):
    eager, fast = programs(mlp([3, 4, 2], "tanh"), rule)
    xs, ys = data(4)
    states = eager.init(range(3), batch_size=4)
    options = {"noise": eager.noise(states, 4)}
    if rule.phases:
        options["phase"] = rule.phases[0]

    def steps(program):
        def one(state, noise):
            return program.step(state, xs[0], ys[0], **{**options, "noise": noise})

        return torch.func.vmap(one)(states, options["noise"])

    with torch.no_grad():
        (one, expected), (two, found) = steps(eager), steps(fast)
        assert distance(one, two) < 1e-12
        assert torch.allclose(found.prediction, expected.prediction, rtol=0, atol=1e-12)
        before = len(fast.compilations)
        assert before == 1
        with fast.compiling_nothing():
            steps(fast)


def test_meta_gradients_through_an_unroll(rule):
    """Gradients of a last loss with respect to the first state and the rule's parameters."""
    eager, fast = programs(mlp([3, 4, 2], "tanh"), rule)
    xs, ys = data(4)

    def gradients(program):
        state = first = program.init(batch_size=4)
        leaves = [t.requires_grad_() for channels in first.values() for t in channels.values() if t.is_floating_point()]
        for x, y in zip(xs, ys, strict=True):
            state, out = program.step(state, x, y)
        wanted = [*leaves, *(p for p in program.parameters() if p.requires_grad)]
        return torch.autograd.grad(out.loss, wanted, allow_unused=True, materialize_grads=True)

    for expected, found in zip(gradients(eager), gradients(fast), strict=True):
        assert torch.allclose(found, expected, rtol=1e-9, atol=1e-12)
    before = len(fast.compilations)
    with fast.compiling_nothing():
        gradients(fast)
    assert len(fast.compilations) == before


@pytest.mark.parametrize("kind", BACKENDS)
@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.filterwarnings("ignore::mpgraph.FlatUnitWarning")
def test_networks_of_every_shape(graph, kind):
    network = GRAPHS[graph]()
    eager, fast = programs(network, FeedbackAlignment(lr=0.1), BACKENDS[kind])
    x, y = batch_of(network, 3)
    state = eager.init()
    with torch.no_grad():
        assert distance(fast.step(state, x, y)[0], eager.step(state, x, y)[0]) < 1e-12
        for found, expected in zip([fast.predict(state, x)], [eager.predict(state, x)], strict=True):
            assert torch.allclose(found, expected, rtol=0, atol=1e-12)
