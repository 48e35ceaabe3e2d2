"""Convolutional networks like LeNet."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from torch import Tensor

import mpgraph as mg
from mpgraph.arguments import Arguments


def convnet(
    image: tuple[int, int, int] = (1, 28, 28),
    channels: Sequence[int] = (6, 16),
    hidden: Sequence[int] = (120, 84),
    classes: int = 10,
    *,
    kernel: int = 5,
    pool: Literal["max", "avg"] = "max",
    activation: str | mg.Activation | Callable[[Tensor], Tensor] = "tanh",
    loss: str | mg.Loss | None = "cross_entropy",
) -> mg.Network:
    """LeNet-5 by default (LeCun et al., 1998): convolutions ``c1, c2`` with pooling ``p1, p2``, then ``h1, h2, y``.

    As is usual today, it differs from the paper: every feature map is connected from all maps below, and the output is
    linear. The first
    convolution is padded so that a 28-pixel image keeps its size.

    Args:
        image: ``(channels, height, width)`` of the input ``x``.
        channels: feature maps of each convolution.
        hidden: units of each dense layer.
        classes: units of the output ``y``.
        kernel: side of the kernels.
        pool: maximum or average of 2x2 windows.
        activation: of all hidden units.
        loss: on the output; ``None`` for a network without one.

    Raises:
        NetworkError: for an image that is too small, or numbers that are not positive integers.
    """
    check = Arguments("convnet", mg.NetworkError)
    channels, hidden = check.sizes("channels", channels, 0), check.sizes("hidden", hidden, 0)
    classes, kernel = check.integer("classes", classes, 1), check.integer("kernel", kernel, 1)
    pools = {"max": mg.MaxPool(2), "avg": mg.AvgPool(2)}
    pooling = pools[check.choice("pool", pool, pools)]
    network = mg.Network()
    below = network.input("x", image)
    if len(network.shape("x")) != 3:
        check.refuse("image", image, "(channels, height, width)")
    for depth, count in enumerate(channels, start=1):
        convolution = mg.Conv2d(kernel, padding=kernel // 2 if depth == 1 else 0)
        size = convolution.size(network.shape(below), count)
        if min(size[1:]) < 2:
            raise mg.NetworkError(f"convnet: image={image} is too small: convolution {depth} leaves {size[1:]}")
        unit = network.unit(f"c{depth}", size, activation)
        network.connect(below, unit, convolution)
        below = network.operation(f"p{depth}", pooling, unit)
    below = network.operation("flat", "flatten", below)
    for depth, count in enumerate(hidden, start=1):
        unit = network.unit(f"h{depth}", count, activation)
        network.connect(below, unit)
        below = unit
    network.connect(below, network.unit("y", classes))
    if loss is not None:
        network.loss("y", loss)
    return network
