"""Multilayer perceptron."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

import mpgraph as mg
from mpgraph.arguments import Arguments


def mlp(
    sizes: Sequence[int],
    activation: str | mg.Activation | Callable[[Tensor], Tensor] = "tanh",
    loss: str | mg.Loss | None = "cross_entropy",
    bias: bool = True,
    weight: float | None = None,
    heads: Mapping[str, tuple[int, str]] | None = None,
) -> mg.Network:
    """Fully connected layers ``x, h1, ..., y``; outputs are linear.

    Args:
        sizes: numbers of units from input to output, at least two.
        activation: of the hidden layers.
        loss: on the output ``y``; ``None`` for a network without a loss.
        bias: whether units have biases.
        weight: that all connections begin with; by default the rule samples them.
        heads: further outputs beside ``y``, connected from the same layer: by name the number of units and the loss,
            ``{"image": (64, "l2")}``.

    Raises:
        NetworkError: for fewer than two sizes, sizes that are not positive integers, or heads that are not such pairs.
    """
    check = Arguments("mlp", mg.NetworkError)
    sizes = check.sizes("sizes", sizes, 2)
    others = check.annotated("heads", heads or {}, Mapping[str, tuple[int, str]])
    network = mg.Network()
    below = network.input("x", sizes[0])
    for depth, size in enumerate(sizes[1:-1], start=1):
        hidden = network.unit(f"h{depth}", size, activation, bias=bias)
        network.connect(below, hidden, weight=weight)
        below = hidden
    for name, (size, cost) in [("y", (sizes[-1], loss)), *others.items()]:
        output = network.unit(name, size, bias=bias)
        network.connect(below, output, weight=weight)
        if cost is not None:
            network.loss(output, cost)
    return network
