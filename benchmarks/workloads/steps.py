"""One learning step of a small dense network: the program, its generated code, torch by hand, autograd with SGD."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

import mpgraph as mg
from benchmarks.harness import OURS, Case, Contestant, Workload, cost
from mpgraph.architectures import mlp
from mpgraph.protocols import Backprop, FeedbackAlignment

RATE = 0.1
AUTOGRAD, HAND, CODE = "autograd + SGD", "torch by hand", "generated code"


def autograd(sizes: Sequence[int], state: Any, x: Tensor, y: Tensor) -> Contestant:
    """The usual training step of an ``nn.Sequential``."""
    layers: list[Any] = []
    for (before, after), weight in zip(itertools.pairwise(sizes), weights(sizes, state), strict=True):
        layer = torch.nn.Linear(before, after, device=x.device)
        with torch.no_grad():
            layer.weight.copy_(weight)
            layer.bias.zero_()
        layers += [layer, torch.nn.Tanh()]
    model = torch.nn.Sequential(*layers[:-1])
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)

    def step() -> Tensor:
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def names(sizes: Sequence[int]) -> list[str]:
    """Of the connections of an MLP from the input on."""
    nodes = ["x", *(f"h{i}" for i in range(1, len(sizes) - 1)), "y"]
    return [f"{before}->{after}" for before, after in itertools.pairwise(nodes)]


def weights(sizes: Sequence[int], state: Any, channel: str = "w") -> list[Tensor]:
    """Those of a program's state."""
    return [state[name][channel].clone() for name in names(sizes)]


def by_hand(sizes: Sequence[int], state: Any, x: Tensor, y: Tensor) -> Contestant:
    """Explicit forward, backward and update of a tanh network, nothing else, no checks; errors go back by w or b."""
    w = weights(sizes, state)
    fixed = weights(sizes, state, "b") if "b" in state[names(sizes)[-1]] else None
    own: list[Any] = [w, [torch.zeros(size, device=x.device) for size in sizes[1:]]]
    one_hot = torch.eye(sizes[-1], device=x.device)
    scale, online = -RATE / len(x), len(x) == 1

    def step() -> Tensor:
        w, b = own
        activities = [x]
        for weight, bias in zip(w[:-1], b[:-1], strict=True):
            activities.append(torch.tanh(functional.linear(activities[-1], weight, bias)))
        z = functional.linear(activities[-1], w[-1], b[-1])
        target = one_hot.index_select(0, y)
        loss = torch.sum(torch.log_softmax(z, -1) * target, -1).neg().mean()
        e = torch.softmax(z, -1) - target
        new_w, new_b = [], []
        back = w if fixed is None else fixed
        for weight, bias, activity, carrier in zip(w[::-1], b[::-1], activities[::-1], back[::-1], strict=True):
            if online:
                new_w.append(torch.addcmul(weight, e.t(), activity, value=scale))
                new_b.append(torch.add(bias, e[0], alpha=scale))
            else:
                new_w.append(torch.addmm(weight, e.t(), activity, alpha=scale))
                new_b.append(torch.add(bias, e.sum(0), alpha=scale))
            if activity is not x:
                e = torch.ops.aten.tanh_backward.default(torch.mm(e, carrier), activity)
        own[:] = [new_w[::-1], new_b[::-1]]
        return loss

    return step


def fed_back(program: Any, state: Any, x: Tensor, y: Tensor) -> Contestant:
    """A program's step, without a graph for gradients."""
    own = [state]

    def step() -> Tensor:
        with torch.no_grad():
            own[0], out = program.step(own[0], x, y)
        return out.loss

    return step


def make(sizes: Sequence[int], batch: int, rule: Callable[..., Any], quick: bool, device: str) -> Case:
    """Of one network and rule."""
    if quick:
        batch = min(batch, 32)
    program = mg.compile(mlp(list(sizes)), rule(lr=RATE), device=device)
    x = torch.randn(batch, sizes[0], device=device)
    y = torch.randint(0, sizes[-1], (batch,), device=device)
    state = program.init()
    contestants: dict[str, Contestant] = {
        OURS: fed_back(program, state, x, y),
        HAND: by_hand(sizes, state, x, y),
    }
    if rule is Backprop:
        contestants[AUTOGRAD] = autograd(sizes, state, x, y)
    return Case(contestants, AUTOGRAD if rule is Backprop else HAND, cost(program, batch, 1))


def workload(name: str, sizes: Sequence[int], batch: int, rule: Callable[..., Any], wanted: float | None) -> Workload:
    """A row of the table."""
    title = f"{name.partition(' ')[0]} step {'-'.join(map(str, sizes))}, batch {batch}"
    return Workload(name.replace(" ", "_"), title, functools.partial(make, sizes, batch, rule), wanted)


WORKLOADS = [
    workload("backprop batch", [784, 512, 10], 128, Backprop, 0.88),
    workload("backprop online", [784, 170, 130, 100, 70, 47], 1, Backprop, 0.44),
    workload("feedback_alignment batch", [784, 512, 10], 128, FeedbackAlignment, None),
]
