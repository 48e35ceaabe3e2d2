"""A whole data set as one family: every task is the same problem, seen through other batches by another network."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor

from mpgraph.arguments import Arguments
from mpgraph.data.datasets import Dataset, load
from mpgraph.errors import InputError
from mpgraph.meta.task import Task, TaskFamily, checked_split

from .few_shot import checksum


class Minibatches(TaskFamily):
    """Batches of one data set, fresh examples in every inner step; labels stay those of the data set.

    The MNIST experiments of MPLP (Randazzo et al., 2020) are of this kind: twenty batches of eight. Validation tasks
    are of training examples that no other task sees, test tasks learn from training examples and are asked about
    the test set.

    Args:
        data: a data set, or its name (see ``mpgraph.data.load``).
        batch: examples in an inner step.
        steps: inner steps.
        queries: held-out examples.
        ways: so many classes are drawn for each task and numbered from 0 in random order; all of them with the labels
            of the data set by default.
        side: images are resized to so many pixels a side (:meth:`Dataset.resized`).
        held_out: training examples for ``validation``, the last ones.
        root: folder of the files, for a data set given by name.
        standardise: shift and scale pixels after resizing.

    Raises:
        InputError: for more examples than there are.
    """

    def __init__(
        self,
        data: Dataset | str,
        *,
        batch: int = 8,
        steps: int = 20,
        queries: int = 64,
        ways: int | None = None,
        side: int | None = None,
        held_out: int = 5000,
        root: Any = None,
        standardise: bool = True,
    ) -> None:
        check = Arguments(type(self).__name__)
        self.batch, self.steps = check.integer("batch", batch, 1), check.integer("steps", steps, 1)
        self.queries, self.held_out = check.integer("queries", queries, 1), check.integer("held_out", held_out, 1)
        self.side, self.standardise = side, check.flag("standardise", standardise)
        found = load(data, root, standardise=False) if isinstance(data, str) else data
        found = found if side is None else found.resized(side)
        found = (found.standardised() if standardise else found).flat()
        self.ways = None if ways is None else check.integer("ways", ways, 2)
        if self.ways is not None and self.ways > found.classes:
            raise InputError(f"{type(self).__name__}: ways={ways}, but {found.name} has {found.classes} classes")
        self.data, self.inputs, self.outputs = found.name, found.train_x.shape[1], self.ways or found.classes
        self._classes = found.classes
        here = len(found.train_x) - self.held_out
        least = {"train": here, "validation": self.held_out}
        for split, count in least.items():
            if count < self.batch + self.queries:
                raise InputError(
                    f"{type(self).__name__}: {found.name} has {len(found.train_x)} training examples; held_out="
                    f"{self.held_out} leaves {count} for {split}, but a step and the query need "
                    f"{self.batch + self.queries}"
                )
        self._support = {
            "train": (found.train_x[:here], found.train_y[:here]),
            "validation": (found.train_x[here:], found.train_y[here:]),
            "test": (found.train_x, found.train_y),
        }
        self._test = (found.test_x, found.test_y)
        there = len(self._test[0])
        if there < self.queries:
            raise InputError(f"{type(self).__name__}: queries={queries}, but {found.name} has {there} test examples")

    def draw(self, generator: Generator, steps: int | None = None, split: str = "train") -> Task:  # noqa: D102
        x, y = self._support[checked_split(split)]
        asked_x, asked_y = self._test if split == "test" else (x, y)
        name = f"{self.data} {split}"
        if self.ways is not None:
            chosen = torch.randperm(self._classes, generator=generator)[: self.ways]
            x, y = _only(chosen, x, y)
            asked_x, asked_y = _only(chosen, asked_x, asked_y) if split == "test" else (x, y)
            name += f" {chosen.tolist()}"
        need, asked = (steps or self.steps) * self.batch, 0 if split == "test" else self.queries
        if need + asked > len(x) or self.queries > len(asked_x):
            need_text = f"{steps or self.steps} steps of {self.batch} and {self.queries} queries"
            raise InputError(f"{type(self).__name__}: {need_text} need more than the {len(x)} examples of {name}")
        rows = distinct(len(x), need + asked, generator)
        query = rows[need:] if asked else distinct(len(asked_x), self.queries, generator)
        at = rows[:need].reshape(-1, self.batch)
        return Task(x[at], y[at], asked_x[query], asked_y[query], name)

    def describe(self) -> dict[str, Any]:
        """Also the checksum of the images."""
        return {**super().describe(), "data_sha256": checksum(*self._support["test"], *self._test)}


def _only(classes: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The examples of some classes, each labelled by its place among them."""
    place = torch.full((max(int(y.max()), int(classes.max())) + 1,), -1)
    place[classes] = torch.arange(len(classes))
    labels = place[y]
    return x[labels >= 0], labels[labels >= 0]


def distinct(many: int, count: int, generator: Generator) -> Tensor:
    """``count`` different numbers below ``many`` in random order; few of many cost no permutation of all."""
    if 2 * count > many:
        return torch.randperm(many, generator=generator)[:count]
    found: dict[int, None] = {}
    while len(found) < count:
        found |= dict.fromkeys(torch.randint(many, (count - len(found),), generator=generator).tolist())
    return torch.tensor(list(found))
