"""Which agent of a unit each synapse meets, where that is not one axis for one axis.

A synapse of a dense connection has the axes of both its ends, so a message is renamed on its way. The synapse of a
convolution at offset ``(k, l)``, used at position ``(i, j)``, meets the pixel ``(i s + k d - p, j s + l d - p)``; an
edge of a sparse pattern meets the agents that a list names. Such an end is an :class:`Incidence`: a table from *sites*
(axes of the connection) to agents of the unit. Towards the connection a message is looked up, towards the unit it is
added up.

Both stay lazy. Where a sum of products is recognised, it becomes what an expert calls (``conv2d``, its two gradients, a
sparse product); everything else is an ``index_select`` or ``index_add`` and right.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn import grad as convolution

from .algebra import BATCH, Axis, Factor, Fold, Term, Value
from .sparse import Pattern, outer, product

if TYPE_CHECKING:
    from .recorder import Recorder

Lowered = tuple[Factor, bool]  # the result, and whether what it is added to is already in it


class Incidence(ABC):
    """From sites of a connection to agents of a unit.

    Attributes:
        unit: axes of the unit that are looked up.
        sites: axes of the connection that say where.
        partial: whether some sites meet nobody (padding); these hear zero.
    """

    partial = False

    def __init__(self, unit: Sequence[Axis], sites: Sequence[Axis]) -> None:
        self.unit, self.sites = tuple(unit), tuple(sites)

    @abstractmethod
    def table(self) -> Tensor:
        """For each site the flat index of its agent in the unit, -1 for none; shape of the sites."""

    @cached_property
    def grid(self) -> Tensor:
        """:meth:`table`, kept."""
        return self.table()

    @cached_property
    def places(self) -> Tensor:
        """:meth:`table`, flat, with the number of agents where there is none."""
        flat = self.grid.flatten()
        return torch.where(flat < 0, self.agents, flat) if self.partial else flat

    @cached_property
    def degrees(self) -> Tensor:
        """How many sites meet each agent; shape of the unit."""
        counts = torch.bincount(self.places, minlength=self.agents + 1)[: self.agents]
        return counts.reshape(_sizes(self.unit))

    @property
    def full_degrees(self) -> Tensor:
        """How many sites each agent would meet if nothing ended at an edge; shape of the unit."""
        return self.degrees

    def inside(self) -> Tensor:
        """One for each site that meets an agent, else zero."""
        return (self.grid >= 0).to(torch.get_default_dtype())

    @property
    def agents(self) -> int:
        """Number of agents at the unit's end."""
        return math.prod(_sizes(self.unit))

    def look_up(self, code: Recorder, factor: Factor) -> Factor:
        """Carry out a lazy look-up."""
        node = factor.node
        if len(self.unit) > 1:
            node = code.emit("flatten", node, -len(self.unit))
        if self.partial:
            node = code.emit(functional.pad, node, (0, 1))
        index = code.constant(self.places, "places")
        node = code.emit(torch.index_select, node, -1, index, work=factor.axes, per=0)
        if len(self.sites) > 1:
            node = code.emit("unflatten", node, -1, _sizes(self.sites))
        return Factor(node, factor.axes)

    def add_up(self, code: Recorder, factor: Factor, fold: Fold, how: str = "sum") -> Factor:
        """Add up a tensor over the sites of each agent (or take the extremum)."""
        rest = tuple(a for a in factor.axes if a not in fold.sites)
        node = code.full(Value(code, ()).like(factor), (*rest, *fold.sites))
        if len(fold.sites) > 1:
            node = code.emit("flatten", node, -len(fold.sites))
        sizes = [code.batch_size() if a is BATCH else a.size for a in rest]
        empty = code.emit("new_zeros", node, (*sizes, self.agents + self.partial))
        index = code.constant(self.places, "places")
        work: dict[str, Any] = {"work": factor.axes}
        if how == "sum":
            node = code.emit(torch.index_add, empty, -1, index, node, **work)
        else:
            reduce, into = f"a{how}", code.emit("expand_as", index, node)
            node = code.emit("scatter_reduce", empty, -1, into, node, reduce, include_self=False, **work)
        if self.partial:
            node = code.emit("narrow", node, -1, 0, self.agents)
        if len(fold.unit) > 1:
            node = code.emit("unflatten", node, -1, _sizes(fold.unit))
        return Factor(node, (*rest, *fold.unit))

    def lower(self, code: Recorder, term: Term, into: Factor | None) -> Lowered | None:
        """A contraction over this incidence as one call, added to ``into`` if that is free; ``None`` if unknown."""
        tensors = [f for f in term.factors if f.axes]
        scalars = [f for f in term.factors if not f.axes]
        if len(tensors) != 2:
            return None
        found = self._pair(code, tensors, term, None if scalars else into)
        if found is None or not scalars:
            return found
        node = found[0].node
        for scalar in scalars:
            node = code.emit(torch.mul, node, scalar.node, work=found[0].axes)
        return Factor(node, found[0].axes), False

    def _pair(self, code: Recorder, factors: list[Factor], term: Term, into: Factor | None) -> Lowered | None:
        return None


def _sizes(axes: Sequence[Axis]) -> tuple[int, ...]:
    return tuple(axis.size or 0 for axis in axes)


class Windows(Incidence):
    """Sites ``(kh, kw, ho, wo)`` of a convolution over pixels ``(h, w)``.

    With groups the channel is part of it: sites ``(out, in, kh, kw, ho, wo)`` over ``(channels, h, w)``.
    """

    def __init__(
        self,
        unit: Sequence[Axis],
        sites: Sequence[Axis],
        stride: tuple[int, int],
        padding: tuple[int, int],
        dilation: tuple[int, int],
        groups: int,
    ) -> None:
        super().__init__(unit, sites)
        self.stride, self.padding, self.dilation, self.groups = stride, padding, dilation, groups
        self.partial = any(padding)

    def table(self) -> Tensor:  # noqa: D102
        sizes, pixels = _sizes(self.sites)[-4:], _sizes(self.unit)[-2:]
        rows, columns = (
            torch.arange(sizes[2 + i])[None] * self.stride[i]
            + torch.arange(sizes[i])[:, None] * self.dilation[i]
            - self.padding[i]
            for i in (0, 1)
        )
        rows, columns = rows[:, None, :, None], columns[None, :, None, :]
        outside = (rows < 0) | (rows >= pixels[0]) | (columns < 0) | (columns >= pixels[1])
        table = rows * pixels[1] + columns
        if len(self.unit) == 3:
            out, within = _sizes(self.sites)[:2]
            group = torch.arange(out) // (out // self.groups)
            channel = (group[:, None] * within + torch.arange(within))[..., None, None, None, None]
            table = channel * (pixels[0] * pixels[1]) + table
        return torch.where(outside, -1, table).expand(_sizes(self.sites))

    @property
    def full_degrees(self) -> Tensor:  # noqa: D102 - every entry of the kernel, whatever the stride
        *channels, height, width = _sizes(self.sites)[:-2]
        count = height * width * (channels[0] // self.groups if channels else 1)
        return torch.full(_sizes(self.unit), count)

    def _pair(self, code: Recorder, factors: list[Factor], term: Term, into: Factor | None) -> Lowered | None:
        options = {k: getattr(self, k) for k in ("stride", "padding", "dilation", "groups")}
        if term.fold is not None:
            return self._input_gradient(code, factors, term.bound, term.fold, options)
        x = next((f for f in factors if f.gathered is self), None)
        (other,) = (f for f in factors if f is not x) if x else (None,)
        count = len(self.sites)
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
            node = code.emit(convolution.conv2d_weight, x.node, _sizes(axes), error, **options, **work)
            return Factor(node, axes), False
        return None

    def _input_gradient(
        self, code: Recorder, factors: list[Factor], bound: frozenset[Axis], fold: Fold, options: dict[str, Any]
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
            convolution.conv2d_input,
            (code.batch_size(), *_sizes(axes[1:])),
            code.arrange(weight, (out, within, kernel_h, kernel_w)),
            code.arrange(error, (batch, out, height, width)),
            **options,
            work=(batch, out, height, width, within, kernel_h, kernel_w),
            per=2,
        )
        return Factor(node, axes), False


class Edges(Incidence):
    """One end of a sparse pattern: each edge is a site."""

    def __init__(self, unit: Sequence[Axis], sites: Sequence[Axis], pattern: Pattern, end: str) -> None:
        super().__init__(unit, sites)
        self.pattern, self.end = pattern, end

    def table(self) -> Tensor:  # noqa: D102
        return self.pattern.pre if self.end == "pre" else self.pattern.post

    def _pair(self, code: Recorder, factors: list[Factor], term: Term, into: Factor | None) -> Lowered | None:
        ends = [f.gathered for f in factors]
        if term.fold is None:
            if not all(isinstance(i, Edges) and i.pattern is self.pattern for i in ends) or ends[0] is ends[1]:
                return None
            post, pre = factors if isinstance(ends[0], Edges) and ends[0].end == "post" else factors[::-1]
            if len(pre.axes) != 2 or pre.axes != post.axes or term.bound != {pre.axes[0]}:
                return None
            tables = self._tables(code, "post")
            node = code.emit(outer, _flat(code, post), _flat(code, pre), *tables, work=pre.axes, per=2)
            return Factor(node, pre.axes[1:]), False
        weight = next((f for f, end in zip(factors, ends, strict=True) if end is None), None)
        x = next((f for f, end in zip(factors, ends, strict=True) if isinstance(end, Edges)), None)
        if weight is None or x is None or x.gathered is self or len(weight.axes) != 1 or len(x.axes) > 2:
            return None
        if term.bound != set(weight.axes) or x.axes[-1] is not weight.axes[0]:
            return None
        tables, axes = self._tables(code, self.end), (*x.axes[:-1], *term.fold.unit)
        fused = into is not None and len(self.unit) == 1 and into.axes in (axes, axes[-1:])
        options = {"into": into.node} if into is not None and fused else {}
        node = code.emit(product, weight.node, _flat(code, x), *tables, work=x.axes, per=2, **options)
        if len(self.unit) > 1:
            node = code.emit("unflatten", node, -1, _sizes(self.unit))
        return Factor(node, axes), fused

    def _tables(self, code: Recorder, rows: str) -> list[Any]:
        """The pattern as constants of the code: CSR by the rows of the result, then by those of the other end."""
        ends = (rows, "pre" if rows == "post" else "post")
        return [
            code.constant(tensor, f"{name}_{end}")
            for end in ends
            for name, tensor in zip(("starts", "columns", "order"), self.pattern.side(end), strict=True)
        ]


def _flat(code: Recorder, factor: Factor) -> Any:
    """The looked-up tensor of a factor, with its unit axes as one dimension."""
    many = len(factor.gathered.unit) if factor.gathered else 1
    return code.emit("flatten", factor.node, -many) if many > 1 else factor.node
