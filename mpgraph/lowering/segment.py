"""A function of one agent's numbers, run in slices of agents and computed again in the backward pass.

A learner inside a rule (a recurrent network at each synapse) is wider than what it reads and returns. Its intermediate
values for all agents and examples at once fill main memory, and autograd keeps them for every step of an unroll. As a
*segment* its code runs on some rows (agents and examples) at a time. Where the program's memory budget has room for the
intermediates of a call, the graph of each slice is kept for the backward pass. Where it has none, autograd keeps only
what goes in, and the backward pass runs each slice again. Both give the same gradient, to the bit.

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

from mpgraph.budget import Account, Saved, Share
from mpgraph.environment import inside_transform
from mpgraph.network.axes import BATCH, Axis, local_axes, ordered
from mpgraph.threads import side_by_side, threads_for

from .context import Context
from .emitter import Emitter, identifier
from .parameters import replaced
from .shapes import tensors_of
from .value import Value, coerce, leaf

# Bytes of intermediate values of a slice: on a CPU what stays in the cache, elsewhere what keeps the device busy.
BUDGET = {"cpu": 16 << 20}
ELSEWHERE = 256 << 20
WORTH_A_THREAD = 256 << 10  # bytes of a slice below which handing it to another thread costs more than it saves


class Segment:
    """The code of a segment.

    Args:
        function: takes and returns rows ``(rows, *local)``; some of its arguments are shared by all rows.
        varies: for each argument whether it has rows.
        width: how many intermediate numbers there are for each row.
        kept: bytes that autograd keeps for each row, unless they are computed again.
        account: of what all segments of a program keep.
        threads: that slices are shared out to; ``None`` for torch's number.
        name: of the node whose agents it serves.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        varies: Sequence[bool],
        width: int,
        kept: int,
        account: Account,
        threads: int | None,
        name: str,
    ) -> None:
        self.function, self.varies, self.width = function, tuple(varies), width
        self.kept, self.account, self.threads, self.name = kept, account, threads, name

    def __call__(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Results, in slices."""
        if torch.compiler.is_compiling() or tensors[0].is_meta:  # a shape takes no memory
            return self.function(*tensors)
        learning = torch.is_grad_enabled()
        if not inside_transform() and not (learning and any(tensor.requires_grad for tensor in tensors)):
            return self.run(tensors)
        return _Sliced.apply(_Call(self, learning), *tensors)

    def run(self, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Results, without a gradient of the whole."""
        threads = threads_for(self.threads, tensors)
        slices = self.slices(tensors, threads)
        return _joined(side_by_side(lambda rows: self.function(*self.part(tensors, rows)), slices, threads))

    def slices(self, tensors: Sequence[Tensor], threads: int) -> list[slice]:
        """Rows that are run together: as many slices as there are threads, or a multiple, unless they get too small."""
        first = tensors[self.varies.index(True)]
        budget = BUDGET.get(first.device.type, ELSEWHERE)
        rows, row = first.shape[0], self.width * first.element_size()
        size = max(1, budget // row)
        if threads > 1 and rows * row >= threads * WORTH_A_THREAD:
            rounds = math.ceil(rows / (size * threads))
            size = math.ceil(rows / (rounds * threads))
        return [slice(start, min(start + size, rows)) for start in range(0, rows, size)]

    def rows(self, tensors: Sequence[Tensor]) -> int:
        """How many there are."""
        return tensors[self.varies.index(True)].shape[0]

    def part(self, tensors: Sequence[Tensor], rows: slice) -> list[Tensor]:
        """The arguments for some rows."""
        start, size = rows.start, rows.stop - rows.start
        return [t.narrow(0, start, size) if varies else t for t, varies in zip(tensors, self.varies, strict=True)]

    def mapped(self, dims: Sequence[int | None], size: int) -> Segment:
        """The same for many networks: ``vmap`` over a dimension of each argument, over the second one of results."""
        function = torch.func.vmap(self.function, in_dims=tuple(dims), out_dims=1)
        width, kept = size * self.width, size * self.kept
        return Segment(function, self.varies, width, kept, self.account, self.threads, self.name)


class _Call:
    """One call of a segment, and what it keeps from its forward to its backward pass.

    Args:
        segment: that is called.
        learning: whether autograd was on.
    """

    def __init__(self, segment: Segment, learning: bool) -> None:
        self.segment, self.learning = segment, learning
        self.share: Share | None = None
        self.slices: list[slice] = []
        self.runs: list[_Run] = []  # of each slice

    def forward(self, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The results, with their graph kept aside if the account has room for it."""
        segment = self.segment
        wanted = [i for i, tensor in enumerate(tensors) if self.learning and tensor.requires_grad]
        self.share = segment.account.take(segment.kept * segment.rows(tensors)) if wanted else None
        if self.share is None:
            return segment.run(tensors)
        threads = threads_for(segment.threads, tensors)
        self.slices = segment.slices(tensors, threads)
        self.runs = side_by_side(
            lambda rows: _Run(segment.function, segment.part(tensors, rows), wanted), self.slices, threads
        )
        return _joined([tuple(result.detach() for result in run.results) for run in self.runs])

    def backward(
        self, tensors: Sequence[Tensor], errors: Sequence[Tensor], wanted: Sequence[int]
    ) -> list[Sequence[Tensor]]:
        """Of each slice, the errors of the wanted arguments."""
        segment, threads = self.segment, threads_for(self.segment.threads, tensors)
        slices = self.slices or segment.slices(tensors, threads)
        runs: list[_Run | None] = [*self.runs] or [None] * len(slices)
        self.slices, self.runs = [], []  # if the backward pass runs once more, all is computed again

        def back(index: int) -> Sequence[Tensor]:
            rows, run, runs[index] = slices[index], runs[index], None
            heard = [error[rows] for error in errors]
            given = segment.part(tensors, rows)
            if torch.is_grad_enabled() or inside_transform():  # the errors will be differentiated themselves
                return _differentiable(segment.function, given, wanted)(tuple(heard))
            return (run or _Run(segment.function, given, wanted)).back(heard, wanted)

        found = side_by_side(back, range(len(slices)), threads)
        if self.share is not None:
            self.share.release()
        return found


class _Sliced(torch.autograd.Function):
    @staticmethod
    def forward(call: _Call, *tensors: Tensor) -> tuple[Tensor, ...]:
        return call.forward(tensors)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.call, *tensors = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, *errors: Tensor) -> tuple[Tensor | None, ...]:
        call, tensors = ctx.call, ctx.saved_tensors
        wanted = [i for i, needed in enumerate(ctx.needs_input_grad[1:]) if needed]
        parts = call.backward(tensors, errors, wanted)
        gradients: list[Tensor | None] = [None] * len(tensors)
        for i, found in zip(wanted, zip(*parts, strict=True), strict=True):
            gradients[i] = torch.cat(found) if call.segment.varies[i] else sum(found[1:], found[0])
        return (None, *gradients)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], call: _Call, *tensors: Tensor) -> tuple[Any, Any]:
        """Many networks are more rows, if they share their parameters."""
        segment, count, dims = call.segment, info.batch_size, in_dims[1:]
        cases = list(zip(tensors, dims, segment.varies, strict=True))
        if any(dim is not None and not varies for _, dim, varies in cases):
            moved = [t if dim is None else t.movedim(dim, int(varies)) for t, dim, varies in cases]
            mapped = segment.mapped([None if dim is None else int(varies) for _, dim, varies in cases], count)
            results, out = mapped(*moved), 1
        else:
            rows = [
                t if not varies else (t.expand(count, *t.shape) if dim is None else t.movedim(dim, 0)).flatten(0, 1)
                for t, dim, varies in cases
            ]
            results, out = tuple(r.unflatten(0, (count, -1)) for r in segment(*rows)), 0
        return results, (out,) * len(results)


class _Run:
    """A function at some arguments, with its graph.

    Args:
        function: of tensors.
        given: its arguments.
        wanted: those that it is differentiated by.
    """

    def __init__(self, function: Callable[..., Any], given: Sequence[Tensor], wanted: Sequence[int]) -> None:
        arguments = list(given)
        with torch.enable_grad():
            self.leaves = {i: given[i].detach().requires_grad_() for i in wanted}
            for i, leaf in self.leaves.items():
                arguments[i] = leaf
            self.results = function(*arguments)

    def back(self, errors: Sequence[Tensor], wanted: Sequence[int]) -> Sequence[Tensor]:
        """Errors of the results to errors of arguments; the graph is gone then."""
        chosen = [self.leaves[i] for i in wanted]
        pairs = [pair for pair in zip(self.results, errors, strict=True) if pair[0].requires_grad]
        if not pairs:  # flat everywhere
            return [torch.zeros_like(tensor) for tensor in chosen]
        outputs, heard = zip(*pairs, strict=True)
        return torch.autograd.grad(outputs, chosen, heard, allow_unused=True, materialize_grads=True)


def _differentiable(function: Callable[..., Any], given: Sequence[Tensor], wanted: Sequence[int]) -> Callable[..., Any]:
    """Errors of the results to errors of the wanted arguments, as a function that can be differentiated."""

    def run(*chosen: Tensor) -> Any:
        arguments = list(given)
        for i, tensor in zip(wanted, chosen, strict=True):
            arguments[i] = tensor
        return function(*arguments)

    return torch.func.vjp(run, *(given[i] for i in wanted))[1]


def _joined(parts: Sequence[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    """Results of slices as those of all rows; tensors of their own, also if there is one slice."""
    return tuple(torch.cat(results) for results in zip(*parts, strict=True))


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
    varies = [a.varies for a in traced.arguments]
    kept = _kept(traced, context.dtype, width)
    segment = Segment(traced.module.forward, varies, width, kept, context.account, context.threads, name)
    made = identifier(getattr(function, "__name__", type(function).__name__))
    if f"{identifier(name)}_{made}" in code.segments:  # an agent may have several
        made = f"{made}_{len(code.segments)}"
    call = context.function(segment, made, lambda: segment)
    code.segments[call.__name__] = traced.module
    work = [node.meta["work"] for node in traced.module.graph.nodes if "work" in node.meta]
    flops = sum(per * math.prod(axis.size or 1 for axis in over) for per, over in work)
    node = code.emit(call, *(a.source for a in traced.arguments), work=axes, per=flops)
    code.note(f"a segment of {width} numbers for each agent and example, in slices")
    traced.module.meta["segment"], traced.module.meta["axes"] = segment, axes
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


def _kept(traced: _Traced, dtype: torch.dtype, width: int) -> int:
    """Bytes that autograd keeps of one row: what it keeps of two more than of one."""
    if inside_transform() or torch.is_inference_mode_enabled():  # hooks do not see there; this is more than it keeps
        return width * dtype.itemsize
    counts = []
    for rows in (1, 2):
        given = [torch.zeros((rows, *a.local) if a.varies else a.local, dtype=dtype) for a in traced.arguments]
        with torch.enable_grad(), Saved(but=given) as saved:
            traced.module.forward(*(tensor.requires_grad_() for tensor in given))
        counts.append(saved.bytes)
    return max(1, counts[1] - counts[0])
