"""A meta-step of MPLP: twenty updates with a hint loss after each, meta-gradient, Adam; the same in plain torch."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

import mpgraph as mg
from benchmarks.harness import OURS, Case, Contestant, Workload, cost
from mpgraph.architectures import mlp
from mpgraph.protocols import MPLP

SCRIPT = "torch by hand"
K = 4


def learner(p: dict[str, Tensor], name: str, c: Tensor, inputs: Sequence[Tensor]) -> Tensor:
    """One GRU with two inner MLPs: the new carry ``(..., size)`` of agents whose inputs broadcast."""
    x = torch.cat([v.expand(*c.shape[:-1], v.shape[-1]) for v in inputs], -1)
    named = {key.removeprefix(f"learners.{name}.gru."): value for key, value in p.items()}
    both = torch.cat([x, c], -1)
    gates = torch.cat([torch.cat([named[f"W{g}x"], named[f"W{g}c"]]) for g in "ur"], 1)
    u, r = torch.sigmoid(both @ gates + torch.cat([named["bu"], named["br"]])).chunk(2, -1)

    def inner(which: str, v: Tensor) -> Tensor:
        h = torch.tanh(v @ named[f"{which}.K1"] + named[f"{which}.b1"])
        h = torch.tanh(h @ named[f"{which}.K2"] + named[f"{which}.b2"])
        return h @ named[f"{which}.K3"]

    new = torch.tanh(inner("x", x) + inner("c", c * r) + named["bn"])
    return torch.lerp(new, c, u)


def script(
    p: dict[str, Tensor], s: dict[str, Any], x: Tensor, y: Tensor, sizes: Sequence[int]
) -> tuple[dict[str, Any], Tensor]:
    """A step of a network of one hidden layer; the state after it and the prediction before it."""
    one = torch.functional.Tensor.unsqueeze  # number -> vector of one
    h_in = x @ s["w1"].t()
    h_z = h_in + s["b1"]
    h = torch.sigmoid(h_z)
    y_in = h @ s["w2"].t()
    y_z = y_in + s["b2"]
    shifted = y_z - y_z.amax(1, keepdim=True)
    exp = torch.exp(shifted)
    total = exp.sum(1, keepdim=True).expand_as(exp)
    softmax = exp / total
    target = functional.one_hot(y, sizes[-1]).to(x.dtype)
    new = dict(s)
    # the loss reads itself, then sends a message down
    clipped = torch.clamp(softmax, 1e-7, 1.0 - 1e-7)
    log = torch.log(clipped)
    inputs = [one(v, -1) for v in (-target * log, clipped, target, log)]
    new["c_loss"] = learner(p, "negative_log_likelihood_loss", s["c_loss"], inputs)
    m = new["c_loss"][..., -K:]
    inputs = [m, *(one(v, -1) for v in (y_z, shifted, exp, total))]
    new["c_link"] = learner(p, "softmax_link", s["c_link"], inputs)
    m = new["c_link"][..., -K:]
    m = _bias(p, s, new, "b2", "c_b2", m, y_in, "outputs.y/bias.scale")
    m = _weight(p, s, new, "w2", "c_w2", m, h, "outputs.h1->y.scale")
    new["c_h"] = learner(p, "sigmoid_unit", s["c_h"], [m, one(h_z, -1)])
    m = new["c_h"][..., -K:]
    m = _bias(p, s, new, "b1", "c_b1", m, h_in, "outputs.h1/bias.scale")
    _weight(p, s, new, "w1", "c_w1", m, x, "outputs.x->h1.scale")
    return new, softmax


def _bias(
    p: dict[str, Tensor], s: Any, new: Any, name: str, memory: str, m: Tensor, below: Tensor, scale: str
) -> Tensor:
    b = s[name]
    c = learner(p, "bias", s[memory], [m, b.expand(len(m), -1).unsqueeze(-1), below.unsqueeze(-1)])
    new[memory], new[name] = c, b + c[..., 0].mean(0) * p[scale]
    return c[..., -K:]


def _weight(
    p: dict[str, Tensor], s: Any, new: Any, name: str, memory: str, m: Tensor, below: Tensor, scale: str
) -> Tensor:
    w = s[name]
    c = learner(p, "weight", s[memory], [m.unsqueeze(2), w[None, :, :, None], below[:, None, :, None]])
    new[memory], new[name] = c, w + c[..., 0].mean(0) * p[scale]
    return c[..., -K:].mean(1)


CHANNELS = {
    "w1": ("x->h1", "w"), "c_w1": ("x->h1", "c"), "b1": ("h1.bias", "w"), "c_b1": ("h1.bias", "c"), "c_h": ("h1", "c"),
    "w2": ("h1->y", "w"), "c_w2": ("h1->y", "c"), "b2": ("y.bias", "w"), "c_b2": ("y.bias", "c"),
    "c_link": ("loss.link", "c"), "c_loss": ("loss", "c"),
}  # fmt: skip


def make(quick: bool, device: str) -> Case:
    """144-50-10, batch 8."""
    sizes, steps = ([36, 16, 10], 4) if quick else ([144, 50, 10], 20)
    rule = MPLP(k=K, n=7)
    network = mlp(sizes, activation="sigmoid")
    programs = {
        OURS: mg.compile(network, rule, device=device),
        f"{OURS}, memory='3 GiB'": mg.compile(network, rule, device=device, memory="3 GiB"),
    }
    program = programs[OURS]
    start = program.init(batch_size=8)
    xs = torch.randn(steps + 1, 8, sizes[0], device=device)
    ys = torch.randint(0, 10, (steps + 1, 8), device=device)
    adam = torch.optim.Adam(rule.parameters(), lr=0.0)

    def learn(hint: Tensor, last: Tensor) -> Tensor:
        loss = 0.7 * hint / steps + 0.3 * last
        adam.zero_grad()
        loss.backward()
        adam.step()
        return loss.detach()

    def ours(program: mg.Program) -> Tensor:
        state, hint = start, torch.zeros((), device=device)
        for x, y in zip(xs[:steps], ys, strict=False):
            state, _ = program.step(state, x, y)
            hint = hint + functional.cross_entropy(program.predict(state, x), y)
        return learn(hint, functional.cross_entropy(program.predict(state, xs[steps]), ys[steps]))

    parameters = dict(rule.named_parameters())

    def predict(s: Any, x: Tensor) -> Tensor:
        z = torch.sigmoid(x @ s["w1"].t() + s["b1"]) @ s["w2"].t() + s["b2"]
        return torch.softmax(z, 1) if softmaxed else z

    softmaxed = bool(torch.allclose(program.predict(start, xs[0]).sum(1), torch.ones(8, device=device), atol=1e-4))

    def by_hand() -> Tensor:
        s: dict[str, Any] = {name: start[node][channel] for name, (node, channel) in CHANNELS.items()}
        hint = torch.zeros((), device=device)
        for x, y in zip(xs[:steps], ys, strict=False):
            s, _ = script(parameters, s, x, y, sizes)
            hint = hint + functional.cross_entropy(predict(s, x), y)
        return learn(hint, functional.cross_entropy(predict(s, xs[steps]), ys[steps]))

    contestants: dict[str, Contestant] = {name: partial(ours, program) for name, program in programs.items()}
    return Case({**contestants, SCRIPT: by_hand}, SCRIPT, cost(program, 8, 3 * steps))


WORKLOADS = [
    Workload("mplp_meta_step", "MPLP, meta-step 144-50-10, 20 updates, batch 8", make, None, {1: 1.73, 2: 1.24})
]
