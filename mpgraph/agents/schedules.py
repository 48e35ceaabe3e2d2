"""Numbers of a rule that change from step to step: functions of the step counter.

A schedule is any function that a rule calls with ``s.step``; these are the usual ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from mpgraph.arguments import Arguments
from mpgraph.errors import ProtocolError

from .agent import View


def at(number: Any, s: View) -> Any:
    """A number or parameter as it is; a schedule at the present step."""
    return number(s.step) if callable(number) else number


def _number(step: Any) -> Any:
    """A step counter as a tensor, or the lazy value that it is in a rule."""
    return torch.tensor(float(step), device="cpu") if isinstance(step, (int, float)) else step


@dataclass(frozen=True)
class Linear:
    """From ``start`` to ``stop`` in a straight line, over ``steps`` steps that begin after ``delay``."""

    start: float
    stop: float
    steps: int
    delay: int = 0

    def __post_init__(self) -> None:
        check = Arguments(type(self).__name__)
        number = {name: check.number(name, getattr(self, name)) for name in ("start", "stop")}
        whole = {"steps": check.integer("steps", self.steps, 1), "delay": check.integer("delay", self.delay, 0)}
        vars(self).update(number | whole)  # as Python has them; the dataclass is frozen

    def passed(self, step: Any) -> Any:
        """The share of the way, 0..1."""
        return torch.clamp((_number(step) - self.delay) / self.steps, 0.0, 1.0)

    def __call__(self, step: Any) -> Any:
        """The number at a step."""
        return self.start + (self.stop - self.start) * self.passed(step)


@dataclass(frozen=True)
class Exponential(Linear):
    """From ``start`` to ``stop``, both positive, by the same factor each step."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.start > 0 and self.stop > 0):
            raise ProtocolError(f"Exponential goes between positive numbers, got {self.start} and {self.stop}")

    def __call__(self, step: Any) -> Any:
        """The number at a step."""
        return self.start * (self.stop / self.start) ** self.passed(step)


@dataclass(frozen=True)
class Cycle:
    """From ``low`` up to ``high`` and back in straight lines, once in ``period`` steps."""

    low: float
    high: float
    period: int

    def __post_init__(self) -> None:
        check = Arguments("Cycle")
        number = {name: check.number(name, getattr(self, name)) for name in ("low", "high")}
        vars(self).update(number, period=check.integer("period", self.period, 1))

    def __call__(self, step: Any) -> Any:
        """The number at a step."""
        share = torch.remainder(_number(step) / self.period, 1.0)
        return self.high - (self.high - self.low) * torch.abs(share * 2.0 - 1.0)
