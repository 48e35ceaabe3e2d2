"""What lies between the synapses of VS-ML: inputs, units, operations and losses; see ``rule.py``."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

import mpgraph as mg
from mpgraph import Agent, carry, fast


class Form(nn.Module):
    """What is where in a message of m numbers: data and errors first, labels second.

    Args:
        m: how many numbers there are.
        output: index of the one that an output predicts on.
        bound: B of the prediction B tanh(y / B), or ``None``.
    """

    def __init__(self, m: int, output: int, bound: float | None) -> None:
        super().__init__()
        self.m, self.output, self.bound = m, output, bound
        self.first: torch.Tensor
        self.second: torch.Tensor
        self.register_buffer("first", torch.eye(m, device="cpu")[0], persistent=False)
        self.register_buffer("second", torch.eye(m, device="cpu")[1], persistent=False)

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

    def __init__(self, form: Form, number: float | None = None) -> None:
        super().__init__()
        self.form, self.number = form, number

    def forward_message(self, s: mg.View) -> Any:
        """(x, 0, ..., 0)."""
        return (s.value if self.number is None else self.number) * self.form.first


class Target(Agent):
    """Holds the label."""

    value = fast()

    def forward_message(self, s: mg.View) -> Any:
        """The label."""
        return s.value


class Silent(Agent):
    """A bias that is no synapse."""


class Unit(Agent):
    """Where messages meet. What goes up is y; what goes down is ``up``, from above, and the error e of an output.

    Args:
        form: of messages.
        merge: ``"mean"`` or ``"sum"``.
        transform: whether the unit's function is applied to what goes up, on each channel.
    """

    y, up, e = fast("m"), fast("m"), fast("m")

    def __init__(self, form: Form, merge: str, transform: bool) -> None:
        super().__init__()
        self.form, self.m, self.transform = form, form.m, transform
        self.aggregate = {"pre": merge, "backward:post": merge, "clear:post": merge}

    def forward_update(self, s: mg.View, pre: Any = None) -> mg.View:
        """y = the merged messages from below."""
        y = self.form.nothing() if pre is None else pre
        return s.set(y=s.apply(y) if self.transform else y)

    def forward_message(self, s: mg.View) -> Any:
        """What goes up."""
        return s.y

    def feedback_update(self, s: mg.View, post: Any = None) -> mg.View:
        """e = what the loss says."""
        return s.set(e=self.form.nothing() if post is None else post)

    def backward_update(self, s: mg.View, post: Any = None) -> mg.View:
        """up = the merged messages from above."""
        return s.set(up=self.form.nothing() if post is None else post)

    def backward_message(self, s: mg.View) -> Any:
        """What goes down."""
        return s.e + s.up

    def clear_update(self, s: mg.View, post: Any = None) -> mg.View:
        """The same once more, without the error."""
        return self.backward_update(s.set(e=self.form.nothing()), post)

    clear_message = backward_message

    def readout(self, s: mg.View) -> Any:
        """The prediction."""
        return self.form.read(s.y)


class Operation(mg.OperationAgent):
    """An operation, channel by channel; messages from above take its transposed derivative."""

    error = fast("m")

    def __init__(self, form: Form, merge: str) -> None:
        super().__init__()
        self.form, self.m = form, form.m
        self.aggregate = {"pre": "each", "backward:post": merge, "clear:post": merge}

    def feedback_update(self, s: mg.View, post: Any = None) -> mg.View:
        """What the loss says."""
        return s.set(error=self.form.nothing() if post is None else post)

    def backward_update(self, s: mg.View, post: Any = None) -> mg.View:
        """For each operand its part of the error and of the merged messages from above."""
        down = s.error if post is None else s.error + post
        return s.set(e=s.vjp(down, s.z, out=s.y))

    def clear_update(self, s: mg.View, post: Any = None) -> mg.View:
        """The same once more, without the error."""
        return self.backward_update(s.set(error=self.form.nothing()), post)

    clear_message = mg.OperationAgent.backward_message

    def readout(self, s: mg.View) -> Any:
        """The prediction."""
        return self.form.read(s.y)


class Loss(Agent):
    """Compares the prediction with the target; holds what it says until it is asked for."""

    z, t = fast(), fast()
    e = carry("m", learned=True)

    def __init__(self, form: Form, feed_label: bool) -> None:
        super().__init__()
        self.form, self.m, self.feed_label = form, form.m, feed_label

    def forward_update(self, s: mg.View, pre: Any, target: Any) -> mg.View:
        """Keep both."""
        return s.set(z=self.form.read(pre), t=target)

    def compare_update(self, s: mg.View) -> mg.View:
        """e = (dL/dz / batch size, label, 0, ...); the label only if it is fed."""
        e = s.gradient(s.z, s.t) / s.examples(1.0, "sum") * self.form.first
        return s.set(e=e + s.t * self.form.second if self.feed_label else e)

    def feedback_message(self, s: mg.View) -> Any:
        """What was said last."""
        return s.e
