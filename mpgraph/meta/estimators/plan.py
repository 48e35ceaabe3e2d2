"""What fits a budget of memory: how many tasks at once, and how many inner steps between two states that are kept.

Nothing is guessed: one inner step is run on a few tasks, and what it keeps is counted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mpgraph.budget import Live, Memory, Saved, bytes_of, shown
from mpgraph.errors import InputError
from mpgraph.meta.episode import Episode
from mpgraph.meta.task import TaskBatch

from .base import leaves, pieces

FEW, STEPS = 2, 5  # tasks and steps that are measured; a single task, and the first steps, go by code of their own


class Schedule(NamedTuple):
    """How an estimate is run.

    Attributes:
        tasks: at once.
        segment: inner steps whose graph is held at once.
        every: steps between two weights that are kept, where they are kept as histories; ``None`` keeps all.
    """

    tasks: int
    segment: int
    every: int | None = None


class Budget:
    """The ``memory`` of an estimator.

    Args:
        owner: what refusals begin with.
        memory: as the user wrote it, or ``None`` for no limit. It is everything that is held at once for an estimate,
            beside the tasks: networks, and what autograd keeps.
        others: arguments that say the same by hand, by name; only one of all may be given.

    Raises:
        ProtocolError: for what is no budget.
        InputError: for a budget beside another argument.
    """

    def __init__(self, owner: str, memory: Memory | None, **others: int | None) -> None:
        given = [name for name, value in others.items() if value is not None]
        if memory is not None:
            bytes_of(owner, memory, torch.device("cpu"))
            if given:
                raise InputError(f"{owner}: memory={memory!r} chooses {given[0]} itself; give one of the two")
        self.owner, self.memory = owner, memory
        self._limit: int | None = None
        self._costs: dict[Any, float] = {}

    def limit(self, device: torch.device) -> int | None:
        """In bytes; a share is of what was free when it was first asked for."""
        if self._limit is None and self.memory is not None:
            self._limit = bytes_of(self.owner, self.memory, device)
        return self._limit

    def measured(
        self, cost: Callable[..., float], episode: Episode, parameters: Mapping[str, Tensor], batch: TaskBatch
    ) -> float:
        """A cost, found once for each shape of the batches."""
        key = (cost, id(episode), min(FEW, len(batch.seeds)), batch.x.shape[2:], batch.query_x.shape[1:])
        if key not in self._costs:
            self._costs[key] = cost(episode, parameters, batch)
        return self._costs[key]

    def at_once(self, limit: int, each: float, count: int, fix: str) -> int:
        """How many of ``count`` that need ``each`` bytes fit.

        Raises:
            InputError: if not even one does, naming what would help.
        """
        if each > limit:
            raise InputError(
                f"{self.owner}: memory={self.memory!r} is {shown(limit)}, but one needs {shown(each)}; {fix}"
            )
        return min(count, int(limit // max(each, 1)))

    def pieces(self, limit: int, each: float, count: int, threads: int, fix: str) -> tuple[list[slice], int]:
        """``count`` that need ``each`` bytes cut into pieces, and how many of these are run side by side.

        Raises:
            InputError: as :meth:`at_once`.
        """
        fitting = self.at_once(limit, each, count, fix)
        threads = min(threads, fitting)
        return pieces(count, fitting if fitting == count else fitting // threads), threads


def kept_by_a_step(episode: Episode, parameters: Mapping[str, Tensor], batch: TaskBatch) -> float:
    """Bytes that autograd keeps of one inner step, for each task."""
    few = batch.chosen(range(min(FEW, len(batch.seeds))))
    theta, state, counts = leaves(parameters), episode.begin(few), [0]
    with Saved(but=[*theta.values(), few.x, few.y, few.query_x, few.query_y]) as saved:
        for step in range(min(STEPS, batch.steps)):
            state = episode.window(theta, state, few, step, 1).state
            counts.append(saved.bytes)
    return _last(counts) / len(few.seeds)


def kept_with_histories(episode: Episode, parameters: Mapping[str, Tensor], batch: TaskBatch) -> float:
    """The same where weights are kept as histories."""
    few = batch.chosen(range(min(FEW, len(batch.seeds))))
    theta, state, counts, losses = leaves(parameters), episode.begin(few), [0], []
    with Live() as live, episode.program.histories(every=batch.steps + 1) as history:
        for step in range(min(STEPS, batch.steps)):
            window = episode.window(theta, state, few, step, 1)
            state = window.state
            losses.append(window.loss)  # which holds the graph
            counts.append(live.now - history.slack)
    return _last(counts) / len(few.seeds)


def _last(counts: list[int]) -> int:
    """What the last step added: before the first, nothing depends on meta-parameters; two steps save some things both.

    An episode that is too short is counted whole.
    """
    return counts[-1] - counts[-2] if len(counts) > STEPS else counts[-1]


def held_by_a_step(episode: Episode, parameters: Mapping[str, Tensor], batch: TaskBatch) -> float:
    """Bytes of a network and of all that one inner step holds at once without a backward pass, for each task."""
    few = batch.chosen(range(min(FEW, len(batch.seeds))))
    state = episode.begin(few)
    with torch.no_grad(), Live() as live:
        episode.window(parameters, state, few, 0, 1)
    return (live.peak + size_of(state)) / len(few.seeds)


def size_of(state: Mapping[str, Mapping[str, Tensor]]) -> int:
    """Bytes of a state."""
    return sum(t.nbytes for channels in state.values() for t in channels.values())


def needed(steps: int, segment: int, step: float, state: float) -> float:
    """Bytes that an unroll in segments holds: states between them, their gradient, and one segment's graph.

    Args:
        steps: inner steps.
        segment: those between two states.
        step: bytes that autograd keeps of one.
        state: bytes of a network.
    """
    return (math.ceil(steps / segment) + 1) * state + (segment + 1) * step  # one more step for the query


def longest(segments: Iterable[int], steps: int, step: float, state: float, limit: float) -> int | None:
    """The longest segment that fits: the longer, the fewer steps run twice."""
    fitting = [segment for segment in segments if needed(steps, segment, step, state) <= limit]
    return max(fitting, default=None)
