"""What all agents of BLUR have in common."""

from __future__ import annotations

from typing import Any

import torch

import mpgraph as mg
from mpgraph import Agent, fast


class Part(Agent):
    """Base of all agents: it knows the arguments of the rule (``o``), and where to find its genome.

    Attributes:
        k: states of a neuron.
        c: size of what a synapse keeps: ``None`` for one number.
    """

    def __init__(self, rule: Any) -> None:
        super().__init__()
        self.o, self.book, self.k = rule.given, rule.book, rule.k
        self.c = None if rule.single else rule.k

    def gene(self, s: mg.View, name: str) -> Any:
        """A number of the genome: of this connection, or of those into this unit."""
        return self.book.below(s.node).at(s, name)


class States(Part):
    """Base of all that sends states ``a`` to synapses, and adds up what synapses send of themselves."""

    a = fast("k")
    w_sum, v_sum, w_drive, v_drive = fast("c"), fast("c"), fast("c"), fast("c")

    def forward_message(self, s: mg.View) -> Any:
        """The states."""
        return s.a

    remember_message = meet_message = forward_message

    def measure_update(self, s: mg.View, pre: Any = None, post: Any = None) -> mg.View:
        """Sums of w^2 over the synapses below and of v^2 over those above."""
        return s.set(w_sum=0.0 if pre is None else pre["w"], v_sum=0.0 if post is None else post["v"])

    def compare_message(self, s: mg.View) -> Any:
        """The sums."""
        return {"w": s.w_sum, "v": s.v_sum}

    def project_update(self, s: mg.View, pre: Any = None, post: Any = None) -> mg.View:
        """Sums of w (a nu~) over the synapses below and of v (a nu~) over those above."""
        return s.set(w_drive=0.0 if pre is None else pre["w"], v_drive=0.0 if post is None else post["v"])

    early_project_update = project_update

    def inhibit_message(self, s: mg.View) -> Any:
        """The sums."""
        return {"w": s.w_drive, "v": s.v_drive}


def vector(first: Any, second: Any, k: int) -> Any:
    """States of which the first two are given; zero in the others."""
    return torch.stack([first, second, *[0.0 * first] * (k - 2)])


def first(states: Any) -> Any:
    """State 0 in place of every state."""
    return states[..., :1] + 0.0 * states
