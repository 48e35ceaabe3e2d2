"""The units of predictive coding in which errors settle in place of values (ePC).

Goemaere, Oliviers, Bogacz and Demeester (2025), "Error optimization: overcoming exponential signal decay in deep
predictive coding networks". The same energy as in :mod:`.rule`, in other variables:

    forward     e_l = 0     v_l = mu_l
    compare     v_l = mu_l(v_l-1) + e_l, from below upwards
    infer       u_l = -dL/dv_l, from above downwards through all predictions     e_l <- e_l + rate (u_l - precision e_l)
    learn       W_l <- W_l + lr / beta <f'(a_l) precision e_l v_l-1'>            at the output e_L = -beta dL/dmu_L

So the target reaches every layer in the first step. After one step hidden weights get ``rate`` times what
backpropagation would give them, output weights all of it; when errors rest, both are those of ``strict``.
"""

from __future__ import annotations

from typing import Any

import mpgraph as mg
from mpgraph import fast

from .values import Synapse as Synapse


class Unit(mg.UnitAgent):
    """A prediction and an error on top of it."""

    v, u, d = fast(), fast(), fast()
    operations = False

    def __init__(self, rule: Any) -> None:
        super().__init__()
        self.rate, self.precision, self.beta = rule.rate, rule.precision, rule.beta

    def forward_update(self, s: mg.View, pre: Any) -> mg.View:
        """v = mu."""
        s, mu = s.activate(pre)
        return s.set(z=pre, y=mu, e=0.0, v=mu)

    def compare_update(self, s: mg.View, pre: Any) -> mg.View:
        """v = mu + e."""
        s, mu = s.activate(pre)
        return s.set(z=pre, y=mu, v=mu + s.e)

    def forward_message(self, s: mg.View) -> Any:
        """The value."""
        return s.v

    compare_message = forward_message

    def infer_update(self, s: mg.View, post: Any) -> mg.View:
        """e <- e + rate (u - precision e)."""
        e = s.e + self.rate * (post - self.precision * s.e)
        return s.set(e=e, u=s.vjp(post, s.z, out=s.y), d=s.vjp(self.precision * e, s.z, out=s.y))

    def infer_message(self, s: mg.View) -> Any:
        """f'(a) u."""
        return s.u

    def learn_message(self, s: mg.View) -> Any:
        """f'(a) precision e."""
        return s.d


class Output(Unit):
    """A unit whose error comes from the loss."""

    def compare_update(self, s: mg.View, pre: Any) -> mg.View:
        """v = mu."""
        return self.forward_update(s, pre)

    def infer_update(self, s: mg.View, post: Any) -> mg.View:
        """e = -beta dL/dmu."""
        d = s.vjp(self.beta * post, s.z, out=s.y)
        return s.set(u=d, d=d)
