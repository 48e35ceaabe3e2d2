"""Arrows -> one flat ``torch.fx`` function.

Every agent's methods are run once, on lazy values (:mod:`mpgraph.lowering.algebra`) in place of numbers; what they
compute is written down as torch calls. The result has no loop over layers and no trace of the rule's classes in it.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from mpgraph.agents.channel import Channel
from mpgraph.agents.each import Each
from mpgraph.agents.node import AgentNode
from mpgraph.errors import ProtocolError, unknown
from mpgraph.graph.arrows import Arrow
from mpgraph.graph.wiring import AgentGraph
from mpgraph.network.activations import Activation
from mpgraph.network.axes import BATCH, Axis, local_axes
from mpgraph.network.losses import Loss

from .aggregation import aggregated
from .algebra import Factor, Value
from .lazyview import LazyView
from .parameters import replaced
from .recorder import Recorder, identifier


@dataclass
class Compiled:
    """A generated function ``(state, parameters, noise, *inputs) -> (state, predictions, losses, recorded)``.

    Attributes:
        module: the generated code; ``module.forward`` is the function.
        noise: shape of each tensor of standard normal numbers that it takes; ``None`` stands for the batch.
        notes: what fell back to a materialised form, as (origin, text).
        remembers: whether it reads a memory that is kept for each example.
        passes: the schedule.
        flat: units whose derivative is zero everywhere and that a backward message met.
        still: trained weights whose learning signal is zero whatever the data.
    """

    module: fx.GraphModule
    noise: dict[str, tuple[int | None, ...]]
    notes: list[tuple[Any, str]]
    flat: list[str]
    still: list[str]
    remembers: bool
    passes: tuple[str, ...]


def compile_passes(
    graph: AgentGraph,
    modules: nn.Module,
    dtype: torch.dtype,
    *,
    passes: Sequence[str],
    learning: bool,
    online: bool = False,
    record: Mapping[str, Sequence[str]] | None = None,
) -> Compiled:
    """Trace ``passes`` into one function.

    Args:
        graph: nodes, agents and arrows.
        modules: holds every parameter of the rule, in the order in which they are passed in.
        dtype: of all numbers.
        passes: the schedule.
        learning: whether targets are fed and the new state, the losses and ``record`` are returned; else only the
            predictions are.
        online: whether every batch will hold one example, so that sums over the batch are none.
        record: fast channels to return, by node.
    """
    trace = Trace(graph, dtype, online, learning)
    with trace.parameters_of(modules):
        trace.follow(passes)
        outputs = trace.results(learning, record or {})
    module = trace.recorder.finish(outputs)
    used = {node.meta.get("carry") for node in module.graph.nodes}
    return Compiled(module, trace.noise, trace.recorder.notes, trace.flat, trace.still, True in used, tuple(passes))


def _nodes(graph: AgentGraph, learning: bool) -> set[str]:
    """Nodes that take part; without learning, those that need no target."""
    if learning:
        return set(graph.nodes)
    left = {name for name, node in graph.nodes.items() if node.type == "target"}
    for node in graph.order["forward"]:
        roles = graph.arrows["forward"][node.name]
        needs = [
            arrow
            for role, required in graph.agents[node.name].roles("forward").items()
            if required
            for arrow in roles[role]
        ]
        if any(arrow.source.name in left and arrow.role == "target" for arrow in needs):
            left.add(node.name)
    return set(graph.nodes) - left


@dataclass
class Trace:
    """One run of all agents on lazy values."""

    graph: AgentGraph
    dtype: torch.dtype
    online: bool = False
    learning: bool = True
    noise: dict[str, tuple[int | None, ...]] = field(default_factory=dict)
    flat: list[str] = field(default_factory=list)
    still: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.recorder = Recorder(self.dtype, self.online)
        self.inputs = {name: self.recorder.input(name, own=True) for name in ("state", "parameters", "noise")}
        self.kept: dict[str, dict[str, Value]] = {}
        self.values: dict[str, dict[str, Value]] = {}
        self._written: dict[str, list[tuple[dict[str, Value], dict[str, Value]]]] = {}  # by owner, of each use
        self._messages: dict[tuple[int, str], Any] = {}
        self._functions: dict[Any, Callable[..., Any]] = {}

    # -- leaves -------------------------------------------------------------------------------------------

    def item(self, holder: fx.Node, key: Any, hint: str | None = None) -> fx.Node:
        """``holder[key]``, with a name for people."""
        node = self.recorder.emit(operator.getitem, holder, key)
        node.meta.setdefault("hint", hint)
        return node

    def feed(self, nodes: set[str]) -> None:
        """Placeholders for inputs and targets, and the kept channels of every node."""
        for name, node in self.graph.nodes.items():
            agent, self.values[name], self.kept[name] = self.graph.agents[name], {}, {}
            if node.type in ("input", "target") and name in nodes:
                self.values[name]["value"] = self.leaf(self.fed(node), (BATCH, *node.axes))
            for channel, declared in self.graph.channels[name].items():
                if declared.kept and name == node.keeper(declared):
                    local = local_axes(agent.size_of(declared))
                    holder = self.item(self.inputs["state"], name, name)
                    leaf = self.item(holder, channel, f"{channel}_{name}")
                    leaf.meta["carry"] = declared.extent == "carry"
                    self.kept[name][channel] = self.leaf(leaf, (*node.layout(declared), *local), local)
            self.values[name].update(self.kept[name])

    def fed(self, node: AgentNode) -> fx.Node:
        """The tensor that an input or target holds: of a network with ticks, one of them."""
        name = node.owner if node.type == "input" else node.name
        known = self.recorder.inputs.get(name)
        placeholder = self.recorder.input(name) if known is None else known
        self.recorder.batched(placeholder)
        if node.type == "input" and self.graph.network.ticks > 1:
            return self.recorder.emit("select", placeholder, 1, node.tick)
        return placeholder

    def times(self, node: AgentNode) -> int:
        """How many nodes use the state of this one."""
        return len(self.graph.uses[node.owner])

    def view(self, node: AgentNode, pass_name: str) -> LazyView:
        """The view of a node: its own fast channels and the kept ones of its owner."""
        if node.name == node.owner:
            return LazyView(self, node, pass_name, self.values[node.name])
        kept = {
            channel: self.values[node.owner][channel].renamed({b: a for a, b in self._to_owner(node, declared).items()})
            for channel, declared in self.graph.channels[node.name].items()
            if declared.kept and declared.per == "agent"
        }
        return LazyView(self, node, pass_name, {**self.values[node.name], **kept})

    def leaf(self, node: fx.Node, axes: tuple[Axis, ...], local: tuple[Axis, ...] = ()) -> Value:
        """A tensor that exists, as a value."""
        return Value(self.recorder, (), local).like(Factor(node, axes))

    def parameters_of(self, modules: nn.Module) -> AbstractContextManager[None]:
        """Agents see lazy values where they have parameters and buffers, so that those are never baked in."""

        def lazy(index: int, tensor: Tensor, label: str) -> Value:
            local = local_axes(tensor.shape)
            return self.leaf(self.item(self.inputs["parameters"], index, label), local, local)

        self.modules = modules
        return replaced(modules, lazy)

    # -- running updates ----------------------------------------------------------------------------------

    def follow(self, passes: Sequence[str]) -> None:
        """The whole schedule."""
        nodes = _nodes(self.graph, self.learning)
        self.feed(nodes)
        for index, name in enumerate(passes):
            for node in self.graph.order[name]:
                if node.name in nodes:
                    self.run(name, index, node)
            self.merge(name)

    def run(self, name: str, index: int, node: AgentNode) -> None:
        """The update of one node: fill its inbox, run its method, keep what it wrote."""
        agent = self.graph.agents[node.name]
        update = agent.update_of(name)
        if update is None:
            return
        inbox = {}
        for role, arrows in self.graph.arrows[name][node.name].items():
            if arrows:
                inbox[role] = self.bag(index, arrows)
        start = self.view(node, name)
        with self.recorder.at((name, node)):
            result = update(start, **inbox)
        if not isinstance(result, LazyView):
            raise ProtocolError(
                f"{type(agent).__name__}.{name}_update must return a view (s.set(...)), got {type(result).__name__}"
            )
        if self.times(node) == 1:
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

    def merge(self, pass_name: str) -> None:
        """Kept channels of nodes with several uses, after a pass: the average of what the uses wrote."""
        for name, uses in self._written.items():
            view: Any = self.view(self.graph.nodes[name], pass_name)
            with self.recorder.at((pass_name, view.node)):
                for channel in dict.fromkeys(c for wrote, _ in uses for c in wrote):
                    values = [wrote[channel] for wrote, _ in uses if channel in wrote]
                    view = view.set(**{channel: sum(values[1:], values[0]) / len(values)})
                for channel in dict.fromkeys(c for _, signals in uses for c in signals):
                    values = [signals[channel] for _, signals in uses if channel in signals]
                    total = sum(values[1:], values[0]) / len(values)
                    view = self.descend(view, channel, total)
            self.values[name] = {**self.values[name], **view._values}
        self._written = {}

    def descend(self, view: Any, channel: str, signal: Value) -> Any:
        """A step of the inner optimiser."""
        node = self.graph.nodes[view.node.owner]
        if signal.is_zero:
            self.still.append(node.name)
        optimizer = self.graph.protocol.optimizer_of(node, channel)
        if optimizer.rereads and not signal.is_zero:
            signal.settle()
        return optimizer.update(view, channel, signal)

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
        source = arrow.source
        key = (index, source.name)
        with self.recorder.at((arrow.pass_name, source)):
            if key not in self._messages:
                view = self.view(source, arrow.pass_name)
                send = self.graph.agents[source.name].message_of(arrow.pass_name)
                assert send is not None
                self._messages[key] = send(view)
            message = self._messages[key]
            if isinstance(message, Each):
                message = message[arrow.target.name]
            if isinstance(message, dict):
                return {k: self._placed(v, arrow) for k, v in message.items()}
            if message is None:
                raise ProtocolError(f"{arrow}: the message is None; return a value or remove the method")
            return self._placed(message, arrow)

    def _placed(self, message: Any, arrow: Arrow) -> Value:
        """A message on the axes of its target, but for what is still to be aggregated."""
        value = self.recorder.coerce(message).renamed(arrow.names)
        return value.gathered(arrow.incidence) if arrow.looks_up else value  # type: ignore[arg-type]

    def gathered(self, arrows: Sequence[Arrow], values: Sequence[Value], how: str) -> Value:
        """Messages aggregated over the axes that the target lacks, and over all arrows of the role."""
        parts = []
        for arrow, value in zip(arrows, values, strict=True):
            with self.recorder.at(arrow):
                part = value.total(arrow.aggregated, how if how in ("max", "min") else "sum")
                if arrow.adds_up:
                    part = part.scattered(arrow.incidence, how)  # type: ignore[arg-type]
                parts.append(part)
        total = parts[0]
        for arrow, part in zip(arrows[1:], parts[1:], strict=True):
            with self.recorder.at(arrow):
                if how in ("max", "min"):
                    total = self.recorder.pointwise(torch.maximum if how == "max" else torch.minimum, (total, part))
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
                node = self.recorder.constant(degrees, f"degrees_{arrow.target.name}")
                total = self.leaf(node, incidence.unit) * messages + total
            else:
                total = total + messages
        return total

    def function(self, owner: Any, name: str, make: Callable[[], Callable[..., Any]]) -> Callable[..., Any]:
        """A function of a kind under a name that reads well in the generated code; the same object each time."""
        key = (id(owner), name)
        if key not in self._functions:
            made = make()

            def call(*args: Any) -> Any:
                return made(*args)

            call.__module__ = "mpgraph"
            call.__name__ = call.__qualname__ = f"{identifier(getattr(owner, 'name', type(owner).__name__))}_{name}"
            self._functions[key] = call
        return self._functions[key]

    # -- results ------------------------------------------------------------------------------------------

    def results(self, learning: bool, record: Mapping[str, Sequence[str]]) -> Any:
        """What the generated function returns."""
        predictions = {name: self.prediction(name) for name in self.graph.network.outputs}
        if not learning:
            return predictions
        state: dict[str, Any] = {
            name: {channel: self.written(name, channel) for channel in channels}
            for name, channels in self.kept.items()
            if channels
        }
        program = self.item(self.inputs["state"], "program", "program")
        step = self.recorder.emit(operator.add, self.item(program, "step", "step"), 1)
        state["program"] = {"seed": self.item(program, "seed", "seed"), "step": step}
        losses = {}
        for name, drawn in self.graph.network.losses.items():
            node = self.graph.nodes[name]
            with self.recorder.at(("loss", node)):
                target = self.recorder.inputs[f"{drawn.pre}.target"]
                values = (
                    self.leaf(predictions[drawn.pre], (BATCH, *node.axes)),
                    self.leaf(target, (BATCH, *node.axes)),
                )
                each = self.whole(drawn.loss, "apply", values, (BATCH, *node.axes))
                mean = self.leaf(each, (BATCH,)).total((BATCH,), "mean").stored()
                self.recorder.name(mean, name)
                losses[name] = mean.settle().node
        recorded = {name: {c: self.recorded(name, c) for c in channels} for name, channels in record.items()}
        return state, predictions, losses, recorded

    def whole(self, owner: Activation | Loss, method: str, values: Sequence[Value], axes: Sequence[Axis]) -> fx.Node:
        """A method of a kind or loss on whole tensors."""
        func = getattr(owner, method)
        base: Any = Loss if isinstance(owner, Loss) else Activation
        inline = owner.inline and getattr(type(owner), method) is not getattr(base, method)
        call = func if inline else self.function(owner, method, lambda: func)
        return self.recorder.opaque(call, values, [axes] * len(values), inline)

    def prediction(self, name: str) -> fx.Node:
        """The readout of an output node, ``(batch, *axes, *local)``."""
        node, agent = self.graph.nodes[name], self.graph.agents[name]
        with self.recorder.at(("readout", node)):
            value = self.recorder.coerce(agent.readout(self.view(node, "forward")))
            foreign = [axis for axis in value.axes if axis not in (BATCH, *node.axes)]
            if foreign:
                raise ProtocolError(f"the prediction of {name!r} depends on foreign axes {foreign}")
            if value.local and self.learning and name in {n.pre for n in self.graph.network.losses.values()}:
                raise ProtocolError(
                    f"the prediction of {name!r} has local shape {tuple(value.shape)}, but its loss compares single "
                    f"numbers; override {type(agent).__name__}.readout to return one"
                )
            return self.recorder.full(value, (BATCH, *node.axes, *value.local))

    def written(self, name: str, channel: str) -> fx.Node:
        """A kept channel after the step, in the layout of the state."""
        before, value = self.kept[name][channel], self.values[name][channel]
        if value is before:
            return before.settle().node
        node, declared = self.graph.nodes[name], self.graph.channels[name][channel]
        axes = (*node.layout(declared), *value.local)
        with self.recorder.at(("write", node)):
            tensor = self.recorder.full(value, axes)
            if set(axes) - set(value.settle().axes):
                tensor = self.recorder.emit("contiguous", tensor)
        return tensor

    def recorded(self, name: str, channel: str) -> fx.Node:
        """A channel after the step for every agent and example, for probes."""
        if name not in self.values:
            raise ProtocolError("record: " + unknown("node", name, self.values))
        value = self.view(self.graph.nodes[name], "record")._read(channel)
        if isinstance(value, Each):
            raise ProtocolError(f"record: channel {channel!r} of {name!r} holds a value for each neighbour")
        return self.recorder.full(value, (BATCH, *self.graph.nodes[name].axes, *value.local))


def _by_key(gather: Callable[..., Any], arrows: Sequence[Arrow], values: Sequence[Any], how: str) -> Any:
    """Aggregate messages, key by key where they are dictionaries."""
    if not any(isinstance(v, dict) for v in values):
        return gather(arrows, values, how)
    keys = [set(v) if isinstance(v, dict) else None for v in values]
    if any(k != keys[0] for k in keys):
        raise ProtocolError(f"{arrows[0]}: messages of one role must have the same keys, got {keys}")
    return {k: gather(arrows, [v[k] for v in values], how) for k in values[0]}
