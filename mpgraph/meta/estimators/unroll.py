"""Backpropagation through all inner steps."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Generator, Tensor

from mpgraph.arguments import Arguments
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


class Unroll(Estimator):
    """The exact gradient of whole episodes, by autograd; memory grows with their length.

    Args:
        steps: inner steps; a schedule ``(outer step, generator) -> steps`` such as :class:`LogUniform`; the family's
            number by default.
        chunk: tasks at once; all by default. The gradient is the same, the memory smaller.
    """

    def __init__(self, steps: Length = None, chunk: int | None = None) -> None:
        self.steps = checked_length(type(self).__name__, steps)
        self.chunk = None if chunk is None else Arguments(type(self).__name__).integer("chunk", chunk, 1)

    def estimate(  # noqa: D102
        self, episode: Episode, parameters: Mapping[str, Tensor], tasks: Tasks, generator: Generator
    ) -> Estimate:
        batch = episode.prepared(tasks.batch(steps=length_at(self.steps, tasks.step, generator)))
        gradient: Gradient = dict.fromkeys(parameters)
        parts = []
        for rows in pieces(len(tasks), self.chunk):
            piece = batch if self.chunk is None else batch.chosen(range(len(tasks))[rows])
            found, metrics = self._piece(episode, parameters, piece)
            gradient = added(gradient, found, len(piece.seeds) / len(tasks))
            parts.append(metrics)
        metrics = joined(parts)
        return Estimate(metrics["loss"].mean(), gradient, metrics)

    def _piece(
        self, episode: Episode, parameters: Mapping[str, Tensor], batch: TaskBatch
    ) -> tuple[Gradient, dict[str, Tensor]]:
        theta = leaves(parameters)
        window = episode.window(theta, episode.begin(batch), batch, 0, batch.steps)
        gradient = gradient_of(window.loss.mean(), theta)
        return gradient, {"loss": window.loss.detach(), **window.metrics}
