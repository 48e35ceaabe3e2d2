"""``report.html``: what a comparison found, in one file."""

from __future__ import annotations

import io
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from mpgraph.lowering.explain import short
from mpgraph.network.network import Network

from . import page, plots
from .results import Run, summary, versions

CAPTIONS = {
    "steps": "Score on the test set against steps of learning.",
    "seconds": "Score on the test set against seconds of training, without those of tests.",
    "above": "Gain over training the readout only, seed by seed.",
}
BANDS = "Lines are means over {n} seeds; bands reach from the worst to the best seed. A name with a number in brackets "
BANDS += "belongs to a rule that lies outside the axis."
LINE = "Lines are of one seed, so there is no spread. A name with a number in brackets belongs to a rule that lies "
LINE += "outside the axis."
DOTS = "A point is a seed, the upright line the mean, the bar one standard deviation to either side."
COSTS = {"flops": "FLOPs a step", "bytes": "bytes a step", "calls": "calls", "state": "state"}
MOST_UNITS = 60  # a picture of more cannot be read


def report(
    runs: Sequence[Run],
    *,
    title: str,
    command: str,
    settings: Mapping[str, Any],
    contrasts: Sequence[Mapping[str, Any]] = (),
    networks: Mapping[tuple[str, str], Network] | None = None,
) -> str:
    """The page of a comparison.

    Args:
        runs: at least one.
        title: above it.
        command: that made it.
        settings: of the comparison.
        contrasts: as :func:`mpgraph.experiments.contrasts` makes them.
        networks: to be drawn, by task and name.
    """
    parts = [page.paragraph("Made by this command:"), page.code(command)]
    for (task, network), group in plots.grouped(runs).items():
        rows = [row for row in contrasts if (row["task"], row["network"]) == (task, network)]
        parts += _section(task, network, group, rows, (networks or {}).get((task, network)))
    parts.append(page.heading("How it was made"))
    facts = {**{f"setting: {key}": value for key, value in settings.items()}, **versions()}
    facts = {key: "by default" if value is None else value for key, value in facts.items()}
    shown = [(key, value if isinstance(value, str) else json.dumps(value)) for key, value in facts.items()]
    parts.append(page.table("Settings and versions", ("what", "value"), shown, long=("value",)))
    return page.page(title, parts)


def _section(
    task: str, network: str, runs: Sequence[Run], differences: Sequence[Mapping[str, Any]], drawn: Network | None
) -> list[str]:
    parts = [page.heading(f"{task}: {network}")]
    seeds = len({run.seed for run in runs})
    bands = LINE if seeds == 1 else BANDS.format(n=seeds)
    for name, caption in CAPTIONS.items():
        target = io.BytesIO()
        plots.panel(name, runs, target)
        below = f"{caption} {DOTS if name == 'above' else bands}"
        parts.append(page.picture(target.getvalue(), alternative(name, runs), below))
    parts.append(scores(runs))
    if differences:
        parts.append(_contrast_table(differences))
    if any(run.tuning for run in runs):
        parts.append(_search_table(runs))
    if drawn is not None and len(drawn.units) <= MOST_UNITS:
        target = io.BytesIO()
        plots.save(drawn.draw(), target)
        units = ", ".join(f"{u.name} of {math.prod(u.shape)}" for u in drawn.units.values())
        text = f"The network: units {units}; connections {', '.join(drawn.wires)}."
        parts.append(page.picture(target.getvalue(), text, f"The network {network}.", panel=False))
    return parts


def alternative(name: str, runs: Sequence[Run]) -> str:
    """What a panel shows, in words."""
    rows = summary(runs)
    numbers = runs[0].test_accuracy is None
    names = plots.readable(row["protocol"] for row in rows)
    if name == "above":
        gains = [(row["protocol"], row["above_readout"]) for row in rows if row["above_readout"] is not None]
        told = [f"{names[rule]} {gain if numbers else 100 * gain:+.{3 if numbers else 1}f}" for rule, gain in gains]
        unit = "less error" if numbers else "points of accuracy"
        return f"Points with bars: gain over training the readout only, in {unit}: {', '.join(told) or 'not measured'}."
    told = []
    for row in rows:
        score = f"{row['test_error']:.3g}" if numbers else f"{100 * row['test_accuracy']:.1f} %"
        told.append(f"{names[row['protocol']]} ends at {score}")
    what = "error" if numbers else "accuracy"
    return f"Lines: test {what} against {name}. {', '.join(told)}."


def spread(mean: float, deviation: float | None, digits: int) -> str:
    """A mean with its standard deviation, if there is one."""
    return f"{mean:.{digits}f}" + ("" if deviation is None else f" ± {deviation:.{digits}f}")


def scores(runs: Sequence[Run]) -> str:
    """The final table: score with spread, gain, time, and what a step costs."""
    numbers = runs[0].test_accuracy is None
    scale, digits = (1.0, 4) if numbers else (100.0, 2)
    score = "test error" if numbers else "test accuracy %"
    head = ("rule", score, "above readout", "seconds", "ms a step", *COSTS.values(), "note")
    rows = []
    for row in summary(runs):
        group = [run for run in runs if run.protocol == row["protocol"]]
        mean = row["test_error"] if numbers else row["test_accuracy"]
        deviation = None if row["deviation"] is None else scale * row["deviation"]
        gain = "" if row["above_readout"] is None else f"{scale * row['above_readout']:+.{digits}f}"
        steps = [1000.0 * run.seconds / run.steps[-1] for run in group if run.steps]
        cost = group[0].cost
        costs = [short(cost[key]) if key in cost else "" for key in COSTS]
        note = f"{row['diverged']} of {row['seeds']} diverged" if row["diverged"] else ""
        rows.append((
            row["protocol"], spread(scale * mean, deviation, digits), gain, f"{row['seconds']:.2f}",
            f"{statistics.fmean(steps):.2f}" if steps else "", *costs, note,
        ))  # fmt: skip
    seeds = max(row["seeds"] for row in summary(runs))
    what = f"mean ± standard deviation over {seeds} seeds" if seeds > 1 else "one seed, so without spread"
    error = "; error is the share of the variance of the targets that predictions miss" if numbers else ""
    caption = f"Final scores: {what}{error}. FLOPs, bytes read and written, and calls are those of one step; state is "
    return page.table(caption + "the memory that the rule keeps between steps, in bytes.", head, rows)


def _contrast_table(rows: Sequence[Mapping[str, Any]]) -> str:
    shown = []
    for row in rows:
        effect = "" if row["effect_size"] is None else f"{row['effect_size']:+.2f}"
        error = "" if row["standard_error"] is None else f"{row['standard_error']:.4f}"
        shown.append((row["protocol"], row["pairs"], f"{row['difference']:+.4f}", error, effect, row["needed"] or ""))
    caption = (
        f"Differences from {rows[0]['against']}, paired by seed, as shares of 1; positive is better. Effect size: mean "
        "difference over its standard deviation. Needed: pairs for a power of 80 % at 5 %, two-sided."
    )
    return page.table(caption, ("rule", "pairs", "difference", "standard error", "effect size", "needed"), shown)


def _search_table(runs: Sequence[Run]) -> str:
    shown = []
    for run in runs:
        if run.tuning:
            chosen = ", ".join(f"{key} = {value}" for key, value in run.tuning["chosen"].items())
            edge = ", ".join(run.tuning["at_edge"])
            shown.append((run.protocol, run.seed, len(run.tuning["trials"]), chosen or "nothing to search", edge))
    space = next(run.tuning["space"] for run in runs if run.tuning)
    caption = (
        f"Search of {space} on validation data that was held out of the training set. A choice at the edge of the "
        "space may lie beyond it."
    )
    return page.table(caption, ("rule", "seed", "trials", "chosen", "at the edge"), shown, long=("chosen",))
