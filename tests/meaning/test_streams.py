"""Batches that carry several variants of an input: which agent sees which, compiled and one by one."""

import pytest
import torch
from graphs import recurrence
from reference import distance

import mpgraph as mg
from mpgraph import Agent, Protocol, fast, fed, slow
from mpgraph.interpreter import interpreter


class Views(Agent):
    """An input with two views."""

    answers = True
    value, second = fast(), fed()

    def forward_message(self, s):
        return s.value

    def again_message(self, s):
        return s.second


class Synapse(Agent):
    w = slow(init=mg.xavier_uniform)
    x, first = fast(), fast()
    same_as = {"again": "forward"}  # noqa: RUF012

    def forward_update(self, s, pre):
        return s.set(x=pre)

    def forward_message(self, s):
        return s.w * s.x

    def keep_update(self, s, post):
        return s.set(first=s.examples(post * s.x))

    def learn_update(self, s, post):
        return s.descend(w=s.examples(post * s.x) - s.first)


class Unit(mg.UnitAgent):
    same_as = {"again": "forward"}  # noqa: RUF012

    def keep_message(self, s):
        return s.y

    learn_message = keep_message


class Apart(Protocol):
    """Hebb's rule for the first view, its opposite for the second."""

    passes = ("forward", "keep", "again", "learn")
    agents = {"input": Views, "weight": Synapse, "unit": Unit}  # noqa: RUF012


def layer(*inputs):
    network = mg.Network()
    network.unit("y", 2, "tanh")
    for name in inputs:
        network.input(name, 3), network.connect(name, "y")
    return network


def sample(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_each_pass_sees_its_variant():
    program = mg.compile(layer("x"), Apart(0.3), dtype=torch.float64)
    state, one, two = program.init(), sample(5, 3), sample(5, 3, seed=1)
    after, out = program.step(state, {"x": one, "x.second": two})
    w = state["x->y"]["w"]
    y1, y2 = torch.tanh(one @ w.T), torch.tanh(two @ w.T)
    torch.testing.assert_close(after["x->y"]["w"], w - 0.3 * (y2.T @ two - y1.T @ one) / 5)
    torch.testing.assert_close(out.prediction, y1)
    torch.testing.assert_close(program.predict(state, one), y1)  # which has one view only
    for batch in ({"x": one, "x.second": two}, ({"x": one, "x.second": two}, None)):
        assert distance(program.run(state, [batch])[0], after) == 0.0


@pytest.mark.parametrize("network", [layer("v", "x"), recurrence()], ids=["two inputs", "ticks"])
def test_compiled_means_what_the_interpreter_does(network):
    program = mg.compile(network, Apart(0.3), dtype=torch.float64)
    shapes = {name: (3, *program._batches.shapes[name]) for name in (*network.inputs, *program._batches.variants)}
    assert set(shapes) == {*network.inputs, *(f"{name}.second" for name in network.inputs)}
    x = {name: sample(*shape, seed=i) for i, (name, shape) in enumerate(shapes.items())}
    y = torch.eye(2, dtype=torch.float64)[[0, 1, 1]] if network.losses else None
    state = program.init()
    after, _ = program.step(state, x, y)
    meaning, _ = interpreter.step(program, state, x, {} if y is None else {"y": y})
    assert distance(after, meaning) < 1e-10
    assert distance(after, state) > 1e-3
    assert program.cost().flops > 0


def test_what_is_missing_or_does_not_fit_is_said():
    program = mg.compile(layer("x"), Apart())
    state, x = program.init(), torch.zeros(2, 3)
    for given, text in (
        (x, r"several inputs \(x, x.second\): pass a dictionary"),
        ({"x": x}, "lacks input 'x.second'"),
        ({"x": x, "x.second": x[:1]}, "'x.second' has 1 examples, 'x' has 2"),
        ({"x": x, "x.second": x[:, :2]}, "x.second"),
        ({"x": x, "x.third": x, "x.second": x}, "unknown input 'x.third'"),
    ):
        with pytest.raises(mg.InputError, match=text):
            program.step(state, given)

    class Wrong(Unit):
        other = fed()

    with pytest.raises(mg.ProtocolError, match="Wrong: channel 'other' is fed with each batch.*serves the output 'y'"):
        mg.compile(layer("x"), Apart(unit=Wrong()))
    with pytest.raises(mg.ProtocolError, match=r"'x\.second' is both an input and a variant"):
        mg.compile(layer("x", "x.second"), Apart())


def test_inputs_go_where_they_belong_whatever_tick_needs_them():
    """An input that only the last tick hears, declared before one that only the first does."""
    network = mg.Network(ticks=2)
    network.input("v", 3), network.input("x", 3), network.unit("h", 3), network.unit("y", 2)
    network.connect("x", "h"), network.connect("h", "y", delay=1), network.connect("v", "y"), network.loss("y", "l2")
    program = mg.compile(network, mg.make_protocol("backprop"), dtype=torch.float64)
    state, v, x = program.init(), sample(4, 2, 3), sample(4, 2, 3, seed=1)
    w = {name: state[name]["w"] for name in ("x->h", "h->y", "v->y")}
    expected = x[:, 0] @ w["x->h"].T @ w["h->y"].T + v[:, 1] @ w["v->y"].T
    torch.testing.assert_close(program.predict(state, {"v": v, "x": x}), expected)
