"""Side-by-side timing in one process: contestants in turn, medians, ratios, and the conditions."""

import os
import platform
import statistics
import time

import torch


def conditions():
    """One line on what the figures were taken with."""
    load = os.getloadavg()[0]
    return (
        f"torch {torch.__version__}, python {platform.python_version()}, {platform.machine()}, "
        f"{torch.get_num_threads()} thread, load {load:.2f}"
    )


def compare(contestants, rounds, calls=3):
    """Median seconds of a call of each contestant.

    In every round each contestant runs once untimed, so that all find their own data in the caches, and then
    ``calls`` times timed; the order rotates from round to round.
    """
    names = list(contestants)
    times = {name: [] for name in names}
    for function in contestants.values():
        for _ in range(10):
            function()
    for turn in range(rounds):
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            function = contestants[name]
            function()
            start = time.perf_counter()
            for _ in range(calls):
                function()
            times[name].append((time.perf_counter() - start) / calls)
    return {name: statistics.median(found) for name, found in times.items()}


def report(title, medians, against):
    """Print a line for each contestant with its ratio to one of them."""
    print(title)
    for name, seconds in medians.items():
        print(f"  {name:34} {1e6 * seconds:10.1f} us   {seconds / medians[against]:5.2f}")
