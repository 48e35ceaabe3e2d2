"""Residual networks for small images."""

from __future__ import annotations

import mpgraph as mg
from mpgraph.arguments import Arguments


def resnet(
    depth: int = 20,
    image: tuple[int, int, int] = (3, 32, 32),
    classes: int = 10,
    *,
    width: int = 16,
    loss: str | mg.Loss | None = "cross_entropy",
) -> mg.Network:
    """The CIFAR networks of He et al. (2016), section 4.2: three stages of ``(depth - 2) / 6`` blocks.

    A block is two 3x3 convolutions with batch normalization; the first block of the second and third stage halves the
    image and doubles the channels, and its shortcut is a 1x1 convolution with batch normalization (their option B;
    every other shortcut is the identity).

    Args:
        depth: 8, 14, 20, ...
        image: ``(channels, height, width)`` of the input ``x``.
        classes: units of the output ``y``.
        width: channels of the first stage.
        loss: on the output; ``None`` for a network without one.

    Raises:
        NetworkError: for a depth that is not 6 n + 2.
    """
    check = Arguments("resnet", mg.NetworkError)
    depth, classes, width = (
        check.integer(name, value, low)
        for name, value, low in (("depth", depth, 8), ("classes", classes, 1), ("width", width, 1))
    )
    if (depth - 2) % 6:
        raise mg.NetworkError(f"resnet: depth must be 8, 14, 20, ... (6 n + 2), got {depth}")
    network = mg.Network()
    network.input("x", image)
    if len(network.shape("x")) != 3:
        check.refuse("image", image, "(channels, height, width)")
    below = _normalized(network, "stem", "x", width, mg.Conv2d(3, padding=1))
    for stage in range(3):
        for block in range((depth - 2) // 6):
            stride = 2 if stage and not block else 1
            below = _block(network, f"s{stage + 1}b{block + 1}", below, width * 2**stage, stride)
    pooled = network.operation("pool", "global_avg_pool", below)
    network.connect(pooled, network.unit("y", classes))
    if loss is not None:
        network.loss("y", loss)
    return network


def _block(network: mg.Network, name: str, below: str, channels: int, stride: int) -> str:
    first = _normalized(network, f"{name}.1", below, channels, mg.Conv2d(3, stride, 1))
    top = _normalized(network, f"{name}.2", first, channels, mg.Conv2d(3, padding=1))
    if stride == 1:
        network.connect(below, top, "identity")
    else:
        shortcut = mg.Conv2d(1, stride)
        network.unit(f"{name}.short", network.shape(top), mg.BatchNorm(), bias=False)
        network.connect(below, f"{name}.short", shortcut)
        network.connect(f"{name}.short", top, _gain(), weight=1.0)
    return top


def _normalized(network: mg.Network, name: str, below: str, channels: int, convolution: mg.Conv2d) -> str:
    """A convolution, batch normalization with gain and bias, and a ReLU; the latter's name."""
    size = convolution.size(network.shape(below), channels)
    network.unit(f"{name}.norm", size, mg.BatchNorm(), bias=False)
    network.unit(name, size, "relu")
    network.connect(below, f"{name}.norm", convolution)
    network.connect(f"{name}.norm", name, _gain(), weight=1.0)
    return name


def _gain() -> mg.Connection:
    return mg.OneToOne(shared=(1, 2))
