"""Tensors that a person gives to a network: copied, so that changing them later changes no network and no program."""

from __future__ import annotations

from copy import copy
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from mpgraph.errors import NetworkError

Thing = TypeVar("Thing")


def own_tensor(what: str, value: Any) -> Tensor:
    """A copy of a tensor, array, number or list of numbers, on the CPU and without gradient.

    Numbers of Python keep their double precision.

    Args:
        what: it is, for errors.
        value: the caller's.

    Raises:
        NetworkError: for what holds no real numbers.
    """
    if isinstance(value, Tensor):
        if value.is_meta or value.is_complex() or value.dtype == torch.bool:
            raise NetworkError(f"{what} must hold real numbers, got {value.dtype} on {value.device}")
        dense = value.detach().to_dense() if value.layout != torch.strided else value.detach()
        return dense.cpu().clone(memory_format=torch.contiguous_format)
    try:
        array = np.array(value)  # a copy; numbers of Python become float64 or int64
        if array.dtype.kind not in "iuf":
            raise TypeError(f"they are of type {array.dtype}")
        return torch.from_numpy(np.ascontiguousarray(array).reshape(array.shape))
    except (TypeError, ValueError, RuntimeError) as error:
        text = " ".join(repr(value).split())[:80]
        raise NetworkError(f"{what} must be a tensor, an array or a number, got {text}: {error}") from None


def with_own_tensors(thing: Thing) -> Thing:
    """A copy of an activation, operation, loss or connection that shares no tensor with the one given.

    Tensors that require a gradient stay the caller's: they are there to be learned from outside.
    """
    other = copy(thing)
    for name, value in getattr(other, "__dict__", {}).items():
        if isinstance(value, Tensor) and not value.requires_grad:
            vars(other)[name] = value.clone()
        elif isinstance(value, np.ndarray):
            vars(other)[name] = value.copy()
    return other
