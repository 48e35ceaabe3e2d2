"""Tensors that a person gives to a network: copied, so that changing them later changes no network and no program."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from copy import copy, deepcopy
from functools import partial
from types import FunctionType, MethodType, ModuleType
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
        NetworkError: for what holds no real numbers, or NaN or infinity.
    """
    if isinstance(value, Tensor):
        if value.is_meta or value.is_complex() or value.dtype == torch.bool:
            raise NetworkError(f"{what} must hold real numbers, got {value.dtype} on {value.device}")
        dense = value.detach().to_dense() if value.layout != torch.strided else value.detach()
        return _finite(what, dense.cpu().clone(memory_format=torch.contiguous_format))
    try:
        array = np.array(value)  # a copy; numbers of Python become float64 or int64
        if array.dtype.kind not in "iuf":
            raise TypeError(f"they are of type {array.dtype}")
        tensor = torch.from_numpy(np.ascontiguousarray(array).reshape(array.shape))
    except (TypeError, ValueError, RuntimeError) as error:
        text = " ".join(repr(value).split())[:80]
        raise NetworkError(f"{what} must be a tensor, an array or a number, got {text}: {error}") from None
    return _finite(what, tensor)


def _finite(what: str, tensor: Tensor) -> Tensor:
    """The tensor, or a refusal that says which number is NaN or infinite."""
    if tensor.is_floating_point():
        wrong = (~torch.isfinite(tensor.double())).nonzero()
        if len(wrong):
            place = tuple(wrong[0].tolist())
            at = f" at {list(place)}" if place else ""
            raise NetworkError(f"{what} must hold finite numbers, got {tensor[place].item()}{at}")
    return tensor


def with_own_tensors(thing: Thing) -> Thing:
    """A copy of an activation, operation, loss or connection that shares no tensor with the one given.

    Modules, lists and dictionaries that it holds are copied with all that is in them. Tensors that require a gradient
    stay the caller's, also those in a module: they are there to be learned from outside. So does what Python cannot
    copy, as the variables around a function.
    """
    other = copy(thing)
    learned: dict[int, Any] = {}
    _find_learned(getattr(other, "__dict__", {}), learned, set())
    for name, value in getattr(other, "__dict__", {}).items():
        try:
            vars(other)[name] = deepcopy(value, learned)
        except (TypeError, ValueError, AttributeError, RuntimeError, pickle.PicklingError):  # a lock, an open file
            continue
    return other


def _find_learned(thing: Any, found: dict[int, Any], seen: set[int]) -> None:
    """Collect tensors that require a gradient, by ``id``, which is how ``deepcopy`` is told to leave them."""
    if id(thing) in seen or isinstance(thing, (str, bytes, type, np.ndarray, ModuleType, FunctionType)):
        return
    seen.add(id(thing))
    if isinstance(thing, Tensor):
        if thing.requires_grad:
            found[id(thing)] = thing
        return
    inside: list[Any] = []
    if isinstance(thing, Mapping):
        inside += thing.values()
    elif isinstance(thing, (list, tuple, set, frozenset)):
        inside += thing
    elif isinstance(thing, MethodType):
        inside.append(thing.__self__)
    elif isinstance(thing, partial):
        inside += (thing.func, thing.args, thing.keywords)
    for part in (*inside, *getattr(thing, "__dict__", {}).values()):
        _find_learned(part, found, seen)
