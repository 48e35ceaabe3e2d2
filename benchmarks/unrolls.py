"""Memory and time of a meta-gradient by the length of the episode, and the exponents: memory ~ steps ^ exponent.

python -m benchmarks.unrolls [--steps 25,100,400] [--hidden 256] [--rule backprop]

The plain unroll, the one whose weights are kept as histories, and the recomputed one. Each row is a process of its own;
memory is its peak above what it had before the estimate, seconds are those of the CPU.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import resource
import time
from typing import Any, NamedTuple

import torch

import mpgraph as mg
from mpgraph import meta
from mpgraph.architectures import mlp
from mpgraph.meta.estimators.plan import Schedule
from mpgraph.protocols import Backprop, Plasticity

RULES = {
    "backprop": lambda: Backprop(lr=mg.learnable(0.01)),
    "bio": lambda: Plasticity(pseudo=mg.learnable(0.01), ehebb=mg.learnable(-0.001), oja=mg.learnable(-0.001)),
}


class Row(NamedTuple):
    """A meta-gradient.

    Attributes:
        steps: inner steps, one example each.
        kind: of estimator.
        seconds: of CPU.
        mib: peak memory.
        gradient: with respect to the first meta-parameter: the same for all kinds.
    """

    steps: int
    kind: str
    seconds: float
    mib: float
    gradient: float


class Histories(meta.Unroll):
    """An unroll that keeps the square root of its weights."""

    def _scheduled(self, episode: Any, parameters: Any, batch: Any, limit: Any) -> Schedule:
        return Schedule(len(batch.seeds), batch.steps, math.ceil(math.sqrt(batch.steps)))


KINDS = {"unroll": meta.Unroll, "histories": Histories, "recomputed": meta.Recomputed}


def rows(steps: tuple[int, ...] = (25, 100, 400), hidden: int = 256, rule: str = "backprop") -> list[Row]:
    """One for each length and kind; 64-hidden-hidden-10, one task, one example at a time."""
    return [_apart(length, kind, hidden, rule) for length in steps for kind in KINDS]


def exponents(found: list[Row]) -> dict[str, float]:
    """Of memory by the length, for each kind, from the shortest to the longest."""
    fitted = {}
    for kind in KINDS:
        own = [row for row in found if row.kind == kind]
        ratio = max(own[-1].mib, 1e-3) / max(own[0].mib, 1e-3)
        fitted[kind] = math.log(ratio) / math.log(own[-1].steps / own[0].steps)
    return fitted


class Labelled(meta.TaskFamily):
    """Random examples of ten classes, one at a time."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def draw(self, generator: torch.Generator, steps: int | None = None, split: str = "train") -> meta.Task:
        """A task."""
        steps = steps or self.steps
        x = torch.randn(steps + 1, 1, 64, generator=generator)
        y = torch.randint(10, (steps + 1, 1), generator=generator)
        return meta.Task(x[:-1], y[:-1], x[-1], y[-1])


def _apart(steps: int, kind: str, hidden: int, rule: str) -> Row:
    context = multiprocessing.get_context("spawn")  # a fork would begin with this process's memory
    results = context.Queue()
    process = context.Process(target=_measure, args=(steps, kind, hidden, rule, results))
    process.start()
    row = Row(*results.get())
    process.join()
    return row


def _measure(steps: int, kind: str, hidden: int, rule: str, results: Any) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    program = mg.compile(mlp([64, hidden, hidden, 10], "tanh", "cross_entropy"), RULES[rule]())
    episode, estimator = meta.Episode(program), KINDS[kind]()
    for _ in range(2):  # code is written, and its backward pass
        estimator.estimate(episode, episode.parameters(), meta.Tasks(Labelled(8)), torch.Generator())
    tasks = meta.Tasks(Labelled(steps))
    before, start = _peak(), time.process_time()
    found = estimator.estimate(episode, episode.parameters(), tasks, torch.Generator())
    seconds, gradient = time.process_time() - start, float(next(iter(found.gradient.values())))
    results.put((steps, kind, seconds, _peak() - before, gradient))


def _peak() -> float:
    """MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Print a line for each length and kind."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", default="25,100,400")
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--rule", choices=RULES, default="backprop")
    options = parser.parse_args()
    found = rows(tuple(map(int, options.steps.split(","))), options.hidden, options.rule)
    print(f"{options.rule}, 64-{options.hidden}-{options.hidden}-10, one example at a time, one thread")
    print("steps  kind         CPU s    MiB   gradient")
    for row in found:
        print(f"{row.steps:5}  {row.kind:10}  {row.seconds:6.2f}  {row.mib:5.0f}   {row.gradient:.6g}")
    for kind, exponent in exponents(found).items():
        print(f"memory of {kind} ~ steps ^ {exponent:.2f}")


if __name__ == "__main__":
    main()
