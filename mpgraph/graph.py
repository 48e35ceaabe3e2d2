"""Network x protocol: the multigraph of stateful nodes and the arrows of each pass.

An arrow exists in a pass where the destination's ``<pass>_update`` names a role that a neighbour fills and that
neighbour has a ``<pass>_message``. All wiring is derived here, once; both executors follow it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from typing import TYPE_CHECKING, Any

from torch import Tensor

from .agent import AGGREGATIONS, Agent, Channel
from .algebra import BATCH, Axis
from .errors import NetworkError, ProtocolError
from .kinds import Kind
from .losses import Loss
from .network import Network, Unit

if TYPE_CHECKING:
    import networkx

    from .protocol import Protocol


@dataclass(eq=False)
class AgentNode:
    """All agents of one kind at one place.

    Attributes:
        kind: input, target, unit, output, weight, bias, constant, loss, or the name of a user's kind.
        kinds: under which a protocol may hold its agent, in order of preference.
        axes: one for each dimension of the population.
        ends: for a weight, which of its axes belong to its ``pre`` and ``post`` end.
        function: the unit's kind or the loss.
        trained: whether the channel ``w`` may be written.
        value: initial value of ``w`` given by the network.
    """

    name: str
    kind: str
    axes: tuple[Axis, ...] = ()
    ends: Mapping[str, tuple[Axis, ...]] = field(default_factory=dict)
    function: Kind | Loss | None = None
    fan_in: int = 1
    fan_out: int = 1
    trained: bool = True
    value: Tensor | None = None
    kinds: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self.kinds = self.kinds or ((self.kind, "weight") if self.kind == "bias" else (self.kind,))

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of agents along each axis."""
        return tuple(axis.size for axis in self.axes if axis.size is not None)

    def __repr__(self) -> str:
        return f"{self.name} ({self.kind} {'x'.join(map(str, self.shape)) or 'single'})"


def layout(node: AgentNode, channel: Channel) -> tuple[Axis, ...]:
    """Axes of a kept channel's tensor, without local ones."""
    if channel.extent == "common":
        return ()
    axes = node.axes if channel.end is None else node.ends.get(channel.end, node.axes)
    return (BATCH, *axes) if channel.extent == "carry" else axes


@dataclass(frozen=True, eq=False)
class Link:
    """Two neighbours: ``pre`` fills ``role`` at ``post``, ``post`` fills ``"post"`` at ``pre``. Names match axes."""

    pre: AgentNode
    post: AgentNode
    names: Mapping[Axis, Axis]
    role: str = "pre"


@dataclass(frozen=True, eq=False)
class Arrow:
    """Message, aggregation and update between two nodes in one pass."""

    pass_name: str
    source: AgentNode
    target: AgentNode
    role: str
    names: Mapping[Axis, Axis]  # axes of the source -> axes of the target
    how: str

    @property
    def aggregated(self) -> tuple[Axis, ...]:
        """Axes of the source that the target lacks."""
        return tuple(axis for axis in self.source.axes if axis not in self.names)

    def __str__(self) -> str:
        return f"{self.pass_name}: {self.source.name} => {self.target.name} ({self.role})"


class AgentGraph:
    """Nodes, the agent of each, and for each pass the arrows and the order of updates.

    Attributes:
        nodes: by name.
        agents: by node name.
        arrows: for each pass the arrows into each node (by name), grouped by role.
        order: for each pass the nodes, sources first.
    """

    def __init__(self, network: Network, protocol: Protocol) -> None:
        self.network, self.protocol = network, protocol
        self.nodes: dict[str, AgentNode] = {}
        self.links: list[Link] = []
        _check(network)
        self._place(network, protocol.bias)
        self.agents: dict[str, Agent] = {name: protocol.agent(node) for name, node in self.nodes.items()}
        self.arrows: dict[str, dict[str, dict[str, list[Arrow]]]] = {}
        self.order: dict[str, list[AgentNode]] = {}
        for name in dict.fromkeys(protocol.passes):
            self._wire(name)

    # -- nodes and links ----------------------------------------------------------------------------------

    def _node(self, name: str, kind: str, axes: tuple[Axis, ...] = (), **attributes: Any) -> AgentNode:
        self.nodes[name] = AgentNode(name, kind, axes, **attributes)
        return self.nodes[name]

    def _copy(self, name: str, kind: str, of: AgentNode, **attributes: Any) -> tuple[AgentNode, dict[Axis, Axis]]:
        """A node with one agent for each of another's."""
        axes = tuple(Axis(axis.name, axis.size) for axis in of.axes)
        return self._node(name, kind, axes, **attributes), dict(zip(of.axes, axes, strict=True))

    def _place(self, network: Network, bias: str) -> None:
        into: dict[str, AgentNode] = {}  # where the messages of a unit's connections go
        for unit in network.units.values():
            axes = tuple(
                Axis(unit.name if len(unit.shape) == 1 else f"{unit.name}.{i}", n) for i, n in enumerate(unit.shape)
            )
            kinds = _kinds(unit, network)
            node = self._node(unit.name, kinds[0], axes, function=unit.kind, kinds=kinds)
            into[unit.name] = node
            if unit.bias and bias == "between":
                name = f"{unit.name}.bias"
                own, names = self._copy(name, "bias", node, value=unit.bias_value, trained=unit.bias_trained)
                self.links.append(Link(own, node, {b: a for a, b in names.items()}))
                into[unit.name] = own
        for loss in network.losses.values():
            target = self.nodes.get(f"{loss.pre}.target")
            if target is None:
                target, _ = self._copy(f"{loss.pre}.target", "target", self.nodes[loss.pre])
            node, names = self._copy(loss.name, "loss", self.nodes[loss.pre], function=loss.loss)
            into[loss.name] = node
            self.links.append(Link(self.nodes[loss.pre], node, names))
            self.links.append(Link(target, node, dict(zip(target.axes, node.axes, strict=True)), role="target"))
        for wire in network.wires.values():
            pre, post = self.nodes[wire.pre], into[wire.post]
            self._connect(wire.name, "weight", pre, post, wire.connection, wire.weight, wire.trained)
        for unit in network.units.values():
            if unit.bias and bias == "beside":
                one = self.nodes.get("one") or self._node("one", "constant")
                name, value = f"{unit.name}.bias", unit.bias_value
                self._connect(name, "bias", one, self.nodes[unit.name], None, value, unit.bias_trained)

    def _connect(
        self,
        name: str,
        kind: str,
        pre: AgentNode,
        post: AgentNode,
        connection: Any,
        value: Any,
        trained: bool,
    ) -> None:
        from .connection import Dense

        connection = connection or Dense()
        axes, at_pre, at_post = connection.build(name, pre.axes, post.axes)
        ends = {"pre": tuple(at_pre.values()), "post": tuple(at_post.values())}
        fan_in, fan_out = connection.fans(pre.shape, post.shape)
        node = self._node(name, kind, axes, ends=ends, fan_in=fan_in, fan_out=fan_out, value=value, trained=trained)
        self.links.append(Link(pre, node, at_pre))
        self.links.append(Link(node, post, {own: axis for axis, own in at_post.items()}))

    # -- arrows -------------------------------------------------------------------------------------------

    def _wire(self, name: str) -> None:
        """Derive the arrows of one pass, and an order in which sources come first."""
        known = {"pre", "post"} | {link.role for link in self.links}
        into: dict[str, dict[str, list[Arrow]]] = {}
        before: dict[str, list[str]] = {}
        for target in self.nodes.values():
            agent = self.agents[target.name]
            roles = agent.roles(name)
            if agent.update_of(name) is None and agent.message_of(name) is None:
                continue
            before[target.name], into[target.name] = [], {}
            for role, required in roles.items():
                if role not in known:
                    raise ProtocolError(
                        f"{type(agent).__name__}.{name}_update names the role {role!r}; the roles here are "
                        f"{', '.join(sorted(known))}"
                    )
                how = agent.aggregate.get(role, "sum")
                if how not in AGGREGATIONS:
                    raise ProtocolError(
                        f"{type(agent).__name__}.aggregate[{role!r}] is {how!r}; allowed are {', '.join(AGGREGATIONS)}"
                    )
                arrows = [
                    Arrow(name, source, target, role, names, how)
                    for source, names in self._neighbours(target, role)
                    if self.agents[source.name].message_of(name) is not None
                ]
                if required and not arrows:
                    raise ProtocolError(self._unfilled(name, target, role))
                into[target.name][role] = arrows
                before[target.name] += [arrow.source.name for arrow in arrows]
        try:
            order = list(TopologicalSorter(before).static_order())
        except CycleError as error:
            cycle = " -> ".join(reversed(error.args[1]))
            raise NetworkError(
                f"pass {name!r} has a cycle without a delay: {cycle}. Remove one of these connections: every pass "
                "needs an order in which each node hears its sources first"
            ) from None
        self.arrows[name] = into
        self.order[name] = [self.nodes[n] for n in order]

    def _neighbours(self, target: AgentNode, role: str) -> list[tuple[AgentNode, Mapping[Axis, Axis]]]:
        if role == "post":
            return [(k.post, {b: a for a, b in k.names.items()}) for k in self.links if k.pre is target]
        return [(k.pre, k.names) for k in self.links if k.post is target and k.role == role]

    def _unfilled(self, name: str, target: AgentNode, role: str) -> str:
        there = [source for source, _ in self._neighbours(target, role)]
        rule = type(self.protocol).__name__
        if not there:
            fix = "connect it onwards, or put a loss on it" if role == "post" else "connect something to it"
            return f"{rule}, pass {name!r}: node {target.name!r} has no {role!r} neighbour; {fix}"
        names = ", ".join(f"{node.name} ({type(self.agents[node.name]).__name__})" for node in there)
        return (
            f"{rule}, pass {name!r}: node {target.name!r} waits for {role!r} messages, but none of its neighbours "
            f"sends one: {names}. Give one a {name}_message, or make the role optional ({role}=None)"
        )

    # -- views for people ---------------------------------------------------------------------------------

    def to_networkx(self) -> networkx.MultiDiGraph:
        """Nodes with their kind and shape; one edge for each arrow, keyed ``pass:role``."""
        import networkx

        graph = networkx.MultiDiGraph()
        for node in self.nodes.values():
            agent = type(self.agents[node.name]).__name__
            graph.add_node(node.name, kind=node.kind, shape=node.shape, agent=agent)
        for arrow in self.all_arrows():
            key = f"{arrow.pass_name}:{arrow.role}"
            graph.add_edge(
                arrow.source.name,
                arrow.target.name,
                key=key,
                pass_name=arrow.pass_name,
                role=arrow.role,
                how=arrow.how,
            )
        return graph

    def all_arrows(self) -> list[Arrow]:
        """Every arrow, in the order in which they are used."""
        return [
            arrow
            for name, order in self.order.items()
            for node in order
            for arrows in self.arrows[name][node.name].values()
            for arrow in arrows
        ]

    def __repr__(self) -> str:
        lines = [f"  {node}" for node in self.nodes.values()]
        arrows = [f"  {arrow}" for arrow in self.all_arrows()]
        return "\n".join([f"AgentGraph of {type(self.protocol).__name__}(", *lines, *arrows, ")"])


def _kinds(unit: Unit, network: Network) -> tuple[str, ...]:
    """Under which names a protocol may hold the agent of a unit: the user's own class first."""
    if unit.is_input:
        return ("input",)
    own = [type(unit.kind).__name__.lower()] if not type(unit.kind).__module__.startswith("mpgraph.") else []
    return (*own, *(["output"] if unit.name in network.outputs else []), "unit")


def _check(network: Network) -> None:
    """Refuse what no rule could run."""
    if not network.inputs:
        raise NetworkError("the network has no input; add one with network.input(name, size)")
    if not network.outputs:
        raise NetworkError("the network has no output: every unit feeds another; put a loss on one")
    posts = {wire.post for wire in network.wires.values()}
    lonely = [n for n, u in network.units.items() if not u.is_input and n not in posts]
    if lonely:
        raise NetworkError(f"nothing is connected to {', '.join(map(repr, lonely))}; connect an input or unit to it")
    before: dict[str, list[str]] = {name: [] for name in network.units}
    for wire in network.wires.values():
        if wire.post in before:
            before[wire.post].append(wire.pre)
    try:
        TopologicalSorter(before).prepare()
    except CycleError as error:
        cycle = " -> ".join(reversed(error.args[1]))
        raise NetworkError(
            f"cycle without a delay: {cycle}. Remove one of these connections: a unit cannot wait for itself"
        ) from None
    reached = set(network.inputs)
    for name in TopologicalSorter(before).static_order():
        if any(source in reached for source in before[name]):
            reached.add(name)
    for name in network.outputs:
        if name not in reached:
            raise NetworkError(f"output {name!r} is not reached from any input ({', '.join(network.inputs)})")
