"""VS-ML against published vectors, against recurrent networks of torch, and against the paper's own claims."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from torch.nn import functional

import mpgraph as mg
from mpgraph import Agent, fast, slow
from mpgraph.architectures import mlp
from mpgraph.protocols import VSML

pytestmark = pytest.mark.filterwarnings("ignore::mpgraph.FlatUnitWarning")
GOLDEN = Path(os.environ.get("MPGRAPH_VECTORS", ROOT.parent / "shared" / "reference" / "golden"))
TOLERANCE = {torch.float64: 1e-12, torch.float32: 5e-6}
BOTH = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["f64", "f32"])


def vectors(pattern):
    """Names of the published vectors; one placeholder, which is skipped, where there are none."""
    return sorted(p.name for p in GOLDEN.glob(pattern)) or ["none"]


def load(name):
    if not (GOLDEN / name).is_file():
        pytest.skip(f"no vectors {name}: set MPGRAPH_VECTORS to their folder")
    return dict(np.load(GOLDEN / name))


def genome(arrays, prefix=""):
    """Published arrays by the names of this project: gates in the order input, candidate, forget, output."""
    a = {k.removeprefix(prefix): torch.tensor(v) for k, v in arrays.items() if k.startswith(prefix)}
    n, m = a["fwd_w"].shape
    rows = a["lstm_w"].unflatten(1, (4, n)).transpose(0, 1)
    found = {"F": rows[:, :m], "G": rows[:, m : 2 * m], "W": rows[:, 2 * m :], "b": a["lstm_b"].unflatten(0, (4, n))}
    for ours, theirs in (("C", "fwd"), ("U", "bwd")):
        found |= {ours: a[f"{theirs}_w"], f"{ours}_b": a[f"{theirs}_b"]}
        if f"{theirs}_ln_scale" in a:
            found |= {f"{ours}_scale": a[f"{theirs}_ln_scale"], f"{ours}_offset": a[f"{theirs}_ln_offset"]}
    return found


def with_genome(rule, parameters):
    """The rule, with its parameters set."""
    own = dict(rule.agents["weight"].named_parameters())
    assert own.keys() == parameters.keys()
    for name, value in parameters.items():
        assert own[name].shape == value.shape, name
        own[name].data = value.clone()
    return rule


def near(one, two, dtype, what=""):
    difference = float((one.detach() - torch.as_tensor(two, dtype=dtype)).abs().max())
    assert difference <= TOLERANCE[dtype], (what, difference)


# -- published vectors ------------------------------------------------------------------------------------------


def start(program, d, dtype):
    """The initial state of a file."""
    size = d["x"].shape[1]
    state = program.init(batch_size=size)
    for k, wire in enumerate(program.graph.network.wires):
        for c in ("h", "c"):  # published (inputs, outputs, state)
            state[wire][c] = torch.tensor(d[f"{c}0_{k}"], dtype=dtype).transpose(0, 1).expand(size, -1, -1, -1)
    return state


def episode(program, state, d, dtype, check=None):
    """All examples of a file in turn; the mean loss."""
    losses = []
    for t in range(len(d["x"])):
        x, y = (torch.tensor(d[k][t], dtype=dtype) for k in ("x", "y"))
        state, out = program.step(state, x, y)
        losses.append(out.loss)
        if check:
            check(t, state, out)
    return torch.stack(losses).mean()


@BOTH
@pytest.mark.parametrize("name", vectors("vsml_online_*.npz"))
def test_online_learning(name, dtype):
    d = load(name)
    sizes = [d["x"].shape[-1], *(d[f"h0_{k}"].shape[1] for k in range(len(d["sizes"]) - 1))]
    n, m = d["fwd_w"].shape
    rule = VSML(
        n,
        m,
        ticks=int(d["num_micro_ticks"]),
        error="reverse" if d["backward_pass"] else "next",
        feed_label=bool(d["feed_label"]),
        layer_norm=bool(d["layer_norm"]),
        bound=float(d["tanh_bound"]),
    )
    with_genome(rule, genome(d))
    program = mg.compile(mlp(sizes), rule, dtype=dtype)
    wires = list(program.graph.network.wires)

    def check(t, state, out):
        near(out.prediction, d["logits"][t], dtype, "logits")
        near(state["loss"]["e"][..., :2], d["errors"][t], dtype, "errors")
        for k, wire in enumerate(wires):
            for c in ("h", "c"):
                near(state[wire][c].transpose(1, 2), d[f"{c}_{k}"][t], dtype, (t, c, k))
            if wire != wires[-1]:  # theirs of the last layer is that of the example before
                near(state[wire]["g"], d[f"in_bwd_msg_{k}"][t], dtype, (t, "g", k))

    loss = episode(program, start(program, d, dtype), d, dtype, check)
    near(loss, d["outer_loss"], dtype, "loss")
    wanted = genome(d, "grad_")
    parameters = dict(rule.agents["weight"].named_parameters())
    gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    for (key, parameter), gradient in zip(parameters.items(), gradients, strict=True):
        near(torch.zeros_like(parameter) if gradient is None else gradient, wanted[key], dtype, f"gradient of {key}")


def test_evolution_strategies_find_the_published_losses():
    """All members at once, plus and minus, as one vmapped program over genomes."""
    d = load("vsml_es_estimate.npz")
    n, m = d["fwd_w"].shape
    program = mg.compile(mlp([6, 3]), VSML(n, m), dtype=torch.float64)
    names = {k: f"protocol.agents.weight.{k}" for k in genome(d)}
    centre, sigma = genome(d), float(d["sigma"])
    noise = [genome(d, f"eps{j}_") for j in range(int(d["population"]))]
    signs = torch.tensor([sigma, -sigma], dtype=torch.float64)
    members = {
        names[k]: centre[k] + torch.einsum("s,p...->sp...", signs, torch.stack([e[k] for e in noise])) for k in names
    }

    class Episode(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.program, self.state = program, start(program, d, torch.float64)

        def forward(self):
            return episode(self.program, self.state, d, torch.float64)

    whole = Episode()

    def loss(parameters):
        return torch.func.functional_call(whole, {f"program.{k}": v for k, v in parameters.items()}, ())

    found = torch.func.vmap(torch.func.vmap(loss))(members)
    near(found, np.stack([d["loss_plus"], d["loss_minus"]]), torch.float64)
    near(found.mean(), d["mean_loss"], torch.float64)
    step = (found[0] - found[1]) / (2 * sigma**2)
    wanted = genome(d, "es_grad_")
    for key, name in names.items():
        estimate = torch.einsum("p,p...->...", step, members[name][0] - centre[key]) / len(noise)
        assert (estimate - wanted[key]).abs().max() < 1e-12, key


class Fed(Agent):
    """An input that sends whatever message the state says."""

    value = fast()
    message = slow("m")

    def __init__(self, m):
        super().__init__()
        self.m = m

    def forward_message(self, s):
        return s.message


def visited(network, d, dtype, messages, held, h, c, **options):
    """State and record after one step of a network ``x -> u -> y`` that is fed messages from both sides."""
    n, m = d["fwd_w"].shape
    rule = VSML(n, m, average=0.0, layer_norm="fwd_ln_scale" in d, input=Fed(m), **options)
    program = mg.compile(network, with_genome(rule, genome(d)), dtype=dtype)
    state = program.init(batch_size=1)
    given = {"x": {"message": messages}, "u->y": {"g": held[None], "h": h[None], "c": c[None]}}
    for node, channels in given.items():
        for channel, value in channels.items():
            assert state[node][channel].shape == value.shape
            state[node][channel] = value.to(dtype)
    x = torch.zeros(1, *network.shape("x"), dtype=dtype)
    state, out = program.step(state, x, record={"u": ["up"], "y": ["y"]})
    return state["u->y"], out.recorded["y"]["y"][0], out.recorded["u"]["up"][0]


def two_ends(below, above, connection="dense"):
    network = mg.Network()
    network.input("x", below), network.unit("u", below, "identity"), network.unit("y", above, "identity")
    network.connect("x", "u", "identity"), network.connect("u", "y", connection)
    return network


@BOTH
@pytest.mark.parametrize("ticks", [1, 2, 3])
@pytest.mark.parametrize("name", vectors("vsml_dense_layer*.npz"))
def test_one_layer(name, ticks, dtype):
    d = load(name)
    t = {k: torch.tensor(v) for k, v in d.items()}
    h, c = t["h0"].transpose(0, 1), t["c0"].transpose(0, 1)
    network = two_ends(len(h[0]), len(h))
    state, up, down = visited(network, d, dtype, t["in_fwd_msg"], t["in_bwd_msg"], h, c, ticks=ticks)
    for channel in ("h", "c"):
        near(state[channel][0].transpose(0, 1), d[f"{channel}_n{ticks}"], dtype, channel)
    near(up, d[f"out_fwd_msg_n{ticks}"], dtype, "forward")
    near(down, d[f"out_bwd_msg_n{ticks}"], dtype, "backward")
    if ticks == 1:  # the first synapse alone
        one = two_ends(1, 1)
        state, up, down = visited(
            one, d, dtype, t["in_fwd_msg"][:1], t["in_bwd_msg"][:1], h[:1, :1], c[:1, :1], ticks=1
        )
        for found, key in ((state["h"], "h1"), (state["c"], "c1"), (up, "fwd_out"), (down, "bwd_out")):
            near(found.flatten(), d[f"cell_{key}"], dtype, key)


@BOTH
@pytest.mark.parametrize("name", vectors("vsml_conv2d_*.npz"))
def test_convolution(name, dtype):
    """States and forward messages; backward ones where the published are right, which is at stride 1."""
    d = load(name)
    t = {k: torch.tensor(v) for k, v in d.items()}
    stride, kernel = int(d["stride"]), len(d["h0"])
    messages, held = t["in_fwd_msg"].permute(2, 0, 1, 3), t["in_bwd_msg"].permute(2, 0, 1, 3)
    # The published code centres its kernel on pixels 0, stride, 2 * stride, ...: the same border on every side, also
    # where "SAME" padding of other libraries is not symmetric (an even image, stride 2). Pixels outside send zero.
    border = kernel // 2
    messages = functional.pad(messages, (0, 0, *[border] * 4))
    meeting = mg.Conv2d(kernel, stride=stride)
    network = two_ends(tuple(messages.shape[:3]), tuple(held.shape[:3]), meeting)
    h, c = (t[k].permute(3, 2, 0, 1, 4) for k in ("h0", "c0"))
    state, up, down = visited(network, d, dtype, messages, held, h, c, ticks=1)
    near(state["h"][0].permute(2, 3, 1, 0, 4), d["h1"], dtype, "h")
    near(state["c"][0].permute(2, 3, 1, 0, 4), d["c1"], dtype, "c")
    near(up.permute(1, 2, 0, 3), d["out_fwd_msg"], dtype, "forward")
    if stride == 1:
        inner = down[:, border:-border, border:-border]
        near(inner.permute(1, 2, 0, 3), d["out_bwd_msg"], dtype, "backward")
        same = mg.Conv2d(kernel, padding=border)  # the same, with pixels outside that are not there
        network = two_ends(tuple(t["in_fwd_msg"].permute(2, 0, 1, 3).shape[:3]), tuple(held.shape[:3]), same)
        _, _, down = visited(network, d, dtype, t["in_fwd_msg"].permute(2, 0, 1, 3), held, h, c, ticks=1)
        near(down.permute(1, 2, 0, 3), d["out_bwd_msg"], dtype, "backward")
