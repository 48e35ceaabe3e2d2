"""A learning rule: which agent serves each type of node, and in which order the passes run."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import nn

from mpgraph.arguments import Arguments
from mpgraph.environment import inside_transform
from mpgraph.errors import InputError, ProtocolError, unknown
from mpgraph.network.activations import Activation, activation
from mpgraph.network.network import Network
from mpgraph.registry import lookup, registered

from .agent import Agent
from .builtin import Constant, Input, LossAgent, UnitAgent
from .module import RuleModule, initialized
from .node import AgentNode
from .optimizers import SGD, Optimizer
from .options import Number, Option, declare, differs, documented, option, shown, signature
from .repeat import Repeat, names_of


class Protocol(RuleModule):
    """Base of learning rules. Its parameters are the meta-parameters; a fixed rule has none.

    A rule is a class with a table of agents, and with its own arguments as fields::

        class Leaky(Backprop):
            keep: float = option(0.9, "share of a weight that is kept", low=0, high=1)
            agents = {"weight": LeakyWeight, "bias": Weight}

    Args:
        lr: learning rate of plain gradient descent, a float or ``mg.learnable(0.1)``; ignored with ``optimizer``.
        optimizer: another inner optimizer, which writes the channels that agents hand to ``s.descend``.
        optimizers: others, for channels of a name: ``{"b": mg.SGD(0.01)}``.
        surrogate: activation whose derivative stands in for units that have none (a step); by default their error is
            zero and compiling warns.
        agents: an agent for each type of node: ``weight``, ``bias``, ``unit``, ``output``, ``loss``, ``input``,
            ``target``, ``constant``, ``zero``, ``operation``, ``link``, or the class name of a user's own
            :class:`mpgraph.Activation` in lower case. Biases and weights from inputs (``input_weight``: no error goes
            back through them) default to the weight's agent, outputs, own types and operations to the unit's,
            everything else to the engine's own.

    Raises:
        ProtocolError: for an argument that its annotation does not allow, a surrogate without a derivative, or what is
            neither an argument nor an agent.

    Class attributes:
        agents: those of this class by type of node, besides those of its bases: a class or function, called for each
            rule, with the rule if it takes an argument; or an agent, of which each rule gets a copy.
        without: arguments of base classes that this one does not take.
        passes: the schedule: names of passes, which may occur several times, and :func:`mpgraph.repeat`. A rule whose
            schedule depends on its arguments sets its own.
        predict_passes: the schedule of a prediction, whose writes are discarded; several where units settle first.
        predicts: the pass after which a step takes its prediction and losses, for the first time that it occurs (after
            all rounds, if it is repeated); by default the moment in a step at which all of ``predict_passes`` have run.
        phases: schedules by name, for a rule whose steps are not all alike (they replace ``passes``). Each is compiled
            to a function of its own; :meth:`phase` gives the phase of a step.
        online: whether the rule learns in time, so that a step is one tick of the network; others may run so as well
            (``mg.compile(..., online=True)``), this one cannot do otherwise.
        bias: ``"synapse"`` makes a bias a weight from the number one; ``"agent"`` an agent between the sum and
            the unit.
        loss_link: ``"fused"`` leaves a loss of logits one agent; ``"agent"`` puts an agent of the type ``link`` for
            its softmax or sigmoid (:meth:`Loss.split`) between the output and the loss, which then receives
            probabilities.
        source: where the rule was published, as BibTeX; see :func:`cite`.
        adds_connections: pathways of connections that :meth:`rewrite` may add, each served by an agent of that name.
        random_defaults: whether the rule without arguments is a random one, which learns nothing until it is
            meta-trained.
        shipped: name of the pretrained rule that stands for such a one on the command line, if one ships.
        plain_rate: of the gradient descent that runs without ``optimizer``, where that is not ``lr``.
    """

    lr: Number = option(
        0.1,
        "learning rate of plain gradient descent, a float or ``mg.learnable(0.1)``; ignored with ``optimizer``.",
        positional=True,
        low=0,
    )
    optimizer: Optimizer | None = option(None, "another inner optimizer.")
    optimizers: Mapping[str, Optimizer] | None = option(
        None, 'others, for channels of a name: ``{"b": mg.SGD(0.01)}``.'
    )
    surrogate: str | Activation | Callable[[Any], Any] | None = option(
        None, "activation whose derivative stands in for units that have none (a step)."
    )

    agents: Any = MappingProxyType(
        {
            "input": Input,
            "target": Input,
            "constant": Constant,
            "zero": Constant(0.0),
            "unit": UnitAgent,
            "loss": LossAgent,
        }
    )
    without: tuple[str, ...] = ()
    passes: tuple[str | Repeat, ...] = ("forward", "backward", "learn")
    predict_passes: tuple[str | Repeat, ...] = ("forward",)
    predicts: str | None = None
    phases: Mapping[str, tuple[str | Repeat, ...]] = MappingProxyType({})
    online: bool = False
    bias: str = "synapse"
    loss_link: str = "fused"
    source: str = ""
    random_defaults: bool = False
    shipped: str = ""
    adds_connections: tuple[str, ...] = ()
    plain_rate: float | None = None
    pending: Any = None  # of a rule read from a file, the tensors of parts that it has yet to make
    declared: ClassVar[dict[str, Option]]

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls._declare()

    @classmethod
    def _declare(cls) -> None:
        """Take the options from the body of the class, for its signature and docstring."""
        declare(cls, RESERVED)
        table = vars(cls).get("agents", {})
        if not isinstance(table, Mapping):
            raise ProtocolError(
                f"{cls.__name__}.agents={table!r} must be a dictionary of agents by type of node, such as "
                '{"weight": MyWeight}'
            )
        for name in table:
            _check_type(f"{cls.__name__}.agents", name)
        plain = cls.__init__ is Protocol.__init__
        cls.__signature__ = signature(cls.declared) if plain else None  # type: ignore[attr-defined]
        if plain and vars(cls).get("__doc__"):
            cls.__doc__ = documented(cls, cls.declared)

    def __init__(self, /, *given: Any, **named: Any) -> None:
        super().__init__()
        owner = type(self).__name__
        try:
            bound = signature(self.declared).bind(*given, **named)
        except TypeError as error:
            raise TypeError(f"{owner}: {error}") from None
        bound.apply_defaults()
        others: dict[str, Agent] = bound.arguments.pop("agents")
        for name, agent in others.items():
            if not isinstance(agent, Agent):
                raise ProtocolError(
                    f"{owner}: {name}={agent!r} is neither one of its arguments nor an agent (mg.Agent) for a type of "
                    f"node; its arguments are {', '.join(self.declared)}"
                )
            _check_type(owner, name)
            initialized(agent)
        self.record: dict[str, Any] = {}
        for name, value in bound.arguments.items():
            value = self.declared[name].checked(owner, name, value)
            self.__dict__[name] = value  # not registered: a parameter belongs to the agent that uses it
            if name in self.arguments and isinstance(value, (bool, int, float)):
                self.arguments[name] = value  # plain Python, which a file can hold
        table = self._table()
        self.chosen = (*others, *(kind for kind, entry in table.items() if entry is not Protocol.agents.get(kind)))
        with torch.device("cpu"):  # generators sample there, whatever the default device is
            self._equip()
            self.setup()
            self.check_schedules()
            own = {kind: _made(kind, entry, self) for kind, entry in table.items() if kind not in others}
        held = nn.ModuleDict({**own, **others})
        if "operation" not in held and not getattr(held["unit"], "operations", False):
            held["operation"] = UnitAgent()
        self.agents = held
        self.__dict__["agents"] = held  # the class has a table of this name, which would be found first

    def _equip(self) -> None:
        """Inner optimizers, and a surrogate that has a derivative."""
        owner = type(self).__name__
        options = self.__dict__
        given, others = options.get("optimizer"), options.get("optimizers") or {}
        for one in filter(None, (given, *others.values())):
            initialized(one)
        rate = options.get("lr", 0.1) if self.plain_rate is None else self.plain_rate
        self._given_optimizer = given is not None
        self.optimizer = SGD(rate) if given is None else given
        self.optimizers = nn.ModuleDict(others)  # type: ignore[assignment]
        options.setdefault("surrogate", None)
        if self.surrogate is not None and activation(self.surrogate).is_flat():
            raise ProtocolError(
                f"{owner}: surrogate={self.surrogate!r} has zero derivative itself; choose tanh, sigmoid, relu, ..."
            )

    def _takes_learnable(self, name: str) -> bool:
        known = self.declared.get(name)
        return known.takes_learnable(type(self).__name__, name) if known else super()._takes_learnable(name)

    def setup(self) -> None:
        """Override to check arguments that belong together and to choose passes; agents are made after it."""

    def check_schedules(self) -> None:
        """Refuse schedules that are not sequences of the names of passes, or are empty.

        Raises:
            ProtocolError: naming the attribute.
        """
        given, owner = Arguments(type(self).__name__), type(self).__name__
        if not isinstance(self.phases, Mapping):
            given.refuse("phases", self.phases, "a dictionary of schedules by name")
        schedules = {"passes": self.passes, "predict_passes": self.predict_passes}
        schedules |= {f"phases[{name!r}]": schedule for name, schedule in self.phases.items()}
        for name, schedule in schedules.items():
            if isinstance(schedule, str):
                given.refuse(name, schedule, f"a tuple of names of passes; write ({schedule!r},)")
            given.annotated(name, schedule, tuple[str | Repeat, ...])
            if not schedule:
                raise ProtocolError(f"{owner}: {name}={schedule!r} must name at least one pass, such as ('forward',)")

    @classmethod
    def _table(cls) -> dict[str, Any]:
        """The tables of agents of all classes, the nearest first."""
        found: dict[str, Any] = {}
        for base in reversed(cls.__mro__):
            found.update(vars(base).get("agents", {}))
        return found

    def agent(self, node: AgentNode) -> Agent:
        """The agent of a node; override to choose by name, or to give each node one of its own.

        Raises:
            ProtocolError: if the protocol has no agent for this type.
        """
        for kind in node.types:
            if kind in self.agents:
                agent = self.agents[kind]
                assert isinstance(agent, Agent)
                return agent
        raise ProtocolError(
            f"{type(self).__name__} has no agent for node {node.name!r} of type {node.type!r}; it knows "
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

    def passes_of(self, phase: str | None) -> tuple[str | Repeat, ...]:
        """The schedule of a phase, or of a rule without."""
        return self.passes if phase is None else self.phases[phase]

    @property
    def all_passes(self) -> tuple[str, ...]:
        """Every pass of any schedule, once."""
        schedules = self.phases.values() if self.phases else [self.passes]
        return tuple(dict.fromkeys(name for passes in schedules for name in names_of(passes)))

    def moment(self, passes: Sequence[str | Repeat]) -> int | None:
        """After which entry of a schedule its prediction is made; ``None`` for a schedule that makes none."""
        if self.predicts is not None:
            return next((i for i, one in enumerate(passes) if self.predicts in names_of([one])), None)
        left = [tuple(names_of([one])) for one in self.predict_passes]
        for i, one in enumerate(passes):
            if left and tuple(names_of([one])) == left[0]:
                left.pop(0)
            if not left:
                return i
        return None

    @property
    def predicting(self) -> str:
        """What a schedule must hold to predict, in words."""
        names = self.predict_passes if self.predicts is None else (self.predicts,)
        return f"a pass called {names[0]!r}" if len(names) == 1 and isinstance(names[0], str) else repr(names)

    def optimizer_of(self, node: AgentNode, channel: str) -> Optimizer:
        """The inner optimizer that writes a channel of a node; by default chosen by the channel's name."""
        own = dict(self.optimizers or {})
        found = own.get(channel, self.optimizer)
        assert isinstance(found, Optimizer)
        return found

    def rewrite(self, network: Network) -> Network:
        """The network as this rule needs it (added feedback connections); by default unchanged."""
        return network

    def rule_at(self, name: str) -> Protocol:
        """The rule of the node of this name: this one, except in a choice of rule by region."""
        return self

    def rule_of(self, node: AgentNode) -> Protocol:
        """The rule of a node; uses of one node (ticks, tied weights) go by its name, a constant by what it serves."""
        return self.rule_at(node.serves or node.owner)

    @property
    def parts(self) -> tuple[Protocol, ...]:
        """The rules that this one is made of: only itself, except in a choice of rule by region."""
        return (self,)

    def check(self, agents: Mapping[AgentNode, Agent]) -> None:
        """Refuse nodes for which this rule makes no sense; called once their agents are known. By default none."""

    @property
    def bias_is_agent(self) -> bool:
        """Whether a bias is an agent between sum and unit, rather than a synapse from the number one."""
        return self._chosen("bias", self.bias, {"synapse": False, "agent": True, "beside": False, "between": True})

    @property
    def loss_link_is_agent(self) -> bool:
        """Whether the softmax or sigmoid of a loss of logits has an agent of its own."""
        word = getattr(self, "link", self.loss_link)  # the name before 0.2
        return self._chosen("loss_link", word, {"fused": False, "agent": True, "within": False, "between": True})

    def _chosen(self, name: str, word: str, meaning: Mapping[str, bool]) -> bool:
        """What a word means; the last two are those before 0.2."""
        if word not in meaning:
            raise ProtocolError(f"{type(self).__name__}.{name}: " + unknown("word", word, list(meaning)[:2]))
        return meaning[word]

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

    def push(
        self,
        repo: str,
        record: Mapping[str, Any] | None = None,
        *,
        private: bool | None = None,
        license: str | None = None,
    ) -> str:
        """Share the rule on the Hugging Face Hub; ``mg.load_protocol("hub://OWNER/NAME")`` reads it again.

        Needs ``pip install 'mpgraph[hub]'`` and a login (``hf auth login``). Written are ``model.safetensors``,
        ``config.json`` (for people, never read) and a card made from the record, as one commit.

        Args:
            repo: ``OWNER/NAME``, made if need be; with ``@BRANCH`` that branch, which must be there.
            record: whatever is worth knowing, as for :meth:`save`.
            private: whether a new repository can be seen by its owner only; by default as the owner has chosen.
            license: an identifier of the Hub, such as ``"apache-2.0"``; none is claimed without it.

        Returns:
            The address of the commit, ``hub://OWNER/NAME@COMMIT``, which always means this rule.

        Raises:
            FileError: as :meth:`save`, for a license that is no identifier, or a repository that cannot be written.
        """
        from mpgraph.serialization.protocol import push_protocol

        return push_protocol(self, repo, record, private=private, license=license)

    def extra_repr(self) -> str:
        """The learning rate or optimizer, and the arguments that are not what they are by default."""
        others = (self.optimizers or {}).items()
        parts = [*self._optimizer_shown(), *(f"{channel}: {other!r}" for channel, other in others)]
        usual = {name: one.default for name, one in inspect.signature(type(self)).parameters.items()}
        given = {name: value for name, value in self.arguments.items() if not isinstance(value, RuleModule)}
        for name, default in usual.items():
            if name in given and name not in ("lr", "optimizers"):
                value = self.__dict__.get(name, given[name]) if name in self.declared else given[name]
                parts += [f"{name}={shown(value)}"] if differs(value, default) else []
        return ", ".join(parts)

    def _optimizer_shown(self) -> list[str]:
        rate = [] if self.plain_rate is None or "lr" not in self.declared else [f"lr={shown(self.lr)}"]
        if not self._given_optimizer and (rate or "lr" not in self.declared):
            return rate
        assert isinstance(self.optimizer, Optimizer)
        plain = type(self.optimizer) is SGD and not rate
        return [*rate, self.optimizer.extra_repr() if plain else f"optimizer={self.optimizer!r}"]

    def __repr__(self) -> str:
        return self.name


def _check_type(owner: str, name: Any) -> None:
    """Refuse what cannot be a type of node: agents are held as modules, by type."""
    if not isinstance(name, str) or not name or "." in name or hasattr(nn.ModuleDict, name):
        raise ProtocolError(f"{owner}: {name!r} cannot be a type of node; types are names, such as 'weight' or 'unit'")


RESERVED: frozenset[str] = frozenset()  # for the options of Protocol itself
Protocol._declare()
# Nothing calls a rule, so "forward" is free, although a module has such a method.
RESERVED = frozenset({*dir(Protocol), "agents", "arguments", "chosen", "record", "training"} - {"forward"})


def _made(kind: str, entry: Any, rule: Protocol) -> Agent:
    """An agent from an entry of a table."""
    if isinstance(entry, Agent):
        initialized(entry)
        return copy.deepcopy(entry)
    made = _called(kind, entry, rule) if callable(entry) else entry
    if isinstance(made, Agent):
        initialized(made)
    if not isinstance(made, Agent):
        raise ProtocolError(
            f"{type(rule).__name__}.agents: {entry!r} must be an agent, or a class or function that makes "
            f"one, got {made!r}"
        )
    return made


def _called(kind: str, entry: Any, rule: Protocol) -> Any:
    """What a class or function of a table returns, given the rule if it takes an argument."""
    made_by: Any = entry.__init__ if isinstance(entry, type) else entry  # type: ignore[misc]
    known = list(inspect.signature(made_by).parameters.values())[isinstance(entry, type) :]
    needed = [p for p in known if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    if len(needed) > 1 or any(p.kind is p.KEYWORD_ONLY for p in needed):
        name = getattr(entry, "__name__", repr(entry))
        raise ProtocolError(
            f"{type(rule).__name__}.agents[{kind!r}]: {name} needs {', '.join(p.name for p in needed)}, but is given "
            f"the rule only; write a function of the rule, lambda rule: {name}(...)"
        )
    return entry(rule) if needed else entry()


def learnable(value: Any) -> nn.Parameter:
    """A number or tensor as a meta-parameter: ``Backprop(lr=mg.learnable(0.1))``.

    Args:
        value: its first value, which is copied; the parameter has torch's default dtype.

    Raises:
        ProtocolError: for what is not a finite number, or a list, an array or a tensor of such.
    """
    try:
        given = torch.as_tensor(value, device=value.device if isinstance(value, torch.Tensor) else "cpu")
    except (TypeError, ValueError, RuntimeError, OverflowError):
        given = None
    refused = given is None or given.dtype == torch.bool or given.is_complex()
    if given is None or refused or not (given.is_meta or bool(torch.isfinite(given).all())):
        Arguments("mg.learnable").refuse("value", value, "a finite number, or a list, an array or a tensor of such")
    return nn.Parameter(given.detach().to(torch.get_default_dtype(), copy=True))  # the caller keeps his


def cite(protocol: Protocol | type[Protocol]) -> str:
    """Where a rule was published, as BibTeX.

    Args:
        protocol: a rule or its class.

    Returns:
        One entry or several; empty for a rule that names no source.
    """
    return protocol.source.strip()


def make_protocol(name: str, **arguments: Any) -> Protocol:
    """A registered rule by its name, for example ``make_protocol("feedback_alignment", lr=0.05)``.

    Args:
        name: one of :func:`list_protocols`.
        arguments: of the rule's class.

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
