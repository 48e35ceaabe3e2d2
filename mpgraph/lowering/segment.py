"""A function of one agent's numbers, run in slices of agents and computed again in the backward pass.

A learner inside a rule (a recurrent network at each synapse) is wider than what it reads and returns. Its intermediate
values for all agents and examples at once fill main memory, and autograd keeps them for every step of an unroll. As a
*segment* it costs what goes in and comes out: its code runs on some rows (agents and examples) at a time, whose
intermediates fit a budget; autograd keeps only the inputs, and the backward pass runs each slice again.

    Chen, Xu, Zhang and Guestrin (2016), "Training deep nets with sublinear memory cost", arXiv 1604.06174.

The code of a segment is traced like that of a step, on values with one axis, the rows. It is differentiable any number
of times and under ``torch.func`` transforms; under ``torch.compile`` it is inlined whole.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

from mpgraph.environment import inside_transform
from mpgraph.network.axes import BATCH, Axis, local_axes, ordered

from .context import Context
from .emitter import Emitter, identifier
from .parameters import replaced
from .shapes import tensors_of
from .value import Value, coerce, leaf

# Bytes of intermediate values at a time: on a CPU what stays in the cache, elsewhere what keeps the device busy.
BUDGET = {"cpu": 16 << 20}
ELSEWHERE = 256 << 20


class Segment:
    """The code of a segment.

    Args:
        module: takes and returns rows ``(rows, *local)``; some of its arguments are shared by all rows.
        varies: for each argument whether it has rows.
        width: how many intermediate numbers there are for each row.
        name: of the node whose agents it serves.
    """

    def __init__(self, module: fx.GraphModule, varies: Sequence[bool], width: int, name: str) -> None:
        self.module, self.varies, self.width, self.name = module, tuple(varies), width, name

    def __call__(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Results, in slices and recomputed where there is a backward pass."""
        if torch.compiler.is_compiling():
            return self.module.forward(*tensors)
        return _Recomputed.apply(self, *tensors)

    def slices(self, tensors: Sequence[Tensor]) -> list[slice]:
        """Rows that are run together."""
        first = tensors[self.varies.index(True)]
        budget = BUDGET.get(first.device.type, ELSEWHERE)
        size = max(1, budget // (self.width * first.element_size()))
        return [slice(start, start + size) for start in range(0, first.shape[0], size)]

    def part(self, tensors: Sequence[Tensor], rows: slice) -> list[Tensor]:
        """The arguments for some rows."""
        return [t[rows] if varies else t for t, varies in zip(tensors, self.varies, strict=True)]


class _Recomputed(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(segment: Segment, *tensors: Tensor) -> tuple[Tensor, ...]:
        parts = [segment.module.forward(*segment.part(tensors, rows)) for rows in segment.slices(tensors)]
        return tuple(torch.cat(results) for results in zip(*parts, strict=True))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.segment, *tensors = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, *errors: Tensor) -> tuple[Tensor | None, ...]:
        segment, tensors = ctx.segment, ctx.saved_tensors
        wanted = [i for i, needed in enumerate(ctx.needs_input_grad[1:]) if needed]
        parts = []
        for rows in segment.slices(tensors):
            given = segment.part(tensors, rows)
            back = _pullback(segment.module, given, wanted)
            parts.append(back(tuple(e[rows] for e in errors)))
        gradients: list[Tensor | None] = [None] * len(tensors)
        for i, found in zip(wanted, zip(*parts, strict=True), strict=True):
            gradients[i] = torch.cat(found) if segment.varies[i] else sum(found[1:], found[0])
        return (None, *gradients)


def _pullback(module: fx.GraphModule, given: Sequence[Tensor], wanted: Sequence[int]) -> Callable[..., Any]:
    """Errors of the results to errors of the wanted arguments."""

    def run(*chosen: Tensor) -> Any:
        arguments = list(given)
        for i, tensor in zip(wanted, chosen, strict=True):
            arguments[i] = tensor
        return module.forward(*arguments)

    chosen = [given[i] for i in wanted]
    if torch.is_grad_enabled() or inside_transform():  # the errors will be differentiated themselves
        return torch.func.vjp(run, *chosen)[1]
    with torch.enable_grad():  # the same, quicker
        chosen = [tensor.detach().requires_grad_() for tensor in chosen]
        results = run(*chosen)

    def back(errors: Sequence[Tensor]) -> Sequence[Tensor]:
        pairs = [pair for pair in zip(results, errors, strict=True) if pair[0].requires_grad]
        if not pairs:  # flat everywhere
            return [torch.zeros_like(tensor) for tensor in chosen]
        outputs, heard = zip(*pairs, strict=True)
        return torch.autograd.grad(outputs, chosen, heard, allow_unused=True, materialize_grads=True)

    return back


class _Argument(NamedTuple):
    """What the step hands to a segment."""

    source: fx.Node
    local: tuple[int, ...]
    varies: bool  # by agent or example: it has rows


class _Traced(NamedTuple):
    """A function as code on rows ``(rows, *local)``."""

    module: fx.GraphModule
    arguments: list[_Argument]  # those that the code reads
    shapes: list[torch.Size]  # local shapes of the results
    several: bool  # whether it returns a tuple


def lower_segment(context: Context, function: Callable[..., Any], values: Sequence[Any], name: str) -> Any:
    """Trace a function of the agents of node ``name`` and write a call of it; see :meth:`mpgraph.View.segment`.

    Raises:
        ProtocolError: if the function uses values of the agent that it was not given.
    """
    code = context.emitter
    values = [coerce(code, value) for value in values]
    axes = ordered(axis for value in values for axis in value.axes)
    if not axes:  # nothing but parameters: one row, so nothing to cut
        return function(*values)
    traced = _traced(context, function, values, axes)
    width = _width(traced, context.dtype)
    segment = Segment(traced.module, [a.varies for a in traced.arguments], width, name)
    made = identifier(getattr(function, "__name__", type(function).__name__))
    if f"{identifier(name)}_{made}" in code.segments:  # an agent may have several
        made = f"{made}_{len(code.segments)}"
    call = context.function(segment, made, lambda: segment)
    code.segments[call.__name__] = traced.module
    work = [node.meta["work"] for node in traced.module.graph.nodes if "work" in node.meta]
    flops = sum(per * math.prod(axis.size or 1 for axis in over) for per, over in work)
    node = code.emit(call, *(a.source for a in traced.arguments), work=axes, per=flops)
    code.note(f"a segment of {width} numbers for each agent and example, in slices")
    sizes = [-1 if axis is BATCH else axis.size for axis in axes]
    results = []
    for index, shape in enumerate(traced.shapes):
        rows = context.item(node, index)
        rows = code.emit("unflatten", rows, 0, sizes) if len(axes) > 1 else rows
        results.append(context.leaf(rows, axes, shape))
    return tuple(results) if traced.several else results[0]


def _traced(context: Context, function: Callable[..., Any], values: Sequence[Value], axes: Sequence[Axis]) -> _Traced:
    """The code of a function, on values whose one axis is the rows: all agents and examples in a line."""
    outer, inner = context.emitter, Emitter(context.dtype)
    arguments: dict[fx.Node, _Argument] = {}

    def argument(value: Any, hint: str) -> Value:
        """A value of the step as one of the function."""
        if value.is_zero:
            return Value(inner, (), local_axes(value.shape))
        node = inner.input(f"{hint} {len(arguments)}" if hint in inner.inputs else hint)
        varies = bool(value.axes)
        if varies:
            inner.batched(node)
            source = outer.full(value.materialize(), (*axes, *value.local))
            source = outer.emit("flatten", source, 0, len(axes) - 1) if len(axes) > 1 else source
        else:
            source = outer.full(value.materialize(), value.local)
        arguments[node] = _Argument(source, tuple(value.shape), varies)
        return leaf(inner, node, (BATCH,) if varies else (), value.shape)

    given = [argument(value, f"value_{i}") for i, value in enumerate(values)]
    with replaced(context.modules, lambda index, value, label: argument(value, label.rpartition(".")[2])):
        results = function(*given)
    several = isinstance(results, tuple)
    found = [coerce(inner, value) for value in (results if several else [results])]
    module = inner.finish(tuple(inner.full(value.materialize(), (BATCH, *value.local)) for value in found))
    placeholders = [node for node in module.graph.nodes if node.op == "placeholder"]
    used = []
    for node, one in zip(placeholders, arguments.values(), strict=True):
        if node.users:
            used.append(one)
        else:
            module.graph.erase_node(node)
    module.recompile()
    return _Traced(module, used, [value.shape for value in found], several)


def _width(traced: _Traced, dtype: torch.dtype) -> int:
    """Intermediate numbers of one row: what two rows have more than one."""
    counts = []
    for rows in (1, 2):
        given = [torch.zeros((rows, *a.local) if a.varies else a.local, dtype=dtype) for a in traced.arguments]
        counts.append(sum(tensor.numel for tensor in tensors_of(traced.module, given).values()))
    return max(1, counts[1] - counts[0])
