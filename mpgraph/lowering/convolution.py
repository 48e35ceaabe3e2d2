"""Convolutions of one, two and three dimensions and their gradients, which generated code calls."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional, grad


def conv1d_input(size: Sequence[int], weight: Tensor, error: Tensor, **options: Any) -> Tensor:
    """The gradient of the input of ``conv1d``."""
    return _input(size, weight, error, **options)


def conv2d_input(size: Sequence[int], weight: Tensor, error: Tensor, **options: Any) -> Tensor:
    """The gradient of the input of ``conv2d``."""
    return _input(size, weight, error, **options)


def conv3d_input(size: Sequence[int], weight: Tensor, error: Tensor, **options: Any) -> Tensor:
    """The gradient of the input of ``conv3d``."""
    return _input(size, weight, error, **options)


def _input(
    size: Sequence[int],
    weight: Tensor,
    error: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """As ``torch.nn.grad.conv2d_input``, which hands over an input of one number, expanded, that is copied at its size.

    Of 16 images of 16 channels and 32 x 32 places that copy takes longer than the gradient.
    """
    unread = error.new_empty(size)
    only, beyond = [True, False, False], [0] * len(stride)
    return torch.ops.aten.convolution_backward(
        error, unread, weight, None, stride, padding, dilation, False, beyond, groups, only
    )[0]


class Calls(NamedTuple):
    """The convolution of so many dimensions, and its gradients."""

    forward: Callable[..., Tensor]
    input: Callable[..., Tensor]
    weight: Callable[..., Tensor]


CALLS = {
    1: Calls(functional.conv1d, conv1d_input, grad.conv1d_weight),
    2: Calls(functional.conv2d, conv2d_input, grad.conv2d_weight),
    3: Calls(functional.conv3d, conv3d_input, grad.conv3d_weight),
}
