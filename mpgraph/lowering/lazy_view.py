"""The view of all agents of a node at once, on lazy values: what a rule sees while it is compiled."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from mpgraph.agents.agent import View
from mpgraph.agents.channel import Channel
from mpgraph.agents.each import Each
from mpgraph.agents.node import AgentNode
from mpgraph.errors import ProtocolError
from mpgraph.network.activations import Activation, activation
from mpgraph.network.axes import BATCH, local_axes, ordered
from mpgraph.network.losses import Loss
from mpgraph.network.normalization import BatchNorm
from mpgraph.network.operations import Operation
from mpgraph.network.stochastic import Stochastic

from .calls import opaque
from .collectives import all_rows, own_rows
from .context import Context
from .emitter import identifier
from .segment import lower_segment
from .terms import Factor
from .value import Value, aligned, coerce


class LazyView(View):
    """The view of all agents of a node at once, on lazy values.

    Args:
        context: the function being written.
        node: whose agents.
        pass_name: in which pass.
        values: what each channel holds.
        signals: for the inner optimizer, by channel, of a node that shares its state with others: it takes one step for
            all of them, after the pass.
    """

    def __init__(
        self,
        context: Context,
        node: AgentNode,
        pass_name: str,
        values: Mapping[str, Any],
        signals: Mapping[str, Value] | None = None,
    ) -> None:
        self._context, self.node, self._pass = context, node, pass_name
        self._emitter, self.learning = context.emitter, context.learning
        self._agent, self._channels = context.graph.agents[node.name], context.graph.channels[node.name]
        self._values, self._signals = dict(values), dict(signals or {})

    def _copy(self) -> LazyView:
        return LazyView(self._context, self.node, self._pass, self._values, self._signals)

    def _write(self, name: str, channel: Channel, given: Any) -> None:
        if isinstance(given, Each):
            self._values[name] = given
            return
        value = coerce(self._emitter, given)
        shape = self._agent.size_of(channel)
        if (channel.kept or channel.size is not None) and value.shape != torch.Size(shape):  # one number for all k
            value = Value(self._emitter, value.simple().terms, local_axes(shape))
        allowed = set(self.node.layout(channel)) if channel.kept else {BATCH, *self.node.axes}
        known = {BATCH, *self.node.axes}
        if not channel.kept:
            known.update(*self.node.inner.values())
        foreign = [axis for axis in value.axes if axis not in known]
        if foreign:
            raise ProtocolError(f"{self._where()}: a value for channel {name!r} depends on foreign axes {foreign}")
        averaged = [axis for axis in (BATCH, *self.node.axes) if axis not in allowed]
        value = value.total([axis for axis in averaged if axis in value.axes], "mean").stored()
        value.suggest_name(f"{'new_' if channel.kept else ''}{name}_{self.node.name}")
        self._values[name] = value

    def population(self, value: Any, how: str = "sum") -> Value:  # noqa: D102
        return coerce(self._emitter, value).total(self.node.axes, how)

    def cumsum(self, value: Any, end: str = "post") -> Value:  # noqa: D102
        axes = self.node.free_at(end)
        value = coerce(self._emitter, value)
        if not axes:
            return value
        sizes = [axis.size or 0 for axis in axes]
        others = tuple(axis.fresh() for axis in axes)
        total = math.prod(sizes)
        lower = torch.ones(total, total, dtype=self._context.dtype).tril().reshape(*sizes, *sizes)
        mask = self._context.leaf(self._emitter.constant(lower, f"upto_{identifier(self.node.name)}"), (*axes, *others))
        return (mask * value.renamed(dict(zip(axes, others, strict=True)))).total(others)

    def examples(self, value: Any, how: str = "mean") -> Value:  # noqa: D102
        value = coerce(self._emitter, value)
        if how not in ("sum", "mean"):
            return value.total((*self.node.shared, BATCH), how)
        total = value.total((*self.node.shared, BATCH))
        return (total.shared_by((BATCH,)) if how == "mean" else total) * self._context.times(self.node)

    def all(self, value: Any, how: str = "mean") -> Value:  # noqa: D102
        return coerce(self._emitter, value).total((BATCH, *self.node.axes), how)

    def normal(self, per: str = "example") -> Value:  # noqa: D102
        context = self._context
        axes = (BATCH, *self.node.axes) if per == "example" else self.node.kept
        drawn = sum(not name.endswith(".own") for name in context.noise)
        name = f"{self.node.name}.{self._pass}.{drawn}"
        scopes = self._emitter.scopes  # noise of each round
        context.noise[name] = (*(scope.rounds for scope in scopes), *(axis.size for axis in axes))
        context.rounds[name] = tuple(scope.name for scope in scopes)
        node = context.item(context.inputs["noise"], name, f"noise_{len(context.noise)}")
        for scope in scopes:
            node = self._emitter.emit("select", node, 0, scope.number)
        return context.leaf(node, axes)

    @property
    def step(self) -> Value:  # noqa: D102
        context = self._context
        counter = context.item(context.item(context.inputs["state"], "program", "program"), "step", "step")
        return context.leaf(self._emitter.emit("to", counter, context.dtype), ())

    def segment(self, function: Callable[..., Any], *values: Any) -> Any:  # noqa: D102
        return lower_segment(self._context, function, values, self.node.name)

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
        """An activation's function on tensors of the node, written inline or called."""
        if owner.over == "batch" and self._emitter.ranks is not None:
            return self._over_processes(owner, name, make, values)
        values = aligned(self._emitter, *values)
        local = values[0].local
        axes = ordered(a for v in values for a in v.axes) if owner.over == "agent" else (BATCH, *self.node.axes)
        channels = bool(local) and owner.over != "agent"
        inline = inline and owner.inline and not channels
        call = make() if inline else self._callable(owner, name, make, channels)
        node = opaque(self._emitter, call, values, [(*axes, *local)] * len(values), inline)
        return values[0].like(Factor(node, (*axes, *local)))

    def _over_processes(self, owner: Any, name: str, make: Callable[[], Callable[..., Any]], values: Any) -> Value:
        """The same of a function of all examples at once, of which each process has some."""
        if isinstance(owner, BatchNorm):
            for value in values:  # else a sum that becomes a mean and a difference is computed for each
                coerce(self._emitter, value).materialize()
            by_totals: Callable[..., Value] = getattr(owner, f"{name}_by_totals")
            return by_totals(self._total, *values)
        values = aligned(self._emitter, *values)
        axes = (BATCH, *self.node.axes, *values[0].local)
        call = self._callable(owner, name, make, bool(values[0].local))
        rows = [all_rows(self._emitter, self._emitter.full(v.materialize(), axes), axes) for v in values]
        node = own_rows(self._emitter, self._emitter.emit(call, *rows, work=axes))
        return values[0].like(Factor(node, axes))

    def _total(self, value: Any, how: str) -> Value:
        """Over all examples and the uses of an agent."""
        return coerce(self._emitter, value).total((BATCH, *self.node.shared), how)

    def _callable(self, owner: Any, name: str, make: Callable[[], Callable[..., Any]], channels: bool) -> Any:
        """What the generated code calls; ``channels`` maps it over the last dimension."""
        if not channels:
            return self._context.function(owner, name, make)
        return self._context.function(owner, f"{name}_by_channel", lambda: torch.func.vmap(make(), -1, -1))

    def _operation(self, operation: Operation, name: str, values: Sequence[Any], layouts: Any, results: Any) -> Any:
        """A method of an operation on its whole operands; ``results`` are the axes of what it returns."""
        values = aligned(self._emitter, *values)
        local = values[0].local
        inline = operation.inline and not local
        inline = inline and (name == "apply" or type(operation).vjp is not Operation.vjp)
        packed = self._packed(operation, name)
        call = packed if inline else self._callable(operation, name, lambda: packed, bool(local))
        node = opaque(self._emitter, call, values, [(BATCH, *axes, *local) for axes in layouts], inline)
        nodes = node if isinstance(node, tuple) else [self._context.item(node, i) for i in range(len(results))]
        if name == "apply":
            nodes = [node]
        return [values[0].like(Factor(n, (BATCH, *axes, *local))) for n, axes in zip(nodes, results, strict=True)]

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
        if kind.kept and not self.learning:
            raise ProtocolError(
                f"{self._where()}: {kind} keeps {', '.join(kind.kept)} for predictions; in forward_update write "
                f"s, y = s.activate(z) in place of y = s.apply(z), or give the rule {type(kind).__name__.lower()}="
                "mg.UnitAgent()"
            )
        if self.learning and isinstance(kind, Stochastic):
            return self._whole(kind, "sample", lambda: kind.sample, (z, self._own_noise()))
        return self._whole(kind, "apply", lambda: kind.apply, (z,))

    def _own_noise(self) -> Value:
        """The noise of a stochastic unit: one number in a step (at each tick of a sequence), whatever the pass."""
        context, name, axes = self._context, f"{self.node.name}.own", (BATCH, *self.node.axes)
        ticks = self._emitter.scopes[:1] if context.ticks else []
        context.noise[name] = (*(scope.rounds for scope in ticks), *(axis.size for axis in axes))
        context.rounds[name] = tuple(scope.name for scope in ticks)
        node = context.item(context.inputs["noise"], name, f"noise_{self.node.name}")
        for scope in ticks:
            node = self._emitter.emit("select", node, 0, scope.number)
        return context.leaf(node, axes)

    def statistics(self, z: Any) -> tuple[Value, ...]:  # noqa: D102
        kind, code, axes = self._function(), self._emitter, (BATCH, *self.node.axes)
        if code.ranks is not None and isinstance(kind, BatchNorm):
            coerce(code, z).materialize()
            return kind.statistics_by_totals(self._total, z)
        call = kind.statistics if kind.inline else self._context.function(kind, "statistics", lambda: kind.statistics)
        if code.ranks is not None:
            rows = all_rows(code, code.full(coerce(code, z).materialize(), axes), axes)
            z = self._context.leaf(rows, axes)
        parts = opaque(code, call, [coerce(code, z)], [axes], kind.inline)
        return tuple(self._context.leaf(part, self.node.kept) for part in parts)

    def _vjp(self, e: Any, z: Any, out: Any) -> Any:
        kind = self._function()
        e = coerce(self._emitter, e)
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
            surrogate = self._context.graph.protocol.rule_of(self.node).surrogate
            if surrogate is None:
                self._context.flat.append(self.node.name)
                return e * 0.0
            other = activation(surrogate)
            return self._whole(other, "surrogate", lambda: lambda e, z: other.vjp(e, z, other.apply(z)), (e, z))
        if self.learning and isinstance(kind, Stochastic):
            return self._whole(kind, "sample_vjp", lambda: kind.sample_vjp, (e, z, out, self._own_noise()))
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
        values = [coerce(self._emitter, v) for v in (pre, target)]
        if any(v.local for v in values):
            raise ProtocolError(
                f"{self._where()}: the loss receives messages of shape {[tuple(v.shape) for v in values]}; it compares "
                "single numbers, so the output's agent must send one"
            )
        return self._context.leaf(
            self._context.whole(loss, method, values, axes), axes if method == "gradient" else (BATCH,)
        )

    def _descend(self, name: str, signal: Any) -> View:
        signal = coerce(self._emitter, signal)
        axes = [axis for axis in (BATCH, *self.node.shared) if axis in signal.axes]
        signal = signal.total(axes, "mean")
        if self._context.shared(self.node):
            view = self._copy()
            view._signals[name] = signal
            return view
        return self._context.descend(self, name, signal)
