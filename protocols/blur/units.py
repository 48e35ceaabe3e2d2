"""The units of BLUR: neurons with k states (Eqs. 5 and 6).

A unit sends its states; the synapse applies nu and mu to them, so that connections may have genomes of their own.
"""

from __future__ import annotations

from typing import Any

import torch

import mpgraph as mg
from mpgraph import carry, fast, slow

from .genome import Layers
from .parts import Options, States, vector


class Unit(States):
    """A neuron. Its gates f, eta are those of the connections that it listens to: below, then above."""

    z, old = fast("k"), carry("kept")

    def __init__(self, options: Options, layers: Layers) -> None:
        super().__init__(options, layers)
        self.kept = options.k if options.keep_states else 0

    def become(self, s: mg.View, a: Any) -> mg.View:
        """The states from now on."""
        return s.set(a=a, old=a) if self.o.keep_states else s.set(a=a)

    def forward_update(self, s: mg.View, pre: Any) -> mg.View:
        """a^c <- sigma(f a^c + eta pre^c), Eq. 5, where a is zero unless the states are kept."""
        z = self.gene(s, "eta") * pre
        z = z + self.gene(s, "f") * s.old if self.o.keep_states else z
        s = s.set(z=self.standard(s, z, "below"))
        return self.become(s, self.activated(s))

    def activated(self, s: mg.View) -> Any:
        """sigma(z), or sigma of state 0 and sigma' of the others."""
        if callable(self.o.activation):
            return self.o.activation(s.z)
        y = self.function(s, s.z)
        if self.o.activation == "unit":
            return y
        slope = s.vjp(0.0 * s.z + 1.0, s.z, out=y)
        return torch.cat([y[:1], slope[1:]])

    def function(self, s: mg.View, z: Any) -> Any:
        """The function that the network draws."""
        return s.apply(z)

    def backward_message(self, s: mg.View) -> Any:
        """The states."""
        return s.a

    def backward_update(self, s: mg.View, post: Any = None) -> mg.View:
        """Eq. 6; where nothing comes back the states stay."""
        return s if post is None else self.become(s, self.backward(s, post))

    def backward(self, s: mg.View, post: Any) -> Any:
        """a^c <- sigma(f a^c + eta post^c), or sigma(f a^c post^c)."""
        gates = self.layers.above(s.node)
        if self.o.backward == "additive":
            a = gates.at(s, "f") * s.a + gates.at(s, "eta") * post
        elif self.o.backward == "multiplicative":
            a = gates.at(s, "f") * (s.a * post)
        else:
            a = gates.at(s, "f") * torch.cat([s.a[:1], self.multiplied(s, post[1:])])
        a = self.standard(s, a, "above")
        if callable(self.o.backward_activation):
            return self.o.backward_activation(a)
        return a if self.o.backward_activation is None else self.function(s, a)

    def multiplied(self, s: mg.View, post: Any) -> Any:
        """a^c post^c; with a^c = sigma' that is the transposed derivative, also of a function of a whole population."""
        if self.o.activation != "derivative":
            return s.a[1:] * post
        return s.vjp(post, s.z[1:], out=s.apply(s.z[1:]))

    def standard(self, s: mg.View, z: Any, side: str) -> Any:
        """Section 3.4: each neuron and state over the batch, with a learned mean and deviation."""
        if not self.o.normalise:
            return z
        uses, gates = s.examples(1.0), getattr(self.layers, side)(s.node)
        centred = z - s.examples(z) / uses
        variance = s.examples(centred * centred) / uses
        return gates.at(s, "deviation") * centred * torch.rsqrt(variance + 1e-5) + gates.at(s, "mean")


class BatchNorm(Unit):
    """A batch normalisation: of every state, with running averages for predictions."""

    mean, var = slow("k"), slow("k", init=1.0)

    def forward_update(self, s: mg.View, pre: Any) -> mg.View:
        """Eq. 5, and the running averages."""
        s = super().forward_update(s, pre)
        if not s.learning:
            return s
        new: Any = s.node.function.momentum  # type: ignore[union-attr]
        mean, var = (torch.stack(parts) for parts in zip(*(s.statistics(z) for z in s.z), strict=True))
        return s.set(mean=(1.0 - new) * s.mean + new * mean, var=(1.0 - new) * s.var + new * var)

    def function(self, s: mg.View, z: Any) -> Any:
        """(z - mean) / sqrt(var + eps), of the batch while learning."""
        return s.apply(z) if s.learning else (z - s.mean) * torch.rsqrt(s.var + s.node.function.eps)  # type: ignore


class Output(Unit):
    """A neuron that the world answers: its state 0 stays, its state 1 becomes the feedback, others zero.

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
