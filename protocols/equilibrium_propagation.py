"""Equilibrium propagation.

Scellier and Bengio (2017), "Equilibrium propagation: bridging the gap between energy-based models and backpropagation",
Frontiers in Computational Neuroscience 11; symmetric nudging by Laborieux et al. (2021), Frontiers in Neuroscience 15.
Units y = f(v) settle into a minimum of an energy, in which every synapse acts in both directions:

    E = sum_i int f^-1(y_i) - sum_ij w_ij y_i y_j - sum_i b_i y_i
    settle      v_i <- v_i + rate (sum_j w_ij y_j + b_i - v_i)           the free state y0
    nudge       the same, and -beta dL/dy at an output                   the nudged state y+
    oppose      from the free state again, with +beta dL/dy              the state y-
    learn       w_ij <- w_ij + lr / beta <y+_i y+_j - y0_i y0_j>         an error of order beta
                w_ij <- w_ij + lr / (2 beta) <y+_i y+_j - y-_i y-_j>     symmetric: of order beta^2

At a free state that has settled this is the gradient of the loss, as beta goes to zero, on any graph: connections may
be recurrent and units may drive themselves. Operations (pooling) act at once, as a part of their energy.
"""

from __future__ import annotations

from typing import Any

import torch

import mpgraph as mg
from mpgraph import Agent, Protocol, fast, option, slow

NUDGED = {"nudge": "settle", "oppose": "settle"}  # the same dynamics
AGAIN = {"mark": "send", "learn": "send"}


class Synapse(Agent):
    """One synapse w between y_i and y_j, the same in both directions."""

    w = slow(init="start")
    x, y, x_marked, y_marked = fast(), fast(), fast(), fast()
    same_as = NUDGED

    def __init__(self, rule: EquilibriumPropagation) -> None:
        super().__init__()
        self.gain, self.scale = rule.gain, -0.5 / rule.beta if rule.symmetric else 1.0 / rule.beta

    def start(self, shape: Any, node: Any, generator: torch.Generator, dtype: torch.dtype) -> torch.Tensor:
        """Uniform, smaller than Glorot's: activity goes both ways."""
        return self.gain * mg.xavier_uniform(shape, node, generator, dtype)

    def send_update(self, s: mg.View, pre: Any, post: Any) -> mg.View:
        """Keep the activity at both ends."""
        return s.set(x=pre, y=post)

    def settle_message_to_post(self, s: mg.View) -> Any:
        """w y_i."""
        return s.w * s.x

    def settle_message_to_pre(self, s: mg.View) -> Any:
        """w y_j."""
        return s.w * s.y

    def mark_update(self, s: mg.View, pre: Any, post: Any) -> mg.View:
        """Keep those of the first of two states."""
        return s.set(x_marked=pre, y_marked=post)

    def learn_update(self, s: mg.View, pre: Any, post: Any) -> mg.View:
        """The difference of the two products."""
        return s.descend(w=self.scale * s.examples(s.x_marked * s.y_marked - pre * post))


class Unit(mg.UnitAgent):
    """A leaky unit."""

    v, free = fast(), fast()
    same_as = {**NUDGED, **AGAIN}
    operations = False

    def __init__(self, rule: EquilibriumPropagation) -> None:
        super().__init__()
        self.rate = rule.rate

    def begin_update(self, s: mg.View) -> mg.View:
        """At rest."""
        return s.set(v=0.0)

    def send_update(self, s: mg.View) -> mg.View:
        """y = f(v)."""
        s, y = s.activate(s.v)
        return s.set(y=y)

    def send_message(self, s: mg.View) -> Any:
        """The activity, to the synapses on both sides."""
        return s.y

    def settle_update(self, s: mg.View, pre: Any, post: Any = 0.0) -> mg.View:
        """v <- v + rate (what it receives from both sides - v)."""
        return s.set(v=s.v + self.rate * (pre + post - s.v))

    def keep_update(self, s: mg.View) -> mg.View:
        """Remember the free state."""
        return s.set(free=s.v)

    def restart_update(self, s: mg.View) -> mg.View:
        """Back to the free state."""
        return s.set(v=s.free)

    def readout(self, s: mg.View) -> Any:
        """f(v) at the end of the free phase."""
        return s.activate(s.v)[1]


class Operation(mg.UnitAgent):
    """An operation; what it receives from above goes to its operands by its derivative."""

    same_as = {**NUDGED, **AGAIN}

    def send_update(self, s: mg.View, pre: mg.Each) -> mg.View:
        """f(y_1, y_2, ...)."""
        return s.set(z=pre, y=s.apply(pre))

    def send_message(self, s: mg.View) -> Any:
        """The result."""
        return s.y

    def settle_update(self, s: mg.View, post: Any) -> mg.View:
        """What that means for each operand."""
        return s.set(e=s.vjp(post, s.z, out=s.y))

    def settle_message(self, s: mg.View) -> Any:
        """To each operand its own."""
        return s.e

    def readout(self, s: mg.View) -> Any:
        """The result."""
        return s.y


class Loss(Agent):
    """Nudges an output to where the loss is less, or away from there."""

    e = fast()

    def __init__(self, rule: EquilibriumPropagation) -> None:
        super().__init__()
        self.beta = rule.beta

    def send_update(self, s: mg.View, pre: Any, target: Any) -> mg.View:
        """dL/dy."""
        return s.set(e=s.gradient(pre, target))

    def nudge_message(self, s: mg.View) -> Any:
        """-beta dL/dy."""
        return -self.beta * s.e

    def oppose_message(self, s: mg.View) -> Any:
        """+beta dL/dy."""
        return self.beta * s.e


class EquilibriumPropagation(Protocol):
    """Contrasts two states into which the network settles, one of them nudged to the target."""

    free: int = option(20, "rounds of the free phase.", low=1)
    nudged: int = option(10, "rounds of each nudged phase.", low=1)
    beta: float = option(0.2, "strength of the nudge.", above=0)
    rate: float = option(0.5, "share of the way that a unit goes in a round.", above=0, high=1)
    symmetric: bool = option(True, "compare two opposite nudges, in place of one with the free state.")
    gain: float = option(0.5, "times the initial weights of Glorot and Bengio.", above=0)
    without = ("surrogate",)
    agents = {"weight": Synapse, "unit": Unit, "operation": Operation, "loss": Loss}
    source = """
@article{scellier2017equilibrium,
  title={Equilibrium propagation: bridging the gap between energy-based models and backpropagation},
  author={Scellier, Benjamin and Bengio, Yoshua},
  journal={Frontiers in Computational Neuroscience}, volume={11}, year={2017}
}"""

    def setup(self) -> None:
        """The phases in their order."""
        self.predict_passes = ("begin", mg.repeat(("send", "settle"), self.free, name="free"))
        nudge, oppose = (mg.repeat(("send", one), self.nudged, name="nudged") for one in ("nudge", "oppose"))
        second = (nudge, "mark", "restart", oppose) if self.symmetric else ("mark", nudge)
        self.passes = (*self.predict_passes, "keep", *second, "learn")
