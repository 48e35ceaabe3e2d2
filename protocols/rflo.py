"""Random feedback local online learning.

Murray (2019), "Local online learning in recurrent networks with random feedback", eLife 8. Units leak in their rate; a
step is one tick t; outputs do not leak (tau = 1):

    forward     u_j = sum_i w_ji r_i + b_j        r_j <- (1 - 1/tau) r_j + f(u_j) / tau
    trace       p_ji <- (1 - 1/tau) p_ji + f'(u_j) r_i / tau
    backward    l_j = sum_k b_kj (dL/dy)_k        at the output l = dL/dr
    learn       w_ji <- w_ji - lr <l_j p_ji>

The derivative stands inside the filter, so that every synapse has a trace of its own for each example. With
``feedback="symmetric"`` b is the weight w.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import mpgraph as mg
from mpgraph import Agent, carry, fast, option, slow

from .direct_feedback_alignment import Feedback, ForwardOperation
from .eprop import EProp


class Synapse(Agent):
    """A synapse with its trace p."""

    w = slow(init=mg.xavier_uniform)
    p = carry(per="use")
    x = fast()

    def forward_update(self, s: mg.View, pre: Any) -> mg.View:
        """Keep what it hears."""
        return s.set(x=pre)

    def forward_message(self, s: mg.View) -> Any:
        """w r."""
        return s.w * s.x

    def trace_update(self, s: mg.View, post: Any) -> mg.View:
        """p <- (1 - 1/tau) p + f'(u) r / tau, with the unit's tau."""
        return s.set(p=post["keep"] * s.p + post["slope"] * s.x)

    def learn_update(self, s: mg.View, post: Any) -> mg.View:
        """<l p>."""
        return s.descend(w=s.examples(post * s.p))


class SymmetricSynapse(Synapse):
    """A synapse through which the learning signal goes back, within a tick."""

    e = fast()

    def backward_update(self, s: mg.View, post: Any) -> mg.View:
        """Keep what it is to send back."""
        return s.set(e=post)

    def backward_message(self, s: mg.View) -> Any:
        """w f'(u) l / tau."""
        return s.w * s.e


class Unit(mg.UnitAgent):
    """A unit whose rate leaks."""

    r, f, slope, l = carry(per="use"), fast(), fast(), fast()  # noqa: E741
    operations = False

    def __init__(self, rule: RFLO) -> None:
        super().__init__()
        self.keep, self.share = 1.0 - 1.0 / rule.tau, 1.0 / rule.tau

    def forward_update(self, s: mg.View, pre: Any) -> mg.View:
        """The rate, and f'(u) / tau."""
        s, f = s.activate(pre)
        r = self.keep * s.r + self.share * f
        return s.set(z=pre, f=f, r=r, y=r, slope=self.share * s.vjp(1.0, pre, out=f))

    def trace_message(self, s: mg.View) -> Any:
        """1 - 1/tau and f'(u) / tau."""
        return {"keep": self.keep, "slope": s.slope}

    def backward_update(self, s: mg.View, post: Any) -> mg.View:
        """The learning signal, and what it means for u."""
        return s.set(l=post, e=self.share * s.vjp(post, s.z, out=s.f))

    def learn_message(self, s: mg.View) -> Any:
        """l."""
        return s.l

    def readout(self, s: mg.View) -> Any:
        """r."""
        return s.y


class DirectUnit(Unit):
    """A unit whose learning signal comes from the loss."""

    def backward_update(self, s: mg.View, feedback: Any) -> mg.View:
        """The feedback."""
        return s.set(l=feedback)

    backward_message = None  # type: ignore[assignment]


class Output(Unit):
    """An output: its rate does not leak."""

    def __init__(self) -> None:
        mg.UnitAgent.__init__(self)
        self.keep, self.share = 0.0, 1.0


class RFLO(EProp):
    """Gradient descent at every tick by traces that each synapse filters, and random feedback."""

    tau: float = option(10.0, "ticks in which a rate follows its input.", low=1)
    without = ("decay", "reset")
    agents = {
        "weight": lambda rule: Synapse() if rule.feedback == "random" else SymmetricSynapse(),
        "feedback": Feedback,
        "unit": lambda rule: DirectUnit(rule) if rule.feedback == "random" else Unit(rule),
        "output": Output,
        "operation": lambda rule: ForwardOperation() if rule.feedback == "random" else mg.UnitAgent(),
    }
    source = """
@article{murray2019local,
  title={Local online learning in recurrent networks with random feedback},
  author={Murray, James M.}, journal={eLife}, volume={8}, pages={e43299}, year={2019}
}"""

    def check(self, agents: Mapping[mg.AgentNode, Agent]) -> None:
        """Warn of units whose derivative is zero: traces that are kept hide from the compiler that they stay so."""
        flat = [
            repr(node.name)
            for node, agent in agents.items()
            if isinstance(agent, Unit) and isinstance(node.function, mg.Activation) and node.function.is_flat()
        ]
        if flat and self.surrogate is None:
            text = "has zero derivative everywhere, so the traces of its synapses stay zero and these do not learn"
            advice = "choose a surrogate: RFLO(surrogate='tanh')"
            warnings.warn(f"RFLO: {', '.join(flat)} {text}; {advice}", mg.FlatUnitWarning, stacklevel=6)
