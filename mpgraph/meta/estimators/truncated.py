"""Truncated backpropagation: episodes are carried over outer steps, the gradient looks back over one window."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Generator, Tensor

from mpgraph.arguments import Arguments
from mpgraph.meta.episode import Episode
from mpgraph.meta.task import Tasks

from .base import Estimate, Estimator, Length, checked_length, gradient_of, leaves
from .workers import Workers, detached


class Truncated(Estimator):
    """The gradient of the loss of a window, with the state at its beginning as given.

    The loss of a window counts as many times as windows fill the episode, so that with ``window`` as long as the
    episode this is :class:`Unroll`; otherwise the gradient is biased towards what pays within a window.

    Args:
        window: inner steps.
        steps: inner steps of an episode, a multiple of ``window``; a schedule ``(outer step, generator) -> steps``,
            asked when an episode begins; the family's number by default. With :class:`NeverEnding` networks are never
            fresh again.
    """

    carries = True

    def __init__(self, window: int, steps: Length = None) -> None:
        self.window = Arguments("Truncated").integer("window", window, 1)
        self.steps = checked_length("Truncated", steps)
        self._workers = Workers(("state",))

    def estimate(  # noqa: D102
        self, episode: Episode, parameters: Mapping[str, Tensor], tasks: Tasks, generator: Generator
    ) -> Estimate:
        workers = self._workers
        batch, _ = workers.begin(episode, tasks, self.window, self.steps, generator, unlocked=False)
        theta = leaves(parameters)
        window = episode.window(theta, workers.states["state"], batch, workers.start(), self.window)
        loss = window.loss * (workers.length.double() / self.window).to(window.loss)
        gradient = gradient_of(loss.mean(), theta)
        workers.states["state"] = detached(window.state)
        workers.age = workers.age + self.window
        return Estimate(loss.detach().mean(), gradient, {"loss": loss.detach(), **window.metrics})

    def state(self) -> dict[str, Tensor]:  # noqa: D102
        return self._workers.state()

    def load(self, state: Mapping[str, Tensor]) -> None:  # noqa: D102
        self._workers.load(state)
