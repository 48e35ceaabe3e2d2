"""Episodes that are carried from one outer step to the next, a window at a time."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Generator, Tensor

from mpgraph.errors import FileError
from mpgraph.meta.episode import Episode
from mpgraph.meta.randomness import generator_of
from mpgraph.meta.task import Task, TaskBatch, Tasks, stacked
from mpgraph.program.program import State

from .base import Length, NeverEnding, length_at, whole


class Workers:
    """One episode for each task of an outer step. It begins again, with a new task, when it has ended.

    With :class:`NeverEnding` only the task is new, the network is the one that learned the tasks before.

    Attributes:
        born: outer step at which each began ``(tasks,)``; with the index it names the task and the network.
        age: inner steps that are behind ``(tasks,)``.
        length: inner steps in all ``(tasks,)``.
        states: of the networks, stacked over tasks, by name: an estimator may run several copies.
    """

    def __init__(self, copies: tuple[str, ...]) -> None:
        self.copies = copies
        self.born = self.age = self.length = torch.zeros(0, dtype=torch.long)
        self.states: dict[str, State] = {}
        self._tasks: list[Task | None] = []

    def begin(
        self, episode: Episode, tasks: Tasks, window: int, length: Length, generator: Generator, *, unlocked: bool
    ) -> tuple[TaskBatch, Tensor]:
        """Start the episodes that are due; the batch of all tasks, and how far each is to run ahead.

        Args:
            episode: what is run.
            tasks: of this outer step.
            window: inner steps at a time.
            length: of episodes.
            generator: whose seed names the random numbers of this outer step.
            unlocked: spread the first episodes over all phases: they are to run ahead by a random number of windows.
        """
        count, first = len(tasks), not len(self.born)
        if first:
            self.born, self.age, self.length = (torch.zeros(count, dtype=torch.long) for _ in range(3))
        if len(self.born) != count:
            raise FileError(f"the estimator carries {len(self.born)} episodes, but an outer step has {count} tasks")
        new = [i for i in range(count) if self.age[i] == self.length[i]]
        if not self._tasks:
            self._tasks = [None] * count
        ahead = torch.zeros(count, dtype=torch.long)
        for i in new:
            own = generator_of(generator.initial_seed(), "length", tasks.first + i)
            self._tasks[i] = tasks.draw(i, length_at(length, tasks.step, own))
            self.born[i], self.age[i] = tasks.step, 0
            self.length[i] = len(self._tasks[i].x)  # type: ignore[union-attr]
            windows = whole(int(self.length[i]), window, "windows")
            if first and unlocked:
                ahead[i] = window * int(torch.randint(windows, (), generator=own))
        for i in range(count):
            if self._tasks[i] is None:  # after a resume
                self._tasks[i] = tasks.at(int(self.born[i])).draw(i, int(self.length[i]))
        seeds = [tasks.at(int(self.born[i])).network_seed(i) for i in range(count)]
        batch = episode.prepared(stacked(self._tasks, seeds))  # type: ignore[arg-type]
        if new:
            rows = torch.tensor(new)
            fresh = episode.begin(batch.chosen(new))
            for name in self.copies:
                old = self.states.get(name)
                if old is not None and isinstance(length, NeverEnding):
                    continue
                self.states[name] = fresh if old is None else _with_rows(old, rows, fresh)
        return batch, ahead

    def start(self) -> int | Tensor:
        """Inner steps that are behind: one number where it is the same for all."""
        same = bool((self.age == self.age[0]).all() and (self.length == self.length[0]).all())
        return int(self.age[0]) if same else self.age.clone()

    def state(self) -> dict[str, Tensor]:
        """As tensors by name."""
        found = {"born": self.born, "age": self.age, "length": self.length} if len(self.born) else {}
        for copy, state in self.states.items():
            found |= {f"{copy}/{n}/{c}": t.detach() for n, channels in state.items() for c, t in channels.items()}
        return found

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take up what :meth:`state` gave."""
        self._tasks, self.states = [], {}
        for name, tensor in state.items():
            if name in ("born", "age", "length"):
                setattr(self, name, tensor.clone())
            else:
                copy, _, rest = name.partition("/")
                node, _, channel = rest.rpartition("/")
                self.states.setdefault(copy, {}).setdefault(node, {})[channel] = tensor


def _with_rows(state: State, rows: Tensor, fresh: State) -> State:
    """A stacked state with some of its rows replaced."""
    return {
        n: {c: t.detach().index_copy(0, rows.to(t.device), fresh[n][c]) for c, t in channels.items()}
        for n, channels in state.items()
    }


def detached(state: State) -> State:
    """A state without its graph."""
    return {n: {c: t.detach() for c, t in channels.items()} for n, channels in state.items()}
