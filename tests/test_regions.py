"""Another rule for each part of a network: formulas, the interpreter, and what is refused."""

import pytest
import torch
from graphs import GRAPHS, batch
from reference import distance, randomised
from rules import TwoStates

import mpgraph as mg
from mpgraph import Agent, interpreter
from mpgraph.architectures import mlp, recurrent
from mpgraph.protocols import Backprop, DirectFeedbackAlignment, FeedbackAlignment


@pytest.fixture
def problem():
    generator = torch.Generator().manual_seed(0)
    return (
        torch.randn(7, 5, generator=generator, dtype=torch.float64),
        torch.randint(0, 3, (7,), generator=generator),
        generator,
    )


def refuses(rules, *words, network=None):
    pattern = "".join(f"(?=.*{word})" for word in words)
    with pytest.raises(mg.ProtocolError, match=f"(?s){pattern}"):
        mg.compile(network or mlp([5, 6, 4, 3]), rules)


@pytest.mark.parametrize("build", [lambda: mlp([5, 6, 4, 3]), lambda: recurrent([5, 4, 3], ticks=3)])
def test_one_rule_everywhere_is_that_rule_to_the_bit(build):
    network = build()
    x, y = batch(network, 4)
    alone = mg.compile(network, Backprop(0.2), dtype=torch.float64)
    regions = mg.compile(network, mg.Regions({"*": Backprop(0.2)}), dtype=torch.float64)
    one, two = alone.init(3), regions.init(3)
    for _ in range(3):
        one, two = alone.step(one, x, y)[0], regions.step(two, x, y)[0]
    assert distance(one, two) == 0.0
    assert alone.code == regions.code


def test_random_feedback_below_and_the_true_error_on_top(problem):
    x, y, generator = problem
    network = mlp([5, 6, 4, 3])
    rules = {"h1->h2": FeedbackAlignment(0.3), "x->h1": FeedbackAlignment(0.2), "*": Backprop(0.1)}
    program = mg.compile(network, rules, dtype=torch.float64)
    state = randomised(program.init(), generator)
    assert {n for n, c in state.items() if "b" in c} == {"x->h1", "h1->h2"}
    w = {name: channels["w"] for name, channels in state.items() if "w" in channels}
    h1 = torch.tanh(x @ w["x->h1"].T + w["h1.bias"])
    h2 = torch.tanh(h1 @ w["h1->h2"].T + w["h2.bias"])
    e = torch.softmax(h2 @ w["h2->y"].T + w["y.bias"], -1) - torch.nn.functional.one_hot(y, 3)
    e2 = (e @ w["h2->y"]) * (1 - h2**2)
    e1 = (e2 @ state["h1->h2"]["b"]) * (1 - h1**2)
    expected = {
        "x->h1": (0.2, e1.T @ x), "h1->h2": (0.3, e2.T @ h1), "h2->y": (0.1, e.T @ h2), "h1.bias": (0.1, e1.sum(0)),
        "h2.bias": (0.1, e2.sum(0)), "y.bias": (0.1, e.sum(0)),
    }  # fmt: skip
    after, _ = program.step(state, x, y)
    for name, (rate, gradient) in expected.items():
        torch.testing.assert_close(after[name]["w"], w[name] - rate * gradient / 7, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["recurrence", "tied", "operations", "sparse"])
def test_means_what_the_interpreter_does(name):
    network = GRAPHS[name]()
    first = next(iter(network.wires))
    rules = {first: FeedbackAlignment(optimizer=mg.SGD(0.2, momentum=0.9)), "*": Backprop(optimizer=mg.Adam(0.1))}
    program = mg.compile(network, rules, dtype=torch.float64)
    x, y = batch(network, 2)
    state, _ = program.step(program.init(1), x, y)
    assert {"b", "w_momentum"} < set(state[first])
    assert "w_square" in state["y.bias"]
    one, _ = program.step(state, x, y)
    two, _ = interpreter.step(program, state, x, {"y": torch.eye(2, dtype=torch.float64)[y]})
    assert distance(one, two) < 1e-12


def test_the_first_pattern_wins_and_names_are_of_whole_nodes():
    rules = mg.Regions({"h1->h2": Backprop(0.1), "h1*": Backprop(0.2), "?.bias": Backprop(0.3), "*": Backprop(0.4)})
    program = mg.compile(mlp([5, 6, 4, 3]), rules)
    rates = {name: rules.optimizer_of(node, "w").lr for name, node in program.graph.nodes.items()}
    assert rates == {
        "x": 0.4, "h1": 0.2, "h2": 0.4, "y": 0.4, "loss": 0.4, "y.target": 0.4, "one": 0.4, "x->h1": 0.4,
        "h1->h2": 0.1, "h2->y": 0.4, "h1.bias": 0.2, "h2.bias": 0.4, "y.bias": 0.3,
    }  # fmt: skip


def test_ticks_go_by_the_name_of_their_node(problem):
    network = recurrent([5, 4, 3], ticks=3)
    program = mg.compile(network, {"h1->h1": FeedbackAlignment(), "*": Backprop()})
    kinds = {name: type(agent).__name__ for name, agent in program.graph.agents.items() if name.startswith("h1->h1")}
    assert set(kinds.values()) == {"FeedbackWeight"}
    assert len(kinds) == 2


def test_meta_parameters_of_all_rules_are_named(double):
    program = mg.compile(
        mlp([5, 4, 3]), {"h1.bias": Backprop(mg.learnable(0.1)), "*": Backprop(mg.learnable(0.2))}, dtype=torch.float64
    )
    names = {name for name, _ in program.named_parameters()}
    assert names == {"protocol.rules.h1/bias.optimizer.lr", "protocol.rules.*.optimizer.lr"}
    x, y = torch.randn(3, 5), torch.tensor([0, 1, 2])
    state, _ = program.step(program.init(), x, y)
    program.step(state, x, y)[1].loss.backward()
    assert all(parameter.grad.abs() > 0 for parameter in program.parameters())


def test_rewrites_come_one_after_the_other():
    class Named(Backprop):
        def rewrite(self, network):
            network.unit(f"z{len(network.units)}", 2)
            network.connect("x", f"z{len(network.units) - 1}")
            return network

    program = mg.compile(mlp([5, 4, 3]), {"h1": Named(), "*": Named()})
    assert {"z3", "z4"} < set(program.graph.nodes)


def test_names_and_sources():
    rule = mg.Regions({"h1.bias": Backprop(0.2), "*": FeedbackAlignment(0.1)})
    assert rule.name == "Regions('h1.bias': Backprop(lr=0.2), '*': FeedbackAlignment(lr=0.1))"
    assert mg.cite(rule) == mg.cite(Backprop).strip() + "\n\n" + mg.cite(FeedbackAlignment).strip()
    assert mg.Regions({"pop": Backprop(), "*": Backprop()}).parts  # a method of torch's dictionary of modules


class Between(Backprop):
    bias = "between"


class Short(Backprop):
    passes = ("forward", "learn")


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        ({"h3": Backprop(), "hidden*": Backprop(), "*": Backprop()}, ["no node matches 'h3', 'hidden\\*'", "h1->h2"]),
        ({"*": Backprop(), "h1": Backprop()}, ["'h1'", "earlier patterns", "first match wins"]),
        ({"h*": Backprop(), "x*": Backprop()}, ["no pattern matches node 'y'", "'h\\*', 'x\\*'", 'others: "\\*"']),
        ({"h1": Short(), "*": Backprop()}, ["agree on passes", "'h1': Short", "'forward', 'learn'"]),
        ({"h1": Between(), "*": Backprop()}, ["agree on bias", "'between'", "'beside'"]),
        ({"h1": Backprop, "*": Backprop()}, ["'h1'", "not a pattern of names and a protocol"]),
        ({}, ["no rules"]),
        ({"h1": Backprop(wieght=Agent()), "*": Backprop()}, ["unknown kind of node 'wieght'", "'weight'"]),
        ({"x->h1": DirectFeedbackAlignment(), "*": Backprop()}, ["no agent for node 'h1->loss'", "feedback"]),
    ],
)
def test_refused(rules, words):
    refuses(rules, *words)


class Wide(TwoStates):
    """Two numbers a message."""

    passes = Backprop.passes


@pytest.mark.parametrize("wide", ["x->h1", "h1", "h1->h2"])
def test_messages_of_another_width_at_a_border(wide):
    refuses({wide: Wide(2), "*": Backprop()}, "border", wide, "Wide", "Backprop", r"\(2,\)", r"\(\)")


def test_rules_of_one_kind_and_another_width():
    network = mlp([3, 4, 2], loss=None)
    refuses({"x": Wide(2), "x->h1": Wide(2), "*": Wide(3)}, r"\(2,\)", r"\(3,\)", network=network)
    program = mg.compile(network, {"x": Wide(2), "*": Wide(2)})
    assert program.init()["x->h1"]["w"].shape == (4, 3, 2)
