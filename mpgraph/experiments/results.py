"""Results of a comparison: in memory, in ``results.json``, and summarised."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from mpgraph.errors import FileError
from mpgraph.serialization import state as files

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
        scores = torch.tensor([run.test_accuracy for run in group], dtype=torch.float64, device="cpu")
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
