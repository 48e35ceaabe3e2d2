"""Backpropagation through all inner steps."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Generator, Tensor

from mpgraph.arguments import Arguments
from mpgraph.budget import Memory
from mpgraph.meta.episode import Episode
from mpgraph.meta.task import TaskBatch, Tasks

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
)
from .plan import Budget, kept_by_a_step, size_of


class Unroll(Estimator):
    """The exact gradient of whole episodes, by autograd; memory grows with their length.

    Args:
        steps: inner steps; a schedule ``(outer step, generator) -> steps`` such as :class:`LogUniform`; the family's
            number by default.
        chunk: tasks at once; all by default. The gradient is the same, the memory smaller.
        memory: what all inner steps of the tasks at once may keep, which chooses ``chunk``: bytes, ``"2 GiB"``, or a
            share of what is free, ``0.5`` or ``"50%"``.
    """

    def __init__(self, steps: Length = None, chunk: int | None = None, memory: Memory | None = None) -> None:
        self.steps = checked_length(type(self).__name__, steps)
        self.chunk = None if chunk is None else Arguments(type(self).__name__).integer("chunk", chunk, 1)
        self.memory = memory
        self._budget = Budget(type(self).__name__, memory, chunk=chunk)

    def estimate(  # noqa: D102
        self, episode: Episode, parameters: Mapping[str, Tensor], tasks: Tasks, generator: Generator
    ) -> Estimate:
        batch = episode.prepared(tasks.batch(steps=length_at(self.steps, tasks.step, generator)))
        limit = self._budget.limit(episode.program.device)
        chunk, segment = self._schedule(episode, parameters, batch, limit)
        gradient: Gradient = dict.fromkeys(parameters)
        parts = []
        for rows in pieces(len(tasks), chunk):
            piece = batch if chunk is None else batch.chosen(range(len(tasks))[rows])
            found, metrics = self._piece(episode, parameters, piece, segment)
            gradient = added(gradient, found, len(piece.seeds) / len(tasks))
            parts.append(metrics)
        metrics = joined(parts)
        return Estimate(metrics["loss"].mean(), gradient, metrics)

    def _schedule(
        self, episode: Episode, parameters: Mapping[str, Tensor], batch: TaskBatch, limit: int | None
    ) -> tuple[int | None, int]:
        """Tasks at once (``None``: all), and inner steps that autograd keeps at once."""
        if limit is None:
            return self.chunk, batch.steps
        state = size_of(episode.begin(batch.chosen([0])))
        each = (batch.steps + 1) * self._budget.measured(kept_by_a_step, episode, parameters, batch) + 2 * state
        fix = "give more, or take Recomputed(memory=...), which runs inner steps twice"
        return self._budget.at_once(limit, each, len(batch.seeds), fix), batch.steps

    def _piece(
        self, episode: Episode, parameters: Mapping[str, Tensor], batch: TaskBatch, segment: int
    ) -> tuple[Gradient, dict[str, Tensor]]:
        """Gradient and metrics of some tasks; ``segment`` is the whole episode."""
        theta = leaves(parameters)
        window = episode.window(theta, episode.begin(batch), batch, 0, batch.steps)
        gradient = gradient_of(window.loss.mean(), theta)
        return gradient, {"loss": window.loss.detach(), **window.metrics}
