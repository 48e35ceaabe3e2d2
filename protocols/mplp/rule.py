"""MPLP: a message passing learning protocol.

Randazzo, Niklasson and Mordvintsev (2020), "MPLP: Learning a Message Passing Learning Protocol", arXiv 2007.00970.
Where paper and code (github.com/google-research/self-organising-systems, folder mplp) differ this is the code, which
made the figures. Every operation is an agent with a learner of its own kind, see ``learners.py``:

    forward     y = w x, z + b, f(z), softmax(z)     each agent keeps what it sees
    backward    the loss agent hears its own loss (Eq. 2) and sends a vector of k numbers, m, down
                every agent sends m' = g(m, what it keeps, its memory) (Eq. 1); units hear the mean (Eq. 5)
                w <- w + (<f(m, x, w, memory)> - o) * scale (Eq. 3 and 4); <.> is the average over the batch

Every input of a learner is standardised by one mean and one deviation of its own. These, and the mean output o, are
recorded before meta-training (:meth:`MPLP.measure`) and frozen; the scale is trained. Units without a function pass m
on. No derivative is used, so any unit will do. ``gradient=True`` passes the gradient beside the message, as section 5
of the paper proposes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any
from zlib import crc32

import torch
from torch import Generator, nn

import mpgraph as mg
from mpgraph import Agent, Protocol
from mpgraph.arguments import Arguments

from .agents import role
from .choices import BETWEEN, pairs, seed_from, shares, warn_of_unrecorded
from .learned import Learned
from .learners import LEARNERS, MEMORIES
from .statistics import Measuring, Output, Standardiser


class MPLP(Protocol):
    """Learners at every weight, bias, unit and loss, which talk in vectors; random until meta-trained.

    Args:
        k: numbers in a message.
        n: numbers of private memory.
        learner: ``recurrent`` (as published: one GRU is f and g), ``separate`` or ``stateless``.
        share: whose learner is one: every ``node`` has its own, one for each ``kind`` (all weights, all sigmoids), or
            ``all``: standardisers and scales too. A dictionary says it for ``weight``, ``bias``, ``unit``, ``link`` and
            ``loss``; who is not named has its own.
        aggregate: how a unit hears the messages from above: ``mean``, ``sum``, or a ``torch_geometric`` aggregation.
        memory: kept for each synapse and ``slot`` of the batch (then a state serves one batch size), also for each
            ``use`` of a synapse in an example, or for each ``synapse`` alone.
        gradient: whether learners also hear the gradient, by backpropagation through the same network.
        train_g: for ``separate`` and ``stateless`` whether g is a meta-parameter; the released stateless files have a
            random g that was never trained.
        hidden: sizes of the two hidden layers.
        between: their activation, ``tanh`` or ``relu``; by default that of the authors' code.
        gate_bias: initial bias of both gates.
        scale: initial scale of updates, the authors' 0.2 deviations of the initial weights.
        floor: smallest deviation by which an input is divided. The authors have none, but for 1e-5, below which they do
            not divide at all; a nearly constant input then gets an enormous factor.
        generator: of the initial learners; seed 0 by default.
        agents: others for kinds of node, as in :class:`mpgraph.Protocol`.

    Raises:
        ProtocolError: for an argument out of range.
    """

    passes: tuple[str, ...] = ("forward", "backward")
    bias = "between"
    link = "between"
    random_defaults = True
    source = """
@article{randazzo2020mplp,
  title={{MPLP}: Learning a Message Passing Learning Protocol},
  author={Randazzo, Ettore and Niklasson, Eyvind and Mordvintsev, Alexander},
  journal={arXiv preprint arXiv:2007.00970}, year={2020}
}"""

    def __init__(
        self,
        k: int = 4,
        n: int = 7,
        *,
        learner: str = "recurrent",
        share: str | Mapping[str, str] = "kind",
        aggregate: Any = "mean",
        memory: str = "slot",
        gradient: bool = False,
        train_g: bool = True,
        hidden: tuple[int, int] = (80, 40),
        between: str | None = None,
        gate_bias: float = -1.0,
        scale: float = 0.01,
        floor: float = 0.0,
        generator: Generator | None = None,
        **agents: Agent,
    ) -> None:
        others: dict[str, Any] = agents
        super().__init__(**others)
        given = Arguments("MPLP")
        self.k, self.n = given.integer("k", k, 1), given.integer("n", n, 0)
        self.learner, self.memory = given.choice("learner", learner, LEARNERS), given.choice("memory", memory, MEMORIES)
        self.gradient, self.train_g = given.flag("gradient", gradient), given.flag("train_g", train_g)
        if learner == "recurrent" and not train_g:
            given.refuse("train_g", train_g, "True for the recurrent learner, whose one GRU is both f and g")
        self.hidden, self.between = given.integers("hidden", hidden, 2, 1), given.choice("between", between, BETWEEN)
        self.gate_bias, self.scale = given.number("gate_bias", gate_bias), given.number("scale", scale)
        self.floor, self.aggregate, self.given = given.number("floor", floor, 0), aggregate, tuple(agents)
        self.seed, self.share = seed_from(generator), shares(share)
        if gradient:
            self.passes = ("forward", "error", "backward")
        self.learners, self.standardisers, self.outputs = nn.ModuleDict(), nn.ModuleDict(), nn.ModuleDict()

    def agent(self, node: Any) -> Agent:
        """The agent of a node, with a learner of its own or its kind's; made when a node first needs it."""
        return self.made(node, measures=False)

    def made(self, node: Any, measures: bool) -> Agent:
        """The agent of a node; one that ``measures`` records statistics."""
        what, make = role(node)
        if make is None or any(kind in self.given for kind in node.types):
            return super().agent(node)
        if not issubclass(make, Learned):
            return make(self.aggregate)
        how, own = self.share[what], node.owner.replace(".", "/") + "/" * hasattr(nn.ModuleDict, node.owner)
        kind = what if what in ("weight", "bias") else f"{node.function.name}_{what}".replace(".", "/")
        key, place = own if how == "node" else kind, kind if how == "all" else own
        states = make.states + self.gradient
        if key not in self.learners:
            drawn = Generator().manual_seed(self.seed ^ crc32(key.encode()))  # whatever else is drawn before
            heard = 1 if what == "loss" else self.k
            self.learners[key] = LEARNERS[self.learner](heard + states, make.updates, self, drawn)
        if place not in self.standardisers:
            self.standardisers[place] = Standardiser(1 + states, self.floor)
        if make.updates and place not in self.outputs:
            self.outputs[place] = Output(self.scale)
        learner: Any = self.learners[key]
        standardiser: Any = self.standardisers[place]
        output: Any = self.outputs[place] if make.updates else None
        return make(self, learner, standardiser, output, measures)

    def measure(
        self,
        network: mg.Network,
        batches: Iterable[Any],
        *,
        share: float = 1.0,
        seed: int = 0,
        state: Mapping[str, Mapping[str, torch.Tensor]] | None = None,
    ) -> dict[str, dict[str, torch.Tensor]]:
        """Record the statistics of every learner's inputs and updates, in steps on a fresh network.

        The authors take one round of 2 or 5 batches with share 1 for sinusoids, and 5 rounds of 20 batches with share
        0.5, each from another seed, for MNIST.

        Args:
            network: whose nodes are to be recorded.
            batches: ``(x, y)``, one for each step.
            share: of what was recorded before, that is replaced.
            seed: of the initial state; what ``state`` holds is put into it.

        Returns:
            The state after these steps.

        Raises:
            ProtocolError: for a bad argument, NaN or infinity in a batch or in what the steps came to.
        """
        batches, size = pairs(batches)
        given = Arguments("MPLP.measure")
        share, seed = given.number("share", share, high=1, above=0), given.integer("seed", seed)
        like = next(self.buffers(), torch.empty(0, device="cpu"))
        rule = Measuring(self)
        program = mg.compile(network, rule, device=like.device, dtype=like.dtype)
        fresh = program.init(seed, batch_size=size)
        held = given.named("state", state or {}, fresh, "node")
        after, _ = program.run({n: {**c, **held.get(n, {})} for n, c in fresh.items()}, batches)
        rule.keep(program.graph, after, len(batches), share)
        return after

    def check(self, agents: Any) -> None:
        """Warn of nodes that nothing was recorded for, in a rule with records of others."""
        warn_of_unrecorded(self, agents)

    def unused(self, graph: Any) -> list[str]:
        """Names of parameters on which nothing can depend in a network: they get no meta-gradient.

        Nobody hears a weight from an input, so the part of its learner that makes messages is idle if no other node
        uses it; so is the part that makes updates where all weights are fixed, and learners of other networks.
        """
        heard = {arrow.source.owner for arrow in graph.all_arrows() if arrow.pass_name == "backward"}
        learned = {n: a for n, a in graph.agents.items() if isinstance(a, Learned)}
        parts = [a.learner.g for n, a in learned.items() if n in heard]
        parts += [part for n, a in learned.items() if graph.nodes[n].trained for part in (a.learner.f, a.output)]
        needed = {p for part in parts if part is not None for p in part.parameters()}
        return [name for name, p in self.named_parameters() if p not in needed]

    def extra_repr(self) -> str:
        """Arguments, for ``repr``."""
        usual = {"learner": "recurrent", "aggregate": "mean", "memory": "slot", "gradient": False, "train_g": True}
        other = [f"{name}={getattr(self, name)!r}" for name, value in usual.items() if getattr(self, name) != value]
        return ", ".join([f"k={self.k}", f"n={self.n}", f"share={self.arguments.get('share', 'kind')!r}", *other])
