"""The benchmark suite: every workload beside plain torch in one run, how time grows with sizes, the machine itself.

python -m benchmarks [--quick] [--only mplp_meta_step,growth] [--threads 2] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from . import growth, machine
from .harness import OURS, apart, measured
from .workloads import ALL


def main() -> int:
    """Run what was asked for; the exit status says whether everything could be run."""
    names = [workload.name for workload in ALL]
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small sizes, few rounds: only shows that everything runs")
    parser.add_argument("--only", help=f"names separated by commas: {', '.join(names)}, growth, growth:NAME")
    parser.add_argument("--threads", type=int, default=1, help="of torch (default: 1)")
    parser.add_argument("--seconds", type=float, help="of calls for each workload (default: 20, quick 0.3)")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--json", type=Path, help="file for all figures")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: this torch finds no CUDA device")
    chosen = options.only.split(",") if options.only else [*names, "growth"]
    sweeps = growth.chosen(chosen, parser.error)
    unknown = [name for name in chosen if name not in names and not name.startswith("growth")]
    if unknown:
        parser.error(f"--only: unknown workload {unknown[0]!r}; there are {', '.join(names)}, growth")
    torch.set_num_threads(1)  # this process only forks
    warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
    seconds = options.seconds or (0.3 if options.quick else 20.0)
    found: dict[str, Any] = {"quick": options.quick, "device": options.device}
    found["yardsticks"] = apart(
        lambda: _with(options.threads, lambda: machine.yardsticks(options.device, options.quick))
    )
    found["conditions"] = apart(lambda: _with(options.threads, machine.conditions))
    found["workloads"], found["growth"], failures = [], [], {}
    work = [workload for workload in ALL if workload.name in chosen]
    for workload in tqdm(work, unit="workload", leave=False, disable=None):
        try:
            found["workloads"].append(measured(workload, seconds, options.threads, options.quick, options.device))
        except RuntimeError as reason:
            failures[workload.name] = str(reason)
    for sweep in tqdm(sweeps, unit="sweep", leave=False, disable=None):
        try:
            found["growth"].append(growth.measured(sweep, options.threads, options.quick, options.device))
        except RuntimeError as reason:
            failures[f"growth:{sweep.name}"] = str(reason)
    found["failures"] = failures
    print(text(found))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    for name, error in failures.items():
        print(f"\n{name} failed:\n{error}", file=sys.stderr)
    return 1 if failures else 0


def _with(threads: int, function: Any) -> Any:
    torch.set_num_threads(threads)
    return function()


def text(found: dict[str, Any]) -> str:
    """All figures as tables in markdown."""
    sticks = found["yardsticks"]
    lines = [
        machine.line(found["conditions"]),
        f"mm {sticks['mm']:.0f} GFLOP/s, tanh {sticks['tanh']:.2f}, sigmoid {sticks['sigmoid']:.2f}, "
        f"product {sticks['product']:.2f} ns an element, copy {sticks['copy']:.1f} GB/s",
    ]
    if found["quick"]:
        lines.append("Quick: sizes are smaller than the titles say, and figures mean nothing.")
    if found["workloads"]:
        lines += ["", *_table(found)]
    if found["growth"]:
        lines += ["", *growth.table(found["growth"])]
    return "\n".join(lines)


def _table(found: dict[str, Any]) -> list[str]:
    header = ["workload", "contestant", "ms", "CPU ms", "ratio", "at most", "peak MiB", "over roofline", "of published"]
    rows = [header, ["---"] * len(header)]
    scale = machine.slower(found["yardsticks"])
    sticks = found["yardsticks"]
    for row in found["workloads"]:
        clock = row["clock"]
        base = row["contestants"][row["against"]][clock]
        for name, times in row["contestants"].items():
            first = name == OURS
            limit = published = ""
            if first and row["flops"]:
                bound = max(row["flops"] / (1e9 * sticks["mm"]), row["bytes"] / (1e9 * sticks["copy"]))
                limit = f"{times[clock] / bound:.1f}"
            if first and row["published"] and not found["quick"]:
                published = f"{times[clock] / (scale * row['published']):.2f}"
            rows.append(
                [
                    row["title"] if first else "",
                    name,
                    f"{1e3 * times['seconds']:.3g}",
                    f"{1e3 * times['cpu']:.3g}",
                    f"{times[clock] / base:.2f}",
                    f"{row['wanted']:.2f}" if first and row["wanted"] else "",
                    f"{times['peak']:.0f}" if times.get("peak") is not None else "",
                    limit,
                    published,
                ]
            )
    return [f"| {' | '.join(row)} |" for row in rows]


if __name__ == "__main__":
    sys.exit(main())
