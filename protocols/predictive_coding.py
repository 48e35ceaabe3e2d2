"""Predictive coding.

Whittington and Bogacz (2017), "An approximation of the error backpropagation algorithm in a predictive coding network
with local Hebbian synaptic plasticity", Neural Computation 29. Units hold a value v beside what those below predict:

    predict     a_l = W_l v_l-1 + b_l     mu_l = f(a_l)     e_l = precision (v_l - mu_l)
    energy      F = sum_l |e_l|^2 / (2 precision) + L(mu_L, y*), so that e_L = -beta dL/dmu_L
    start       v_l = mu_l, one forward pass
    infer       v_l <- v_l + rate (W_l+1' (f'(a_l+1) e_l+1) - e_l), then predict again; several times
    learn       W_l <- W_l + lr / beta <f'(a_l) e_l v_l-1'>

Six variants. ``strict`` as above. ``incremental`` learns after each inference step (iPC: Salvatori et al., 2024).
``fixed`` holds all predictions as they were after the forward pass (Millidge, Tschantz and Buckley, 2022): with rate 1
and as many steps as layers it *is* backpropagation. ``z_il`` is strict, but each unit learns by its error at the moment
when the first error reaches it (Song et al., 2020): with rate 1 on a chain of layers that is backpropagation as well.
``centred`` nudges the output by beta and then, from the start, by -beta; half the difference has an error of beta^2
where that of one nudge is beta (Pinchetti et al., 2025). ``error`` lets errors settle in place of values, see
:mod:`.error_units`.

``scaling="mupc"`` makes activity and errors keep their size in deep networks (Innocenti et al., 2025): weights are
sampled from N(0, 1) and used as a W, with a = 1 / sqrt(n) of n inputs of a unit, 1 / n at the output, and
1 / sqrt(n L) at units that several connections reach, which there are L of.
"""

from __future__ import annotations

from typing import Any, Literal

import torch

import mpgraph as mg
from mpgraph import Agent, Protocol, fast, option, slow
from mpgraph.agents.initializers import normal

from .error_units import ErrorOutput, ErrorUnit


class Synapse(Agent):
    """A synapse from the value v of the unit below to the prediction of the unit above."""

    w = slow(init=mg.xavier_uniform)
    x, start, d, reached, kept = fast(), fast(), fast(), fast(), fast()
    same_as = {"compare": "forward", "again": "forward"}

    def __init__(self, rule: PredictiveCoding, gain: float | None = None) -> None:
        super().__init__()
        self.beta, self.early, self.both = rule.beta, rule.variant == "z_il", rule.variant == "centred"
        self.scaled, self.gain = gain is not None, 1.0 if gain is None else gain

    def channels(self) -> dict[str, mg.Channel]:
        """Scaled weights are sampled from N(0, 1)."""
        return {**super().channels(), **({"w": slow(init=normal(1.0))} if self.scaled else {})}

    def forward_update(self, s: mg.View, pre: Any) -> mg.View:
        """Keep the value below."""
        return s.set(x=pre, start=pre)

    def compare_update(self, s: mg.View, pre: Any) -> mg.View:
        """Keep it, whatever it was at the start."""
        return s.set(x=pre)

    def forward_message(self, s: mg.View) -> Any:
        """w v."""
        return self.gain * s.w * s.x

    def infer_update(self, s: mg.View, post: Any) -> mg.View:
        """Keep the error above, f'(a) e."""
        return s.set(d=post)

    def infer_message(self, s: mg.View) -> Any:
        """w f'(a) e."""
        return self.gain * s.w * s.d

    def keep_update(self, s: mg.View, post: Any) -> mg.View:
        """Keep <f'(a) e v> of the first nudge."""
        return s.set(kept=s.examples(post * s.x))

    def learn_update(self, s: mg.View, post: Any) -> mg.View:
        """dF/dw = -<f'(a) e v>."""
        change = s.examples(post * (s.start if self.early else s.x))
        change = 0.5 * (s.kept - change) if self.both else change
        return s.descend(w=-self.gain * change / self.beta)

    def arrive_update(self, s: mg.View, post: Any) -> mg.View:
        """Whether the unit above has an error."""
        return s.set(reached=post)

    def arrive_message(self, s: mg.View) -> Any:
        """The same, to the unit below."""
        return s.reached


class Unit(mg.UnitAgent):
    """A value and its error; both are sent as they were before the pass."""

    a, mu, v, d = fast(), fast(), fast(), fast()
    first, reached = fast(), fast()
    same_as = {"again": "forward"}
    sends_first: tuple[str, ...] = ("compare", "infer", "arrive")
    operations = False

    def __init__(self, rule: PredictiveCoding) -> None:
        super().__init__()
        self.rate, self.precision, self.beta, self.early = rule.rate, rule.precision, rule.beta, rule.variant == "z_il"

    def forward_update(self, s: mg.View, pre: Any) -> mg.View:
        """v = mu."""
        s, mu = s.activate(pre)
        return s.set(a=pre, mu=mu, v=mu, e=0.0, d=0.0, first=0.0, reached=0.0)

    def forward_message(self, s: mg.View) -> Any:
        """The value."""
        return s.v

    compare_message = forward_message

    def infer_message(self, s: mg.View) -> Any:
        """f'(a) e."""
        return s.d

    def infer_update(self, s: mg.View, post: Any) -> mg.View:
        """v <- v + rate (errors above - e)."""
        return s.set(v=s.v + self.rate * (post - s.e))

    def compare_update(self, s: mg.View, pre: Any) -> mg.View:
        """Predict again."""
        s, mu = s.activate(pre)
        return self.hold_update(s.set(a=pre, mu=mu))

    def hold_update(self, s: mg.View) -> mg.View:
        """e = precision (v - mu)."""
        e = self.precision * (s.v - s.mu)
        return s.set(e=e, d=s.vjp(e, s.a, out=s.mu))

    def learn_message(self, s: mg.View) -> Any:
        """f'(a) e, or what it was when the first error came."""
        return s.first if self.early else s.d

    keep_message = learn_message

    def arrive_update(self, s: mg.View, post: Any) -> mg.View:
        """Keep the error of the round in which the first one comes; ``post`` counts units above that have one."""
        reached = torch.minimum(post, 0.0 * post + 1.0)
        return s.set(first=s.first + (reached - s.reached) * s.d, reached=reached)

    def arrive_message(self, s: mg.View) -> Any:
        """Whether it has been reached."""
        return s.reached


class Output(Unit):
    """A unit whose value is its prediction and whose error comes from the loss."""

    sends_first = ()
    sign = fast()

    def forward_update(self, s: mg.View, pre: Any) -> mg.View:
        """v = mu, to be nudged to the target."""
        return super().forward_update(s, pre).set(sign=1.0)

    def again_update(self, s: mg.View, pre: Any) -> mg.View:
        """v = mu, to be nudged away from it."""
        return super().forward_update(s, pre).set(sign=-1.0)

    def compare_update(self, s: mg.View, pre: Any) -> mg.View:
        """v = mu, also for the loss."""
        s, mu = s.activate(pre)
        return s.set(a=pre, mu=mu, v=mu)

    hold_update = arrive_update = None  # type: ignore[assignment]

    def infer_update(self, s: mg.View, post: Any) -> mg.View:
        """e = -beta dL/dmu."""
        d = s.vjp(s.sign * self.beta * post, s.a, out=s.mu)
        return s.set(d=d, first=s.first + (1.0 - s.reached) * d, reached=1.0)

    keep_update = learn_update = infer_update


class Operation(mg.UnitAgent):
    """An operation is a part of the predictions above it, and carries their errors to its operands."""

    same_as = {"compare": "forward", "again": "forward"}

    def infer_update(self, s: mg.View, post: Any) -> mg.View:
        """What that means for each operand."""
        return s.set(e=s.vjp(post, s.z, out=s.y))

    def infer_message(self, s: mg.View) -> Any:
        """To each operand its own."""
        return s.e


class Loss(Agent):
    """Sends its output what would make it less."""

    e = fast()
    same_as = {"compare": "forward", "again": "forward"}

    def forward_update(self, s: mg.View, pre: Any, target: Any) -> mg.View:
        """dL/dmu."""
        return s.set(e=s.gradient(pre, target))

    def infer_message(self, s: mg.View) -> Any:
        """-dL/dmu."""
        return -s.e

    keep_message = learn_message = infer_message


class PredictiveCoding(Protocol):
    """Values settle between what is predicted of them and the errors that they cause, then synapses learn."""

    variant: Literal["strict", "fixed", "z_il", "incremental", "centred", "error"] = option("strict", "see above.")
    steps: int = option(8, "inference steps.", low=1)
    rate: float = option(0.2, "of an inference step.", above=0)
    precision: float = option(1.0, "of hidden units, where that of outputs is 1.", above=0)
    beta: float = option(1.0, "strength of the nudge to the target; below zero away from it.")
    scaling: Literal["mupc"] | None = option(None, "how weights are sampled and used; ``None`` as under other rules.")
    agents = {
        "weight": lambda rule: Synapse(rule),
        "unit": lambda rule: (ErrorUnit if rule.variant == "error" else Unit)(rule),
        "output": lambda rule: (ErrorOutput if rule.variant == "error" else Output)(rule),
        "operation": Operation,
        "loss": Loss,
    }
    source = """
@article{whittington2017approximation,
  title={An approximation of the error backpropagation algorithm in a predictive coding network with local {Hebbian}
    synaptic plasticity},
  author={Whittington, James C. R. and Bogacz, Rafal},
  journal={Neural Computation}, volume={29}, number={5}, pages={1229--1262}, year={2017}
}"""

    def setup(self) -> None:
        """The passes of an inference step."""
        self.gains: dict[str, float] = {}
        step: tuple[str, ...] = ("infer", "hold") if self.variant == "fixed" else ("infer", "compare")
        step += ("arrive",) * (self.variant == "z_il")
        settle = mg.repeat(step, self.steps)
        if self.variant == "incremental":
            self.passes = ("forward", mg.repeat((*step, "learn", "compare"), self.steps))
        elif self.variant == "centred":
            self.passes = ("forward", settle, "keep", "again", settle, "learn")
        elif self.variant == "error":
            more = (mg.repeat(("compare", "infer"), self.steps - 1),) if self.steps > 1 else ()
            self.passes = ("forward", "infer", *more, "learn")
        else:
            self.passes = ("forward", settle, "learn")

    def rewrite(self, network: mg.Network) -> mg.Network:
        """The same network; notes the gains of its connections."""
        posts = [wire.post for wire in network.wires.values()]
        several = {name for name in posts if posts.count(name) > 1}
        for wire in network.wires.values() if self.scaling else ():
            n = wire.connection.fans(network.shape(wire.pre), network.shape(wire.post))[0]
            merges = len(several) if wire.post in several else 1
            self.gains[wire.name] = 1.0 / n if wire.post in network.outputs else (n * merges) ** -0.5
        return network

    def agent(self, node: mg.AgentNode) -> Agent:
        """The agent of a node; under scaling each connection has one of its own, with its gain."""
        agent = super().agent(node)
        scaled = self.scaling is not None and type(agent) is Synapse and node.owner in self.gains
        return Synapse(self, self.gains[node.owner]) if scaled else agent
