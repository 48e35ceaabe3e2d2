"""Where code runs: devices, memory, and whether values may be inspected."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import torch

from .errors import InputError


def inside_transform() -> bool:
    """Whether values must not be inspected: under torch.compile or a torch.func transform."""
    return torch.compiler.is_compiling() or torch._C._functorch.peek_interpreter_stack() is not None


def usable(device: torch.device | str | None) -> torch.device:
    """The device of that name; torch's default for ``None``.

    Raises:
        InputError: if there is none here.
    """
    try:
        place = torch.device(device) if device is not None else torch.get_default_device()
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError, TypeError) as error:
        raise InputError(f"device {str(device)!r} cannot be used here: {str(error).splitlines()[0]}") from None
    return place


def autocast_device(place: torch.device) -> str | None:
    """The type of device whose autocast mode would change the dtypes of a program there; ``None`` if there is none."""
    return place.type if torch.amp.is_autocast_available(place.type) else None


def without_autocast(place: torch.device) -> AbstractContextManager[Any]:
    """Inside, ``torch.autocast`` is off: a program's dtype is the one that it was compiled for."""
    kind = autocast_device(place)
    on = kind is not None and torch.is_autocast_enabled(kind)
    return torch.autocast(kind, enabled=False) if on and kind else nullcontext()


def numbers_on_cpu() -> AbstractContextManager[Any]:
    """Inside, new tensors are on the CPU, whatever torch's default device is: initializers sample there."""
    return torch.device("cpu")


@cache
def keep_freed_memory() -> None:
    """Let the process keep the memory that steps free, once for each process; the first ``mg.compile`` calls it.

    glibc hands freed memory back to the system above a threshold that follows the largest block ever freed. With small
    tensors only, every step would fault its pages in again (measured: a quarter of the time of a LeNet's step).
    Allocating and freeing 31 MiB raises the threshold; the pages are never touched. Elsewhere it does nothing.
    """
    torch.empty(31 << 20, dtype=torch.uint8, device="cpu")
