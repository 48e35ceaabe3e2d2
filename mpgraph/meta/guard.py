"""What an outer loop does when its loss or gradient is not finite, or its loss explodes."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from mpgraph.arguments import Arguments

from .estimators.base import Estimate
from .task import Tasks

POLICIES = ("skip", "back_off", "restore", "stop")


@dataclass
class Guard:
    """The policy, and the losses that a new one is held against.

    Attributes:
        policy: ``skip`` makes no update; ``back_off`` undoes the last update and halves the learning rate for good;
            ``restore`` returns to the best parameters with a fresh optimizer; ``stop`` ends the run.
        factor: a loss this many times above the median of the last ones counts as exploding; ``None`` for never.
        memory: how many last losses.
        patience: faults in a row, after which the run ends whatever the policy.
        recent: the last losses; part of a checkpoint.
        faults: in a row, so far.
    """

    policy: Literal["skip", "back_off", "restore", "stop"] = "skip"
    factor: float | None = 100.0
    memory: int = 20
    patience: int = 20
    recent: list[float] = field(default_factory=list)
    faults: int = 0

    def __post_init__(self) -> None:
        check = Arguments("Guard")
        check.choice("policy", self.policy, POLICIES)
        check.positive("factor", self.factor)
        check.integer("memory", self.memory, 1)
        check.integer("patience", self.patience, 1)

    def problem(self, estimate: Estimate, tasks: Tasks) -> str | None:
        """What is wrong with an estimate, in words that name the tasks and parameters; ``None`` if nothing is."""
        parts = []
        if not bool(torch.isfinite(estimate.loss)):
            losses = estimate.metrics["loss"]
            bad = [i for i in range(len(losses)) if not bool(torch.isfinite(losses[i]))]
            named = ", ".join(f"{i} ({tasks[i].name})" for i in bad[:3] if i < len(tasks))
            more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
            parts.append(f"the loss is {float(estimate.loss)}, of task {named}{more}")
        wrong = broken(estimate.gradient)
        if wrong:
            parts.append(f"the gradient of {', '.join(wrong)} is not finite")
        if not parts and self.factor is not None and len(self.recent) >= min(5, self.memory):
            usual = statistics.median(self.recent)
            if usual > 0 and float(estimate.loss) > self.factor * usual:
                worst = int(estimate.metrics["loss"].argmax())
                name = tasks[worst].name if worst < len(tasks) else "of another process"
                parts.append(
                    f"the loss is {float(estimate.loss):.4g}, {self.factor:g} times above the last ones "
                    f"({usual:.4g}), most of all of task {worst} ({name})"
                )
        return " and ".join(parts) or None

    def accept(self, loss: float) -> None:
        """Remember the loss of an update that was made."""
        self.recent = [*self.recent, loss][-self.memory :]
        self.faults = 0


def broken(tensors: Mapping[str, Tensor | None]) -> list[str]:
    """Names of those with a number that is not finite."""
    return [name for name, t in tensors.items() if t is not None and not bool(torch.isfinite(t).all())]


def audit(gradient: Mapping[str, Tensor | None]) -> dict[str, str]:
    """Meta-parameters without a usable gradient, with the reason; asked after the first outer step."""
    found = {}
    for name, tensor in gradient.items():
        if tensor is None:
            found[name] = "the meta-loss does not depend on it: no message or update that is read uses it"
        elif not bool(torch.isfinite(tensor).all()):
            found[name] = "its gradient is not finite"
        elif not bool(tensor.any()):
            found[name] = "its gradient is exactly zero: what it scales is zero, or has no derivative"
    return found
