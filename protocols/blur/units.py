"""The units of BLUR: neurons with k states (Eqs. 5 and 6).

A unit sends its states; the synapse applies nu and mu to them, so that connections may have genomes of their own.
"""

from __future__ import annotations

from typing import Any

import torch

import mpgraph as mg
from mpgraph import Channel, carry, fast
from mpgraph.agents.builtin import kept_channels

from .parts import States, vector


class Unit(States):
    """A neuron. Its gates f, eta are those of the connections whose messages it receives: below, then above."""

    z, old = fast("k"), carry("kept")

    def __init__(self, rule: Any) -> None:
        super().__init__(rule)
        self.kept = rule.k if rule.keep_states else 0

    def channels_at(self, node: mg.AgentNode) -> dict[str, Channel]:
        """Also what the function of the node keeps of each state."""
        return {**self.channels(), **kept_channels(node, "k")}

    def become(self, s: mg.View, a: Any) -> mg.View:
        """The states from now on."""
        return s.set(a=a, old=a) if self.o.keep_states else s.set(a=a)

    def forward_update(self, s: mg.View, pre: Any) -> mg.View:
        """a^c <- sigma(f a^c + eta pre^c), Eq. 5, where a is zero unless the states are kept."""
        z = self.gene(s, "eta") * pre
        z = z + self.gene(s, "f") * s.old if self.o.keep_states else z
        return self.become(*self.activated(s.set(z=self.standard(s, z, "below"))))

    def activated(self, s: mg.View) -> tuple[mg.View, Any]:
        """sigma(z), or sigma of state 0 and sigma' of the others."""
        if callable(self.o.activation):
            return s, self.o.activation(s.z)
        s, y = s.activate(s.z)
        if self.o.activation == "unit":
            return s, y
        slope = s.vjp(0.0 * s.z + 1.0, s.z, out=y)
        return s, torch.cat([y[:1], slope[1:]])

    def backward_message(self, s: mg.View) -> Any:
        """The states."""
        return s.a

    def backward_update(self, s: mg.View, post: Any = None) -> mg.View:
        """Eq. 6; where nothing comes back the states stay."""
        return s if post is None else self.become(s, self.backward(s, post))

    def backward(self, s: mg.View, post: Any) -> Any:
        """a^c <- sigma(f a^c + eta post^c), or sigma(f a^c post^c)."""
        gates = self.book.above(s.node)
        if self.o.backward == "additive":
            a = gates.at(s, "f") * s.a + gates.at(s, "eta") * post
        elif self.o.backward == "multiplicative":
            a = gates.at(s, "f") * (s.a * post)
        else:
            a = gates.at(s, "f") * torch.cat([s.a[:1], self.multiplied(s, post[1:])])
        a = self.standard(s, a, "above")
        if callable(self.o.backward_activation):
            return self.o.backward_activation(a)
        return a if self.o.backward_activation is None else s.apply(a)

    def multiplied(self, s: mg.View, post: Any) -> Any:
        """a^c post^c; with a^c = sigma' that is the transposed derivative, also of a function of a whole population."""
        if self.o.activation != "derivative":
            return s.a[1:] * post
        return s.vjp(post, s.z[1:], out=s.apply(s.z[1:]))

    def standard(self, s: mg.View, z: Any, side: str) -> Any:
        """Section 3.4: each neuron and state over the batch, with a learned mean and deviation."""
        if not self.o.normalise:
            return z
        uses, gates = s.examples(1.0), getattr(self.book, side)(s.node)
        centred = z - s.examples(z) / uses
        variance = s.examples(centred * centred) / uses
        return gates.at(s, "deviation") * centred * torch.rsqrt(variance + 1e-5) + gates.at(s, "mean")


class Output(Unit):
    """A neuron that receives feedback: its state 0 stays, its state 1 becomes the feedback, others zero.

    If units above send something back as well, that is added to the feedback.
    """

    fed = fast("k")

    def feedback_update(self, s: mg.View, post: Any = None) -> mg.View:
        """The feedback; a derivative of the loss goes through the unit's function first."""
        if post is None:
            return s.set(fed=s.a)
        if self.o.feedback == "gradient" and self.o.activation == "derivative":
            post = s.vjp(post, s.z[1], out=s.apply(s.z[1]))
        return s.set(fed=vector(s.a[0], post, self.k))

    def backward_update(self, s: mg.View, post: Any = None) -> mg.View:
        """Take it in."""
        if post is None:
            return self.become(s, s.fed)
        return self.become(s, torch.cat([s.fed[:1], s.fed[1:] + self.backward(s, post)[1:]]))

    def readout(self, s: mg.View) -> Any:
        """State 0."""
        return s.a[0]
