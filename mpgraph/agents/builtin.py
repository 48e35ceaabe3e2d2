"""The engine's own agents, for types of node that a protocol does not mention.

A unit applies its function forward and carries backward messages through the function's transposed derivative.
For an error message that is the chain rule; which message is carried, and what weights make of it, is the rule's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mpgraph.network.activations import Activation

from .agent import Agent, View
from .channel import Channel, fast, slow
from .node import AgentNode


class Input(Agent):
    """Holds what was fed: an input of the network, or a target. Sends it in every pass in which it is asked for.

    Args:
        same_as: passes in which it does what it does in another: ``{"perturb": "forward"}``.
    """

    answers = True
    value = fast()

    def __init__(self, same_as: Mapping[str, str] | None = None) -> None:
        super().__init__()
        self.same_as = same_as or self.same_as

    def forward_message(self, s: View) -> Any:
        """The value itself."""
        return s.value


class Constant(Agent):
    """Sends the same number: one, from which biases are weights; zero to a unit whose sources are all delayed.

    It sends it in every pass in which it is asked for.

    Args:
        number: what it sends.
        same_as: passes in which it does what it does in another.
    """

    answers = True

    def __init__(self, number: float = 1.0, same_as: Mapping[str, str] | None = None) -> None:
        super().__init__()
        self.number, self.same_as = number, same_as or self.same_as

    def forward_message(self, s: View) -> Any:
        """The number."""
        return self.number


class UnitAgent(Agent):
    """Applies the node's function and carries backward messages through it.

    It serves units, normalizations with running averages, and operations on whole units; for these ``z``, the sums
    ``pre`` and the error ``e`` have one part for each operand (:class:`mpgraph.Each`).

    Attributes:
        operations: whether it can serve operations as well. If a class does not set it, it can where it takes over
            forward_update and backward_update; otherwise the operations of its rule are served by the engine's unit.
    """

    operations = True
    z, y, e = fast(), fast(), fast()

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "operations" not in vars(cls):
            base = next(base for base in cls.__mro__[1:] if issubclass(base, UnitAgent))
            ways = ("forward_update", "backward_update")
            cls.operations = base.operations and all(getattr(cls, way) is getattr(base, way) for way in ways)

    def channels_at(self, node: AgentNode) -> dict[str, Channel]:
        """Also what the node's function keeps."""
        return {**self.channels(), **kept_channels(node)}

    def forward_update(self, s: View, pre: Any) -> View:
        """y = f(z), with z the sum of the messages."""
        s, y = s.activate(pre)
        return s.set(z=pre, y=y)

    def forward_message(self, s: View) -> Any:
        """The activity."""
        return s.y

    def backward_update(self, s: View, post: Any) -> View:
        """e = f'(z) * the sum of the messages."""
        return s.set(e=s.vjp(post, s.z, out=s.y))

    def backward_message(self, s: View) -> Any:
        """The error."""
        return s.e


def kept_channels(node: AgentNode, size: int | str | None = None) -> dict[str, Channel]:
    """What the function of a node keeps between steps, as channels of an agent that calls ``s.activate``.

    Args:
        node: whose function it is.
        size: of the values that the agent applies it to, see :class:`mpgraph.Channel`.
    """
    if not isinstance(node.function, Activation):
        return {}
    return {name: slow(size, init=start) for name, start in node.function.kept.items()}


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


BatchNormAgent = OperationAgent = UnitAgent  # the names before 0.2 of agents that a unit's now replaces
