"""Which agent of a unit each synapse joins, where that is not one axis for one axis.

A synapse of a dense connection has the axes of both its ends, so a message is renamed on its way. The synapse of a
convolution at offset ``(k, l)``, used at position ``(i, j)``, joins the pixel ``(i s + k d - p, j s + l d - p)``; an
edge of a sparse pattern joins the agents that a list names. Such an end is an :class:`Incidence`: a table from *sites*
(axes of the connection) to agents of the unit. Towards the connection a message is looked up, towards the unit it is
added up.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from .axes import Axis


def sizes_of(axes: Sequence[Axis]) -> tuple[int, ...]:
    """Their lengths."""
    return tuple(axis.size or 0 for axis in axes)


class Incidence(ABC):
    """From sites of a connection to agents of a unit.

    Attributes:
        unit: axes of the unit that are looked up.
        sites: axes of the connection that say where.
        partial: whether some sites have no agent (padding); these receive zero.
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
        """How many sites join each agent; shape of the unit."""
        counts = torch.bincount(self.places, minlength=self.agents + 1)[: self.agents]
        return counts.reshape(sizes_of(self.unit))

    @property
    def full_degrees(self) -> Tensor:
        """How many sites would join each agent if nothing ended at an edge; shape of the unit."""
        return self.degrees

    def inside(self) -> Tensor:
        """One for each site that has an agent, zero for padding."""
        return (self.grid >= 0).to(torch.get_default_dtype())

    @property
    def agents(self) -> int:
        """Number of agents at the unit's end."""
        return math.prod(sizes_of(self.unit))


class Windows(Incidence):
    """Sites ``(kh, kw, ho, wo)`` of a convolution over pixels ``(h, w)``, or as many dimensions as the stride has.

    With groups the channel is part of it: sites ``(out, in, kh, kw, ho, wo)`` over ``(channels, h, w)``.
    """

    def __init__(
        self,
        unit: Sequence[Axis],
        sites: Sequence[Axis],
        stride: tuple[int, ...],
        padding: tuple[int, ...],
        dilation: tuple[int, ...],
        groups: int,
    ) -> None:
        super().__init__(unit, sites)
        self.stride, self.padding, self.dilation, self.groups = stride, padding, dilation, groups
        self.partial = any(padding)

    def table(self) -> Tensor:  # noqa: D102
        dims = len(self.stride)
        sizes, pixels = sizes_of(self.sites)[-2 * dims :], sizes_of(self.unit)[-dims:]
        table = torch.zeros((), dtype=torch.long, device="cpu")
        outside = torch.zeros((), dtype=torch.bool, device="cpu")
        for i, pixel in enumerate(pixels):
            place = (
                torch.arange(sizes[dims + i], device="cpu")[None] * self.stride[i]
                + torch.arange(sizes[i], device="cpu")[:, None] * self.dilation[i]
                - self.padding[i]
            )
            place = place.reshape([sizes[j] if j % dims == i else 1 for j in range(2 * dims)])
            table, outside = table * pixel + place, outside | (place < 0) | (place >= pixel)
        if len(self.unit) > dims:
            out, within = sizes_of(self.sites)[:2]
            group = torch.arange(out, device="cpu") // (out // self.groups)
            channel = group[:, None] * within + torch.arange(within, device="cpu")
            table = channel.reshape(out, within, *[1] * (2 * dims)) * math.prod(pixels) + table
        return torch.where(outside, -1, table).expand(sizes_of(self.sites))

    @property
    def full_degrees(self) -> Tensor:  # noqa: D102 - every entry of the kernel, whatever the stride
        dims = len(self.stride)
        channels, kernel = sizes_of(self.sites)[: -2 * dims], sizes_of(self.sites)[-2 * dims : -dims]
        count = math.prod(kernel) * (channels[0] // self.groups if channels else 1)
        return torch.full(sizes_of(self.unit), count, device="cpu")


class Pattern:
    """Which agents a list of edges joins.

    Args:
        pre: flat index of each edge's source, ``(edges,)``.
        post: flat index of each edge's target.
        sizes: number of agents at the source's and the target's end.
    """

    def __init__(self, pre: Tensor, post: Tensor, sizes: tuple[int, int]) -> None:
        self.pre, self.post, self.sizes = pre, post, sizes

    def side(self, end: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The CSR form whose rows are the agents of one end: row starts, columns, order of the edges, rows."""
        return self.by_post if end == "post" else self.by_pre

    @cached_property
    def by_post(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """CSR with targets as rows."""
        return _compressed(self.post, self.pre, self.sizes[1])

    @cached_property
    def by_pre(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """CSR with sources as rows."""
        return _compressed(self.pre, self.post, self.sizes[0])


def _compressed(row: Tensor, column: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """CSR form; the order of the edges is empty where they are in order already, which saves a permutation.

    Rows and columns are those of the edges in the order of the CSR form.
    """
    count = torch.bincount(row, minlength=size)
    starts = torch.cat([count.new_zeros(1), count.cumsum(0)])
    order = row[:0] if bool((row[1:] >= row[:-1]).all()) else torch.argsort(row, stable=True)
    rows, columns = (row[order], column[order]) if len(order) else (row, column)
    small = torch.int32 if max(len(row), size) < 2**31 else torch.int64  # the kernels would convert at each call
    return starts.to(small), columns.to(small), order, rows.to(small)


class Edges(Incidence):
    """One end of a sparse pattern: each edge is a site."""

    def __init__(self, unit: Sequence[Axis], sites: Sequence[Axis], pattern: Pattern, end: str) -> None:
        super().__init__(unit, sites)
        self.pattern, self.end = pattern, end

    def table(self) -> Tensor:  # noqa: D102
        return self.pattern.pre if self.end == "pre" else self.pattern.post
