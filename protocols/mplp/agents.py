"""The agents of MPLP except losses; see ``rule.py``. Each keeps what its learner reads from the forward pass:

    agent         its learner reads
    Weight        m, w, x
    Bias          m, b, z                                    z is the sum before the bias
    Activation    m, z
    Softmax       m, z, z - max z, exp(z - max z), their sum

With the gradient beside the message (pass ``error``) every learner reads it last.
"""

from __future__ import annotations

from typing import Any

import torch

import mpgraph as mg
from mpgraph import Agent, fast, slow
from mpgraph.agents.initializers import normal

from .learned import Learned
from .losses import LOSSES, AnyLoss


class Weight(Learned):
    """One synapse."""

    states, updates = 2, True
    w = slow(init=normal(0.05))
    x = fast()

    def forward_update(self, s: mg.View, pre: Any) -> mg.View:
        """Keep the activity below."""
        return s.set(x=pre)

    def forward_message(self, s: mg.View) -> Any:
        """w x, summed over i on its way to unit j."""
        return s.w * s.x

    def error_update(self, s: mg.View, post: Any) -> mg.View:
        """The gradient at the unit above."""
        return s.set(e=post)

    def error_message(self, s: mg.View) -> Any:
        """Its part in the gradient at the unit below."""
        return s.w * s.e

    def backward_update(self, s: mg.View, post: Any) -> mg.View:
        """The new w."""
        return self.learn(s, post, s.w, s.x)


class Bias(Weight):
    """A bias, between the sum of messages and the unit."""

    w = slow()

    def forward_message(self, s: mg.View) -> Any:
        """z + b."""
        return s.x + s.w

    def error_message(self, s: mg.View) -> Any:
        """The gradient, as it is."""
        return s.e


class Activation(Learned, mg.UnitAgent):
    """A unit: its function needs no derivative."""

    def error_update(self, s: mg.View, post: Any) -> mg.View:
        """e = f'(z) * the sum of the messages."""
        return mg.UnitAgent.backward_update(self, s, post)

    def backward_update(self, s: mg.View, post: Any) -> mg.View:
        """A message for below."""
        return self.learn(s, post, s.z)


class Softmax(Activation):
    """The softmax between the output and the loss; of an output with several rows the sum is that of all."""

    states = 4
    shifted, exp, total = fast(), fast(), fast()

    def forward_update(self, s: mg.View, pre: Any) -> mg.View:
        """Every intermediate result."""
        shifted = pre - s.population(pre, "max")
        exp = torch.exp(shifted)
        return s.set(z=pre, y=s.apply(pre), shifted=shifted, exp=exp, total=s.population(exp))

    def backward_update(self, s: mg.View, post: Any) -> mg.View:
        """A message for below."""
        return self.learn(s, post, s.z, s.shifted, s.exp, s.total)


class Relay(mg.UnitAgent):
    """A unit without a function: there is nothing to learn, it sends on the messages that it receives.

    Args:
        how: the messages from above are aggregated.
    """

    def __init__(self, how: Any) -> None:
        super().__init__()
        self.aggregate = {"backward:post": how, "error:post": "sum"}

    def error_update(self, s: mg.View, post: Any) -> mg.View:
        """The gradient."""
        return s.set(e=post)

    backward_update = error_update
    error_message = mg.UnitAgent.backward_message


class Operation(mg.UnitAgent):
    """An operation: carries messages to its operands by its transposed derivative, number by number.

    Args:
        how: the messages from above are aggregated.
    """

    same_as = {"error": "backward"}

    def __init__(self, how: Any) -> None:
        super().__init__()
        self.aggregate = {"backward:post": how, "error:post": "sum"}


def role(node: Any) -> tuple[str, type[Agent] | None]:
    """What a node is, and the class of its agent; none for nodes that learn nothing."""
    if "bias" in node.types:
        return "bias", Bias
    if "weight" in node.types:
        return "weight", Weight
    if node.type == "loss":
        return "loss", LOSSES.get(node.function.name, AnyLoss)
    if node.type == "link":
        return "link", Softmax if node.function.name == "softmax" else Activation
    if node.inner:
        return "", Operation
    if "unit" in node.types:
        return "unit", Relay if node.function.name == "identity" else Activation
    return "", None
