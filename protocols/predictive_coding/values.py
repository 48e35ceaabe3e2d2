"""The agents of predictive coding as Whittington and Bogacz (2017) write it, see :mod:`.rule`.

Units hold a value v beside what those below predict of it:

    predict     a_l = W_l v_l-1 + b_l     mu_l = f(a_l)     e_l = precision (v_l - mu_l)
    start       v_l = mu_l, one forward pass
    infer       v_l <- v_l + rate (W_l+1' (f'(a_l+1) e_l+1) - e_l), then predict again; several times
    learn       W_l <- W_l + lr / beta <f'(a_l) e_l v_l-1'>
"""

from __future__ import annotations

from typing import Any

import mpgraph as mg
from mpgraph import Agent, fast, slow
from mpgraph.agents.initializers import normal


class Synapse(Agent):
    """A synapse from the value v of the unit below to the prediction of the unit above."""

    w = slow(init=mg.xavier_uniform)
    x, d = fast(), fast()
    same_as = {"compare": "forward", "again": "forward"}

    def __init__(self, rule: Any, gain: float | None = None) -> None:
        super().__init__()
        self.beta, self.scaled, self.gain = rule.beta, gain is not None, 1.0 if gain is None else gain

    def channels(self) -> dict[str, mg.Channel]:
        """Scaled weights are sampled from N(0, 1)."""
        return {**super().channels(), **({"w": slow(init=normal(1.0))} if self.scaled else {})}

    def forward_update(self, s: mg.View, pre: Any) -> mg.View:
        """Keep the value below."""
        return s.set(x=pre)

    def forward_message(self, s: mg.View) -> Any:
        """w v."""
        return self.gain * s.w * s.x

    def infer_update(self, s: mg.View, post: Any) -> mg.View:
        """Keep the error above, f'(a) e."""
        return s.set(d=post)

    def infer_message(self, s: mg.View) -> Any:
        """w f'(a) e."""
        return self.gain * s.w * s.d

    def product(self, s: mg.View, post: Any) -> Any:
        """<f'(a) e v>."""
        return s.examples(post * s.x)

    def learn_update(self, s: mg.View, post: Any) -> mg.View:
        """dF/dw = -<f'(a) e v>."""
        return s.descend(w=-self.gain * self.product(s, post) / self.beta)


class Unit(mg.UnitAgent):
    """A value and its error; both are sent as they were before the pass."""

    a, mu, v, d = fast(), fast(), fast(), fast()
    same_as = {"again": "forward"}
    sends_first: tuple[str, ...] = ("compare", "infer")
    operations = False

    def __init__(self, rule: Any) -> None:
        super().__init__()
        self.rate, self.precision, self.beta = rule.rate, rule.precision, rule.beta

    def forward_update(self, s: mg.View, pre: Any) -> mg.View:
        """v = mu."""
        s, mu = s.activate(pre)
        return s.set(a=pre, mu=mu, v=mu, e=0.0, d=0.0)

    def forward_message(self, s: mg.View) -> Any:
        """The value."""
        return s.v

    compare_message = forward_message

    def infer_message(self, s: mg.View) -> Any:
        """f'(a) e."""
        return s.d

    keep_message = learn_message = infer_message

    def infer_update(self, s: mg.View, post: Any) -> mg.View:
        """v <- v + rate (errors above - e)."""
        return s.set(v=s.v + self.rate * (post - s.e))

    def compare_update(self, s: mg.View, pre: Any) -> mg.View:
        """Predict again."""
        s, mu = s.activate(pre)
        return self.hold_update(s.set(a=pre, mu=mu))

    def hold_update(self, s: mg.View) -> mg.View:
        """e = precision (v - mu)."""
        e = self.precision * (s.v - s.mu)
        return s.set(e=e, d=s.vjp(e, s.a, out=s.mu))


class Output(Unit):
    """A unit whose value is its prediction and whose error comes from the loss."""

    sends_first: tuple[str, ...] = ()

    def compare_update(self, s: mg.View, pre: Any) -> mg.View:
        """v = mu, also for the loss."""
        s, mu = s.activate(pre)
        return s.set(a=pre, mu=mu, v=mu)

    hold_update = None  # type: ignore[assignment]

    def nudge(self, s: mg.View) -> Any:
        """How strongly the loss is heard."""
        return self.beta

    def infer_update(self, s: mg.View, post: Any) -> mg.View:
        """e = -beta dL/dmu."""
        return s.set(d=s.vjp(self.nudge(s) * post, s.a, out=s.mu))

    keep_update = learn_update = infer_update


class Operation(mg.UnitAgent):
    """An operation is a part of the predictions above it, and carries their errors to its operands."""

    same_as = {"compare": "forward", "again": "forward"}

    def infer_update(self, s: mg.View, post: Any) -> mg.View:
        """What that means for each operand."""
        return s.set(e=s.vjp(post, s.z, out=s.y))

    def infer_message(self, s: mg.View) -> Any:
        """To each operand its own."""
        return s.e


class Loss(Agent):
    """Sends its output what would make it less."""

    e = fast()
    same_as = {"compare": "forward", "again": "forward"}

    def forward_update(self, s: mg.View, pre: Any, target: Any) -> mg.View:
        """dL/dmu."""
        return s.set(e=s.gradient(pre, target))

    def infer_message(self, s: mg.View) -> Any:
        """-dL/dmu."""
        return -s.e

    keep_message = learn_message = infer_message
