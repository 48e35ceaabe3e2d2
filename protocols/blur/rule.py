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
the published sum runs over the square's column. Connections from inputs keep no v, which nobody would hear, unless
``input_backward``; biases never. One channel is stored once (the published copies drift apart with
``oja="activation"``). |gamma| stands for both published multipliers of Oja's term, |alpha| for eps + |saturation|.
Section 3.4, which the code lacks, standardises each neuron and state over the batch, also that of a prediction.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import nn

import mpgraph as mg
from mpgraph import Agent, Protocol
from mpgraph.agents.initializers import Initializer
from mpgraph.agents.protocol import AgentNode
from mpgraph.arguments import Arguments

from .borders import Constant, Input, Loss, Operation, fixed_at_one
from .genome import Genome, Initial, Layers, Shape
from .parts import Function, Options
from .synapses import Synapse
from .units import BatchNorm, Output, Unit


class BLUR(Protocol):
    """Learning by a genome; without arguments that of backpropagation.

    Args:
        k: states of a neuron, at least 2.
        single: whether a synapse has one channel for all states rather than k.
        symmetric: whether a synapse has one weight for both directions.
        backward: ``"additive"`` (Eq. 6), ``"multiplicative"`` (f a u in place of f a + eta u), or ``"second"``, which
            multiplies all states but the first.
        activation: of the forward pass: ``"unit"`` applies the unit's own function to every state, ``"derivative"`` to
            the first and its derivative to the others; or any function.
        backward_activation: of the backward pass: ``"unit"``, any function, or ``None``.
        feedback: what state 1 of an output becomes: ``"target"``, ``"sign"`` (2 t - 1: one-hot targets as +1 and -1),
            ``"gradient"`` (the loss's derivative: softmax - onehot), or any function ``(view, state 0, target)``.
        batch: whether a synapse learns from the ``"sum"`` over the batch, as published, or the ``"mean"``.
        normalise: whether activations are standardised (Section 3.4), to ``deviation`` and ``mean``.
        lengths: weights are divided by the L2 norm of all that reach a unit: ``"stored"``, at the start of a step, or
            only for ``"computing"`` (Appendix C.6).
        rescale: whether they are then multiplied by a learned ``rho``.
        oja: inhibition, times a learned |gamma|: ``"activation"`` (-w <(mu~ a)^2>), ``"weights"`` (-w sum w^2), both
            times |eta~|; ``"forgetting"``, the first term of Eq. 8, or ``"whole"``, both.
        saturation: ``"tanh"`` (alpha tanh(w / alpha)), ``"exp"`` (the change of w, forgetting included, times
            exp(-|alpha w|)), any function of w.
        keep_states: whether neurons begin a step with the states of the last one; states then need a ``batch_size``.
        early_pre: whether synapses learn from the lower unit's states after the forward pass.
        early: whether synapses also learn after the forward pass, by a genome of their own.
        every: every how many steps there is feedback; others only predict.
        layers: patterns of unit names; the connections into the units of each pattern have a genome of their own. In
            one for connections from inputs alone f and mu are without use.
        steps: how many steps have a genome of their own; the last one serves from then on.
        initial: of the matrices, ``"backprop"`` or ``"random"``; see :class:`Genome`.
        eta_tilde: where eta~ starts; negative for descent on a gradient.
        seed: of a random genome.
        init: of the weights.
        input_backward: whether connections from inputs keep a weight down.
        surrogate: activation whose derivative stands in for units that have none, with ``activation="derivative"``.

    Raises:
        ProtocolError: for an argument out of range, a pattern that serves no unit, or a unit torn between layers.
    """

    source = """
@inproceedings{sandler2021meta,
  title={Meta-Learning Bidirectional Update Rules},
  author={Sandler, Mark and Vladymyrov, Max and Zhmoginov, Andrey and Miller, Nolan and Jackson, Andrew and
    Madams, Tom and Ag{\\"u}era y Arcas, Blaise},
  booktitle={International Conference on Machine Learning}, pages={9288--9300}, year={2021}
}"""

    def __init__(
        self,
        k: int = 2,
        *,
        single: bool = True,
        symmetric: bool = True,
        backward: Literal["additive", "multiplicative", "second"] = "second",
        activation: Literal["unit", "derivative"] | Function = "derivative",
        backward_activation: Literal["unit"] | Function | None = None,
        feedback: Any = "gradient",
        batch: Literal["sum", "mean"] = "sum",
        normalise: bool = False,
        lengths: Literal["stored", "computing"] | None = None,
        rescale: bool = False,
        oja: Literal["activation", "weights", "forgetting", "whole"] | None = None,
        saturation: Literal["tanh", "exp"] | Function | None = None,
        keep_states: bool = False,
        early_pre: bool = False,
        early: bool = False,
        every: int = 1,
        layers: Sequence[str] = (),
        steps: int = 0,
        initial: Initial = "backprop",
        eta_tilde: float = -1e-3,
        seed: int = 0,
        init: Initializer = mg.xavier_uniform,
        input_backward: bool = False,
        surrogate: str | None = None,
        **agents: Agent,
    ) -> None:
        given = Arguments("BLUR")
        every, steps = given.integer("every", every, 1), given.integer("steps", steps, 0)
        eta_tilde, seed = given.number("eta_tilde", eta_tilde), given.seed("seed", seed)
        given.flag("early", early), given.flag("input_backward", input_backward)
        options = Options(
            k, single, symmetric, backward, activation, backward_activation, feedback, batch, normalise, lengths,
            rescale, oja, saturation, early_pre, init, keep_states, surrogate,
        )  # fmt: skip
        neuron = (*(("mean", "deviation") if normalise else ()), *(("rho",) if rescale else ()))
        synapse = (*(("gamma",) if oja else ()), *(("alpha",) if saturation in ("tanh", "exp") else ()))
        shape = Shape(k, single, steps, synapse, neuron, early)
        layers, draw = given.patterns("layers", layers), torch.Generator("cpu").manual_seed(seed)
        genomes = [Genome(shape, initial, eta_tilde, draw) for _ in layers or ("*",)]
        book = Layers(layers, genomes)
        own: dict[str, Any] = {
            "input": Input(options, book),
            "constant": Constant(k, 1.0),
            "zero": Constant(k, 0.0),
            "weight": Synapse(options, book),
            "input_weight": Synapse(options, book, v=input_backward),
            "bias": Synapse(options, book, v=False),
            "unit": Unit(options, book),
            "output": Output(options, book),
            "batchnorm": BatchNorm(options, book),
            "operation": Operation(options, book),
            "loss": Loss(options),
        }
        super().__init__(surrogate=surrogate, **{**own, **agents})
        self.layers, self.every = book, every
        self.genome = nn.ModuleList(genomes) if layers else genomes[0]
        self.fixed = own["bias"]
        before = ("measure", "compare", "normalise") if lengths else ()
        sums = ("measure", "compare") if oja in ("weights", "forgetting", "whole") else ()
        first = (*sums, *(("early_project", "inhibit") if oja == "whole" else ()), "early") if early else ()
        again = before if early and lengths == "computing" else ()
        self.predict_passes = (*before, "forward")
        self.passes = (
            *self.predict_passes, *(("remember",) if early else ()), *first, *again, "feedback", "backward",
            "meet", *sums, *(("project", "inhibit") if oja == "whole" else ()), "learn",
        )  # fmt: skip
        if every > 1:
            self.phases = {"free": self.predict_passes, "taught": self.passes}

    @classmethod
    def published(cls, **options: Any) -> BLUR:
        """A random genome under the defaults of the published code; targets are +1 and -1."""
        usual = {"single": False, "symmetric": False, "backward": "additive", "activation": "unit"}
        return cls(**{**usual, "backward_activation": "unit", "feedback": "target", "initial": "random", **options})

    def phase(self, step: int) -> str:
        """With ``every``, feedback comes in the last step of each round."""
        return "taught" if (step + 1) % self.every == 0 else "free"

    def extra_repr(self) -> str:
        """Arguments, for ``repr``."""
        return ", ".join(f"{name}={getattr(value, '__name__', repr(value))}" for name, value in self.arguments.items())

    def rewrite(self, network: mg.Network) -> mg.Network:
        """The network with a synapse fixed at one where there was none: nu and mu are what synapses apply."""
        for name, wire in network.wires.items():
            if not wire.connection.weighted:
                network.wires[name] = fixed_at_one(wire, len(network.shape(wire.post)))
        self.layers.read(network)
        return network

    def check(self, agents: Any) -> None:
        """Refuse patterns of ``layers`` that match no unit."""
        units = dict.fromkeys(node.owner for node in agents if "unit" in node.types and not node.inner)
        Arguments("BLUR").serving("layers", self.layers.patterns, units, "units")

    def agent(self, node: AgentNode) -> Agent:
        """By kind; a synapse that is not trained has one weight for both directions."""
        found = super().agent(node)
        return self.fixed if isinstance(found, Synapse) and not node.trained else found
