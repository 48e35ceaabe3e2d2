"""What all agents of MPLP have in common: a learner, its standardized inputs, its message. See ``rule.py``."""

from __future__ import annotations

from typing import Any

import torch

import mpgraph as mg
from mpgraph import Agent, common, fast

from .statistics import Output, Standardiser


class Learned(Agent):
    """Base: an agent with a learner.

    Args:
        rule: the whole rule.
        learner: f and g.
        standardiser: of the learner's inputs.
        output: of its updates, for agents that hold a parameter.
        measures: whether it records statistics, in the channel ``measured``, instead of using recorded ones.
    """

    states = 1  # numbers that the learner reads beside the message
    updates = False
    m, e = fast("k"), fast()

    def __init__(self, rule: Any, learner: Any, standardiser: Standardiser, output: Output | None, measures: bool):
        super().__init__()
        self.k, self.gradient, self.measures = rule.k, rule.gradient, measures
        self.learner, self.standardiser, self.output = learner, standardiser, output
        self.count = 2 * standardiser.inputs + self.updates
        received = [name for name in ("error", "backward") if "post" in self.roles(name)]
        self.aggregate = {f"{name}:post": "sum" if name == "error" else rule.aggregate for name in received}

    def channels(self) -> dict[str, mg.Channel]:
        """Also the learner's memories, and what is measured."""
        measured = {"measured": common("count")} if self.measures else {}
        return {**super().channels(), **self.learner.channels(), **measured}

    def learn(self, s: mg.View, *values: Any) -> mg.View:
        """Run the learner: a message, new memories and, for a parameter ``w``, its update."""
        values = (*values, s.e) if self.gradient else values
        inputs, measured = self.standardiser.measure(s, values) if self.measures else (self.standardiser(values), [])
        s, update, message = self.learner.run(s, *inputs)
        s = s.set(m=message)
        if self.output is not None:
            centre = s.all(update) if self.measures else self.output.mean
            measured = [*measured, centre]
            s = s.set(w=s.w + (update - centre) * self.output.scale)
        return s.set(measured=s.measured + torch.stack(measured)) if self.measures else s

    def backward_message(self, s: mg.View) -> Any:
        """m, averaged over the agents above on its way to a unit."""
        return s.m

    def error_message(self, s: mg.View) -> Any:
        """The gradient."""
        return s.e
