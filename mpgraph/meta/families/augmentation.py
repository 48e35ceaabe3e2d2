"""More tasks from a family: each gets a random projection or filter of its inputs, or a random order of its labels."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Generator
from torch.nn import functional

from mpgraph.arguments import Arguments
from mpgraph.errors import InputError
from mpgraph.meta.task import Task, TaskFamily


class RandomProjection(TaskFamily):
    """Inputs of each task times a random matrix of its own.

    The matrix is Gaussian with variance 1 / inputs. With ``decay`` it is a product of two such matrices with
    k^-p between them, p uniform in 0..``decay``: the larger p, the more of what varies lies in few directions, as in
    photographs. Inputs then keep the root mean square that the task had.

    Args:
        family: of tasks with flat inputs.
        size: inputs afterwards; as many as before by default.
        decay: largest exponent of the spectrum; ``None`` for the Gaussian matrix.
    """

    def __init__(self, family: TaskFamily, size: int | None = None, decay: float | None = None) -> None:
        check = Arguments("RandomProjection")
        self.family = family
        self.size = None if size is None else check.integer("size", size, 1)
        self.decay = None if decay is None else check.number("decay", decay, 0.0)

    def draw(self, generator: Generator, steps: int | None = None, split: str = "train") -> Task:  # noqa: D102
        task = self.family.draw(generator, steps, split)
        inputs, wide = task.query_x.shape[-1], torch.float64
        size = self.size or inputs
        matrix = torch.randn(inputs, size, generator=generator, dtype=wide) / inputs**0.5
        if self.decay is not None:
            exponent = self.decay * torch.rand((), generator=generator, dtype=wide)
            spectrum = torch.arange(1, size + 1, dtype=wide) ** -exponent
            matrix = matrix * spectrum @ torch.randn(size, size, generator=generator, dtype=wide)
            flat = task.x.to(wide).flatten(0, -2)
            matrix *= flat.square().mean().sqrt() / (flat @ matrix).square().mean().sqrt()
        matrix = matrix.to(task.x.dtype)
        return task._replace(x=task.x @ matrix, query_x=task.query_x @ matrix)

    def describe(self) -> dict[str, Any]:  # noqa: D102
        return {**super().describe(), "family": self.family.describe()}


class RandomFilter(TaskFamily):
    """Images of each task by a random look of its own: dark on bright, blurred, outlined.

    Two random filters of 3 by 3 pixels, Gaussian, with ``channels`` rectified images between them whose thresholds are
    Gaussian with deviation ``threshold``. The pixels of a task's support then have mean zero and deviation one.

    Args:
        family: of tasks with flat square images of one channel.
        channels: images between the filters.
        threshold: deviation of their thresholds.

    Raises:
        InputError: when a task's inputs are no flat square images.
    """

    def __init__(self, family: TaskFamily, channels: int = 8, threshold: float = 2.0) -> None:
        check = Arguments("RandomFilter")
        self.family, self.channels = family, check.integer("channels", channels, 1)
        self.threshold = check.number("threshold", threshold, 0.0)

    def draw(self, generator: Generator, steps: int | None = None, split: str = "train") -> Task:  # noqa: D102
        task = self.family.draw(generator, steps, split)
        side, wide = math.isqrt(task.query_x.shape[-1]), torch.float64
        if task.query_x.dim() != 2 or side**2 != task.query_x.shape[-1]:
            got = tuple(task.query_x.shape[1:])
            raise InputError(f"RandomFilter: {task.name} has inputs of shape {got}; it needs flat square images")
        first = torch.randn(self.channels, 1, 3, 3, generator=generator, dtype=wide)
        threshold = self.threshold * torch.randn(self.channels, generator=generator, dtype=wide)
        second = torch.randn(1, self.channels, 3, 3, generator=generator, dtype=wide)

        def seen(x: torch.Tensor) -> torch.Tensor:
            between = functional.conv2d(x.to(wide).reshape(-1, 1, side, side), first, threshold, padding=1).relu()
            return functional.conv2d(between, second, padding=1).reshape(x.shape)

        x, query_x = seen(task.x), seen(task.query_x)
        mean, deviation = x.mean(), x.std(correction=0)
        x, query_x = (((t - mean) / deviation).to(task.x.dtype) for t in (x, query_x))
        return task._replace(x=x, query_x=query_x)

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
