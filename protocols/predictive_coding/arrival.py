"""Agents of Z-IL: each unit learns by its error at the moment when the first error reaches it.

Song, Millidge, Salvatori, Lukasiewicz, Xu and Bogacz (2020), "Can the brain do backpropagation? Exact implementation of
backpropagation in predictive coding networks". At rate 1 on a chain of layers it is backpropagation. Inference is that
of :mod:`.values`; beside it, who has been reached tells the units below in every round:

    arrive      reached_l <- whether a unit above has been reached     first_l <- e_l, when that changes
    learn       W_l <- W_l + lr / beta <f'(a_l) first_l v_l-1'>        with v as the forward pass left it
"""

from __future__ import annotations

from typing import Any

import torch

import mpgraph as mg
from mpgraph import fast

from . import values


class Synapse(values.Synapse):
    """A synapse that learns by the value at the start."""

    start, reached = fast(), fast()

    def forward_update(self, s: mg.View, pre: Any) -> mg.View:
        """Keep the value below, and that it was the first."""
        return s.set(x=pre, start=pre)

    def compare_update(self, s: mg.View, pre: Any) -> mg.View:
        """Keep it, whatever it was at the start."""
        return s.set(x=pre)

    def product(self, s: mg.View, post: Any) -> Any:
        """<first v>."""
        return s.examples(post * s.start)

    def arrive_update(self, s: mg.View, post: Any) -> mg.View:
        """Whether the unit above has an error."""
        return s.set(reached=post)

    def arrive_message(self, s: mg.View) -> Any:
        """The same, to the unit below."""
        return s.reached


class Unit(values.Unit):
    """A unit that keeps its first error."""

    first, reached = fast(), fast()
    sends_first: tuple[str, ...] = ("compare", "infer", "arrive")

    def forward_update(self, s: mg.View, pre: Any) -> mg.View:
        """v = mu, and nothing has come."""
        return super().forward_update(s, pre).set(first=0.0, reached=0.0)

    def arrive_update(self, s: mg.View, post: Any) -> mg.View:
        """Keep the error of the round in which the first one comes; ``post`` counts units above that have one."""
        reached = torch.minimum(post, 0.0 * post + 1.0)
        return s.set(first=s.first + (reached - s.reached) * s.d, reached=reached)

    def arrive_message(self, s: mg.View) -> Any:
        """Whether it has been reached."""
        return s.reached

    def learn_message(self, s: mg.View) -> Any:
        """f'(a) e, as it was when the first error came."""
        return s.first


class Output(values.Output, Unit):
    """An output is reached in the first round, by the loss."""

    arrive_update = None  # type: ignore[assignment]

    def infer_update(self, s: mg.View, post: Any) -> mg.View:
        """e = -beta dL/dmu."""
        s = super().infer_update(s, post)
        return s.set(first=s.first + (1.0 - s.reached) * s.d, reached=1.0)

    learn_update = infer_update
