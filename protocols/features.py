"""The agents of features: units that learn from their activity, unless a loss teaches them, and their synapses.

backward    a unit with a loss receives dL/dz; others receive errors only from supervised synapses
observe     a unit sets what it learns by: ``rate`` for the local rule, ``delta`` for the delta rule
meet        it sends both to the synapses below; the other passes are those of :mod:`.neighbors`
"""

from __future__ import annotations

from typing import Any

import mpgraph as mg
from mpgraph import fast

from .backprop import Weight
from .neighbors import AGENTS, Neighbor, Operation, Unit


class Synapse(Weight):
    """Hebb's synapse; others differ in what they subtract from x."""

    y, rate, delta, r = fast(), fast(), fast(), fast()

    def __init__(self, rule: Any) -> None:
        super().__init__()
        self.supervised = is_on(rule.supervision)

    def message_of(self, name: str, to: str = "") -> Any:
        """No error goes below, unless the rule is supervised."""
        return super().message_of(name, to) if self.supervised or name != "backward" else None

    def meet_update(self, s: mg.View, post: Any) -> mg.View:
        """Keep what the unit above sends: its activity, the rate of the local rule, and its scaled error."""
        return s.set(y=post["y"], rate=post["rate"], delta=post["delta"])

    def recall_message(self, s: mg.View) -> Any:
        """w y, summed over j on its way back to unit i."""
        return s.w * s.y

    def explained(self, s: mg.View) -> Any:
        """What is subtracted from x."""
        return 0.0

    def learn_update(self, s: mg.View, pre: Any) -> mg.View:  # type: ignore[override]
        """w + rate y (x - explained) - delta x; the local term is averaged over the places of an example."""
        s = s.set(r=pre)
        rate = s.rate / s.examples(1.0)
        return s.descend(w=-s.examples(rate * s.y * (s.x - self.explained(s)) - s.delta * s.x))


class Bias(Synapse):
    """A synapse from the number one, which learns only from errors."""

    def learn_update(self, s: mg.View, pre: Any) -> mg.View:  # type: ignore[override]
        """w - delta."""
        return s.descend(w=s.examples(s.delta * s.x))


class Feature(Unit):
    """A unit that learns by the local rule, unless there is a loss on it."""

    rate, delta = fast(), fast()

    def __init__(self, rule: Any) -> None:
        super().__init__()
        self.local, self.lr, self.supervision = rule.rate, rule.lr, rule.supervision

    def backward_update(self, s: mg.View, post: Any = None) -> mg.View:
        """Its error: none where nobody sends one."""
        return super().backward_update(s, 0.0 * s.y if post is None else post)

    def observe_update(self, s: mg.View, post: Any = None) -> mg.View:
        """Only a loss sends a message here, and so only a unit with one follows the delta rule."""
        s = Neighbor.observe_update(self, s)
        if post is None:
            return s.set(rate=self.local, delta=self.supervision * s.e)
        return s.set(rate=0.0, delta=self.lr * s.e)

    def meet_message(self, s: mg.View) -> Any:
        """To the synapses below."""
        return {"y": s.activity, "rate": s.rate, "delta": s.delta}


class FeatureOperation(Operation):
    """An operation, which may receive no error."""

    def backward_update(self, s: mg.View, post: Any = None) -> mg.View:
        """For each operand its error: none where nobody sends one."""
        return super().backward_update(s, 0.0 * s.y if post is None else post)


def is_on(supervision: Any) -> bool:
    """Whether there is any: a number other than zero, or a parameter."""
    return not isinstance(supervision, (int, float)) or supervision != 0


FEATURES = {**AGENTS, "unit": Feature, "operation": FeatureOperation, "bias": Bias}
