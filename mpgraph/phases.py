"""Rules whose steps are not all alike: which schedule a step runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .checks import inside_transform
from .errors import InputError, unknown
from .protocol import Protocol


def phase_of(protocol: Protocol, state: Mapping[str, Any], phase: str | None = None) -> str | None:
    """The phase of the next step: the one given, else the one whose turn it is; ``None`` for a rule without.

    Raises:
        InputError: for an unknown phase, or none under a transform, where the step counter cannot be read.
    """
    phases = protocol.phases
    if phase is not None and not phases:
        raise InputError(f"{type(protocol).__name__} has no phases: all its steps are alike, but got phase={phase!r}")
    if phase is not None and phase not in phases:
        raise InputError(f"{type(protocol).__name__}: " + unknown("phase", phase, phases))
    if phase is not None or not phases:
        return phase
    if inside_transform():
        raise InputError(
            f"under torch.compile and torch.func transforms say which phase a step is: phase={next(iter(phases))!r}"
        )
    return protocol.phase(int(state["program"]["step"]))


def phase_to_show(protocol: Protocol, phase: str | None = None) -> str | None:
    """The phase of this name, or the first."""
    return next(iter(protocol.phases), None) if phase is None else phase_of(protocol, {}, phase)
