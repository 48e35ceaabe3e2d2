"""Messages between the sites of a connection and the agents of a unit, as code.

Both directions stay lazy. Where a sum of products is recognized, it becomes what an expert would call (``conv2d``, its
two gradients, a sparse product); everything else is an ``index_select`` or ``index_add``, which is always right.
"""

from __future__ import annotations

from functools import singledispatch
from typing import Any

import torch
from torch.nn import functional
from torch.nn.grad import conv2d_weight

from mpgraph.network.axes import BATCH, Axis
from mpgraph.network.incidence import Edges, Incidence, Windows, sizes_of

from .convolution import conv2d_input
from .emitter import Emitter
from .sparse import outer, product
from .terms import Factor, Fold, Term

Lowered = tuple[Factor, bool]  # the result, and whether what it is added to is already in it


def add_up(code: Emitter, factor: Factor, fold: Fold, how: str = "sum") -> Factor:
    """Add up a tensor over the sites of each agent (or take the extremum)."""
    incidence = fold.incidence
    rest = tuple(a for a in factor.axes if a not in fold.sites)
    node = code.full(factor, (*rest, *fold.sites))
    if len(fold.sites) > 1:
        node = code.emit("flatten", node, -len(fold.sites))
    sizes = [code.batch_size() if a is BATCH else a.size for a in rest]
    empty = code.emit("new_zeros", node, (*sizes, incidence.agents + incidence.partial))
    index = code.constant(incidence.places, "places")
    work: dict[str, Any] = {"work": factor.axes}
    if how == "sum":
        node = code.emit(torch.index_add, empty, -1, index, node, **work)
    else:
        reduce, into = f"a{how}", code.emit("expand_as", index, node)
        node = code.emit("scatter_reduce", empty, -1, into, node, reduce, include_self=False, **work)
    if incidence.partial:
        node = code.emit("narrow", node, -1, 0, incidence.agents)
    if len(fold.unit) > 1:
        node = code.emit("unflatten", node, -1, sizes_of(fold.unit))
    return Factor(node, (*rest, *fold.unit))


def lower(incidence: Incidence, code: Emitter, term: Term, into: Factor | None) -> Lowered | None:
    """A contraction over this incidence as one call, added to ``into`` if that is free; ``None`` if unknown."""
    tensors = [f for f in term.factors if f.axes]
    scalars = [f for f in term.factors if not f.axes]
    if len(tensors) != 2:
        return None
    found = _pair(incidence, code, tensors, term, None if scalars else into)
    if found is None or not scalars:
        return found
    node = found[0].node
    for scalar in scalars:
        node = code.emit(torch.mul, node, scalar.node, work=found[0].axes)
    return Factor(node, found[0].axes), False


@singledispatch
def _pair(
    incidence: Incidence, code: Emitter, factors: list[Factor], term: Term, into: Factor | None
) -> Lowered | None:
    """Two tensors over one incidence as one call; each kind of table knows its own."""
    return None


@_pair.register(Windows)
def _windows(
    incidence: Windows, code: Emitter, factors: list[Factor], term: Term, into: Factor | None
) -> Lowered | None:
    options = {k: getattr(incidence, k) for k in ("stride", "padding", "dilation", "groups")}
    if term.fold is not None:
        return _input_gradient(code, factors, term.bound, term.fold, options)
    x = next((f for f in factors if f.gathered is incidence), None)
    (other,) = (f for f in factors if f is not x) if x else (None,)
    count = len(incidence.sites)
    if x is None or other is None or other.gathered or len(x.axes) != 6 + (count == 6):
        return None
    batch, *channels = x.axes[: -count or None]
    names = (*channels, *x.axes[-count:])
    if count == 6:
        out, within, *kernel, height, width = names
    else:
        within, *kernel, height, width = names
        outer = [a for a in other.axes if a not in names and a is not batch]
        if len(outer) != 1:
            return None
        out = outer[0]
    if any(a.is_local for a in (batch, within, out)):
        return None
    window, image = {within, *kernel}, {batch, height, width}
    work: dict[str, Any] = {"work": (batch, out, height, width, *window), "per": 2}
    if term.bound == window and set(other.axes) == window | {out}:
        weight = code.arrange(other, (out, within, *kernel))
        bias = into if into is not None and into.axes == (out,) else None
        node = code.emit(functional.conv2d, x.node, weight, bias and bias.node, **options, **work)
        return Factor(node, (batch, out, height, width)), bias is not None
    if term.bound == image and set(other.axes) == image | {out}:
        error, axes = code.arrange(other, (batch, out, height, width)), (out, within, *kernel)
        node = code.emit(conv2d_weight, x.node, sizes_of(axes), error, **options, **work)
        return Factor(node, axes), False
    return None


def _input_gradient(
    code: Emitter, factors: list[Factor], bound: frozenset[Axis], fold: Fold, options: dict[str, Any]
) -> Lowered | None:
    *channels, kernel_h, kernel_w, height, width = fold.sites
    weight = next((f for f in factors if kernel_h in f.axes and height not in f.axes), None)
    error = next((f for f in factors if height in f.axes and kernel_h not in f.axes), None)
    if weight is None or error is None or any(f.gathered for f in factors) or len(weight.axes) != 4:
        return None
    if channels:
        out, within = channels
    else:
        outer = [a for a in error.axes if a in bound and a not in fold.sites]
        inner = [a for a in weight.axes if a not in bound]
        if len(outer) != 1 or len(inner) != 1:
            return None
        (out,), (within,) = outer, inner
    batch = BATCH
    if set(weight.axes) != {out, within, kernel_h, kernel_w} or set(error.axes) != {batch, out, height, width}:
        return None
    if bound != {*fold.sites, out}:
        return None
    axes = (batch, *fold.unit) if channels else (batch, within, *fold.unit)
    node = code.emit(
        conv2d_input,
        (code.batch_size(), *sizes_of(axes[1:])),
        code.arrange(weight, (out, within, kernel_h, kernel_w)),
        code.arrange(error, (batch, out, height, width)),
        **options,
        work=(batch, out, height, width, within, kernel_h, kernel_w),
        per=2,
    )
    return Factor(node, axes), False


@_pair.register(Edges)
def _edges(incidence: Edges, code: Emitter, factors: list[Factor], term: Term, into: Factor | None) -> Lowered | None:
    ends = [f.gathered for f in factors]
    if term.fold is None:
        if not all(isinstance(i, Edges) and i.pattern is incidence.pattern for i in ends) or ends[0] is ends[1]:
            return None
        post, pre = factors if isinstance(ends[0], Edges) and ends[0].end == "post" else factors[::-1]
        if len(pre.axes) != 2 or pre.axes != post.axes or term.bound != {pre.axes[0]}:
            return None
        tables = _tables(incidence, code, "post")
        node = code.emit(outer, _flat(code, post), _flat(code, pre), *tables, work=pre.axes, per=2)
        return Factor(node, pre.axes[1:]), False
    weight = next((f for f, end in zip(factors, ends, strict=True) if end is None), None)
    x = next((f for f, end in zip(factors, ends, strict=True) if isinstance(end, Edges)), None)
    if weight is None or x is None or x.gathered is incidence or len(weight.axes) != 1 or len(x.axes) > 2:
        return None
    if term.bound != set(weight.axes) or x.axes[-1] is not weight.axes[0]:
        return None
    tables, axes = _tables(incidence, code, incidence.end), (*x.axes[:-1], *term.fold.unit)
    fused = into is not None and len(incidence.unit) == 1 and into.axes in (axes, axes[-1:])
    options = {"into": into.node} if into is not None and fused else {}
    node = code.emit(product, weight.node, _flat(code, x), *tables, work=x.axes, per=2, **options)
    if len(incidence.unit) > 1:
        node = code.emit("unflatten", node, -1, sizes_of(incidence.unit))
    return Factor(node, axes), fused


def _tables(incidence: Edges, code: Emitter, rows: str) -> list[Any]:
    """The pattern as constants of the code: CSR by the rows of the result, then by those of the other end."""
    ends = (rows, "pre" if rows == "post" else "post")
    return [
        code.constant(tensor, f"{name}_{end}")
        for end in ends
        for name, tensor in zip(("starts", "columns", "order", "rows"), incidence.pattern.side(end), strict=True)
    ]


def _flat(code: Emitter, factor: Factor) -> Any:
    """The looked-up tensor of a factor, with its unit axes as one dimension."""
    many = len(factor.gathered.unit) if factor.gathered else 1
    return code.emit("flatten", factor.node, -many) if many > 1 else factor.node
