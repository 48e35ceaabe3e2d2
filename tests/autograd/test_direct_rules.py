"""Rules whose signal comes from the loss itself: direct feedback alignment and node perturbation, against formulas."""

import pytest
import torch
from reference import randomised
from torch.nn import functional as F

import mpgraph as mg
from mpgraph import data, experiments
from mpgraph.architectures import convnet, mlp
from mpgraph.protocols import Backprop, DirectFeedbackAlignment, NodePerturbation


def test_direct_feedback_is_its_formula():
    program = mg.compile(mlp([4, 5, 6, 3]), DirectFeedbackAlignment(lr=0.2), dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    state = randomised(program.init(), generator)
    x = torch.randn(7, 4, generator=generator, dtype=torch.float64)
    y = torch.randint(0, 3, (7,), generator=generator)
    w = {n: c.get("w", c.get("b")) for n, c in state.items() if n != "program"}
    h1 = torch.tanh(F.linear(x, w["x->h1"], w["h1.bias"]))
    h2 = torch.tanh(F.linear(h1, w["h1->h2"], w["h2.bias"]))
    e = torch.softmax(F.linear(h2, w["h2->y"], w["y.bias"]), -1) - F.one_hot(y, 3)
    e1, e2 = (e @ w["h1->loss"]) * (1 - h1**2), (e @ w["h2->loss"]) * (1 - h2**2)
    after, _ = program.step(state, x, y)
    for name, error, below in (("x->h1", e1, x), ("h1->h2", e2, h1), ("h2->y", e, h2)):
        torch.testing.assert_close(after[name]["w"], w[name] - 0.2 * error.T @ below / 7)
        bias = name.partition("->")[2] + ".bias"
        torch.testing.assert_close(after[bias]["w"], w[bias] - 0.2 * error.mean(0))
    assert torch.equal(after["h1->loss"]["b"], state["h1->loss"]["b"])


def test_direct_feedback_reaches_every_hidden_unit_of_a_convnet():
    program = mg.compile(convnet((1, 12, 12), (3, 4), (8,), kernel=3), DirectFeedbackAlignment())
    state = program.init()
    after, _ = program.step(state, torch.randn(5, 1, 12, 12), torch.arange(5))
    moved = {n for n in state if "w" in state[n] and not torch.equal(state[n]["w"], after[n]["w"])}
    assert moved == {n for n in state if "w" in state[n]}
    edges = program.graph.to_networkx().edges(keys=True)
    assert ("loss", "c1->loss", "backward:post") in edges
    assert ("c1->loss", "c1", "backward:feedback") in edges
    assert not [e for e in edges if e[0] == "p1->c2" and e[2].startswith("backward")]


def test_node_perturbation_estimates_the_gradient():
    network = mlp([3, 4, 2], activation="sigmoid")
    rule = NodePerturbation(lr=1.0, sigma=1e-3)
    program = mg.compile(network, rule, dtype=torch.float64)
    state = randomised(program.init(), torch.Generator().manual_seed(1))
    x, y = (
        torch.tensor([[0.5, -1.0, 2.0]], dtype=torch.float64).expand(400_000, 3),
        torch.ones(400_000, dtype=torch.long),
    )
    estimate = program.step(state, x, y)[0]
    exact_program = mg.compile(network, Backprop(lr=1.0), dtype=torch.float64)
    known = {n: {"w": c["w"]} if "w" in c else c for n, c in state.items() if n in exact_program.init()}
    exact = exact_program.step(known, x[:1], y[:1])[0]
    for name in known:
        if name != "program":
            got, wanted = (s[name]["w"] - state[name]["w"] for s in (estimate, exact))
            assert torch.linalg.norm(got - wanted) < 0.05 * torch.linalg.norm(wanted), name


@pytest.mark.filterwarnings("ignore::mpgraph.FlatUnitWarning")
def test_step_units_learn_without_a_derivative():
    digits, network = data.load("digits", seed=0).flat(), mlp([64, 32, 10], "step")
    scores = {}
    for name, drawn, rule in (
        ("readout", network.readout_only(), Backprop()),
        ("perturbed", network, NodePerturbation(lr=0.02, sigma=1.0)),
    ):
        _, curve, _ = experiments.train(mg.compile(drawn, rule), digits, epochs=60)
        scores[name] = curve[-1]
    assert scores["perturbed"] > scores["readout"] + 0.03
