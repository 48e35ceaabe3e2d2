"""How labels come into forward-forward and predictions come out, by connections that the rule adds; see :mod:`.rule`.

The loss sends labels to the units that hear an input: the true one in the positive run, in the negative one another,
sampled evenly. In ``score`` it sends all of them at once, and y^2 of every unit is summed where it is predicted:

    predict     for each label the goodness with it, summed over all layers
"""

from __future__ import annotations

from typing import Any

import torch

import mpgraph as mg
from mpgraph import Agent, fast, slow

from .layers import Weight


class Label(Weight):
    """A synapse from a label, which the loss sends, to a unit: its ends are the other way round."""

    def positive_update(self, s: mg.View, post: Any) -> mg.View:
        """Keep the label."""
        return s.set(x=post)

    def teach_update(self, s: mg.View, pre: Any) -> mg.View:
        """As any weight."""
        return Weight.teach_update(self, s, pre)

    def learn_update(self, s: mg.View, pre: Any) -> mg.View:
        """As any weight."""
        return Weight.learn_update(self, s, pre)


class Goodness(Agent):
    """A connection that carries y^2 of a unit to the prediction."""

    y2 = fast()

    def judge_update(self, s: mg.View, pre: Any) -> mg.View:
        """Keep it."""
        return s.set(y2=pre)

    def judge_message(self, s: mg.View) -> Any:
        """Send it on."""
        return s.y2


class Loss(Agent):
    """Sends the labels: in ``score`` to each class a vector in which it is the one that is tried."""

    label, wrong = fast(), fast()

    def channels_at(self, node: mg.AgentNode) -> dict[str, mg.Channel]:
        """Also the vector of each class."""
        return {**self.channels(), "tried": slow(node.shape[0], init="places", frozen=True)}

    def places(self, shape: Any, node: Any, generator: Any, dtype: torch.dtype) -> torch.Tensor:
        """One at its own place."""
        return torch.eye(shape[0], dtype=dtype, device="cpu")

    def score_message(self, s: mg.View) -> Any:
        """Every label at once."""
        return s.tried

    judge_message = score_message

    def positive_update(self, s: mg.View, target: Any) -> mg.View:
        """The true label, and a wrong one."""
        drawn = s.normal() - 100.0 * target
        return s.set(label=target, wrong=torch.where(drawn >= s.population(drawn, "max"), 1.0, 0.0))

    def positive_message(self, s: mg.View) -> Any:
        """The true label."""
        return s.label

    def negative_message(self, s: mg.View) -> Any:
        """The wrong label."""
        return s.wrong
