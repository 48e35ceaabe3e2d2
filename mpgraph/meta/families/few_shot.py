"""Few-shot classification from any data set, in batches or one example at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property
from itertools import pairwise
from typing import Any

import torch
from torch import Generator, Tensor

from mpgraph.arguments import Arguments
from mpgraph.data.datasets import Dataset, load
from mpgraph.errors import InputError
from mpgraph.meta.randomness import generator_of
from mpgraph.meta.task import SPLITS, Task, TaskFamily, checked_split


class FewShot(TaskFamily):
    """``ways`` classes, ``shots`` support examples and ``queries`` held-out ones of each, all in random order.

    Args:
        data: a data set, or its name (see ``mpgraph.data.load``).
        ways: classes in a task.
        shots: support examples of each class.
        queries: held-out examples of each class.
        batch: support examples in an inner step; all of them by default.
        splits: shares of the classes for meta-training, validation and test, such as ``(0.6, 0.2, 0.2)``; with
            ``None`` every split has all classes, and ``test`` draws images from the test set.
        classes: draw from these classes only.
        relabel: number the classes of a task from 0 to ``ways - 1``; otherwise they keep the data set's labels.
        replace: draw the classes with replacement, as some published code does. A class drawn twice has twice the
            examples; where it has too few images, the first come again.
        seed: which classes are in which split.
        root: folder of the files, for a data set given by name.
        standardise: shift and scale pixels, for a data set given by name.
        pool: images are so many times smaller on each side, by means over squares of pixels, before they are
            standardised; for a data set given by name.

    Raises:
        InputError: for more classes or examples than there are.
    """

    def __init__(
        self,
        data: Dataset | str,
        *,
        ways: int = 5,
        shots: int = 1,
        queries: int = 15,
        batch: int | None = None,
        splits: Sequence[float] | None = None,
        classes: Sequence[int] | None = None,
        relabel: bool = True,
        replace: bool = False,
        seed: int = 0,
        root: Any = None,
        standardise: bool = True,
        pool: int = 1,
    ) -> None:
        check = Arguments(type(self).__name__)
        self.ways, self.shots = check.integer("ways", ways, 1), check.integer("shots", shots, 1)
        self.queries = check.integer("queries", queries, 1)
        self.batch = check.integer("batch", batch or self.ways * self.shots, 1)
        self.relabel, self.replace, self.seed = check.flag("relabel", relabel), check.flag("replace", replace), seed
        self.pool = check.integer("pool", pool, 1)
        found = self._loaded(data, root, standardise) if isinstance(data, str) else data
        found = found.flat()
        self.data, self.splits = found.name, None if splits is None else check.numbers("splits", splits, 3)
        self.inputs = found.train_x.shape[1]
        chosen = sorted(set(range(found.classes) if classes is None else classes))
        self.classes = dict.fromkeys(SPLITS, chosen)
        if self.splits is not None:
            order = torch.randperm(len(chosen), generator=generator_of(seed, "classes")).tolist()
            bounds = [round(len(chosen) * sum(self.splits[:i]) / sum(self.splits)) for i in range(4)]
            parts = [sorted(chosen[i] for i in order[a:b]) for a, b in pairwise(bounds)]
            self.classes = dict(zip(SPLITS, parts, strict=True))
        self._train, self._test = (found.train_x, found.train_y), (found.test_x, found.test_y)
        self._rows = [self._by_class(labels, found.classes) for _, labels in (self._train, self._test)]
        self._check()

    def _loaded(self, name: str, root: Any, standardise: bool) -> Dataset:
        if self.pool == 1:
            return load(name, root, standardise=standardise)
        found = load(name, root, standardise=False).pooled(self.pool)
        return found.standardised() if standardise else found

    @staticmethod
    def _by_class(labels: Tensor, classes: int) -> list[Tensor]:
        return [(labels == label).nonzero().flatten() for label in range(classes)]

    def _check(self) -> None:
        for split, classes in self.classes.items():
            if len(classes) < (1 if self.replace else self.ways):
                raise InputError(f"{type(self).__name__}: {len(classes)} classes for {split}, ways={self.ways} of them")
            least = min(len(self._rows[self._source(split)][label]) for label in classes)
            if least < self.shots + self.queries:
                raise InputError(
                    f"{type(self).__name__}: shots={self.shots} and queries={self.queries} need "
                    f"{self.shots + self.queries} images of each class; one of {split} has {least}"
                )

    def _source(self, split: str) -> int:
        return int(split == "test" and self.splits is None)

    @property
    def outputs(self) -> int:
        """Outputs that a network needs."""
        return self.ways if self.relabel else len(self._rows[0])

    def draw(self, generator: Generator, steps: int | None = None, split: str = "train") -> Task:  # noqa: D102
        allowed, source = self.classes[checked_split(split)], self._source(split)
        if self.replace:
            chosen = torch.randint(len(allowed), (self.ways,), generator=generator)
        else:
            chosen = torch.randperm(len(allowed), generator=generator)[: self.ways]
        classes = torch.tensor(allowed)[chosen]
        each = self.shots + self.queries
        rows = torch.empty(self.ways, each, dtype=torch.long)
        for label in classes.unique():
            own, places = self._rows[source][int(label)], classes == label
            wanted = each * int(places.sum())
            order = torch.randperm(len(own), generator=generator)
            rows[places] = own[order.repeat(-(-wanted // len(own)))[:wanted]].reshape(-1, each)
        labels = torch.arange(self.ways) if self.relabel else classes
        labels = labels[:, None].expand(self.ways, each)
        images = (self._test if source else self._train)[0]
        support, query = rows[:, : self.shots].flatten(), rows[:, self.shots :].flatten()
        given = labels[:, : self.shots].flatten()
        need = (steps or -(-len(support) // self.batch)) * self.batch
        epochs = [torch.randperm(len(support), generator=generator) for _ in range(-(-need // len(support)))]
        order = torch.cat(epochs)[:need].reshape(-1, self.batch)
        name = f"{self.data} {sorted(classes.tolist())}"
        return Task(images[support[order]], given[order], images[query], labels[:, self.shots :].flatten(), name)

    def describe(self) -> dict[str, Any]:
        """Also the checksum of the images, and the classes of each split."""
        split = {} if self.splits is None else {"classes": self.classes}
        return {**super().describe(), **split, "data_sha256": self._checksum}

    @cached_property
    def _checksum(self) -> str:
        return checksum(*self._train, *self._test)


def checksum(*tensors: Tensor) -> str:
    """Of the numbers of some tensors, in their order."""
    total = hashlib.sha256()
    for tensor in tensors:
        total.update(tensor.contiguous().numpy().data)
    return total.hexdigest()


class OnlineStream(FewShot):
    """The tasks of meta-learned plasticity: 50 images of each of 5 of 47 characters, one at a time, 10 as the query.

    Labels stay those of the data set, and classes are drawn with replacement, as in the published code (Shervani-Tabar
    and Rosenbaum, 2023). Pixels lie between 0 and 1.

    Args:
        data: a data set, or its name.
        arguments: others of :class:`FewShot`.
    """

    def __init__(self, data: Dataset | str = "emnist47", **arguments: Any) -> None:
        usual: dict[str, Any] = {
            "ways": 5, "shots": 50, "queries": 10, "batch": 1, "relabel": False, "replace": True, "standardise": False
        }  # fmt: skip
        super().__init__(data, **{**usual, **arguments})
