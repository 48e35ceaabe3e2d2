"""Comparing rules on common seeds."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from tqdm import tqdm

from mpgraph.agents.protocol import Protocol
from mpgraph.arguments import Arguments
from mpgraph.data.datasets import Dataset
from mpgraph.environment import usable
from mpgraph.errors import InputError
from mpgraph.network.network import Network
from mpgraph.program.compile import compile
from mpgraph.program.program import Program

from .alignment import Alignment, silent
from .results import READOUT_ONLY, Run
from .tasks import fitted
from .training import main_output, train


def compare(
    network: Network,
    rules: dict[str, Callable[[], Protocol]],
    load: Callable[[int], Dataset],
    *,
    seeds: Iterable[int],
    epochs: int,
    batch: int = 32,
    device: str | None = None,
    done: Sequence[Run] = (),
    on_run: Callable[[list[Run]], None] | None = None,
    progress: bool = True,
) -> list[Run]:
    """Train every rule on every seed; a seed fixes the split, the initial weights and the order of examples.

    Args:
        network: on which all rules run. The rule called ``readout_only`` runs on ``network.readout_only()``.
        rules: for each name a function that makes the rule.
        load: a function of the seed that returns the data set.
        seeds: integers, one run of each rule for each.
        epochs: passes over the training set.
        batch: examples in a step.
        device: where to run.
        done: runs of an earlier call, which are not repeated.
        on_run: called after each run with all runs so far, including those of ``done``.
        progress: show a bar, if stderr is a terminal.

    Returns:
        The runs, ordered by seed and rule.

    Raises:
        InputError: for no rules or seeds, a seed that is repeated, or numbers that are not positive integers.
        MPGraphError: if a rule does not fit the network. All rules are compiled before the first is trained.
    """
    check = Arguments("compare", InputError)
    epochs, batch = check.integer("epochs", epochs, 1), check.integer("batch", batch, 1)
    if not isinstance(seeds, Iterable) or isinstance(seeds, str):
        check.refuse("seeds", seeds, "a sequence of integers, such as range(3)")
    numbers = [check.seed(f"seeds[{i}]", seed) for i, seed in enumerate(seeds)]
    if not numbers or len(set(numbers)) < len(numbers):
        check.refuse("seeds", numbers, "at least one integer, each once")
    if not rules:
        check.refuse("rules", rules, "a dictionary of at least one rule, such as {'backprop': Backprop}")
    finished = {(run.protocol, run.seed): run for run in done}
    programs = {
        name: compile(network.readout_only() if name == READOUT_ONLY else network, make(), device=device)
        for name, make in rules.items()
        if any((name, seed) not in finished for seed in numbers)
    }
    runs: list[Run] = []
    # A bar only on a terminal: that is what tqdm makes of None.
    total, hidden = len(rules) * len(numbers) * epochs, None if progress else True
    with tqdm(total=total, disable=hidden, unit="epoch", leave=False) as bar:
        for seed in numbers:
            data = fitted(load(seed), network)
            data = data.to(usable(device)) if device else data
            for name in rules:
                if (name, seed) in finished:
                    runs.append(finished[name, seed])
                    bar.update(epochs)
                    continue
                bar.set_description(f"{name}, seed {seed}")
                key = (data.name, shape_of(network), name, seed)
                runs.append(measured(programs[name], data, key, epochs=epochs, batch=batch, on_epoch=bar.update))
                bar.update(epochs - len(runs[-1].curve))
                if on_run:
                    here = {(run.protocol, run.seed) for run in runs}
                    on_run([*runs, *(run for key, run in finished.items() if key not in here)])
    return runs


def measured(
    program: Program,
    data: Dataset,
    key: tuple[str, str, str, int],
    *,
    epochs: int,
    batch: int,
    on_epoch: Callable[[], object] = lambda: None,
    angles: bool = False,
) -> Run:
    """Train a fresh state, and what came of it.

    Args:
        program: a network with a rule.
        data: in the shape of the network's input.
        key: task, network, rule and seed, as the run calls them.
        epochs: passes over the training set.
        batch: examples in a step.
        on_epoch: called after each epoch.
        angles: whether to measure updates beside the gradient at each epoch.
    """
    task, network, name, seed = key
    times: list[float] = []

    def ended(epoch: int, score: float) -> None:
        on_epoch()

    by_output: list[dict[str, float]] = []
    alignment = Alignment(program, data, batch) if angles else None
    state, curve, losses = train(
        program, data, epochs=epochs, batch=batch, seed=seed, times=times, on_epoch=ended, follow=alignment,
        by_output=by_output,
    )  # fmt: skip
    main = data.targets[main_output(program, data)] if data.others else data
    done = int(state["program"]["step"])
    cost = program.cost(min(batch, len(data.train_x)))
    return Run(
        protocol=name,
        task=task,
        network=network,
        seed=seed,
        test_accuracy=curve[-1] if main.classes else None,
        test_error=None if main.classes else curve[-1],
        seconds=times[-1],
        epochs=epochs,
        batch=batch,
        arguments=program.protocol.name,
        diverged=not math.isfinite(losses[-1]),
        curve=curve,
        losses=losses,
        steps=[done * (i + 1) // len(curve) for i in range(len(curve))],  # epochs are of one length
        times=times,
        cost={key: getattr(cost, key) for key in ("flops", "bytes", "calls", "state", "synaptic")},
        outputs=_outputs(data, by_output) if data.others else {},
        silent=silent(program, state, data, batch),
        alignment=alignment.found if alignment else None,
    )


def _outputs(data: Dataset, scores: Sequence[Mapping[str, float]]) -> dict[str, dict[str, Any]]:
    """The scores of each output after each epoch, as a run keeps them."""
    found = {}
    for name, one in data.targets.items():
        curve = [row[name] for row in scores]
        found[name] = {"test_accuracy" if one.classes else "test_error": curve[-1], "curve": curve}
    return found


def shape_of(network: Network) -> str:
    """A chain as ``64-32-10 tanh``, with several outputs ``64-32-10+64 tanh``; any other by its numbers of parts."""
    units = list(network.units.values())
    activations = {u.activation.name for u in units if not u.is_input and u.name not in network.outputs}
    tops = [unit for unit in units if unit.name in network.outputs]
    chain = [unit for unit in units if unit.name not in network.outputs]
    ends = [(a.name, b.name) for a, b in pairwise(chain)] + [(chain[-1].name, top.name) for top in tops if chain]
    if chain and [(wire.pre, wire.post) for wire in network.wires.values()] == ends:
        sizes = [str(torch.Size(unit.shape).numel()) for unit in (*chain, *tops)]
        shape = "-".join([*sizes[: len(chain)], "+".join(sizes[len(chain) :])])
        return f"{shape} {'/'.join(sorted(activations or {'linear'}))}"
    return f"{len(units)} units, {len(network.wires)} connections"
