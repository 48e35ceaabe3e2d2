"""Several processes: one and two agree; a dead one ends the run; a run goes on with another number of them."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

SCRIPT = """
import os, sys
import torch
torch.set_num_threads(1)
import mpgraph as mg
from mpgraph.architectures import mlp
from mpgraph.meta import Episode, Evolution, MetaTrainer, Sinusoids, Unroll, join
from mpgraph.meta.distributed import leave
from mpgraph.protocols import Backprop

folder, steps, kind, dies = sys.argv[1], int(sys.argv[2]), sys.argv[3], len(sys.argv) > 4
group = join()
rule = Backprop(optimizer=mg.SGD(mg.learnable(0.02), momentum=mg.learnable(0.5)))
episode = Episode(mg.compile(mlp([1, 3, 1], "tanh", "l2"), rule))
estimator = Unroll() if kind == "unroll" else Evolution(0.01, 2)
trainer = MetaTrainer(episode, Sinusoids(steps=4), estimator, tasks=4, seed=3, group=group)
if dies and group.rank == 1:
    def stop():
        os.kill(os.getpid(), 9)
    trainer.update = stop
trainer.run(steps, folder, resume=True, every=1)
leave()
"""


def launch(folder, steps, kind, processes, *more):
    """The command of a run, by torchrun where there are several processes."""
    script = folder.parent / "script.py"
    script.write_text(SCRIPT)
    many = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"] if processes > 1 else []
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *many, str(script), str(folder), str(steps), kind, *more],
        capture_output=True, text=True, env=environment, timeout=120,
    )  # fmt: skip


def rows(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("kind", ["unroll", "evolution"])
def test_two_processes_agree_with_one_and_go_on_where_it_stopped(kind, tmp_path):
    for name, plan in {"one": [(6, 1)], "both": [(3, 2), (6, 1)]}.items():
        for steps, processes in plan:
            result = launch(tmp_path / name, steps, kind, processes)
            assert result.returncode == 0, result.stderr[-2000:]
    one, both = rows(tmp_path / "one"), rows(tmp_path / "both")
    assert [row["step"] for row in one] == [row["step"] for row in both] == list(range(6))
    for a, b in zip(one, both, strict=True):
        assert abs(a["loss"] - b["loss"]) < 1e-5 * abs(a["loss"])
        for name, value in a["parameters"].items():
            assert abs(value - b["parameters"][name]) < 1e-6


def test_a_dead_process_ends_the_run(tmp_path):
    begin = time.monotonic()
    result = launch(tmp_path / "dead", 50, "unroll", 2, "dies")
    assert result.returncode != 0
    assert time.monotonic() - begin < 90
    assert signal.Signals.SIGKILL.name in result.stderr or "-9" in result.stderr
    assert len(rows(tmp_path / "dead")) < 50
