"""Several processes: one and two agree; a run goes on with another number of them; a dead one ends the run."""

import json
import os
import signal
import time
from functools import partial

import processes
import pytest
import torch

import mpgraph as mg
from mpgraph.architectures import mlp
from mpgraph.meta import CMAES, Episode, Evolution, MetaTrainer, Sinusoids, Unroll, join, leave
from mpgraph.protocols import Backprop


def train(folder, steps, kind, dies=None):
    """Part of a process, in the group that the environment names."""
    torch.set_num_threads(1)
    group = join()
    rule = Backprop(optimizer=mg.SGD(mg.learnable(0.02), momentum=mg.learnable(0.5)))
    episode = Episode(mg.compile(mlp([1, 3, 1], "tanh", "l2"), rule))
    estimator = {"unroll": Unroll(), "evolution": Evolution(0.01, 2), "cma_es": CMAES(0.01, 5)}[kind]
    trainer = MetaTrainer(episode, Sinusoids(steps=4), estimator, tasks=4, seed=3, group=group)
    trainer.run(2, folder, resume=True, every=1)
    if dies == group.rank:
        os.kill(os.getpid(), signal.SIGKILL)
    trainer.run(steps, folder, resume=True, every=1)
    leave()


together = partial(processes.together, train)


@pytest.fixture(scope="module", autouse=True)
def warm(tmp_path_factory):
    """What torch loads at its first step is loaded before the processes part."""
    train(tmp_path_factory.mktemp("warm"), 3, "unroll")


def rows(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("kind", ["unroll", "evolution", "cma_es"])
def test_two_processes_agree_with_one_and_go_on_where_it_stopped(kind, tmp_path):
    assert together(1, tmp_path / "one", 6, kind) == [0]
    assert together(2, tmp_path / "both", 4, kind) == [0, 0]
    assert together(1, tmp_path / "both", 6, kind) == [0]
    one, both = rows(tmp_path / "one"), rows(tmp_path / "both")
    assert [row["step"] for row in one] == [row["step"] for row in both] == list(range(6))
    for a, b in zip(one, both, strict=True):
        assert abs(a["loss"] - b["loss"]) <= 1e-5 * abs(a["loss"])
        for name, value in a["parameters"].items():
            assert abs(value - b["parameters"][name]) < 1e-6


def test_a_dead_process_ends_the_run(tmp_path):
    begin = time.monotonic()
    first, second = together(2, tmp_path / "dead", 50, "unroll", 1)
    assert time.monotonic() - begin < 60
    assert second == -signal.SIGKILL
    assert first == 1
    assert len(rows(tmp_path / "dead")) == 2
