"""The agents around synapses that learn from activity and error at both of their ends.

    observe     a unit sets the activity that synapses see; an output receives it from its loss
    meet        every unit sends its activity and error to the synapses on both sides
    recall      a synapse sends w y_j back to i, which sums r_i = sum_j w_ji y_j for each of its connections
    learn       i sends r_i back to the synapses

Rules of this family run the passes ``PASSES``; what a rule does not use is never computed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

import mpgraph as mg
from mpgraph import Agent, fast

PASSES = ("forward", "backward", "observe", "meet", "recall", "learn")


class Neighbor(Agent):
    """Mixin of everything that synapses come from or go to."""

    aggregate = {"recall:post": "each", "observe:post": "mean"}
    activity, total, e, r = fast(), fast(), fast(), fast()

    def observe_update(self, s: mg.View, post: Any = None) -> mg.View:
        """y as synapses see it: its own, or of an output what the loss makes of it."""
        activity = self.forward_message(s) if post is None else post
        return s.set(activity=activity, total=s.population(activity))

    def forward_message(self, s: mg.View) -> Any:
        """Its own activity."""
        raise NotImplementedError

    def meet_message(self, s: mg.View) -> Any:
        """Activity and error, to the synapses on both sides."""
        return {"y": s.activity, "sum": s.total, "e": s.e}

    def recall_update(self, s: mg.View, post: Any = None) -> mg.View:
        """r = W'y of each connection above."""
        return s if post is None else s.set(r=post)

    def learn_message(self, s: mg.View) -> Any:
        """To each connection its own."""
        return s.r


class Unit(mg.UnitAgent, Neighbor):
    """A unit."""


class Operation(Unit):
    """An operation; its own error is what reaches its result."""

    back = fast()

    def backward_update(self, s: mg.View, post: Any) -> mg.View:
        """Its error, and what that means for each operand."""
        return s.set(e=post, back=s.vjp(post, s.z, out=s.y))

    def backward_message(self, s: mg.View) -> Any:
        """To each operand its own."""
        return s.back


class Input(Neighbor):
    """An input.

    Args:
        slope: maps its value to what its error is multiplied by; a number is the beta of a softplus, whose slope at
            the activity y is 1 - exp(-beta y); ``None`` is 1.
    """

    value = fast()

    def __init__(self, slope: Callable[[Any], Any] | float | None = None) -> None:
        super().__init__()
        self.slope = slope

    def forward_message(self, s: mg.View) -> Any:
        """The value."""
        return s.value

    def backward_update(self, s: mg.View, post: Any = 0.0) -> mg.View:
        """e_0 = B e_1 * slope."""
        if self.slope is None:
            return s.set(e=post)
        slope = self.slope(s.value) if callable(self.slope) else 1.0 - torch.exp(-self.slope * s.value)
        return s.set(e=post * slope)


class One(Neighbor):
    """The number one, from which biases are synapses."""

    def forward_message(self, s: mg.View) -> Any:
        """One."""
        return 1.0

    def backward_update(self, s: mg.View) -> mg.View:
        """No error."""
        return s.set(e=0.0)


class Loss(mg.LossAgent):
    """Sends an output the prediction that it compares: softmax probabilities, for a cross-entropy of logits."""

    def observe_message(self, s: mg.View) -> Any:
        """t + dL/dz, the prediction of which the error is the distance from the target."""
        return s.t + s.e


AGENTS = {"unit": Unit, "operation": Operation, "input": Input, "constant": One, "loss": Loss}
