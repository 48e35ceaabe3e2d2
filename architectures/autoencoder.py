"""Autoencoders."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

import mpgraph as mg
from mpgraph.arguments import Arguments


def autoencoder(
    sizes: Sequence[int] = (784, 128, 32),
    activation: str | mg.Activation | Callable[[Tensor], Tensor] = "tanh",
    loss: str | mg.Loss | None = "l2",
    tied: bool = False,
) -> mg.Network:
    """From ``x`` down to the code and back up to ``y``, which is trained to be ``x``: ``program.step(state, x, x)``.

    Args:
        sizes: numbers of units from the input to the code, at least two.
        activation: of all layers but the output, which is linear.
        loss: on the output; ``None`` for a network without one.
        tied: whether the decoder uses the encoder's weights, transposed.

    Raises:
        NetworkError: for fewer than two sizes, or sizes that are not positive integers.
    """
    sizes = Arguments("autoencoder", mg.NetworkError).sizes("sizes", sizes, 2)
    network = mg.Network()
    below, wires = network.input("x", sizes[0]), []
    for depth, size in enumerate(sizes[1:], start=1):
        unit = network.unit("code" if depth == len(sizes) - 1 else f"down{depth}", size, activation)
        wires.append(network.connect(below, unit))
        below = unit
    for depth in range(len(sizes) - 2, -1, -1):
        unit = network.unit("y" if depth == 0 else f"up{depth}", sizes[depth], "identity" if depth == 0 else activation)
        network.connect(below, unit, tied=wires[depth] if tied else None, transposed=tied)
        below = unit
    if loss is not None:
        network.loss("y", loss)
    return network
