"""Training a program on a data set."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from mpgraph.arguments import Arguments
from mpgraph.data.datasets import Dataset
from mpgraph.errors import InputError
from mpgraph.program.program import Program, State


def accuracy(
    program: Program, state: State, x: Tensor, y: Tensor, chunk: int = 1000, *, output: str | None = None
) -> float:
    """Classification accuracy in [0, 1].

    Args:
        program: its output's largest number is the predicted class.
        state: after training.
        x: ``(n, *input)``.
        y: class labels ``(n,)``.
        chunk: examples predicted at once. A rule that keeps a memory of each example gets as many as it has memories
            for; the last chunk is padded.
        output: which one, of a network with several.

    Raises:
        InputError: for no examples, another number of labels, or an output that is not there or not named.
    """
    if len(x) != len(y) or not len(x):
        raise InputError(f"accuracy: got {len(x)} examples and {len(y)} labels, expected as many, at least one")
    return _right(_predicted(program, state, x, chunk)[_output("accuracy", program, output)], y)


def error(
    program: Program, state: State, x: Tensor, y: Tensor, chunk: int = 1000, *, output: str | None = None
) -> float:
    """Share of the variance of the targets that predictions miss: 0 is perfect, 1 as good as the mean of the targets.

    That is the sum of squared errors over that of deviations from the mean, over all outputs (1 - R squared).

    Args:
        program: a network with a rule.
        state: after training.
        x: ``(n, *input)``.
        y: targets ``(n, *output)``.
        chunk, output: as for :func:`accuracy`.

    Raises:
        InputError: for another number or shape of targets, targets that are all the same, or an output that is not
            there or not named.
    """
    if len(x) != len(y) or not len(x):
        raise InputError(f"error: got {len(x)} examples and {len(y)} targets, expected as many, at least one")
    return _missed(_predicted(program, state, x, chunk)[_output("error", program, output)], y)


def scores(program: Program, state: State, data: Dataset) -> dict[str, float]:
    """On the test set, for each output: :func:`accuracy` of classes, :func:`error` of numbers."""
    found = _predicted(program, state, data.test_x, 1000)
    targets = data.targets if data.others else {program.graph.network.outputs[0]: data.targets[data.output]}
    return {name: (_right if one.classes else _missed)(found[name], one.test) for name, one in targets.items()}


def main_output(program: Program, data: Dataset) -> str:
    """The output that a run is scored by: the first of the network that names classes, or else the first."""
    outputs = program.graph.network.outputs
    return next((name for name in outputs if data.others and data.targets[name].classes), outputs[0])


def _right(found: Tensor, y: Tensor) -> float:
    return int((found.argmax(-1) == y).sum()) / len(y)


def _missed(found: Tensor, y: Tensor) -> float:
    if found.shape != y.shape:
        raise InputError(f"error: predictions have shape {tuple(found.shape)}, targets {tuple(y.shape)}")
    spread = float(((y - y.mean(0)) ** 2).sum())
    if not spread:
        raise InputError("error: all targets are the same, so there is no variance to predict")
    return float(((found - y) ** 2).sum()) / spread


def _output(caller: str, program: Program, name: str | None) -> str:
    """The output of that name; of a network with one, that one."""
    names = program.graph.network.outputs
    if name is None and len(names) == 1:
        return names[0]
    if name not in names:
        raise InputError(f"{caller}: output={name!r} must be one of {', '.join(map(repr, names))}")
    return name


def _predicted(program: Program, state: State, x: Tensor, chunk: int) -> dict[str, Tensor]:
    """Predictions of each output for all examples, in chunks; memories of single examples are filled with the first.

    Of sequences, where a step is a tick, those of the last tick, which has the target.
    """
    network = program.graph.network
    slots = program.slots(state)
    filled = x if slots is None else torch.cat([x, x[:1].expand(-len(x) % slots, *x.shape[1:])])
    with torch.no_grad():
        found = [program.predict(state, part, memories="fresh") for part in filled.split(slots or chunk)]
    parts = [part if isinstance(part, dict) else {network.outputs[0]: part} for part in found]

    def joined(name: str) -> Tensor:
        tensor = torch.cat([part[name] for part in parts])[: len(x)]
        return tensor[:, -1] if tensor.ndim > 1 + len(network.shape(name)) else tensor

    return {name: joined(name) for name in network.outputs}


def train(
    program: Program,
    data: Dataset,
    *,
    epochs: int,
    batch: int = 32,
    seed: int = 0,
    on_epoch: Callable[[int, float], None] | None = None,
    follow: Callable[[int, State], None] | None = None,
    times: list[float] | None = None,
    by_output: list[dict[str, float]] | None = None,
) -> tuple[State, list[float], list[float]]:
    """Train from a fresh state; stops early if the loss is no longer finite.

    The last batch of an epoch is left out if it is smaller than the others and the program cannot use it: because the
    rule keeps a memory for each example of a batch, or because it is a single example, of which batch normalization
    would see one number per channel.

    Args:
        program: a network with one input and a rule.
        data: flat or not, as the network's input is.
        epochs: passes over the training set, each in an order sampled from ``seed``.
        batch: examples in a step.
        seed: of the initial state and of the order of examples.
        on_epoch: called with the epoch's number and the score on the test set, of several outputs that of the main one:
            the first that names classes, or else the first.
        follow: called with the number of epochs done and the state, also before the first one: a
            :class:`mpgraph.probes.Follow`.
        times: a list to which the seconds of training until the end of each epoch are appended, without those of tests.
        by_output: a list to which the :func:`scores` of all outputs after each epoch are appended.

    Returns:
        The state, the main output's score on the test set after each epoch, and each epoch's mean loss.

    Raises:
        InputError: for epochs, a batch size or a seed that are not integers, or too few examples for a single step.
    """
    check = Arguments("train", InputError)
    epochs, batch = check.integer("epochs", epochs, 1), check.integer("batch", batch, 1)
    seed = check.seed("seed", seed)
    state = program.init(seed=seed, batch_size=batch)
    least = batch if program.slots(state) is not None else min(batch, _least(program))
    if len(data.train_x) < least:
        raise InputError(f"train: a step needs {least} examples here, the training set has {len(data.train_x)}")
    generator = torch.Generator().manual_seed(seed)
    curve, losses = [], []
    if follow:
        follow(0, state)
    spent = 0.0
    for epoch in range(epochs):
        start = time.perf_counter()
        # Examples have nothing to do with each other: where a step is a tick, each batch is a sequence of its own.
        state, steps = program.run(state, _at_least(least, data.batches(batch, generator)), reset=program.online)
        losses.append(sum(steps) / max(1, len(steps)))
        spent += time.perf_counter() - start
        if times is not None:
            times.append(spent)
        found = scores(program, state, data)
        curve.append(found[main_output(program, data)])
        if by_output is not None:
            by_output.append(found)
        if on_epoch:
            on_epoch(epoch, curve[-1])
        if follow:
            follow(epoch + 1, state)
        if not math.isfinite(losses[-1]):
            break
    return state, curve, losses


def _at_least(least: int, batches: Iterator[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
    return (pair for pair in batches if len(pair[0]) >= least)


def _least(program: Program) -> int:
    """Two examples if a unit without positions normalizes over the batch, one otherwise."""
    units = program.graph.network.units.values()
    return 1 + any(unit.activation.over == "batch" and math.prod(unit.shape[1:]) == 1 for unit in units)
