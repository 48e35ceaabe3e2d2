"""What an estimator is: from an episode, meta-parameters and tasks to a loss and its gradient."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor

from mpgraph.arguments import Arguments
from mpgraph.errors import InputError
from mpgraph.meta.episode import Episode
from mpgraph.meta.task import TaskBatch, Tasks
from mpgraph.threads import threads_for

Gradient = dict[str, Tensor | None]
Length = int | Callable[[int, Generator], int | None] | None


class Estimate(NamedTuple):
    """A meta-loss and its gradient.

    Attributes:
        loss: mean over tasks, a number.
        gradient: by name of the meta-parameter; ``None`` where the loss does not depend on it.
        metrics: ``(tasks,)`` each; ``loss`` among them.
    """

    loss: Tensor
    gradient: Gradient
    metrics: dict[str, Tensor]


class Estimator(ABC):
    """Base of estimators.

    Class attributes:
        carries: whether an outer step sees only a window of an episode, which may hold no part of the meta-loss.
    """

    carries = False

    @abstractmethod
    def estimate(
        self, episode: Episode, parameters: Mapping[str, Tensor], tasks: Tasks, generator: Generator
    ) -> Estimate:
        """The meta-loss over tasks and its gradient.

        Args:
            episode: what is run.
            parameters: the meta-parameters by name.
            tasks: of this outer step. An estimator that carries episodes over outer steps takes those of the steps
                at which they began.
            generator: of what else is random: a length, a perturbation.
        """

    def state(self) -> dict[str, Tensor]:
        """What it carries from one outer step to the next; every tensor has a leading axis of tasks."""
        return {}

    def load(self, state: Mapping[str, Tensor]) -> None:  # noqa: B027 - one that carries nothing has nothing to do
        """Take up what :meth:`state` gave."""

    def describe(self) -> dict[str, Any]:
        """What a training record says of it."""
        shown = {k: repr(v) if callable(v) else v for k, v in vars(self).items() if not k.startswith("_")}
        return {"class": type(self).__name__, **shown}


class Growing:
    """Episode lengths that grow in equal steps from ``first`` to ``last`` over so many outer steps.

    Args:
        first, last: inner steps.
        over: outer steps until ``last`` is reached.
    """

    def __init__(self, first: int, last: int, over: int) -> None:
        check = Arguments("Growing")
        self.first, self.last = check.integer("first", first, 1), check.integer("last", last, 1)
        self.over = check.integer("over", over, 1)

    def __call__(self, step: int, generator: Generator) -> int:
        """The length at an outer step."""
        return round(self.first + (self.last - self.first) * min(1.0, step / self.over))

    def __repr__(self) -> str:
        return f"Growing({self.first}, {self.last}, {self.over})"


class LogUniform:
    """Episode lengths whose logarithm is uniform.

    Args:
        low, high: smallest and largest.
    """

    def __init__(self, low: int, high: int) -> None:
        check = Arguments("LogUniform")
        self.low = check.integer("low", low, 1)
        self.high = check.integer("high", high, self.low)

    def __call__(self, step: int, generator: Generator) -> int:
        """A length."""
        uniform = float(torch.rand((), generator=generator, dtype=torch.float64))
        length = round(math.exp(math.log(self.low) + uniform * math.log(self.high / self.low)))
        return min(max(length, self.low), self.high)

    def __repr__(self) -> str:
        return f"LogUniform({self.low}, {self.high})"


class NeverEnding:
    """One life for each network of :class:`Truncated`: it goes on from task to task and never begins again.

    Args:
        steps: inner steps of a task; the family's number by default.
    """

    def __init__(self, steps: int | None = None) -> None:
        self.steps = None if steps is None else Arguments("NeverEnding").integer("steps", steps, 1)

    def __call__(self, step: int, generator: Generator) -> int | None:
        """The length of a task."""
        return self.steps

    def __repr__(self) -> str:
        return f"NeverEnding({self.steps or ''})"


def length_at(length: Length, step: int, generator: Generator) -> int | None:
    """The number of inner steps at an outer step; ``None`` for that of the family."""
    return length(step, generator) if callable(length) else length


def checked_length(owner: str, length: Length) -> Length:
    """A number of inner steps, a schedule of them, or ``None``.

    Raises:
        InputError: for episodes that never end, where an estimator needs an end.
    """
    if isinstance(length, NeverEnding) and owner != "Truncated":
        raise InputError(f"{owner}: steps=NeverEnding() has no episodes that end, as {owner} needs them; use Truncated")
    return length if length is None or callable(length) else Arguments(owner).integer("steps", length, 1)


def leaves(parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Fresh leaves of autograd with the values of the meta-parameters."""
    return {name: tensor.detach().clone().requires_grad_() for name, tensor in parameters.items()}


def gradient_of(loss: Tensor, parameters: Mapping[str, Tensor]) -> Gradient:
    """Derivatives by name; ``None`` where the loss does not depend on a parameter."""
    if not loss.requires_grad:
        return dict.fromkeys(parameters)
    found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    return dict(zip(parameters, found, strict=True))


def added(one: Gradient, two: Gradient, scale: float = 1.0) -> Gradient:
    """The sum of a gradient and ``scale`` times another."""
    total: Gradient = dict(one)
    for name, tensor in two.items():
        if tensor is not None:
            before = total.get(name)
            total[name] = scale * tensor if before is None else before + scale * tensor
    return total


def joined(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Metrics of several parts of the tasks, one after the other."""
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def pieces(count: int, size: int | None) -> list[slice]:
    """``count`` tasks in pieces of at most ``size``."""
    size = size or count
    return [slice(i, min(i + size, count)) for i in range(0, count, size)]


def threads_of(episode: Episode, batch: TaskBatch) -> int:
    """How many pieces of an estimate run side by side: as many as the program of the episode has threads.

    One where a backend compiles what it runs.
    """
    program = getattr(episode, "program", None)  # without a rule there is none
    if program is not None and program.backend.name != "eager":
        return 1
    threads = threads_for(None if program is None else program.threads, [batch.x])
    if program is not None and threads > 1:
        program.prepare(batch.x.shape[2])
    return threads


def whole(episode_steps: int, window: int, owner: str) -> int:
    """The number of windows in an episode.

    Raises:
        InputError: if they do not fill it.
    """
    if episode_steps % window:
        raise InputError(
            f"{owner}: window={window} does not divide an episode of {episode_steps} inner steps; give the episode a "
            f"multiple, such as steps={episode_steps // window * window or window}"
        )
    return episode_steps // window
