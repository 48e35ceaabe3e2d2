"""Training a program on a data set."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from mpgraph.data.datasets import Dataset
from mpgraph.program.program import Program, State


def accuracy(program: Program, state: State, x: Tensor, y: Tensor, chunk: int = 1000) -> float:
    """Share of examples whose largest output is the label's.

    Of a rule that keeps memories of examples, as many at a time as it has slots for; the last ones are filled up.
    """
    slots = program.slots(state)
    filled = x if slots is None else torch.cat([x, x[:1].expand(-len(x) % slots, *x.shape[1:])])
    with torch.no_grad():
        found = [program.predict(state, part).argmax(-1) for part in filled.split(slots or chunk)]
    return int((torch.cat(found)[: len(y)] == y).sum()) / len(y)


def train(
    program: Program,
    data: Dataset,
    *,
    epochs: int,
    batch: int = 32,
    seed: int = 0,
    on_epoch: Callable[[int, float], None] | None = None,
    follow: Callable[[int, State], None] | None = None,
) -> tuple[State, list[float], list[float]]:
    """Train from a fresh state; stops early if the loss is no longer finite.

    A rule that keeps memories of examples is not shown the last batch of an epoch if that is smaller than the others.

    Args:
        program: a network with one input, one output and a rule.
        data: flat or not, as the network's input is.
        epochs: passes over the training set, each in an order drawn from ``seed``.
        batch: examples in a step.
        seed: of the initial state and of the order of examples.
        on_epoch: called with the epoch's number and the test accuracy.
        follow: called with the number of epochs done and the state, before the first one too: a
            :class:`mpgraph.probes.Follow`.

    Returns:
        The state, the test accuracy after each epoch, and each epoch's mean loss.
    """
    state = program.init(seed=seed, batch_size=batch)
    generator = torch.Generator("cpu").manual_seed(seed)
    curve, losses = [], []
    if follow:
        follow(0, state)
    for epoch in range(epochs):
        batches = data.batches(batch, generator)
        if program.slots(state) is not None:
            batches = (pair for pair in batches if len(pair[0]) == batch)
        state, steps = program.run(state, batches)
        losses.append(sum(steps) / max(1, len(steps)))
        curve.append(accuracy(program, state, data.test_x, data.test_y))
        if on_epoch:
            on_epoch(epoch, curve[-1])
        if follow:
            follow(epoch + 1, state)
        if not math.isfinite(losses[-1]):
            break
    return state, curve, losses
