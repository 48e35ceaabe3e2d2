"""Recurrent networks, unrolled by ticks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

import mpgraph as mg
from mpgraph.arguments import Arguments


def recurrent(
    sizes: Sequence[int],
    ticks: int,
    activation: str | mg.Activation | Callable[[Tensor], Tensor] = "tanh",
    loss: str | mg.Loss | None = "cross_entropy",
) -> mg.Network:
    """Elman's network (1990): each hidden layer ``h1, ...`` receives its own activity of the tick before.

    The output ``y`` is linear. Inputs are ``(batch, ticks, sizes[0])``; the prediction is that of the last tick.

    Args:
        sizes: numbers of units from input to output, at least three.
        ticks: length of a sequence; of any length with ``mg.compile(..., sequences=True)`` or ``online=True``.
        activation: of the hidden layers.
        loss: on the output; ``None`` for a network without one.

    Raises:
        NetworkError: for fewer than three sizes or two ticks, or sizes that are not positive integers.
    """
    check = Arguments("recurrent", mg.NetworkError)
    sizes, ticks = check.sizes("sizes", sizes, 3), check.integer("ticks", ticks, 2)
    network = mg.Network(ticks=ticks)
    below = network.input("x", sizes[0])
    for depth, size in enumerate(sizes[1:-1], start=1):
        hidden = network.unit(f"h{depth}", size, activation)
        network.connect(below, hidden)
        network.connect(hidden, hidden, delay=1)
        below = hidden
    network.connect(below, network.unit("y", sizes[-1]))
    if loss is not None:
        network.loss("y", loss)
    return network
