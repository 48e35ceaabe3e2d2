"""Backpropagation through all inner steps with the square root of the memory.

States are kept at the ends of segments only. The backward pass goes from the last segment to the first, runs each
again with a graph, and hands the derivative with respect to its initial state to the segment before it. The noise of
a step is a function of the state's seed and step, so a step that runs twice is the same step.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from mpgraph.arguments import Arguments
from mpgraph.budget import Memory
from mpgraph.meta.episode import Episode
from mpgraph.meta.task import TaskBatch
from mpgraph.program.program import State

from .base import Gradient, Length, added
from .plan import Budget, Schedule, kept_by_a_step, longest, needed, size_of
from .unroll import Unroll


class Recomputed(Unroll):
    """The gradient of :class:`Unroll`, at the cost of running every inner step twice.

    Args:
        steps: inner steps, as in :class:`Unroll`.
        segment: inner steps between two states that are kept; the square root of the episode's length by default,
            with which memory grows as that. Longer segments need more memory for their graph, shorter ones for states.
        chunk: tasks at once; all by default.
        memory: what states and graphs may take together: bytes, ``"2 GiB"``, or a share of what is free, ``0.5`` or
            ``"50%"``. What a step keeps is measured; then segments are as long as fits, and tasks are cut into pieces
            only where no segment fits all of them.
    """

    def __init__(
        self,
        steps: Length = None,
        segment: int | None = None,
        chunk: int | None = None,
        memory: Memory | None = None,
    ) -> None:
        super().__init__(steps, chunk, memory)
        self.segment = None if segment is None else Arguments("Recomputed").integer("segment", segment, 1)
        self._budget = Budget("Recomputed", memory, chunk=chunk, segment=segment)

    def _scheduled(
        self, episode: Episode, parameters: Mapping[str, Tensor], batch: TaskBatch, limit: int | None
    ) -> Schedule:
        if limit is None:
            return Schedule(self.chunk or len(batch.seeds), self.segment or math.ceil(math.sqrt(batch.steps)))
        step = self._budget.measured(kept_by_a_step, episode, parameters, batch)
        state = size_of(episode.begin(batch.chosen([0])))
        lengths = range(1, batch.steps + 1)
        least = min(needed(batch.steps, length, step, state) for length in lengths)
        fix = f"give more, or episodes shorter than {batch.steps} inner steps"
        count = self._budget.at_once(limit, least, len(batch.seeds), fix)
        count = math.ceil(len(batch.seeds) / math.ceil(len(batch.seeds) / count))  # pieces of about one size
        segment = longest(lengths, batch.steps, step, state, limit / count)
        return Schedule(count, segment or 1)

    def _piece(
        self, episode: Episode, parameters: Mapping[str, Tensor], batch: TaskBatch, schedule: Schedule
    ) -> tuple[Gradient, dict[str, Tensor]]:
        segment = schedule.segment
        bounds = [(a, min(a + segment, batch.steps)) for a in range(0, batch.steps, segment)]
        fixed = {name: tensor.detach() for name, tensor in parameters.items()}
        states = [episode.begin(batch)]
        losses, metrics = [], dict[str, Tensor]()
        with torch.no_grad():
            for start, stop in bounds[:-1]:
                window = episode.window(fixed, states[-1], batch, start, stop - start)
                states.append(window.state)
                losses.append(window.loss)
                metrics = summed(metrics, window.metrics)
        gradient: Gradient = dict.fromkeys(parameters)
        above: dict[tuple[str, str], Tensor] = {}  # of the loss of later segments by the state at the end of this one
        for start, stop in reversed(bounds):
            theta = {name: tensor.clone().requires_grad_() for name, tensor in fixed.items()}
            state, inside = _leaves(states.pop(), needed=start > 0)
            window = episode.window(theta, state, batch, start, stop - start)
            if stop == batch.steps:
                losses.append(window.loss.detach())
                metrics = summed(metrics, window.metrics)
            total = window.loss.mean()
            for (node, channel), slope in above.items():
                total = total + (window.state[node][channel] * slope).sum()
            if not total.requires_grad:
                break
            sources = [*theta.values(), *inside.values()]
            found = torch.autograd.grad(total, sources, allow_unused=True)
            gradient = added(gradient, dict(zip(theta, found, strict=False)))
            above = {key: g for key, g in zip(inside, found[len(theta) :], strict=True) if g is not None}
        return gradient, {"loss": torch.stack(losses).sum(0), **metrics}


def summed(one: dict[str, Tensor], two: dict[str, Tensor]) -> dict[str, Tensor]:
    """Terms of two windows of one episode; what one of them lacks counts nothing."""
    return {**one, **two, **{name: one[name] + two[name] for name in one.keys() & two.keys()}}


def _leaves(state: State, needed: bool) -> tuple[State, dict[tuple[str, str], Tensor]]:
    """The state with fresh leaves of autograd in place of its real numbers, and those leaves."""
    if not needed:
        return state, {}
    inside = {
        (node, channel): tensor.detach().requires_grad_()
        for node, channels in state.items()
        for channel, tensor in channels.items()
        if tensor.is_floating_point()
    }
    return {n: {c: inside.get((n, c), t) for c, t in channels.items()} for n, channels in state.items()}, inside
