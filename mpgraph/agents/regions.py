"""Choice of rule by region: another protocol for some nodes of a network, by name or pattern."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from torch import nn

from mpgraph.errors import ProtocolError
from mpgraph.network.network import Network

from .agent import Agent
from .node import AgentNode
from .optimizers import Optimizer
from .protocol import Protocol

if TYPE_CHECKING:
    from mpgraph.graph.wiring import AgentGraph


class Regions(Protocol):
    """Another rule for each part of a network: ``Regions({"h1->h2": RuleA(), "h*": RuleB(), "*": RuleC()})``.

    Patterns are those of the shell, held against the names of nodes (``x->h1``, ``h1``, ``h1.bias``, ``loss``) in
    order; the first that matches gives the rule whose agent serves the node and whose optimiser writes its channels.
    ``mg.compile(network, {...})`` takes the dictionary as it is.

    An agent takes part in every pass for which it has methods, whichever rule the pass comes from. Pathways that a rule
    draws into the network are its own, and are drawn at its own units alone. Each rule has its own constants, which
    need no pattern.

    Args:
        rules: a protocol for each pattern. The last is usually ``"*"``, to which belongs whatever no other names.
        passes: the schedule; by default that of the rule with most passes, in which those of all others must occur in
            their order.

    Raises:
        ProtocolError: for rules whose passes come in another order, or whose phases differ.
    """

    def __init__(self, rules: Mapping[str, Protocol], *, passes: Sequence[str] | None = None) -> None:
        super().__init__()
        if not rules:
            raise ProtocolError('Regions: no rules; give one for each pattern of names, {"h1": RuleA(), "*": RuleB()}')
        for pattern, rule in rules.items():
            if isinstance(rule, Regions) or not isinstance(rule, Protocol) or not isinstance(pattern, str):
                raise ProtocolError(f"Regions: {pattern!r}: {rule!r} is not a pattern of names and a protocol")
        self.patterns = tuple(rules)
        self._drawn: dict[str, Protocol] = {}  # by name, pathways that a rule drew
        self.rules = nn.ModuleDict({_key(pattern): rule for pattern, rule in rules.items()})
        first = self.parts[0]
        if any(rule.phases != first.phases for rule in self.parts):
            raise ProtocolError(f"Regions: rules of one network must agree on phases, but {self._have('phases')}")
        turns = [[rule.phase(step) for step in range(1000)] if rule.phases else [] for rule in self.parts]
        if any(other != turns[0] for other in turns):
            raise ProtocolError(f"Regions: rules of one network must take turns alike, but they are {self.parts}")
        self.passes = tuple(passes or max((rule.passes for rule in self.parts), key=len))
        self.predict_passes = max((rule.predict_passes for rule in self.parts), key=len)
        if not all(_occurs(rule.passes, self.passes) for rule in self.parts):
            raise ProtocolError(
                f"Regions: the passes of each rule must occur in {self.passes} in their order, but "
                f"{self._have('passes')}. Give a schedule that serves all: Regions(..., passes=(...))"
            )
        self.phases = first.phases
        self.source = "\n".join(dict.fromkeys(rule.source for rule in self.parts))

    @property
    def parts(self) -> tuple[Protocol, ...]:
        """The rules, each once."""
        rules: Any = dict.fromkeys(self.rules.values())
        return tuple(rules)

    def pattern_of(self, name: str) -> str | None:
        """The first pattern that matches a name."""
        return next((pattern for pattern in self.patterns if fnmatchcase(name, pattern)), None)

    def rule_at(self, name: str) -> Protocol:
        """The rule of the first pattern that matches, or that drew the pathway of this name.

        Raises:
            ProtocolError: if no pattern matches.
        """
        if name in self._drawn:
            return self._drawn[name]
        pattern = self.pattern_of(name)
        if pattern is None:
            raise ProtocolError(
                f"Regions: no pattern matches node {name!r}; the patterns are {self._listed()}. Name it, or add a rule "
                'for all others: "*"'
            )
        rule = self.rules[_key(pattern)]
        assert isinstance(rule, Protocol)
        return rule

    def rule_of(self, node: AgentNode) -> Protocol:
        """The rule of a node; uses of one node (ticks, tied weights) go by its name, a constant by whom it serves."""
        return self.rule_at(node.serves or node.owner)

    def agent(self, node: AgentNode) -> Agent:
        """The agent of the node's rule."""
        return self.rule_of(node).agent(node)

    def optimizer_of(self, node: AgentNode, channel: str) -> Optimizer:
        """The inner optimiser of the node's rule."""
        return self.rule_of(node).optimizer_of(node, channel)

    def rewrite(self, network: Network) -> Network:
        """The network as all rules need it, rewritten by one after the other.

        Raises:
            ProtocolError: for a rule that draws pathways, but between units of other rules alone.
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
            self._drawn.update({w.name: rule for w in own})
            network.wires = {name: w for name, w in network.wires.items() if w not in paths or w in own}
        return network

    def phase(self, step: int) -> str:
        """Whose turn it is by the first rule."""
        return self.parts[0].phase(step)

    def check(self, graph: AgentGraph) -> None:
        """Refuse patterns that serve no node.

        Raises:
            ProtocolError: naming the patterns.
        """
        names = dict.fromkeys(node.owner for node in graph.nodes.values() if not node.serves)
        used = {self.pattern_of(name) for name in names if name not in self._drawn}
        idle = [pattern for pattern in self.patterns if pattern not in used]
        if idle:
            late = [pattern for pattern in idle if any(fnmatchcase(name, pattern) for name in names)]
            which = ", ".join(map(repr, late or idle))
            if late:
                raise ProtocolError(
                    f"Regions: {which}: all nodes that match are taken by earlier patterns; the first match wins, so "
                    f"put the more particular first: {self._listed()}"
                )
            raise ProtocolError(f"Regions: no node matches {which}; the nodes are {', '.join(names)}")
        for rule in self.parts:
            rule.check(graph)

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


def _occurs(part: Sequence[str], whole: Sequence[str]) -> bool:
    """Whether all of ``part`` stands in ``whole``, in this order."""
    rest = iter(whole)
    return all(name in rest for name in part)
