"""MPLP: a message passing learning protocol.

Randazzo, Niklasson and Mordvintsev (2020), "MPLP: Learning a Message Passing Learning Protocol", arXiv 2007.00970.
Where paper and code (github.com/google-research/self-organising-systems, folder mplp) differ this is the code, which
made the figures. Every operation is an agent with a learner of its own, see ``learners.py``:

    forward     y = w x, z + b, f(z), softmax(z)     each agent keeps what it sees
    backward    the loss agent reads its own loss (Eq. 2) and sends a vector of k numbers, m, down
                every agent sends m' = g(m, what it keeps, its memory) (Eq. 1); units receive the mean (Eq. 5)
                w <- w + (<f(m, x, w, memory)> - o) * scale (Eq. 3 and 4); <.> is the average over the batch

Every input of a learner is standardized by one mean and one deviation of its own. These, and the mean output o, are
recorded before meta-training (:meth:`MPLP.measure`) and frozen; the scale is trained. Units without a function pass m
on. No derivative is used, so any unit will do. ``gradient=True`` passes the gradient beside the message, as section 5
of the paper proposes.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from typing import Any, Literal
from zlib import crc32

import torch
from torch import Generator, Tensor, nn

import mpgraph as mg
from mpgraph import Agent, Protocol
from mpgraph.agents.options import option
from mpgraph.arguments import Arguments

from .agents import role
from .imitation import REACH, Numbers, error, example, kinds, step
from .learned import Learned
from .learners import LEARNERS
from .statistics import Measuring, Output, Standardiser

ROLES = ("weight", "bias", "unit", "link", "loss")
SHARES = ("node", "kind", "all")


class MPLP(Protocol):
    """Learners at every weight, bias, unit and loss, which send each other vectors; random until meta-trained.

    Raises:
        ProtocolError: for an argument out of range.
    """

    k: int = option(4, "numbers in a message.", positional=True, low=1)
    n: int = option(7, "numbers of private memory.", positional=True, low=0)
    learner: Literal["recurrent", "separate", "stateless"] = option(
        "recurrent", "``recurrent`` (as published: one GRU is f and g), ``separate`` or ``stateless``."
    )
    share: Any = option(
        "kind",
        "which agents share one learner: ``node`` (none do), ``kind`` (all weights, all sigmoids), or ``all``, which "
        "is ``kind`` with standardizers and scales shared too, those of weights from the input apart. A "
        "dictionary sets it for ``weight``, ``bias``, ``unit``, ``link`` and ``loss``; a role that it "
        "does not name shares none.",
    )
    aggregate: Any = option(
        "mean", "of the messages from above at a unit: ``mean``, ``sum``, or a ``torch_geometric`` aggregation."
    )
    memory: Literal["slot", "use", "synapse"] = option(
        "slot",
        "kept for each synapse and ``slot`` of the batch (then a state serves one batch size), also for each ``use`` "
        "of a synapse in an example, or only for each ``synapse``.",
    )
    gradient: bool = option(
        False, "whether learners also read the gradient, by backpropagation through the same network."
    )
    train_g: bool = option(
        True,
        "for ``separate`` and ``stateless`` whether g is a meta-parameter; the released stateless files have a random "
        "g that was never trained.",
    )
    hidden: tuple[int, int] = option((80, 40), "sizes of the two hidden layers.", low=1)
    between: Literal["tanh", "relu"] | None = option(
        None, "their activation, ``tanh`` or ``relu``; by default that of the authors' code."
    )
    gate_bias: float = option(-1.0, "initial bias of both gates.")
    scale: float = option(0.01, "initial scale of updates, the authors' 0.2 deviations of the initial weights.")
    floor: float = option(
        0.0,
        "smallest deviation by which an input is divided. The authors have none, but for 1e-5, below which they do not "
        "divide at all; a nearly constant input then gets an enormous factor.",
        low=0,
    )
    generator: Generator | None = option(None, "of the initial learners; seed 0 by default.")
    without = ("lr", "surrogate")

    passes: tuple[str, ...] = ("forward", "backward")
    bias = "agent"
    loss_link = "agent"
    random_defaults = True
    shipped = "mplp_mnist"
    source = """
@article{randazzo2020mplp,
  title={{MPLP}: Learning a Message Passing Learning Protocol},
  author={Randazzo, Ettore and Niklasson, Eyvind and Mordvintsev, Alexander},
  journal={arXiv preprint arXiv:2007.00970}, year={2020}
}"""

    def setup(self) -> None:
        """Make room for the learners, each made when a node first needs it."""
        if self.learner == "recurrent" and not self.train_g:
            Arguments("MPLP").refuse(
                "train_g", self.train_g, "True for the recurrent learner, whose one GRU is both f and g"
            )
        self.aggregate = self.__dict__.pop("aggregate")  # a module is registered so: it may have parameters
        self.shares = shares(self.share)
        self.seed = 0 if self.generator is None else int(torch.randint(2**62, (), generator=self.generator))
        if self.gradient:
            self.passes = ("forward", "error", "backward")
        self.learners, self.standardisers, self.outputs = nn.ModuleDict(), nn.ModuleDict(), nn.ModuleDict()

    def agent(self, node: Any) -> Agent:
        """The agent of a node, with a learner of its own or that of all its type; made when a node first needs it."""
        return self.made(node, measures=False)

    def made(self, node: Any, measures: bool) -> Agent:
        """The agent of a node; one that ``measures`` records statistics."""
        what, make = role(node)
        types = ("operation",) if node.inner else node.types
        if make is None or any(one in self.chosen for one in types):
            return super().agent(node)
        if not issubclass(make, Learned):
            return make(self.aggregate)
        how, own = self.shares[what], node.owner.replace(".", "/") + "/" * hasattr(nn.ModuleDict, node.owner)
        kind = what if what in ("weight", "bias") else f"{node.function.name}_{what}".replace(".", "/")
        kind = self.known(kind, what, node) if how != "node" else kind
        key, place = own if how == "node" else kind, kind if how == "all" else own
        if place == "weight" and "input_weight" in node.types:
            place = "input_weight"  # reads numbers of the task, not activities
        states = make.states + self.gradient
        if key not in self.learners:
            own_generator = Generator().manual_seed(self.seed ^ crc32(key.encode()))  # whatever was made before
            message = 1 if what == "loss" else self.k
            self.learners[key] = LEARNERS[self.learner](message + states, make.updates, self, own_generator)
        if place not in self.standardisers:
            self.standardisers[place] = Standardiser(1 + states, self.floor)
        if make.updates and place not in self.outputs:
            self.outputs[place] = Output(self.scale)
        learner: Any = self.learners[key]
        standardiser: Any = self.standardisers[place]
        output: Any = self.outputs[place] if make.updates else None
        return make(self, learner, standardiser, output, measures)

    def known(self, kind: str, what: str, node: Any) -> str:
        """The kind of learner that serves a node: its own, or in a rule from a file that lacks it the only other one.

        The paper's transfer to step units is just that: they use the learner of the sigmoids.

        Raises:
            ProtocolError: if the file has several to choose from, or none.
        """
        saved = self.pending.tensors if self.pending else ()
        held = {name.split(".")[1] for name in saved if name.startswith("learners.")}
        if not held or kind in held:
            return kind
        others = sorted(name for name in held if name.endswith(f"_{what}"))
        if len(others) != 1:
            allowed = f"learners of {', '.join(others)}" if others else "no learner for such a node"
            raise mg.ProtocolError(
                f"MPLP: {node.name} needs a learner of {kind}, but this rule was saved with {allowed}"
            )
        warnings.warn(
            f"MPLP: this rule has no learner of {kind}; these nodes use that of {others[0]}", UserWarning, stacklevel=2
        )
        return others[0]

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
        like = next(self.buffers(), torch.empty(0))
        rule = Measuring(self)
        program = mg.compile(network, rule, device=like.device, dtype=like.dtype)
        fresh = program.init(seed, batch_size=size)
        held = given.named("state", state or {}, fresh, "node")
        after, _ = program.run({n: {**c, **held.get(n, {})} for n, c in fresh.items()}, batches)
        rule.keep(program.graph, after, len(batches), share)
        return after

    def alone(self, graph: Any, generator: Generator, examples: int) -> dict[str, Tensor]:
        """How far the agents of each kind are from gradient descent, each alone, see ``imitation.py``.

        Args:
            graph: of a program of this rule.
            generator: of the random numbers that agents read.
            examples: how many of each kind.

        Returns:
            Relative squared errors of messages and updates, and what idle numbers count, by name.

        Raises:
            ProtocolError: for another than the recurrent learner, with ``gradient``, or for a loss or link that
                gradient descent does not serve here.
        """
        draw = Numbers(generator, examples, self.k, REACH)
        found: dict[str, Tensor] = {}
        for name, (what, agent, node) in kinds(graph).items():
            errors = error(agent, node, example(what, node, draw), draw)
            named = zip(("message", "update", "idle"), errors, strict=True)
            found |= {f"{name}.{end}": e for end, e in named if e is not None}
        return found

    def measure_alone(self, graph: Any, generator: Generator, examples: int) -> None:
        """Record the statistics of the numbers that :meth:`alone` draws, and set the scales of updates to fit.

        Args:
            graph: of a program of this rule.
            generator: of the numbers.
            examples: how many of each kind.
        """
        draw = Numbers(generator, examples, self.k)
        read: dict[Standardiser, list[list[Tensor]]] = {}
        with torch.no_grad():
            for what, agent, node in kinds(graph).values():
                read.setdefault(agent.standardiser, []).append(example(what, node, draw).values)
                if agent.output is not None:
                    agent.output.scale.fill_(step(node))
            for standardiser, rows in read.items():
                standardiser.fit([torch.cat(parts) for parts in zip(*rows, strict=True)])

    def check(self, agents: Mapping[mg.AgentNode, Agent]) -> None:
        """Warn of nodes whose inputs are standardized by nothing while those of others are."""
        parts: Any = () if self.pending else tuple(self.standardisers.values())  # one from a file is not complete yet
        neutral = [p for p in parts if not bool(p.shift.any()) and bool((p.factor == 1.0).all())]
        bare = [node.name for node, agent in agents.items() if getattr(agent, "standardiser", None) in neutral]
        if bare and len(neutral) < len(parts):
            warnings.warn(
                f"MPLP: nothing was recorded for {', '.join(bare)}, while other nodes have statistics; their learners "
                "read inputs as they are. Record them: rule.measure(network, batches)",
                UserWarning,
                stacklevel=2,
            )

    def unused(self, graph: Any) -> list[str]:
        """Names of parameters on which nothing can depend in a network: they get no meta-gradient.

        No node receives messages from a weight of an input, so the part of its learner that makes them is idle if no
        other node uses it; so is the part that makes updates where all weights are fixed, and so are learners of other
        networks.
        """
        sending = {arrow.source.owner for arrow in graph.all_arrows() if arrow.pass_name == "backward"}
        learned = {n: a for n, a in graph.agents.items() if isinstance(a, Learned)}
        parts = [a.learner.g for n, a in learned.items() if n in sending]
        parts += [part for n, a in learned.items() if graph.nodes[n].trained for part in (a.learner.f, a.output)]
        needed = {p for part in parts if part is not None for p in part.parameters()}
        return [name for name, p in self.named_parameters() if p not in needed]


def shares(share: Any) -> dict[str, str]:
    """Which agents of each role share one learner.

    Raises:
        ProtocolError: for another word or role.
    """
    given = Arguments("MPLP")
    if not isinstance(share, Mapping):
        return dict.fromkeys(ROLES, given.choice("share", share, SHARES))
    given.named("share", share, ROLES, "role")
    own = {role: given.choice(f"share[{role!r}]", how, SHARES) for role, how in share.items()}
    return {**dict.fromkeys(ROLES, "node"), **own}


def pairs(batches: Any) -> tuple[list[tuple[Any, Any]], int]:
    """Batches as a list, and how many examples the first one has.

    Raises:
        ProtocolError: for what is not a sequence of pairs of tensors, for no pair or no example, for NaN and infinity.
    """
    given = Arguments("MPLP.measure")
    plain = isinstance(batches, Iterable) and not isinstance(batches, (Tensor, str, Mapping))
    steps = list(batches) if plain else []
    if not steps:
        given.refuse("batches", batches, "pairs (x, y), one for each step and at least one")
    tensors = {f"batches[{i}]{end}": t for i, step in enumerate(steps) for end, t in _ends(given, i, step)}
    for name, t in tensors.items():
        if not isinstance(t, Tensor) or t.ndim == 0 or not len(t):
            given.refuse(name, t, "a tensor of at least one example")
    for name, t in tensors.items():
        if not bool(torch.isfinite(t).all()):
            given.refuse(name, t, "finite; it holds NaN or infinity")
    return steps, len(next(iter(tensors.values())))


def _ends(given: Arguments, i: int, step: Any) -> list[tuple[str, Any]]:
    """The tensors of a pair, with where they are found in it."""
    if not isinstance(step, (tuple, list)) or len(step) != 2:
        given.refuse(f"batches[{i}]", step, "a pair (x, y)")
    held = [(end, half) for end, half in enumerate(step) if isinstance(half, Mapping) and half]
    named = [(f"[{end}]", half) for end, half in enumerate(step) if not (isinstance(half, Mapping) and half)]
    return named + [(f"[{end}][{name!r}]", t) for end, half in held for name, t in half.items()]
