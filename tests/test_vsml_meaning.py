"""VS-ML against a plain implementation with loops, networks of torch, the theorems of the paper, and itself."""

import itertools
import math

import pytest
import torch
from conftest import ROOT  # noqa: F401 - one thread
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import batch, distance, networks

import mpgraph as mg
from mpgraph import interpreter
from mpgraph.architectures import mlp
from mpgraph.protocols import VSML

pytestmark = pytest.mark.filterwarnings("ignore::mpgraph.FlatUnitWarning")
DOUBLE = {"dtype": torch.float64}


def shaken(rule, seed=0, scale=0.5):
    """The rule with random numbers in all of its parameters, offsets and scales included."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in rule.parameters():
            p.add_(scale * torch.randn(p.shape, generator=generator))
    return rule


def examples(sizes, size, steps=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        x = torch.randn(size, sizes[0], generator=generator, **DOUBLE)
        yield x, torch.randint(0, sizes[-1], (size,), generator=generator)


# -- a plain implementation -------------------------------------------------------------------------------------


def cell(kind, p, inputs, state, keep, admit, clip):
    """One tick of all synapses of a layer; ``inputs`` a function from a gate to what it hears from outside."""
    gate = [inputs(i) + state["h"] @ p.W[i] for i in range(len(p.W))]
    if kind == "vanilla":
        return {"h": torch.tanh(gate[0])}
    if kind == "gru":
        r, k = torch.sigmoid(gate[0]), torch.sigmoid(gate[2] + keep)
        u = torch.tanh(inputs(1) + r * (state["h"] @ p.W[1]))
        return {"h": k * state["h"] + (1 - k) * u}
    c = torch.sigmoid(gate[2] + keep) * state["c"] + torch.sigmoid(gate[0] + admit) * torch.tanh(gate[1])
    c = c if clip is None else c.clamp(-clip, clip)
    return {"c": c, "h": torch.sigmoid(gate[3]) * torch.tanh(c)}


def plain(rule, sizes, states, data, *, kind, ticks, merge, exchange, error, feed_label, average, clip, apply, ln):
    """Predictions and states ``(batch, pre, post, n)`` of a stack of dense layers, layer by layer as published."""
    p, m = rule.agents["weight"], rule.agents["weight"].m
    layers = len(sizes) - 1
    size = len(next(iter(states[0].values())))
    g = [torch.zeros(size, n, m, **DOUBLE) for n in sizes[1:]]
    fed = torch.zeros(size, sizes[-1], m, **DOUBLE)

    def head(h, matrix, offset, scale, shift):
        message = h @ matrix + offset
        return torch.nn.functional.layer_norm(message, (m,), scale, shift) if ln else message

    def outgoing(k, way):
        own = [getattr(p, f"{way}{x}", None) for x in ("", "_b", "_scale", "_offset")]
        message = head(states[k]["h"], *own)
        return getattr(message, merge)(1 if way == "C" else 2)

    def tick(k, f, times):
        for _ in range(times):
            heard = {i: (f @ p.F[i])[:, :, None] + (g[k] @ p.G[i])[:, None] + p.b[i] for i in range(len(p.W))}
            states[k] = cell(kind, p, heard.__getitem__, states[k], 5.0, -5.0, clip)

    def forward(x, times):
        message, below = torch.nn.functional.pad(x[..., None], (0, m - 1)), []
        for k in range(layers):
            below.append(message)
            tick(k, message, times)
            message = outgoing(k, "C")
            message = apply(message) if k < layers - 1 else message
        return message, below

    for x, labels in data:
        if average:
            cut = round(average * p.n)
            for state in states:
                for name, value in state.items():
                    common = value.mean(0, keepdim=True).expand_as(value)
                    state[name] = torch.cat([common[..., :cut], value[..., cut:]], -1)
        rounds, once = (ticks, 1) if exchange else (1, ticks)
        g[-1] = torch.zeros_like(fed) if error == "reverse" else fed
        for turn in range(rounds):
            if turn and error == "next":
                g[:-1] = [outgoing(k, "U") for k in range(1, layers)]
            message, below = forward(x, once)
        y = 100 * torch.tanh(message[..., 1] / 100)
        target = torch.eye(sizes[-1], **DOUBLE)[labels]
        fed = torch.zeros_like(fed)
        fed[..., 0] = (torch.softmax(y, -1) - target) / size
        if feed_label:
            fed[..., 1] = target
        if error == "reverse":
            for _ in range(rounds):
                g[-1] = fed
                for k in reversed(range(layers)):
                    tick(k, below[k], once)
                    if k:
                        g[k - 1] = outgoing(k, "U")
        else:
            g[:-1] = [outgoing(k, "U") for k in range(1, layers)]
        yield y, [dict(s) for s in states]


OPTIONS = {
    "published": {},
    "sum": {"merge": "sum", "scale": 0.3},
    "gru": {"cell": "gru"},
    "vanilla": {"cell": "vanilla"},
    "messages exchanged": {"exchange": True, "ticks": 3},
    "reverse": {"error": "reverse", "feed_label": True},
    "reverse, exchanged": {"error": "reverse", "exchange": True, "ticks": 2},
    "all averaged": {"average": 1.0},
    "a quarter averaged": {"average": 0.25, "layer_norm": True},
    "private": {"average": 0.0, "cell": "gru", "error": "reverse"},
    "clipped": {"clip": 0.3, "scale": 2.0},
    "units apply": {"units": "apply", "feed_label": True},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_equals_a_plain_implementation(name):
    options = dict(OPTIONS[name])
    scale = options.pop("scale", 0.5)
    sizes = [3, 4, 2, 3]
    rule = shaken(VSML(4, 3, **options), scale=scale)
    program = mg.compile(mlp(sizes, activation="tanh"), rule, **DOUBLE)
    state = program.init(seed=1, batch_size=3)
    wires = list(program.graph.network.wires)
    memory = ("h", "c") if rule.agents["weight"].gates == 4 else ("h",)
    for wire in wires:  # different memories in every slot
        for c in memory:
            state[wire][c] = torch.randn(state[wire][c].shape, generator=torch.Generator().manual_seed(3), **DOUBLE)
    states = [{c: state[wire][c].transpose(1, 2) for c in memory} for wire in wires]
    meant = plain(
        rule,
        sizes,
        states,
        examples(sizes, 3, 4),
        kind=options.get("cell", "lstm"),
        ticks=options.get("ticks", 2),
        merge=options.get("merge", "mean"),
        exchange=options.get("exchange", False),
        error=options.get("error", "next"),
        feed_label=options.get("feed_label", False),
        average=options.get("average", 0.5),
        clip=options.get("clip"),
        apply=torch.tanh if options.get("units") == "apply" else lambda z: z,
        ln=options.get("layer_norm", False),
    )
    for (x, y), (prediction, after) in zip(examples(sizes, 3, 4), meant, strict=True):
        assert (program.predict(state, x) - prediction).abs().max() < 1e-12
        state, out = program.step(state, x, y)
        assert (out.prediction - prediction).abs().max() < 1e-12
        for wire, layer in zip(wires, after, strict=True):
            for c in memory:
                assert (state[wire][c].transpose(1, 2) - layer[c]).abs().max() < 1e-12, (wire, c)


def test_options_make_a_difference():
    """Each option of the test above changes the prediction of the last example: none is without effect."""
    sizes, found = [3, 4, 2, 3], {}
    for name, options in OPTIONS.items():
        options = {k: v for k, v in options.items() if k != "scale"}
        program = mg.compile(mlp(sizes), shaken(VSML(4, 3, **options)), **DOUBLE)
        state = program.init(batch_size=3)
        for x, y in examples(sizes, 3, 4):
            state, out = program.step(state, x, y)
        found[name] = out.prediction.detach()
    found.pop("all averaged"), found.pop("clipped")  # need other states, see above
    for one, two in itertools.combinations(found, 2):
        assert not torch.allclose(found[one], found[two], atol=1e-9), (one, two)
