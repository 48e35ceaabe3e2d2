"""Nodes and links -> arrows: who sends a message to whom in each pass, and in which order agents are updated.

An arrow exists in a pass where the destination's ``<pass>_update`` names a role that a neighbor fills and that
neighbor has a ``<pass>_message``. All wiring is derived here, once; compiler and interpreter follow it.

:class:`AgentGraph` is made in this order: nodes and links (:mod:`mpgraph.graph.unroll`), the agent of each node, its
channels, a check of all that the rule names, the arrows and the order of each pass, the rule's own check.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from mpgraph.agents.agent import Agent
from mpgraph.agents.channel import AGGREGATIONS, Channel
from mpgraph.agents.delay import NEXT, Delay
from mpgraph.agents.module import initialized
from mpgraph.agents.node import AgentNode
from mpgraph.agents.protocol import Protocol
from mpgraph.agents.repeat import names_of, repeats_of
from mpgraph.errors import MPGraphError, NetworkError, ProtocolError, unknown
from mpgraph.network.activations import Activation
from mpgraph.network.axes import Axis
from mpgraph.network.incidence import Incidence
from mpgraph.network.network import Network

from .arrows import Arrow, Link
from .unroll import Unrolled, styles_of

if TYPE_CHECKING:
    import networkx
    from torch import Tensor


class AgentGraph:
    """Nodes, the agent of each, and for each pass the arrows and the order of updates.

    Attributes:
        nodes: by name.
        agents: by node name.
        channels: by node name, those of its agent; of a compiled graph also those that inner optimizers keep for them,
            see :meth:`with_channels`.
        uses: for each node that keeps a state, the nodes that use it (ticks, tied weights); mostly only itself.
        arrows: for each pass the arrows into each node (by name), grouped by role.
        order: for each pass the nodes, sources first.
        online: whether a step is one tick of the network.
        sequences: whether a step is a sequence of any length: each pass goes through all ticks, before the next begins.
        back: with sequences, the passes that go from the last tick to the first.
        closing: passes that the engine adds at the end of a step.
        first: for each pass the nodes whose agents send before they receive.
    """

    def __init__(self, network: Network, protocol: Protocol, online: bool = False, sequences: bool = False) -> None:
        if online or sequences:
            network = network.copy()
            network.ticks = 1
        self.network, self.protocol, self.online, self.sequences = network, protocol, online, sequences
        unrolled = Unrolled(network, styles_of(network, protocol), online, sequences)
        self.nodes, self.links = unrolled.nodes, unrolled.links
        self._to: dict[str, list[Link]] = {name: [] for name in self.nodes}
        self._from: dict[str, list[Link]] = {name: [] for name in self.nodes}
        for link in self.links:
            self._to[link.post.name].append(link)
            self._from[link.pre.name].append(link)
        delays = [node for node in self.nodes.values() if node.type == "delay"]
        self.closing = (NEXT,) if delays else ()
        self.agents: dict[str, Agent] = {n: self._agent(node) for n, node in self.nodes.items() if node not in delays}
        for node in reversed(delays):  # those behind others know first who hears them
            self.agents[node.name] = Delay(self._heard(node))
        for name, node in self.nodes.items():  # uses of one node are one agent
            self.agents[name] = self.agents.get(node.owner, self.agents[name])
        self.channels: dict[str, dict[str, Channel]] = {
            name: {c: d for c, d in agent.channels_at(self.nodes[name]).items() if agent.size_of(d) != (0,)}
            for name, agent in self.agents.items()
        }
        self.uses: dict[str, list[str]] = {}
        for name, node in self.nodes.items():
            self.uses.setdefault(node.owner, []).append(name)
        self.arrows: dict[str, dict[str, dict[str, list[Arrow]]]] = {}
        self.order: dict[str, list[AgentNode]] = {}
        self.first: dict[str, frozenset[str]] = {}
        self.back: set[str] = set()
        self._check_rule()
        if sequences:
            self._check_time()
        for name in (*protocol.all_passes, *self.closing):
            self._wire(name)
        protocol.check({node: self.agents[name] for name, node in self.nodes.items()})

    def _agent(self, node: AgentNode) -> Agent:
        agent = self.protocol.agent(node)
        if not isinstance(agent, Agent):
            raise ProtocolError(f"{type(self.protocol).__name__}.agent must return an agent, got {agent!r}")
        initialized(agent)
        return agent

    def fed(self, learning: bool = True) -> dict[str, AgentNode]:
        """What a batch holds, in order, and the node of its shape: inputs; to learn from, variants and targets too.

        A target is called ``y.target``, a variant of an input by its channel, ``x.second`` (:func:`mpgraph.fed`).
        """
        inputs = {name: self.nodes[name] for name in self.network.inputs}
        if not learning:
            return inputs
        targets = {f"{loss.pre}.target": self.nodes[f"{loss.pre}.target"] for loss in self.network.losses.values()}
        variants = {f"{n}.{c}": node for n, node in inputs.items() for c, d in self.channels[n].items() if d.fed}
        return inputs | variants | targets

    def _heard(self, delay: AgentNode) -> dict[str, bool]:
        """The passes in which somebody hears a delay, and whether one of them needs its message."""
        unit, heard = self.agents[delay.serves], {}
        for name in self.protocol.all_passes:
            roles = [(k.role, self.agents[k.post.name].roles(name)) for k in self._from[delay.name]]
            asked = [required[role] for role, required in roles if role in required]
            if asked and unit.answer_of(name, "post", any(asked)) is not None:
                heard[name] = any(asked)
        return heard

    def with_channels(self, more: Mapping[str, Mapping[str, Channel]]) -> AgentGraph:
        """The same graph, whose nodes have further channels: those that inner optimizers keep, by node name."""
        graph = copy.copy(self)
        graph.channels = {name: {**channels, **more.get(name, {})} for name, channels in self.channels.items()}
        return graph

    def _check_rule(self) -> None:
        """Reject names in a rule that match nothing (usually typos)."""
        rule = type(self.protocol).__name__
        held = [module for module in self.protocol.modules() if isinstance(module, Agent)]
        agents = list(dict.fromkeys([*self.agents.values(), *held]))
        self.protocol.check_schedules()
        for agent in agents:
            agent.check_same_as()
        for name, node in self.nodes.items():
            variants = [channel for channel, declared in self.channels[name].items() if declared.fed]
            if variants and node.type != "input":
                raise ProtocolError(
                    f"{type(self.agents[name]).__name__}: channel {variants[0]!r} is fed with each batch, which only "
                    f"agents of inputs are, but it serves the {node.type} {name!r}; declare it as fast()"
                )
            for both in (f"{name}.{channel}" for channel in variants if f"{name}.{channel}" in self.nodes):
                raise ProtocolError(f"{both!r} is both an input and a variant of the input {name!r}; rename one")
        for name in names_of(self.protocol.predict_passes):
            if name not in self.protocol.all_passes:
                raise ProtocolError(f"{rule}.predict_passes: " + unknown("pass", name, self.protocol.all_passes))
        schedules = self.protocol.phases.values() if self.protocol.phases else [self.protocol.passes]
        for passes in schedules:
            if self.protocol.moment(passes) is None:
                raise ProtocolError(
                    f"{rule}: the schedule {passes} lacks {self.protocol.predicting}, which predicts; name the passes "
                    "of a prediction in predict_passes"
                )
        for name in self.protocol.all_passes:
            if not any(agent.update_of(name) or agent.sends(name) for agent in agents):
                raise ProtocolError(f"{rule}: no agent has a {name}_update or {name}_message; is the pass misspelt?")
        for agent in agents:
            own = [n.removesuffix("_update") for n in dir(type(agent)) if n.endswith("_update")]
            updates = [*own, *agent.same_as]
            roles = {role for name in updates for role in agent.roles(name)}
            roles |= {f"{name}:{role}" for name in updates for role in agent.roles(name)}
            for role in agent.aggregate:
                if role not in roles:
                    raise ProtocolError(f"{type(agent).__name__}.aggregate: " + unknown("role", role, roles))
        present = {name for node in self.nodes.values() for name in node.types}
        channels = {name for agent in agents for name in agent.channels()}
        for part in self.protocol.parts:
            for channel in part.optimizers or ():
                if channel not in channels:
                    raise ProtocolError(f"{type(part).__name__}.optimizers: " + unknown("channel", channel, channels))
            known = {"weight", "input_weight", "bias", "link", "unit", "output"}
            known |= {*Protocol.agents, "operation", *part.adds_connections}
            known |= {*_names_of(Activation), *present}
            shown = [kind for kind in known if not kind.startswith("_")]
            for kind in part.agents:
                if kind not in known:
                    name = type(part).__name__
                    raise ProtocolError(f"{name} holds an agent for an " + unknown("type of node", kind, shown))

    def _check_time(self) -> None:
        """Reject what a rule does that a loop over ticks has no place for."""
        rule, unroll = type(self.protocol).__name__, "unroll the network: mg.compile(..., sequences=False)"
        schedules = [*(self.protocol.phases or {"": self.protocol.passes}).values(), self.protocol.predict_passes]
        for passes in schedules:
            for repeated in repeats_of(passes):
                raise ProtocolError(f"{rule}: {repeated!r} repeats passes, which go through whole sequences; {unroll}")
        for name, channels in self.channels.items():
            for channel, declared in channels.items():
                if declared.kept and declared.per == "use":
                    raise ProtocolError(
                        f"{type(self.agents[name]).__name__}: channel {channel!r} of node {name!r} is a memory of each "
                        f"tick (per='use'), and sequences may have any number of them; {unroll}"
                    )

    # -- arrows -------------------------------------------------------------------------------------------

    def _wire(self, name: str) -> None:
        """Derive the arrows of one pass, and an order in which sources come first.

        Who sends before it receives keeps nobody waiting.
        """
        self.first[name] = frozenset(n for n, agent in self.agents.items() if name in agent.sends_first)
        known = {"pre", "post"}.union(*((link.role, link.back) for link in self.links))
        known.update(*(part.adds_connections for part in self.protocol.parts))
        into: dict[str, dict[str, list[Arrow]]] = {}
        before: dict[str, list[str]] = {}
        for target in self.nodes.values():
            agent = self.agents[target.name]
            roles = agent.roles(name)
            if agent.update_of(name) is None and not agent.sends(name) and not agent.answers:
                continue
            before[target.name], into[target.name] = [], {}
            for role, required in roles.items():
                if role not in known:
                    raise ProtocolError(
                        f"{type(agent).__name__}.{name}_update names the role {role!r}; the roles here are "
                        f"{', '.join(sorted(known))}"
                    )
                how = agent.aggregate.get(f"{name}:{role}", agent.aggregate.get(role, "sum"))
                how = "each" if role == "pre" and target.inner else how  # an operation needs its operands apart
                if how not in AGGREGATIONS and not callable(how):
                    raise ProtocolError(
                        f"{type(agent).__name__}.aggregate[{role!r}] is {how!r}; allowed are "
                        f"{', '.join(AGGREGATIONS)}, or a torch_geometric.nn.aggr.Aggregation"
                    )
                arrows = [
                    Arrow(name, source, target, role, names, how, incidence, to, delay)
                    for source, names, incidence, to, delay in self._neighbors(target, role)
                    if self.agents[source.name].answer_of(name, to, required) is not None
                ]
                if required and not arrows:
                    raise ProtocolError(self._unfilled(name, target, role))
                into[target.name][role] = arrows
                waits = [a.source.name for a in arrows if a.source.name not in self.first[name] and not a.delay]
                before[target.name] += waits
        try:
            order = list(TopologicalSorter(before).static_order())
        except CycleError as error:
            raise self._circle(name, list(error.args[1]), into) from None
        self.arrows[name] = into
        self.order[name] = [self.nodes[n] for n in order]
        late = [a for roles in into.values() for arrows in roles.values() for a in arrows if a.delay]
        back = [arrow for arrow in late if arrow.delay < 0]
        if back:
            self.back.add(name)
        if 0 < len(back) < len(late):
            onwards = next(arrow for arrow in late if arrow.delay > 0)
            raise ProtocolError(
                f"{type(self.protocol).__name__}, pass {name!r}: messages go to later ticks ({onwards}) and to earlier "
                f"ones ({back[0]}), but a pass goes through a sequence in one direction. Let them go in two passes "
                "(Protocol.passes), or unroll the network: mg.compile(..., sequences=False)"
            )

    def _circle(self, name: str, cycle: list[str], into: Mapping[str, Mapping[str, list[Arrow]]]) -> MPGraphError:
        """Who waits for whom in a pass without an order, and what to do."""
        waits, upwards = [], True
        for source, target in pairwise(cycle):
            role = next(r for r, arrows in into[target].items() if any(a.source.name == source for a in arrows))
            agent, upwards = type(self.agents[target]).__name__, upwards and role == "pre"
            waits.append(f"{target!r} waits for {role!r} messages of {source!r} ({agent}.{name}_update)")
        delay = "; or give a connection a delay (network.connect(..., delay=1) in a mg.Network(ticks=...))" * upwards
        kind = NetworkError if upwards else ProtocolError  # messages go round along connections of the network
        return kind(
            f"{type(self.protocol).__name__}, pass {name!r}: cycle without {'a delay' if upwards else 'an order'}: "
            f"{' -> '.join(_shortened(cycle))}: in it {', '.join(_shortened(dict.fromkeys(waits)))}. Receive one of "
            "these messages in a later pass (Protocol.passes) and keep it in a channel until it is needed; or let "
            f"one send before it receives (sends_first = ({name!r},)){delay}"
        )

    def _neighbors(
        self, target: AgentNode, role: str
    ) -> list[tuple[AgentNode, Mapping[Axis, Axis], Incidence | None, str, int]]:
        below = [(k.pre, k.names, k.incidence, k.back, k.delay) for k in self._to[target.name] if k.role == role]
        above = [k for k in self._from[target.name] if k.back == role]
        return [*below, *((k.post, {b: a for a, b in k.names.items()}, k.incidence, k.role, -k.delay) for k in above)]

    def _unfilled(self, name: str, target: AgentNode, role: str) -> str:
        there = [source for source, *_ in self._neighbors(target, role)]
        rule = type(self.protocol).__name__
        if not there:
            fix = "connect it onwards, or put a loss on it" if role == "post" else "connect something to it"
            return f"{rule}, pass {name!r}: node {target.name!r} has no {role!r} neighbor; {fix}"
        names = ", ".join(f"{node.name} ({type(self.agents[node.name]).__name__})" for node in there)
        return (
            f"{rule}, pass {name!r}: node {target.name!r} waits for {role!r} messages, but none of its neighbors "
            f"sends one: {names}. Give one a {name}_message, or make the role optional ({role}=None)"
        )

    # -- views for people ---------------------------------------------------------------------------------

    def to_networkx(self) -> networkx.MultiDiGraph:
        """The nodes and arrows as a graph for analysis; see :func:`mpgraph.draw.multigraph.graph_to_networkx`."""
        from mpgraph.draw.multigraph import graph_to_networkx

        return graph_to_networkx(self)

    def draw(
        self,
        path: str | None = None,
        format: str = "matplotlib",
        passes: tuple[str, ...] = (),
        *,
        state: Mapping[str, Mapping[str, Tensor]] | None = None,
        activity: Mapping[str, Any] | None = None,
    ) -> Any:
        """A picture of nodes and arrows, or with a ``state`` of single neurons, colored by their ``activity``.

        See :func:`mpgraph.draw.drawing.draw_graph` and :func:`mpgraph.draw.neurons.draw_neurons`.
        """
        from mpgraph.draw.drawing import draw_graph

        return draw_graph(self, path, format, passes, state, activity)

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


def _shortened(parts: Iterable[str], most: int = 8) -> list[str]:
    """The first and the last, of many."""
    shown = list(parts)
    more = len(shown) - most
    return shown if more <= 1 else [*shown[: most - 1], f"({more} more)", shown[-1]]


def _names_of(kind: type[Activation]) -> set[str]:
    """Under which names protocols may hold agents of activations: those of all classes."""
    return {kind.__name__.lower()}.union(*(_names_of(sub) for sub in kind.__subclasses__()))
