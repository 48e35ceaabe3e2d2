"""Results of a comparison: in memory, in ``results.json``, and summarized."""

from __future__ import annotations

import hashlib
import json
import math
import platform
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from mpgraph.errors import FileError
from mpgraph.serialization import atomic

NEEDED = {"runs", "settings", "versions"}
OTHERS = {"sha256", "command", "contrasts", "refused", "added"}
READOUT_ONLY = "readout_only"  # the floor: the same network with only its output connections trained


@dataclass
class Run:
    """One rule on one seed.

    Attributes:
        protocol, task, network: their names.
        seed: of the split, the initial weights and the order of examples.
        test_accuracy: in 0..1; ``None`` for a task of numbers. Of several outputs it is that of the first that names
            classes, and so are the other scores of a run.
        seconds: of training, without tests.
        epochs, batch: passes over the training set, and examples in a step.
        arguments: the rule with its arguments.
        diverged: whether the loss was no longer finite; training ended there.
        curve: the score on the test set after each epoch: accuracy, or error for a task of numbers.
        losses: mean training loss of each epoch.
        test_error: of a task of numbers, the share of the variance that predictions miss; ``None`` for classes.
        steps: taken until the end of each epoch.
        times: seconds of training until the end of each epoch.
        cost: of one step, as :class:`mpgraph.lowering.explain.Cost` counts: ``flops``, ``bytes``, ``calls``, ``state``,
            ``synaptic``.
        tuning: what :func:`mpgraph.experiments.tuning.searched` tried and chose; ``None`` without a search.
        outputs: of a network with several outputs, for each its ``test_accuracy`` or ``test_error``, and ``curve``.
        silent: for each hidden unit the share of activities that are zero, on a batch of the test set after training.
        alignment: what :class:`mpgraph.experiments.alignment.Alignment` found; ``None`` if it was not asked for.
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
    outputs: dict[str, dict[str, Any]] = field(default_factory=dict)
    silent: dict[str, float] = field(default_factory=dict)
    alignment: dict[str, Any] | None = None

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
        others: what else is kept: ``command``, ``contrasts``, ``refused``, ``added``.

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
        and isinstance(run.silent, dict)
        and all(type(share) in (int, float) for share in run.silent.values())
        and (run.alignment is None or _is_alignment(run.alignment))
        and isinstance(run.outputs, dict)
        and all(_is_output(one) for one in run.outputs.values())
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


def _is_output(entry: Any) -> bool:
    """Whether an entry is the scores of one output."""
    if not isinstance(entry, dict) or entry.keys() - {"curve"} not in ({"test_accuracy"}, {"test_error"}):
        return False
    (score,) = (value for key, value in entry.items() if key != "curve")
    curve = entry.get("curve")
    return isinstance(curve, list) and bool(curve) and all(type(v) in (int, float) for v in (score, *curve))


def _is_alignment(entry: Any) -> bool:
    """Whether an entry is what was measured beside the gradient, or why nothing was."""
    if not isinstance(entry, dict):
        return False
    if entry.keys() == {"unknown"}:
        return isinstance(entry["unknown"], str)
    epochs, kinds = entry.get("epochs"), [entry.get("angles") or {}, entry.get("ratios") or {}]
    return (
        entry.keys() == {"epochs", "angles", "ratios"}
        and isinstance(epochs, list)
        and all(type(epoch) is int for epoch in epochs)
        and all(isinstance(kind, dict) and "all" in kind for kind in kinds)
        and all(isinstance(line, list) and len(line) == len(epochs) for kind in kinds for line in kind.values())
        and all(v is None or type(v) in (int, float) for kind in kinds for line in kind.values() for v in line)
    )


def grouped(runs: Sequence[Run]) -> dict[tuple[str, str, str], list[Run]]:
    """Runs by task, network and output, which is ``""`` where there is only one.

    A run of a network with several outputs stands in the group of each, with the scores of that output.
    """
    groups: dict[tuple[str, str, str], list[Run]] = {}
    for run in runs:
        for name, found in run.outputs.items() or [("", None)]:
            scores = {"test_accuracy": None, "test_error": None, "outputs": {}, **found} if found else {}
            groups.setdefault((run.task, run.network, name), []).append(replace(run, **scores))
    return groups


def named_group(task: str, network: str, output: str) -> str:
    """A heading for one of these groups."""
    return f"{task}: {network}" + f", output {output}" * bool(output)


def shown(value: float, digits: int, sign: str = "") -> str:
    """A score with so many decimals; by powers of ten where a rule went far astray."""
    return f"{value:{sign}.{digits}f}" if abs(value) < 1e4 or not math.isfinite(value) else f"{value:{sign}.1e}"


def spread(mean: float, deviation: float | None, digits: int, between: str = " ± ") -> str:
    """A mean with its standard deviation, if there is one."""
    return shown(mean, digits) + ("" if deviation is None else between + shown(deviation, digits))


def summary(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """A row for each rule on each network and task, and for each ``output`` of a network with several.

    ``test_accuracy`` (or, of a task of numbers, ``test_error``) is the mean over seeds and ``deviation`` their sample
    standard deviation, ``None`` for one seed; ``above_readout`` the mean gain over training the readout only, ``None``
    without such runs; ``seconds`` the mean training time; ``diverged`` the number of runs that did.
    """
    rows = []
    groups: dict[tuple[str, str, str, str], list[Run]] = {}
    for where, several in grouped(runs).items():
        for run in several:
            groups.setdefault((*where, run.protocol), []).append(run)
    for (task, network, output, name), group in groups.items():
        floor = {run.seed: run.gain for run in groups.get((task, network, output, READOUT_ONLY), [])}
        accuracies = [run.test_accuracy for run in group if run.test_accuracy is not None]
        errors = [run.test_error for run in group if run.test_error is not None]
        gains = [run.gain - floor[run.seed] for run in group if run.seed in floor and name != READOUT_ONLY]
        rows.append({
            "protocol": name,
            "task": task,
            "network": network,
            "output": output,
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
