"""What lies between the synapses of VS-ML: inputs, units, operations and losses; see ``rule.py``."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

import mpgraph as mg
from mpgraph import Agent, carry, fast


class Form(nn.Module):
    """What is where in a message of m numbers: data and errors first, labels second."""

    def __init__(self, rule: Any) -> None:
        super().__init__()
        self.m, self.output, self.bound = rule.width, rule.output, rule.bound
        self.first: torch.Tensor
        self.second: torch.Tensor
        self.register_buffer("first", torch.eye(self.m)[0], persistent=False)
        self.register_buffer("second", torch.eye(self.m)[1], persistent=False)

    def nothing(self) -> Any:
        """An empty message, known to be zero while compiling."""
        return 0.0 * self.first

    def read(self, message: Any) -> Any:
        """The prediction in a message."""
        y = message[self.output]
        return y if self.bound is None else self.bound * torch.tanh(y / self.bound)


class Source(Agent):
    """Sends what was fed, or a constant number, as the first of a message."""

    value = fast()

    def __init__(self, rule: Any, number: float | None = None) -> None:
        super().__init__()
        self.form, self.number = rule.form, number

    def forward_message(self, s: mg.View) -> Any:
        """(x, 0, ..., 0)."""
        return (s.value if self.number is None else self.number) * self.form.first


class Silent(Agent):
    """A bias that is not a synapse."""


class Unit(Agent):
    """Where messages meet. What goes up is y; what goes down is ``up``, from above, and the error e of an output.

    With ``units="apply"`` the unit's function is applied to what goes up, on each channel. A function that keeps
    statistics (batch normalization) is left out: there is no batch here that examples could be compared in.
    """

    y, up, e = fast("m"), fast("m"), fast("m")

    def __init__(self, rule: Any) -> None:
        super().__init__()
        self.form, self.m, self.transform = rule.form, rule.width, rule.units == "apply"
        self.quiet = rule.quiet
        self.aggregate = dict.fromkeys(("pre", "backward:post", "clear:post"), rule.merged)

    def forward_update(self, s: mg.View, pre: Any = None) -> mg.View:
        """y = the merged messages from below."""
        y = self.form.nothing() if pre is None else pre
        function: Any = s.node.function
        return s.set(y=s.apply(y) if self.transform and not function.kept else y)

    def forward_message(self, s: mg.View) -> Any:
        """What goes up."""
        return s.y

    def feedback_update(self, s: mg.View, post: Any = None) -> mg.View:
        """e = the message of the loss."""
        return s.set(e=self.form.nothing() if post is None else post)

    def backward_update(self, s: mg.View, post: Any = None) -> mg.View:
        """up = the merged messages from above."""
        return s.set(up=self.form.nothing() if post is None else post)

    def backward_message(self, s: mg.View) -> Any:
        """What goes down."""
        return s.e + s.up

    def clear_update(self, s: mg.View, post: Any = None) -> mg.View:
        """The same once more, without the error; or nothing at all."""
        return self.backward_update(s.set(e=self.form.nothing()), None if self.quiet else post)

    clear_message = backward_message

    def readout(self, s: mg.View) -> Any:
        """The prediction."""
        return self.form.read(s.y)


class Operation(mg.UnitAgent):
    """An operation, channel by channel; messages from above take its transposed derivative."""

    error = fast("m")

    def __init__(self, rule: Any) -> None:
        super().__init__()
        self.form, self.m, self.quiet = rule.form, rule.width, rule.quiet
        self.aggregate = dict.fromkeys(("backward:post", "clear:post"), rule.merged)

    def feedback_update(self, s: mg.View, post: Any = None) -> mg.View:
        """The message of the loss."""
        return s.set(error=self.form.nothing() if post is None else post)

    def backward_update(self, s: mg.View, post: Any = None) -> mg.View:
        """For each operand its part of the error and of the merged messages from above."""
        down = s.error if post is None else s.error + post
        return s.set(e=s.vjp(down, s.z, out=s.y))

    def clear_update(self, s: mg.View, post: Any = None) -> mg.View:
        """The same once more, without the error; or nothing at all."""
        return self.backward_update(s.set(error=self.form.nothing()), None if self.quiet else post)

    clear_message = mg.UnitAgent.backward_message

    def readout(self, s: mg.View) -> Any:
        """The prediction."""
        return self.form.read(s.y)


class Loss(Agent):
    """Compares the prediction with the target; keeps its message until the pass that sends it."""

    z, t = fast(), fast()
    e = carry("m", learned=True)

    def __init__(self, rule: Any) -> None:
        super().__init__()
        self.form, self.m, self.feed_label = rule.form, rule.width, rule.feed_label
        self.divided = rule.reduction == "mean"

    def forward_update(self, s: mg.View, pre: Any, target: Any) -> mg.View:
        """Keep both."""
        return s.set(z=self.form.read(pre), t=target)

    def compare_update(self, s: mg.View) -> mg.View:
        """e = (dL/dz / batch size, label, 0, ...); the label only if it is fed."""
        e = s.gradient(s.z, s.t)
        e = (e / s.examples(1.0, "sum") if self.divided else e) * self.form.first
        return s.set(e=e + s.t * self.form.second if self.feed_label else e)

    def feedback_message(self, s: mg.View) -> Any:
        """The message made last."""
        return s.e
