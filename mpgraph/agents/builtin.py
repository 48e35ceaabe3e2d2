"""The engine's own agents, for kinds of node about which a protocol says nothing.

A unit applies its function forward and carries backward messages through the function's transposed derivative.
For an error message that is the chain rule; which message is carried, and what weights make of it, is the rule's.
"""

from __future__ import annotations

from typing import Any

import torch

from mpgraph.errors import ProtocolError
from mpgraph.network.activations import activation

from .agent import Agent, View
from .channel import fast, slow


class Input(Agent):
    """Holds what was fed: an input of the network, or a target."""

    value = fast()

    def forward_message(self, s: View) -> Any:
        """The value itself."""
        return s.value


class Constant(Agent):
    """The number one, from which biases are weights."""

    def forward_message(self, s: View) -> Any:
        """One."""
        return 1.0


class Zero(Agent):
    """What a unit hears whose every source is delayed past the start."""

    def forward_message(self, s: View) -> Any:
        """Zero."""
        return 0.0


class UnitAgent(Agent):
    """Applies its function; carries backward messages through it.

    Args:
        surrogate: activation whose derivative stands in for units that have none (``"tanh"``), or ``None``.
    """

    z, y, e = fast(), fast(), fast()

    def __init__(self, surrogate: str | None = None) -> None:
        super().__init__()
        if surrogate is not None and activation(surrogate).is_flat():
            raise ProtocolError(f"surrogate={surrogate!r} has zero derivative itself; choose tanh, sigmoid, relu, ...")
        self.surrogate = surrogate

    def forward_update(self, s: View, pre: Any) -> View:
        """y = f(z), with z the sum of the messages."""
        return s.set(z=pre, y=s.apply(pre))

    def forward_message(self, s: View) -> Any:
        """The activity."""
        return s.y

    def backward_update(self, s: View, post: Any) -> View:
        """e = f'(z) * the sum of the messages."""
        return s.set(e=s.vjp(post, s.z, out=s.y, instead=self.surrogate))

    def backward_message(self, s: View) -> Any:
        """The error."""
        return s.e


class OperationAgent(Agent):
    """Applies an operation to whole units and carries backward messages through it to each operand."""

    aggregate = {"pre": "each"}  # noqa: RUF012
    z, y, e = fast(), fast(), fast()

    def forward_update(self, s: View, pre: Any) -> View:
        """y = f(z1, z2, ...)."""
        return s.set(z=pre, y=s.apply(pre))

    def forward_message(self, s: View) -> Any:
        """The result."""
        return s.y

    def backward_update(self, s: View, post: Any) -> View:
        """For each operand its transposed derivative times the sum of the messages."""
        return s.set(e=s.vjp(post, s.z, out=s.y))

    def backward_message(self, s: View) -> Any:
        """To each operand its own."""
        return s.e


class LossAgent(Agent):
    """Compares the prediction with the target and sends the derivative back."""

    z, t, e = fast(), fast(), fast()

    def forward_update(self, s: View, pre: Any, target: Any) -> View:
        """Keep both."""
        return s.set(z=pre, t=target)

    def backward_update(self, s: View) -> View:
        """e = dL/dz of each example."""
        return s.set(e=s.gradient(s.z, s.t))

    def backward_message(self, s: View) -> Any:
        """The error."""
        return s.e


class BatchNormAgent(UnitAgent):
    """Normalises by the statistics of the batch while learning, by their running averages in ``predict``."""

    mean, var = slow(), slow(init=1.0)

    def forward_update(self, s: View, pre: Any) -> View:
        """y = (z - mean) / sqrt(var + eps), and the running averages."""
        kind: Any = s.node.function
        if not s.learning:
            return s.set(z=pre, y=(pre - s.mean) * torch.rsqrt(s.var + kind.eps))
        mean, var = s.statistics(pre)
        old, new = 1.0 - kind.momentum, kind.momentum
        return s.set(z=pre, y=s.apply(pre), mean=old * s.mean + new * mean, var=old * s.var + new * var)
