"""Figures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mpgraph.probes import Follow

from .results import READOUT_ONLY, Run


def curves(runs: Sequence[Run], path: Path, title: str) -> None:
    """Plot test accuracy after each epoch: for each rule the mean over seeds, in a band from worst to best seed."""
    from matplotlib.figure import Figure  # no display, no global state
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(7.0, 4.5), layout="constrained")
    axes = figure.subplots()
    names = list(dict.fromkeys(run.protocol for run in runs))
    for name in names:
        rows = [run.curve for run in runs if run.protocol == name]
        length = min(map(len, rows))
        table = 100.0 * np.array([row[:length] for row in rows])
        epochs = np.arange(1, length + 1)
        floor = name == READOUT_ONLY
        (line,) = axes.plot(
            epochs,
            table.mean(0),
            label=name,
            color="0.5" if floor else None,
            linestyle="--" if floor else "-",
        )
        axes.fill_between(epochs, table.min(0), table.max(0), color=line.get_color(), alpha=0.15, linewidth=0)
    axes.set(xlabel="epoch", ylabel="test accuracy (%)", title=title)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, loc="lower right")
    figure.savefig(path, dpi=150)


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
        for node, numbers in lines.items():
            axes.plot(follow.steps, numbers, label=node, marker="o", markersize=3)
        axes.set(xlabel=xlabel, ylabel=name)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    figure.suptitle(title)
    figure.savefig(path, dpi=150)
