"""BLUR, bidirectional learned update rules: neurons and synapses with several states, and a genome that moves them.

Sandler, Vladymyrov, Zhmoginov, Miller, Jackson, Madams and Aguera y Arcas (2021), "Meta-learning bidirectional update
rules", ICML. Neuron i has states a_i^c, c = 1..k; a synapse from i to j has a weight w up and a weight v down, each
with a channel for each state, or one for all.

    forward     a_j^c <- sigma(f a_j^c + eta sum_id w_ij^c nu^cd a_i^d)          Eq. 5
    feedback    a_y^2 <- the label, +1 or -1; further states 0                   Section 3.3
    backward    a_i^c <- sigma(f a_i^c + eta sum_jd v_ij^c mu^cd a_j^d)          Eq. 6, but for inputs and outputs
    learn       w_ij^c <- f~ w_ij^c + eta~ sum_ed a_i^e nu~^ec mu~^cd a_j^d      Eq. 7, summed over the batch
                v_ij^c <- f~ v_ij^c + eta~ sum_ed a_j^e nu~^ec mu~^cd a_i^d

The genome is f, eta, nu, mu, f~, eta~, nu~, mu~. That of backpropagation (Section 3.1) is what ``BLUR()`` starts from.

As in the published code rather than the paper: the forward pass is additive whatever the backward one is; the number
one that biases come from is one in every state; sigma acts on state 1 again in the backward pass; feedback replaces.

What differs from the published code. It keeps a full square of synapses over the units of two layers; here a synapse
keeps what carries a signal, 4.7 times fewer numbers for 784-512-10. That changes one thing: ``oja="weights"``, where
the published sum runs over the square's column. Connections from inputs have no backward weight v, which nothing
would receive, unless ``input_backward``; biases never. One channel is stored once (the published copies drift apart
with ``oja="activation"``). |gamma| stands for both published multipliers of Oja's term, |alpha| for eps + |saturation|.
Section 3.4, which the code lacks, standardizes each neuron and state over the batch, also that of a prediction.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Literal

import torch
from torch import nn

import mpgraph as mg
from mpgraph import Agent, Protocol
from mpgraph.agents.initializers import Initializer
from mpgraph.agents.options import option
from mpgraph.arguments import Arguments

from .borders import Constant, Input, Loss, Operation, fixed_at_one
from .genome import Genome, Layers, Shape
from .synapses import Synapse
from .units import Output, Unit

Function = Callable[[Any], Any]


def _initializer(given: Arguments, name: str, value: Any) -> Any:
    return given.function(name, value, "mg.xavier_uniform")


@dataclass(frozen=True)
class Turns:
    """Feedback comes in the last step of each round of ``every``."""

    every: int

    def __call__(self, step: int) -> str:
        """The phase of a step, counted from 0."""
        return "taught" if (step + 1) % self.every == 0 else "free"


class BLUR(Protocol):
    """Learning by a genome; without arguments that of backpropagation.

    Raises:
        ProtocolError: for an argument out of range, a pattern that serves no unit, or a unit that feeds layers with
            different genomes.
    """

    k: int = option(2, "states of a neuron, at least 2.", positional=True, low=2)
    single: bool = option(True, "whether a synapse has one channel for all states rather than k.")
    symmetric: bool = option(True, "whether a synapse has one weight for both directions.")
    backward: Literal["additive", "multiplicative", "second"] = option(
        "second",
        '``"additive"`` (Eq. 6), ``"multiplicative"`` (f a u in place of f a + eta u), or ``"second"``, which '
        "multiplies all states but the first.",
    )
    activation: Literal["unit", "derivative"] | Function = option(
        "derivative",
        'of the forward pass: ``"unit"`` applies the unit\'s own function to every state, ``"derivative"`` to the '
        "first and its derivative to the others; or any function.",
    )
    backward_activation: Literal["unit"] | Function | None = option(
        None, 'of the backward pass: ``"unit"``, any function, or ``None``.'
    )
    feedback: Literal["target", "sign", "gradient"] | Callable[[mg.View, Any, Any], Any] = option(
        "gradient",
        'what state 1 of an output becomes: ``"target"``, ``"sign"`` (2 t - 1: one-hot targets as +1 and -1), '
        '``"gradient"`` (the loss\'s derivative: softmax - onehot), or any function ``(view, state 0, target)``.',
    )
    batch: Literal["sum", "mean"] = option("sum", "how a synapse adds up over the batch; the sum is as published.")
    normalise: bool = option(
        False, "whether activations are standardized (Section 3.4), to ``deviation`` and ``mean``."
    )
    lengths: Literal["stored", "computing"] | None = option(
        None,
        'weights are divided by the L2 norm of all that reach a unit: ``"stored"``, at the start of a step, or only '
        'for ``"computing"`` (Appendix C.6).',
    )
    rescale: bool = option(False, "whether they are then multiplied by a learned ``rho``.")
    oja: Literal["activation", "weights", "forgetting", "whole"] | None = option(
        None,
        'inhibition, times a learned |gamma|: ``"activation"`` (-w <(mu~ a)^2>), ``"weights"`` (-w sum w^2), both '
        'times |eta~|; ``"forgetting"``, the first term of Eq. 8, or ``"whole"``, both.',
    )
    saturation: Literal["tanh", "exp"] | Function | None = option(
        None,
        '``"tanh"`` (alpha tanh(w / alpha)), ``"exp"`` (the change of w, forgetting included, times exp(-|alpha w|)), '
        "any function of w.",
    )
    keep_states: bool = option(
        False, "whether neurons begin a step with the states of the last one; states then need a ``batch_size``."
    )
    early_pre: bool = option(False, "whether synapses learn from the lower unit's states after the forward pass.")
    early: bool = option(False, "whether synapses also learn after the forward pass, by a genome of their own.")
    every: int = option(1, "every how many steps there is feedback; others only predict.", low=1)
    layers: Sequence[str] = option(
        (),
        "patterns of unit names; the connections into the units of each pattern have a genome of their own. In one "
        "that serves only connections from inputs f and mu are without use.",
    )
    steps: int = option(0, "how many steps have a genome of their own; the last one serves from then on.", low=0)
    initial: Literal["random", "backprop"] = option("backprop", "of the matrices; see :class:`Genome`.")
    eta_tilde: float = option(-1e-3, "where eta~ starts; negative for descent on a gradient.")
    seed: int = option(0, "of a random genome.", check=Arguments.seed)
    init: Initializer = option(mg.xavier_uniform, "of the weights.", check=_initializer)
    input_backward: bool = option(False, "whether connections from inputs keep a weight down.")
    without = ("lr",)

    agents = {
        "input": Input,
        "constant": Constant,
        "zero": lambda rule: Constant(rule, 0.0),
        "weight": Synapse,
        "input_weight": lambda rule: Synapse(rule, v=rule.input_backward),
        "bias": lambda rule: Synapse(rule, v=False),
        "unit": Unit,
        "output": Output,
        "operation": Operation,
        "loss": Loss,
    }
    source = """
@inproceedings{sandler2021meta,
  title={Meta-Learning Bidirectional Update Rules},
  author={Sandler, Mark and Vladymyrov, Max and Zhmoginov, Andrey and Miller, Nolan and Jackson, Andrew and
    Madams, Tom and Ag{\\"u}era y Arcas, Blaise},
  booktitle={International Conference on Machine Learning}, pages={9288--9300}, year={2021}
}"""

    def setup(self) -> None:
        """Make the genomes and choose the passes."""
        if self.rescale and not self.lengths:
            raise mg.ProtocolError("BLUR: rescale=True without lengths: there is nothing to rescale")
        self.given = SimpleNamespace(**{name: self.__dict__.get(name) for name in self.declared})
        neuron = (*(("mean", "deviation") if self.normalise else ()), *(("rho",) if self.rescale else ()))
        synapse = (*(("gamma",) if self.oja else ()), *(("alpha",) if self.saturation in ("tanh", "exp") else ()))
        shape = Shape(self.k, self.single, self.steps, synapse, neuron, self.early)
        generator = torch.Generator().manual_seed(self.seed)
        genomes = [Genome(shape, self.initial, self.eta_tilde, generator) for _ in self.layers or ("*",)]
        self.book = Layers(self.layers, genomes)
        self.genome = nn.ModuleList(genomes) if self.layers else genomes[0]
        before = ("measure", "compare", "normalise") if self.lengths else ()
        sums = ("measure", "compare") if self.oja in ("weights", "forgetting", "whole") else ()
        whole = self.oja == "whole"
        first = (*sums, *(("early_project", "inhibit") if whole else ()), "early") if self.early else ()
        again = before if self.early and self.lengths == "computing" else ()
        self.predict_passes = (*before, "forward")
        self.passes = (
            *self.predict_passes, *(("remember",) if self.early else ()), *first, *again, "feedback", "backward",
            "meet", *sums, *(("project", "inhibit") if whole else ()), "learn",
        )  # fmt: skip
        if self.every > 1:
            self.phases = {"free": self.predict_passes, "taught": self.passes}
            self.phase = Turns(self.every)  # type: ignore[method-assign]

    @classmethod
    def published(cls, **options: Any) -> BLUR:
        """A random genome under the defaults of the published code; targets are +1 and -1."""
        usual = {"single": False, "symmetric": False, "backward": "additive", "activation": "unit"}
        return cls(**{**usual, "backward_activation": "unit", "feedback": "target", "initial": "random", **options})

    def rewrite(self, network: mg.Network) -> mg.Network:
        """The network with a synapse fixed at one where there was none: nu and mu are what synapses apply."""
        for name, wire in network.wires.items():
            if not wire.connection.weighted:
                network.wires[name] = fixed_at_one(wire, len(network.shape(wire.post)))
        self.book.read(network)
        return network

    def check(self, agents: Mapping[mg.AgentNode, Agent]) -> None:
        """Refuse patterns of ``layers`` that match no unit."""
        units = dict.fromkeys(node.owner for node in agents if "unit" in node.types and not node.inner)
        Arguments("BLUR").serving("layers", self.layers, units, "units")

    def agent(self, node: mg.AgentNode) -> Agent:
        """By type; a synapse that is not trained has one weight for both directions."""
        found = super().agent(node)
        return self.agents["bias"] if isinstance(found, Synapse) and not node.trained else found
