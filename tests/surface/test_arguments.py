"""Bad arguments of the learned rules: refused in one sentence, before anything is made from them."""

import math
import re

import numpy as np
import pytest
import torch

import mpgraph as mg
from mpgraph.architectures import mlp
from mpgraph.arguments import Arguments
from mpgraph.protocols.blur import BLUR
from mpgraph.protocols.mplp import MPLP
from mpgraph.protocols.vsml import VSML

NAN, INF = math.nan, math.inf
WRONG = {
    MPLP: {
        "k": ["4", 2.5, 0, True, None],
        "n": [1.5, -4, "7"],
        "hidden": [80, (80,), (0, 0), (-1, 4), (8, 6, 4), "80", (8.0, 4), None],
        "share": [3, None, "layer", ["kind"], {"weight": "layer"}, {"weight": 3}, {"wieght": "kind"}],
        "learner": [["a"], "gru", None],
        "memory": ["batch", ["slot"], None],
        "between": ["gelu", ["tanh"], ""],
        "gate_bias": ["x", None, NAN, torch.tensor(1.0)],
        "scale": ["x", NAN, INF, None, 10**400],
        "gradient": ["yes", 1, None],
        "train_g": ["no", False],
        "generator": [3, "a"],
        "floor": [-1.0, "a", NAN],
    },
    VSML: {
        "state": ["16", 4.5, None, 0, True],
        "width": ["8", 3.0, 1],
        "cell": [["lstm"], "rnn", None],
        "merge": ["max", ["mean"]],
        "ticks": [1.5, "2", 0],
        "error": ["now", None],
        "output": [1.0, "1", 8, -1],
        "bound": ["a", 0.0, NAN, INF, False],
        "clip": ["a", -1.0, NAN],
        "average": ["a", 1.5, NAN, None],
        "random": ["a", -0.1, NAN],
        "offsets": [5, (1, 2, 3), ("a", 1), (NAN, 0.0), "12", None],
        "layers": [3, (1,), "x->h1", None],
        "units": ["ignore", ["merge"]],
        "seed": ["a", None, 1.5, 2**64],
        **{name: ["no", 1, None] for name in ("exchange", "feed_label", "layer_norm", "coordinates", "biases")},
    },
    BLUR: {
        "k": [1, "2", 2.0, True],
        "every": [0, 1.5, "2"],
        "steps": [-1, 1.5, "1"],
        "layers": [5, (1,), "h1", None],
        "eta_tilde": ["x", None, NAN, torch.tensor(0.1)],
        "seed": ["a", None, 1.5],
        "init": ["xavier", 3, None],
        "initial": ["zero", ["random"], None],
        "backward": ["sum", ["second"], abs],
        "activation": ["sigma", 3, None],
        "feedback": ["label", 3],
        "batch": ["max", None],
        "oja": ["weight", ["whole"], torch.ones(2)],
        **{
            name: ["no", 1, None]
            for name in (
                "single", "symmetric", "normalise", "rescale", "keep_states", "early_pre", "early", "input_backward"
            )
        },
    },
}  # fmt: skip
CASES = [(rule, name, value) for rule, names in WRONG.items() for name, values in names.items() for value in values]


@pytest.mark.parametrize(("rule", "name", "value"), CASES, ids=lambda v: str(v)[:20])
def test_bad_arguments_are_refused(rule, name, value):
    with pytest.raises(mg.ProtocolError, match=rf"^{rule.__name__}: {name}\b") as caught:
        rule(**{name: value})
    text = str(caught.value)
    assert "must be" in text or "unknown role" in text
    assert "\n" not in text
    assert caught.value.__cause__ is caught.value.__context__ is None


def test_what_has_no_effect_is_refused():
    for cell in ("gru", "vanilla"):
        with pytest.raises(mg.ProtocolError, match=rf"VSML: clip=4.0 must be None with cell='{cell}'"):
            VSML(cell=cell, clip=4)
    with pytest.raises(mg.ProtocolError, match="train_g=False must be True for the recurrent learner"):
        MPLP(train_g=False)
    MPLP(train_g=False, learner="separate"), VSML(cell="lstm", clip=4)


def test_messages_say_what_was_received_and_is_allowed():
    with pytest.raises(mg.ProtocolError, match=re.escape("MPLP: k='4' must be an integer of at least 1")):
        MPLP(k="4")
    with pytest.raises(mg.ProtocolError, match=re.escape("a sequence of patterns, each a string; write ('h1',)")):
        BLUR(layers="h1")
    with pytest.raises(mg.ProtocolError, match="init='xavier' must be a function, such as mg.xavier_uniform"):
        BLUR(init="xavier")
    with pytest.raises(mg.ProtocolError, match=re.escape("VSML: output=8 must be an integer from 0 to 7")):
        VSML(output=8)
    with pytest.raises(mg.ProtocolError) as caught:
        BLUR(seed=list(range(1000)))
    assert len(str(caught.value)) < 200


def test_numbers_of_other_kinds_are_taken():
    rule = MPLP(k=np.int64(3), scale=1, gate_bias=np.float32(0.5), hidden=[4, 3])
    assert (rule.k, rule.scale, rule.gate_bias, rule.hidden) == (3, 1.0, 0.5, (4, 3))
    program = mg.compile(mlp([3, 4, 2], "sigmoid"), rule)
    for output in rule.outputs.values():
        assert (output.scale.dtype, output.scale.item()) == (torch.get_default_dtype(), 1.0)
    assert program.init(batch_size=2)
    given = Arguments("X")
    assert given.number("a", 1, 0, 1) == given.number("a", 1.0, high=1, above=0) == 1.0
    for bad in (0, 1.5):
        with pytest.raises(mg.ProtocolError, match="X: a=.* must be a finite number above 0 and of at most 1"):
            given.number("a", bad, high=1, above=0)


@pytest.mark.parametrize(("rule", "what"), [(BLUR, "units"), (VSML, "connections")])
def test_patterns_that_serve_nothing_are_refused(rule, what):
    network = mlp([3, 4, 2], "sigmoid")
    good = "h1" if rule is BLUR else "*->h1"
    mg.compile(network, rule(layers=(good, "*")))
    with pytest.raises(mg.ProtocolError, match=rf"{rule.__name__}: layers=.*: 'h7' matches none of the {what}"):
        mg.compile(network, rule(layers=("h7", "*")))
    with pytest.raises(mg.ProtocolError, match=rf"all {what} that match '{re.escape(good)}' are taken by earlier"):
        mg.compile(network, rule(layers=("*", good)))
    with pytest.raises(mg.ProtocolError, match="taken by earlier"):
        mg.compile(network, rule(layers=(good, good, "*")))
    if rule is VSML:  # biases are no synapses, unless told so
        mg.compile(network, VSML(layers=("h1.bias",), biases=True))
        with pytest.raises(mg.ProtocolError, match=r"'h1\.bias' matches none"):
            mg.compile(network, VSML(layers=("h1.bias",)))


def pair(size=4):
    return torch.linspace(-1.0, 1.0, 3 * size).reshape(size, 3), torch.arange(size) % 2


X, Y = pair()
BAD = torch.where(X.eq(X[1, 1]), NAN, X)


@pytest.mark.parametrize(
    ("batches", "options", "message"),
    [
        ([(X, Y), (BAD, Y)], {}, r"batches\[1\]\[0\]=.* must be finite"),
        ([({"x": X / 0}, Y)], {}, r"batches\[0\]\[0\]\['x'\]=.* must be finite"),
        ([], {}, r"batches=\[\] must be pairs"),
        (iter(()), {}, "batches=.* must be pairs"),
        (3, {}, "batches=3 must be pairs"),
        (None, {}, "batches=None must be pairs"),
        ("xy", {}, "batches='xy' must be pairs"),
        ((X, Y), {}, r"batches\[0\]=tensor.* must be a pair"),
        ([X], {}, r"batches\[0\]=tensor.* must be a pair"),
        ([(X, Y, Y)], {}, r"batches\[0\]=.* must be a pair"),
        ([(X, None)], {}, r"batches\[0\]\[1\]=None must be a tensor"),
        ([({}, {})], {}, r"batches\[0\]\[0\]=\{\} must be a tensor"),
        ([(X[:0], Y[:0])], {}, r"batches\[0\]\[0\]=.* at least one example"),
        *(([(X, Y)], {"share": bad}, f"share={bad!r} must be") for bad in (0.0, -0.5, 1.5, NAN, "a", None)),
        *(([(X, Y)], {"seed": bad}, f"seed={bad!r} must be") for bad in ("a", 1.5, None)),
        ([(X, Y)], {"state": {"h9": {}}}, "state: unknown node 'h9'"),
        ([(X, Y)], {"state": [1]}, r"state=\[1\] must be a dictionary by node"),
    ],
)
def test_bad_arguments_of_measure_are_refused(batches, options, message):
    rule, network = MPLP(hidden=(3, 2)), mlp([3, 4, 2], "sigmoid")
    mg.compile(network, rule)
    before = {name: tensor.clone() for name, tensor in rule.state_dict().items()}
    with pytest.raises(mg.ProtocolError, match=rf"^MPLP\.measure: {message}"):
        rule.measure(network, batches, **options)
    assert all(torch.equal(tensor, before[name]) for name, tensor in rule.state_dict().items())


def test_steps_that_diverge_leave_no_record():
    rule, network = MPLP(hidden=(3, 2)), mlp([3, 4, 2], "sigmoid")
    wrong = {"x->h1": {"w": torch.full((4, 3), NAN)}}
    with pytest.raises(mg.ProtocolError, match="MPLP.measure: statistics of .* must be finite"):
        rule.measure(network, [(X, Y)], state=wrong)
    assert all(torch.isfinite(tensor).all() for tensor in rule.state_dict().values())


def test_nodes_without_a_record_are_told(recwarn, tmp_path):
    rule = MPLP(hidden=(3, 2))
    small, large = mlp([3, 4, 2], "sigmoid"), mlp([3, 4, 4, 2], "sigmoid")
    mg.compile(small, rule), mg.compile(large, rule)  # nothing is recorded yet
    rule.measure(small, [(X, Y)])
    mg.compile(small, rule)
    rule.save(tmp_path / "rule")
    mg.compile(small, mg.load_protocol(tmp_path / "rule"))
    assert not recwarn.list
    with pytest.warns(UserWarning, match=r"nothing was recorded for h2, .*h1->h2.* rule\.measure"):
        mg.compile(large, rule)
    rule.measure(large, [(X, Y)])
    mg.compile(large, rule)
    assert len(recwarn.list) == 0
