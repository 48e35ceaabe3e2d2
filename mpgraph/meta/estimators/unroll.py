"""Backpropagation through all inner steps."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import nullcontext

from torch import Generator, Tensor

from mpgraph.arguments import Arguments
from mpgraph.budget import Memory
from mpgraph.meta.clipping import clipped
from mpgraph.meta.episode import Episode
from mpgraph.meta.task import TaskBatch, Tasks
from mpgraph.threads import side_by_side

from .base import (
    Estimate,
    Estimator,
    Gradient,
    Length,
    added,
    checked_length,
    gradient_of,
    joined,
    leaves,
    length_at,
    pieces,
    threads_of,
)
from .plan import Budget, Schedule, kept_by_a_step, kept_with_histories, size_of


class Unroll(Estimator):
    """The exact gradient of whole episodes, by autograd; memory grows with their length.

    Args:
        steps: inner steps; a schedule ``(outer step, generator) -> steps`` such as :class:`LogUniform`; the family's
            number by default.
        chunk: tasks in one call; all by default. The gradient is the same. Of several pieces as many are run side by
            side as the program has threads (see :func:`mpgraph.compile`).
        memory: what all inner steps of the tasks that are run at once may keep: bytes, ``"2 GiB"``, or a share of what
            is free, ``0.5`` or ``"50%"``. Where it is too little for all tasks, weights are kept as histories
            (:meth:`Program.histories`) if that makes a difference, and then tasks are cut into pieces.
        limit: to which the norm of each piece's gradient is scaled down before pieces are averaged. With ``chunk=1`` no
            task counts for more than the others, however chaotic its episode was.
    """

    def __init__(
        self, steps: Length = None, chunk: int | None = None, memory: Memory | None = None, limit: float | None = None
    ) -> None:
        self.steps = checked_length(type(self).__name__, steps)
        self.chunk = None if chunk is None else Arguments(type(self).__name__).integer("chunk", chunk, 1)
        self.memory = memory
        self.limit = None if limit is None else Arguments(type(self).__name__).number("limit", limit, above=0.0)
        self._budget = Budget(type(self).__name__, memory, chunk=chunk)
        self._last: Schedule | None = None

    @property
    def schedule(self) -> Schedule | None:
        """How the last estimate was run; ``None`` before the first."""
        return self._last

    def estimate(  # noqa: D102
        self, episode: Episode, parameters: Mapping[str, Tensor], tasks: Tasks, generator: Generator
    ) -> Estimate:
        batch = episode.prepared(tasks.batch(steps=length_at(self.steps, tasks.step, generator)))
        limit = self._budget.limit(batch.x.device)
        self._last = schedule = self._scheduled(episode, parameters, batch, limit)
        gradient: Gradient = dict.fromkeys(parameters)
        threads = 1 if schedule.every else threads_of(episode, batch)  # a program has one history at a time
        together = schedule.tasks
        if limit is not None and together < len(tasks):
            threads = min(threads, together)
            together //= threads
        parts = pieces(len(tasks), together)

        def run(rows: slice) -> tuple[Gradient, dict[str, Tensor]]:
            piece = batch if len(parts) == 1 else batch.chosen(range(len(tasks))[rows])
            return self._piece(episode, parameters, piece, schedule)

        found = side_by_side(run, parts, threads)
        for rows, (part, _) in zip(parts, found, strict=True):
            gradient = added(gradient, part, len(range(len(tasks))[rows]) / len(tasks))
        metrics = joined([metrics for _, metrics in found])
        return Estimate(metrics["loss"].mean(), gradient, metrics)

    def _scheduled(
        self, episode: Episode, parameters: Mapping[str, Tensor], batch: TaskBatch, limit: int | None
    ) -> Schedule:
        count, steps = len(batch.seeds), batch.steps
        if limit is None:
            return Schedule(self.chunk or count, steps)
        state = size_of(episode.begin(batch.chosen([0])))
        each = (steps + 1) * self._budget.measured(kept_by_a_step, episode, parameters, batch) + 2 * state
        if each * count <= limit:
            return Schedule(count, steps)
        every = math.ceil(math.sqrt(steps))
        written = (steps + 1) * self._budget.measured(kept_with_histories, episode, parameters, batch)
        written += (4 * every + 2) * state  # weights that are kept, and what is written again at once
        fix = "give more, or take Recomputed(memory=...), which runs inner steps twice"
        if written < each:
            return Schedule(self._budget.at_once(limit, written, count, fix), steps, every)
        return Schedule(self._budget.at_once(limit, each, count, fix), steps)

    def _piece(
        self, episode: Episode, parameters: Mapping[str, Tensor], batch: TaskBatch, schedule: Schedule
    ) -> tuple[Gradient, dict[str, Tensor]]:
        theta = leaves(parameters)
        with nullcontext() if schedule.every is None else episode.program.histories(schedule.every):
            window = episode.window(theta, episode.begin(batch), batch, 0, batch.steps)
        gradient = gradient_of(window.loss.mean(), theta)
        if self.limit is not None:
            found = {name: g for name, g in gradient.items() if g is not None}
            gradient.update(clipped(found, "norm", self.limit))
        return gradient, {"loss": window.loss.detach(), **window.metrics}
