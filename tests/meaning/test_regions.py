"""Another rule for each part of a network: formulas, the interpreter, and what is refused."""

import pytest
import torch
from graphs import GRAPHS, batch
from reference import distance, randomised
from rules import States, TwoStates, TwoStateSynapse
from torch import nn

import mpgraph as mg
from mpgraph import Agent, carry, fast, slow
from mpgraph.architectures import mlp, recurrent
from mpgraph.interpreter import interpreter
from mpgraph.protocols import Backprop, DirectFeedbackAlignment, FeedbackAlignment
from mpgraph.protocols.backprop import Weight


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
        "x": 0.4, "h1": 0.2, "h2": 0.4, "y": 0.4, "loss": 0.4, "y.target": 0.4, "x->h1": 0.4, "one": 0.2,
        "one#1": 0.4, "one#2": 0.3, "h1->h2": 0.1, "h2->y": 0.4, "h1.bias": 0.2, "h2.bias": 0.4, "y.bias": 0.3,
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
            name = network.unit(f"z{len(network.units)}", 2)
            network.connect("x", name), network.connect(name, "y")
            return network

    program = mg.compile(mlp([5, 4, 3]), {"h1": Named(), "*": Named()})
    assert {"z3", "z4"} < set(program.graph.nodes)


def test_names_and_sources():
    rule = mg.Regions({"h1.bias": Backprop(0.2), "*": FeedbackAlignment(0.1)})
    assert rule.name == "Regions('h1.bias': Backprop(lr=0.2), '*': FeedbackAlignment(lr=0.1))"
    assert mg.cite(rule) == mg.cite(Backprop).strip() + "\n\n" + mg.cite(FeedbackAlignment).strip()
    assert mg.Regions({"pop": Backprop(), "*": Backprop()}).parts  # a method of torch's dictionary of modules


class Phased(Backprop):
    phases = {"rest": ("forward",), "learn": Backprop.passes}  # noqa: RUF012


class Early(Backprop):
    passes = ("learn", "forward", "backward")


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        (
            {"h3": Backprop(), "hidden*": Backprop(), "*": Backprop()},
            ["'h3', 'hidden\\*' matches none of the nodes", "h1->h2"],
        ),
        ({"*": Backprop(), "h1": Backprop()}, ["'h1'", "earlier patterns", "first match wins"]),
        ({"h*": Backprop(), "x*": Backprop()}, ["no pattern matches node 'y.bias'", "'h\\*', 'x\\*'", 'others: "\\*"']),
        ({"h1": Early(), "*": Backprop()}, ["occur in .'learn'", "'h1': Early", "'forward', 'backward', 'learn'"]),
        ({"h1": Phased(), "*": Backprop()}, ["agree on phases", "'h1': Phased", "'rest'"]),
        ({"h1": Backprop, "*": Backprop()}, ["'h1'", "expected .pattern: Protocol., got"]),
        ({}, ["no rules"]),
        ({"h1": Backprop(wieght=Agent()), "*": Backprop()}, ["unknown type of node 'wieght'", "'weight'"]),
        ({"x->h1": DirectFeedbackAlignment(), "*": Backprop()}, ["needs a feedback connection", "one of 'h1', 'h2'"]),
    ],
)
def test_refused(rules, words):
    refuses(rules, *words)


class LocalSynapse(TwoStateSynapse):
    """Learns from what it heard, so that its neighbors need not answer."""

    def learn_update(self, s):
        return s.set(w=0.9 * s.w + 0.1 * s.examples(s.a * s.b))


class Wide(TwoStates):
    """Two numbers a message."""

    def __init__(self, k):
        super().__init__(k)
        self.agents["weight"] = LocalSynapse(States(k), k)


@pytest.mark.parametrize("wide", ["x->h1", "h1", "h1->h2"])
def test_messages_of_another_width_at_a_border(wide):
    refuses({wide: Wide(2), "*": Backprop()}, "border", wide, "Wide", "Backprop", r"\(2,\)", r"\(\)")


def test_rules_of_one_kind_and_another_width():
    network = mlp([3, 4, 2], loss=None)
    refuses({"x": Wide(2), "x->h1": Wide(2), "*": Wide(3)}, r"\(2,\)", r"\(3,\)", network=network)
    program = mg.compile(network, {"x": Wide(2), "*": Wide(2)})
    assert program.init()["x->h1"]["w"].shape == (4, 3, 2)


class Learned(nn.Module):
    """A learned rule's network: what a synapse does with what it remembers, hears and is told."""

    def __init__(self):
        super().__init__()
        self.cell = nn.Linear(4, 2)


class LearnedSynapse(Agent):
    """Two memories for each example; single numbers as messages, so that it can live under any rule."""

    w, memory, x, e = slow(init=mg.xavier_uniform), carry(2), fast(), fast()

    def __init__(self):
        super().__init__()
        self.learned = Learned()
        generator = torch.Generator().manual_seed(1)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator) / 2

    def forward_update(self, s, pre):
        return s.set(x=pre)

    def forward_message(self, s):
        return s.w * s.x

    def backward_update(self, s, post):
        return s.set(e=post, memory=torch.tanh(self.learned.cell(torch.cat([s.memory, torch.stack([post, s.x])]))))

    def backward_message(self, s):
        return s.memory[1] * s.e

    def learn_update(self, s):
        return s.set(w=s.w - 0.1 * s.examples(s.memory[0] * s.x))


def test_a_learned_rule_below_and_gradient_descent_on_top(problem, double):
    x, y, generator = problem
    rule = mg.Protocol(weight=LearnedSynapse())
    program = mg.compile(mlp([5, 6, 4, 3]), {"x->h1": rule, "h1->h2": rule, "*": Backprop(0.1)})
    state = randomised(program.init(batch_size=7), generator)
    w = {name: channels["w"] for name, channels in state.items() if "w" in channels}
    h1 = torch.tanh(x @ w["x->h1"].T + w["h1.bias"])
    h2 = torch.tanh(h1 @ w["h1->h2"].T + w["h2.bias"])
    e = torch.softmax(h2 @ w["h2->y"].T + w["y.bias"], -1) - torch.nn.functional.one_hot(y, 3)
    e2 = (e @ w["h2->y"]) * (1 - h2**2)
    pairs = torch.stack([e2[:, :, None].expand(7, 4, 6), h1[:, None, :].expand(7, 4, 6)], -1)
    memory = torch.tanh(rule.agents["weight"].learned.cell(torch.cat([state["h1->h2"]["memory"], pairs], -1)))
    after, _ = program.step(state, x, y)
    torch.testing.assert_close(after["h2->y"]["w"], w["h2->y"] - 0.1 * e.T @ h2 / 7)
    torch.testing.assert_close(after["h2.bias"]["w"], w["h2.bias"] - 0.1 * e2.mean(0))
    torch.testing.assert_close(after["h1->h2"]["memory"], memory)
    learned = w["h1->h2"] - 0.1 * (memory[..., 0] * h1[:, None, :]).mean(0)
    torch.testing.assert_close(after["h1->h2"]["w"], learned)
    meaning, _ = interpreter.step(program, state, {"x": x}, {"y": torch.eye(3)[y]})
    assert distance(after, meaning) < 1e-12


class Aside(Backprop):
    """Looks at what it wrote, in a pass of its own."""

    passes = ("forward", "backward", "learn", "look")

    def __init__(self):
        super().__init__(weight=Looking())


class Looking(Weight):
    seen = slow()

    def look_update(self, s):
        return s.set(seen=s.w)


def test_passes_of_one_rule_may_be_fewer(problem):
    x, y, _ = problem
    program = mg.compile(mlp([5, 4, 3]), {"x->h1": Aside(), "*": Backprop(0.1)}, dtype=torch.float64)
    assert program.protocol.passes == Aside.passes
    alone = mg.compile(mlp([5, 4, 3]), Backprop(0.1), dtype=torch.float64)
    (after, _), (plain, _) = (p.step(p.init(), x, y) for p in (program, alone))
    assert torch.equal(after["x->h1"]["seen"], plain["x->h1"]["w"])
    assert all(torch.equal(after[name]["w"], plain[name]["w"]) for name in plain if name != "program")


class Before(Backprop):
    """As the other, but looks before it learns."""

    passes = ("forward", "backward", "notice", "learn")

    def __init__(self):
        super().__init__(weight=Noticing())


class Noticing(Weight):
    seen = slow()

    def notice_update(self, s):
        return s.set(seen=s.w)


def test_a_schedule_for_rules_that_need_different_passes(problem):
    x, y, _ = problem
    rules = {"x->h1": Before(), "*": Aside()}
    refuses(rules, "in their order", "'notice'", "'look'", r"passes=\(", network=mlp([5, 4, 3]))
    passes = ("forward", "backward", "notice", "learn", "look")
    program = mg.compile(mlp([5, 4, 3]), mg.Regions(rules, passes=passes), dtype=torch.float64)
    before = program.init()
    after, _ = program.step(before, x, y)
    assert torch.equal(after["x->h1"]["seen"], before["x->h1"]["w"])
    assert torch.equal(after["h1->y"]["seen"], after["h1->y"]["w"])


def test_pathways_of_a_rule_are_drawn_at_its_own_units(problem):
    """The error goes straight to h1, and by backprop to h2."""
    x, y, generator = problem
    direct = DirectFeedbackAlignment(0.1)
    program = mg.compile(
        mlp([5, 6, 4, 3]), {"x->h1": direct, "h1": direct, "h1.bias": direct, "*": Backprop(0.1)}, dtype=torch.float64
    )
    state = randomised(program.init(), generator)
    assert {name for name in state if "loss" in name} == {"h1->loss"}
    w = {name: channels["w"] for name, channels in state.items() if "w" in channels}
    h1 = torch.tanh(x @ w["x->h1"].T + w["h1.bias"])
    h2 = torch.tanh(h1 @ w["h1->h2"].T + w["h2.bias"])
    e = torch.softmax(h2 @ w["h2->y"].T + w["y.bias"], -1) - torch.nn.functional.one_hot(y, 3)
    e2 = (e @ w["h2->y"]) * (1 - h2**2)
    (b,) = state["h1->loss"].values()
    e1 = (e @ b) * (1 - h1**2)
    after, _ = program.step(state, x, y)
    torch.testing.assert_close(after["x->h1"]["w"], w["x->h1"] - 0.1 * e1.T @ x / 7)
    torch.testing.assert_close(after["h1->h2"]["w"], w["h1->h2"] - 0.1 * e2.T @ h1 / 7)
    meaning, _ = interpreter.step(program, state, {"x": x}, {"y": torch.eye(3, dtype=torch.float64)[y]})
    assert distance(after, meaning) < 1e-12


class Offset(Agent):
    """A bias between the sum and the unit, told what comes back."""

    w, z, e = slow(), fast(), fast()

    def forward_update(self, s, pre):
        return s.set(z=pre)

    def forward_message(self, s):
        return s.z + s.w

    def backward_update(self, s, post):
        return s.set(e=post)

    def backward_message(self, s):
        return s.e

    def learn_update(self, s):
        return s.descend(w=s.examples(s.e))


class Between(Backprop):
    bias = "between"

    def __init__(self, lr):
        super().__init__(lr, bias=Offset())


def test_each_rule_has_its_biases_its_way(problem):
    """Both ways are gradient descent, so together they are what one rule alone is."""
    x, y, generator = problem
    mixed = mg.compile(mlp([5, 6, 4, 3]), {"h1*": Between(0.1), "*": Backprop(0.1)}, dtype=torch.float64)
    assert type(mixed.graph.agents["h1.bias"]) is Offset
    assert {str(a) for a in mixed.graph.all_arrows() if "one" in a.source.name} == {
        "forward: one => h2.bias (pre)", "forward: one => y.bias (pre)"
    }  # fmt: skip
    alone = mg.compile(mlp([5, 6, 4, 3]), Backprop(0.1), dtype=torch.float64)
    state = randomised(alone.init(), generator)
    assert distance(alone.step(state, x, y)[0], mixed.step(state, x, y)[0]) < 1e-12


class Loud(Agent):
    """A constant that is two."""

    def forward_message(self, s):
        return 2.0


def test_each_rule_has_its_own_constant(problem):
    x, _, generator = problem
    rules = {"h1.bias": Backprop(constant=Loud()), "*": Backprop()}
    program = mg.compile(mlp([5, 6, 3]), rules, dtype=torch.float64)
    state = randomised(program.init(), generator)
    w = {name: channels["w"] for name, channels in state.items() if "w" in channels}
    h1 = torch.tanh(x @ w["x->h1"].T + 2.0 * w["h1.bias"])
    torch.testing.assert_close(program.predict(state, x), h1 @ w["h1->y"].T + w["y.bias"])


class Border(mg.UnitAgent):
    """The top unit of a region whose rule speaks in two numbers; single numbers go out above."""

    def forward_update(self, s, pre):
        return s.set(z=pre[0], y=s.apply(pre[0]))

    def backward_message(self, s):
        return torch.stack([s.y, s.e])


def test_an_agent_at_the_border_translates(problem):
    """Two states below, gradient descent on top; the border tells the states below its activity and its error."""
    x, y, generator = problem
    below = Wide(2)
    rules = {"x": below, "x->h1": below, "h1.bias": below, "h1": mg.Protocol(unit=Border()), "*": Backprop(0.1)}
    program = mg.compile(mlp([5, 6, 3]), rules, dtype=torch.float64)
    state = randomised(program.init(), generator)
    after, _ = program.step(state, x, y)
    g = below.agents["weight"].g
    pre = torch.stack([x, 0.0 * x], -1)
    z = torch.einsum("jik,bik->bjk", state["x->h1"]["w"], pre @ g.up) + state["h1.bias"]["w"] * g.up.sum(0)
    h = torch.tanh(z[..., 0])
    e = torch.softmax(h @ state["h1->y"]["w"].T + state["y.bias"]["w"], -1) - torch.nn.functional.one_hot(y, 3)
    e1 = (e @ state["h1->y"]["w"]) * (1 - h**2)
    told = torch.stack([h, e1], -1)
    learned = 0.9 * state["x->h1"]["w"] + 0.1 * torch.einsum("bjk,bik->jik", told, pre) / 7
    torch.testing.assert_close(after["x->h1"]["w"], learned)
    torch.testing.assert_close(after["h1->y"]["w"], state["h1->y"]["w"] - 0.1 * e.T @ h / 7)


# Several numbers a message, or passes in another order.
SPEAK_OTHERWISE = {
    *("blur", "difference_target_propagation", "equilibrium_propagation", "forward_forward", "mplp", "pepita"),
    *("predictive_coding", "three_factor", "vsml"),
}


@pytest.mark.parametrize("name", mg.list_protocols())
def test_any_rule_below_and_gradient_descent_on_top(name, problem):
    x, y, _ = problem
    below = mg.make_protocol(name)
    rules = {"x": below, "x->h1": below, "h1": below, "h1.bias": below, "*": Backprop(0.1)}
    if name in SPEAK_OTHERWISE:
        refuses(rules, "Regions: (at the border|the passes of each rule)")
        return
    program = mg.compile(mlp([5, 6, 4, 3]), rules, dtype=torch.float64)
    before = program.init(batch_size=7)
    after, out = program.step(before, x, y, record={"h1": ["y"], "h2": ["y"]})
    h1, h2 = (out.recorded[unit]["y"] for unit in ("h1", "h2"))
    e = torch.softmax(out.prediction, -1) - torch.nn.functional.one_hot(y, 3)
    e2 = (e @ before["h2->y"]["w"]) * (1 - h2**2)
    for top, gradient in (("h2->y", e.T @ h2), ("y.bias", e.sum(0)), ("h1->h2", e2.T @ h1), ("h2.bias", e2.sum(0))):
        torch.testing.assert_close(after[top]["w"], before[top]["w"] - 0.1 * gradient / 7)
    kept = {c for c in before["x->h1"] if not torch.equal(before["x->h1"][c], after["x->h1"][c])}
    assert kept
