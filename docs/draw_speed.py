"""The figure of README.md: CPU time of mpgraph in that of torch written by hand, from the table in speed.md.

``python docs/draw_speed.py`` writes docs/speed.png. The table is that of ``python -m benchmarks``.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

DOCS = Path(__file__).resolve().parent
HAND = ("torch by hand", "three raw products")


def ratios(text: str) -> dict[str, float]:
    """CPU milliseconds of mpgraph by those of torch by hand, for each workload that has both."""
    table = text.partition("## One thread")[2].partition("\n## ")[0]
    rows = [[part.strip() for part in line.strip("|").split("|")] for line in table.splitlines() if line[:2] == "| "]
    times: dict[str, dict[str, float]] = {}
    name = ""
    for row in rows[2:]:
        name = row[0] or name
        times.setdefault(name, {})[row[1]] = float(row[3])
    found = {}
    for workload, one in times.items():
        hand = next((one[by] for by in HAND if by in one), None)
        if hand is not None:
            found[workload] = one["mpgraph"] / hand
    return found


def draw(found: dict[str, float], path: Path) -> None:
    """Bars with the shortest time above."""
    names = sorted(found, key=lambda name: found[name])
    figure, axes = pyplot.subplots(figsize=(8.2, 0.27 * len(names) + 0.7), layout="constrained")
    bars = axes.barh(names, [found[name] for name in names], color="#0072B2", height=0.65)
    axes.bar_label(bars, [f"{found[name]:.2f}" for name in names], padding=3, fontsize=8)
    axes.axvline(1.0, color="#D55E00", linewidth=1.2)
    axes.text(1.02, -0.45, "torch written by hand", color="#D55E00", fontsize=8, va="bottom")
    axes.invert_yaxis()
    axes.set_xlabel("CPU time by that of torch written by hand for one rule and network, less is better", fontsize=8)
    axes.tick_params(labelsize=8, length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    draw(ratios((DOCS / "speed.md").read_text()), DOCS / "speed.png")
    print("wrote docs/speed.png")
