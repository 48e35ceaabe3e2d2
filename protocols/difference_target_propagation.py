"""Difference target propagation.

Lee, Zhang, Fischer and Bengio (2015), "Difference target propagation", ECML. Units receive targets in place of errors,
through feedback g that learns to invert the layer above:

    forward     h_l = f(W_l h_l-1 + b_l)
    invert      g_l-1(h) = f(V_l' h + c_l-1)                  of the activities above
    aim         t_L = h_L - step dL/dh_L                      t_l-1 = h_l-1 - g_l-1(h_l) + g_l-1(t_l)
    probe       p_l = f(W_l (h_l-1 + n) + b_l)                n is noise of deviation sigma, of each layer its own
    answer      r_l-1 = g_l-1(p_l)                            d = f' (r_l-1 - h_l-1 - n)
    learn       W_l <- W_l - lr <f'(z_l) (h_l - t_l) h_l-1'>  V_l <- V_l - lr inverse <p_l d'>

The target of the output moves by the derivative of the loss alone, and its connection has an inverse like the others.
Inputs have none. An operation (pooling) carries targets to its operands by its transposed derivative.
"""

from __future__ import annotations

from typing import Any

import mpgraph as mg
from mpgraph import Agent, Protocol, fast, option, slow


class InputWeight(Agent):
    """A synapse from an input, or of a bias: nobody below needs a target."""

    w = slow(init=mg.xavier_uniform)
    x = fast()

    def forward_update(self, s: mg.View, pre: Any) -> mg.View:
        """Keep the activity below."""
        return s.set(x=pre)

    def forward_message(self, s: mg.View) -> Any:
        """w h."""
        return s.w * s.x

    probe_message = forward_message

    def learn_update(self, s: mg.View, post: Any) -> mg.View:
        """<f'(z) (h - t) h>."""
        return s.descend(w=s.examples(post * s.x))


class Weight(InputWeight):
    """A synapse w with its partner v of the feedback."""

    v = slow(init=mg.xavier_uniform)
    noisy, back, p = fast(), fast(), fast()
    same_as = {"aim": "invert"}

    def invert_update(self, s: mg.View, post: Any) -> mg.View:
        """Keep what comes from above: an activity, a target."""
        return s.set(back=post)

    def invert_message(self, s: mg.View) -> Any:
        """v times that."""
        return s.v * s.back

    def probe_update(self, s: mg.View, pre: Any) -> mg.View:
        """Keep the noisy activity."""
        return s.set(noisy=pre)

    def probe_message(self, s: mg.View) -> Any:
        """w (h + n)."""
        return s.w * s.noisy

    def answer_update(self, s: mg.View, post: Any) -> mg.View:
        """Keep what the unit above made of it."""
        return s.set(p=post)

    def answer_message(self, s: mg.View) -> Any:
        """v p."""
        return s.v * s.p

    def learn_update(self, s: mg.View, post: Any, pre: Any) -> mg.View:  # type: ignore[override]
        """Both."""
        return s.descend(w=s.examples(post * s.x), v=s.examples(pre * s.p))


class Output(mg.UnitAgent):
    """An output: its target lies where the loss is less."""

    target, p = fast(), fast()

    def __init__(self, rule: DifferenceTargetPropagation) -> None:
        super().__init__()
        self.step, self.noise, self.inverse = rule.step, rule.noise, rule.inverse

    def invert_message(self, s: mg.View) -> Any:
        """Its activity."""
        return s.y

    def aim_update(self, s: mg.View, post: Any) -> mg.View:
        """t = h - step dL/dh."""
        return s.set(target=s.y - self.step * post)

    def aim_message(self, s: mg.View) -> Any:
        """Its target."""
        return s.target

    def probe_update(self, s: mg.View, pre: Any) -> mg.View:
        """p = f of noisy activity below."""
        return s.set(p=s.apply(pre))

    def answer_message(self, s: mg.View) -> Any:
        """p."""
        return s.p

    def learn_update(self, s: mg.View) -> mg.View:
        """f'(z) (h - t)."""
        return s.set(e=s.vjp(s.y - s.target, s.z, out=s.y))

    def learn_message_to_pre(self, s: mg.View) -> Any:
        """The same, to the synapses below."""
        return s.e


class Unit(Output):
    """A hidden unit, with its part of the inverse of those above."""

    c = slow()
    inverted, noisy, d = fast(), fast(), fast()
    operations = False

    def invert_update(self, s: mg.View, post: Any) -> mg.View:
        """g(h)."""
        return s.set(inverted=s.apply(post + s.c))

    def aim_update(self, s: mg.View, post: Any) -> mg.View:
        """t = h - g(h) + g(t), and a noisy activity."""
        return s.set(target=s.y - s.inverted + s.apply(post + s.c), noisy=s.y + self.noise * s.normal())

    def probe_message(self, s: mg.View) -> Any:
        """h + n."""
        return s.noisy

    def answer_update(self, s: mg.View, post: Any) -> mg.View:
        """d = inverse f' (r - h - n)."""
        z = post + s.c
        r = s.apply(z)
        return s.set(d=self.inverse * s.vjp(r - s.noisy, z, out=r))

    def learn_update(self, s: mg.View) -> mg.View:
        """Its own part of the inverse learns, too."""
        return super().learn_update(s).descend(c=s.examples(s.d))

    def learn_message_to_post(self, s: mg.View) -> Any:
        """d, to the synapses above."""
        return s.d


class Operation(mg.UnitAgent):
    """An operation carries what comes from above to its operands."""

    noisy, back, d = fast(), fast(), fast()
    same_as = {"aim": "invert"}

    def __init__(self, rule: DifferenceTargetPropagation) -> None:
        super().__init__()
        self.inverse = rule.inverse

    def invert_update(self, s: mg.View, post: Any) -> mg.View:
        """To each operand its part."""
        return s.set(back=s.vjp(post, s.z, out=s.y))

    def invert_message(self, s: mg.View) -> Any:
        """The same."""
        return s.back

    def probe_update(self, s: mg.View, pre: mg.Each) -> mg.View:
        """Of noisy operands."""
        return s.set(noisy=s.apply(pre))

    def probe_message(self, s: mg.View) -> Any:
        """The result."""
        return s.noisy

    def answer_update(self, s: mg.View, post: Any) -> mg.View:
        """What the synapses above are to invert is its result."""
        return s.set(d=self.inverse * (post - s.noisy), back=s.vjp(post, s.z, out=s.y))

    def answer_message(self, s: mg.View) -> Any:
        """To each operand its part."""
        return s.back

    def learn_message_to_post(self, s: mg.View) -> Any:
        """d."""
        return s.d


class Loss(mg.LossAgent):
    """Tells its output where the loss is less: dL/dh."""

    same_as = {"aim": "backward"}


class DifferenceTargetPropagation(Protocol):
    """Sends targets down through learned inverses."""

    step: float = option(0.7, "of the output's target, along the derivative of the loss.", above=0)
    noise: float = option(0.3, "standard deviation, when inverses learn.", low=0)
    inverse: float = option(1.0, "times the learning rate, for inverses.", above=0)
    passes = ("forward", "invert", "aim", "probe", "answer", "learn")
    agents = {
        "weight": Weight,
        "input_weight": InputWeight,
        "bias": InputWeight,
        "unit": Unit,
        "output": Output,
        "operation": Operation,
        "loss": Loss,
    }
    source = """
@inproceedings{lee2015difference,
  title={Difference target propagation},
  author={Lee, Dong-Hyun and Zhang, Saizheng and Fischer, Asja and Bengio, Yoshua},
  booktitle={Machine Learning and Knowledge Discovery in Databases ({ECML} {PKDD})}, pages={498--515}, year={2015}
}"""
