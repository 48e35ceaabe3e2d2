"""How the time of a call grows with one size at a time, and the exponent that fits: time ~ size ^ exponent."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

import mpgraph as mg
from mpgraph.architectures import mlp
from mpgraph.protocols import BLUR, MPLP, VSML, Backprop

from .harness import Contestant, apart
from .machine import settle
from .workloads.sparse import layered
from .workloads.steps import fed_back


@dataclass(frozen=True)
class Sweep:
    """One size that grows.

    Attributes:
        name: of the size.
        what: one call.
        values: of the size.
        make: the call at a size.
    """

    name: str
    what: str
    values: Sequence[int]
    make: Callable[[int, str], Contestant]


def step(network: Any, rule: Any, batch: int, device: str, *, classes: bool = True, slots: bool = False) -> Contestant:
    """A step, its state fed back; of a rule that keeps something for each slot of the batch if ``slots``."""
    program = mg.compile(network, rule, device=device)
    x = torch.randn(batch, *program.graph.network.shape("x"), device=device)
    shape = program.graph.network.shape("y")
    y = torch.randint(0, shape[0], (batch,), device=device) if classes else torch.randn(batch, *shape, device=device)
    return fed_back(program, program.init(batch_size=batch) if slots else program.init(), x, y)


def unrolled(steps: int, device: str) -> Contestant:
    """A meta-gradient with respect to the rate of SGD."""
    rule = Backprop(lr=mg.learnable(0.01))
    program = mg.compile(mlp([64, 128, 10]), rule, device=device)
    start = program.init()
    xs, ys = torch.randn(steps, 16, 64, device=device), torch.randint(0, 10, (steps, 16), device=device)

    def call() -> None:
        state = start
        for x, y in zip(xs, ys, strict=True):
            state, out = program.step(state, x, y)
        torch.autograd.grad(out.loss, list(rule.parameters()))

    return call


def stacked(count: int, device: str) -> Contestant:
    """A step of as many networks side by side."""
    program = mg.compile(mlp([64, 128, 10]), Backprop(), device=device)
    own = [program.init(seed=range(count))]
    x, y = torch.randn(16, 64, device=device), torch.randint(0, 10, (16,), device=device)
    together = torch.vmap(lambda state: program.step(state, x, y)[0])

    def call() -> None:
        with torch.no_grad():
            own[0] = together(own[0])

    return call


def neurons(edges: int, device: str) -> Contestant:
    """A step of a graph of single neurons in ten layers."""
    network = mg.Network.from_networkx(layered(edges), loss="l2")
    return step(network, Backprop(lr=1e-6), 1, device, classes=False)


def compiled(edges: int, device: str) -> Contestant:
    """Import and compile such a graph."""
    graph = layered(edges)

    def call() -> None:
        mg.compile(mg.Network.from_networkx(graph, loss="l2"), Backprop(), device=device)

    return call


SWEEPS = [
    Sweep("width", "backprop step n-n-10, batch 128", (128, 256, 512, 1024, 2048),
          lambda n, device: step(mlp([n, n, 10]), Backprop(), 128, device)),
    Sweep("depth", "backprop step, n layers of 64, batch 32", (2, 4, 8, 16, 32),
          lambda n, device: step(mlp([64] * (n + 1)), Backprop(), 32, device)),
    Sweep("batch", "backprop step 784-512-10, batch n", (32, 64, 128, 256, 512),
          lambda n, device: step(mlp([784, 512, 10]), Backprop(), n, device)),
    Sweep("unroll", "meta-gradient through n backprop steps 64-128-10, batch 16", (8, 16, 32, 64, 128), unrolled),
    Sweep("states", "BLUR step 196-128-10 with n states, batch 32", (2, 4, 8, 16),
          lambda n, device: step(mlp([196, 128, 10]), BLUR(k=n), 32, device)),
    Sweep("message", "MPLP step 36-16-10 with messages of n, batch 8", (2, 4, 8, 16),
          lambda n, device: step(mlp([36, 16, 10], activation="sigmoid"), MPLP(k=n), 8, device, slots=True)),
    Sweep("synapse", "VS-ML step 196-10 with synapses of n numbers, batch 1", (8, 16, 32, 64),
          lambda n, device: step(mlp([196, 10]), VSML(state=n), 1, device, slots=True)),
    Sweep("population", "step of n networks 64-128-10 by vmap, batch 16", (4, 8, 16, 32, 64), stacked),
    Sweep("edges", "backprop step of a graph of n edges between single neurons, batch 1", (10**3, 10**4, 10**5, 10**6),
          neurons),
    Sweep("compile", "import and compile of that graph", (10**3, 10**4, 10**5), compiled),
]  # fmt: skip


def chosen(names: Sequence[str], error: Callable[[str], Any]) -> list[Sweep]:
    """``growth`` is all of them, ``growth:depth`` one."""
    if "growth" in names:
        return SWEEPS
    wanted = [name.partition(":")[2] for name in names if name.startswith("growth:")]
    known = {sweep.name: sweep for sweep in SWEEPS}
    for name in wanted:
        if name not in known:
            error(f"--only: unknown sweep {name!r}; there are {', '.join(known)}")
    return [known[name] for name in wanted if name in known]


def measured(sweep: Sweep, threads: int, quick: bool, device: str) -> dict[str, Any]:
    """Median CPU seconds (on CUDA wall seconds) at every size, and the exponent over the upper half of the sizes."""
    values = sweep.values[:2] if quick else sweep.values

    def seconds(value: int) -> float:
        torch.set_num_threads(threads)
        torch.manual_seed(0)
        function, found = sweep.make(value, device), []
        clock = time.process_time if device == "cpu" else time.perf_counter
        function()
        settle(device)
        begin = time.perf_counter()
        while len(found) < 3 or (len(found) < 50 and time.perf_counter() - begin < (0.1 if quick else 2.0)):
            start = clock()
            function()
            settle(device)
            found.append(clock() - start)
        return statistics.median(found)

    times = [apart(lambda value=value: seconds(value)) for value in values]
    upper = len(values) // 2 if len(values) > 2 else 0
    return {
        "name": sweep.name,
        "what": sweep.what,
        "sizes": list(values),
        "seconds": times,
        "exponent": slope([math.log(v) for v in values[upper:]], [math.log(t) for t in times[upper:]]),
    }


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Of the least-squares line."""
    return statistics.linear_regression(x, y).slope


def table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """In markdown."""
    lines = ["| grows | call | CPU ms at each size | exponent, upper half |", "| --- | --- | --- | --- |"]
    for row in rows:
        cells = ", ".join(f"{n}: {1e3 * t:.3g}" for n, t in zip(row["sizes"], row["seconds"], strict=True))
        lines.append(f"| {row['name']} | {row['what']} | {cells} | {row['exponent']:.2f} |")
    return lines
