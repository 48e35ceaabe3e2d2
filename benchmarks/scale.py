"""What one network over many processes costs: the tables of docs/scale.md.

python -m benchmarks.scale counted     FLOPs, bytes moved and sent, and rounds of a step under each rule
python -m benchmarks.scale measured    seconds of a step on two processes of this machine, with and without sending
python -m benchmarks.scale paper       ResNet-50 on ImageNet and 10^9 synapses, on 8 and 512 GPUs

Names of rules may follow; without them all are counted.
"""

from __future__ import annotations

import os
import socket
import sys
import time
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

import mpgraph as mg
from mpgraph.architectures import convnet, mlp, recurrent
from mpgraph.lowering.explain import Cost
from mpgraph.registry import lookup

RULES: list[str] = []  # those named on the command line after the table; all if none is
SMALL = {
    "784-512-10": (lambda: mlp([784, 512, 10]), 128),
    "LeNet-5": (convnet, 64),
    "recurrent 28-128-10, 28 ticks": (lambda: recurrent([28, 128, 10], ticks=28), 128),
}


class Machine(NamedTuple):
    """One GPU and its links; sustained, not peak."""

    flops: float = 200e12  # of matrix products: half of the TF32 peak of an H100
    memory: float = 2.5e12  # bytes a second
    room: float = 80e9  # bytes
    call: float = 5e-6  # seconds for which a small call occupies the CPU that launches it
    links: Any = ((8, 300e9, 20e-6), (512, 40e9, 60e-6))  # GPUs, bytes a second of each in a ring, seconds of a round


def alone() -> dist.ProcessGroup:
    """A group of this process, so that code with collectives is written."""
    if not dist.is_initialized():
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    return dist.group.WORLD


def costs(network: mg.Network, batch: int) -> Iterator[tuple[str, Cost]]:
    """Of a step under each rule, on the meta device."""
    for name in RULES:
        program = mg.compile(network, lookup("mpgraph.protocols", name)(), device="meta", group=alone())
        yield name, program.cost(batch)


def counted() -> None:
    """Every rule on small networks of each kind."""
    for title, (build, batch) in SMALL.items():
        print(f"\n{title}, batch {batch} in each process\n")
        header("rule", "FLOPs", "moved", "state", "sent", "rounds")
        for name, cost in costs(build(), batch):
            row(f"`{name}`", *map(short, (cost.flops, cost.bytes, cost.state, cost.sent)), str(cost.rounds))


# -- measured -----------------------------------------------------------------------------------------------


def measured() -> None:
    """Two processes of this machine, each with half of a batch: a step with all-reduces, and the same without."""
    network, batch = SMALL["784-512-10"]
    print(
        f"\n784-512-10, batch {batch} in each of 2 processes, torch {torch.__version__}, one thread each; the fastest"
    )
    print(f"of 40 steps, load {os.getloadavg()[0]:.1f}\n")
    header("rule", "sent", "rounds", "ms without", "ms with", "ms of the rounds")
    for name in RULES:
        cost = mg.compile(network(), lookup("mpgraph.protocols", name)(), group=alone()).cost(batch)
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        context = torch.multiprocessing.get_context("spawn")
        results = context.Queue()
        workers = [context.Process(target=_pair, args=(rank, port, name, results)) for rank in range(2)]
        for worker in workers:
            worker.start()
        (without, together) = results.get(timeout=300)
        for worker in workers:
            worker.join()
        values = (1e3 * without, 1e3 * together, 1e3 * (together - without))
        row(f"`{name}`", short(cost.sent), str(cost.rounds), *(f"{v:.2f}" for v in values))


def _pair(rank: int, port: int, name: str, results: Any) -> None:
    """The fastest of interleaved steps, in one of the processes."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    dist.init_process_group("gloo", init_method=f"tcp://localhost:{port}", rank=rank, world_size=2)
    build, batch = SMALL["784-512-10"]
    x, y = torch.rand(batch, 784), torch.arange(batch) % 10
    programs = [mg.compile(build(), lookup("mpgraph.protocols", name)(), group=g) for g in ("alone", dist.group.WORLD)]
    states, times = [p.init(batch_size=batch) for p in programs], ([], [])
    for turn in range(45):
        for i, program in enumerate(programs):
            dist.barrier()
            start = time.perf_counter()
            states[i], _ = program.step(states[i], x, y)
            if turn >= 5:
                times[i].append(time.perf_counter() - start)
    if rank == 0:
        results.put([min(found) for found in times])  # other work on the machine only adds to a time
    dist.barrier()
    dist.destroy_process_group()


# -- on paper -----------------------------------------------------------------------------------------------


def resnet50() -> mg.Network:
    """The ImageNet network of He et al. (2016) with bottlenecks, the stride in their 3x3 convolutions."""
    network = mg.Network()
    network.input("x", (3, 224, 224))

    def normalized(name: str, below: str, channels: int, convolution: mg.Conv2d, kind: str = "relu") -> str:
        size = convolution.size(network.shape(below), channels)
        network.unit(f"{name}.norm", size, mg.BatchNorm(), bias=False)
        network.unit(name, size, kind)
        network.connect(below, f"{name}.norm", convolution)
        network.connect(f"{name}.norm", name, mg.OneToOne(shared=(1, 2)), weight=1.0)
        return name

    below = network.operation("pool", mg.MaxPool(3, 2, 1), normalized("stem", "x", 64, mg.Conv2d(7, 2, 3)))
    for stage, blocks in enumerate((3, 4, 6, 3)):
        for block in range(blocks):
            name, width, stride = f"s{stage + 1}b{block + 1}", 64 << stage, 2 if stage and not block else 1
            middle = normalized(f"{name}.1", below, width, mg.Conv2d(1))
            middle = normalized(f"{name}.2", middle, width, mg.Conv2d(3, stride, 1))
            top = normalized(name, middle, 4 * width, mg.Conv2d(1))
            if block:
                network.connect(below, top, "identity")
            else:
                network.unit(f"{name}.short", network.shape(top), mg.BatchNorm(), bias=False)
                network.connect(below, f"{name}.short", mg.Conv2d(1, stride))
                network.connect(f"{name}.short", top, mg.OneToOne(shared=(1, 2)), weight=1.0)
            below = top
    network.connect(network.operation("average", "global_avg_pool", below), network.unit("y", 1000))
    network.loss("y", "cross_entropy")
    return network


def synapses() -> mg.Network:
    """Four dense layers of 16384 units: 1.07e9 weights."""
    return mlp([16384] * 5, "tanh")


def paper() -> None:
    """Seconds of a step by the slowest of products, memory and calls, and of its sums over processes."""
    machine = Machine()
    for title, network, batch in (("ResNet-50", resnet50, 32), ("1.07e9 synapses", synapses, 32)):
        print(f"\n{title}, {batch} examples for each GPU\n")
        columns = [f"{word} on {gpus}" for gpus, _, _ in machine.links for word in ("ms of sums", "limit")]
        header("rule", "TFLOPs", "GB moved", "GB of state", "GB sent", "rounds", "ms of a step", *columns)
        for name, cost in costs(network(), batch):
            parts = {
                "products": cost.flops / machine.flops,
                "memory": cost.bytes / machine.memory,
                "calls": cost.calls * machine.call,
            }
            step = max(parts.values())
            cells = [f"{cost.flops / 1e12:.3g}", *(f"{n / 1e9:.3g}" for n in (cost.bytes, cost.state, cost.sent))]
            cells += [str(cost.rounds), f"{1e3 * step:.3g}"]
            for gpus, rate, latency in machine.links:
                moved, waited = 2 * (gpus - 1) / gpus * cost.sent / rate, cost.rounds * latency
                limits = {**parts, "links": moved, "latency": waited}
                limit = "room" if cost.state > machine.room else max(limits, key=limits.__getitem__)
                cells += [f"{1e3 * (moved + waited):.3g}", limit]
            row(f"`{name}`", *cells)


# -- tables -------------------------------------------------------------------------------------------------


def short(number: float) -> str:
    """Three digits and a unit."""
    for unit in ("", "k", "M", "G"):
        if abs(number) < 1000:
            return f"{number:.3g}{unit}"
        number /= 1000
    return f"{number:.3g}T"


def header(*cells: str) -> None:
    row(*cells)
    row(*["---"] * len(cells))


def row(*cells: str) -> None:
    print("| " + " | ".join(cells) + " |", flush=True)


def main() -> int:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", mg.FlatUnitWarning)
    RULES.extend(sys.argv[2:] or mg.list_protocols())
    if sys.argv[1:2] == ["counted"]:
        counted()
    elif sys.argv[1:2] == ["measured"]:
        measured()
    elif sys.argv[1:2] == ["paper"]:
        paper()
    else:
        print(__doc__)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
