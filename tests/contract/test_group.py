"""A batch spread over processes gives the states that one process gives for the whole batch."""

import json
import os
import signal
import time
import warnings
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from graphs import GRAPHS
from processes import together
from rules import Echo, Memories, TwoStates

import mpgraph as mg
from mpgraph.architectures import convnet, mlp, recurrent
from mpgraph.protocols import MPLP, Backprop, BLUR
from mpgraph.protocols.backprop import Weight
from mpgraph.registry import lookup

SLICE, PROCESSES = 3, 2
NETWORKS = {
    "dense": lambda: mlp([4, 5, 4, 3], "tanh"),
    "convolutional": lambda: convnet((1, 8, 8), channels=(2, 3), hidden=(4,), classes=3, kernel=3),
    "recurrent": lambda: recurrent([4, 5, 3], ticks=3),
}


class Reducing(Weight):
    """A weight that reduces over the batch in every way, also within what belongs to single examples."""

    high, low, spread = mg.slow(), mg.slow(), mg.slow(2)
    level, top = mg.common(), mg.common()
    trace = mg.carry(init=lambda shape, node, generator, dtype: torch.randn(shape, generator=generator, dtype=dtype))

    def learn_update(self, s):
        product = s.e * s.x
        mean = s.examples(product)
        grown = s.examples(s.e * s.x * torch.tanh(s.e))  # multiplied with what an example has
        s = s.set(high=s.examples(product, "max"), low=s.examples(product, "min"))
        s = s.set(spread=torch.stack([(product - mean) ** 2, s.population(grown * s.x)]))
        s = s.set(level=s.all(product) + s.level, top=s.all(product, "max"))
        s = s.set(trace=0.5 * s.trace + grown * s.x - s.cumsum(mean))
        return s.descend(w=mean + 0.1 * s.trace + 0.1 / s.examples(1.0, "sum"))


class Everything(Backprop):
    agents = {"weight": Reducing, "bias": Weight}  # noqa: RUF012


class Centered(mg.Activation):
    """Needs all examples, in a way that the engine knows nothing of."""

    over = "batch"

    def apply(self, z):
        return torch.tanh(z - z.mean(0) + 0.1 * torch.logsumexp(z, 0))


def centered():
    network = mg.Network()
    network.input("x", 4), network.unit("h", 5, Centered()), network.unit("y", 3)
    network.connect("x", "h"), network.connect("h", "y")
    network.loss("y", "cross_entropy")
    return network


def normalized(momentum=0.1):
    network = mg.Network()
    network.input("x", (2, 4, 4)), network.unit("h", (3, 2, 2), mg.BatchNorm(momentum=momentum)), network.unit("y", 3)
    network.connect("x", "h", mg.Conv2d(3))
    network.operation("r", "flatten", "h")
    network.connect("r", "y")
    network.loss("y", "cross_entropy")
    return network


def cases():
    """Name, network and rule of everything that is compared."""
    for rule in mg.list_protocols():
        for network, build in NETWORKS.items():
            yield f"{rule} on {network}", build, lookup("mpgraph.protocols", rule)
    for graph, build in GRAPHS.items():
        for rule in (Backprop, Everything):
            yield f"{rule.__name__} on {graph}", build, rule
    for network, build in NETWORKS.items():
        for rule in (Everything, Memories, TwoStates, Echo):
            yield f"{rule.__name__} on {network}", build, rule
    yield "Everything on a function of the batch", centered, Everything
    for rule in (Backprop, BLUR, Everything):
        yield f"{rule.__name__} on a normalized image", normalized, rule
    adam = lambda: Backprop(optimizer=mg.Adam(0.01))  # noqa: E731
    yield "Adam", NETWORKS["convolutional"], adam
    yield "regions", NETWORKS["dense"], lambda: mg.Regions({"*y*": MPLP(), "*": Backprop()})


def problem(network, size, seed=0):
    generator = torch.Generator().manual_seed(seed)
    ticks = (network.ticks,) if network.ticks > 1 else ()
    x = {n: torch.randn(size, *ticks, *network.shape(n), generator=generator).double() for n in network.inputs}
    (loss,) = network.losses.values()
    return x, torch.randint(0, *network.shape(loss.pre), (size,), generator=generator)


def rows(tensors, rank):
    part = slice(rank * SLICE, (rank + 1) * SLICE)
    return {n: t[part] for n, t in tensors.items()} if isinstance(tensors, dict) else tensors[part]


def distance(build, rule, rank):
    """Between a group's states, losses, predictions and noise and those of one process, over three steps."""
    one = mg.compile(build(), rule(), dtype=torch.float64)
    many = mg.compile(build(), rule(), dtype=torch.float64, group=dist.group.WORLD)
    state, parts = one.init(1, batch_size=SLICE * PROCESSES), many.init(1, batch_size=SLICE)
    pairs = []

    def compare():
        for node, channels in state.items():
            for channel, tensor in channels.items():
                carry = node != "program" and one.graph.channels[node][channel].extent == "carry"
                pairs.append((parts[node][channel], rows(tensor, rank) if carry else tensor))

    compare()
    phases = [*one.protocol.phases]
    for step, phase in enumerate(phases + [None] * (3 - len(phases))):
        x, y = problem(one.graph.network, SLICE * PROCESSES, step)
        own, whole = many.noise(parts, SLICE, phase=phase), one.noise(state, SLICE * PROCESSES, phase=phase)
        pairs += [(own[n], rows(t, rank) if len(t) == SLICE * PROCESSES else t) for n, t in whole.items()]
        state, expected = one.step(state, x, y, phase=phase)
        parts, out = many.step(parts, rows(x, rank), rows(y, rank), phase=phase)
        compare()
        pairs += [(out.losses[n], loss) for n, loss in expected.losses.items()]
        pairs.append((out.prediction, rows(expected.prediction, rank)))
        pairs.append((many.predict(parts, rows(x, rank)), rows(one.predict(state, x), rank)))
    return max(float((a - b).abs().max()) for a, b in pairs if a.numel())


def follow(folder):
    """What each process does: every case, one after the other."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    rank, found = dist.get_rank(), {}
    for name, build, rule in cases():
        t=time.time()
        try:
            found[name] = distance(build, rule, rank)
        except Exception as error:
            found[name] = f"{type(error).__name__}: {error}"
        if rank==0: print(name, time.time()-t)
    (folder / f"{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()
