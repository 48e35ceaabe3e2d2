"""More tasks from a family: each gets a random projection of its inputs, or a random order of its labels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator

from mpgraph.arguments import Arguments
from mpgraph.errors import InputError
from mpgraph.meta.task import Task, TaskFamily


class RandomProjection(TaskFamily):
    """Inputs of each task times a Gaussian matrix of its own, with variance 1 / inputs.

    Args:
        family: of tasks with flat inputs.
        size: inputs afterwards; as many as before by default.
    """

    def __init__(self, family: TaskFamily, size: int | None = None) -> None:
        self.family, self.size = (
            family,
            None if size is None else Arguments("RandomProjection").integer("size", size, 1),
        )

    def draw(self, generator: Generator, steps: int | None = None, split: str = "train") -> Task:  # noqa: D102
        task = self.family.draw(generator, steps, split)
        inputs = task.query_x.shape[-1]
        matrix = torch.randn(inputs, self.size or inputs, generator=generator, dtype=torch.float64) / inputs**0.5
        matrix = matrix.to(task.x.dtype)
        return task._replace(x=task.x @ matrix, query_x=task.query_x @ matrix)

    def describe(self) -> dict[str, Any]:  # noqa: D102
        return {**super().describe(), "family": self.family.describe()}


class PermutedLabels(TaskFamily):
    """Class labels of each task under a random permutation.

    Args:
        family: of classification tasks.
        classes: how many labels there are.

    Raises:
        InputError: when a task's targets are not class labels.
    """

    def __init__(self, family: TaskFamily, classes: int) -> None:
        self.family, self.classes = family, Arguments("PermutedLabels").integer("classes", classes, 2)

    def draw(self, generator: Generator, steps: int | None = None, split: str = "train") -> Task:  # noqa: D102
        task = self.family.draw(generator, steps, split)
        if task.y.is_floating_point():
            raise InputError(f"PermutedLabels: {task.name} has targets of type {task.y.dtype}; it needs class labels")
        order = torch.randperm(self.classes, generator=generator)
        return task._replace(y=order[task.y], query_y=order[task.query_y])

    def describe(self) -> dict[str, Any]:  # noqa: D102
        return {**super().describe(), "family": self.family.describe()}
