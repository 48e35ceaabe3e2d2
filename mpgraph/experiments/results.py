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

NEEDED = {"runs", "settings", "versions"}
OTHERS = {"sha256", "command", "contrasts", "refused"}
READOUT_ONLY = "readout_only"  # the floor: the same network with only its output connections trained


@dataclass
class Run:
    """One rule on one seed.

    Attributes:
        protocol, task, network: their names.
        seed: of the split, the initial weights and the order of examples.
        test_accuracy: in 0..1; ``None`` for a task of numbers.
        seconds: of training, without tests.
        epochs, batch: passes over the training set, and examples in a step.
        arguments: the rule with its arguments.
        diverged: whether the loss was no longer finite; training ended there.
        curve: the score on the test set after each epoch: accuracy, or error for a task of numbers.
        losses: mean training loss of each epoch.
        test_error: of a task of numbers, the share of the variance that predictions miss; ``None`` for classes.
        steps: taken until the end of each epoch.
        times: seconds of training until the end of each epoch.
        cost: of one step, as :class:`mpgraph.lowering.explain.Cost` counts: ``flops``, ``bytes``, ``calls``, ``state``.
        tuning: what :func:`mpgraph.experiments.tuning.searched` tried and chose; ``None`` without a search.
    """

    protocol: str
    task: str
    network: str
    seed: int
    test_accuracy: float | None
    seconds: float
    epochs: int
    batch: int
    arguments: str = ""
    diverged: bool = False
    curve: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    test_error: float | None = None
    steps: list[int] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    cost: dict[str, float] = field(default_factory=dict)
    tuning: dict[str, Any] | None = None

    @property
    def key(self) -> tuple[str, str, str, int]:
        """What tells a run from all others of a comparison."""
        return self.task, self.network, self.protocol, self.seed

    @property
    def gain(self) -> float:
        """The score with a sign that makes more better: accuracy, or minus the error."""
        return float(-(self.test_error or 0.0) if self.test_accuracy is None else self.test_accuracy)


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


def write(path: Path, runs: Sequence[Run], settings: dict[str, Any], **others: Any) -> None:
    """Write ``results.json`` atomically, with a digest of its content.

    Args:
        path: of the file.
        runs: all of them.
        settings: what a file must share to be resumed.
        others: what else is kept: ``command``, ``contrasts``, ``refused``.

    Raises:
        FileError: if it cannot be written.
    """
    content = {"runs": [asdict(run) for run in runs], "settings": settings, "versions": versions(), **others}
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
    content, runs = read_all(path)
    found = content["settings"]
    different = [f"{k} ({found.get(k)} there, {v} here)" for k, v in settings.items() if v != found.get(k)]
    if different:
        raise FileError(f"{path} cannot be resumed: it was made with another {', another '.join(different)}")
    return runs


def read_all(path: Path) -> tuple[dict[str, Any], list[Run]]:
    """The content of a results file, whatever its settings, and its runs.

    Raises:
        FileError: if the file is missing or damaged.
    """
    try:
        content = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise FileError(f"{path} cannot be resumed: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise FileError(f"{path} cannot be resumed, it is not JSON: {error}") from None
    if not isinstance(content, dict) or not NEEDED <= content.keys() <= NEEDED | OTHERS:
        raise FileError(f"{path} cannot be resumed: expected an object of runs, settings, versions and sha256")
    digest = content.pop("sha256", None)
    if digest is not None and digest != _digest(content):
        raise FileError(f"{path} cannot be resumed: it is damaged or was edited, its content does not match its sha256")
    found = content["settings"]
    if not isinstance(found, dict) or not isinstance(content["runs"], list):
        raise FileError(f"{path} cannot be resumed: expected an object of settings and a list of runs")
    return content, [_run(path, entry) for entry in content["runs"]]


def _digest(content: dict[str, Any]) -> str:
    """Of all keys and values, whatever their layout in the file."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _run(path: Path, entry: Any) -> Run:
    """A run whose values have the types of its fields."""
    try:
        run = Run(**entry)
    except TypeError as error:
        raise FileError(f"{path} cannot be resumed: {str(error).removeprefix('Run.__init__() ')}") from None
    lists = (run.curve, run.losses, run.steps, run.times)
    scores = [value for value in (run.test_accuracy, run.test_error) if value is not None]
    good = (
        all(isinstance(value, list) for value in lists)
        and isinstance(run.cost, dict)
        and (run.tuning is None or isinstance(run.tuning, dict))
        and all(type(value) is int for value in (run.seed, run.epochs, run.batch, *run.steps))
        and len(scores) == 1
        and all(type(v) in (int, float) for v in (*scores, run.seconds, *run.curve, *run.losses, *run.times))
        and all(type(v) in (int, float) for v in run.cost.values())
        and all(type(value) is str for value in (run.protocol, run.task, run.network, run.arguments))
        and type(run.diverged) is bool
        and bool(run.curve)
        and (run.test_accuracy is None or math.isfinite(run.test_accuracy))
    )
    if not good:
        raise FileError(f"{path} cannot be resumed: a run holds values of other types: {entry!r:.200}")
    return run


def summary(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """A row for each rule on each network and task.

    ``test_accuracy`` (or, of a task of numbers, ``test_error``) is the mean over seeds and ``deviation`` their sample
    standard deviation, ``None`` for one seed; ``above_readout`` the mean gain over training the readout only, ``None``
    without such runs; ``seconds`` the mean training time; ``diverged`` the number of runs that did.
    """
    rows = []
    groups: dict[tuple[str, str, str], list[Run]] = {}
    for run in runs:
        groups.setdefault(run.key[:3], []).append(run)
    for (task, network, name), group in groups.items():
        floor = {run.seed: run.gain for run in groups.get((task, network, READOUT_ONLY), [])}
        accuracies = [run.test_accuracy for run in group if run.test_accuracy is not None]
        errors = [run.test_error for run in group if run.test_error is not None]
        gains = [run.gain - floor[run.seed] for run in group if run.seed in floor and name != READOUT_ONLY]
        rows.append({
            "protocol": name,
            "task": task,
            "network": network,
            "seeds": len(group),
            "test_accuracy": statistics.fmean(accuracies) if accuracies else None,
            "test_error": statistics.fmean(errors) if errors else None,
            "deviation": _deviation([run.gain for run in group]),
            "above_readout": statistics.fmean(gains) if gains else None,
            "seconds": statistics.fmean(run.seconds for run in group),
            "diverged": sum(run.diverged for run in group),
        })  # fmt: skip
    return rows


def _deviation(values: Sequence[float]) -> float | None:
    """Sample standard deviation; ``None`` for one value, and NaN where one is not finite."""
    if len(values) < 2:
        return None
    return statistics.stdev(values) if all(map(math.isfinite, values)) else math.nan
