"""Statistics of MPLP: what is recorded before meta-training, and how.

As the authors' code does it (paper, section 3.1, "Normalization"): ordinary steps are taken in which every learner's
inputs are standardized by their mean and deviation in this batch, over all agents, examples and numbers of a message,
and updates are centered by their mean in this batch. Shifts, factors (inverse deviations, not deviations) and means are
averaged over the steps, and mixed into what was recorded before.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

import mpgraph as mg
from mpgraph import Protocol
from mpgraph.arguments import Arguments

CONSTANT = 1e-5  # an input that varies less is shifted, but not divided


class Standardiser(nn.Module):
    """One shift and one factor for each input of a learner: ``(v + shift) * factor``. Recorded, not trained.

    Args:
        inputs: how many; a message is one.
        floor: smallest deviation that an input is divided by.
    """

    shift: Tensor
    factor: Tensor

    def __init__(self, inputs: int, floor: float) -> None:
        super().__init__()
        self.inputs, self.floor = inputs, floor
        self.register_buffer("shift", torch.zeros(inputs))
        self.register_buffer("factor", torch.ones(inputs))

    def forward(self, values: Sequence[Any]) -> list[Any]:
        """The values, standardized as recorded."""
        return [(v + self.shift[i]) * self.factor[i] for i, v in enumerate(values)]

    def measure(self, s: mg.View, values: Sequence[Any]) -> tuple[list[Any], list[Any]]:
        """The values, standardized as they are now; and the shifts and factors that this takes."""
        shifts = [-s.all(v).mean() for v in values]
        centred = [v + shift for v, shift in zip(values, shifts, strict=True)]
        deviations = [torch.sqrt(s.all(v * v).mean()) for v in centred]
        divisors = [torch.where(d < CONSTANT, 1.0, torch.clamp(d, self.floor)) for d in deviations]
        factors = [1.0 / d for d in divisors]
        return [v * factor for v, factor in zip(centred, factors, strict=True)], [*shifts, *factors]

    def fit(self, values: Sequence[Tensor]) -> None:
        """Record the mean and deviation of these numbers, in place of what was recorded."""
        for i, v in enumerate(values):
            self.shift[i] = -v.mean()
            deviation = v.std(correction=0).clamp(min=self.floor)
            self.factor[i] = 1.0 if deviation < CONSTANT else 1.0 / deviation

    def mix(self, measured: Tensor, share: float) -> None:
        """Replace a share of what is recorded."""
        self.shift.lerp_(measured[: self.inputs], share)
        self.factor.lerp_(measured[self.inputs : 2 * self.inputs], share)


class Output(nn.Module):
    """What becomes of a mean update: ``(update - mean) * scale``. The mean is recorded, the scale trained.

    Args:
        scale: initial.
    """

    mean: Tensor

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(()))
        self.scale = nn.Parameter(torch.tensor(scale))

    def mix(self, measured: Tensor, share: float) -> None:
        """Replace a share of what is recorded."""
        self.mean.lerp_(measured[-1], share)


class Measuring(Protocol):
    """MPLP while it records: the same learners, but agents that measure.

    Args:
        rule: an :class:`MPLP`.
    """

    bias = "agent"
    loss_link = "agent"

    def __init__(self, rule: Any) -> None:
        super().__init__()
        self.rule, self.passes = rule, rule.passes

    def agent(self, node: Any) -> mg.Agent:
        """An agent that measures."""
        return self.rule.made(node, measures=True)

    def keep(self, graph: Any, state: Any, steps: int, share: float) -> None:
        """Mix the average over the steps into what is recorded; of nodes that share a record, the average of these."""
        found = {name: state[name]["measured"] / steps for name in state if "measured" in state[name]}
        for name, value in found.items():
            if not bool(torch.isfinite(value).all()):
                Arguments("MPLP.measure").refuse(f"statistics of {name!r}", value, "finite; do the steps diverge?")
        rows: dict[Any, list[Tensor]] = {}
        for name, value in found.items():
            for part in (graph.agents[name].standardiser, graph.agents[name].output):
                if part is not None:
                    rows.setdefault(part, []).append(value)
        for part, values in rows.items():
            part.mix(torch.stack(values).mean(0), share)
