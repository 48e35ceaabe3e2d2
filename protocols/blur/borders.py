"""What stands at the borders of a BLUR network, and between its neurons: inputs, numbers, losses, operations."""

from __future__ import annotations

from copy import copy
from dataclasses import replace
from typing import Any

import torch

import mpgraph as mg
from mpgraph import Agent, fast
from mpgraph.network.network import Wire

from .parts import States, first, vector


class Input(States):
    """Its state 0 is what was fed, the others are zero; it never changes."""

    value = fast()

    def __init__(self, rule: Any) -> None:
        super().__init__(rule)
        self.first: torch.Tensor
        self.register_buffer("first", torch.eye(rule.k)[0], persistent=False)

    def forward_update(self, s: mg.View) -> mg.View:
        """Begin."""
        return s.set(a=s.value * self.first)  # a product, so that no zeros are multiplied by weights


class Constant(Agent):
    """The same number in every state: one, from which biases are synapses; or zero, if no message came yet."""

    def __init__(self, rule: Any, number: float = 1.0) -> None:
        super().__init__()
        self.states: torch.Tensor
        self.register_buffer("states", torch.full((rule.k,), number), persistent=False)

    def forward_message(self, s: mg.View) -> Any:
        """The number, k times."""
        return self.states

    remember_message = meet_message = forward_message


class Operation(States, mg.UnitAgent):
    """An operation acts on every state; messages go back by its derivative at state 0."""

    fed = fast("k")

    def forward_update(self, s: mg.View, pre: mg.Each) -> mg.View:
        """f(z1, z2, ...), state by state."""
        return s.set(z=pre, a=s.apply(pre))

    forward_message = remember_message = meet_message = States.forward_message

    def feedback_update(self, s: mg.View, post: Any = None) -> mg.View:
        """Of an output: the feedback is what comes back."""
        return s.set(fed=0.0 * s.a if post is None else vector(s.a[0], post, self.k))

    def backward_update(self, s: mg.View, post: Any = None) -> mg.View:
        """For each operand its transposed derivative, state by state."""
        signal = s.fed if post is None else s.fed + post
        return s.set(e=s.vjp(signal, s.z.map(first), out=first(s.a)))

    def meet_update(self, s: mg.View, pre: mg.Each) -> mg.View:
        """The operation on what the operands have become."""
        return s.set(a=s.apply(pre))

    def readout(self, s: mg.View) -> Any:
        """State 0."""
        return s.a[0]


class Loss(mg.LossAgent):
    """Sends the output what it should have been."""

    def __init__(self, rule: Any) -> None:
        super().__init__()
        self.feedback = rule.feedback

    def forward_update(self, s: mg.View, pre: Any, target: Any) -> mg.View:
        """Keep state 0 and the target."""
        return s.set(z=pre[0], t=target)

    backward_update = backward_message = None  # type: ignore[assignment]

    def feedback_update(self, s: mg.View) -> mg.View:
        """The target, the target as +1 and -1, the derivative of the loss, or any function of view and both."""
        if callable(self.feedback):
            return s.set(e=self.feedback(s, s.z, s.t))
        if self.feedback == "gradient":
            return s.set(e=s.gradient(s.z, s.t))
        return s.set(e=s.t if self.feedback == "target" else 2.0 * s.t - 1.0)

    def feedback_message(self, s: mg.View) -> Any:
        """That."""
        return s.e


def fixed_at_one(wire: Wire, dims: int) -> Wire:
    """A connection without synapses as one with a single one, which all places share and nothing changes."""
    connection = copy(wire.connection)
    connection.weighted = True
    if isinstance(connection, mg.OneToOne):
        connection.shared = tuple(range(dims))
    return replace(wire, connection=connection, weight=torch.ones(()), trained=False)
