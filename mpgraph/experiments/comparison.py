"""Comparing rules on common seeds."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch
from tqdm.auto import tqdm

from mpgraph.agents.protocol import Protocol
from mpgraph.data.datasets import Dataset
from mpgraph.environment import usable
from mpgraph.network.network import Network
from mpgraph.program.compile import compile

from .results import READOUT_ONLY, Run
from .training import train


def compare(
    network: Network,
    rules: dict[str, Callable[[], Protocol]],
    load: Callable[[int], Dataset],
    *,
    seeds: Sequence[int],
    epochs: int,
    batch: int = 32,
    device: str | None = None,
    done: Sequence[Run] = (),
    on_run: Callable[[list[Run]], None] | None = None,
    progress: bool = True,
) -> list[Run]:
    """Train every rule on every seed; a seed fixes the split, the initial weights and the order of examples.

    Args:
        network: on which all rules run.
        rules: a maker of the rule for each name.
        load: the data set of a seed.
        seeds: one run each.
        epochs: passes over the training set.
        batch: examples in a step.
        device: where to run.
        done: runs of an earlier call, which are not repeated.
        on_run: called after each run with all so far, those of ``done`` included.
        progress: whether to show a bar.
    """
    runs: list[Run] = []
    finished = {(run.protocol, run.seed): run for run in done}
    bar = tqdm(total=len(rules) * len(seeds) * epochs, disable=not progress, unit="epoch", leave=False)
    for seed in seeds:
        data = load(seed).flat()
        data = data.to(usable(device)) if device else data
        for name, make in rules.items():
            if (name, seed) in finished:
                runs.append(finished[name, seed])
                bar.update(epochs)
                continue
            rule = make()
            program = compile(network.readout_only() if name == READOUT_ONLY else network, rule, device=device)
            bar.set_description(f"{name}, seed {seed}")
            start = time.perf_counter()
            _, curve, losses = train(
                program,
                data,
                epochs=epochs,
                batch=batch,
                seed=seed,
                on_epoch=lambda *_: bar.update() and None,
            )
            seconds = time.perf_counter() - start
            diverged = len(curve) < epochs
            bar.update(epochs - len(curve))
            runs.append(
                Run(name, data.name, shape_of(network), seed, curve[-1], seconds, epochs, batch, rule.name, diverged,
                    curve, losses)
            )  # fmt: skip
            if on_run:
                here = {(run.protocol, run.seed) for run in runs}
                on_run([*runs, *(run for key, run in finished.items() if key not in here)])
    bar.close()
    return runs


def shape_of(network: Network) -> str:
    """A chain as ``64-32-10 tanh``; anything else as its numbers of units and connections."""
    units = list(network.units.values())
    kinds = {u.activation.name for u in units if not u.is_input and u.name not in network.outputs}
    chain = all(
        (w.pre, w.post) == (a.name, b.name) for w, a, b in zip(network.wires.values(), units, units[1:], strict=False)
    )
    if chain and len(network.wires) == len(units) - 1:
        return "-".join(str(torch.Size(u.shape).numel()) for u in units) + " " + "/".join(sorted(kinds or {"linear"}))
    return f"{len(units)} units, {len(network.wires)} connections"
