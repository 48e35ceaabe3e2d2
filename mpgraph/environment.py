"""Where code runs: devices, memory, random generators, and whether values may be inspected."""

from __future__ import annotations

import pickle
import random
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch.autograd import forward_ad

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


@contextmanager
def on_cpu(place: torch.device) -> Iterator[None]:
    """Inside, new tensors are on the CPU and have the dtype that they are given, whatever the caller chose for himself.

    Generators and initializers sample on the CPU, so a default device (``with torch.device("cuda")``) must not move
    their tensors, nor ``torch.autocast`` on the device of a program round them.
    """
    kind = autocast_device(place)
    with torch.device("cpu"), torch.autocast(kind, enabled=False) if kind else nullcontext():
        yield


def generator_positions() -> bytes:
    """Where the global random generators of torch, numpy and Python are: equal if none was used in between."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    own = [state.numpy().tobytes() for state in (torch.get_rng_state(), *cuda)]
    return pickle.dumps((own, np.random.get_state(), random.getstate()))  # noqa: NPY002 - which functions may use


def calls_watched() -> bool:
    """Whether somebody needs every single call of torch: a dispatch mode, or dual numbers (forward-mode gradients)."""
    return bool(torch._C._len_torch_dispatch_stack()) or forward_ad._current_level >= 0


@cache
def keep_freed_memory() -> None:
    """Let the process keep the memory that steps free, once for each process; the first ``mg.compile`` calls it.

    glibc hands freed memory back to the system above a threshold that follows the largest block ever freed. With small
    tensors only, every step would fault its pages in again (measured: a quarter of the time of a LeNet's step).
    Allocating and freeing 31 MiB raises the threshold; the pages are never touched. Elsewhere it does nothing.
    """
    torch.empty(31 << 20, dtype=torch.uint8, device="cpu")


def commit_of(folder: Path) -> str | None:
    """The commit of the checkout that a folder is in, if it is in one."""
    try:
        found = subprocess.run(
            ["git", "-C", str(folder), "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip()
