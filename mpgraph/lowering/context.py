"""What the lowering of one agent's methods may ask for: the code being written, and ways to add to it.

A :class:`Context` knows nothing of schedules and arrows; :class:`~mpgraph.lowering.trace.Trace` adds those. Views,
segments and aggregation by modules need only a context.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from mpgraph.agents.node import AgentNode
from mpgraph.budget import Account
from mpgraph.graph.wiring import AgentGraph
from mpgraph.network.activations import Activation
from mpgraph.network.axes import Axis
from mpgraph.network.losses import Loss

from .calls import opaque
from .emitter import Emitter, identifier
from .parameters import replaced
from .ranks import Ranks
from .value import Value, leaf


@dataclass
class Context:
    """One function of torch code while it is written.

    Attributes:
        graph: nodes, agents and arrows.
        dtype: of all numbers.
        single: whether every batch will hold one example.
        learning: whether targets are fed and writes are kept.
        account: of what segments keep for the backward pass.
        threads: that slices of segments are shared out to; ``None`` for torch's number.
        noise: shape of each tensor of standard normal numbers that was asked for; ``None`` stands for the batch.
        rounds: of noise, the repetitions whose rounds are its first dimensions.
        flat: units whose derivative is zero everywhere and that a backward message met.
        no_signal: trained weights whose learning signal is zero whatever the data.
        ranks: processes that each have a slice of the batch.
        ticks: of a graph of sequences, how long they are.
        tick: the axis of a tensor along which the ticks of a sequence follow each other.
        emitter: writes the code.
        inputs: the placeholders ``state``, ``parameters`` and ``noise``.
        modules: hold every parameter of the rule; set by :meth:`parameters_of`.
    """

    graph: AgentGraph
    dtype: torch.dtype
    single: bool = False
    learning: bool = True
    account: Account = field(default_factory=lambda: Account(0))
    threads: int | None = 1
    noise: dict[str, tuple[int | None, ...]] = field(default_factory=dict)
    rounds: dict[str, tuple[str, ...]] = field(default_factory=dict)
    flat: list[str] = field(default_factory=list)
    no_signal: list[str] = field(default_factory=list)
    ranks: Ranks | None = None
    ticks: int | None = None

    def __post_init__(self) -> None:
        if self.graph.sequences:
            self.ticks = self.ticks or 2  # two will do to learn about a rule
        self.tick = Axis("tick", self.ticks, rank=-2)
        self.emitter = Emitter(self.dtype, self.single, self.ranks)
        self.inputs = {name: self.emitter.input(name, own=True) for name in ("state", "parameters", "noise")}
        self.modules = nn.Module()
        self._functions: dict[Any, Callable[..., Any]] = {}

    def item(self, holder: fx.Node, key: Any, hint: str | None = None) -> fx.Node:
        """``holder[key]``, with a name for people."""
        node = self.emitter.emit(operator.getitem, holder, key)
        node.meta.setdefault("hint", hint)
        return node

    def leaf(self, node: fx.Node, axes: Sequence[Axis], shape: Sequence[int] = ()) -> Value:
        """A tensor that exists, laid out as ``axes`` and local dimensions of ``shape``, as a value."""
        return leaf(self.emitter, node, axes, shape)

    def parameters_of(self, modules: nn.Module) -> AbstractContextManager[None]:
        """Agents see lazy values where they have parameters and buffers, so that those are never baked in."""

        def lazy(index: int, tensor: Tensor, label: str) -> Value:
            return self.leaf(self.item(self.inputs["parameters"], index, label), (), tensor.shape)

        self.modules = modules
        return replaced(modules, lazy)

    def times(self, node: AgentNode) -> int:
        """How many uses there are of the state of a node: nodes, at each tick of a sequence."""
        return len(self.graph.uses[node.owner]) * (self.ticks or 1)

    def shared(self, node: AgentNode) -> bool:
        """Whether what a node writes waits for other uses."""
        return self.ticks is not None or self.times(node) > 1

    def descend(self, view: Any, channel: str, signal: Value) -> Any:
        """A step of the inner optimizer: the view with the channel written."""
        node = self.graph.nodes[view.node.owner]
        if signal.is_zero:
            self.no_signal.append(node.name)
        optimizer = self.graph.protocol.optimizer_of(node, channel)
        if optimizer.rereads and not signal.is_zero:
            signal.materialize()
        return optimizer.update(view, channel, signal)

    def function(self, owner: Any, name: str, make: Callable[[], Callable[..., Any]]) -> Callable[..., Any]:
        """A function for the generated code to call, under a name that reads well; the same object each time."""
        key = (id(owner), name)
        if key not in self._functions:
            made = make()

            def call(*args: Any) -> Any:
                return made(*args)

            call.__module__ = "mpgraph"
            call.__name__ = call.__qualname__ = f"{identifier(getattr(owner, 'name', type(owner).__name__))}_{name}"
            self._functions[key] = call
        return self._functions[key]

    def whole(self, owner: Activation | Loss, method: str, values: Sequence[Value], axes: Sequence[Axis]) -> fx.Node:
        """A method of an activation or loss on whole tensors."""
        func = getattr(owner, method)
        base: Any = Loss if isinstance(owner, Loss) else Activation
        inline = owner.inline and getattr(type(owner), method) is not getattr(base, method)
        call = func if inline else self.function(owner, method, lambda: func)
        return opaque(self.emitter, call, values, [axes] * len(values), inline)
