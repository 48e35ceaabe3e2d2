"""Tasks to learn to learn from: a family draws a task, a task holds its support batches and its query.

Everything random about a task is a function of the run's seed, the outer step and the index of the task, so that one
run draws the same tasks on any number of processes and after any interruption.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor

from mpgraph.errors import InputError, unknown
from mpgraph.registry import lookup, registered

from .randomness import generator_of, seed_of

SPLITS = ("train", "validation", "test")


class Task(NamedTuple):
    """What one fresh network learns, and what it is asked afterwards.

    Attributes:
        x: inputs of all inner steps, ``(steps, batch, *input)``.
        y: class labels ``(steps, batch)`` (int64) or targets ``(steps, batch, *output)``.
        query_x, query_y: held-out examples ``(queries, *input)``, ``(queries,)`` or ``(queries, *output)``.
        name: for messages.
    """

    x: Tensor
    y: Tensor
    query_x: Tensor
    query_y: Tensor
    name: str = "task"


class TaskFamily(ABC):
    """A distribution of tasks of one shape.

    Register one of your own under the entry point group ``mpgraph.task_families``; the command line then knows it.
    """

    @abstractmethod
    def draw(self, generator: Generator, steps: int | None = None, split: str = "train") -> Task:
        """A task.

        Args:
            generator: of all that is random about it.
            steps: inner steps; the family's own number if not given.
            split: ``train``, ``validation`` or ``test``.
        """

    def describe(self) -> dict[str, Any]:
        """What a training record says of the family, as JSON can hold it."""
        return {"class": type(self).__name__, **{k: v for k, v in vars(self).items() if k[0] != "_" and _plain(v)}}


@dataclass(frozen=True)
class Tasks:
    """The tasks of one outer step; each is drawn when it is asked for.

    Attributes:
        family: they are of.
        seed: of the run.
        count: how many there are.
        step: the outer step.
        split: ``train``, ``validation`` or ``test``.
        first: index of the first one here, where several processes share the tasks of a step.
    """

    family: TaskFamily
    seed: int = 0
    count: int = 1
    step: int = 0
    split: str = "train"
    first: int = 0

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self.count))]
        if not 0 <= index < self.count:
            raise IndexError(index)
        return self.draw(index)

    def __iter__(self) -> Iterator[Task]:
        return (self.draw(i) for i in range(self.count))

    def draw(self, index: int, steps: int | None = None) -> Task:
        """One task, with so many inner steps."""
        generator = generator_of(self.seed, "task", self.split, self.step, self.first + index)
        return self.family.draw(generator, steps, self.split)

    def network_seed(self, index: int) -> int:
        """The seed of the fresh network that learns a task."""
        return seed_of(self.seed, "network", self.split, self.step, self.first + index)

    def at(self, step: int) -> Tasks:
        """The tasks of another outer step."""
        return replace(self, step=step)

    def shard(self, rank: int, size: int) -> Tasks:
        """The part of them that one of several processes takes.

        Raises:
            InputError: if they cannot be shared evenly.
        """
        if self.count % size:
            raise InputError(
                f"{self.count} tasks cannot be shared evenly by {size} processes; give a multiple of {size}"
            )
        share = self.count // size
        return replace(self, count=share, first=self.first + rank * share)

    def batch(self, indices: Sequence[int] | None = None, steps: int | None = None) -> TaskBatch:
        """Some of them (all by default), stacked."""
        chosen = range(self.count) if indices is None else indices
        return stacked([self.draw(i, steps) for i in chosen], [self.network_seed(i) for i in chosen])


class TaskBatch(NamedTuple):
    """Tasks side by side.

    Attributes:
        x, y: ``(tasks, steps, batch, ...)``.
        query_x, query_y: ``(tasks, queries, ...)``.
        lengths: inner steps of each task ``(tasks,)``; ``steps`` is the largest.
        seeds: of the networks.
    """

    x: Tensor
    y: Tensor
    query_x: Tensor
    query_y: Tensor
    lengths: Tensor
    seeds: list[int]

    @property
    def steps(self) -> int:
        """The largest number of inner steps."""
        return self.x.shape[1]

    def to(self, device: torch.device, dtype: torch.dtype) -> TaskBatch:
        """The same on a device, floating-point numbers in the dtype."""
        given = (self.x, self.y, self.query_x, self.query_y)
        x, y, query_x, query_y = (t.to(device, dtype if t.is_floating_point() else None) for t in given)
        return TaskBatch(x, y, query_x, query_y, self.lengths, self.seeds)

    def chosen(self, rows: Sequence[int]) -> TaskBatch:
        """Some of the tasks."""
        at = torch.tensor(list(rows))
        x, y, query_x, query_y = (t[at.to(t.device)] for t in (self.x, self.y, self.query_x, self.query_y))
        return TaskBatch(x, y, query_x, query_y, self.lengths[at], [self.seeds[i] for i in rows])


def stacked(tasks: Sequence[Task], seeds: Sequence[int]) -> TaskBatch:
    """Tasks of one family side by side; those with fewer inner steps are filled up with zeros that nobody reads.

    Raises:
        InputError: for tasks whose batches differ in shape.
    """
    longest = max(len(task.x) for task in tasks)
    columns = []
    for name in ("x", "y", "query_x", "query_y"):
        tensors = [getattr(task, name) for task in tasks]
        if not name.startswith("query"):
            tensors = [torch.cat([t, t.new_zeros(longest - len(t), *t.shape[1:])]) for t in tensors]
        shapes = {(tuple(t.shape), t.dtype) for t in tensors}
        if len(shapes) > 1:
            raise InputError(f"tasks of one step must have one shape, but their {name} have {sorted(map(str, shapes))}")
        columns.append(torch.stack(tensors))
    lengths = torch.tensor([len(task.x) for task in tasks])
    return TaskBatch(columns[0], columns[1], columns[2], columns[3], lengths, list(seeds))


def list_families() -> list[str]:
    """Names of the registered families."""
    return list(registered("mpgraph.task_families"))


def make_family(name: str, **arguments: Any) -> TaskFamily:
    """A registered family by its name.

    Args:
        name: one of :func:`list_families`.
        arguments: of the family's class.

    Raises:
        InputError: for an unknown name, or arguments that it does not take.
    """
    found = lookup("mpgraph.task_families", name)
    if found is None:
        raise InputError(unknown("task family", name, list_families()))
    try:
        family: TaskFamily = found(**arguments)
    except TypeError as error:
        raise InputError(f"task family {name}: {error}") from None
    return family


def checked_split(split: str) -> str:
    """The split, or an error that names the allowed ones."""
    if split not in SPLITS:
        raise InputError(unknown("split", split, SPLITS))
    return split


def _plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(_plain(part) for part in value)
    return value is None or isinstance(value, (bool, int, float, str))
