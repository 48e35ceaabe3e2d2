"""The units of BLUR (Eqs. 5 and 6): neurons with k states, and what stands at the borders of the network.

A unit sends its states; the synapse applies nu and mu to them, so that connections may have genomes of their own.
"""

from __future__ import annotations

from typing import Any

import torch

import mpgraph as mg
from mpgraph import Agent, carry, fast, slow

from .blur_synapses import Options, Part


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


class Input(States):
    """Its state 0 is what was fed, the others are zero; it never changes."""

    value = fast()

    def forward_update(self, s: mg.View) -> mg.View:
        """Begin."""
        return s.set(a=vector(s.value, 0.0 * s.value, self.k))


class Constant(Agent):
    """The same number in every state: one, from which biases are synapses; or zero, if nothing was heard yet."""

    def __init__(self, k: int, number: float) -> None:
        super().__init__()
        self.states: torch.Tensor
        self.register_buffer("states", torch.full((k,), number), persistent=False)

    def forward_message(self, s: mg.View) -> Any:
        """The number, k times."""
        return self.states

    remember_message = meet_message = forward_message


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
        slope = s.pull(0.0 * s.z + 1.0, s.z, out=y, instead=self.o.surrogate)
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
        return s.pull(post, s.z[1:], out=s.apply(s.z[1:]), instead=self.o.surrogate)

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
            post = s.pull(post, s.z[1], out=s.apply(s.z[1]), instead=self.o.surrogate)
        return s.set(fed=vector(s.a[0], post, self.k))

    def backward_update(self, s: mg.View, post: Any = None) -> mg.View:
        """Take it in."""
        if post is None:
            return self.become(s, s.fed)
        return self.become(s, torch.cat([s.fed[:1], s.fed[1:] + self.backward(s, post)[1:]]))

    def readout(self, s: mg.View) -> Any:
        """State 0."""
        return s.a[0]


class Operation(States, mg.OperationAgent):
    """An operation acts on every state; what comes back takes the way of state 0."""

    fed = fast("k")

    def forward_update(self, s: mg.View, pre: mg.Each) -> mg.View:
        """f(z1, z2, ...), state by state."""
        return s.set(z=pre, a=s.apply(pre))

    forward_message = remember_message = meet_message = States.forward_message

    def feedback_update(self, s: mg.View, post: Any = None) -> mg.View:
        """Of an output: the feedback is what comes back."""
        return s.set(fed=0.0 * s.a if post is None else vector(s.a[0], post, self.k))

    def backward_update(self, s: mg.View, post: Any = None) -> mg.View:
        """For each operand its transposed derivative, state by state."""
        signal = s.fed if post is None else s.fed + post
        return s.set(e=s.pull(signal, s.z.map(first), out=first(s.a)))

    def meet_update(self, s: mg.View, pre: mg.Each) -> mg.View:
        """The operation on what the operands have become."""
        return s.set(a=s.apply(pre))

    def readout(self, s: mg.View) -> Any:
        """State 0."""
        return s.a[0]


class Loss(mg.LossAgent):
    """Tells the output what it should have been."""

    def __init__(self, options: Options) -> None:
        super().__init__()
        self.o = options

    def forward_update(self, s: mg.View, pre: Any, target: Any) -> mg.View:
        """Keep state 0 and the target."""
        return s.set(z=pre[0], t=target)

    backward_update = backward_message = None  # type: ignore[assignment]

    def feedback_update(self, s: mg.View) -> mg.View:
        """The target, the target as +1 and -1, the derivative of the loss, or any function of view and both."""
        if callable(self.o.feedback):
            return s.set(e=self.o.feedback(s, s.z, s.t))
        if self.o.feedback == "gradient":
            return s.set(e=s.gradient(s.z, s.t))
        return s.set(e=s.t if self.o.feedback == "target" else 2.0 * s.t - 1.0)

    def feedback_message(self, s: mg.View) -> Any:
        """That."""
        return s.e
