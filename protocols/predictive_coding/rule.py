"""Predictive coding.

Whittington and Bogacz (2017), "An approximation of the error backpropagation algorithm in a predictive coding network
with local Hebbian synaptic plasticity", Neural Computation 29. Values v of units descend an energy, then weights do:

    F = sum_l |e_l|^2 / (2 precision) + L(mu_L, y*), with e_l = precision (v_l - mu_l), so that e_L = -beta dL/dmu_L

Six variants. ``strict`` as in the paper (:mod:`.values`). ``incremental`` learns after each inference step (iPC:
Salvatori et al., 2024). ``fixed`` holds all predictions as they were after the forward pass (Millidge, Tschantz and
Buckley, 2022): with rate 1 and as many steps as layers it *is* backpropagation. ``z_il`` learns by the first error that
comes (:mod:`.arrival`), ``centred`` by two nudges (:mod:`.centred`). ``error`` lets errors settle in place of values
(:mod:`.errors`).

``scaling="mupc"`` makes activity and errors keep their size in deep networks (Innocenti et al., 2025): weights are
sampled from N(0, 1) and used as a W, with a = 1 / sqrt(n) of n inputs of a unit, 1 / n at the output, and
1 / sqrt(n L) at units that several connections reach, which there are L of.
"""

from __future__ import annotations

from typing import Any, Literal

import mpgraph as mg
from mpgraph import Agent, Protocol, option

from . import arrival, centred, errors, values

VARIANTS: dict[str, Any] = {
    **dict.fromkeys(("strict", "fixed", "incremental"), values),
    "z_il": arrival,
    "centred": centred,
    "error": errors,
}


class PredictiveCoding(Protocol):
    """Values settle between what is predicted of them and the errors that they cause, then synapses learn."""

    variant: Literal["strict", "fixed", "z_il", "incremental", "centred", "error"] = option("strict", "see above.")
    steps: int = option(8, "inference steps.", low=1)
    rate: float = option(0.2, "of an inference step.", above=0)
    precision: float = option(1.0, "of hidden units, where that of outputs is 1.", above=0)
    beta: float = option(1.0, "strength of the nudge to the target; below zero away from it.")
    scaling: Literal["mupc"] | None = option(None, "how weights are sampled and used; ``None`` as under other rules.")
    agents = {
        "weight": lambda rule: VARIANTS[rule.variant].Synapse(rule),
        "unit": lambda rule: VARIANTS[rule.variant].Unit(rule),
        "output": lambda rule: VARIANTS[rule.variant].Output(rule),
        "operation": values.Operation,
        "loss": values.Loss,
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
        agent, own = super().agent(node), VARIANTS[self.variant].Synapse
        scaled = self.scaling is not None and type(agent) is own and node.owner in self.gains
        return own(self, self.gains[node.owner]) if scaled else agent
