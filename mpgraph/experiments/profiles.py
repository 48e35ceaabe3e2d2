"""Performance profiles (Dolan and More, Math. Program. 91, 2002): many solvers on many problems in one curve each.

On each problem a rule's ratio is its error over the smallest error of any rule there. The profile of a rule at a factor
is the share of problems on which its ratio is at most that. At 1 it says how often the rule is best; where it ends, on
how many problems it works at all.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .plots import COLORS, DASHES, name_ends, plain, readable, save
from .results import READOUT_ONLY, Run

CURVES = 8  # that can be told apart in one picture
EDGE = 30.0  # ratios above it stand at the edge of a line of dots
LEAST = 1e-3  # errors below this count as this, so that a perfect score does not make all others infinitely bad


def errors(runs: Sequence[Run]) -> dict[tuple[str, str], dict[str, float]]:
    """Mean error of each rule on each task and network: 1 - accuracy, or the share of variance that is missed.

    A rule that diverged on any seed has an infinite error there.
    """
    found: dict[tuple[str, str], dict[str, list[float]]] = {}
    for run in runs:
        error = 1.0 - run.test_accuracy if run.test_accuracy is not None else float(run.test_error or 0.0)
        failed = run.diverged or not math.isfinite(error)
        found.setdefault(run.key[:2], {}).setdefault(run.protocol, []).append(math.inf if failed else error)
    return {
        problem: {name: sum(values) / len(values) for name, values in rules.items()} for problem, rules in found.items()
    }


def ratios(runs: Sequence[Run]) -> dict[str, list[float]]:
    """For each rule its ratio on each problem, in one order; infinite where it has no run or failed."""
    table = errors(runs)
    names = list(dict.fromkeys(run.protocol for run in runs if run.protocol != READOUT_ONLY))
    made: dict[str, list[float]] = {name: [] for name in names}
    for rules in table.values():
        bounded = {name: max(LEAST, rules.get(name, math.inf)) for name in names}
        best = min(bounded.values())
        for name in names:
            made[name].append(bounded[name] / best if math.isfinite(bounded[name]) else math.inf)
    return made


def share(values: Sequence[float], factor: float) -> float:
    """The profile at a factor: the share of ratios that are at most that."""
    return sum(value <= factor * (1.0 + 1e-12) for value in values) / len(values)


def draw(found: Mapping[str, Sequence[float]], path: Path) -> None:
    """The profile of each rule over factors from 1 to the largest that occurs, in the logarithm.

    Of more than `CURVES` rules, whose curves nobody can tell apart, each has a line with a dot for each problem.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogFormatter

    if len(found) > CURVES:
        _dots(found, path)
        return

    figure = Figure(figsize=(9.0, max(4.0, 0.27 * len(found))), layout="constrained")
    axes = figure.subplots()
    finite = [value for values in found.values() for value in values if math.isfinite(value)]
    last = max([1.5, *finite]) * 1.1
    shown = readable(found)
    ends: list[Any] = []
    for i, (name, values) in enumerate(found.items()):
        steps = sorted({1.0, last, *(value for value in values if math.isfinite(value))})
        heights = [share(values, factor) for factor in steps]
        color = COLORS[i % len(COLORS)]
        axes.plot(steps, heights, drawstyle="steps-post", color=color, linestyle=DASHES[i // len(COLORS) % len(DASHES)])
        ends.append((last, heights[-1], shown[name], color))
    axes.set_xscale("log")
    for which in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
        which(LogFormatter(minor_thresholds=(1.0, 0.4)))
    axes.set(
        xlabel="error, as a multiple of the smallest", ylabel="share of problems", xlim=(1.0, last), ylim=(0, 1.02)
    )
    plain(axes)
    name_ends(axes, ends, gap=min(0.065, 0.95 / max(1, len(ends))))
    save(figure, path)


def _dots(found: Mapping[str, Sequence[float]], path: Path) -> None:
    """A line for each rule, the smallest median first: a dot for each problem at its ratio, and a bar at the median."""
    from matplotlib.figure import Figure

    order = sorted(found, key=lambda name: (statistics.median(found[name]), name))
    shown = readable(found)
    figure = Figure(figsize=(7.0, 1.0 + 0.24 * len(order)), layout="constrained")
    axes = figure.subplots()
    for i, name in enumerate(order):
        within = [value for value in found[name] if value <= EDGE]
        beyond = len(found[name]) - len(within)
        axes.plot(within, [i] * len(within), "o", ms=5, alpha=0.6, color=COLORS[0], markeredgewidth=0)
        axes.plot(min(EDGE, statistics.median(found[name])), i, "|", ms=11, mew=2.0, color=COLORS[1])
        if beyond:
            axes.annotate(
                f"{beyond} beyond", (EDGE, i), xytext=(4, 0), textcoords="offset points", va="center", fontsize=7
            )
    ticks = [1, 2, 3, 5, 10, 20, 30]
    axes.set_xscale("log")
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.set_xticks([], minor=True)
    axes.set_yticks(range(len(order)), [shown[name] for name in order], fontsize=8)
    axes.set(
        xlabel="error, as a multiple of the smallest on that problem", xlim=(0.93, EDGE), ylim=(len(order) - 0.4, -0.6)
    )
    plain(axes)
    save(figure, path)
