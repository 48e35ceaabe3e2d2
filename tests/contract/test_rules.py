"""What a rule author may write, and what the engine makes of it: tables of agents, options, aliases, surrogates."""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, TypeVar

import numpy as np
import pytest
import torch
from reference import distance

import mpgraph as mg
from mpgraph import Agent, Number, Protocol, fast, option
from mpgraph.agents.builtin import Input
from mpgraph.architectures import mlp
from mpgraph.arguments import Arguments
from mpgraph.interpreter import interpreter
from mpgraph.protocols import BLUR, Backprop, FeedbackAlignment, NodePerturbation, Oja
from mpgraph.protocols.backprop import Weight


class Scaled(Weight):
    """Learns ``gain`` times as fast."""

    def __init__(self, rule):
        super().__init__()
        self.gain = rule.gain

    def learn_update(self, s):
        return s.descend(w=self.gain * s.examples(s.e * s.x))


class Gain(Backprop):
    """Backprop, faster."""

    gain: Number = option(1.0, "factor of every increment.", positional=True, low=0)
    which: Literal["all", "inner"] = option("all", "connections that it acts on.")
    size: tuple[int, int] = option((1, 2), low=1)
    how: float | Callable[[float], float] | None = option(None)
    agents = {  # noqa: RUF012
        "weight": Scaled,
        "input_weight": lambda rule: Scaled(rule) if rule.which == "all" else Weight(),
        "bias": Weight(),
    }


class Slow(Gain):
    """The same with another default, and without a surrogate."""

    gain = 0.5
    without = ("surrogate",)


class Slower(Slow):
    """What a base does without stays away."""


X, Y = torch.randn(6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64), torch.arange(6) % 3


def stepped(rule, network=None, **options):
    program = mg.compile(network or mlp([4, 5, 3]), rule, dtype=torch.float64)
    state = program.init(1)
    return state, program.step(state, X, Y, **options)[0]


def test_options_make_the_constructor():
    parameters = inspect.signature(Gain).parameters
    assert list(parameters)[:2] == ["lr", "gain"]
    assert parameters["gain"].default == 1.0
    assert inspect.signature(Slow).parameters["gain"].default == 0.5
    for cls in (Slow, Slower):
        assert "surrogate" not in inspect.signature(cls).parameters
        with pytest.raises(mg.ProtocolError, match="surrogate='tanh' is neither one of its arguments"):
            cls(surrogate="tanh")
    assert Gain(0.2, 3, which="inner").gain == 3.0
    assert "gain: factor of every increment." in inspect.getdoc(Gain)
    with pytest.raises(TypeError, match="Gain: too many positional"):
        Gain(0.1, 1.0, "all")
    assert inspect.signature(NodePerturbation).parameters["lr"].default == 0.01
    assert NodePerturbation(0.3, 0.2).sigma == 0.2
    assert Oja(0.1, 0.2, 0.0, "neuron").form == "neuron"


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"gain": -1}, "gain=-1 must be a finite number of at least 0, or a torch.Tensor"),
        ({"gain": "2"}, "gain='2' must be a finite number"),
        ({"which": "none"}, "which='none' must be one of 'all', 'inner'"),
        ({"size": (1,)}, "size=.1,. must be 2 integers of at least 1"),
        ({"how": "x"}, "how='x' must be a finite number, or a function, or None"),
        ({"gian": 2.0}, "gian=2.0 is neither one of its arguments nor an agent.*lr, optimizer"),
    ],
)
def test_options_are_validated_by_their_annotations(given, text):
    with pytest.raises(mg.ProtocolError, match=f"Gain: {text}"):
        Gain(**given)


ONES = torch.ones(2)
ANNOTATIONS = [  # what it is, what it allows and how that comes out, what it refuses
    (int, [(np.int64(3), 3)], [True, 1.5, "1", None], {}),
    (int | float, [(2, 2.0), (np.float32(0.5), 0.5)], ["2", float("nan")], {}),
    (float | None, [(None, None), (1, 1.0)], [0.0, "x"], {"above": 0}),
    (bool, [(True, True)], [1, "yes"], {}),
    (Literal["a", "b"] | None, [("a", "a"), (None, None)], ["c", 3, abs], {}),
    (Literal["a"] | Callable, [(abs, abs)], ["b", None], {}),
    (tuple[float, float], [([1, 2], (1.0, 2.0))], [(1,), 3, "12", (1, "2")], {}),
    (Sequence[str], [(["h*"], ("h*",))], ["h*", (1,)], {}),
    (dict[str, float], [({"a": 1.0}, {"a": 1.0})], [[1], "a"], {}),
    (str | torch.Tensor, [("x", "x"), (ONES, ONES)], [3, None], {}),
    (Any, [(3, 3), (None, None)], [], {}),
    (str, [("x", "x")], [3, None, b"x"], {}),
    (int, [(3, 3)], [2, 2.5], {"above": 2}),
    (Literal[1, 2], [(1, 1)], [True, 3, 1.0], {}),
    (Literal["a"] | float, [("a", "a"), (1, 1.0)], ["b", None], {}),
    (tuple[int, int], [([1, 2], (1, 2))], [(1,), (1.0, 2)], {}),
    (tuple[int, ...], [((), ()), ([1, np.int64(2)], (1, 2))], [3, "12", (1, 2.5), (0, 1)], {"low": 1}),
    (tuple[float, ...], [((1, 2), (1.0, 2.0))], [1.0, ("1",), (float("inf"),), (True,)], {}),
    (tuple[int, str], [((1, "a"), (1, "a"))], [(1, 2), (1,), (1, "a", "b")], {}),
    (list[int], [((1, 2), [1, 2]), ([], [])], [1, [None], ["1"]], {}),
    (list, [([1, "a"], [1, "a"])], [(1,), None], {}),
    (list[int] | list[str], [([1], [1]), (["a"], ["a"])], [[1, "a"], "a"], {}),
    (Sequence[float | None], [([1, None], (1.0, None))], [[None, "a"], 1.0], {}),
    (Mapping[str, float], [({"a": 1}, {"a": 1.0})], [{"a": "x"}, {1: 1.0}, [("a", 1.0)], {"a": -1}], {"low": 0}),
    (dict[str, list[int]], [({"a": (1,)}, {"a": [1]})], [{"a": 1}], {}),
    (dict, [({1: "x"}, {1: "x"})], [3], {}),
]


@pytest.mark.parametrize(("annotation", "good", "bad", "bounds"), ANNOTATIONS, ids=lambda v: str(v)[:20])
def test_annotations_say_what_is_allowed(annotation, good, bad, bounds):
    given = Arguments("Rule")
    for value, expected in good:
        found = given.annotated("a", value, annotation, **bounds)
        assert found is expected or (type(found) is type(expected) and found == expected)
    for value in bad:
        with pytest.raises(mg.ProtocolError, match=r"^Rule: (key of )?a(\[.+\])?=.* must be \w"):
            given.annotated("a", value, annotation, **bounds)


def test_refusals_are_in_plain_words():
    for annotation, value, text in (
        (str, 3, "a=3 must be a string"),
        (tuple[int, ...], 3, "a=3 must be a tuple of integers"),
        (list[str] | None, "x", "a='x' must be a list of strings, or None; write ('x',)"),
        (dict[str, int], 3, "a=3 must be a dictionary from strings to integers"),
        (mg.Optimizer | None, mg.SGD, "must be an mg.Optimizer, or None; write SGD()"),
        (list[int], [1, "x"], "a[1]='x' must be an integer"),
    ):
        with pytest.raises(mg.ProtocolError) as caught:
            Arguments("Rule").annotated("a", value, annotation)
        assert str(caught.value).endswith(text)


Free = TypeVar("Free")


@pytest.mark.parametrize("annotation", [Free, Iterable[int], list[Free], 3, "Missing", "list[", "mg.Nothing"])
def test_annotations_that_cannot_be_checked_are_refused(annotation):
    body = {"a": option(3), "__annotations__": {"a": annotation}, "__module__": __name__}
    with pytest.raises(mg.ProtocolError, match=r"^Rule: option 'a': its annotation .* cannot be (checked|read)"):
        type("Rule", (Backprop,), body)()


class Layered(Backprop):
    """Options of several values."""

    sizes: tuple[int, ...] = option((1, 2), "of layers.", low=1)
    rates: list[float] = option([0.1])
    word: str = option("x")
    table: Mapping[str, float] = option({})


def test_options_may_have_several_values():
    assert (Layered().sizes, Layered().rates, Layered().word, Layered().table) == ((1, 2), [0.1], "x", {})
    assert Layered().rates is not Layered().rates
    assert Layered(sizes=[3]).sizes == (3,)
    with pytest.raises(mg.ProtocolError, match=r"Layered: sizes\[1\]=0 must be an integer of at least 1"):
        Layered(sizes=(1, 0))
    with pytest.raises(mg.ProtocolError, match="Layered: word=3 must be a string"):
        Layered(word=3)


def test_values_are_plain_python_and_shown_if_unusual():
    rule = Gain(gain=np.float32(0.5), size=[np.int64(3), 4], how=abs)
    assert (type(rule.gain), rule.gain, rule.size, rule.how(-1.0)) == (float, 0.5, (3, 4), 1.0)
    assert type(rule.arguments["gain"]) is float
    assert repr(Gain()) == "Gain(lr=0.1)"
    assert repr(Gain(0.2, mg.learnable(2.0), which="inner")) == "Gain(lr=0.2, gain=2, which='inner')"
    assert repr(BLUR(k=2)) == "BLUR()"


def test_increments_are_those_of_the_option():
    before, plain = stepped(Backprop())
    _, fast_everywhere = stepped(Gain(gain=2.0))
    _, inner = stepped(Gain(gain=2.0, which="inner"))
    for name in ("x->h1", "h1->y", "h1.bias"):
        once = plain[name]["w"] - before[name]["w"]
        for after, factor in (
            (fast_everywhere, 1.0 if "bias" in name else 2.0),
            (inner, 2.0 if name == "h1->y" else 1.0),
        ):
            torch.testing.assert_close(after[name]["w"] - before[name]["w"], factor * once, rtol=0, atol=1e-14)


def test_every_rule_has_agents_of_its_own():
    one, two = Gain(), Gain()
    assert one.agents["bias"] is not two.agents["bias"]
    assert one.agents["bias"] is not Gain.agents["bias"]
    mine = Weight()
    assert Gain(bias=mine).agents["bias"] is mine

    class Broken(Backprop):
        agents = {"weight": lambda rule: 3}  # noqa: RUF012

    with pytest.raises(mg.ProtocolError, match=r"Broken.agents: .* got 3"):
        Broken()


class Old(Backprop):
    """Written with a constructor of its own."""

    lr = 0.3

    def __init__(self, factor=1.0):
        super().__init__(self.lr * factor, weight=Weight(), bias=Weight())


def test_rules_with_a_constructor_of_their_own_go_on_working():
    assert repr(Old(2.0)) == "Old(lr=0.6, factor=2)"
    assert list(inspect.signature(Old).parameters) == ["factor"]
    _, one = stepped(Old())
    _, two = stepped(Backprop(0.3))
    assert distance(one, two) == 0.0


# -- what one agent does in several passes ---------------------------------------------------------------------


class Twice(Agent):
    same_as = {"again": "forward", "more": "again"}  # noqa: RUF012
    x = fast()

    def forward_update(self, s, pre):
        return s.set(x=pre)

    def forward_message(self, s):
        return s.x

    def again_message(self, s):
        return 2.0 * s.x

    other_message = None


def test_same_as_fills_in_what_a_class_lacks():
    agent = Twice()
    assert agent.update_of("again") == agent.forward_update
    assert agent.message_of("again") == agent.again_message
    assert agent.update_of("more") == agent.forward_update
    assert agent.message_of("more") == agent.again_message
    assert agent.message_of("other") is agent.message_of("unknown") is None
    assert Input({"again": "forward"}).message_of("again") is not None
    assert Input().message_of("again") is None


class SameAs(Weight):
    def __init__(self, same_as):
        super().__init__()
        self.same_as = same_as


@pytest.mark.parametrize(
    ("same_as", "text"),
    [
        ({"a": "b", "b": "a"}, "SameAs.same_as: .* 'a' -> 'b' -> 'a'"),
        ({"learn": "learn"}, "SameAs.same_as: .* 'learn' -> 'learn'"),
        ({"learn": "nope"}, r"SameAs.same_as\['learn'\]: unknown pass 'nope': allowed are backward, forward, learn"),
        (["learn"], r"SameAs: same_as=\['learn'\] must be a dictionary"),
        ({"learn": 3}, r"SameAs: same_as\['learn'\]=3 must be a string"),
    ],
)
def test_same_as_names_passes_of_the_agent(same_as, text):
    with pytest.raises(mg.ProtocolError, match=text):
        mg.compile(mlp([3, 2]), Backprop(weight=SameAs(same_as)))


# -- functions that keep something, operations -----------------------------------------------------------------


def normalized():
    network = mg.Network()
    network.input("x", 4), network.unit("a", 5, mg.BatchNorm()), network.unit("b", 5, "tanh"), network.unit("c", 5)
    network.connect("x", "a"), network.connect("a", "b"), network.connect("a", "c")
    network.operation("p", "product", "b", "c")
    network.unit("y", 3), network.connect("p", "y"), network.loss("y", "cross_entropy")
    return network


class Noted(mg.UnitAgent):
    """A unit with a pass of its own; forward and backward are the engine's."""

    seen = fast()

    def learn_update(self, s):
        return s.set(seen=s.y)


def test_one_agent_serves_units_normalizations_and_operations():
    rule = Backprop(unit=Noted())
    program = mg.compile(normalized(), rule, dtype=torch.float64)
    assert {program.graph.agents[name] for name in ("a", "b", "p", "y")} == {rule.agents["unit"]}
    state = program.init(1)
    after, _ = program.step(state, X, Y)
    z = X @ state["x->a"]["w"].T + state["a.bias"]["w"]
    torch.testing.assert_close(after["a"]["mean"], 0.1 * z.mean(0))
    torch.testing.assert_close(after["a"]["var"], 0.9 + 0.1 * z.var(0))
    meaning, _ = interpreter.step(program, state, {"x": X}, {"y": torch.eye(3, dtype=torch.float64)[Y]})
    assert distance(after, meaning) < 1e-12
    plain = mg.compile(normalized(), Backprop(), dtype=torch.float64)
    assert distance(plain.step(state, X, Y)[0], after) == 0.0


class OwnWay(mg.UnitAgent):
    """Goes forward in its own way."""

    def forward_update(self, s, pre):
        return s.set(z=pre, y=torch.tanh(pre - s.population(pre, "mean")))


class Forgetful(mg.UnitAgent):
    def forward_update(self, s, pre):
        return s.set(z=pre, y=s.apply(pre))


def test_a_unit_with_a_way_of_its_own_leaves_operations_to_the_engine():
    program = mg.compile(normalized(), Backprop(unit=OwnWay()), dtype=torch.float64)
    assert type(program.graph.agents["p"]) is mg.UnitAgent
    with pytest.raises(mg.ProtocolError, match=r"'a'.*keeps mean, var.*s\.activate\(z\).*batchnorm=mg\.UnitAgent\(\)"):
        mg.compile(normalized(), Backprop(unit=Forgetful()))
    mg.compile(normalized(), Backprop(unit=Forgetful(), batchnorm=mg.UnitAgent()))


# -- surrogates, words ------------------------------------------------------------------------------------------


def test_a_surrogate_is_that_of_the_rule_of_the_node():
    network = mlp([4, 5, 5, 3], "step")
    rules = {"h1": Backprop(surrogate="tanh"), "h2": Backprop(surrogate="sigmoid"), "*": Backprop()}
    program = mg.compile(network, rules, dtype=torch.float64)
    state = program.init(1)
    _, out = program.step(state, X, Y, record={n: ["z", "e"] for n in ("h1", "h2", "y")})
    seen, w = out.recorded, {n: c["w"] for n, c in state.items() if "w" in c}
    sigmoid = torch.sigmoid(seen["h2"]["z"])
    torch.testing.assert_close(seen["h2"]["e"], seen["y"]["e"] @ w["h2->y"] * sigmoid * (1 - sigmoid))
    slope = 1 - torch.tanh(seen["h1"]["z"]) ** 2
    torch.testing.assert_close(seen["h1"]["e"], seen["h2"]["e"] @ w["h1->h2"] * slope)
    after, _ = program.step(state, X, Y)
    meaning, _ = interpreter.step(program, state, {"x": X}, {"y": torch.eye(3, dtype=torch.float64)[Y]})
    assert distance(after, meaning) < 1e-12


def test_words_for_biases_and_losses():
    for word, expected in (("synapse", False), ("agent", True), ("beside", False), ("between", True)):
        assert type("Rule", (Protocol,), {"bias": word})().bias_is_agent is expected
    for word, expected in (("fused", False), ("agent", True)):
        assert type("Rule", (Protocol,), {"loss_link": word})().loss_link_is_agent is expected
    assert type("Rule", (Protocol,), {"link": "between"})().loss_link_is_agent  # the name before 0.2
    with pytest.raises(mg.ProtocolError, match=r"Rule\.bias: unknown word 'agnet'.*did you mean 'agent'"):
        mg.compile(mlp([4, 3]), type("Rule", (Backprop,), {"bias": "agnet"})())


def test_regions_take_turns_as_their_rules_or_as_told():
    rules = {"h1": BLUR(every=2), "*": BLUR(every=2, seed=1)}
    assert [mg.Regions(rules).phase(step) for step in range(4)] == ["free", "taught", "free", "taught"]
    other = {"h1": BLUR(every=2), "*": BLUR(every=3)}
    with pytest.raises(mg.ProtocolError, match=r"take turns alike.*phase=lambda"):
        mg.Regions(other)
    turns = mg.Regions(other, phase=lambda step: "taught" if step == 2 else "free")
    assert [turns.phase(step) for step in range(4)] == ["free", "free", "taught", "free"]


def test_an_agent_node_is_public():
    class ByName(FeedbackAlignment):
        def agent(self, node: mg.AgentNode) -> Agent:
            return self.agents["bias"] if node.name == "h1->y" else super().agent(node)

    before, _ = stepped(ByName())
    assert set(before["h1->y"]) == {"w"}
    assert set(before["h1.bias"]) == {"w"}
