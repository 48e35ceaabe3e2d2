"""A function of one agent's numbers, run in slices of agents and computed again in the backward pass.

A learner inside a rule (a recurrent network at each synapse) is wider than what it reads and returns. Its intermediate
values for all agents and examples at once fill main memory, and autograd keeps them for every step of an unroll. As a
*segment* it costs what goes in and comes out: its code runs on some rows (agents and examples) at a time, whose
intermediates fit a budget; autograd keeps the inputs alone, and the backward pass runs each slice again.

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
from mpgraph.network.axes import BATCH, local_axes, ordered

from .algebra import Factor, Value
from .parameters import replaced
from .recorder import Recorder, identifier

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


def emit(trace: Any, function: Callable[..., Any], values: Sequence[Any], name: str) -> Any:
    """Trace a function of the agents of node ``name`` and write a call of it; see :meth:`mpgraph.View.segment`.

    Raises:
        ProtocolError: if the function uses values of the agent that it was not given.
    """
    outer, inner = trace.recorder, Recorder(trace.dtype)
    values = [outer.coerce(value) for value in values]
    axes = ordered(axis for value in values for axis in value.axes)
    if not axes:  # nothing but parameters: one row, so nothing to cut
        return function(*values)
    arguments: dict[fx.Node, _Argument] = {}

    def leaf(value: Any, hint: str) -> Value:
        """A value as an argument of the segment."""
        local = local_axes(value.shape)
        if value.is_zero:
            return Value(inner, (), local)
        node = inner.input(f"{hint} {len(arguments)}" if hint in inner.inputs else hint)
        if value.axes:
            inner.batched(node)
            source = outer.full(value, (*axes, *value.local))
            source = outer.emit("flatten", source, 0, len(axes) - 1) if len(axes) > 1 else source
        else:
            source = outer.full(value, value.local)
        arguments[node] = _Argument(source, tuple(value.shape), bool(value.axes))
        return Value(inner, (), local).like(Factor(node, (BATCH, *local) if value.axes else local))

    given = [leaf(value, f"value_{i}") for i, value in enumerate(values)]
    with replaced(trace.modules, lambda index, value, label: leaf(value, label.rpartition(".")[2])):
        results = function(*given)
    several = isinstance(results, tuple)
    found = [inner.coerce(value) for value in (results if several else [results])]
    module = inner.finish(tuple(inner.full(value, (BATCH, *value.local)) for value in found))
    placeholders = [node for node in module.graph.nodes if node.op == "placeholder"]
    used = []
    for node, argument in zip(placeholders, arguments.values(), strict=True):
        if node.users:
            used.append(argument)
        else:
            module.graph.erase_node(node)
    module.recompile()
    segment = Segment(module, [a.varies for a in used], _width(module, used, trace.dtype), name)
    made = identifier(getattr(function, "__name__", type(function).__name__))
    if f"{identifier(name)}_{made}" in outer.segments:  # an agent may have several
        made = f"{made}_{len(outer.segments)}"
    call = trace.function(segment, made, lambda: segment)
    outer.segments[call.__name__] = module
    work = [node.meta["work"] for node in module.graph.nodes if "work" in node.meta]
    flops = sum(per * math.prod(axis.size or 1 for axis in over) for per, over in work)
    node = outer.emit(call, *(a.source for a in used), work=axes, per=flops)
    outer.note(f"a segment of {segment.width} numbers for each agent and example, in slices")
    sizes = [-1 if axis is BATCH else axis.size for axis in axes]
    parts = []
    for index, value in enumerate(found):
        part = trace.item(node, index)
        part = outer.emit("unflatten", part, 0, sizes) if len(axes) > 1 else part
        local = local_axes(value.shape)
        parts.append(Value(outer, (), local).like(Factor(part, (*axes, *local))))
    return tuple(parts) if several else parts[0]


class _Argument(NamedTuple):
    """What the step hands to a segment."""

    source: fx.Node
    local: tuple[int, ...]
    varies: bool


def _width(module: fx.GraphModule, arguments: Sequence[_Argument], dtype: torch.dtype) -> int:
    """Intermediate numbers of one row: what two rows have more than one."""
    counts = []
    for rows in (1, 2):
        count = _Count(module)
        count.run(*(torch.zeros((rows, *a.local) if a.varies else a.local, dtype=dtype) for a in arguments))
        counts.append(count.numbers)
    return max(1, counts[1] - counts[0])


class _Count(fx.Interpreter):
    """Runs code once and counts the numbers in its tensors."""

    numbers = 0

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, Tensor):
            self.numbers += result.numel()
        return result
