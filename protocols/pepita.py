"""PEPITA: present the error to perturb the input to modulate activity.

Dellaferrera and Kreiman (2022), "Error-driven input modulation: solving the credit assignment problem without a
backward pass", ICML. Two forward passes, the second with the input moved by the error of the first:

    forward     h_l = f(W_l h_l-1)                    e = dL/dh_L
    again       x~ = x + F e                          h~_l = f(W_l h~_l-1)
    learn       W_l <- W_l - lr <(h_l - h~_l) h~_l-1'>     the output: W_L <- W_L - lr <e h~_L-1'>

F is fixed, random and small beside the input: connections ``x -> loss`` of the pathway ``feedback``, which the rule
adds.
"""

from __future__ import annotations

from typing import Any

import torch

import mpgraph as mg
from mpgraph import Agent, Protocol, fast, option, slow

from .pathways import joined


class Weight(Agent):
    """A synapse that learns from the second pass."""

    w = slow(init=mg.xavier_uniform)
    x = fast()
    same_as = {"again": "forward"}

    def forward_update(self, s: mg.View, pre: Any) -> mg.View:
        """Keep the activity below."""
        return s.set(x=pre)

    def forward_message(self, s: mg.View) -> Any:
        """w h."""
        return s.w * s.x

    def learn_update(self, s: mg.View, post: Any) -> mg.View:
        """<(h - h~) h~>."""
        return s.descend(w=s.examples(post * s.x))


class Feedback(Agent):
    """A fixed random synapse from the error to an input."""

    f = slow(init="start", frozen=True)
    e = fast()

    def __init__(self, rule: PEPITA) -> None:
        super().__init__()
        self.scale = rule.scale

    def start(self, shape: Any, node: Any, generator: torch.Generator, dtype: torch.dtype) -> torch.Tensor:
        """Uniform in scale * sqrt(6 / inputs)."""
        numbers = torch.rand(shape, generator=generator, dtype=torch.float64, device="cpu")
        return ((2.0 * numbers - 1.0) * self.scale * (6.0 / max(1, node.fan_in)) ** 0.5).to(dtype)

    def move_update(self, s: mg.View, post: Any) -> mg.View:
        """Keep the error."""
        return s.set(e=post)

    def move_message(self, s: mg.View) -> Any:
        """F e."""
        return s.f * s.e


class Input(Agent):
    """An input, which the error moves."""

    value, moved = fast(), fast()

    def forward_message(self, s: mg.View) -> Any:
        """x."""
        return s.value

    def move_update(self, s: mg.View, feedback: Any) -> mg.View:
        """x + F e."""
        return s.set(moved=s.value + feedback)

    def again_message(self, s: mg.View) -> Any:
        """The moved input."""
        return s.moved


class Unit(mg.UnitAgent):
    """A unit that compares its activity in the two passes."""

    again = fast()

    def again_update(self, s: mg.View, pre: Any) -> mg.View:
        """h~."""
        return s.set(again=s.apply(pre))

    def again_message(self, s: mg.View) -> Any:
        """h~."""
        return s.again

    def learn_message(self, s: mg.View) -> Any:
        """h - h~."""
        return s.y - s.again


class Output(Unit):
    """An output learns from the error of the first pass."""

    def learn_update(self, s: mg.View, post: Any) -> mg.View:
        """e."""
        return s.set(e=post)

    def learn_message(self, s: mg.View) -> Any:
        """e."""
        return s.e


class Loss(Agent):
    """Sends the error to the inputs, and then to its output."""

    e = fast()

    def forward_update(self, s: mg.View, pre: Any, target: Any) -> mg.View:
        """dL/dh."""
        return s.set(e=s.gradient(pre, target))

    def move_message(self, s: mg.View) -> Any:
        """e."""
        return s.e

    learn_message = move_message


class PEPITA(Protocol):
    """Learns from how activity changes when the error is added to the input."""

    lr = 0.3
    scale: float = option(0.05, "of F, times sqrt(6 / inputs).", above=0)
    passes = ("forward", "move", "again", "learn")
    without = ("surrogate",)
    adds_connections = ("feedback",)
    agents = {
        "input": Input,
        "weight": Weight,
        "feedback": Feedback,
        "unit": Unit,
        "output": Output,
        "operation": Unit,
        "loss": Loss,
    }
    source = """
@inproceedings{dellaferrera2022error,
  title={Error-driven input modulation: solving the credit assignment problem without a backward pass},
  author={Dellaferrera, Giorgia and Kreiman, Gabriel},
  booktitle={International Conference on Machine Learning}, pages={4937--4955}, year={2022}
}"""

    def rewrite(self, network: mg.Network) -> mg.Network:
        """The network with a feedback connection between every input and every loss.

        Raises:
            ProtocolError: for a network without a loss.
        """
        purpose = "whose error could move the input"
        return joined(network, network.inputs, "feedback", "PEPITA", purpose)
