"""What happens to a meta-gradient before the optimizer sees it: clipping, and sparsity that makes exact zeros."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

Clip = Literal["norm", "value", "tensor", "usual"]
MEMORY = 50  # norms of a tensor that ``usual`` looks back on


def norm_of(gradient: dict[str, Tensor]) -> float:
    """The Euclidean norm of all numbers together."""
    squares = [g.double().square().sum() for g in gradient.values()]
    return float(torch.stack(squares).sum().sqrt()) if squares else 0.0


def clipped(gradient: dict[str, Tensor], clip: Clip | None, limit: float) -> dict[str, Tensor]:
    """``norm`` scales all down to ``limit``, ``value`` cuts numbers off there, ``tensor`` makes each norm ``limit``."""
    if clip == "norm":
        factor = min(1.0, limit / max(norm_of(gradient), 1e-300))
        return {name: factor * g for name, g in gradient.items()}
    if clip == "value":
        return {name: g.clamp(-limit, limit) for name, g in gradient.items()}
    if clip == "tensor":
        return {name: g * (limit / g.norm().clamp(min=1e-30)) for name, g in gradient.items()}
    return gradient


def usual_clipped(
    gradient: dict[str, Tensor], limit: float, norms: Mapping[str, list[float]]
) -> tuple[dict[str, Tensor], dict[str, list[float]]]:
    """Each gradient scaled down to ``limit`` times the median of its own last norms, and the norms with this one.

    Meta-gradients through many steps have heavy tails, and a size of their own for each tensor: one that is a million
    times its usual size would fill the second moment of Adam for a thousand steps.
    """
    made, seen = {}, {name: list(kept) for name, kept in norms.items()}
    for name, g in gradient.items():
        norm = float(g.double().norm())
        seen[name] = [*seen.get(name, []), norm][-MEMORY:]
        most = limit * statistics.median(seen[name])
        made[name] = g * (most / norm) if norm > most else g
    return made, seen


def sparse_gradient(value: Tensor, gradient: Tensor, weight: float) -> Tensor:
    """The steepest descent of a loss plus ``weight`` times absolute values; at zero, zero if nothing descends."""
    at_zero = gradient.sign() * (gradient.abs() - weight).clamp(min=0.0)
    return torch.where(value == 0.0, at_zero, gradient + weight * value.sign())


def sparse_value(before: Tensor, gradient: Tensor, after: Tensor) -> Tensor:
    """The updated number: zero where it was zero and nothing descended, or where it would change its sign."""
    return torch.where(((before == 0.0) & (gradient == 0.0)) | (before * after < 0.0), 0.0, after)
