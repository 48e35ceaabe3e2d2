"""The view of all agents of a node at once, on lazy values: what a rule sees while it is compiled."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from mpgraph.agents.agent import View
from mpgraph.agents.channel import Channel
from mpgraph.agents.each import Each
from mpgraph.agents.node import AgentNode
from mpgraph.errors import ProtocolError, unknown
from mpgraph.network.activations import Activation, activation
from mpgraph.network.axes import BATCH, local_axes, ordered
from mpgraph.network.losses import Loss
from mpgraph.network.operations import Operation

from . import segment
from .algebra import Factor, Value
from .recorder import identifier

if TYPE_CHECKING:
    from .compiler import Trace


class LazyView(View):
    """The view of all agents of a node at once, on lazy values."""

    def __init__(
        self,
        trace: Trace,
        node: AgentNode,
        pass_name: str,
        values: Mapping[str, Any],
        signals: Mapping[str, Value] | None = None,
    ) -> None:
        self._trace, self.node, self._pass = trace, node, pass_name
        self.learning = trace.learning
        self._values, self._signals = dict(values), dict(signals or {})

    @property
    def _channels(self) -> dict[str, Channel]:
        return self._trace.graph.channels[self.node.name]

    def _where(self) -> str:
        return f"node {self.node.name!r}, pass {self._pass!r}"

    def _read(self, name: str) -> Value:
        if name not in self._channels:
            raise ProtocolError(f"{self._where()}: " + unknown("channel", name, self._channels))
        if name not in self._values:
            raise ProtocolError(
                f"{self._where()}: channel {name!r} is read before it is written; it is fast, so an earlier pass of "
                "the same step must set it"
            )
        return self._values[name]

    def set(self, **values: Any) -> LazyView:  # noqa: D102
        view = LazyView(self._trace, self.node, self._pass, self._values, self._signals)
        for name, given in values.items():
            if name not in self._channels:
                raise ProtocolError(f"{self._where()}: " + unknown("channel", name, self._channels))
            channel = self._channels[name]
            if channel.frozen:
                raise ProtocolError(f"{self._where()}: channel {name!r} is frozen and cannot be set")
            if name == "w" and not self.node.trained:
                continue
            view._values[name] = self._fitted(name, channel, given)
        return view

    def _fitted(self, name: str, channel: Channel, given: Any) -> Any:
        recorder = self._trace.recorder
        if isinstance(given, Each) and channel.extent == "fast":
            return given
        value = recorder.coerce(given)
        shape = self._trace.graph.agents[self.node.name].size_of(channel)
        if channel.extent != "fast" or channel.size is not None:
            if value.shape not in (torch.Size(shape), torch.Size(())):
                raise ProtocolError(
                    f"{self._where()}: channel {name!r} has shape {shape} but was set to a value of shape "
                    f"{tuple(value.shape)}"
                )
            if value.shape != torch.Size(shape):
                local = local_axes(shape)
                value = Value(recorder, value.simple().terms, local)
        allowed = {BATCH, *self.node.axes} if channel.extent == "fast" else set(self.node.layout(channel))
        known = {BATCH, *self.node.axes}
        if channel.extent == "fast":
            known.update(*self.node.inner.values())
        foreign = [axis for axis in value.axes if axis not in known]
        if foreign:
            raise ProtocolError(f"{self._where()}: a value for channel {name!r} depends on foreign axes {foreign}")
        averaged = [axis for axis in (BATCH, *self.node.axes) if axis not in allowed]
        value = value.total([axis for axis in averaged if axis in value.axes], "mean").stored()
        recorder.name(value, f"{'new_' if channel.kept else ''}{name}_{self.node.name}")
        return value

    def population(self, value: Any, how: str = "sum") -> Value:  # noqa: D102
        return self._trace.recorder.coerce(value).total(self.node.axes, how)

    def cumsum(self, value: Any, end: str = "post") -> Value:  # noqa: D102
        recorder, axes = self._trace.recorder, self.node.free_at(end)
        value = recorder.coerce(value)
        if not axes:
            return value
        sizes = [axis.size or 0 for axis in axes]
        others = tuple(axis.fresh() for axis in axes)
        total = math.prod(sizes)
        lower = torch.ones(total, total, dtype=self._trace.dtype).tril().reshape(*sizes, *sizes)
        mask = self._trace.leaf(recorder.constant(lower, f"upto_{identifier(self.node.name)}"), (*axes, *others))
        return (mask * value.renamed(dict(zip(axes, others, strict=True)))).total(others)

    def examples(self, value: Any, how: str = "mean") -> Value:  # noqa: D102
        value = self._trace.recorder.coerce(value)
        if how not in ("sum", "mean"):
            return value.total((*self.node.shared, BATCH), how)
        total = value.total((*self.node.shared, BATCH))
        return (total.shared_by((BATCH,)) if how == "mean" else total) * self._trace.times(self.node)

    def all(self, value: Any, how: str = "mean") -> Value:  # noqa: D102
        return self._trace.recorder.coerce(value).total((BATCH, *self.node.axes), how)

    def normal(self, per: str = "example") -> Value:  # noqa: D102
        trace = self._trace
        axes = (BATCH, *self.node.axes) if per == "example" else self.node.kept
        name = f"{self.node.name}.{self._pass}.{len(trace.noise)}"
        trace.noise[name] = tuple(axis.size for axis in axes)
        node = trace.item(trace.inputs["noise"], name, f"noise_{len(trace.noise)}")
        return trace.leaf(node, axes)

    @property
    def step(self) -> Value:  # noqa: D102
        trace = self._trace
        counter = trace.item(trace.item(trace.inputs["state"], "program", "program"), "step", "step")
        return trace.leaf(trace.recorder.emit("to", counter, trace.dtype), ())

    def segment(self, function: Callable[..., Any], *values: Any) -> Any:  # noqa: D102
        return segment.emit(self._trace, function, values, self.node.name)

    def _function(self) -> Activation:
        if not isinstance(self.node.function, Activation):
            raise ProtocolError(f"{self._where()}: a {self.node.type} has no function to apply")
        return self.node.function

    def _whole(
        self,
        owner: Any,
        name: str,
        make: Callable[[], Callable[..., Any]],
        values: Sequence[Any],
        inline: bool = True,
    ) -> Value:
        """A kind's function on tensors of the node, written inline or called."""
        recorder = self._trace.recorder
        values = recorder.aligned(*values)
        local = values[0].local
        axes = ordered(a for v in values for a in v.axes) if owner.over == "agent" else (BATCH, *self.node.axes)
        channels = bool(local) and owner.over != "agent"
        inline = inline and owner.inline and not channels
        call = make() if inline else self._callable(owner, name, make, channels)
        node = recorder.opaque(call, values, [(*axes, *local)] * len(values), inline)
        return Value(recorder, (), local).like(Factor(node, (*axes, *local)))

    def _callable(self, owner: Any, name: str, make: Callable[[], Callable[..., Any]], channels: bool) -> Any:
        """What the generated code calls; ``channels`` maps it over the last dimension."""
        if not channels:
            return self._trace.function(owner, name, make)
        return self._trace.function(owner, f"{name}_by_channel", lambda: torch.func.vmap(make(), -1, -1))

    def _operation(self, operation: Operation, name: str, values: Sequence[Any], layouts: Any, results: Any) -> Any:
        """A method of an operation on its whole operands; ``results`` are the axes of what it returns."""
        recorder = self._trace.recorder
        values = recorder.aligned(*values)
        local = values[0].local
        inline = operation.inline and not local
        inline = inline and (name == "apply" or type(operation).vjp is not Operation.vjp)
        packed = self._packed(operation, name)
        call = packed if inline else self._callable(operation, name, lambda: packed, bool(local))
        node = recorder.opaque(call, values, [(BATCH, *axes, *local) for axes in layouts], inline)
        nodes = node if isinstance(node, tuple) else [self._trace.item(node, i) for i in range(len(results))]
        if name == "apply":
            nodes = [node]
        return [
            Value(recorder, (), local).like(Factor(n, (BATCH, *axes, *local)))
            for n, axes in zip(nodes, results, strict=True)
        ]

    @staticmethod
    def _packed(operation: Operation, name: str) -> Callable[..., Any]:
        if name == "apply":
            return operation.apply
        return lambda e, y, *z: operation.vjp(e, z, y)

    def apply(self, z: Any) -> Value:  # noqa: D102
        kind = self._function()
        if isinstance(kind, Operation):
            inner = self.node.inner
            return self._operation(kind, "apply", [z[n] for n in inner], inner.values(), [self.node.axes])[0]
        return self._whole(kind, "apply", lambda: kind.apply, (z,))

    def statistics(self, z: Any) -> tuple[Value, ...]:  # noqa: D102
        kind, recorder = self._function(), self._trace.recorder
        call = kind.statistics if kind.inline else self._trace.function(kind, "statistics", lambda: kind.statistics)
        parts = recorder.opaque(call, [recorder.coerce(z)], [(BATCH, *self.node.axes)], kind.inline)
        return tuple(self._trace.leaf(part, self.node.kept) for part in parts)

    def _vjp(self, e: Any, z: Any, *, out: Any, instead: str | None) -> Any:
        kind = self._function()
        e = self._trace.recorder.coerce(e)
        if isinstance(kind, Operation):
            inner = self.node.inner
            if e.is_zero:
                return Each(dict.fromkeys(inner, e))
            layouts = [self.node.axes, self.node.axes, *inner.values()]
            parts = self._operation(kind, "vjp", [e, out, *(z[n] for n in inner)], layouts, inner.values())
            return Each(dict(zip(inner, parts, strict=True)))
        if e.is_zero:
            return e
        if kind.is_flat():
            if instead is None:
                self._trace.flat.append(self.node.name)
                return e * 0.0
            other = activation(instead)
            return self._whole(other, "surrogate", lambda: lambda e, z: other.vjp(e, z, other.apply(z)), (e, z))
        return self._whole(kind, "vjp", lambda: kind.vjp, (e, z, out), type(kind).vjp is not Activation.vjp)

    def loss(self, pre: Any, target: Any) -> Value:  # noqa: D102
        return self._of_loss("apply", pre, target)

    def gradient(self, pre: Any, target: Any) -> Value:  # noqa: D102
        return self._of_loss("gradient", pre, target)

    def _of_loss(self, method: str, pre: Any, target: Any) -> Value:
        """A loss's method, which returns a number for each example or for each agent of each."""
        loss = self.node.function
        if not isinstance(loss, Loss):
            raise ProtocolError(f"{self._where()}: a {self.node.type} has no loss to differentiate")
        axes = (BATCH, *self.node.axes)
        values = [self._trace.recorder.coerce(v) for v in (pre, target)]
        if any(v.local for v in values):
            raise ProtocolError(
                f"{self._where()}: the loss hears messages of shape {[tuple(v.shape) for v in values]}; it compares "
                "single numbers, so the output's agent must send one"
            )
        return self._trace.leaf(
            self._trace.whole(loss, method, values, axes), axes if method == "gradient" else (BATCH,)
        )

    def _descend(self, channel: str, signal: Any) -> View:
        if channel not in self._channels:
            raise ProtocolError(f"{self._where()}: " + unknown("channel", channel, self._channels))
        if channel == "w" and not self.node.trained:
            return self
        signal = self._trace.recorder.coerce(signal)
        axes = [axis for axis in (BATCH, *self.node.shared) if axis in signal.axes]
        signal = signal.total(axes, "mean")
        if self._trace.times(self.node) > 1:  # the optimiser takes one step for all uses, after the last
            signals = {**self._signals, channel: signal}
            return LazyView(self._trace, self.node, self._pass, self._values, signals)
        return self._trace.descend(self, channel, signal)
