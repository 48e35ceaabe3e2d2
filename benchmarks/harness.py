"""Contestants in turn, in one process: medians of wall and CPU seconds, ratios; peak memory in a process of its own.

A shared machine is never quiet. So contestants take turns, the order rotates from round to round, and ratios of their
medians are what a figure means; CPU seconds stand beside wall seconds. Before anything is timed all contestants have to
come to the same result, otherwise one of them does something else.
"""

from __future__ import annotations

import multiprocessing
import statistics
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .machine import settle

Contestant = Callable[[], Tensor | None]
OURS = "mpgraph"


@dataclass(frozen=True)
class Cost:
    """What one call has to compute and to move, for the roofline."""

    flops: float
    bytes: float


@dataclass(frozen=True)
class Case:
    """Contestants on one workload.

    Attributes:
        contestants: functions that make one call and return a number by which they are compared, or ``None``.
        against: the name of the one that ratios are taken to.
        cost: of one call, if known.
        tolerance: relative, of the first two results of every contestant that returns any.
    """

    contestants: Mapping[str, Contestant]
    against: str
    cost: Cost | None = None
    tolerance: float = 1e-3


@dataclass(frozen=True)
class Workload:
    """Something to be measured.

    Attributes:
        name: for the command line.
        title: sizes.
        make: the case; smaller if asked to be quick.
        wanted: the ratio that is to be held, for workloads that have one.
        published: seconds of the published code on the machine of ``machine.REFERENCE``, by number of threads.
    """

    name: str
    title: str
    make: Callable[[bool, str], Case]
    wanted: float | None = None
    published: Mapping[int, float] = field(default_factory=dict)


def cost(program: Any, batch_size: int, steps: float) -> Cost:
    """Of so many steps of a program. A meta-gradient counts as two further steps each: one for each operand."""
    found = program.cost(batch_size)
    return Cost(steps * found.flops, steps * found.bytes)


def timed(case: Case, seconds: float, device: str = "cpu") -> dict[str, dict[str, float]]:
    """Median wall and CPU seconds of a call of each contestant, from about so many seconds of calls in all.

    Raises:
        ValueError: if contestants come to different results.
    """
    results: dict[str, list[float]] = {}
    lengths: dict[str, float] = {}
    for name, function in case.contestants.items():
        found = [function(), function()]
        results[name] = [float(value) for value in found if value is not None]
        settle(device)
        start = time.perf_counter()
        function()
        settle(device)
        lengths[name] = max(time.perf_counter() - start, 1e-6)
    _agree(case, results)
    names = list(case.contestants)
    calls = {name: max(1, min(200, int(0.02 / lengths[name]))) for name in names}
    turn = sum((calls[name] + 1) * lengths[name] for name in names)
    rounds = max(3, min(200, int(seconds / turn)))
    wall: dict[str, list[float]] = {name: [] for name in names}
    cpu: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            function = case.contestants[name]
            function()  # so that each finds its own data in the caches
            settle(device)
            before = time.perf_counter(), time.process_time()
            for _ in range(calls[name]):
                function()
            settle(device)
            wall[name].append((time.perf_counter() - before[0]) / calls[name])
            cpu[name].append((time.process_time() - before[1]) / calls[name])
    return {name: {"seconds": statistics.median(wall[name]), "cpu": statistics.median(cpu[name])} for name in names}


def _agree(case: Case, results: Mapping[str, list[float]]) -> None:
    wanted = results[case.against]
    for name, found in results.items():
        for one, other in zip(found, wanted, strict=False):
            if not abs(one - other) <= case.tolerance * max(1.0, abs(other)):
                raise ValueError(f"{name} came to {found}, but {case.against} to {wanted}: not the same computation")


def resident(what: str) -> float:
    """A line of the kernel's account of this process, in MiB: ``VmRSS``, now, or ``VmHWM``, the peak. Linux only."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(what))
    return int(line.split()[1]) / 1024


def peak(make: Callable[[], Contestant], device: str = "cpu") -> float | None:
    """MiB that a contestant and its second call add at most to this process; ``None`` where it cannot be known."""
    if device != "cpu":
        function = make()
        function()
        torch.cuda.reset_peak_memory_stats()
        function()
        return torch.cuda.max_memory_allocated() / 2**20
    forget = Path("/proc/self/clear_refs")
    if not forget.exists():
        return None
    before = resident("VmRSS")
    function = make()
    function()
    forget.write_text("5")
    function()
    return resident("VmHWM") - before


def apart(function: Callable[[], Any]) -> Any:
    """What a function returns, computed in a process of its own.

    The process is a fork, so that nothing is imported again. Nothing of torch may have run on several threads before.

    Raises:
        RuntimeError: with the text of the error, if the process failed.
    """
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)

    def work() -> None:
        try:
            sender.send((function(), None))
        except BaseException:
            sender.send((None, traceback.format_exc()))

    process = context.Process(target=work)
    process.start()
    sender.close()
    try:
        found, error = receiver.recv()
    except EOFError:
        found, error = None, "the process ended without a word; was there too little memory?"
    process.join()
    if error is not None:
        raise RuntimeError(error)
    return found


def measured(workload: Workload, seconds: float, threads: int, quick: bool, device: str) -> dict[str, Any]:
    """A row of the results: times of all contestants; peak memory of ours, and of the one that ratios are taken to."""

    def begin() -> Case:
        torch.set_num_threads(threads)
        torch.manual_seed(0)
        return workload.make(quick, device)

    def times() -> Any:
        case = begin()
        known = None if case.cost is None else (case.cost.flops, case.cost.bytes)
        return timed(case, seconds, device), case.against, known

    found, against, known = apart(times)
    for name in {OURS} if quick else {OURS, against}:
        found[name]["peak"] = apart(lambda name=name: peak(lambda: begin().contestants[name], device))
    clock = "cpu" if threads == 1 and device == "cpu" else "seconds"  # a busy machine lends CPU seconds, but later
    return {
        "name": workload.name,
        "title": workload.title,
        "threads": threads,
        "clock": clock,
        "against": against,
        "contestants": found,
        "ratio": found[OURS][clock] / found[against][clock],
        "wanted": workload.wanted,
        "published": workload.published.get(threads),
        "flops": known and known[0],
        "bytes": known and known[1],
    }
