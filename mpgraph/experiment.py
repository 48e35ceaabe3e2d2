"""Training a program on a data set, and comparing rules on common seeds."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from . import files
from .checks import usable
from .data import Dataset
from .errors import FileError
from .network import Network
from .program import Program, State, compile
from .protocol import Protocol

READOUT_ONLY = "readout_only"  # the floor: the same network with only its output connections trained


@dataclass
class Run:
    """One rule on one seed. Accuracies lie in 0..1; ``curve`` holds the test accuracy after each epoch."""

    protocol: str
    task: str
    network: str
    seed: int
    test_accuracy: float
    seconds: float
    epochs: int
    batch: int
    arguments: str = ""
    diverged: bool = False
    curve: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)


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
    generator = torch.Generator().manual_seed(seed)
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
        if not torch.isfinite(torch.tensor(losses[-1])):
            break
    return state, curve, losses


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
    kinds = {u.kind.name for u in units if not u.is_input and u.name not in network.outputs}
    chain = all(
        (w.pre, w.post) == (a.name, b.name) for w, a, b in zip(network.wires.values(), units, units[1:], strict=False)
    )
    if chain and len(network.wires) == len(units) - 1:
        return "-".join(str(torch.Size(u.shape).numel()) for u in units) + " " + "/".join(sorted(kinds or {"linear"}))
    return f"{len(units)} units, {len(network.wires)} connections"


def versions() -> dict[str, Any]:
    """What a result was made with."""
    from . import __version__

    return {
        "mpgraph": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
    }


def write(path: Path, runs: Sequence[Run], settings: dict[str, Any]) -> None:
    """Write ``results.json`` atomically."""
    content = {"runs": [asdict(run) for run in runs], "settings": settings, "versions": versions()}
    files.write(path, (json.dumps(content, indent=1) + "\n").encode())


def read(path: Path, settings: dict[str, Any]) -> list[Run]:
    """Runs of an earlier comparison with the same settings.

    Raises:
        FileError: if the file is damaged, or its settings differ.
    """
    try:
        content = json.loads(path.read_text())
        found, runs = content["settings"], [Run(**run) for run in content["runs"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FileError(f"{path} cannot be resumed: {error}") from None
    different = [k for k in settings if settings[k] != found.get(k)]
    if different:
        raise FileError(f"{path} cannot be resumed: it was made with another {', '.join(different)}")
    return runs


def summary(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """For each rule: accuracy's mean and spread (sample standard deviation), gain over the readout alone, seconds."""
    rows = []
    by_rule: dict[str, list[Run]] = {}
    for run in runs:
        by_rule.setdefault(run.protocol, []).append(run)
    floor = {run.seed: run.test_accuracy for run in by_rule.get(READOUT_ONLY, [])}
    for name, group in by_rule.items():
        scores = torch.tensor([run.test_accuracy for run in group], dtype=torch.float64)
        gains = [run.test_accuracy - floor[run.seed] for run in group if run.seed in floor and name != READOUT_ONLY]
        rows.append({
            "protocol": name,
            "seeds": len(group),
            "test_accuracy": float(scores.mean()),
            "deviation": float(scores.std()) if len(group) > 1 else 0.0,
            "above_readout": sum(gains) / len(gains) if gains else None,
            "seconds": sum(run.seconds for run in group) / len(group),
            "diverged": sum(run.diverged for run in group),
        })  # fmt: skip
    return rows
