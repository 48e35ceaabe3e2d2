"""Convolutions: one kernel of weights, used at every position.

A transposed convolution is a convolution with its ends exchanged: what one sends up the other sends down.
"""

from __future__ import annotations

import math
from typing import Any

from mpgraph.arguments import Arguments
from mpgraph.errors import NetworkError

from .axes import Axis
from .connections import Connection, Endpoints, Shape
from .incidence import Windows

Sizes = int | tuple[int, ...]
OPTIONS = {"stride": 1, "padding": 0, "dilation": 1}


class Convolution(Connection):
    """Base of convolutions, from ``(channels, *positions)`` to ``(channels, *positions)``.

    Weights ``(out, in / groups, *kernel)`` as in torch, shared by all positions. Padding positions are kept and
    receive zero.

    Args:
        kernel: its size, one number or one for each dimension of the positions.
        stride, padding, dilation, groups: as in ``torch.nn.Conv2d``.

    Class attributes:
        dims: how many dimensions positions have.
    """

    dims: int

    def __init__(
        self, kernel: Sizes = 3, stride: Sizes = 1, padding: Sizes = 0, dilation: Sizes = 1, groups: int = 1
    ) -> None:
        check = Arguments(self.name, NetworkError)

        def numbers(name: str, value: Any, low: int) -> tuple[int, ...]:
            return check.integers(name, value, low, self.dims)

        self.kernel, self.stride = numbers("kernel", kernel, 1), numbers("stride", stride, 1)
        self.padding, self.dilation = numbers("padding", padding, 0), numbers("dilation", dilation, 1)
        self.groups = check.integer("groups", groups, 1)

    def size(self, pre: Shape, channels: int) -> Shape:
        """Shape of the result for an input of shape ``pre``."""
        return (channels, *self._places(pre))

    def _places(self, image: Shape) -> Shape:
        """How often the window fits along each dimension."""
        return tuple(
            (n + 2 * p - d * (k - 1) - 1) // s + 1
            for n, k, s, p, d in zip(image[1:], self.kernel, self.stride, self.padding, self.dilation, strict=True)
        )

    def _unfit(self, pre: Shape, post: Shape) -> str | None:
        """Why shapes do not fit whatever the window."""
        if len(pre) != self.dims + 1 or len(post) != self.dims + 1:
            wanted = ("channels", *POSITIONS[self.dims])
            return f"{self.name} joins ({', '.join(wanted)}) to the same, got {pre} and {post}"
        if pre[0] % self.groups or post[0] % self.groups:
            return f"{self.name}: {self.groups} groups do not divide {pre[0]} and {post[0]} channels"
        return None

    def check(self, pre: Shape, post: Shape) -> str | None:  # noqa: D102
        if problem := self._unfit(pre, post):
            return problem
        wanted = self.size(pre, post[0])
        if min(wanted) < 1:
            extent = [d * (k - 1) + 1 for k, d in zip(self.kernel, self.dilation, strict=True)]
            return (
                f"{self.name}: a kernel that spans {extent} is larger than its input {pre[1:]} with padding "
                f"{self.padding}"
            )
        return None if wanted == post else f"{self.name} of {pre} gives {wanted}, but the unit has shape {post}"

    def build(self, pre: tuple[Axis, ...], post: tuple[Axis, ...]) -> Endpoints:  # noqa: D102
        out = Axis(post[0].name, post[0].size)
        within = Axis(pre[0].name, (pre[0].size or 0) // self.groups)
        kernel = tuple(Axis(f"kernel.{i}", size) for i, size in enumerate(self.kernel))
        places = tuple(Axis(axis.name, axis.size) for axis in post[1:])
        axes = (out, within, *kernel, *places)
        grouped = self.groups > 1
        unit, sites = (pre, axes) if grouped else (pre[1:], axes[2:])
        windows = Windows(unit, sites, self.stride, self.padding, self.dilation, self.groups)
        at_post = dict(zip(post, (out, *places), strict=True))
        return Endpoints(axes, {} if grouped else {pre[0]: within}, at_post, places, windows)

    def fans(self, pre: Shape, post: Shape) -> tuple[int, int]:  # noqa: D102
        area = math.prod(self.kernel)
        return pre[0] // self.groups * area, post[0] // self.groups * area

    def __repr__(self) -> str:
        extra = "".join(
            f", {name}={value[0] if len(set(value)) == 1 else value}"
            for name, value, default in ((name, getattr(self, name), default) for name, default in OPTIONS.items())
            if value != (default,) * self.dims
        )
        groups = f", groups={self.groups}" * (self.groups > 1)
        return f"{self.name}({'x'.join(map(str, self.kernel))}{extra}{groups})"


class Conv1d(Convolution):
    """One-dimensional convolution from ``(channels, length)`` to ``(channels, length)``; see :class:`Convolution`."""

    dims = 1


class Conv2d(Convolution):
    """Two-dimensional convolution from ``(channels, height, width)`` to ``(channels, height, width)``.

    Weights ``(out, in / groups, kernel, kernel)`` as in torch, shared by all positions. Padding positions are kept and
    receive zero.

    Args:
        kernel: its size, one number or two.
        stride, padding, dilation, groups: as in ``torch.nn.Conv2d``.
    """

    dims = 2


class Conv3d(Convolution):
    """Three-dimensional convolution from ``(channels, depth, height, width)`` to the same; see :class:`Convolution`."""

    dims = 3


class TransposedConvolution(Convolution):
    """Base of transposed convolutions: a convolution from ``post`` to ``pre``, used the other way round.

    Weights ``(in, out / groups, *kernel)``, as in torch.

    Args:
        kernel: its size, one number or one for each dimension of the positions.
        stride, padding, dilation, groups: as in ``torch.nn.ConvTranspose2d``. Its ``output_padding`` is what the size
            of ``post`` has beyond the smallest that fits.
    """

    def size(self, pre: Shape, channels: int, output_padding: Sizes = 0) -> Shape:
        """Shape of the result for an input of shape ``pre``."""
        beyond = (output_padding,) * self.dims if isinstance(output_padding, int) else output_padding
        options = (self.kernel, self.stride, self.padding, self.dilation, beyond)
        sizes = (
            (n - 1) * s - 2 * p + d * (k - 1) + 1 + more for n, k, s, p, d, more in zip(pre[1:], *options, strict=True)
        )
        return (channels, *sizes)

    def check(self, pre: Shape, post: Shape) -> str | None:  # noqa: D102
        if problem := self._unfit(pre, post):
            return problem
        if self._places(post) == pre[1:]:
            return None
        return f"{self.name} of {pre} gives {self.size(pre, post[0])}, but the unit has shape {post}"

    def build(self, pre: tuple[Axis, ...], post: tuple[Axis, ...]) -> Endpoints:  # noqa: D102
        other = super().build(post, pre)
        return Endpoints(other.axes, other.post, other.pre, other.shared, None, other.pre_incidence)


class ConvTranspose1d(TransposedConvolution):
    """From ``(channels, length)`` to a longer one; see :class:`TransposedConvolution`."""

    dims = 1


class ConvTranspose2d(TransposedConvolution):
    """From ``(channels, height, width)`` to a larger one; see :class:`TransposedConvolution`."""

    dims = 2


class ConvTranspose3d(TransposedConvolution):
    """From ``(channels, depth, height, width)`` to a larger one; see :class:`TransposedConvolution`."""

    dims = 3


POSITIONS = {1: ("length",), 2: ("height", "width"), 3: ("depth", "height", "width")}
