"""Sinusoids: the regression tasks of Finn, Abbeel and Levine (2017)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Generator

from mpgraph.arguments import Arguments
from mpgraph.meta.task import Task, TaskFamily, checked_split


class Sinusoids(TaskFamily):
    """``y = a sin(x + p)``, with ``a`` in 0.1..5, ``p`` in 0..pi and ``x`` in -5..5, all uniform.

    Args:
        shots: support points of an inner step.
        queries: held-out points.
        steps: inner steps.
        amplitude: lowest and highest ``a``; MPLP (Randazzo et al., 2020) has 0.1..0.5.
        fresh: whether every inner step has support points of its own, as for MPLP; otherwise all are shown the same.
    """

    inputs, outputs = 1, 1

    def __init__(
        self,
        shots: int = 10,
        queries: int = 50,
        steps: int = 5,
        amplitude: Sequence[float] = (0.1, 5.0),
        fresh: bool = False,
    ) -> None:
        check = Arguments("Sinusoids")
        self.shots, self.queries = check.integer("shots", shots, 1), check.integer("queries", queries, 1)
        self.steps = check.integer("steps", steps, 1)
        self.amplitude, self.fresh = check.numbers("amplitude", amplitude, 2), check.flag("fresh", fresh)

    def draw(self, generator: Generator, steps: int | None = None, split: str = "train") -> Task:  # noqa: D102
        checked_split(split)
        a, p = torch.rand(2, generator=generator, dtype=torch.float64).tolist()
        low, high = self.amplitude
        amplitude, phase = low + (high - low) * a, math.pi * p
        steps = steps or self.steps
        shown = self.shots * (steps if self.fresh else 1)
        x = 10.0 * torch.rand(shown + self.queries, 1, generator=generator, dtype=torch.float64) - 5.0
        y = amplitude * torch.sin(x + phase)
        support_x, support_y = (t[:shown].reshape(-1, self.shots, 1).expand(steps, -1, -1) for t in (x, y))
        return Task(support_x, support_y, x[shown:], y[shown:], f"{amplitude:.2f} sin(x + {phase:.2f})")
