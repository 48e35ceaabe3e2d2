"""The benchmark suite: what it computes from times, that it refuses unlike contestants, and that it can be run."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks import gpu, growth, harness, machine  # noqa: E402
from benchmarks.workloads import ALL  # noqa: E402


def test_the_exponent_of_a_power_is_found():
    sizes = [2, 4, 8, 16]
    assert growth.slope([math.log(n) for n in sizes], [math.log(3.0 * n**1.5) for n in sizes]) == pytest.approx(1.5)


def test_contestants_that_compute_something_else_are_refused():
    case = harness.Case({"one": lambda: torch.tensor(1.0), "other": lambda: torch.tensor(1.1)}, "one")
    with pytest.raises(ValueError, match="other came to .* but one to .* not the same computation"):
        harness.timed(case, 0.01)


def test_nan_is_not_a_result_that_agrees():
    case = harness.Case({"one": lambda: torch.tensor(1.0), "other": lambda: torch.tensor(math.nan)}, "one")
    with pytest.raises(ValueError, match="not the same computation"):
        harness.timed(case, 0.01)


def test_times_and_ratio_of_a_contestant_that_works_three_times_as_long():
    """Counted in calls of one product: the factor is far above what a loaded machine can hide."""
    a = torch.randn(200, 200)

    def work(times):
        for _ in range(times):
            torch.mm(a, a)

    found = harness.timed(harness.Case({"one": lambda: work(1), "fifty": lambda: work(50)}, "one"), 0.2)
    assert found["fifty"]["cpu"] > 5 * found["one"]["cpu"] > 0


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from Linux")
def test_peak_memory_counts_what_a_call_needs():
    """In a fresh interpreter: this one has freed memory that it would use again."""
    call = "lambda: torch.ones(16, 2**20).sum()"
    code = f"import torch; from benchmarks import harness; print(harness.peak(lambda: {call}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert 60 < float(done.stdout) < 90  # MiB; the tensor has 64


def test_an_error_in_a_process_of_its_own_is_told():
    def fail():
        raise KeyError("the reason")

    with pytest.raises(RuntimeError, match="the reason"):
        harness.apart(fail)


def test_a_machine_half_as_fast_is_twice_as_slow():
    reference = machine.REFERENCE
    assert machine.slower(reference) == pytest.approx(1.0)
    half = {name: value / 2 if name == "mm" else 2 * value for name, value in reference.items()}
    assert machine.slower(half) == pytest.approx(2.0)


def test_names_are_unique():
    names = [workload.name for workload in ALL]
    assert len(set(names)) == len(names)


def run(*arguments):
    command = [sys.executable, "-m", "benchmarks", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)


def test_the_suite_runs_and_writes_its_figures(tmp_path):
    done = run("--quick", "--only", "backprop_online,growth:depth", "--json", tmp_path / "figures.json")
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "figures.json").read_text())
    (row,) = found["workloads"]
    times = row["contestants"]
    assert row["ratio"] == pytest.approx(times["mpgraph"]["cpu"] / times["autograd + SGD"]["cpu"])
    assert row["flops"] > 2 * (784 * 170 + 170 * 130 + 130 * 100 + 100 * 70 + 70 * 47)
    assert found["yardsticks"]["mm"] > 0
    assert [sweep["name"] for sweep in found["growth"]] == ["depth"]
    assert "backprop step 784-170-130-100-70-47, batch 1" in done.stdout


def test_an_unknown_workload_is_named_with_those_there_are():
    done = run("--only", "backprop_onlin")
    assert done.returncode == 2
    assert "unknown workload 'backprop_onlin'" in done.stderr
    assert "backprop_online" in done.stderr


def test_the_page_of_a_gpu():
    """Ten milliseconds for 2e10 operations are 2 TFLOP/s; 5e8 bytes are 50 GB/s."""
    row = {"title": "a step", "backend": "eager", "seconds": 0.01, "kernels": 17, "flops": 2e10, "bytes": 5e8}
    sticks = {"mm": 1e4, "tanh": 0.01, "sigmoid": 0.01, "product": 0.01, "copy": 1e3}
    times = {harness.OURS: {"seconds": 0.02, "cpu": 0.02, "peak": 5.0}, "plain": {"seconds": 0.04, "cpu": 0.04}}
    workload = {
        "title": "a workload",
        "clock": "seconds",
        "against": "plain",
        "contestants": times,
        "flops": 4e10,
        "bytes": 2e9,
        "wanted": None,
        "published": None,
    }
    suite = {"quick": False, "yardsticks": sticks, "conditions": {"card": "C"}, "workloads": [workload], "growth": []}
    found = {
        "date": "2030-01-02",
        "card": "Card 9",
        "torch": "2.9",
        "cuda": "13",
        "tests": {"passed": False, "said": "1 failed"},
        "steps": [row],
        "suite": {**suite, "failures": {"lost": "Traceback\nRuntimeError: out of memory"}},
    }
    page = gpu.page(found)
    assert "on 2030-01-02: Card 9, torch 2.9, CUDA 13." in page
    assert "CUDA tests: FAILED (1 failed)." in page
    assert "| a step | eager | 10 | 17 | 2 | 50 |" in page
    assert "| a workload | 2 | 100 |" in page
    assert "`lost` failed: RuntimeError: out of memory" in page
    assert "It wrote no figures" in gpu.page({**found, "suite": None})


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_the_page_stays(tmp_path):
    page = tmp_path / "gpu.md"
    page.write_text("as it was")
    command = [sys.executable, "-m", "benchmarks.gpu", "--page", str(page)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert "finds no CUDA device" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert page.read_text() == "as it was"
