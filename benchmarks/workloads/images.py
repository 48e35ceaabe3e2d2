"""One learning step of backprop on images, against the same torch modules with autograd and SGD."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import mpgraph as mg
from benchmarks.harness import OURS, Case, Contestant, Workload, cost
from mpgraph.architectures import convnet, resnet
from mpgraph.protocols import BLUR, Backprop, FeedbackAlignment

from .steps import AUTOGRAD, fed_back

RATE = 0.01
BACKPROP = "backprop, mpgraph"


def lenet() -> nn.Module:
    """LeNet-5."""
    return nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2), nn.Tanh(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5), nn.Tanh(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(400, 120), nn.Tanh(), nn.Linear(120, 84), nn.Tanh(), nn.Linear(84, 10),
    )  # fmt: skip


class Block(nn.Module):
    """Two convolutions and a shortcut."""

    def __init__(self, inputs: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, channels, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.norm1, self.norm2 = nn.BatchNorm2d(channels), nn.BatchNorm2d(channels)
        self.short: nn.Module = nn.Identity()
        if stride > 1:
            self.short = nn.Sequential(nn.Conv2d(inputs, channels, 1, stride, bias=False), nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Relu of the sum."""
        y = functional.relu(self.norm1(self.conv1(x)))
        return functional.relu(self.norm2(self.conv2(y)) + self.short(x))


def resnet20() -> nn.Module:
    """ResNet-20 for 32-pixel images."""
    layers: list[nn.Module] = [nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    channels = 16
    for stage in range(3):
        for block in range(3):
            layers.append(Block(channels, 16 * 2**stage, 2 if stage and not block else 1))
            channels = 16 * 2**stage
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def make(
    module: Callable[[], nn.Module],
    network: Callable[[], Any],
    shape: tuple[int, ...],
    quick: bool,
    device: str,
) -> Case:
    """Autograd, backprop and feedback alignment, each from weights of its own: only the first two compute the same."""
    if quick:
        shape = (4, *shape[1:])
    x, y = torch.randn(shape, device=device), torch.randint(0, 10, shape[:1], device=device)
    model = module().to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)

    def step() -> None:
        optimizer.zero_grad()
        functional.cross_entropy(model(x), y).backward()
        optimizer.step()

    program = mg.compile(network(), Backprop(lr=RATE), device=device)
    alignment = mg.compile(network(), FeedbackAlignment(lr=RATE), device=device)
    contestants: dict[str, Contestant] = {
        OURS: _silent(fed_back(program, program.init(), x, y)),
        "feedback alignment": _silent(fed_back(alignment, alignment.init(), x, y)),
        AUTOGRAD: step,
    }
    return Case(contestants, AUTOGRAD, cost(program, shape[0], 1))


def states(k: int, quick: bool, device: str) -> Case:
    """A step of neurons with k states beside one of backprop, on LeNet: with its genome they compute the same."""
    x = torch.randn(4 if quick else 64, 1, 28, 28, device=device)
    y = torch.randint(0, 10, (len(x),), device=device)
    rules = {OURS: BLUR(k=k, eta_tilde=-RATE, batch="mean"), BACKPROP: Backprop(lr=RATE)}
    made: dict[str, Contestant] = {}
    for name, rule in rules.items():
        program = mg.compile(convnet(), rule, device=device)
        made[name] = fed_back(program, program.init(), x, y)
    return Case(made, BACKPROP)


def _silent(function: Contestant) -> Contestant:
    def step() -> None:
        function()

    return step


WORKLOADS = [
    Workload("lenet", "LeNet, batch 64", functools.partial(make, lenet, convnet, (64, 1, 28, 28)), 0.92),
    Workload(
        "resnet20",
        "ResNet-20, batch 16",
        functools.partial(make, resnet20, lambda: resnet(20), (16, 3, 32, 32)),
        1.05,
    ),
    Workload("lenet-blur", "BLUR step of LeNet, 2 states, batch 64", functools.partial(states, 2), 6.0),
]
