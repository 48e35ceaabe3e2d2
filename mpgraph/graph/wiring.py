"""Network x protocol: the multigraph of stateful nodes and the arrows of each pass.

An arrow exists in a pass where the destination's ``<pass>_update`` names a role that a neighbour fills and that
neighbour has a ``<pass>_message``. All wiring is derived here, once; both executors follow it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mpgraph.agents.agent import Agent
from mpgraph.agents.channel import AGGREGATIONS, Channel
from mpgraph.agents.node import AgentNode
from mpgraph.errors import ProtocolError, unknown
from mpgraph.network.activations import Activation
from mpgraph.network.axes import Axis
from mpgraph.network.cycles import in_order
from mpgraph.network.incidence import Incidence
from mpgraph.network.network import Network

from .arrows import Arrow, Link
from .unroll import Placement

if TYPE_CHECKING:
    import networkx

    from mpgraph.agents.protocol import Protocol


class AgentGraph:
    """Nodes, the agent of each, and for each pass the arrows and the order of updates.

    Attributes:
        nodes: by name.
        agents: by node name.
        channels: by node name, those of its agent and those that an inner optimiser keeps for them.
        uses: for each node that keeps a state, the nodes that use it (ticks, tied weights); mostly itself alone.
        arrows: for each pass the arrows into each node (by name), grouped by role.
        order: for each pass the nodes, sources first.
    """

    def __init__(self, network: Network, protocol: Protocol) -> None:
        self.network, self.protocol = network, protocol
        placement = Placement(network, protocol)
        self.nodes, self.links = placement.nodes, placement.links
        self.agents: dict[str, Agent] = {name: protocol.agent(node) for name, node in self.nodes.items()}
        for name, node in self.nodes.items():  # uses of one node are one agent
            self.agents[name] = self.agents.get(node.owner, self.agents[name])
        self.channels: dict[str, dict[str, Channel]] = {
            name: {c: declared for c, declared in agent.channels().items() if agent.size_of(declared) != (0,)}
            for name, agent in self.agents.items()
        }
        self._to: dict[str, list[Link]] = {name: [] for name in self.nodes}
        self._from: dict[str, list[Link]] = {name: [] for name in self.nodes}
        for link in self.links:
            self._to[link.post.name].append(link)
            self._from[link.pre.name].append(link)
        self.uses: dict[str, list[str]] = {}
        for name, node in self.nodes.items():
            self.uses.setdefault(node.owner, []).append(name)
        self.arrows: dict[str, dict[str, dict[str, list[Arrow]]]] = {}
        self.order: dict[str, list[AgentNode]] = {}
        self._check_rule()
        for name in protocol.all_passes:
            self._wire(name)
        protocol.check(self)

    def _check_rule(self) -> None:
        """Refuse what a rule names and nothing answers to: the misspelt."""
        rule = type(self.protocol).__name__
        held = [module for module in self.protocol.modules() if isinstance(module, Agent)]
        agents = list(dict.fromkeys([*self.agents.values(), *held]))
        for passes in self.protocol.phases.values() if self.protocol.phases else [self.protocol.passes]:
            if "forward" not in passes:
                raise ProtocolError(f"{rule}: the schedule {passes} lacks a pass called 'forward', which predicts")
        for name in self.protocol.predict_passes:
            if name not in self.protocol.all_passes:
                raise ProtocolError(f"{rule}.predict_passes: " + unknown("pass", name, self.protocol.all_passes))
        for name in self.protocol.all_passes:
            if not any(agent.update_of(name) or agent.message_of(name) for agent in agents):
                raise ProtocolError(f"{rule}: no agent has a {name}_update or {name}_message; is the pass misspelt?")
        for agent in agents:
            updates = [n.removesuffix("_update") for n in dir(type(agent)) if n.endswith("_update")]
            roles = {role for name in updates for role in agent.roles(name)}
            roles |= {f"{name}:{role}" for name in updates for role in agent.roles(name)}
            for role in agent.aggregate:
                if role not in roles:
                    raise ProtocolError(f"{type(agent).__name__}.aggregate: " + unknown("role", role, roles))
        drawn = {kind for node in self.nodes.values() for kind in node.types}
        channels = {name for agent in agents for name in agent.channels()}
        for part in self.protocol.parts:
            for channel in part.optimizers:
                if channel not in channels:
                    raise ProtocolError(f"{type(part).__name__}.optimizers: " + unknown("channel", channel, channels))
            known = {"weight", "input_weight", "bias", "link", "unit", "output"}
            known |= {*part.own, *part.draws, *_names_of(Activation), *drawn}
            shown = [kind for kind in known if not kind.startswith("_")]
            for kind in part.agents:
                if kind not in known:
                    name = type(part).__name__
                    raise ProtocolError(f"{name} holds an agent for an " + unknown("kind of node", kind, shown))

    # -- arrows -------------------------------------------------------------------------------------------

    def _wire(self, name: str) -> None:
        """Derive the arrows of one pass, and an order in which sources come first."""
        known = {"pre", "post"}.union(*((link.role, link.back) for link in self.links))
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
                how = agent.aggregate.get(f"{name}:{role}", agent.aggregate.get(role, "sum"))
                if how not in AGGREGATIONS and not callable(how):
                    raise ProtocolError(
                        f"{type(agent).__name__}.aggregate[{role!r}] is {how!r}; allowed are "
                        f"{', '.join(AGGREGATIONS)}, or a torch_geometric.nn.aggr.Aggregation"
                    )
                arrows = [
                    Arrow(name, source, target, role, names, how, incidence)
                    for source, names, incidence in self._neighbours(target, role)
                    if self.agents[source.name].message_of(name) is not None
                ]
                if required and not arrows:
                    raise ProtocolError(self._unfilled(name, target, role))
                into[target.name][role] = arrows
                before[target.name] += [arrow.source.name for arrow in arrows]
        order = in_order(
            before,
            f"pass {name!r} has a cycle without a delay",
            "Remove one of these connections: every pass needs an order in which each node hears its sources first",
        )
        self.arrows[name] = into
        self.order[name] = [self.nodes[n] for n in order]

    def _neighbours(
        self, target: AgentNode, role: str
    ) -> list[tuple[AgentNode, Mapping[Axis, Axis], Incidence | None]]:
        below = [(k.pre, k.names, k.incidence) for k in self._to[target.name] if k.role == role]
        above = [k for k in self._from[target.name] if k.back == role]
        return [*below, *((k.post, {b: a for a, b in k.names.items()}, k.incidence) for k in above)]

    def _unfilled(self, name: str, target: AgentNode, role: str) -> str:
        there = [source for source, *_ in self._neighbours(target, role)]
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
        """The nodes and arrows as a graph for analysis; see :func:`mpgraph.draw.multigraph.graph_to_networkx`."""
        from mpgraph.draw.multigraph import graph_to_networkx

        return graph_to_networkx(self)

    def draw(self, path: str | None = None, format: str = "matplotlib", passes: tuple[str, ...] = ()) -> Any:
        """A picture; see :func:`mpgraph.draw.drawing.draw_graph`."""
        from mpgraph.draw.drawing import draw_graph

        return draw_graph(self, path, format, passes)

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


def _names_of(kind: type[Activation]) -> set[str]:
    """Under which names protocols may hold agents for kinds: those of all classes."""
    return {kind.__name__.lower()}.union(*(_names_of(sub) for sub in kind.__subclasses__()))
