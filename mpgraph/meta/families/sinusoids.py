"""Sinusoids: the regression tasks of Finn, Abbeel and Levine (2017)."""

from __future__ import annotations

import math

import torch
from torch import Generator

from mpgraph.arguments import Arguments
from mpgraph.meta.task import Task, TaskFamily, checked_split


class Sinusoids(TaskFamily):
    """``y = a sin(x + p)``, with ``a`` in 0.1..5, ``p`` in 0..pi and ``x`` in -5..5, all uniform.

    Args:
        shots: support points; they are shown whole in every inner step.
        queries: held-out points.
        steps: inner steps.
    """

    inputs, outputs = 1, 1

    def __init__(self, shots: int = 10, queries: int = 50, steps: int = 5) -> None:
        check = Arguments("Sinusoids")
        self.shots, self.queries = check.integer("shots", shots, 1), check.integer("queries", queries, 1)
        self.steps = check.integer("steps", steps, 1)

    def draw(self, generator: Generator, steps: int | None = None, split: str = "train") -> Task:  # noqa: D102
        checked_split(split)
        a, p = torch.rand(2, generator=generator, dtype=torch.float64).tolist()
        amplitude, phase = 0.1 + 4.9 * a, math.pi * p
        x = 10.0 * torch.rand(self.shots + self.queries, 1, generator=generator, dtype=torch.float64) - 5.0
        y = amplitude * torch.sin(x + phase)
        steps = steps or self.steps
        support = (x[: self.shots].expand(steps, -1, -1), y[: self.shots].expand(steps, -1, -1))
        return Task(*support, x[self.shots :], y[self.shots :], f"{amplitude:.2f} sin(x + {phase:.2f})")
