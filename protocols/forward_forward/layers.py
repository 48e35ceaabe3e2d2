"""The layers of forward-forward: each learns from its own goodness, see :mod:`.rule`.

run         a_l = W_l x_l-1 + b_l     y_l = f(a_l)     x_l = y_l / |y_l|: only the direction is passed on
goodness    g_l = sum_j y_j^2         p(positive) = 1 / (1 + exp(theta n - g)), with n the size of the unit
learn       L_l = -log p(positive) of the positive run - log (1 - p(positive)) of the negative one
            W_l <- W_l - lr <dL_l/da_l x_l-1'>, summed over both runs
"""

from __future__ import annotations

from typing import Any

import torch

import mpgraph as mg
from mpgraph import Agent, fast, slow

AGAIN = {"negative": "positive", "score": "positive"}


def direction(s: mg.View, y: Any) -> Any:
    """y / |y|, from which goodness cannot be read."""
    return y / torch.sqrt(s.population(y * y) + 1e-8)


class Input(Agent):
    """An input, of which only the direction counts."""

    same_as = AGAIN
    value, x = fast(), fast()

    def __init__(self, rule: Any) -> None:
        super().__init__()
        self.length = rule.length

    def positive_update(self, s: mg.View) -> mg.View:
        """length x / |x|."""
        return s.set(x=self.length * direction(s, s.value))

    def positive_message(self, s: mg.View) -> Any:
        """The same."""
        return s.x


class Weight(Agent):
    """A synapse that keeps what the positive run taught until the negative one is over."""

    w = slow(init=mg.xavier_uniform)
    x, taught = fast(), fast()
    same_as = AGAIN

    def positive_update(self, s: mg.View, pre: Any) -> mg.View:
        """Keep the activity below."""
        return s.set(x=pre)

    def positive_message(self, s: mg.View) -> Any:
        """w x."""
        return s.w * s.x

    def teach_update(self, s: mg.View, post: Any) -> mg.View:
        """dL/dw of the positive run."""
        return s.set(taught=s.examples(post * s.x))

    def learn_update(self, s: mg.View, post: Any) -> mg.View:
        """And of the negative one."""
        return s.descend(w=s.taught + s.examples(post * s.x))


class Unit(mg.UnitAgent):
    """A layer, which learns from its own goodness."""

    x = fast()
    operations = False

    def __init__(self, rule: Any) -> None:
        super().__init__()
        self.theta = rule.threshold

    def score_update(self, s: mg.View, pre: Any, label: Any = 0.0) -> mg.View:
        """y = f(a) and x, with each label; what the function keeps is that of the other runs."""
        y = s.apply(pre + label) if s.learning else s.activate(pre + label)[1]
        return s.set(y=y, x=direction(s, y))

    def score_message(self, s: mg.View) -> Any:
        """The direction of y."""
        return s.x

    positive_message = negative_message = score_message

    def positive_update(self, s: mg.View, pre: Any, label: Any = 0.0) -> mg.View:
        """dL/da = -f'(a) 2 y / (1 + exp(g - theta n))."""
        s = self.run(s, pre + label)
        return s.set(e=s.vjp(-2.0 * s.y * torch.sigmoid(-self.excess(s)), s.z, out=s.y))

    def negative_update(self, s: mg.View, pre: Any, label: Any = 0.0) -> mg.View:
        """dL/da = f'(a) 2 y / (1 + exp(theta n - g))."""
        s = self.run(s, pre + label)
        return s.set(e=s.vjp(2.0 * s.y * torch.sigmoid(self.excess(s)), s.z, out=s.y))

    def run(self, s: mg.View, a: Any) -> mg.View:
        """y = f(a) and x."""
        s, y = s.activate(a)
        return s.set(z=a, y=y, x=direction(s, y))

    def excess(self, s: mg.View) -> Any:
        """g - theta n."""
        return s.population(s.y * s.y - self.theta)

    def teach_message(self, s: mg.View) -> Any:
        """dL/da."""
        return s.e

    learn_message = teach_message

    def judge_message(self, s: mg.View) -> Any:
        """y^2."""
        return s.y * s.y


class Output(Unit):
    """The last layer, which collects the goodness of all."""

    score = fast()

    def judge_update(self, s: mg.View, post: Any, goodness: Any = 0.0) -> mg.View:
        """The goodness with the label of this agent."""
        return s.set(score=(s.population(s.y * s.y) + goodness) @ post)

    judge_message = None  # type: ignore[assignment]

    def readout(self, s: mg.View) -> Any:
        """The goodness."""
        return s.score


class Operation(mg.UnitAgent):
    """An operation on what units passed on."""

    same_as = {**AGAIN, "positive": "forward"}
