"""Products over a sparse pattern that differentiate, map and compile.

``torch``'s own sparse tensors do neither under ``vmap`` nor under full-graph compilation, and their gradient with
respect to values allocates the dense matrix. So each product is an operator of its own, which calls the CSR kernel and
has a rule for fake tensors and for batches, inside an ``autograd.Function`` whose gradient is another such product.
"""

from __future__ import annotations

import warnings
from functools import cached_property
from typing import Any

import torch
from torch import Tensor


class Pattern:
    """Which agents a list of edges joins.

    Args:
        pre: flat index of each edge's source, ``(edges,)``.
        post: flat index of each edge's target.
        sizes: number of agents at the source's and the target's end.
    """

    def __init__(self, pre: Tensor, post: Tensor, sizes: tuple[int, int]) -> None:
        self.pre, self.post, self.sizes = pre, post, sizes

    def side(self, end: str) -> tuple[Tensor, Tensor, Tensor]:
        """The CSR form whose rows are the agents of one end: row starts, columns, order of the edges."""
        return self.by_post if end == "post" else self.by_pre

    @cached_property
    def by_post(self) -> tuple[Tensor, Tensor, Tensor]:
        """CSR with targets as rows."""
        return _compressed(self.post, self.pre, self.sizes[1])

    @cached_property
    def by_pre(self) -> tuple[Tensor, Tensor, Tensor]:
        """CSR with sources as rows."""
        return _compressed(self.pre, self.post, self.sizes[0])


def _compressed(row: Tensor, column: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    order = torch.argsort(row, stable=True)
    count = torch.bincount(row, minlength=size)
    return torch.cat([count.new_zeros(1), count.cumsum(0)]), column[order], order


def _matrix(starts: Tensor, columns: Tensor, values: Tensor, width: int) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls its CSR support beta, once for each process
        return torch.sparse_csr_tensor(starts, columns, values, (len(starts) - 1, width), check_invariants=False)


@torch.library.custom_op("mpgraph::sparse_product", mutates_args=())
def _product(values: Tensor, x: Tensor, starts: Tensor, columns: Tensor, order: Tensor) -> Tensor:
    matrix = _matrix(starts, columns, values.index_select(0, order), x.shape[-1])
    return (matrix @ x.t()).t().contiguous()


@_product.register_fake
def _(values: Tensor, x: Tensor, starts: Tensor, columns: Tensor, order: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], starts.shape[0] - 1)


@_product.register_vmap
def _(info: Any, dims: Any, values: Tensor, x: Tensor, *pattern: Tensor) -> tuple[Tensor, int]:
    if dims[0] is None:  # more rows of one matrix
        rows = x.movedim(dims[1], 0)
        return _product(values, rows.flatten(0, 1), *pattern).unflatten(0, rows.shape[:2]), 0
    each = values.movedim(dims[0], 0)
    rows = x.expand(info.batch_size, *x.shape) if dims[1] is None else x.movedim(dims[1], 0)
    return torch.stack([_product(v, r.contiguous(), *pattern) for v, r in zip(each, rows, strict=True)]), 0


@torch.library.custom_op("mpgraph::sparse_outer", mutates_args=())
def _outer(rows: Tensor, columns_: Tensor, starts: Tensor, columns: Tensor, order: Tensor) -> Tensor:
    like = _matrix(starts, columns, rows.new_zeros(len(columns)), columns_.shape[-1])
    sampled = torch.sparse.sampled_addmm(like, rows.t().contiguous(), columns_, beta=0.0).values()
    return torch.empty_like(sampled).index_copy_(0, order, sampled)


@_outer.register_fake
def _(rows: Tensor, columns_: Tensor, starts: Tensor, columns: Tensor, order: Tensor) -> Tensor:
    return rows.new_empty(order.shape[0])


@_outer.register_vmap
def _(info: Any, dims: Any, rows: Tensor, columns_: Tensor, *pattern: Tensor) -> tuple[Tensor, int]:
    pair = [
        t.expand(info.batch_size, *t.shape) if d is None else t.movedim(d, 0)
        for t, d in zip((rows, columns_), dims, strict=False)
    ]
    each = [_outer(r.contiguous(), c.contiguous(), *pattern) for r, c in zip(*pair, strict=True)]
    return torch.stack(each), 0


class _Product(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(values: Tensor, x: Tensor, *sides: Tensor) -> Tensor:
        return _product(values, x, *sides[:3])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        values, x, *sides = ctx.saved_tensors
        needs = ctx.needs_input_grad
        by_values = _Outer.apply(grad, x, *sides) if needs[0] else None
        by_x = _Product.apply(values, grad, *sides[3:], *sides[:3]) if needs[1] else None
        return by_values, by_x, None, None, None, None, None, None


class _Outer(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(rows: Tensor, columns: Tensor, *sides: Tensor) -> Tensor:
        return _outer(rows, columns, *sides[:3])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        rows, columns, *sides = ctx.saved_tensors
        needs = ctx.needs_input_grad
        by_rows = _Product.apply(grad, columns, *sides) if needs[0] else None
        by_columns = _Product.apply(grad, rows, *sides[3:], *sides[:3]) if needs[1] else None
        return by_rows, by_columns, None, None, None, None, None, None


def product(values: Tensor, x: Tensor, *sides: Tensor) -> Tensor:
    """For each row agent the sum of ``values * x`` over its edges.

    Args:
        values: one number for each edge, ``(edges,)``.
        x: ``(batch, agents)`` at the other end, or ``(agents,)``.
        sides: the pattern's CSR form by the rows of the result, then by those of ``x``: six tensors.
    """
    result = _Product.apply(values, x if x.ndim == 2 else x[None], *sides)
    return result if x.ndim == 2 else result[0]


def outer(rows: Tensor, columns: Tensor, *sides: Tensor) -> Tensor:
    """For each edge the sum over the batch of the product of its two ends, ``(edges,)``.

    Args:
        rows: ``(batch, agents)`` at the end whose CSR form comes first.
        columns: ``(batch, agents)`` at the other end.
        sides: six tensors, as in :func:`product`.
    """
    return _Outer.apply(rows, columns, *sides)
