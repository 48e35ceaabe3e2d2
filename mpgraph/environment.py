"""Where code runs: devices, and whether values may be inspected."""

from __future__ import annotations

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
