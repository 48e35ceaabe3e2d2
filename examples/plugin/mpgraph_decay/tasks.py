"""Stripes in the plane: every task has its own direction and width."""

import math

import torch

from mpgraph.arguments import Arguments
from mpgraph.meta.task import Task, TaskFamily


class Stripes(TaskFamily):
    """Points of the square from -1 to 1; the class is the parity of the stripe that a point lies on.

    Args:
        steps: inner steps.
        batch: examples in each.
        queries: held-out examples.
    """

    inputs, outputs = 2, 2

    def __init__(self, steps=10, batch=32, queries=64):
        check = Arguments("Stripes")
        self.steps, self.batch = check.integer("steps", steps, 1), check.integer("batch", batch, 1)
        self.queries = check.integer("queries", queries, 1)

    def draw(self, generator, steps=None, split="train"):
        """A direction from 0 to pi and a width from 0.5 to 1, uniform."""
        steps = steps or self.steps
        angle, width = torch.rand(2, generator=generator, dtype=torch.float64).tolist()
        angle, width = math.pi * angle, 0.5 + 0.5 * width
        x = 2.0 * torch.rand(steps * self.batch + self.queries, 2, generator=generator, dtype=torch.float64) - 1.0
        y = ((x @ torch.tensor([math.cos(angle), math.sin(angle)], dtype=torch.float64)) / width).floor().long() % 2
        n = steps * self.batch
        support = [t[:n].unflatten(0, (steps, self.batch)) for t in (x, y)]
        return Task(support[0], support[1], x[n:], y[n:], f"stripes at {math.degrees(angle):.0f} degrees")
