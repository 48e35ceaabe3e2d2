"""Figures: every line carries its name at its end, and one bad rule does not squash the others."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from mpgraph.probes import Follow

from .results import READOUT_ONLY, Run, grouped, named_group

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#B8860B", "#56B4E9", "#7A5195", "#222222")  # Okabe and Ito
DASHES = ("-", "--", ":", "-.")  # for more rules than colors
FLOOR = "#777777"
GAP = 0.065  # between names at the ends of lines, in heights of the axes
PANEL = (4.6, 3.6)  # inches
NAMES = 1.9  # inches for the names on the right
OUTLIER = 3.0  # how many times further than the middle rule one must lie from the best to be left out of an axis
CLOSE, CLOSE_NUMBERS = 20.0, 0.25  # points, and shares of variance, within which a rule is no outlier


class Curve(NamedTuple):
    """A rule over training: mean, worst and best seed, in percent or as an error."""

    protocol: str
    name: str
    steps: np.ndarray
    times: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    color: str
    dashes: str


def curves(runs: Sequence[Run], path: Path | str, title: str) -> None:
    """Write :func:`overview`; the suffix of the path sets the format."""
    save(overview(runs, title), path)


def overview(runs: Sequence[Run], title: str) -> Figure:
    """Score against steps and against seconds, and the gain over the readout: a row for each task, network and output.

    Lines are means over seeds, bands reach from the worst to the best seed.
    """
    return _rows(PANELS, {named_group(*group): own for group, own in grouped(runs).items()}, title)


def alignment(runs: Sequence[Run], title: str) -> Figure:
    """The angle of updates to the gradient and the ratio of their norms over epochs: a row for each task and network.

    Lines are means over seeds, bands reach from the least to the largest.
    """
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(named_group(run.task, run.network, ""), []).append(run)
    return _rows(ALIGNMENT, {name: own for name, own in groups.items() if any(map(measured, own))}, title)


def _rows(panels: Mapping[str, Callable[..., None]], groups: Mapping[str, Sequence[Run]], title: str) -> Figure:
    """A row of panels for each group, under its name if there are several."""
    figure = _figure(panels.values(), list(groups.values()))
    for axes, name in zip(figure.axes[:: len(panels)], groups, strict=True):
        axes.set_title(name if len(groups) > 1 else "", loc="left")
    figure.suptitle(title)
    return figure


def panel(name: str, runs: Sequence[Run], path: Any) -> None:
    """A panel of either table by itself, for runs of one task and network, with letters that a phone can show."""
    from matplotlib import rc_context

    with rc_context({"font.size": 13}):
        save(_figure([{**PANELS, **ALIGNMENT}[name]], [runs]), path)


def _figure(panels: Iterable[Callable[..., None]], groups: Sequence[Sequence[Run]]) -> Figure:
    from matplotlib.figure import Figure  # no display, no global state

    drawn = list(panels)
    figure = Figure(figsize=(len(drawn) * (PANEL[0] + NAMES), PANEL[1] * len(groups)), layout="constrained")
    for row, runs in zip(figure.subplots(len(groups), len(drawn), squeeze=False), groups, strict=True):
        for axes, draw in zip(row, drawn, strict=True):
            draw(axes, runs)
    return figure


def save(figure: Figure, path: Any) -> None:
    """Write a figure; the bytes of an SVG depend on nothing but what it shows."""
    from matplotlib import rc_context

    vector: dict[str, Any] = {"format": "svg", "metadata": {"Date": None}}
    bitmap = isinstance(path, (str, Path)) and Path(path).suffix != ".svg"
    with rc_context({"svg.hashsalt": "mpgraph"}):
        figure.savefig(path, dpi=150, **({} if bitmap else vector))


def readable(names: Iterable[str]) -> dict[str, str]:
    """Names for people: words with spaces, a file's rule by its class; the names themselves where two became alike."""
    known = list(dict.fromkeys(names))
    short = {}
    for name in known:
        head, bracket, rest = name.partition("(")
        if match := re.fullmatch(r".*\.py:(\w+)", head):
            head = match[1]
        elif ":" in head:
            rule, _, place = head.partition(":")
            head = f"{rule}: {Path(place).name}"
        short[name] = head.replace("_", " ") + bracket + rest
    alike = [one for one in short.values() if list(short.values()).count(one) > 1]
    return {name: name if one in alike else one for name, one in short.items()}


def curves_of(runs: Sequence[Run]) -> list[Curve]:
    """A curve for each rule of one task and network, the floor first."""
    shown = readable(run.protocol for run in runs)
    made = []
    for i, name in enumerate(sorted(shown, key=lambda name: name != READOUT_ONLY)):
        group = [run for run in runs if run.protocol == name]
        length = min(len(run.curve) for run in group)
        scale = 1.0 if group[0].test_accuracy is None else 100.0
        table = scale * np.array([run.curve[:length] for run in group])
        epochs = np.arange(1, length + 1)
        steps = [run.steps[:length] for run in group if run.steps]
        times = [run.times[:length] for run in group if run.times]
        floor = name == READOUT_ONLY
        number = i - (READOUT_ONLY in shown)
        made.append(
            Curve(
                name,
                shown[name],
                np.mean(steps, axis=0) if steps else epochs,
                np.mean(times, axis=0) if times else epochs * np.mean([run.seconds / run.epochs for run in group]),
                table.mean(0),
                table.min(0),
                table.max(0),
                FLOOR if floor else COLORS[number % len(COLORS)],
                "--" if floor else DASHES[number // len(COLORS) % len(DASHES)],
            )
        )
    return made


def limits(finals: Sequence[tuple[float, float, float]], close: float, *, less: bool = False) -> tuple[float, float]:
    """The range of an axis of scores: all rules that are no outliers, with a margin for how they came there.

    A rule is an outlier if it lies more than three times as far from the best as the middle rule does, and not close.

    Args:
        finals: of each rule the lowest, mean and highest last score over seeds.
        close: distance within which no rule is an outlier; a quarter of it is the least that the axis shows.
        less: whether less is better.
    """
    found = [tuple(sorted(-v for v in row)) if less else row for row in finals if all(map(math.isfinite, row))]
    if not found:
        return 0.0, 1.0
    best, middle = max(row[1] for row in found), statistics.median(row[1] for row in found)
    kept = [row for row in found if best - row[1] <= max(OUTLIER * (best - middle), close)]
    top, bottom = max(row[2] for row in kept), min(row[0] for row in kept)
    span = max(top - bottom, close / 4.0)
    low, high = bottom - 0.5 * span, top + 0.08 * span
    return (-high, -low) if less else (low, high)


def _scores(axes: Axes, runs: Sequence[Run], along: str, label: str) -> None:
    """Lines with bands, their names on the right."""
    numbers = runs[0].test_accuracy is None
    found = curves_of(runs)
    finals = [(curve.low[-1], curve.mean[-1], curve.high[-1]) for curve in found]
    low, high = limits(finals, CLOSE_NUMBERS if numbers else CLOSE, less=numbers)
    ends = []
    for curve in found:
        x = getattr(curve, along)
        axes.plot(x, curve.mean, color=curve.color, linestyle=curve.dashes, linewidth=2.0, marker="o",
                  markersize=3.0 if len(x) < 12 else 0.0)  # fmt: skip
        axes.fill_between(x, curve.low, curve.high, color=curve.color, alpha=0.15, linewidth=0)
        ends.append((x[-1], curve.mean[-1], curve.name, curve.color))
    axes.set_ylim(max(0.0, low), high if numbers else min(100.0, high))
    axes.set_xlim(left=0)
    axes.set(xlabel=label, ylabel="test error (share of variance)" if numbers else "test accuracy (%)")
    plain(axes)
    name_ends(axes, ends, "{:.3g}" if numbers else "{:.1f} %")


def name_ends(
    axes: Axes, ends: Sequence[tuple[float, float, str, str]], form: str = "{:.3g}", gap: float = GAP
) -> None:
    """Names beside the ends of lines, apart from each other; what lies outside the axis says its value."""
    low, high = axes.get_ylim()

    def place(y: float) -> float:
        return min(1.0, max(0.0, (y - low) / (high - low))) if math.isfinite(y) else 0.0

    order = sorted(ends, key=lambda end: place(end[1]))
    heights = spread([place(end[1]) for end in order], gap)
    for (x, y, name, color), height in zip(order, heights, strict=True):
        inside = math.isfinite(y) and min(low, high) <= y <= max(low, high)
        beyond = "" if inside else f" ({form.format(y)})" if math.isfinite(y) else " (diverged)"
        axes.annotate(
            name + beyond, xy=(x, y) if inside else (1.0, place(y)),
            xycoords="data" if inside else "axes fraction", xytext=(1.03, height), textcoords="axes fraction",
            color=color, va="center", annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": color, "linewidth": 0.6, "alpha": 0.6, "relpos": (0.0, 0.5)},
        )  # fmt: skip


def spread(heights: Sequence[float], gap: float = GAP) -> list[float]:
    """Heights that grow, moved as little as need be to lie a gap apart: pooled where they touch, none above 1."""
    pools: list[list[float]] = []  # heights that move as one, each less its number of gaps
    for i, height in enumerate(heights):
        pools.append([height - i * gap])
        while len(pools) > 1 and statistics.fmean(pools[-2]) > statistics.fmean(pools[-1]):
            pools[-2:] = [pools[-2] + pools[-1]]
    flat = [statistics.fmean(pool) for pool in pools for _ in pool]
    most = 1.0 - (len(flat) - 1) * gap
    return [min(height, most) + i * gap for i, height in enumerate(flat)]


def _against_steps(axes: Axes, runs: Sequence[Run]) -> None:
    _scores(axes, runs, "steps", "steps")


def _against_seconds(axes: Axes, runs: Sequence[Run]) -> None:
    _scores(axes, runs, "times", "seconds of training")


def _above_readout(axes: Axes, runs: Sequence[Run]) -> None:
    """A point for each seed and a bar of one standard deviation about the mean; without the floor, plain scores."""
    numbers = runs[0].test_accuracy is None
    scale = 1.0 if numbers else 100.0
    floor = {run.seed: run.gain for run in runs if run.protocol == READOUT_ONLY}
    rows: dict[str, tuple[str, list[float]]] = {}
    for curve in curves_of(runs):
        if curve.protocol != READOUT_ONLY:
            own = [run for run in runs if run.protocol == curve.protocol]
            rows[curve.name] = curve.color, [scale * (run.gain - floor.get(run.seed, 0.0)) for run in own]
    if not rows:
        axes.set_axis_off()
        return
    rows = dict(sorted(rows.items(), key=lambda row: statistics.fmean(row[1][1])))
    for height, (color, values) in enumerate(rows.values()):
        mean = statistics.fmean(values)
        deviation = statistics.stdev(values) if len(values) > 1 and all(map(math.isfinite, values)) else 0.0
        axes.plot([mean - deviation, mean + deviation], [height, height], color=color, linewidth=5.0, alpha=0.35,
                  solid_capstyle="round")  # fmt: skip
        axes.plot(values, [height] * len(values), "o", color=color, markersize=4.0, alpha=0.8)
        axes.plot([mean], [height], "|", color=color, markersize=14.0, markeredgewidth=2.5)
    spans = [(min(values), statistics.fmean(values), max(values)) for _, values in rows.values()]
    low, high = limits(spans, CLOSE_NUMBERS if numbers else CLOSE)
    axes.set_xlim(min(0.0, low), max(0.0, high))
    for height, (name, (_, values)) in enumerate(rows.items()):
        mean = statistics.fmean(values)
        if not axes.get_xlim()[0] <= mean <= axes.get_xlim()[1]:
            text = f"< {name}: {mean:.3g}" if math.isfinite(mean) else f"< {name} diverged"
            axes.text(axes.get_xlim()[0], height, text, va="center")
    axes.axvline(0.0, color=FLOOR, linestyle="--", linewidth=1.0)
    axes.set_yticks(range(len(rows)), list(rows))
    axes.set_ylim(-0.6, len(rows) - 0.4)
    what = "less error than" if numbers else "points above"
    axes.set(xlabel=f"{what} training the readout only" if floor else "score")
    plain(axes)


def measured(run: Run) -> bool:
    """Whether its updates were held against the gradient, and one of the two did not vanish at once."""
    return run.protocol != READOUT_ONLY and any(v is not None for v in _line(run, "angles") + _line(run, "ratios"))


def _line(run: Run, kind: str) -> list[float | None]:
    return (run.alignment or {}).get(kind, {}).get("all", [])


def _against_gradient(kind: str, label: str, axes: Axes, runs: Sequence[Run]) -> None:
    """All weights of a rule as one vector: a line for each rule, with a band over seeds."""
    from matplotlib.ticker import LogFormatter, MaxNLocator

    ends = []
    for curve in curves_of(runs):
        own = [run for run in runs if run.protocol == curve.protocol and measured(run)]
        if not own:
            continue
        length = min(len(_line(run, kind)) for run in own)
        table = np.array([_line(run, kind)[:length] for run in own], dtype=float)
        seen = ~np.isnan(table).all(0)
        if not seen.any():
            continue
        epochs, table = np.array(own[0].alignment["epochs"][:length])[seen], table[:, seen]  # type: ignore[index]
        mean = np.nanmean(table, 0)
        axes.plot(epochs, mean, color=curve.color, linestyle=curve.dashes, linewidth=2.0, marker="o", markersize=3.0)
        axes.fill_between(epochs, np.nanmin(table, 0), np.nanmax(table, 0), color=curve.color, alpha=0.15, linewidth=0)
        ends.append((epochs[-1], mean[-1], curve.name, curve.color))
    if kind == "angles":
        axes.set_ylim(0.0, max(95.0, *(axes.get_ylim())))
    else:
        axes.set_yscale("log")
        for which in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
            which(LogFormatter(minor_thresholds=(1.0, 0.4)))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="epoch", ylabel=label)
    plain(axes)
    name_ends(axes, ends)


ALIGNMENT: dict[str, Callable[[Any, Sequence[Run]], None]] = {
    "angles": partial(_against_gradient, "angles", "angle to the gradient (degrees)"),
    "ratios": partial(_against_gradient, "ratios", "norm by that of the gradient"),
}
PANELS: dict[str, Callable[[Any, Sequence[Run]], None]] = {
    "steps": _against_steps,
    "seconds": _against_seconds,
    "above": _above_readout,
}


def plain(axes: Axes) -> None:
    """A faint grid and no frame."""
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def followed(follow: Follow, path: Path | str, title: str = "", xlabel: str = "epoch") -> None:
    """Plot measures over the course of training: one panel for each measure, one line for each node.

    Args:
        follow: the measures, after training.
        path: where to save the figure.
        title: above all panels.
        xlabel: unit of the steps of ``follow``.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    panels = [(name, lines) for name, lines in follow.history.items() if lines]
    figure = Figure(figsize=(4.5 * max(1, len(panels)), 3.5), layout="constrained")
    for axes, (name, lines) in zip(figure.subplots(1, max(1, len(panels)), squeeze=False)[0], panels, strict=False):
        ends = []
        for i, (node, numbers) in enumerate(lines.items()):
            color = COLORS[i % len(COLORS)]
            axes.plot(follow.steps, numbers, color=color, marker="o", markersize=3)
            ends.append((follow.steps[-1], numbers[-1], node, color))
        axes.set(xlabel=xlabel, ylabel=name)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        plain(axes)
        name_ends(axes, ends)
    figure.suptitle(title)
    figure.savefig(path, dpi=150)
