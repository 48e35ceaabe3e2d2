"""BLUR: a meta-step by gradient, and a population of genomes side by side; the same in plain torch."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot

import mpgraph as mg
from benchmarks.harness import OURS, Case, Workload, cost
from mpgraph.architectures import mlp
from mpgraph.protocols import BLUR
from mpgraph.threads import side_by_side

SCRIPT = "torch by hand"
Weights = dict[str, Tensor]


def published() -> BLUR:
    """The rule of the published code, with labels as +1 and -1."""
    return BLUR.published(feedback="sign", eta_tilde=-1e-4)


def forward(g: Mapping[str, Tensor], s: Weights, x: Tensor) -> tuple[Tensor, Tensor]:
    """States of the hidden and output units, (k, batch, units); weights are (k, above, below)."""
    hidden = g["nu"][:, 0, None, None] * (x @ s["w1"].mT) + (g["nu"].sum(1)[:, None] * s["b1"]).unsqueeze(1)
    hidden = torch.tanh(g["eta"] * hidden)
    mixed = torch.tensordot(g["nu"], hidden, 1)
    output = g["eta"] * (mixed @ s["w2"].mT + (g["nu"].sum(1)[:, None] * s["b2"]).unsqueeze(1))
    return hidden, output


def script(g: Mapping[str, Tensor], s: Weights, x: Tensor, t: Tensor) -> Weights:
    """One update of a network of one hidden layer; ``t`` is +1 and -1."""
    hidden, output = forward(g, s, x)
    output = torch.stack([output[0], t])  # feedback replaces state 1
    down = torch.tensordot(g["mu"], output, 1) @ s["v2"]
    hidden = torch.tanh(g["f"] * hidden + g["eta"] * down)

    def hebb(sent: Tensor, received: Tensor) -> Tensor:
        """For each channel, the products of what is below and above; (k, above, below)."""
        return (g["eta_tilde"] * torch.tensordot(g["mu_tilde"], received, 1)).mT @ torch.tensordot(
            g["nu_tilde"].mT, sent, 1
        )

    def bias(received: Tensor) -> Tensor:
        up = g["eta_tilde"] * torch.tensordot(g["mu_tilde"], received, 1).sum(1)
        return up * g["nu_tilde"].sum(0)[:, None]

    inputs = g["nu_tilde"][0, :, None, None] * x
    above = g["eta_tilde"] * torch.tensordot(g["mu_tilde"], hidden, 1)
    return {
        "w1": g["f_tilde"] * s["w1"] + above.mT @ inputs,
        "b1": g["f_tilde"] * s["b1"] + bias(hidden),
        "w2": g["f_tilde"] * s["w2"] + hebb(hidden, output),
        "v2": g["f_tilde"] * s["v2"] + hebb(output, hidden).mT,
        "b2": g["f_tilde"] * s["b2"] + bias(output),
    }


def weights(start: Any) -> Weights:
    """Those of a program's state, channels first."""
    places = {
        "w1": ("x->h1", "w"),
        "b1": ("h1.bias", "w"),
        "w2": ("h1->y", "w"),
        "v2": ("h1->y", "v"),
        "b2": ("y.bias", "w"),
    }
    return {name: start[node][channel].movedim(-1, 0).contiguous() for name, (node, channel) in places.items()}


def targets(y: Tensor, x: Tensor) -> Tensor:
    """+1 and -1."""
    return 2.0 * one_hot(y, 10).to(x.dtype) - 1.0


def meta_step(sizes: Sequence[int], updates: int, quick: bool, device: str) -> Case:
    """Updates on batches of 128, the loss of a fresh batch, meta-gradient, Adam."""
    batch = 8 if quick else 128
    rule = published()
    program = mg.compile(mlp(list(sizes), activation="tanh"), rule, device=device)
    adam, start = torch.optim.Adam(rule.parameters(), lr=0.0), program.init()
    xs = torch.randn(updates + 1, batch, sizes[0], device=device)
    ys = torch.randint(0, 10, (updates + 1, batch), device=device)

    def learn(z: Tensor) -> Tensor:
        loss = cross_entropy(z, ys[updates])
        adam.zero_grad()
        loss.backward()
        adam.step()
        return loss.detach()

    def ours() -> Tensor:
        state = start
        for x, y in zip(xs[:updates], ys, strict=False):
            state, _ = program.step(state, x, y)
        return learn(program.predict(state, xs[updates]))

    genome = {name.removeprefix("genome."): p for name, p in rule.named_parameters()}

    def by_hand() -> Tensor:
        s = weights(start)
        for x, y in zip(xs[:updates], ys, strict=False):
            s = script(genome, s, x, targets(y, x))
        return learn(forward(genome, s, xs[updates])[1][0])

    return Case({OURS: ours, SCRIPT: by_hand}, SCRIPT, cost(program, batch, 3 * updates))


def population(quick: bool, device: str) -> Case:
    """Accuracy after updates of every genome of a population, on twenty batches."""
    size, updates, batches, batch = (4, 2, 2, 16) if quick else (80, 15, 20, 128)
    sizes = [196, 512, 10]
    rule = published()
    program = mg.compile(mlp(sizes, activation="tanh"), rule, device=device)
    program.prepare(batch)
    start = program.init()
    xs, ys = torch.randn(updates, batch, 196, device=device), torch.randint(0, 10, (updates, batch), device=device)
    tests = torch.randn(batches * batch, 196, device=device)
    labels = torch.randint(0, 10, (batches * batch,), device=device)
    genomes = {
        name: p.detach() + 0.05 * torch.randn(size, *p.shape, device=device) * p.detach().abs()
        for name, p in rule.named_parameters()
    }

    def right(z: Tensor) -> Tensor:
        return (z.argmax(1) == labels).to(z.dtype).mean()

    def ours_one(genome: dict[str, Tensor]) -> Tensor:
        state = start
        for x, y in zip(xs, ys, strict=True):
            state, _ = program.step(state, x, y, parameters=genome)
        return right(program.predict(state, tests, parameters=genome))

    def by_hand_one(genome: dict[str, Tensor]) -> Tensor:
        genome = {name.removeprefix("genome."): p for name, p in genome.items()}
        s = weights(start)
        for x, y in zip(xs, ys, strict=True):
            s = script(genome, s, x, targets(y, x))
        return right(forward(genome, s, tests)[1][0])

    def of_all(function: Any) -> Any:
        """Twenty genomes in a call; the four calls are shared out to threads, as estimators do it."""
        vmapped = torch.vmap(function)

        @torch.no_grad()
        def contestant() -> Tensor:
            chunks = [{name: p[at : at + 20] for name, p in genomes.items()} for at in range(0, size, 20)]
            return torch.cat(side_by_side(vmapped, chunks, torch.get_num_threads())).mean()

        return contestant

    predictions = cost(program, batch, size * (updates + batches / 2))
    return Case({OURS: of_all(ours_one), SCRIPT: of_all(by_hand_one)}, SCRIPT, predictions, tolerance=1e-2)


WORKLOADS = [
    Workload(
        "blur_meta_step",
        "BLUR, meta-step 784-512-10, batch 128, 10 updates",
        functools.partial(meta_step, [784, 512, 10], 10),
        None,
        {1: 1.05, 2: 0.73},
    ),
    Workload(
        "blur_meta_step_small",
        "BLUR, meta-step 196-512-10, batch 128, 15 updates",
        functools.partial(meta_step, [196, 512, 10], 15),
        None,
        {1: 0.57, 2: 0.43},
    ),
    Workload(
        "blur_population", "BLUR, 80 genomes, 196-512-10, 15 updates, 20 test batches", population, None, {2: 13.6}
    ),
]
