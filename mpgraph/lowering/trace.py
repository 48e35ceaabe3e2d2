"""The schedule on lazy values: running every agent's methods, filling inboxes, and what the function returns.

The methods are run once, on lazy values in place of numbers; what they compute is written down as torch calls. The
result has no loop over layers and no trace of the rule's classes in it.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import fx

from mpgraph.agents.agent import Unwritten
from mpgraph.agents.channel import Channel
from mpgraph.agents.each import Each
from mpgraph.agents.node import AgentNode
from mpgraph.agents.repeat import Repeat, names_of
from mpgraph.environment import generator_positions
from mpgraph.errors import ProtocolError, unknown
from mpgraph.graph.arrows import Arrow
from mpgraph.network.axes import BATCH, Axis
from mpgraph.network.parts import LossNode

from .aggregation import aggregated
from .calls import pointwise
from .lazy_view import LazyView
from .repetition import follow_repeat
from .ticks import Said, Ticks, Writes, at_each_tick, follow_ticks
from .value import Value, coerce


class Trace(Ticks):
    """One run of all agents on lazy values.

    Attributes:
        kept: what the state holds before the step, by node and channel.
        values: what each channel holds at present, by node and channel.
        watched: whether each method of an agent is checked for random numbers, which takes a tenth of a millisecond.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        self.kept: dict[str, dict[str, Value]] = {}
        self.values: dict[str, dict[str, Value]] = {}
        self._written: Writes = {}
        self._messages: dict[tuple[int, str, str], Any] = {}
        self._count = 0  # of passes
        self._first: dict[str, dict[str, Any]] = {}  # of this pass, values before it, where agents send first
        self._silent: set[str] = set()  # nodes that lack the target
        self.told: dict[str, Value] = {}  # by loss, one for examples that have a target in this tick, else zero
        self.past: dict[Said, list[Value]] = {}
        self.predictions: dict[str, fx.Node] = {}
        self.watched = False

    # -- leaves -------------------------------------------------------------------------------------------

    def feed(self) -> None:
        """Placeholders for what a batch holds, in its order, and the kept channels of every node."""
        for name in self.graph.fed(self.learning):
            self.emitter.batched(self.emitter.input(name))
        for name, node in self.graph.nodes.items():
            agent, self.values[name], self.kept[name] = self.graph.agents[name], {}, {}
            if node.type in ("input", "target") and name not in self._silent:
                self.values[name]["value"] = self.fed(node)
            for channel, declared in self.graph.channels[name].items():
                if declared.fed and self.learning:
                    self.values[name][channel] = self.fed(node, f".{channel}")
                if declared.kept and name == node.keeper(declared):
                    holder = self.item(self.inputs["state"], name, name)
                    tensor = self.item(holder, channel, f"{channel}_{name}")
                    tensor.meta["carry"] = declared.extent == "carry"
                    self.kept[name][channel] = self.leaf(tensor, node.layout(declared), agent.size_of(declared))
            self.values[name].update(self.kept[name])
        if (self.graph.online or self.ticks) and self.learning:
            told = {n: self.emitter.input(f"{n}.told") for n, node in self.graph.nodes.items() if node.type == "target"}
            losses = self.graph.network.losses.values()
            self.told = {loss.name: self._at_all_ticks(told[f"{loss.pre}.target"], ()) for loss in losses}

    def fed(self, node: AgentNode, variant: str = "") -> Value:
        """What an input or target holds, or a variant of an input: of a network with ticks, that of one of them."""
        tensor = self.emitter.inputs[(node.owner if node.type == "input" else node.name) + variant]
        if node.type == "input" and self.graph.network.ticks > 1:
            tensor = self.emitter.emit("select", tensor, 1, node.tick)
        return self._at_all_ticks(tensor, node.axes)

    def _at_all_ticks(self, tensor: fx.Node, axes: Sequence[Axis]) -> Value:
        """What a batch holds; of sequences, ticks come first outside of loops."""
        if not self.ticks:
            return self.leaf(tensor, (BATCH, *axes))
        return self.leaf(self.emitter.emit("transpose", tensor, 0, 1), (self.tick, BATCH, *axes))

    def view(self, node: AgentNode, pass_name: str, values: Mapping[str, dict[str, Any]] | None = None) -> LazyView:
        """The view of a node: its own fast channels and the kept ones of its owner."""
        values = self.values if values is None else values
        if node.name == node.owner:
            return LazyView(self, node, pass_name, values[node.name])
        kept = {
            channel: values[node.owner][channel].renamed({b: a for a, b in self._to_owner(node, declared).items()})
            for channel, declared in self.graph.channels[node.name].items()
            if declared.kept and declared.per == "agent"
        }
        return LazyView(self, node, pass_name, {**values[node.name], **kept})

    # -- running updates ----------------------------------------------------------------------------------

    def follow(self, passes: Sequence[str | Repeat]) -> None:
        """The whole schedule; predictions are those of the moment that the rule says."""
        if not self.learning:
            self._silent = {name for name, node in self.graph.nodes.items() if node.type == "target"}
        self.feed()
        moment = self.graph.protocol.moment(passes) if self.learning else len(passes) - 1
        for number, element in enumerate(passes):
            self.element(element)
            if number == moment:
                self.predict(list(names_of([element]))[-1])
        for name in self.graph.closing:
            self.element(name)

    def predict(self, pass_name: str) -> None:
        """The predictions are those of this moment, after a pass."""
        self.predictions = {name: self.prediction(name, pass_name) for name in self.graph.network.outputs}

    def element(self, element: str | Repeat) -> None:
        """One pass, or several that are repeated."""
        if isinstance(element, Repeat):
            follow_repeat(self, element)
            return
        if self.ticks:
            self._written = follow_ticks(self, element)
        else:
            self.everywhere(element)
        self.merge(element)

    def everywhere(self, element: str) -> None:
        """One pass over all nodes."""
        self._count += 1
        self._first = {n: self.values[n] for n in self.graph.first[element]}
        self._first |= {self.graph.nodes[n].owner: self.values[self.graph.nodes[n].owner] for n in self._first}
        for node in self.graph.order[element]:
            self.run(element, self._count, node)

    def everywhere_once(self, element: str, silent: Collection[str]) -> Writes:
        """One pass over all nodes in one tick, of which these lack the target; what uses wrote."""
        self._silent, self._written = set(silent), {}
        self.everywhere(element)
        return self._written

    def silent_now(self) -> frozenset[str]:
        """Nodes that lack the target."""
        return frozenset(self._silent)

    def said_last(self, arrow: Arrow) -> Any:
        """The message of an arrow's source in the pass that was traced last."""
        return self.said(self._count, arrow)

    def call(self, node: AgentNode, name: str, method: Callable[..., Any], *given: Any, **inbox: Any) -> Any:
        """What a method of an agent returns.

        Raises:
            ProtocolError: naming the node and the pass, if the method used a random generator and is watched.
        """
        before = generator_positions() if self.watched else b""
        result = method(*given, **inbox)
        if self.watched and generator_positions() != before:
            owner = type(getattr(method, "__self__", None)).__name__
            raise ProtocolError(
                f"node {node.name!r}, pass {name!r}: {owner}.{getattr(method, '__name__', name)} samples random "
                "numbers; it runs once, when the rule is compiled, so they would be the same in every step. Write "
                "s.normal() for noise; sample what a rule starts with in its __init__, or in the init of a channel"
            )
        return result

    def run(self, name: str, index: int, node: AgentNode) -> None:
        """The update of one node: fill its inbox, run its method, keep what it wrote."""
        agent = self.graph.agents[node.name]
        update = agent.update_of(name)
        if update is None:
            return
        received: Mapping[str, Sequence[Arrow]] = self.graph.arrows[name][node.name]
        if self._silent:
            received = self._without_target(name, index, node, received)
            if node.name in self._silent:
                return
        inbox = {role: self.bag(index, arrows) for role, arrows in received.items() if arrows}
        start = self.view(node, name)
        with self.emitter.at((name, node)):
            result = self.call(node, name, update, start, **inbox)
        if not isinstance(result, LazyView):
            raise ProtocolError(
                f"{type(agent).__name__}.{name}_update must return a view (s.set(...)), got {type(result).__name__}"
            )
        if not self.shared(node):
            self.values[node.name] = result._values
            return
        channels, wrote = self.graph.channels[node.name], {}
        own = self.values[node.name] = dict(self.values[node.name])
        for channel, value in result._values.items():
            declared = channels.get(channel)
            if declared is None or not declared.kept or declared.per == "use":
                own[channel] = value
            elif value is not start._values[channel]:
                wrote[channel] = value.renamed(self._to_owner(node, declared))
        signals = {c: v.renamed(self._to_owner(node, channels[c])) for c, v in result._signals.items()}
        for channel in [c for c in wrote if channels[c].extent == "carry"]:  # a memory goes from use to use
            self.values[node.owner][channel] = wrote.pop(channel)
        self._written.setdefault(node.owner, []).append((wrote, signals))

    def _without_target(
        self, name: str, index: int, node: AgentNode, received: Mapping[str, Sequence[Arrow]]
    ) -> Mapping[str, Sequence[Arrow]]:
        """The messages of a pass without those that need the target; who needs it as well joins the silent nodes."""
        spoken = {
            role: [a for a in arrows if a.source.name not in self._silent or self._remembered(index, a)]
            for role, arrows in received.items()
        }
        required = self.graph.agents[node.name].roles(name)
        lacking = {
            a.source for r, arrows in received.items() if arrows and required[r] and not spoken[r] for a in arrows
        }
        if any(source.type == "target" for source in lacking):
            self._silent.add(node.name)
        elif lacking:
            raise ProtocolError(f"{node.name!r} needs the target in pass {name!r}")  # said better by checks.prediction
        elif any(spoken.values()):
            self._silent.discard(node.name)
        return spoken

    def _remembered(self, index: int, arrow: Arrow) -> bool:
        """Whether a node that lacks the target still says something: what it keeps from earlier steps."""
        if arrow.source.type == "target":
            return False
        try:
            self.delivered(index, arrow)
        except Unwritten:
            return False
        return True

    def merge(self, pass_name: str) -> None:
        """Kept channels of nodes with several uses, after a pass: the average of what the uses wrote."""
        for name, uses in self._written.items():
            view: Any = self.view(self.graph.nodes[name], pass_name)
            with self.emitter.at((pass_name, view.node)):
                for channel in dict.fromkeys(c for wrote, _ in uses for c in wrote):
                    view = view.set(**{channel: _mean([wrote[channel] for wrote, _ in uses if channel in wrote])})
                for channel in dict.fromkeys(c for _, signals in uses for c in signals):
                    signal = _mean([signals[channel] for _, signals in uses if channel in signals])
                    view = self.descend(view, channel, signal)
            self.values[name] = {**self.values[name], **view._values}
        self._written = {}

    def _to_owner(self, node: AgentNode, declared: Channel) -> dict[Axis, Axis]:
        owner = self.graph.nodes[node.owner].layout(declared)
        return dict(zip(node.layout(declared), owner, strict=True))

    def bag(self, index: int, arrows: Sequence[Arrow]) -> Any:
        """All messages of one role as one."""
        values = [self.delivered(index, arrow) for arrow in arrows]
        how = arrows[0].how
        if callable(how):
            return aggregated(self, arrows, values)
        if how == "each":
            return Each(
                {a.source.name: _by_key(self.gathered, [a], [v], "sum") for a, v in zip(arrows, values, strict=True)}
            )
        return _by_key(self.gathered, arrows, values, how)

    def delivered(self, index: int, arrow: Arrow) -> Any:
        """The message of an arrow's source, on the axes of its target."""
        if arrow.delay:
            return self._placed(self.past[arrow.source.name, arrow.to][abs(arrow.delay) - 1], arrow)
        message = self.said(index, arrow)
        with self.emitter.at((arrow.pass_name, arrow.source)):
            if isinstance(message, dict):
                return {k: self._placed(v, arrow) for k, v in message.items()}
            return self._placed(message, arrow)

    def said(self, index: int, arrow: Arrow) -> Any:
        """The message of an arrow's source."""
        source = arrow.source
        send = self.graph.agents[source.name].answer_of(arrow.pass_name, arrow.to)
        assert send is not None
        key = (index, source.name, send.__name__)
        with self.emitter.at((arrow.pass_name, source)):
            if key not in self._messages:
                first = source.name in self.graph.first[arrow.pass_name]
                view = self.view(source, arrow.pass_name, self._first if first else None)
                said = self.call(source, arrow.pass_name, send, view)
                self._messages[key] = _scaled(said, self.told[source.name]) if source.name in self.told else said
            message = self._messages[key]
            if isinstance(message, Each):
                if arrow.target.type == "delay" or arrow.delay:
                    option = "sequences" if arrow.delay else "online"
                    raise ProtocolError(
                        f"{arrow}: {source.name!r} sends each neighbor a message of its own, which answers one of this "
                        f"tick and cannot be delayed. Unroll the network instead: mg.compile(..., {option}=False)"
                    )
                message = message[arrow.target.name]
            if message is None:
                raise ProtocolError(f"{arrow}: the message is None; return a value or remove the method")
            return message

    def _placed(self, message: Any, arrow: Arrow) -> Value:
        """A message on the axes of its target, but for what is still to be aggregated."""
        value = coerce(self.emitter, message).renamed(arrow.names)
        return value.gathered(arrow.incidence) if arrow.looks_up else value  # type: ignore[arg-type]

    def gathered(self, arrows: Sequence[Arrow], values: Sequence[Value], how: str) -> Value:
        """Messages aggregated over the axes that the target lacks, and over all arrows of the role."""
        parts = []
        for arrow, value in zip(arrows, values, strict=True):
            with self.emitter.at(arrow):
                part = value.total(arrow.aggregated, how if how in ("max", "min") else "sum")
                if arrow.adds_up:
                    part = part.scattered(arrow.incidence, how)  # type: ignore[arg-type]
                parts.append(part)
        total = parts[0]
        for arrow, part in zip(arrows[1:], parts[1:], strict=True):
            with self.emitter.at(arrow):
                if how in ("max", "min"):
                    total = pointwise(self.emitter, torch.maximum if how == "max" else torch.minimum, (total, part))
                else:
                    total = total + part
        return total / self.count(arrows, how) if how in ("mean", "window_mean") else total

    def count(self, arrows: Sequence[Arrow], how: str = "mean") -> Any:
        """How many messages reach each agent through these arrows: a number, or a value where agents differ."""
        total: Any = 0
        for arrow in arrows:
            messages = math.prod(axis.size or 1 for axis in arrow.aggregated)
            if arrow.adds_up and arrow.incidence is not None:
                incidence = arrow.incidence
                degrees = incidence.degrees if how == "mean" else incidence.full_degrees
                degrees = degrees.clamp(min=1).to(self.dtype)
                if bool((degrees == degrees.flatten()[0]).all()):
                    total = total + messages * float(degrees.flatten()[0])
                    continue
                node = self.emitter.constant(degrees, f"degrees_{arrow.target.name}")
                total = self.leaf(node, incidence.unit) * messages + total
            else:
                total = total + messages
        return total

    # -- results ------------------------------------------------------------------------------------------

    def results(self, learning: bool, record: Mapping[str, Sequence[str]], memories: bool = False) -> Any:
        """What the generated function returns; with ``memories`` also those of examples, if nothing is learned."""
        predictions = self.predictions
        if memories:
            return self.memories(), predictions
        if not learning:
            return predictions
        state: dict[str, Any] = {
            name: {channel: self.written(name, channel) for channel in channels}
            for name, channels in self.kept.items()
            if channels
        }
        program = self.item(self.inputs["state"], "program", "program")
        step = self.emitter.emit(operator.add, self.item(program, "step", "step"), 1)
        state["program"] = {"seed": self.item(program, "seed", "seed"), "step": step}
        losses = {}
        for name, drawn in self.graph.network.losses.items():
            node = self.graph.nodes[name]
            with self.emitter.at(("loss", node)):
                loss = self.loss(drawn, node, predictions[drawn.pre])
                loss = loss * self.told[name] if name in self.told else loss
                mean = loss.total((BATCH,), "mean").total((self.tick,) if self.ticks else ()).stored()
                mean.suggest_name(name)
                losses[name] = mean.materialize().node
        recorded = {name: {c: self.recorded(name, c) for c in channels} for name, channels in record.items()}
        return state, predictions, losses, recorded

    def loss(self, drawn: LossNode, node: AgentNode, prediction: fx.Node) -> Value:
        """A loss for each example; of sequences at each tick, whose ticks are so many examples to it."""
        given, axis = [prediction, self.emitter.inputs[f"{drawn.pre}.target"]], BATCH
        if self.ticks:
            given, axis = [self.emitter.emit("flatten", one, 0, 1) for one in given], BATCH.fresh()
        values = [self.leaf(one, (axis, *node.axes)) for one in given]
        each = self.whole(drawn.loss, "apply", values, (axis, *node.axes))
        if not self.ticks:
            return self.leaf(each, (BATCH,))
        return self.leaf(self.emitter.emit("unflatten", each, 0, (-1, self.ticks)), (BATCH, self.tick))

    def memories(self) -> dict[str, dict[str, fx.Node]]:
        """Those of examples after the tick, but what was learned."""
        found: dict[str, dict[str, fx.Node]] = {}
        for name, channels in self.kept.items():
            for channel in channels:
                declared = self.graph.channels[name][channel]
                if declared.extent == "carry" and not declared.learned:
                    found.setdefault(name, {})[channel] = self.written(name, channel)
        return found

    def prediction(self, name: str, pass_name: str) -> fx.Node:
        """The readout of an output after a pass, ``(batch, *axes, *local)``; of sequences ``(batch, ticks, ...)``."""
        node, agent = self.graph.nodes[name], self.graph.agents[name]

        def readout() -> Value:
            return coerce(self.emitter, agent.readout(self.view(node, pass_name)))

        with self.emitter.at(("readout", node)):
            value = at_each_tick(self, readout) if self.ticks else readout()
            ticks = (self.tick,) if self.ticks else ()
            foreign = [axis for axis in value.axes if axis not in (*ticks, BATCH, *node.axes)]
            if foreign:
                raise ProtocolError(f"the prediction of {name!r} depends on foreign axes {foreign}")
            if value.local and self.learning and name in {n.pre for n in self.graph.network.losses.values()}:
                raise ProtocolError(
                    f"the prediction of {name!r} has local shape {tuple(value.shape)}, but its loss compares single "
                    f"numbers; override {type(agent).__name__}.readout to return one"
                )
            return self.emitter.full(value.materialize(), (BATCH, *ticks, *node.axes, *value.local))

    def written(self, name: str, channel: str) -> fx.Node:
        """A kept channel after the step, in the layout of the state."""
        before, value = self.kept[name][channel], self.values[name][channel]
        if value is before:
            return before.materialize().node
        node, declared = self.graph.nodes[name], self.graph.channels[name][channel]
        axes = (*node.layout(declared), *value.local)
        with self.emitter.at(("write", node)):
            tensor = self.emitter.full(value.materialize(), axes)
            if set(axes) - set(value.materialize().axes):
                tensor = self.emitter.emit("clone", tensor)  # all its numbers lie in one place
        return tensor

    def recorded(self, name: str, channel: str) -> fx.Node:
        """A channel after the step for every agent and example, for probes."""
        if name not in self.values:
            raise ProtocolError("record: " + unknown("node", name, self.values))
        value = self.view(self.graph.nodes[name], "record")._read(channel)
        if isinstance(value, Each):
            raise ProtocolError(f"record: channel {channel!r} of {name!r} holds a value for each neighbor")
        ticks = (self.tick,) if self.ticks and not self.graph.channels[name][channel].kept else ()
        return self.emitter.full(value.materialize(), (BATCH, *ticks, *self.graph.nodes[name].axes, *value.local))


def _scaled(message: Any, factor: Value) -> Any:
    """A message times a number."""
    if isinstance(message, dict):
        return {key: part * factor for key, part in message.items()}
    return message if message is None else message * factor


def _mean(values: Sequence[Any]) -> Any:
    return sum(values[1:], values[0]) / len(values)


def _by_key(gather: Callable[..., Any], arrows: Sequence[Arrow], values: Sequence[Any], how: str) -> Any:
    """Aggregate messages, key by key where they are dictionaries."""
    if not any(isinstance(v, dict) for v in values):
        return gather(arrows, values, how)
    keys = [set(v) if isinstance(v, dict) else None for v in values]
    if any(k != keys[0] for k in keys):
        raise ProtocolError(f"{arrows[0]}: messages of one role must have the same keys, got {keys}")
    return {k: gather(arrows, [v[k] for v in values], how) for k in values[0]}
