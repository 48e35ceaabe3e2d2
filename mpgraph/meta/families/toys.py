"""Toys of two numbers, as in BLUR (Sandler et al., 2021): Boolean functions, and shapes in the plane."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Generator, Tensor

from mpgraph.arguments import Arguments
from mpgraph.errors import InputError, unknown
from mpgraph.meta.task import SPLITS, Task, TaskFamily, checked_split

BOOLEAN: dict[str, Callable[[Tensor], Tensor]] = {  # of two numbers between -1 and 1: which side of zero they are on
    "and": lambda x: (x > 0).all(-1),
    "or": lambda x: (x > 0).any(-1),
    "xor": lambda x: x.prod(-1) > 0,
    "nand": lambda x: ~(x > 0).all(-1),
    "nor": lambda x: ~(x > 0).any(-1),
    "nxor": lambda x: x.prod(-1) < 0,
}


class _Toys(TaskFamily):
    """Named tasks with fresh examples in every batch.

    Args:
        known: all names.
        names: of the tasks, by split.
        steps: inner steps.
        batch: examples in each.
        queries: held-out examples.
    """

    inputs, outputs = 2, 1

    def __init__(
        self, known: Sequence[str], names: Mapping[str, Sequence[str]], steps: int, batch: int, queries: int
    ) -> None:
        check = Arguments(type(self).__name__)
        self.steps, self.batch = check.integer("steps", steps, 1), check.integer("batch", batch, 1)
        self.queries = check.integer("queries", queries, 1)
        self.names = dict(names)
        for split, chosen in self.names.items():
            checked_split(split)
            for name in chosen:
                if name not in known:
                    raise InputError(f"{type(self).__name__}: " + unknown("task", name, known))

    def examples(self, name: str, count: int, generator: Generator) -> tuple[Tensor, Tensor]:
        """Inputs ``(count, 2)`` and targets ``(count, 1)``, -1 or 1."""
        raise NotImplementedError

    def draw(self, generator: Generator, steps: int | None = None, split: str = "train") -> Task:
        names = self.names[checked_split(split)]
        name = names[int(torch.randint(len(names), (), generator=generator))]
        steps = steps or self.steps
        x, y = self.examples(name, steps * self.batch + self.queries, generator)
        support = [t[: steps * self.batch].unflatten(0, (steps, self.batch)) for t in (x, y)]
        return Task(support[0], support[1], x[steps * self.batch :], y[steps * self.batch :], name)

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "names": {split: list(chosen) for split, chosen in self.names.items()}}


class Boolean(_Toys):
    """Boolean functions of two numbers between -1 and 1; targets are -1 and 1.

    Args:
        train, validation, test: names of the functions of each split, of ``and, or, xor, nand, nor, nxor``.
        steps: inner steps.
        batch: examples in each, fresh ones.
        queries: held-out examples.
    """

    def __init__(
        self,
        train: Sequence[str] = ("xor", "or"),
        validation: Sequence[str] = ("xor", "or"),
        test: Sequence[str] = ("nxor",),
        *,
        steps: int = 5,
        batch: int = 64,
        queries: int = 64,
    ) -> None:
        names = dict(zip(SPLITS, (train, validation, test), strict=True))
        super().__init__(list(BOOLEAN), names, steps, batch, queries)

    def examples(self, name: str, count: int, generator: Generator) -> tuple[Tensor, Tensor]:  # noqa: D102
        x = 2.0 * torch.rand(count, 2, generator=generator, dtype=torch.float64) - 1.0
        return x, 2.0 * BOOLEAN[name](x).double()[:, None] - 1.0


class Plane(_Toys):
    """Two classes of points in the plane, each task rotated by a random angle; targets are -1 and 1.

    Args:
        train, validation, test: names of each split, of ``circles, moons, blobs, spirals``.
        steps: inner steps.
        batch: examples in each, fresh ones.
        queries: held-out examples.
        noise: standard deviation added to each coordinate.
    """

    shapes = ("blobs", "circles", "moons", "spirals")

    def __init__(
        self,
        train: Sequence[str] = ("blobs", "circles"),
        validation: Sequence[str] = ("blobs", "circles"),
        test: Sequence[str] = ("moons",),
        *,
        steps: int = 10,
        batch: int = 64,
        queries: int = 64,
        noise: float = 0.1,
    ) -> None:
        names = dict(zip(SPLITS, (train, validation, test), strict=True))
        super().__init__(self.shapes, names, steps, batch, queries)
        self.noise = Arguments("Plane").number("noise", noise, 0.0)

    def examples(self, name: str, count: int, generator: Generator) -> tuple[Tensor, Tensor]:  # noqa: D102
        second = torch.rand(count, generator=generator, dtype=torch.float64) < 0.5
        t = torch.rand(count, generator=generator, dtype=torch.float64)
        turn = 2.0 * math.pi * float(torch.rand((), generator=generator, dtype=torch.float64))
        sign = 2.0 * second.double() - 1.0
        if name == "circles":
            radius, angle = 0.4 + 0.6 * second.double(), 2.0 * math.pi * t
        elif name == "spirals":
            radius, angle = 0.2 + 0.8 * t, 2.0 * math.pi * t + math.pi * second.double()
        x = torch.zeros(count, 2, dtype=torch.float64)
        if name == "blobs":
            x[:, 0] = 0.6 * sign
        elif name == "moons":
            x = torch.stack([torch.cos(math.pi * t) - 0.5 * sign, sign * (torch.sin(math.pi * t) - 0.25)], 1) / 1.5
        else:
            x = torch.stack([radius * torch.cos(angle), radius * torch.sin(angle)], 1)
        cos, sin = math.cos(turn), math.sin(turn)
        x = x @ torch.tensor([[cos, sin], [-sin, cos]], dtype=torch.float64)
        return x + self.noise * torch.randn(count, 2, generator=generator, dtype=torch.float64), sign[:, None]
