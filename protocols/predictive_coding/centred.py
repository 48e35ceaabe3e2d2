"""Agents of centred predictive coding: outputs are nudged to the target, then away from it.

Pinchetti et al. (2025), "Benchmarking predictive coding networks - made simple". Half the difference of what synapses
would learn has an error of beta^2 where that of one nudge is beta:

    W_l <- W_l + lr / (2 beta) (<f'(a_l) e_l v_l-1'> at +beta - <f'(a_l) e_l v_l-1'> at -beta)
"""

from __future__ import annotations

from typing import Any

import mpgraph as mg
from mpgraph import fast

from . import values
from .values import Unit as Unit


class Synapse(values.Synapse):
    """A synapse that compares both nudges."""

    kept = fast()

    def keep_update(self, s: mg.View, post: Any) -> mg.View:
        """Keep <f'(a) e v> of the first nudge."""
        return s.set(kept=super().product(s, post))

    def product(self, s: mg.View, post: Any) -> Any:
        """Half the difference of both."""
        return 0.5 * (s.kept - super().product(s, post))


class Output(values.Output):
    """An output that is nudged both ways."""

    sign = fast()

    def forward_update(self, s: mg.View, pre: Any) -> mg.View:
        """v = mu, to be nudged to the target."""
        return super().forward_update(s, pre).set(sign=1.0)

    def again_update(self, s: mg.View, pre: Any) -> mg.View:
        """v = mu, to be nudged away from it."""
        return super().forward_update(s, pre).set(sign=-1.0)

    def nudge(self, s: mg.View) -> Any:
        """beta, then -beta."""
        return s.sign * self.beta
