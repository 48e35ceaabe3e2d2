"""Feedback alignment against its formula, and against backprop where B = W'."""

import pytest
import torch
from reference import distance, randomised

import mpgraph as mg
from mpgraph.architectures import mlp
from mpgraph.protocols import Backprop, FeedbackAlignment


@pytest.fixture
def problem():
    generator = torch.Generator().manual_seed(0)
    program = mg.compile(mlp([5, 6, 4, 3]), FeedbackAlignment(lr=0.2), dtype=torch.float64)
    state = randomised(program.init(), generator)
    x = torch.randn(7, 5, generator=generator, dtype=torch.float64)
    y = torch.randint(0, 3, (7,), generator=generator)
    return program, state, x, y


def test_one_step_is_the_formula(problem):
    program, state, x, y = problem
    w = {name: channels["w"] for name, channels in state.items() if "w" in channels}
    h1 = torch.tanh(x @ w["x->h1"].T + w["h1.bias"])
    h2 = torch.tanh(h1 @ w["h1->h2"].T + w["h2.bias"])
    e = torch.softmax(h2 @ w["h2->y"].T + w["y.bias"], -1) - torch.nn.functional.one_hot(y, 3)
    e2 = (e @ state["h2->y"]["b"]) * (1 - h2**2)
    e1 = (e2 @ state["h1->h2"]["b"]) * (1 - h1**2)
    expected = {
        "x->h1": e1.T @ x, "h1->h2": e2.T @ h1, "h2->y": e.T @ h2, "h1.bias": e1.sum(0), "h2.bias": e2.sum(0),
        "y.bias": e.sum(0),
    }  # fmt: skip
    after, _ = program.step(state, x, y)
    for name, gradient in expected.items():
        torch.testing.assert_close(after[name]["w"], w[name] - 0.2 * gradient / 7, rtol=0, atol=1e-12)


def test_feedback_weights_never_change_and_biases_have_none(problem):
    program, state, x, y = problem
    after, _ = program.step(state, x, y)
    assert all(torch.equal(after[n]["b"], state[n]["b"]) for n in ("x->h1", "h1->h2", "h2->y"))
    assert set(after["h1.bias"]) == {"w"}


def test_with_transposed_weights_it_is_backprop(problem):
    program, state, x, y = problem
    backprop = mg.compile(program.graph.network, Backprop(lr=0.2), dtype=torch.float64)
    other = {n: {c: t for c, t in channels.items() if c != "b"} for n, channels in state.items()}
    for _ in range(5):
        state = {n: {**c, "b": c["w"]} if "b" in c else c for n, c in state.items()}
        state, _ = program.step(state, x, y)
        other, _ = backprop.step(other, x, y)
        assert distance(other, state) < 1e-12


def test_differs_from_backprop_otherwise(problem):
    program, state, x, y = problem
    backprop = mg.compile(program.graph.network, Backprop(lr=0.2), dtype=torch.float64)
    one, _ = program.step(state, x, y)
    two, _ = backprop.step({n: {c: t for c, t in k.items() if c != "b"} for n, k in state.items()}, x, y)
    assert not torch.allclose(one["x->h1"]["w"], two["x->h1"]["w"])
    torch.testing.assert_close(one["h2->y"]["w"], two["h2->y"]["w"])  # the output hears the true error in both
