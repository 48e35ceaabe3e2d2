"""Operations: nodes without weights whose operands are whole units - pooling, reshaping, products, concatenation.

An operation says what comes out (``apply``) and how a backward message reaches its operands (``vjp``, by
``torch.func.vjp`` unless given). Any function of tensors is one too. No rule needs a line about any of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from copy import copy
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from mpgraph.arguments import Arguments
from mpgraph.errors import NetworkError

from .activations import Activation

aten = torch.ops.aten
Shape = tuple[int, ...]


class Operation(Activation):
    """Base of operations. Subclass it and define ``shape`` and ``apply``."""

    over = "node"
    operands: tuple[Shape, ...] = ()

    def on(self, *operands: Shape) -> Operation:
        """This operation for operands of these shapes, remembered in ``operands``.

        Raises:
            NetworkError: for operands that do not fit.
        """
        own = copy(self)
        own.operands, own.size = operands, self.shape(*operands)
        return own

    def shape(self, *operands: Shape) -> Shape:
        """Shape of the result for operands of these shapes.

        Raises:
            NetworkError: for operands that do not fit.
        """
        raise NotImplementedError(f"{type(self).__name__} must define shape(self, *operands)")

    def apply(self, *z: Tensor) -> Tensor:
        """The result ``(batch, *shape)`` for operands ``(batch, *their shape)``."""
        raise NotImplementedError(f"{type(self).__name__} must define apply(self, *z)")

    def vjp(self, e: Tensor, z: Any, y: Tensor) -> tuple[Tensor, ...]:
        """For each operand the transposed derivative of ``apply`` at ``z``, times ``e``."""
        _, back = torch.func.vjp(self.apply, *z)  # type: ignore[misc]
        return back(e)


def _one(name: str, operands: Sequence[Shape]) -> Shape:
    if len(operands) != 1:
        raise NetworkError(f"{name} takes one operand, got {len(operands)}")
    return operands[0]


class _Pool(Operation):
    inline = True

    def __init__(
        self,
        size: int | tuple[int, int] = 2,
        stride: int | tuple[int, int] | None = None,
        padding: int | tuple[int, int] = 0,
    ) -> None:
        check = Arguments(self.name, NetworkError)
        self.window = check.pair("size", size, 1)
        self.stride = self.window if stride is None else check.pair("stride", stride, 1)
        self.padding = check.pair("padding", padding, 0)
        if any(2 * p > k for p, k in zip(self.padding, self.window, strict=True)):
            check.refuse("padding", padding, f"at most half the size {self.window}")

    def shape(self, *operands: Shape) -> Shape:
        """``(channels, height, width)``, smaller.

        Raises:
            NetworkError: for an operand that is no image, or smaller than the window.
        """
        image = _one(self.name, operands)
        if len(image) != 3:
            raise NetworkError(f"{self.name} needs an operand (channels, height, width), got {image}")
        size = [
            (n + 2 * p - k) // s + 1
            for n, k, s, p in zip(image[1:], self.window, self.stride, self.padding, strict=True)
        ]
        if min(size) < 1:
            raise NetworkError(f"{self.name}: a window of {self.window} is larger than its input {image[1:]}")
        return (image[0], *size)

    def __repr__(self) -> str:
        stride = "" if self.stride == self.window else f", stride={self.stride}"
        return (
            f"{self.name}({'x'.join(map(str, self.window))}{stride}{f', padding={self.padding}' * any(self.padding)})"
        )


class MaxPool(_Pool):
    """Largest value of each window; the backward message goes to the first agent that had it.

    Args:
        size: of the window, one number or two.
        stride: between windows; by default they do not overlap.
        padding: on every side, filled with minus infinity.
    """

    def apply(self, *z: Tensor) -> Tensor:  # noqa: D102
        return aten.max_pool2d_with_indices.default(z[0], self.window, self.stride, self.padding)[0]

    def vjp(self, e: Tensor, z: Any, y: Tensor) -> tuple[Tensor, ...]:  # noqa: D102
        window = (self.window, self.stride, self.padding)
        chosen = aten.max_pool2d_with_indices.default(z[0], *window)[1]  # written once: the code shares the call
        return (aten.max_pool2d_with_indices_backward.default(e, z[0], *window, (1, 1), False, chosen),)


class AvgPool(_Pool):
    """Mean of each window, padding counted as zeros.

    Args:
        size: of the window, one number or two.
        stride: between windows; by default they do not overlap.
        padding: on every side, filled with zeros.
    """

    def apply(self, *z: Tensor) -> Tensor:  # noqa: D102
        return functional.avg_pool2d(z[0], self.window, self.stride, self.padding)

    def vjp(self, e: Tensor, z: Any, y: Tensor) -> tuple[Tensor, ...]:  # noqa: D102
        window = (self.window, self.stride, self.padding)
        return (aten.avg_pool2d_backward.default(e, z[0], *window, False, True, None),)


class GlobalAvgPool(Operation):
    """Mean of each channel over all positions: ``(channels, height, width)`` to ``(channels,)``."""

    inline = True

    def shape(self, *operands: Shape) -> Shape:  # noqa: D102
        image = _one(self.name, operands)
        if len(image) != 3:
            raise NetworkError(f"{self.name} needs an operand (channels, height, width), got {image}")
        return image[:1]

    def apply(self, *z: Tensor) -> Tensor:  # noqa: D102
        return torch.mean(z[0], (-2, -1))

    def vjp(self, e: Tensor, z: Any, y: Tensor) -> tuple[Tensor, ...]:  # noqa: D102
        _, height, width = self.operands[0]
        return ((e / (height * width)).unsqueeze(-1).unsqueeze(-1).expand_as(z[0]),)


class Reshape(Operation):
    """The same numbers in another shape.

    Args:
        wanted: the new shape of one example.
    """

    inline = True

    def __init__(self, *wanted: int | tuple[int, ...]) -> None:
        if len(wanted) == 1 and isinstance(wanted[0], tuple):
            wanted = wanted[0]
        self.wanted = Arguments("reshape", NetworkError).shape("shape", wanted)

    def shape(self, *operands: Shape) -> Shape:  # noqa: D102
        given = _one(self.name, operands)
        if math.prod(given) != math.prod(self.wanted):
            raise NetworkError(
                f"reshape: {given} has {math.prod(given)} numbers, {self.wanted} has {math.prod(self.wanted)}"
            )
        return self.wanted

    def apply(self, *z: Tensor) -> Tensor:  # noqa: D102
        return z[0].reshape((-1, *self.wanted))

    def vjp(self, e: Tensor, z: Any, y: Tensor) -> tuple[Tensor, ...]:  # noqa: D102
        return (e.reshape_as(z[0]),)


class Flatten(Operation):
    """All numbers of an example in one row."""

    inline = True

    def shape(self, *operands: Shape) -> Shape:  # noqa: D102
        return (math.prod(_one(self.name, operands)),)

    def apply(self, *z: Tensor) -> Tensor:  # noqa: D102
        return z[0].flatten(1)

    def vjp(self, e: Tensor, z: Any, y: Tensor) -> tuple[Tensor, ...]:  # noqa: D102
        return (e.reshape_as(z[0]),)


class Product(Operation):
    """The product of its operands, number by number: a gate."""

    inline = True

    def shape(self, *operands: Shape) -> Shape:  # noqa: D102
        if len(operands) < 2 or len(set(operands)) > 1:
            raise NetworkError(f"product needs at least two operands of one shape, got {list(operands)}")
        return operands[0]

    def apply(self, *z: Tensor) -> Tensor:  # noqa: D102
        return math.prod(z[1:], start=z[0])

    def vjp(self, e: Tensor, z: Any, y: Tensor) -> tuple[Tensor, ...]:  # noqa: D102
        return tuple(math.prod([*z[:i], *z[i + 1 :]], start=e) for i in range(len(z)))


class Concat(Operation):
    """Operands one after the other along their first dimension (channels of an image)."""

    inline = True

    def shape(self, *operands: Shape) -> Shape:  # noqa: D102
        if len({shape[1:] for shape in operands}) > 1:
            raise NetworkError(f"concat: operands differ beyond the first dimension: {list(operands)}")
        return (sum(shape[0] for shape in operands), *operands[0][1:])

    def apply(self, *z: Tensor) -> Tensor:  # noqa: D102
        return torch.cat(list(z), 1)

    def vjp(self, e: Tensor, z: Any, y: Tensor) -> tuple[Tensor, ...]:  # noqa: D102
        sizes = [shape[0] for shape in self.operands]
        return tuple(e.narrow(1, sum(sizes[:i]), size) for i, size in enumerate(sizes))


class OneHot(Operation):
    """A row for each number, with a one at its place and zeros elsewhere; a symbol that is none of them gives NaN.

    Args:
        classes: how many symbols there are, numbered from 0. Inputs are numbers of the program's dtype: ``ids.float()``
            for ``ids`` that are integers.
        padding: a symbol whose row is zeros.
    """

    def __init__(self, classes: int, padding: int | None = None) -> None:
        check = Arguments("onehot", NetworkError)
        self.classes = check.integer("classes", classes, 1)
        self.padding = None if padding is None else check.integer("padding", padding, 0, self.classes - 1)

    def shape(self, *operands: Shape) -> Shape:  # noqa: D102
        return (*_one(self.name, operands), self.classes)

    def apply(self, *z: Tensor) -> Tensor:  # noqa: D102
        symbols = torch.arange(self.classes, device=z[0].device, dtype=z[0].dtype)
        found = z[0].unsqueeze(-1) == symbols
        shown = found if self.padding is None else found & (symbols != self.padding)
        return torch.where(found.any(-1, keepdim=True), shown.to(z[0].dtype), torch.nan)

    def vjp(self, e: Tensor, z: Any, y: Tensor) -> tuple[Tensor, ...]:
        """Zero: a symbol has no derivative."""
        return (torch.zeros_like(z[0]),)


class Whole(Operation):
    """Any function of tensors: ``Whole(lambda q, k: q @ k.mT)``. It must treat every example by itself.

    Args:
        function: takes ``(batch, *shape)`` of each operand and returns ``(batch, *shape)``. Backward messages go
            through its derivative.
        name: for listings; the function's own name by default.
    """

    def __init__(self, function: Callable[..., Tensor], name: str | None = None) -> None:
        self.function = function
        self._name = name or getattr(function, "__name__", type(function).__name__).replace("<lambda>", "function")

    @property
    def name(self) -> str:  # noqa: D102
        return self._name

    def shape(self, *operands: Shape) -> Shape:
        """Found by running the function on random numbers, for two examples together and for each alone."""
        generator = torch.Generator().manual_seed(0)
        z = [torch.randn((2, *o), generator=generator, dtype=torch.float64, device="cpu") for o in operands]
        try:
            with torch.no_grad():
                both, *each = (self.function(*given) for given in (z, [t[:1].clone() for t in z], [t[1:] for t in z]))
        except Exception as error:
            shapes = " and ".join(str(tuple(t.shape)) for t in z)
            raise NetworkError(f"{self.name} failed on operands of shape {shapes}: {error}") from error
        if not all(isinstance(y, Tensor) for y in (both, *each)):
            raise NetworkError(f"{self.name} must return one tensor, got {type(both).__name__}")
        wanted = [(1, *both.shape[1:])] * 2
        if not both.ndim or both.shape[0] != 2 or [tuple(y.shape) for y in each] != wanted:
            raise NetworkError(
                f"{self.name} must return (batch, ...), the batch first, but for a batch of 2 it returns "
                f"{tuple(both.shape)}"
            )
        if not torch.allclose(both, torch.cat(each), atol=1e-9, equal_nan=True):
            raise NetworkError(
                f"{self.name} mixes the examples of a batch: dimension 0 is the batch, those of an example begin with 1"
            )
        return tuple(both.shape[1:])

    def apply(self, *z: Tensor) -> Tensor:  # noqa: D102
        return self.function(*z)


OPERATIONS: dict[str, type[Operation]] = {
    "product": Product,
    "concat": Concat,
    "flatten": Flatten,
    "max_pool": MaxPool,
    "avg_pool": AvgPool,
    "global_avg_pool": GlobalAvgPool,
}
