"""Layers joined by sparse random connections."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

import mpgraph as mg
from mpgraph.arguments import Arguments


def layered_sparse(
    sizes: Sequence[int],
    fan_in: int = 10,
    activation: str | mg.Activation | Callable[[Tensor], Tensor] = "tanh",
    loss: str | mg.Loss | None = "cross_entropy",
    bias: bool = True,
    seed: int = 0,
) -> mg.Network:
    """Layers ``x, h1, ..., y`` in which each neuron is connected from a few random neurons of the layer below.

    Args:
        sizes: numbers of units from input to output, at least two.
        fan_in: number of different neurons that each one receives from; all of them in a layer that has fewer.
        activation: of the hidden layers; the output is linear.
        loss: on the output ``y``; ``None`` for a network without one.
        bias: whether units have biases.
        seed: of the connections.

    Raises:
        NetworkError: for fewer than two sizes, or a size or fan-in that is not a positive integer.
    """
    check = Arguments("layered_sparse", mg.NetworkError)
    sizes = check.sizes("sizes", sizes, 2)
    sizes = [check.integer(f"sizes[{i}]", size, 1) for i, size in enumerate(sizes)]
    fan_in, seed = check.integer("fan_in", fan_in, 1), check.seed("seed", seed)
    network, generator = mg.Network(), random.Random(seed)
    units = [network.input("x", sizes[0])]
    for depth, size in enumerate(sizes[1:], start=1):
        is_output = depth == len(sizes) - 1
        name = "y" if is_output else f"h{depth}"
        units.append(network.unit(name, size, "identity" if is_output else activation, bias=bias))
    for (before, pre), (after, post) in pairwise(zip(sizes, units, strict=True)):
        drawn = [sorted(generator.sample(range(before), min(fan_in, before))) for _ in range(after)]
        sources = torch.tensor(drawn, device="cpu")
        targets = torch.arange(after, device="cpu")[:, None].expand_as(sources)
        network.connect(pre, post, mg.Sparse(torch.stack([sources.flatten(), targets.flatten()])))
    if loss is not None:
        network.loss(units[-1], loss)
    return network
