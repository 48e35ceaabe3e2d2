"""Products over a sparse pattern that differentiate, map and compile.

``torch``'s own sparse tensors do neither under ``vmap`` nor under full-graph compilation, and their gradient with
respect to values allocates the dense matrix. So each product is an operator of its own, which calls the CSR kernel and
has a rule for fake tensors and for batches, inside an ``autograd.Function`` whose gradient is another such product.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from mpgraph.environment import inside_transform


def _matrix(starts: Tensor, columns: Tensor, values: Tensor, width: int) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls its CSR support beta, once for each process
        return torch.sparse_csr_tensor(starts, columns, values, (len(starts) - 1, width), check_invariants=False)


# Results lie agent by agent, ``(batch, agents)`` with strides ``(1, batch)``: that is what the kernels read and write,
# elementwise calls keep it, and transposing in between took more than half of a step.


def _multiply(
    values: Tensor, x: Tensor, starts: Tensor, columns: Tensor, order: Tensor, into: Tensor | None = None
) -> Tensor:
    matrix = _matrix(starts, columns, values.index_select(0, order) if len(order) else values, x.shape[-1])
    if len(x) == 1:
        vector = x.new_zeros(1) if into is None else into[0] if into.ndim == 2 else into
        return torch.addmv(vector, matrix, x[0], beta=0.0 if into is None else 1.0)[None]
    if into is None:
        result = torch.addmm(x.new_zeros(1, 1), matrix, x.t(), beta=0.0)  # a plain product makes two more copies
    else:
        result = torch.addmm(into.unsqueeze(1) if into.ndim == 1 else into.t(), matrix, x.t())
    return result.contiguous().t()


def _spread(values: Tensor, x: Tensor, columns: Tensor, ends: Tensor, into: Tensor) -> Tensor:
    """The same for one example and few edges, from the form by the rows of ``x``: nothing happens for rows without."""
    return torch.index_add(into, 0, columns, x[0].index_select(0, ends).mul_(values))[None]


def _sample(rows: Tensor, columns_: Tensor, starts: Tensor, columns: Tensor, order: Tensor, ends: Tensor) -> Tensor:
    if len(rows) == 1:  # two look-ups, in half of the kernel's time
        sampled = rows[0].index_select(0, ends).mul_(columns_[0].index_select(0, columns))
    elif len(columns) > rows.shape[-1] * columns_.shape[-1]:  # so many parallel edges that torch refuses the matrix
        sampled = (rows.index_select(1, ends) * columns_.index_select(1, columns)).sum(0)
    else:
        like = _matrix(starts, columns, rows.new_zeros(len(columns)), columns_.shape[-1])
        sampled = torch.sparse.sampled_addmm(like, rows.t().contiguous(), columns_, beta=0.0).values()
    return torch.empty_like(sampled).index_copy_(0, order, sampled) if len(order) else sampled


@torch.library.custom_op("mpgraph::sparse_product", mutates_args=())
def _product(values: Tensor, x: Tensor, starts: Tensor, columns: Tensor, order: Tensor, ends: Tensor) -> Tensor:
    return _multiply(values, x, starts, columns, order)


@_product.register_fake
def _(values: Tensor, x: Tensor, starts: Tensor, columns: Tensor, order: Tensor, ends: Tensor) -> Tensor:
    return x.new_empty(starts.shape[0] - 1, x.shape[0]).t()


@_product.register_vmap
def _(info: Any, dims: Any, values: Tensor, x: Tensor, *pattern: Tensor) -> tuple[Tensor, int]:
    if dims[0] is None:  # more rows of one matrix
        rows = x.movedim(dims[1], 0)
        return _product(values, rows.flatten(0, 1), *pattern).unflatten(0, rows.shape[:2]), 0
    each = values.movedim(dims[0], 0)
    rows = x.expand(info.batch_size, *x.shape) if dims[1] is None else x.movedim(dims[1], 0)
    return torch.stack([_product(v, r, *pattern) for v, r in zip(each, rows, strict=True)]), 0


@torch.library.custom_op("mpgraph::sparse_outer", mutates_args=())
def _outer(rows: Tensor, columns_: Tensor, starts: Tensor, columns: Tensor, order: Tensor, ends: Tensor) -> Tensor:
    return _sample(rows, columns_, starts, columns, order, ends)


@_outer.register_fake
def _(rows: Tensor, columns_: Tensor, starts: Tensor, columns: Tensor, order: Tensor, ends: Tensor) -> Tensor:
    return rows.new_empty(columns.shape[0])


@_outer.register_vmap
def _(info: Any, dims: Any, rows: Tensor, columns_: Tensor, *pattern: Tensor) -> tuple[Tensor, int]:
    pair = [
        t.expand(info.batch_size, *t.shape) if d is None else t.movedim(d, 0)
        for t, d in zip((rows, columns_), dims, strict=False)
    ]
    return torch.stack([_outer(r, c, *pattern) for r, c in zip(*pair, strict=True)]), 0


class _Product(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod  # no *sides: torch.compile would take the first argument for the context
    def forward(
        values: Tensor,
        x: Tensor,
        starts: Tensor,
        columns: Tensor,
        order: Tensor,
        ends: Tensor,
        a: Tensor,
        b: Tensor,
        c: Tensor,
        d: Tensor,
    ) -> Tensor:
        return _product(values, x, starts, columns, order, ends)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        values, x, *sides = ctx.saved_tensors
        needs = ctx.needs_input_grad
        by_values = _Outer.apply(grad, x, *sides) if needs[0] else None
        by_x = _Product.apply(values, grad, *sides[4:], *sides[:4]) if needs[1] else None
        return by_values, by_x, *[None] * 8


class _Outer(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(
        rows: Tensor,
        x: Tensor,
        starts: Tensor,
        columns: Tensor,
        order: Tensor,
        ends: Tensor,
        a: Tensor,
        b: Tensor,
        c: Tensor,
        d: Tensor,
    ) -> Tensor:
        return _outer(rows, x, starts, columns, order, ends)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        rows, columns, *sides = ctx.saved_tensors
        needs = ctx.needs_input_grad
        by_rows = _Product.apply(grad, columns, *sides) if needs[0] else None
        by_columns = _Product.apply(grad, rows, *sides[4:], *sides[:4]) if needs[1] else None
        return by_rows, by_columns, *[None] * 8


def direct(*tensors: Tensor | None) -> bool:
    """Whether to call the kernel itself: an operator costs more than a small product and nobody would notice it."""
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() or inside_transform():
        return False
    learning = torch.is_grad_enabled()
    return all(
        t is None or (type(t) is Tensor and not t.is_meta and not (learning and t.requires_grad)) for t in tensors
    )


def product(values: Tensor, x: Tensor, *sides: Tensor, into: Tensor | None = None) -> Tensor:
    """For each row agent the sum of ``values * x`` over its edges.

    Args:
        values: one number for each edge, ``(edges,)``.
        x: ``(batch, agents)`` at the other end, or ``(agents,)``.
        sides: the pattern's CSR form by the rows of the result, then by those of ``x``: eight tensors.
        into: what the sums are added to: of the shape of the result, or ``(agents,)`` for every example.
    """
    rows = x if x.ndim == 2 else x[None]
    if direct(values, x, into):
        size = len(sides[0]) - 1
        if len(rows) == 1 and x.device.type == "cpu" and len(sides[2]) and not len(sides[6]) and len(values) < 4 * size:
            start = x.new_zeros(size) if into is None else into.flatten()
            result = _spread(values, rows, sides[5], sides[7], start)
            return result if x.ndim == 2 else result[0]
        result = _multiply(values, rows, sides[0], sides[1], sides[2], into)
    else:
        result = _Product.apply(values, rows, *sides)
        result = result if into is None else result + into
    return result if x.ndim == 2 else result[0]


def outer(rows: Tensor, columns: Tensor, *sides: Tensor) -> Tensor:
    """For each edge the sum over the batch of the product of its two ends, ``(edges,)``.

    Args:
        rows: ``(batch, agents)`` at the end whose CSR form comes first.
        columns: ``(batch, agents)`` at the other end.
        sides: eight tensors, as in :func:`product`.
    """
    if direct(rows, columns):
        return _sample(rows, columns, *sides[:4])
    return _Outer.apply(rows, columns, *sides)
