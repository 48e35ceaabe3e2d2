"""Choice of rule by region: another protocol for some nodes of a network, by name or pattern."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from mpgraph.arguments import Arguments, first_match
from mpgraph.errors import ProtocolError
from mpgraph.network.network import Network

from .agent import Agent
from .module import initialized
from .node import AgentNode
from .optimizers import Optimizer
from .protocol import Protocol
from .repeat import Repeat


class Regions(Protocol):
    """Another rule for each part of a network: ``Regions({"h1->h2": RuleA(), "h*": RuleB(), "*": RuleC()})``.

    Patterns are those of the shell, held against the names of nodes (``x->h1``, ``h1``, ``h1.bias``, ``loss``) in
    order; the first that matches gives the rule whose agent serves the node and whose optimizer writes its channels.
    ``mg.compile(network, {...})`` takes the dictionary as it is.

    An agent takes part in every pass for which it has methods, whichever rule the pass comes from. Connections that a
    rule adds to the network are its own, and only those at its own units are kept. Each rule has its own constants,
    which need no pattern.

    Args:
        rules: a protocol for each pattern. The last is usually ``"*"``, which serves whatever no other names.
        passes: the schedule; by default that of the rule with most passes, in which those of all others must occur in
            their order.
        phase: which of the phases a step belongs to, counted from 0; by default that of the rules, which must agree.

    Raises:
        ProtocolError: for rules whose passes come in another order, or whose phases or turns differ.
    """

    def __init__(
        self,
        rules: Mapping[str, Protocol],
        *,
        passes: Sequence[str | Repeat] | None = None,
        phase: Callable[[int], str] | None = None,
    ) -> None:
        super().__init__()
        if not rules:
            raise ProtocolError('Regions: no rules; give one for each pattern of names, {"h1": RuleA(), "*": RuleB()}')
        for pattern, rule in rules.items():
            if isinstance(rule, Regions) or not isinstance(rule, Protocol) or not isinstance(pattern, str):
                raise ProtocolError(f"Regions: expected {{pattern: Protocol}}, got {pattern!r}: {rule!r}")
            initialized(rule)
        if passes is not None:
            Arguments("Regions").annotated("passes", passes, tuple[str | Repeat, ...])
        self.patterns = tuple(rules)
        self._added: dict[str, Protocol] = {}  # by name, connections that a rule added
        self.rules = nn.ModuleDict({_key(pattern): rule for pattern, rule in rules.items()})
        first = self.parts[0]
        if any(rule.phases != first.phases for rule in self.parts):
            raise ProtocolError(f"Regions: rules of one network must agree on phases, but {self._have('phases')}")
        if phase is None and first.phases and any(_turns(rule) != _turns(first) for rule in self.parts):
            raise ProtocolError(
                f"Regions: rules of one network must take turns alike, but they are {self.parts}. Say whose turn it "
                "is: Regions(..., phase=lambda step: ...)"
            )
        self.phase = phase or first.phase  # type: ignore[method-assign, assignment]
        self.passes = tuple(passes or max((rule.passes for rule in self.parts), key=len))
        longest = max(self.parts, key=lambda rule: len(rule.predict_passes))
        self.predict_passes, self.predicts = longest.predict_passes, longest.predicts
        if not all(_occurs(rule.passes, self.passes) for rule in self.parts):
            raise ProtocolError(
                f"Regions: the passes of each rule must occur in {self.passes} in their order, but "
                f"{self._have('passes')}. Give a schedule that serves all: Regions(..., passes=(...))"
            )
        self.online = any(rule.online for rule in self.parts)
        self.phases = dict(first.phases)  # a mapping proxy cannot be copied or pickled
        self.source = "\n".join(dict.fromkeys(rule.source for rule in self.parts))

    @property
    def parts(self) -> tuple[Protocol, ...]:
        """The rules, each once."""
        rules: Any = dict.fromkeys(self.rules.values())
        return tuple(rules)

    def pattern_of(self, name: str) -> str | None:
        """The first pattern that matches a name."""
        return first_match(name, self.patterns)

    def rule_at(self, name: str) -> Protocol:
        """The rule of the first pattern that matches, or that added the connection of this name.

        Raises:
            ProtocolError: if no pattern matches.
        """
        if name in self._added:
            return self._added[name]
        pattern = self.pattern_of(name)
        if pattern is None:
            raise ProtocolError(
                f"Regions: no pattern matches node {name!r}; the patterns are {self._listed()}. Name it, or add a rule "
                'for all others: "*"'
            )
        rule = self.rules[_key(pattern)]
        assert isinstance(rule, Protocol)
        return rule

    def agent(self, node: AgentNode) -> Agent:
        """The agent of the node's rule."""
        return self.rule_of(node).agent(node)

    def optimizer_of(self, node: AgentNode, channel: str) -> Optimizer:
        """The inner optimizer of the node's rule."""
        return self.rule_of(node).optimizer_of(node, channel)

    def rewrite(self, network: Network) -> Network:
        """The network as all rules need it, rewritten by one after the other.

        Raises:
            ProtocolError: for a rule that adds connections, but only between units of other rules.
        """
        for rule in self.parts:
            before = dict.fromkeys(network.wires)
            network = rule.rewrite(network)
            paths = [w for name, w in network.wires.items() if name not in before and w.pathway != "weight"]
            own = [w for w in paths if rule in (self.rule_at(w.pre), self.rule_at(w.post))]
            if paths and not own:
                units = ", ".join(dict.fromkeys(repr(w.pre) for w in paths))
                raise ProtocolError(
                    f"Regions: {rule!r} needs a {paths[0].pathway} connection at its units, but serves no unit that "
                    f"could have one; name such units as well, one of {units}"
                )
            self._added.update({w.name: rule for w in own})
            network.wires = {name: w for name, w in network.wires.items() if w not in paths or w in own}
        return network

    def check(self, agents: Mapping[AgentNode, Agent]) -> None:
        """Refuse patterns that serve no node.

        Raises:
            ProtocolError: naming the patterns.
        """
        names = dict.fromkeys(node.owner for node in agents if not node.serves and node.owner not in self._added)
        Arguments("Regions").serving("rules", self.patterns, names, "nodes")
        for rule in self.parts:
            rule.check(agents)

    def _have(self, attribute: str) -> str:
        given = ((pattern, self.rules[_key(pattern)]) for pattern in self.patterns)
        return "; ".join(f"{pattern!r}: {rule!r} has {getattr(rule, attribute)!r}" for pattern, rule in given)

    def _listed(self) -> str:
        return ", ".join(map(repr, self.patterns))

    def extra_repr(self) -> str:
        """Patterns and rules, for ``repr``."""
        return ", ".join(f"{pattern!r}: {self.rules[_key(pattern)]!r}" for pattern in self.patterns)


def _key(pattern: str) -> str:
    """A pattern as the name of a sub-module, which may hold no dot and not be a method's name."""
    key = pattern.replace(".", "/")
    return f"{key}/" if hasattr(nn.ModuleDict, key) else key


def _occurs(part: Sequence[str | Repeat], whole: Sequence[str | Repeat]) -> bool:
    """Whether all of ``part`` stands in ``whole``, in this order."""
    rest = iter(whole)
    return all(name in rest for name in part)


def _turns(rule: Protocol) -> Any:
    """What decides whose turn it is, to be compared: a value that the rule has set, or its method and arguments."""
    method = getattr(rule.phase, "__func__", None)
    if method is None:
        return rule.phase
    return method if method is Protocol.phase else (method, rule.arguments)
