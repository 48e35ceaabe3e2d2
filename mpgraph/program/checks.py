"""What is wrong with a batch, a state or a device: the slow look, taken only when the quick one failed."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor

from mpgraph.errors import InputError, StateError, unknown

LABELS = frozenset((torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8))


def by_name(what: str, given: Any, names: Sequence[str], kind: str) -> tuple[Any, ...]:
    """The batches of all inputs (or outputs) in order, whether one tensor or a dictionary was given."""
    if isinstance(given, Mapping):
        for name in given:
            if name not in names:
                raise InputError(f"{what}: " + unknown(kind, name, names))
        missing = [name for name in names if name not in given]
        if missing:
            raise InputError(f"{what} lacks {kind} {', '.join(map(repr, missing))}")
        return tuple(given[name] for name in names)
    if given is None:
        raise InputError(f"{what} is missing: the network has {kind} {', '.join(map(repr, names))}")
    if len(names) > 1:
        raise InputError(f"{what}: several {kind}s ({', '.join(names)}): pass a dictionary by name")
    return (given,)


def input(name: str, tensor: Any, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
    """Refuse an input batch that does not fit, in words."""
    if not isinstance(tensor, Tensor):
        raise InputError(f"input {name!r}: expected a tensor, got {type(tensor).__name__}; use torch.as_tensor(x)")
    if tensor.ndim == 0 or tensor.shape[1:] != shape:
        fits = tensor.ndim > 1 and tensor.shape[1:].numel() == torch.Size(shape).numel()
        one = tensor.shape == shape
        hint = "; use x.flatten(1)" if fits else "; for one example use x[None]" if one else ""
        raise InputError(f"input {name!r}: expected shape {_batch(shape)}, got {tuple(tensor.shape)}{hint}")
    if tensor.dtype != dtype:
        raise InputError(
            f"input {name!r}: the program was compiled for {dtype}, got {tensor.dtype}; use x.to({dtype})"
            + (f" or mg.compile(..., dtype={tensor.dtype})" if tensor.is_floating_point() else "")
        )
    if tensor.shape[0] == 0:
        raise InputError(f"input {name!r}: the batch is empty")
    _on_device(f"input {name!r}", tensor, device)


def finite(name: str, tensor: Tensor) -> None:
    """Refuse NaN and infinity."""
    bad = ~torch.isfinite(tensor).flatten(1).all(1)
    if bool(bad.any()):
        raise InputError(f"input {name!r} holds NaN or infinity, first in example {int(bad.nonzero()[0])}")


def target(name: str, tensor: Any, size: int, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
    """Refuse targets that are neither class labels nor of the output's shape."""
    what = f"target of {name!r}"
    if not isinstance(tensor, Tensor):
        raise InputError(f"{what}: expected a tensor, got {type(tensor).__name__}; use torch.as_tensor(y)")
    if tensor.ndim == 0 or tensor.shape[0] != size:
        raise InputError(f"{what}: expected {size} examples like x, got shape {tuple(tensor.shape)}")
    if tensor.shape[1:] != shape:
        if shape == (1,) and tensor.shape == (size,):
            raise InputError(
                f"{what}: an output of one unit has no classes; pass targets of shape (batch, 1) as numbers, "
                f"y[:, None].to({dtype})"
            )
        labels = "class labels (batch,) as integers or " if len(shape) == 1 else ""
        raise InputError(
            f"{what}: expected {labels}targets {_batch(shape)}, got {tensor.dtype} of shape {tuple(tensor.shape)}"
        )
    if tensor.dtype != dtype:
        raise InputError(f"{what}: expected {dtype}, got {tensor.dtype}; use y.to({dtype})")
    _on_device(what, tensor, device)


def labels(name: str, tensor: Tensor, one_hot: Tensor) -> Tensor:
    """One-hot rows for class labels; refuse labels out of range."""
    _on_device(f"target of {name!r}", tensor, one_hot.device)
    index = tensor.long()
    if tensor.is_cpu:
        try:  # on the CPU the look-up itself tells, at no cost
            return one_hot.index_select(0, index)
        except IndexError:
            low, high = int(tensor.min()), int(tensor.max())
    else:
        low, high = (int(n) for n in torch.aminmax(tensor))
        if low >= 0 and high < len(one_hot):
            return one_hot.index_select(0, index)
    n = len(one_hot)
    raise InputError(f"target of {name!r}: labels must lie in 0..{n - 1}, got {low}..{high}; the output has {n} units")


def noise(given: Mapping[str, Tensor], wanted: Mapping[str, tuple[int | None, ...]], size: int) -> None:
    """Refuse noise of the wrong names or shapes; ``None`` in ``wanted`` stands for the batch."""
    for name, sizes in wanted.items():
        shape = tuple(size if n is None else n for n in sizes)
        if name not in given or tuple(given[name].shape) != shape:
            found = tuple(given[name].shape) if name in given else "none"
            raise InputError(
                f"noise {name!r}: expected shape {shape}, got {found}; use program.noise(state, batch_size)"
            )


def no_parameter(name: str, names: Collection[str], rule: str) -> NoReturn:
    """Refuse a name that no parameter of the rule has."""
    if not names:
        raise InputError(
            f"parameters: {name!r} cannot be replaced: {rule} has no parameters, its numbers are constants of the "
            "code. Make a number one from the start with mg.learnable(...): Backprop(lr=mg.learnable(0.1))"
        )
    short = str(name).removeprefix("protocol.")
    if short in names:
        raise InputError(f"parameters: unknown parameter {name!r}; names start at the rule: {short!r}")
    raise InputError("parameters: " + unknown("parameter", name, names))


def parameter(name: str, tensor: Any, own: Tensor) -> None:
    """Refuse a tensor that cannot stand for the rule's own parameter."""
    what = f"parameters[{name!r}]"
    if not isinstance(tensor, Tensor):
        raise InputError(f"{what}: expected a tensor, got {type(tensor).__name__}; use torch.as_tensor(...)")
    if tensor.shape != own.shape:
        many = tensor.ndim > 0 and tensor.shape[1:] == own.shape
        hint = "; map over its first axis with torch.func.vmap" if many else ""
        raise InputError(f"{what}: expected shape {tuple(own.shape)}, got {tuple(tensor.shape)}{hint}")
    if tensor.dtype != own.dtype:
        raise InputError(f"{what}: expected {own.dtype}, got {tensor.dtype}; use .to({own.dtype})")
    _on_device(what, tensor, own.device)


def channel(
    name: str,
    channel: str,
    tensor: Tensor,
    wanted: tuple[int | None, ...],
    size: int | None,
    dtype: torch.dtype,
    device: torch.device,
) -> None:
    """Refuse a state's tensor of the wrong shape, dtype or device; ``None`` in ``wanted`` stands for the batch."""
    shape = tensor.shape
    if tensor.dtype != dtype or tensor.device.type != device.type:
        raise StateError(
            f"state[{name!r}][{channel!r}] is {tensor.dtype} on {tensor.device}, the program was compiled for {dtype} "
            f"on {device}; use .to(...) on every tensor, or mg.compile(..., dtype={tensor.dtype})"
        )
    if len(shape) == len(wanted) and all(w is None or w == n for w, n in zip(wanted, shape, strict=True)):
        slots = [n for w, n in zip(wanted, shape, strict=True) if w is None]
        if not slots or size is None or slots[0] == size:
            return
        raise StateError(
            f"channel {channel!r} of node {name!r} keeps one value for each of {slots[0]} examples, but the batch has "
            f"{size}; make the state with program.init(seed, batch_size={size})"
        )
    stacked = len(shape) == len(wanted) + 1 and all(w in (None, n) for w, n in zip(wanted, shape[1:], strict=True))
    own = "was it made by this program's init?"
    hint = "a stack of states goes through torch.func.vmap(program.step)" if stacked else own
    raise StateError(
        f"state[{name!r}][{channel!r}] has shape {tuple(shape)}, this program needs "
        f"{tuple('batch' if n is None else n for n in wanted)}; {hint}"
    )


def _batch(shape: tuple[int, ...]) -> str:
    return f"(batch, {', '.join(map(str, shape))})"


def _on_device(what: str, tensor: Tensor, device: torch.device) -> None:
    if tensor.device.type != device.type:
        raise InputError(f"{what} is on {tensor.device}, the program on {device}; use .to({str(device)!r})")
