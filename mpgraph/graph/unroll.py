"""Network -> nodes and links: where a rule's agents will sit, and which of them are neighbors.

This is the first of two steps from a network and a rule to a graph; :mod:`mpgraph.graph.wiring` does the second.

- Every input, unit and operation becomes a node. Each dimension of its shape becomes an axis of its own.
- Every weighted connection becomes a node between its ends: its agents are the synapses.
- A bias becomes synapses from a constant one, or an agent between the sum and the unit; a loss becomes one agent, or
  two with its link function (softmax, sigmoid) first. That is the rule's choice, see :class:`Style`.
- A network with delays is unrolled: each tick has nodes of its own, of which the last carry the plain names and the
  state. Earlier ones (``h@0``) are uses of them. Tied weights are uses of one node in the same way.
- Of a program whose step is one tick, a delay is a node that says what its unit said a tick ago (``h@-1``); a longer
  one is a chain of them (``h@-2`` behind it).
- Of a program whose step is a sequence of any length, there are the nodes of one tick, and a link has the delay.
- Links join neighbors. They have no pass yet; what travels along them is decided in the wiring.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mpgraph.agents.node import AgentNode
from mpgraph.agents.protocol import Protocol
from mpgraph.errors import NetworkError
from mpgraph.network.axes import Axis
from mpgraph.network.connections import Connection, Endpoints, OneToOne
from mpgraph.network.network import Network
from mpgraph.network.parts import Unit, Wire
from mpgraph.network.validation import check

from .arrows import Link


@dataclass(frozen=True)
class Style:
    """What a rule decides about the nodes that serve a unit, bias or loss.

    Attributes:
        rule: constants are shared by the nodes of one rule.
        bias_agent: whether a bias is an agent between the sum and the unit, not synapses from the number one.
        link_agent: whether the link function of a loss is an agent of its own.
    """

    rule: Protocol
    bias_agent: bool
    link_agent: bool


def styles_of(network: Network, protocol: Protocol) -> dict[str, Style]:
    """The style of every unit, bias and loss of a network, by the name of its node."""
    names = [*(f"{n}.bias" for n, u in network.units.items() if u.bias), *network.units, *network.losses]
    rules = {name: protocol.rule_at(name) for name in names}
    return {name: Style(rule, rule.bias_is_agent, rule.loss_link_is_agent) for name, rule in rules.items()}


class Unrolled:
    """The nodes of a network and their links.

    Args:
        network: with units, connections and losses.
        styles: of every unit, bias and loss, as :func:`styles_of` finds them.
        online: whether a step is one tick, so that nothing is unrolled.
        sequences: whether a step is a sequence of any length: nothing is unrolled either.

    Attributes:
        nodes: by name.
        links: between neighbors.

    Raises:
        NetworkError: for a network that no rule could run.
    """

    def __init__(
        self, network: Network, styles: Mapping[str, Style], online: bool = False, sequences: bool = False
    ) -> None:
        check(network, online or sequences)
        self.network, self.styles, self.online, self.sequences = network, styles, online, sequences
        self.nodes: dict[str, AgentNode] = {}
        self.links: list[Link] = []
        self._constants: dict[tuple[str, Protocol], AgentNode] = {}
        self._into: dict[str, AgentNode] = {}  # where the messages of a unit's connections go
        # Owners of weights that some unit sends through. Those of inputs only have nobody to send an error to.
        self._from_units = {w.tied or w.name for w in network.wires.values() if not network.units[w.pre].is_input}
        needed = _needed(network)
        self._last: dict[str, int] = {}
        for name, tick in needed:
            self._last[name] = self._last[f"{name}.bias"] = max(tick, self._last.get(name, 0))
        for wire in network.wires.values():
            end = wire.pre if wire.post in network.losses else wire.post
            if end in self._last:
                self._last[wire.name] = self._last[end]
        for tick in range(network.ticks):
            for unit in network.units.values():
                if (unit.name, tick) in needed:
                    self._unit(unit, tick)
        for loss in network.losses.values():
            self._loss(loss.name, loss.pre, loss.loss)
        for tick in range(network.ticks):
            for unit in network.units.values():
                if unit.operands and (unit.name, tick) in needed:
                    self._operands(unit, tick)
            for wire in network.wires.values():
                end = wire.pre if wire.post in network.losses else wire.post
                if (end, tick) in needed and (online or sequences or tick >= wire.delay):
                    self._wire(wire, tick)
        for tick in range(network.ticks):
            for unit in network.units.values():
                if (unit.name, tick) in needed and not unit.is_input:
                    self._bias_or_zero(unit, tick)
        if online:
            self._nothing_comes_back()

    def at(self, name: str, tick: int) -> str:
        """Name of a node at a tick; its last one has the plain name."""
        last = self._last.get(name, self.network.ticks - 1)
        return name if tick == last else f"{name}@{tick}"

    def _node(self, name: str, node_type: str, axes: tuple[Axis, ...] = (), **attributes: Any) -> AgentNode:
        self.nodes[name] = AgentNode(name, node_type, axes, **attributes)
        return self.nodes[name]

    def _copy(self, name: str, node_type: str, of: AgentNode, **attributes: Any) -> tuple[AgentNode, dict[Axis, Axis]]:
        """A node with one agent for each of another's."""
        axes = tuple(Axis(axis.name, axis.size) for axis in of.axes)
        shared = tuple(axes[of.axes.index(a)] for a in attributes.pop("shared", ()))
        node = self._node(name, node_type, axes, shared=shared, **attributes)
        return node, dict(zip(of.axes, axes, strict=True))

    def _unit(self, unit: Unit, tick: int) -> None:
        axes = tuple(
            Axis(unit.name if len(unit.shape) == 1 else f"{unit.name}.{i}", n) for i, n in enumerate(unit.shape)
        )
        types, name = _types(unit, self.network), self.at(unit.name, tick)
        shared = tuple(axes[dim] for dim in unit.activation.shared(unit.shape))
        node = self._node(
            name, types[0], axes, shared=shared, function=unit.activation, types=types, owner=unit.name, tick=tick
        )
        self._into[name] = node
        if unit.bias and self.styles[f"{unit.name}.bias"].bias_agent:
            own, names = self._copy(
                self.at(f"{unit.name}.bias", tick),
                "bias",
                node,
                value=unit.bias_value,
                trained=unit.bias_trained,
                owner=f"{unit.name}.bias",
                shared=tuple(axes[dim] for dim in unit.bias_shared),
                tick=tick,
            )
            self.links.append(Link(own, node, {b: a for a, b in names.items()}))
            self._into[name] = own

    def _loss(self, name: str, pre: str, loss: Any) -> None:
        target = self.nodes.get(f"{pre}.target")
        if target is None:
            target, _ = self._copy(f"{pre}.target", "target", self.nodes[pre])
        below, parts = self.nodes[pre], loss.split() if self.styles[name].link_agent else None
        if parts is not None:
            inverse, loss = parts
            types = (inverse.name, "link", "unit")
            below, names = self._copy(f"{name}.link", "link", below, function=inverse, types=types)
            self.links.append(Link(self.nodes[pre], below, names))
        node, names = self._copy(name, "loss", below, function=loss)
        self._into[name] = node
        self.links.append(Link(below, node, names))
        self.links.append(Link(target, node, dict(zip(target.axes, node.axes, strict=True)), role="target"))

    def _operands(self, unit: Unit, tick: int) -> None:
        node = self.nodes[self.at(unit.name, tick)]
        inner = {}
        for operand in unit.operands:
            source = self.nodes[self.at(operand, tick)]
            inner[source.name] = tuple(Axis(axis.name, axis.size) for axis in source.axes)
            self.links.append(Link(source, node, dict(zip(source.axes, inner[source.name], strict=True))))
        node.inner = inner

    def _wire(self, wire: Wire, tick: int) -> None:
        last = wire.post in self.network.losses
        delay = wire.delay if self.sequences else 0
        if self.online:
            pre = self._past(wire.pre, wire.delay)
        else:
            pre = self.nodes[self.at(wire.pre, 0 if self.sequences else tick - wire.delay)]
        post = self._into[wire.post if last else self.at(wire.post, tick)]
        if not wire.connection.weighted:
            endpoints = wire.connection.build(pre.axes, post.axes)
            at_post = {own: axis for axis, own in endpoints.post.items()}
            names = {axis: at_post[own] for axis, own in endpoints.pre.items()}
            self.links.append(Link(pre, post, names, delay=delay))
            return
        owner = self.network.wires[wire.tied] if wire.tied else wire
        self._connect(
            self.at(wire.name, tick),
            wire.pathway,
            pre,
            post,
            wire.connection,
            value=owner.weight,
            trained=owner.trained,
            owner=owner.name,
            transposed=wire.transposed,
            delay=delay,
            tick=tick,
        )

    def _past(self, unit: str, delay: int) -> AgentNode:
        """What says what a unit said that many ticks ago."""
        node = self.nodes[unit]
        for ago in range(1, delay + 1):
            name = f"{unit}@-{ago}"
            if name not in self.nodes:
                _, names = self._copy(name, "delay", node, serves=unit)
                self.links.append(Link(node, self.nodes[name], names))
            node = self.nodes[name]
        return node

    def _nothing_comes_back(self) -> None:
        """Units that only speak to later ticks receive zero from above: nothing travels back to them."""
        for unit in self.network.units.values():
            above = [link.post for link in self.links if link.pre.name == unit.name]
            if above and all(node.type == "delay" for node in above):
                self.links.append(Link(self.nodes[unit.name], self._constant("zero", "zero", unit.name), {}))

    def _bias_or_zero(self, unit: Unit, tick: int) -> None:
        name = self.at(unit.name, tick)
        node = self.nodes[name]
        if unit.bias and not self.styles[f"{unit.name}.bias"].bias_agent:
            one = self._constant("one", "constant", f"{unit.name}.bias")
            self._connect(
                self.at(f"{unit.name}.bias", tick),
                "bias",
                one,
                node,
                FromOne(unit.bias_shared),
                value=unit.bias_value,
                trained=unit.bias_trained,
                owner=f"{unit.name}.bias",
                tick=tick,
            )
        elif not any(link.post is self._into[name] for link in self.links):  # at this tick nothing has arrived yet
            zero = self._constant("zero", "zero", unit.name)
            self.links.append(Link(zero, self._into[name], {}))

    def _constant(self, name: str, node_type: str, serves: str) -> AgentNode:
        """The constant of a rule, made when it is first needed."""
        key = (node_type, self.styles[serves].rule)
        if key not in self._constants:
            number = sum(known == node_type for known, _ in self._constants)
            self._constants[key] = self._node(f"{name}#{number}" if number else name, node_type, serves=serves)
        return self._constants[key]

    def _connect(
        self,
        name: str,
        node_type: str,
        pre: AgentNode,
        post: AgentNode,
        connection: Connection,
        transposed: bool = False,
        delay: int = 0,
        **attributes: Any,
    ) -> None:
        endpoints = connection.build(pre.axes, post.axes)
        _check_endpoints(name, connection, endpoints, pre, post)
        turned = dict.fromkeys((*endpoints.end("pre"), *endpoints.end("post")))  # shared axes are at both ends
        axes = tuple(turned) if transposed else endpoints.axes
        fan_in, fan_out = connection.fans(pre.shape, post.shape)
        ends = {end: endpoints.end(end) for end in ("pre", "post")}
        types = (
            ("input_weight", "weight") if node_type == "weight" and attributes["owner"] not in self._from_units else ()
        )
        node = self._node(
            name,
            node_type,
            axes,
            shared=endpoints.shared,
            ends=ends,
            fan_in=fan_in,
            fan_out=fan_out,
            types=types,
            **attributes,
        )
        at_post = {own: axis for axis, own in endpoints.post.items()}
        role, back = ("pre", "post") if node_type in ("weight", "bias") else (node_type, node_type)
        self.links.append(Link(pre, node, endpoints.pre, incidence=endpoints.pre_incidence, back=back, delay=delay))
        self.links.append(Link(node, post, at_post, role=role, incidence=endpoints.post_incidence))


class FromOne(OneToOne):
    """Synapses of a bias: from the number one to every agent of a unit."""

    def check(self, pre: tuple[int, ...], post: tuple[int, ...]) -> str | None:  # noqa: D102
        return None


def _check_endpoints(name: str, connection: Connection, endpoints: Endpoints, pre: AgentNode, post: AgentNode) -> None:
    """Refuse a connection of a user's own that does not define for every axis of a unit what stands for it."""
    ends = (
        ("pre", pre, endpoints.pre, endpoints.pre_incidence),
        ("post", post, endpoints.post, endpoints.post_incidence),
    )
    for end, node, names, incidence in ends:
        known = {*names, *(incidence.unit if incidence else ())}
        missing = [axis for axis in node.axes if axis not in known]
        unfit = [axis for axis, own in names.items() if axis.size != own.size or own not in endpoints.axes]
        if missing or unfit or known - set(node.axes):
            raise NetworkError(
                f"{name!r}: {connection.name}.build does not match the axes of {node.name!r} {node.shape} at its {end} "
                f"end: {(missing or unfit or list(known - set(node.axes)))[0]!r} has no namesake of its size"
            )


def _types(unit: Unit, network: Network) -> tuple[str, ...]:
    """Under which names a protocol may hold the agent of a unit: the user's own class first."""
    if unit.is_input:
        return ("input",)
    own = [type(unit.activation).__name__.lower()] if unit.activation.own_agent else []
    if unit.operands:
        return (*own, "operation", "unit")
    return (*own, *(["output"] if unit.name in network.outputs else []), "unit")


def _needed(network: Network) -> set[tuple[str, int]]:
    """Units and ticks on which the outputs of the last tick depend; in a network without ticks, all."""
    last = network.ticks - 1
    if last == 0:
        return {(name, 0) for name in network.units}
    sources: dict[str, list[tuple[str, int]]] = {name: [] for name in network.units}
    for wire in network.wires.values():
        if wire.post in sources:
            sources[wire.post].append((wire.pre, wire.delay))
    for unit in network.units.values():
        sources[unit.name] += [(operand, 0) for operand in unit.operands]
    stack = [(name, last) for name in network.outputs]
    found: set[tuple[str, int]] = set()
    while stack:
        name, tick = stack.pop()
        if (name, tick) not in found and tick >= 0:
            found.add((name, tick))
            stack += [(source, tick - delay) for source, delay in sources[name]]
    reached = {name for name, _ in found}
    return found | {(name, last) for name in network.inputs if name not in reached}
