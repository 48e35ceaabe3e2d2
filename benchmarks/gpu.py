"""What a GPU makes of it: the CUDA tests, the benchmark suite there, kernels and throughput of steps; docs/gpu.md.

python -m benchmarks.gpu [--quick] [--page docs/gpu.md]
"""

from __future__ import annotations

import argparse
import datetime
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import mpgraph as mg
from mpgraph.architectures import mlp
from mpgraph.protocols import VSML, Backprop, FeedbackAlignment, Plasticity

from . import __main__ as suite
from .harness import OURS

ROOT = Path(__file__).resolve().parent.parent
STEPS: dict[str, tuple[list[int], int, Callable[[], mg.Protocol]]] = {
    "backprop 784-512-10, batch 128": ([784, 512, 10], 128, Backprop),
    "feedback alignment 784-512-10, batch 128": ([784, 512, 10], 128, FeedbackAlignment),
    "plasticity 784-170-130-100-70-47, batch 1": ([784, 170, 130, 100, 70, 47], 1, Plasticity),
    "VS-ML 784-10, batch 1": ([784, 10], 1, VSML),
    "backprop 4096-4096-4096-10, batch 4096": ([4096, 4096, 4096, 10], 4096, Backprop),
}


def main() -> int:
    """Measure and write the page; without a GPU say so and leave the page as it is."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small sizes and few rounds: only shows that all runs")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "gpu.md")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print(
            f"make gpu: torch {torch.__version__} finds no CUDA device here, so nothing was run and "
            f"{options.page.name} is as it was. It needs an NVIDIA GPU "
            "and a torch built for CUDA (pip install torch from its CUDA index)",
            file=sys.stderr,
        )
        return 1
    tests = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-k", "cuda or gpu", str(ROOT / "tests")],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "figures.json"
        quick = ["--quick"] if options.quick else []
        command = [sys.executable, "-m", "benchmarks", "--device", "cuda", "--json", str(file), *quick]
        failed = subprocess.run(command, cwd=ROOT, check=False).returncode
        figures = json.loads(file.read_text()) if file.is_file() else None
    steps = [
        measured(title, *case, backend)
        for title, case in STEPS.items()
        for backend in ("eager", "inductor", "cudagraphs")
    ]
    found = {
        "date": datetime.date.today().isoformat(),
        "card": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "tests": {"passed": tests.returncode == 0, "said": (tests.stdout.strip().splitlines() or ["nothing"])[-1]},
        "suite": figures,
        "steps": steps,
    }
    options.page.write_text(page(found))
    print(f"wrote {options.page}")
    if tests.returncode:
        print(tests.stdout, file=sys.stderr)
    return int(bool(tests.returncode or failed))


def measured(title: str, sizes: list[int], batch: int, rule: Callable[[], mg.Protocol], backend: Any) -> dict[str, Any]:
    """Seconds and kernels of one learning step, with its floating-point operations and bytes by ``explain()``."""
    program = mg.compile(mlp(sizes, "tanh"), rule(), device="cuda", checks="none", backend=backend)
    state = program.init(batch_size=batch)
    x = torch.randn(batch, sizes[0], device="cuda")
    y = torch.randint(0, sizes[-1], (batch,), device="cuda")

    def step() -> Any:
        return program.step(state, x, y)

    with torch.no_grad():
        for _ in range(5):
            step()
        kernels = kernels_of(step)
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        rounds = 50
        torch.cuda.synchronize()
        start.record()
        for _ in range(rounds):
            step()
        end.record()
        torch.cuda.synchronize()
    cost = program.cost(batch)
    return {
        "title": title,
        "backend": backend,
        "seconds": 1e-3 * start.elapsed_time(end) / rounds,
        "kernels": kernels,
        "flops": cost.flops,
        "bytes": cost.bytes,
    }


def kernels_of(step: Callable[[], Any]) -> int:
    """How many kernels and copies the GPU runs for one call."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        step()
        torch.cuda.synchronize()
    return sum(event.device_type == torch.autograd.DeviceType.CUDA for event in profile.events())


def page(found: dict[str, Any]) -> str:
    """The page, in markdown, from what :func:`main` found."""
    tests = found["tests"]
    lines = [
        "# On a GPU",
        "",
        f"Written by `make gpu` on {found['date']}: {found['card']}, torch {found['torch']}, CUDA {found['cuda']}.",
        f"CUDA tests: {'passed' if tests['passed'] else 'FAILED'} ({tests['said']}).",
        "",
        "## Steps",
        "",
        "FLOPs and bytes are those of `program.explain()`; kernels are counted by torch's profiler.",
        "",
        "| step | backend | ms | kernels | TFLOP/s | GB/s |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in found["steps"]:
        rates = f"{1e-12 * row['flops'] / row['seconds']:.3g} | {1e-9 * row['bytes'] / row['seconds']:.3g}"
        lines.append(f"| {row['title']} | {row['backend']} | {1e3 * row['seconds']:.3g} | {row['kernels']} | {rates} |")
    lines += ["", "## The benchmark suite", ""]
    if found["suite"] is None:
        return "\n".join([*lines, "It wrote no figures: see what it printed.", ""])
    lines += [suite.text(found["suite"]), ""]
    known = [row for row in found["suite"]["workloads"] if row["flops"]]
    if known:
        lines += ["| workload | TFLOP/s | GB/s |", "| --- | --- | --- |"]
        for row in known:
            seconds = row["contestants"][OURS]["seconds"]
            rates = f"{1e-12 * row['flops'] / seconds:.3g} | {1e-9 * row['bytes'] / seconds:.3g}"
            lines.append(f"| {row['title']} | {rates} |")
        lines.append("")
    failures = found["suite"]["failures"]
    lines += [f"`{name}` failed: {error.strip().splitlines()[-1]}" for name, error in failures.items()]
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    sys.exit(main())
