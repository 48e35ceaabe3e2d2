"""Bad input is one family of errors, raised before anything runs, naming the node and the fix."""

import numpy as np
import pytest
import torch
from refusals import refuses

import mpgraph as mg
from mpgraph import Agent, fast, slow
from mpgraph.architectures import mlp
from mpgraph.protocols import Backprop, FeedbackAlignment


@pytest.fixture
def program():
    return mg.compile(mlp([4, 5, 3]), Backprop())


X, Y = torch.zeros(2, 4), torch.zeros(2, dtype=torch.long)


@pytest.mark.parametrize(
    ("x", "y", "words"),
    [
        (torch.zeros(2, 5), Y, ["'x'", "(batch, 4)", "(2, 5)"]),
        (torch.zeros(2, 2, 2), Y, ["'x'", "x.flatten(1)"]),
        (torch.zeros(4), Y, ["'x'", "x[None]"]),
        (torch.tensor(1.0), Y, ["'x'", "(batch, 4)"]),
        (X.double(), Y, ["'x'", "torch.float32", "torch.float64", "dtype=torch.float64"]),
        (X.long(), Y, ["'x'", "torch.int64", "x.to(torch.float32)"]),
        (torch.zeros(0, 4), torch.zeros(0, dtype=torch.long), ["'x'", "empty"]),
        ([[0.0] * 4], Y, ["'x'", "list", "torch.as_tensor"]),
        (None, Y, ["x is missing", "'x'"]),
        ({"x": X, "z": X}, Y, ["unknown input 'z'", "x"]),
        ({}, Y, ["lacks", "'x'"]),
        (X, None, ["y is missing", "'y'"]),
        (X, torch.tensor([0, 3]), ["'y'", "0..2", "0..3", "3 units"]),
        (X, torch.tensor([-1, 0]), ["'y'", "0..2", "-1..0"]),
        (X, torch.zeros(3, dtype=torch.long), ["'y'", "2 examples", "(3,)"]),
        (X, torch.zeros(2), ["'y'", "class labels", "(batch, 3)"]),
        (X, torch.zeros(2, 3).double(), ["'y'", "torch.float64"]),
        (X, torch.zeros(2, 3), ["'y'", "'loss'", "sum to one"]),
        (X, [0, 1], ["'y'", "list"]),
    ],
)
def test_bad_batches(program, x, y, words):
    with refuses(mg.InputError, *words):
        program.step(program.init(), x, y)


def test_nan_is_found_on_request(program):
    bad = X.clone()
    bad[1, 2] = float("nan")
    strict = mg.compile(program.graph.network, Backprop(), checks="all")
    with refuses(mg.InputError, "'x'", "NaN", "example 1"):
        strict.step(strict.init(), bad, Y)
    strict.step(strict.init(), X, Y)
    program.step(program.init(), bad, Y)
    with refuses(mg.InputError, "checks", "all"):
        mg.compile(program.graph.network, Backprop(), checks="some")


def test_several_inputs_need_names():
    network = mg.Network()
    network.input("a", 2), network.input("b", 2), network.unit("y", 2)
    network.connect("a", "y"), network.connect("b", "y"), network.loss("y", "l2")
    program = mg.compile(network, Backprop())
    with refuses(mg.InputError, "a, b", "dictionary"):
        program.step(program.init(), torch.zeros(2, 2), torch.zeros(2, 2))
    with refuses(mg.InputError, "'b'", "3", "2"):
        program.step(program.init(), {"a": torch.zeros(2, 2), "b": torch.zeros(3, 2)}, torch.zeros(2, 2))


def test_y_without_a_loss():
    program = mg.compile(mlp([4, 3], loss=None), ForwardOnly())
    assert program.step(program.init(), X)[1].loss is None
    with refuses(mg.InputError, "no loss"):
        program.step(program.init(), X, Y)


def test_states_of_other_programs(program):
    other = mg.compile(mlp([4, 6, 3]), Backprop()).init()
    with refuses(mg.StateError, "x->h1", "(6, 4)", "(5, 4)", "init"):
        program.step(other, X, Y)
    with refuses(mg.StateError, "'w'", "h2"):
        mg.compile(mlp([4, 5, 5, 3]), Backprop()).predict(program.init(), X)
    with refuses(mg.StateError, "init"):
        program.step({**program.init(), "x->h1": None}, X, Y)


@pytest.mark.parametrize(
    ("node", "channel", "change", "words"),
    [
        ("x->h1", "w", lambda t: t.to_sparse(), ["layout torch.sparse_coo", "to_dense()"]),
        ("x->h1", "w", lambda t: t.to_sparse_csr(), ["layout torch.sparse_csr", "to_dense()"]),
        ("x->h1", "w", lambda t: t.to("meta"), ["on meta", "on cpu"]),
        ("x->h1", "w", lambda t: t.numpy(), ["numpy.ndarray, not a tensor", "as_tensor"]),
        ("x->h1", "w", lambda t: t.double(), ["torch.float64", "torch.float32", "'program' stay integers"]),
        ("program", "step", lambda t: t.numpy(), ["not a tensor", "as_tensor"]),
        ("program", "step", lambda t: np.int64(t), ["numpy.int64, not a tensor"]),
        ("program", "step", float, ["float, not a tensor"]),
        ("program", "seed", lambda t: t.bool(), ["torch.bool, not torch.int64"]),
    ],
)
@pytest.mark.parametrize("rule", ["backprop", "node_perturbation"])
@pytest.mark.filterwarnings("ignore:Sparse CSR")
def test_tensors_of_a_state_that_no_step_can_take(rule, node, channel, change, words):
    program = mg.compile(mlp([4, 5, 3]), mg.make_protocol(rule))
    state = program.init()
    state[node][channel] = change(state[node][channel])
    with refuses(mg.StateError, f"[{channel!r}]", *words):
        program.step(state, X, Y)
    with refuses(mg.StateError, f"[{channel!r}]", *words):
        program.predict(state, X)
    if node == "program" and rule == "node_perturbation":
        with refuses(mg.StateError, *words):
            program.noise(state, 3)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda n: {k: v.numpy() for k, v in n.items()}, ["expected a tensor, got numpy.ndarray"]),
        (lambda n: {k: v.double() for k, v in n.items()}, ["expected torch.float32, got torch.float64", ".to("]),
        (lambda n: {k: v.to("meta") for k, v in n.items()}, ["on meta"]),
        (lambda n: {k: v.to_sparse() for k, v in n.items()}, ["torch.sparse_coo", "to_dense()"]),
        (lambda n: {k: v[:1] for k, v in n.items()}, ["expected shape", "program.noise(state, batch_size)"]),
        (lambda n: {}, ["got none", "program.noise(state, batch_size)"]),
        (lambda n: torch.zeros(3, 5), ["expected a dictionary of tensors by node", "program.noise"]),
    ],
)
def test_noise_that_no_step_can_take(change, words):
    program = mg.compile(mlp([4, 5, 3]), mg.make_protocol("node_perturbation"))
    state = program.init()
    with refuses(mg.InputError, "noise", *words):
        program.step(state, X, Y, noise=change(program.noise(state, len(X))))


# -- networks -----------------------------------------------------------------------------------------------


def drawn(act):
    network = mg.Network()
    network.input("x", 3), network.unit("h", 3), network.unit("g", 3), network.unit("y", 2)
    act(network)
    return network


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (lambda n: n.input("x", 3), ["'x'", "unique"]),
        (lambda n: n.unit("a->b", 3), ["'a->b'", "'->'"]),
        (lambda n: n.unit("program", 3), ["program"]),
        (lambda n: n.unit("z", 0), ["'z'", "positive", "0"]),
        (lambda n: n.unit("z", 2.0), ["'z'", "2.0"]),
        (lambda n: n.unit("z", 3, "tahn"), ["'tahn'", "did you mean 'tanh'"]),
        (lambda n: n.unit("z", 3, 5), ["5", "name, a function"]),
        (lambda n: n.unit("z", 3, bias=torch.zeros(4)), ["unit 'z': bias", "(4,)", "(3,)"]),
        (lambda n: mg.Softplus(-1.0), ["beta", "-1"]),
        (lambda n: n.connect("x", "hh"), ["'hh'", "did you mean 'h'"]),
        (lambda n: n.connect("h", "x"), ["'x'", "input"]),
        (lambda n: n.connect("x", "h", "densse"), ["'densse'", "dense"]),
        (lambda n: n.connect("x", "y", "one_to_one"), ["one_to_one", "(3,)", "(2,)"]),
        (lambda n: n.connect("x", "y", weight=torch.zeros(3, 2)), ["x->y", "(3, 2)", "(2, 3)"]),
        (lambda n: n.loss("y", "l3"), ["'l3'", "l2"]),
        (lambda n: n.loss("x", "l2"), ["'x'", "unit"]),
        (lambda n: n.frozen("q->*"), ["'q->*'"]),
    ],
)
def test_bad_drawings(act, words):
    with refuses(mg.NetworkError, *words):
        drawn(act)


def chain(*pairs, loss="y"):
    network = drawn(lambda n: None)
    for pre, post in pairs:
        network.connect(pre, post)
    if loss:
        network.loss(loss, "l2")
    return network


@pytest.mark.parametrize(
    ("network", "words"),
    [
        (chain(("x", "h"), ("h", "g"), ("g", "h"), ("g", "y")), ["cycle", "h", "g", "delay"]),
        (chain(("x", "h"), ("h", "h"), ("h", "g"), ("g", "y")), ["cycle", "h -> h"]),
        (chain(("x", "h"), ("h", "y")), ["'g'", "nothing is connected"]),
        (chain(("x", "h"), ("h", "g"), ("h", "y"), loss=None), []),
        (mg.Network(), ["no input"]),
    ],
)
def test_networks_refused_before_compilation(network, words):
    if not words:
        mg.compile(network, ForwardOnly())
        return
    with refuses(mg.NetworkError, *words):
        mg.compile(network, Backprop())


def test_units_that_lead_nowhere_name_the_fix():
    network = chain(("x", "h"), ("h", "g"), ("h", "y"))
    with refuses(mg.ProtocolError, "Backprop", "'backward'", "'g'", "loss"):
        mg.compile(network, Backprop())
    with refuses(mg.ProtocolError, "'y'", "loss"):
        mg.compile(chain(("x", "h"), ("h", "g"), ("g", "y"), loss=None), Backprop())


def test_compile_wants_a_network_and_a_rule():
    with refuses(mg.ProtocolError, "Backprop()"):
        mg.compile(mlp([4, 3]), Backprop)
    with refuses(mg.ProtocolError, "first argument"):
        mg.compile(Backprop(), mlp([4, 3]))
    with refuses(mg.ProtocolError, "'backprob'", "did you mean 'backprop'"):
        mg.make_protocol("backprob")
    with refuses(mg.NetworkError, "[4]"):
        mlp([4])


# -- rules --------------------------------------------------------------------------------------------------


class Weight(Agent):
    w, x = slow(init=mg.xavier_uniform), fast()

    def forward_update(self, s, pre):
        return s.set(x=pre)

    def forward_message(self, s):
        return s.w * s.x


class ForwardOnly(mg.Protocol):
    passes = ("forward",)

    def __init__(self, weight=None, **agents):
        super().__init__(weight=weight or Weight(), **agents)


def rule(**methods):
    return ForwardOnly(type("Odd", (Weight,), methods)())


@pytest.mark.parametrize(
    ("methods", "words"),
    [
        ({"forward_update": lambda self, s, pre: s.set(x=s.e)}, ["'x->h1'", "unknown channel 'e'", "w, x"]),
        (
            {"forward_update": lambda self, s, pre: s},
            ["'x->h1'", "'forward'", "'x'", "read before it is written"],
        ),
        ({"forward_update": lambda self, s, pre: pre}, ["return a view", "Value"]),
        ({"forward_update": lambda self, s, prev: s.set(x=prev)}, ["role 'prev'", "post, pre"]),
        ({"forward_update": lambda self, s, target: s.set(x=target)}, ["role 'target'", "post, pre"]),
        ({"forward_update": lambda self, s, pre: s.set(q=pre)}, ["unknown channel 'q'"]),
        ({"b": slow(frozen=True), "forward_update": lambda self, s, pre: s.set(b=pre)}, ["'b'", "frozen"]),
        ({"forward_message": lambda self, s: None}, ["x->h1 => h1", "None"]),
        ({"aggregate": {"pre": "median"}}, ["'median'", "mean"]),
        ({"forward_update": lambda self, s, pre: setattr(s, "x", pre)}, ["s.x", "s.set(x=...)"]),
        ({"forward_message": lambda self, s: s.x if s.x > 0 else s.w}, ["torch.where"]),
    ],
)
def test_rules_that_do_not_fit(methods, words):
    with refuses(mg.ProtocolError, *words):
        mg.compile(mlp([4, 5, 3], loss=None), rule(**methods))


def test_a_channel_names_the_shape_it_was_declared_with():
    class Three(mg.UnitAgent):
        z = fast("k")
        k = 3

    class Pair(Weight):
        def forward_message(self, s):
            return torch.stack([s.x, s.x])

    mg.compile(mlp([4, 5, 3], loss=None), ForwardOnly(unit=Three()))  # a number fits a channel of any size
    with refuses(mg.ProtocolError, "'h1'", "'z'", "(3,)", "(2,)"):
        mg.compile(mlp([4, 5, 3], loss=None), ForwardOnly(Pair(), unit=Three()))


def test_messages_that_differ_in_shape_name_the_arrow():
    class Pair(Weight):
        def forward_message(self, s):
            return torch.stack([s.w, s.w, s.w])

    class Odd(ForwardOnly):
        def agent(self, node):
            return Pair() if node.name == "x->y" else super().agent(node)

    class Two(Weight):
        def forward_message(self, s):
            return torch.stack([s.w, s.w])

    network = mlp([4, 5, 3], loss=None)
    network.connect("x", "y")
    with refuses(mg.ProtocolError, "broadcast", "=> y"):
        mg.compile(network, Odd(Two()))


def test_a_rule_without_an_agent_for_a_kind():
    with refuses(mg.ProtocolError, "'x->h1'", "'weight'"):
        mg.compile(mlp([4, 5, 3]), mg.Protocol())
    with refuses(mg.ProtocolError, "weight=3", "mg.Agent"):
        mg.Protocol(weight=3)


def test_record_names_what_there_is(program):
    with refuses(mg.ProtocolError, "unknown node 'h9'", "h1"):
        program.step(program.init(), X, Y, record={"h9": ["e"]})
    with refuses(mg.ProtocolError, "unknown channel 'q'", "e"):
        program.step(program.init(), X, Y, record={"h1": ["q"]})


def test_every_error_is_of_the_family():
    for error in (mg.NetworkError, mg.ProtocolError, mg.InputError, mg.StateError, mg.FileError):
        assert issubclass(error, mg.MPGraphError)
        assert issubclass(error, ValueError)


# -- flat units ---------------------------------------------------------------------------------------------


def test_step_units_warn_and_leave_the_layers_below_unchanged():
    network = mlp([4, 6, 5, 3], activation="step")
    with pytest.warns(mg.FlatUnitWarning, match=r"'h2' \(step\)") as record:
        program = mg.compile(network, Backprop())
    text = str(record[0].message)
    assert all(name in text for name in ("x->h1", "h1->h2", "h1.bias", "h2.bias", "surrogate"))
    assert "h2->y" not in text
    state = program.init()
    after, _ = program.step(state, torch.randn(8, 4), torch.zeros(8, dtype=torch.long))
    assert all(torch.equal(after[n]["w"], state[n]["w"]) for n in ("x->h1", "h1->h2", "h1.bias", "h2.bias"))
    assert not torch.equal(after["h2->y"]["w"], state["h2->y"]["w"])


@pytest.mark.parametrize(
    "function", [torch.sign, torch.round, lambda z: (z > 0).float(), lambda z: torch.tensor(0.0) * z]
)
def test_functions_without_derivative_are_found_by_probing(function):
    with pytest.warns(mg.FlatUnitWarning):
        mg.compile(mlp([4, 5, 3], function), Backprop())


def test_a_surrogate_is_the_derivative_of_its_function():
    program = mg.compile(mlp([4, 5, 3], "step"), FeedbackAlignment(surrogate="tanh"), dtype=torch.float64)
    x = torch.randn(6, 4, dtype=torch.float64)
    state = program.init()
    _, out = program.step(state, x, torch.zeros(6, dtype=torch.long), record={"h1": ["z", "e"], "y": ["e"]})
    z, error = out.recorded["h1"]["z"], out.recorded["y"]["e"] @ state["h1->y"]["b"]
    torch.testing.assert_close(out.recorded["h1"]["e"], error * (1 - torch.tanh(z) ** 2))
    with refuses(mg.NetworkError, "'thanh'"):
        mg.compile(mlp([4, 5, 3], "step"), FeedbackAlignment(surrogate="thanh"))
