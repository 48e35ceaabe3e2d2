"""Results of a comparison: in memory, in ``results.json``, and summarized."""

from __future__ import annotations

import hashlib
import json
import math
import platform
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from mpgraph.errors import FileError
from mpgraph.serialization import atomic

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


def versions() -> dict[str, Any]:
    """What a result was made with."""
    from mpgraph import __version__

    return {
        "mpgraph": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
    }


def write(path: Path, runs: Sequence[Run], settings: dict[str, Any]) -> None:
    """Write ``results.json`` atomically, with a digest of its content.

    Raises:
        FileError: if it cannot be written.
    """
    content = {"runs": [asdict(run) for run in runs], "settings": settings, "versions": versions()}
    content["sha256"] = _digest(content)
    try:
        atomic.write(path, (json.dumps(content, indent=1) + "\n").encode())
    except OSError as error:
        raise FileError(f"{path} cannot be written: {error.strerror or error}") from None


def read(path: Path, settings: dict[str, Any]) -> list[Run]:
    """Runs of an earlier comparison with the same settings.

    Files of earlier versions have no digest; they are read without that check.

    Raises:
        FileError: if the file is missing or damaged, or its settings differ.
    """
    try:
        content = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise FileError(f"{path} cannot be resumed: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise FileError(f"{path} cannot be resumed, it is not JSON: {error}") from None
    if not isinstance(content, dict) or content.keys() | {"sha256"} != {"runs", "settings", "versions", "sha256"}:
        raise FileError(f"{path} cannot be resumed: expected an object of runs, settings, versions and sha256")
    digest = content.pop("sha256", None)
    if digest is not None and digest != _digest(content):
        raise FileError(f"{path} cannot be resumed: it is damaged or was edited, its content does not match its sha256")
    found = content["settings"]
    if not isinstance(found, dict) or not isinstance(content["runs"], list):
        raise FileError(f"{path} cannot be resumed: expected an object of settings and a list of runs")
    runs = [_run(path, entry) for entry in content["runs"]]
    different = [f"{k} ({found.get(k)} there, {v} here)" for k, v in settings.items() if v != found.get(k)]
    if different:
        raise FileError(f"{path} cannot be resumed: it was made with another {', another '.join(different)}")
    return runs


def _digest(content: dict[str, Any]) -> str:
    """Of all keys and values, whatever their layout in the file."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _run(path: Path, entry: Any) -> Run:
    """A run whose values have the types of its fields."""
    try:
        run = Run(**entry)
    except TypeError as error:
        raise FileError(f"{path} cannot be resumed: {str(error).removeprefix('Run.__init__() ')}") from None
    whole, real, text = (run.seed, run.epochs, run.batch), [run.test_accuracy, run.seconds], [run.protocol, run.task]
    lists = isinstance(run.curve, list) and isinstance(run.losses, list)
    good = (
        lists
        and all(type(value) is int for value in whole)
        and all(type(value) in (int, float) for value in [*real, *run.curve, *run.losses])
        and all(type(value) is str for value in [*text, run.network, run.arguments])
        and type(run.diverged) is bool
        and bool(run.curve)
        and math.isfinite(run.test_accuracy)
    )
    if not good:
        raise FileError(f"{path} cannot be resumed: a run holds values of other types: {entry!r:.200}")
    return run


def summary(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """A row for each rule.

    ``test_accuracy`` is the mean over seeds and ``deviation`` their sample standard deviation, ``None`` for one seed;
    ``above_readout`` the mean gain over training the readout only, ``None`` without such runs; ``seconds`` the mean
    training time; ``diverged`` the number of runs that did.
    """
    rows = []
    by_rule: dict[str, list[Run]] = {}
    for run in runs:
        by_rule.setdefault(run.protocol, []).append(run)
    floor = {run.seed: run.test_accuracy for run in by_rule.get(READOUT_ONLY, [])}
    for name, group in by_rule.items():
        scores = [run.test_accuracy for run in group]
        gains = [run.test_accuracy - floor[run.seed] for run in group if run.seed in floor and name != READOUT_ONLY]
        rows.append({
            "protocol": name,
            "seeds": len(group),
            "test_accuracy": statistics.fmean(scores),
            "deviation": statistics.stdev(scores) if len(group) > 1 else None,
            "above_readout": statistics.fmean(gains) if gains else None,
            "seconds": statistics.fmean(run.seconds for run in group),
            "diverged": sum(run.diverged for run in group),
        })  # fmt: skip
    return rows
