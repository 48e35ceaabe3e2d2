"""VS-ML, 784-10: 50 examples learned one by one, and the meta-gradient through them; the same in plain torch."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

import mpgraph as mg
from benchmarks.harness import OURS, Case, Contestant, Workload, cost
from mpgraph.architectures import mlp
from mpgraph.protocols import VSML

SCRIPT = "torch by hand"


def script(rule: VSML, start: Any, xs: Tensor, ys: Tensor) -> Tensor:
    """Mean loss of learning online: state (outputs, inputs, n), all gates in one product, both ticks unrolled."""
    own = dict(rule.named_parameters(prefix=""))
    named = {name.rpartition(".")[2]: p for name, p in own.items()}
    gates, n = named["W"].shape[:2]
    w = named["W"].transpose(0, 1).reshape(n, gates * n)
    f = named["F"][:, 0].reshape(gates * n)  # data come in on channel 0, the others are zero
    g = named["G"].transpose(0, 1).reshape(-1, gates * n)
    offset = torch.zeros(gates, 1, device=w.device)
    offset[0], offset[2] = rule.offsets[1], rule.offsets[0]
    bias = (named["b"] + offset).reshape(gates * n)
    h, c, above = start["x->y"]["h"][0], start["x->y"]["c"][0], start["x->y"]["g"][0]
    outputs, inputs = h.shape[:2]
    h, c = h.reshape(-1, n), c.reshape(-1, n)
    losses = []
    for x, y in zip(xs, ys, strict=True):
        received = torch.outer(x, f).unsqueeze(0) + (above @ g + bias).unsqueeze(1)
        received = received.reshape(-1, gates * n)
        for _ in range(2):
            i, u, keep, o = torch.addmm(received, h, w).chunk(gates, 1)
            c = torch.sigmoid(keep) * c + torch.sigmoid(i) * torch.tanh(u)
            h = torch.sigmoid(o) * torch.tanh(c)
        message = h.reshape(outputs, inputs, n).mean(1) @ named["C"] + named["C_b"]
        z = rule.bound * torch.tanh(message[:, rule.output] / rule.bound)
        losses.append(functional.cross_entropy(z, y))
        e = torch.softmax(z, 0) - functional.one_hot(y, outputs)
        above = functional.pad(e.unsqueeze(1), (0, rule.width - 1))
    return torch.stack(losses).mean()


def make(through: bool, quick: bool, device: str) -> Case:
    """Learning online, or the meta-gradient through it."""
    examples = 4 if quick else 50
    rule = VSML()
    program = mg.compile(mlp([784, 10]), rule, device=device)
    start = program.init(batch_size=1)
    xs = torch.randn(examples, 1, 784, device=device)
    ys = torch.randint(0, 10, (examples, 1), device=device)

    def learn() -> Tensor:
        state, losses = start, []
        for x, y in zip(xs, ys, strict=True):
            state, out = program.step(state, x, y)
            losses.append(out.loss)
        return torch.stack(losses).mean()

    def call(function: Any) -> Contestant:
        def contestant() -> Tensor:
            with torch.set_grad_enabled(through):
                loss = function()
                if through:
                    found = torch.autograd.grad(loss, list(rule.parameters()), allow_unused=True)
                    return sum(((p * p).sum() for p in found if p is not None), loss.detach())
            return loss

        return contestant

    contestants = {
        OURS: call(learn),
        SCRIPT: call(lambda: script(rule, start, xs[:, 0], ys[:, 0])),
    }
    return Case(contestants, SCRIPT, cost(program, 1, examples * (3 if through else 1)))


WORKLOADS = [
    Workload(
        "vsml_online",
        "VS-ML, 50 examples online, 784-10",
        functools.partial(make, False),
        None,
        {1: 50 * 2.93e-3, 2: 50 * 1.66e-3},
    ),
    Workload(
        "vsml_meta_gradient",
        "VS-ML, meta-gradient through 50 examples, 784-10",
        functools.partial(make, True),
        None,
        {1: 0.92, 2: 0.50},
    ),
]
