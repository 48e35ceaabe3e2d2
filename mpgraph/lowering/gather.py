"""Messages between the sites of a connection and the agents of a unit, as code.

Both directions stay lazy. Where a sum of products is recognized, it becomes what an expert would call (``conv2d``, its
two gradients, a sparse product); everything else is an ``index_select`` or ``index_add``, which is always right.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Collection, Sequence
from functools import singledispatch
from typing import Any, NamedTuple

import torch
from torch import fx

from mpgraph.network.axes import BATCH, Axis, ordered
from mpgraph.network.incidence import Edges, Incidence, Windows, sizes_of

from .convolution import CALLS, Calls
from .emitter import Emitter
from .sparse import outer, product
from .terms import Factor, Fold, Term

Axes = Sequence[Axis]
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


class Roles(NamedTuple):
    """What the axes of two factors are to each other, but for positions and kernel; each becomes one axis of a call.

    Attributes:
        groups: both have it, and so has the result: a grouped convolution.
        summed: both have it, and it is summed.
        one, two: only this factor has it, and the result.
    """

    groups: tuple[Axis, ...]
    summed: tuple[Axis, ...]
    one: tuple[Axis, ...]
    two: tuple[Axis, ...]

    @classmethod
    def of(cls, one: Factor, two: Factor, bound: frozenset[Axis], known: Collection[Axis]) -> Roles:
        """Those of all axes that are not ``known``."""
        first, second = ([a for a in ordered(f.axes) if a not in known] for f in (one, two))
        shared = [a for a in first if a in second]
        return cls(
            tuple(a for a in shared if a not in bound),
            tuple(a for a in shared if a in bound),
            tuple(a for a in first if a not in shared),
            tuple(a for a in second if a not in shared),
        )


@_pair.register(Windows)
def _windows(
    incidence: Windows, code: Emitter, factors: list[Factor], term: Term, into: Factor | None
) -> Lowered | None:
    """Convolutions; axes beside those of one become part of the batch, of the channels, or groups."""
    x = next((f for f in factors if f.gathered is incidence), None)
    if sum(f.gathered is not None for f in factors) != (x is not None) or (x is None) != (term.fold is not None):
        return None
    sites = x.axes[-len(incidence.sites) :] if x else term.fold.sites if term.fold else ()  # as this product calls them
    dims = len(incidence.stride)
    channels, kernel, places = sites[: -2 * dims], sites[-2 * dims : -dims], sites[-dims:]
    options = {k: getattr(incidence, k) for k in ("stride", "padding", "dilation")}
    others = [f for f in factors if f is not x]
    weight = next((f for f in others if set(kernel) <= set(f.axes) and not set(places) & set(f.axes)), None)
    error = next((f for f in others if set(places) <= set(f.axes) and not set(kernel) & set(f.axes)), None)
    one, two = (error, weight) if x is None else (x, weight or error)
    if one is None or two is None or any(set(channels) - {*one.axes, *two.axes}):
        return None
    known = {*channels, *kernel, *places}
    roles = Roles.of(one, two, term.bound, known)
    if any(a in term.bound for a in (*roles.one, *roles.two)):
        return None
    made = _Convolution(code, incidence, roles, tuple(channels), options)
    if x is None:
        return made.input_gradient(one, two, term, kernel, places)
    if weight is not None:
        return made.forward(x, weight, term, kernel, places, into)
    return made.weight_gradient(x, two, term, kernel, places)


class _Convolution(NamedTuple):
    """One call for a product over windows, whatever other axes its factors have."""

    code: Emitter
    incidence: Windows
    roles: Roles
    channels: tuple[Axis, ...]  # outputs, and inputs of a group, of a convolution with groups
    options: dict[str, Any]

    @property
    def dims(self) -> int:
        """Along how many dimensions the window moves."""
        return len(self.incidence.stride)

    @property
    def calls(self) -> Calls:
        """The functions of that many dimensions."""
        return CALLS[self.dims]

    def forward(
        self, x: Factor, weight: Factor, term: Term, kernel: Axes, places: Axes, into: Factor | None
    ) -> Lowered | None:
        """A convolution."""
        groups, summed, batch, outputs = self.roles
        out, within = (self.channels[:1], self.channels[1:]) if self.channels else (outputs, summed)
        if term.bound != {*within, *kernel} or (self.channels and (summed or outputs)):
            return None
        above = [*groups, *out]
        bias = into if into is not None and not groups and into.axes == out else None
        node = self.code.emit(
            self.calls.forward,
            self.image(x, batch, (*groups, *(() if self.channels else summed)), kernel),
            self.folded(weight, above, within, kernel),
            bias and bias.node,
            **self.settings(self.skips(kernel)),
            work=(*batch, *above, *places, *within, *kernel),
            per=2,
        )
        return self.unfolded(node, (batch, above), places), bias is not None

    def input_gradient(self, error: Factor, weight: Factor, term: Term, kernel: Axes, places: Axes) -> Lowered | None:
        """Its transpose: what flows back to the unit below."""
        groups, summed, batch, inputs = self.roles
        assert term.fold is not None
        out, within = (self.channels[:1], self.channels[1:]) if self.channels else (summed, inputs)
        if term.bound != {*term.fold.sites, *out} or (self.channels and (summed or inputs)):
            return None
        pixels = term.fold.unit[-self.dims :]
        below = (*groups, *(term.fold.unit[: -self.dims] if self.channels else within))
        node = self.code.emit(
            self.calls.input,
            (self.length(batch), self.length(below), *sizes_of(pixels)),
            self.folded(weight, (*groups, *out), within, kernel),
            self.folded(error, batch, (*groups, *out), places),
            **self.settings(),
            work=(*batch, *groups, *out, *places, *within, *kernel),
            per=2,
        )
        return self.unfolded(node, (batch, below), pixels), False

    def weight_gradient(self, x: Factor, error: Factor, term: Term, kernel: Axes, places: Axes) -> Lowered | None:
        """A product of the units at both ends, summed over positions."""
        groups, summed, inputs, outputs = self.roles
        out, within = (self.channels[:1], self.channels[1:]) if self.channels else (outputs, inputs)
        if term.bound != {*summed, *places} or (self.channels and (inputs or outputs)):
            return None
        above = (*groups, *out)
        node = self.code.emit(
            self.calls.weight,
            self.image(x, summed, (*groups, *(() if self.channels else inputs)), kernel),
            (self.length(above), self.length(within), *sizes_of(kernel)),
            self.folded(error, summed, above, places),
            **self.settings(self.skips(kernel)),
            work=(*summed, *above, *places, *within, *kernel),
            per=2,
        )
        return self.unfolded(node, (above, within), kernel), False

    def settings(self, skipped: bool = False) -> dict[str, Any]:
        """Stride (of an image from which places are ``skipped`` already, 1), padding, dilation and groups."""
        stride = {"stride": (1,) * self.dims} if skipped else {}
        return {**self.options, **stride, "groups": self.incidence.groups * math.prod(sizes_of(self.roles.groups))}

    def skips(self, kernel: Axes) -> bool:
        """Whether it reads single places and leaves others out, which then are left out before the call.

        oneDNN without AVX-512 writes outside its memory when it makes the weight gradient of such a convolution from
        an image whose channels lie last (torch 2.13; the process aborts).
        """
        return set(sizes_of(kernel)) == {1} and max(self.incidence.stride) > 1 and not any(self.incidence.padding)

    def image(self, x: Factor, batch: Axes, channels: Axes, kernel: Axes) -> fx.Node:
        """What is looked up, before that: ``(batch, channels, *pixels)``, or of those only the places read."""
        sites, unit = self.incidence.sites, self.incidence.unit
        whole = Factor(x.node, (*x.axes[: -len(sites)], *unit))
        node = self.folded(whole, batch, (*channels, *unit[: -self.dims]), unit[-self.dims :])
        if self.skips(kernel):
            step = (slice(None, None, s) for s in self.incidence.stride)
            node = self.code.emit(operator.getitem, node, (slice(None), slice(None), *step))
        return node

    def folded(self, factor: Factor, first: Axes, second: Axes, last: Axes) -> fx.Node:
        """The tensor with two groups of axes as one dimension each, and then the last ones."""
        node = self.code.arrange(factor, (*first, *second, *last))
        for position, axes in ((len(first), second), (0, first)):
            if len(axes) > 1:
                node = self.code.emit("flatten", node, position, position + len(axes) - 1)
            elif not axes:
                node = self.code.emit("unsqueeze", node, position)
        return node

    def unfolded(self, node: fx.Node, groups: tuple[Axes, Axes], last: Axes) -> Factor:
        """Its inverse, for a result."""
        for position, axes in ((1, groups[1]), (0, groups[0])):
            if len(axes) > 1:
                sizes = [self.code.batch_size() if a is BATCH else a.size for a in axes]
                node = self.code.emit("unflatten", node, position, sizes)
            elif not axes:
                node = self.code.emit("squeeze", node, position)
        made = Factor(node, (*groups[0], *groups[1], *last))
        axes = ordered(made.axes)
        return Factor(self.code.arrange(made, axes), axes)

    def length(self, axes: Axes) -> Any:
        """Of several axes as one dimension."""
        size = math.prod(a.size for a in axes if a.size is not None)
        if BATCH not in axes:
            return size
        return self.code.emit(operator.mul, self.code.batch_size(), size) if size > 1 else self.code.batch_size()


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
