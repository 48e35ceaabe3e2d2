"""A learning rule: which agent serves each kind of node, and in which order the passes run."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from mpgraph.environment import inside_transform
from mpgraph.errors import InputError, ProtocolError, unknown
from mpgraph.network.network import Network
from mpgraph.registry import lookup, registered

from .agent import Agent
from .builtin import BatchNormAgent, Constant, Input, LossAgent, OperationAgent, UnitAgent, Zero
from .module import RuleModule
from .node import AgentNode
from .optimizers import SGD, Optimizer

if TYPE_CHECKING:
    from mpgraph.graph.wiring import AgentGraph
    from mpgraph.serialization.protocol import Waiting


class Protocol(RuleModule):
    """Base of learning rules. Its parameters are the meta-parameters; a fixed rule has none.

    Args:
        optimizer: writes the channels that agents hand to ``s.descend``; plain gradient descent at 0.1 by default.
        optimizers: others, for channels of a name: ``{"b": mg.SGD(0.01)}``.
        agents: an agent for each type of node: ``weight``, ``bias``, ``unit``, ``output``, ``loss``, ``input``,
            ``target``, ``constant``, ``operation``, ``link``, or the class name of a user's own
            :class:`mpgraph.Activation` in lower case. Biases and weights from inputs (``input_weight``: no error goes
            back through them) default to the weight's agent, outputs and own types to the unit's, everything else to
            the engine's own.

    Class attributes:
        passes: the schedule; names may repeat. A rule whose schedule depends on its arguments sets its own.
        predict_passes: the schedule of a prediction, whose writes are discarded; several where units settle first.
        phases: schedules by name, for a rule whose steps are not all alike (they replace ``passes``). Each is compiled
            to a function of its own; :meth:`phase` says whose turn it is.
        bias: ``"beside"`` makes a bias a weight from the number one; ``"between"`` an agent between the sum and
            the unit.
        link: ``"within"`` leaves a loss of logits one agent; ``"between"`` puts an agent of the kind ``link`` for its
            softmax or sigmoid (:meth:`Loss.split`) between the output and the loss, which then hears probabilities.
        source: where the rule was published, as BibTeX; see :func:`cite`.
        draws: kinds of connection that :meth:`rewrite` may add, each served by an agent of that name.
        random_defaults: whether the rule without arguments is a random draw, which learns nothing until it is
            meta-trained.
    """

    passes: tuple[str, ...] = ("forward", "backward", "learn")
    predict_passes: tuple[str, ...] = ("forward",)
    phases: Mapping[str, tuple[str, ...]] = MappingProxyType({})
    bias: Literal["beside", "between"] = "beside"
    link: Literal["within", "between"] = "within"
    source: str = ""
    random_defaults: bool = False
    draws: tuple[str, ...] = ()
    waiting: Waiting | None = None  # of a rule read from a file, what it has yet to make

    def __init__(
        self,
        *,
        optimizer: Optimizer | None = None,
        optimizers: Mapping[str, Optimizer] | None = None,
        **agents: Agent,
    ) -> None:
        super().__init__()
        for given in (optimizer, *(optimizers or {}).values()):
            if given is not None and not isinstance(given, Optimizer):
                raise ProtocolError(f"{type(self).__name__}: optimizer must be an mg.Optimizer, got {given!r}")
        self.record: dict[str, Any] = {}
        self.optimizer = optimizer or SGD()
        self.optimizers = nn.ModuleDict(optimizers or {})
        for kind, agent in agents.items():
            if not isinstance(agent, Agent):
                raise ProtocolError(
                    f"{type(self).__name__}: {kind}={agent!r} is neither one of its arguments nor an agent (mg.Agent) "
                    "for a kind of node"
                )
        own: dict[str, Agent] = {
            "input": Input(),
            "target": Input(),
            "constant": Constant(),
            "zero": Zero(),
            "unit": UnitAgent(),
            "operation": OperationAgent(),
            "batchnorm": BatchNormAgent(),
            "loss": LossAgent(),
        }
        self.own = tuple(own)
        self.agents = nn.ModuleDict({**own, **agents})

    def agent(self, node: AgentNode) -> Agent:
        """The agent of a node; override to choose by name, or to give each node one of its own.

        Raises:
            ProtocolError: if the protocol has no agent for this kind.
        """
        for kind in node.types:
            if kind in self.agents:
                agent = self.agents[kind]
                assert isinstance(agent, Agent)
                return agent
        raise ProtocolError(
            f"{type(self).__name__} has no agent for node {node.name!r} of kind {node.type!r}; it knows "
            f"{', '.join(self.agents)}"
        )

    def phase(self, step: int) -> str:
        """Which of the ``phases`` a step belongs to, counted from 0; by default they take turns in their order."""
        return list(self.phases)[step % len(self.phases)]

    def phase_at(self, state: Mapping[str, Any], phase: str | None = None) -> str | None:
        """The phase of the next step: the one given, else the one whose turn it is; ``None`` for a rule without.

        Raises:
            InputError: for an unknown phase, or none under a transform, where the step counter cannot be read.
        """
        if phase is None and not self.phases:
            return None
        if phase is not None:
            return self.phase_named(phase)
        if inside_transform():
            raise InputError(
                "under torch.compile and torch.func transforms say which phase a step is: "
                f"phase={next(iter(self.phases))!r}"
            )
        return self.phase(int(state["program"]["step"]))

    def phase_named(self, phase: str | None = None) -> str | None:
        """The phase of this name, or the first; ``None`` for a rule without.

        Raises:
            InputError: for a phase that the rule does not have.
        """
        if phase is None:
            return next(iter(self.phases), None)
        if not self.phases:
            raise InputError(f"{type(self).__name__} has no phases: all its steps are alike, but got phase={phase!r}")
        if phase not in self.phases:
            raise InputError(f"{type(self).__name__}: " + unknown("phase", phase, self.phases))
        return phase

    def passes_of(self, phase: str | None) -> tuple[str, ...]:
        """The schedule of a phase, or of a rule without."""
        return self.passes if phase is None else self.phases[phase]

    @property
    def all_passes(self) -> tuple[str, ...]:
        """Every pass of any schedule, once."""
        schedules = self.phases.values() if self.phases else [self.passes]
        return tuple(dict.fromkeys(name for passes in schedules for name in passes))

    def optimizer_of(self, node: AgentNode, channel: str) -> Optimizer:
        """The inner optimiser that writes a channel of a node; by default chosen by the channel's name."""
        own = dict(self.optimizers.items())
        found = own.get(channel, self.optimizer)
        assert isinstance(found, Optimizer)
        return found

    def rewrite(self, network: Network) -> Network:
        """The network as this rule needs it (added feedback connections); by default unchanged."""
        return network

    def rule_at(self, name: str) -> Protocol:
        """The rule by which the node of this name goes: this one, but for a choice of rule by region."""
        return self

    @property
    def parts(self) -> tuple[Protocol, ...]:
        """The rules that this one is made of: itself alone, but for a choice of rule by region."""
        return (self,)

    def check(self, graph: AgentGraph) -> None:
        """Refuse a graph on which this rule makes no sense; called once all arrows are known. By default none."""

    @property
    def name(self) -> str:
        """What results are filed under: the class and its arguments."""
        return f"{type(self).__name__}({self.extra_repr()})"

    def save(self, folder: Any, record: Mapping[str, Any] | None = None) -> None:
        """Write the rule into a folder: its tensors and how to make it. ``mg.load_protocol`` reads it again.

        Args:
            folder: made if need be; a rule that it holds is replaced, each file at once.
            record: whatever is worth knowing, as JSON can hold it (how it was trained, what it reached); that of the
                rule itself, ``protocol.record``, if not given.

        Raises:
            FileError: for an argument that no file can hold, a class that is not registered, a folder that cannot be
                written.
        """
        from mpgraph.serialization.protocol import save_protocol

        save_protocol(self, folder, record)

    def extra_repr(self) -> str:
        """Arguments, for ``repr``."""
        plain = type(self.optimizer) is SGD
        own = self.optimizer.extra_repr() if plain else f"optimizer={self.optimizer!r}"
        return ", ".join([own, *(f"{channel}: {other!r}" for channel, other in self.optimizers.items())])

    def __repr__(self) -> str:
        return self.name


def learnable(value: Any) -> nn.Parameter:
    """A number or tensor as a meta-parameter: ``Backprop(lr=mg.learnable(0.1))``."""
    place = value.device if isinstance(value, torch.Tensor) else "cpu"
    return nn.Parameter(torch.as_tensor(value, dtype=torch.get_default_dtype(), device=place))


def cite(protocol: Protocol | type[Protocol]) -> str:
    """Where a rule was published, as BibTeX."""
    return protocol.source.strip()


def make_protocol(name: str, **arguments: Any) -> Protocol:
    """A registered rule by its name, for example ``make_protocol("feedback_alignment", lr=0.05)``.

    Raises:
        ProtocolError: for an unknown name.
    """
    found = lookup("mpgraph.protocols", name)
    if found is None:
        raise ProtocolError(unknown("protocol", name, list_protocols()))
    return found(**arguments)


def list_protocols() -> list[str]:
    """Names of the registered rules."""
    return list(registered("mpgraph.protocols"))
