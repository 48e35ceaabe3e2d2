"""The loss agents of MPLP, with whose own loss the backward pass begins (Eq. 2); see ``rule.py``.

    agent           its learner reads
    CrossEntropy    loss, p, t, log p      p clipped to 1e-7 .. 1 - 1e-7, as published
    L2              loss, y, t, t - y
    L1              loss, y, t

The loss is that of one number of one example. ``BinaryCrossEntropy`` and ``AnyLoss``, for losses that the authors do
not have, follow the same pattern.
"""

from __future__ import annotations

from typing import Any

import torch

import mpgraph as mg
from mpgraph import fast

from .learned import Learned


class AnyLoss(Learned):
    """A loss of which only the number for each example is known: the learner reads that, z and t."""

    states = 2
    z, t = fast(), fast()

    def forward_update(self, s: mg.View, pre: Any, target: Any) -> mg.View:
        """Keep both."""
        return s.set(z=pre, t=target)

    def error_update(self, s: mg.View) -> mg.View:
        """e = dL/dz."""
        return s.set(e=s.gradient(s.z, s.t))

    def backward_update(self, s: mg.View) -> mg.View:
        """The first message, from the loss."""
        return self.learn(s, *self.seen(s))

    def seen(self, s: mg.View) -> tuple[Any, ...]:
        """The loss and what the learner reads beside it."""
        return s.loss(s.z, s.t), s.z, s.t


class CrossEntropy(AnyLoss):
    """-t log p."""

    states = 3

    def seen(self, s: mg.View) -> tuple[Any, ...]:  # noqa: D102
        p = torch.clamp(s.z, 1e-7, 1.0 - 1e-7)
        return -s.t * torch.log(p), p, s.t, torch.log(p)


class BinaryCrossEntropy(AnyLoss):
    """-t log p - (1 - t) log(1 - p)."""

    states = 4

    def seen(self, s: mg.View) -> tuple[Any, ...]:  # noqa: D102
        p = torch.clamp(s.z, 1e-7, 1.0 - 1e-7)
        yes, no = torch.log(p), torch.log(1.0 - p)
        return -s.t * yes - (1.0 - s.t) * no, p, s.t, yes, no


class L2(AnyLoss):
    """(t - y)^2 / 2."""

    states = 3

    def seen(self, s: mg.View) -> tuple[Any, ...]:  # noqa: D102
        d = s.t - s.z
        return 0.5 * d * d, s.z, s.t, d


class L1(AnyLoss):
    """|t - y|."""

    def seen(self, s: mg.View) -> tuple[Any, ...]:  # noqa: D102
        return torch.abs(s.t - s.z), s.z, s.t


LOSSES: dict[str, type[AnyLoss]] = {
    "negative_log_likelihood": CrossEntropy,
    "binary_cross_entropy": BinaryCrossEntropy,
    "l2": L2,
    "l1": L1,
}
