"""Initial values of channels: functions ``(shape, node, generator, dtype) -> tensor`` on the CPU."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol as Interface

import torch
from torch import Generator, Tensor


class Sized(Interface):
    """What an initializer may ask of a node."""

    @property
    def fan_in(self) -> int:
        """Number of weights that reach one agent of the next unit."""

    @property
    def fan_out(self) -> int:
        """Number of weights that leave one agent of the previous unit."""


Initializer = Callable[[tuple[int, ...], Sized, Generator, torch.dtype], Tensor]


def xavier_uniform(shape: tuple[int, ...], node: Sized, generator: Generator, dtype: torch.dtype) -> Tensor:
    """Uniform in +-sqrt(6 / (fan_in + fan_out)) (Glorot and Bengio, 2010); written ``slow(init=mg.xavier_uniform)``.

    Args:
        shape: of the tensor.
        node: where it is kept, with ``fan_in`` and ``fan_out``.
        generator: on the CPU, made from the seed and the names of node and channel.
        dtype: of the result; sampled in float64.
    """
    bound = math.sqrt(6.0 / max(1, node.fan_in + node.fan_out))
    return (2.0 * torch.rand(shape, generator=generator, dtype=torch.float64, device="cpu") - 1.0).mul(bound).to(dtype)


def normal(std: float = 1.0, mean: float = 0.0) -> Initializer:
    """Gaussian of the given mean and standard deviation."""

    def sample(shape: tuple[int, ...], node: Sized, generator: Generator, dtype: torch.dtype) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu").mul(std).add(mean).to(dtype)

    return sample


def constant(value: float) -> Initializer:
    """The same number everywhere."""

    def fill(shape: tuple[int, ...], node: Sized, generator: Generator, dtype: torch.dtype) -> Tensor:
        return torch.full(shape, value, dtype=dtype, device="cpu")

    return fill


zeros = constant(0.0)
