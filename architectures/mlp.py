"""Multilayer perceptron."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

import mpgraph as mg
from mpgraph.arguments import Arguments


def mlp(
    sizes: Sequence[int],
    activation: str | mg.Activation | Callable[[Tensor], Tensor] = "tanh",
    loss: str | mg.Loss | None = "cross_entropy",
    bias: bool = True,
    weight: float | None = None,
) -> mg.Network:
    """Fully connected layers ``x, h1, ..., y``; the output is linear.

    Args:
        sizes: numbers of units from input to output, at least two.
        activation: of the hidden layers.
        loss: on the output ``y``; ``None`` for a network without a loss.
        bias: whether units have biases.
        weight: that all connections begin with; by default the rule samples them.

    Raises:
        NetworkError: for fewer than two sizes, or sizes that are not positive integers.
    """
    sizes = Arguments("mlp", mg.NetworkError).sizes("sizes", sizes, 2)
    network = mg.Network()
    below = network.input("x", sizes[0])
    for depth, size in enumerate(sizes[1:-1], start=1):
        hidden = network.unit(f"h{depth}", size, activation, bias=bias)
        network.connect(below, hidden, weight=weight)
        below = hidden
    output = network.unit("y", sizes[-1], bias=bias)
    network.connect(below, output, weight=weight)
    if loss is not None:
        network.loss(output, loss)
    return network
