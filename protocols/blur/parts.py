"""What all agents of BLUR have in common."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

import mpgraph as mg
from mpgraph import Agent, fast
from mpgraph.agents.initializers import Initializer
from mpgraph.arguments import Arguments

from .genome import Layers

Function = Callable[[Any], Any]
ALLOWED: dict[str, tuple[Any, ...]] = {
    "backward": ("additive", "multiplicative", "second"),
    "activation": ("unit", "derivative"),
    "backward_activation": ("unit", None),
    "feedback": ("target", "sign", "gradient"),
    "batch": ("sum", "mean"),
    "lengths": ("stored", "computing", None),
    "oja": ("activation", "weights", "forgetting", "whole", None),
    "saturation": ("tanh", "exp", None),
}
FLAGS = ("single", "symmetric", "normalise", "rescale", "early_pre", "keep_states")
FUNCTIONS = ("activation", "backward_activation", "feedback", "saturation")


@dataclass(frozen=True)
class Options:
    """How BLUR is varied; see :class:`BLUR` for what each means."""

    k: int
    single: bool
    symmetric: bool
    backward: str
    activation: str | Function
    backward_activation: str | Function | None
    feedback: str | Callable[[mg.View, Any, Any], Any]
    batch: str
    normalise: bool
    lengths: str | None
    rescale: bool
    oja: str | None
    saturation: str | Function | None
    early_pre: bool
    init: Initializer
    keep_states: bool
    surrogate: str | None

    def __post_init__(self) -> None:
        given = Arguments("BLUR")
        given.integer("k", self.k, 2), given.function("init", self.init, "mg.xavier_uniform")
        _ = [given.flag(name, getattr(self, name)) for name in FLAGS]
        _ = [given.choice(n, getattr(self, n), words, function=n in FUNCTIONS) for n, words in ALLOWED.items()]
        if self.rescale and not self.lengths:
            raise mg.ProtocolError("BLUR: rescale=True without lengths: there is nothing to rescale")

    @property
    def c(self) -> int | None:
        """Size of what a synapse keeps: ``None`` for one number."""
        return None if self.single else self.k


class Part(Agent):
    """Base of all agents: it knows the options, and where to find the genome, which is the protocol's."""

    def __init__(self, options: Options, layers: Layers) -> None:
        super().__init__()
        self.o, self.layers, self.k, self.c = options, layers, options.k, options.c

    def gene(self, s: mg.View, name: str) -> Any:
        """A number of the genome: of this connection, or of those into this unit."""
        return self.layers.below(s.node).at(s, name)


class States(Part):
    """Base of whatever has states ``a`` that synapses hear, and adds up what synapses tell about themselves."""

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
