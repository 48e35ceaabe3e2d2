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
from .results import Run, grouped, named_group, shown, spread, summary, versions

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
COSTS = {
    "flops": "FLOPs a step", "synaptic": "synaptic operations", "bytes": "bytes a step", "calls": "calls",
    "state": "state",
}  # fmt: skip
ALIGNED = {
    "angles": "Angle of each rule's update to the gradient of the loss, on one batch of the training set at each "
    "epoch, all weights as one vector. Gradient descent has 0 degrees, a random direction about 90.",
    "ratios": "Norm of the same update by that of the gradient. Plain gradient descent has its learning rate.",
}
MOST_NODES = 12  # columns of a table of units or connections
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
    drawn: set[tuple[str, str]] = set()
    for (task, network, output), group in grouped(runs).items():
        rows = [row for row in contrasts if (row["task"], row["network"], row["output"]) == (task, network, output)]
        parts.append(page.heading(named_group(task, network, output)))
        parts += _section(group, rows)
        if (task, network) not in drawn:
            drawn.add((task, network))
            parts += _once(network, group, (networks or {}).get((task, network)))
    parts.append(page.heading("How it was made"))
    facts = {**{f"setting: {key}": value for key, value in settings.items()}, **versions()}
    facts = {key: "by default" if value is None else value for key, value in facts.items()}
    told = [(key, value if isinstance(value, str) else json.dumps(value)) for key, value in facts.items()]
    parts.append(page.table("Settings and versions", ("what", "value"), told, long=("value",)))
    return page.page(title, parts)


def _section(runs: Sequence[Run], differences: Sequence[Mapping[str, Any]]) -> list[str]:
    """The scores of one output."""
    parts = []
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
    return parts


def _once(network: str, runs: Sequence[Run], drawn: Network | None) -> list[str]:
    """What all outputs of a network share."""
    parts = [_aligned(runs), _silent_table(runs)]
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
        gain = "" if row["above_readout"] is None else shown(scale * row["above_readout"], digits, "+")
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
    caption = f"Final scores: {what}{error}. FLOPs, synaptic operations (multiply-adds of "
    caption += "messages with weights, and of learning signals with activities), bytes read and written, and calls are "
    caption += "those of one step; state is "
    return page.table(caption + "the memory that the rule keeps between steps, in bytes.", head, rows)


def _aligned(runs: Sequence[Run]) -> str:
    """Updates beside the gradient: figures, a table of the connections, and why a rule has none."""
    parts = []
    if any(map(plots.measured, runs)):
        for name, caption in ALIGNED.items():
            target = io.BytesIO()
            plots.panel(name, runs, target)
            rows = _at_end(runs, name)
            told = [f"{rule} ends at {values['all']:.3g}" for rule, values in rows.items() if "all" in values]
            text = f"Lines: {name} of updates and gradient against epochs. {', '.join(told)}."
            parts.append(page.picture(target.getvalue(), text, caption))
            parts.append(_node_table(f"{name.capitalize()} at the last epoch, by connection and bias.", rows))
    unknown = {run.protocol: run.alignment["unknown"] for run in runs if run.alignment and "unknown" in run.alignment}
    parts += [page.paragraph(f"{rule}: updates and gradient were not compared. {why}") for rule, why in unknown.items()]
    return "\n".join(parts)


def _at_end(runs: Sequence[Run], kind: str) -> dict[str, dict[str, float]]:
    """The last angles or ratios of each rule, means over seeds."""
    lists: dict[str, dict[str, list[float]]] = {}
    for run in filter(plots.measured, runs):
        for node, line in (run.alignment or {})[kind].items():
            if line[-1] is not None:
                lists.setdefault(run.protocol, {}).setdefault(node, []).append(line[-1])
    return {rule: {node: statistics.fmean(found) for node, found in nodes.items()} for rule, nodes in lists.items()}


def _silent_table(runs: Sequence[Run]) -> str:
    """The share of zero activities of each hidden unit."""
    lists: dict[str, dict[str, list[float]]] = {}
    for run in runs:
        for node, share in run.silent.items():
            lists.setdefault(run.protocol, {}).setdefault(node, []).append(100.0 * share)
    rows = {rule: {node: statistics.fmean(found) for node, found in nodes.items()} for rule, nodes in lists.items()}
    caption = (
        "Silent activities of hidden units in %: the share that is exactly zero, on a batch of the test set after "
    )
    return _node_table(caption + "training. Rules whose units keep no single number y are left out.", rows)


def _node_table(caption: str, rows: Mapping[str, Mapping[str, float]]) -> str:
    """A number for each rule and node; nothing without rows, and only the first nodes where a screen holds no more."""
    names = list(dict.fromkeys(name for row in rows.values() for name in row))
    if not names:
        return ""
    left = len(names) - MOST_NODES
    caption += f" The other {left} are in results.json." if left > 0 else ""
    names = names[:MOST_NODES]
    cells = [(rule, *(f"{row[name]:.3g}" if name in row else "" for name in names)) for rule, row in rows.items()]
    return page.table(caption, ("rule", *names), cells)


def _contrast_table(rows: Sequence[Mapping[str, Any]]) -> str:
    found = []
    for row in rows:
        effect = "" if row["effect_size"] is None else f"{row['effect_size']:+.2f}"
        error = "" if row["standard_error"] is None else shown(row["standard_error"], 4)
        difference = shown(row["difference"], 4, "+")
        found.append((row["protocol"], row["pairs"], difference, error, effect, row["needed"] or ""))
    caption = (
        f"Differences from {rows[0]['against']}, paired by seed, as shares of 1; positive is better. Effect size: mean "
        "difference over its standard deviation. Needed: pairs for a power of 80 % at 5 %, two-sided."
    )
    return page.table(caption, ("rule", "pairs", "difference", "standard error", "effect size", "needed"), found)


def _search_table(runs: Sequence[Run]) -> str:
    found = []
    for run in runs:
        if run.tuning:
            chosen = ", ".join(f"{key} = {value}" for key, value in run.tuning["chosen"].items())
            edge = ", ".join(run.tuning["at_edge"])
            found.append((run.protocol, run.seed, len(run.tuning["trials"]), chosen or "nothing to search", edge))
    space = next(run.tuning["space"] for run in runs if run.tuning)
    caption = (
        f"Search of {space} on validation data that was held out of the training set. A choice at the edge of the "
        "space may lie beyond it."
    )
    return page.table(caption, ("rule", "seed", "trials", "chosen", "at the edge"), found, long=("chosen",))
