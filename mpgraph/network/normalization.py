"""Activations that need their whole population or batch: normalization."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from mpgraph.arguments import Arguments
from mpgraph.errors import NetworkError

from .activations import Activation
from .given import own_tensor

aten = torch.ops.aten


class LayerNorm(Activation):
    """Each example's numbers, centered and divided by their deviation; no gain or bias of its own.

    Args:
        eps: added to the variance.
        dims: how many of the last dimensions are normalized together, all by default: 1 normalizes the features of
            each token of ``(tokens, features)`` by themselves.
    """

    over = "node"
    inline = True
    _flat = False

    def __init__(self, eps: float = 1e-5, dims: int | None = None) -> None:
        check = Arguments("layernorm", NetworkError)
        self.eps = check.number("eps", eps, 0)
        self.dims = None if dims is None else check.integer("dims", dims, 1)

    @property
    def _together(self) -> tuple[int, ...]:
        """Sizes of the dimensions that are normalized together."""
        if self.dims is not None and self.dims > len(self.size):
            raise NetworkError(f"layernorm(dims={self.dims}): the unit has shape {self.size}; give fewer dims")
        return self.size if self.dims is None else self.size[-self.dims :]

    def apply(self, z: Tensor) -> Tensor:  # noqa: D102
        return self._whole(z)[0]

    def _whole(self, z: Tensor) -> Any:
        return aten.native_layer_norm.default(z, self._together, None, None, self.eps)

    def vjp(self, e: Tensor, z: Tensor, y: Tensor) -> Tensor:  # noqa: D102
        _, mean, rstd = self._whole(z)
        mask = [True, False, False]
        return aten.native_layer_norm_backward.default(e, z, self._together, mean, rstd, None, None, mask)[0]

    def __repr__(self) -> str:
        return self.name if self.dims is None else f"{self.name}(dims={self.dims})"


class GroupNorm(Activation):
    """Each group of an example's channels (first dimension), centered and divided by its deviation over its positions.

    No gain or bias of its own: those are a connection ``OneToOne(shared=...)`` and the bias of the unit that follows.

    Args:
        groups: how many; they divide the channels.
        eps: added to the variance.
    """

    over = "node"
    _flat = False

    def __init__(self, groups: int, eps: float = 1e-5) -> None:
        check = Arguments("groupnorm", NetworkError)
        self.groups, self.eps = check.integer("groups", groups, 1), check.number("eps", eps, 0)

    def apply(self, z: Tensor) -> Tensor:  # noqa: D102
        return torch.nn.functional.group_norm(z, self.groups, eps=self.eps)

    def __repr__(self) -> str:
        return f"groupnorm({self.groups})"


class BatchNorm(Activation):
    """Each channel (first dimension) centered and divided by its deviation over batch and positions.

    ``predict`` uses running averages, which are part of the state as ``mean`` and ``var`` of the node. A gain and a
    bias of each channel, if wanted, are a connection ``OneToOne(shared=...)`` and the bias of the unit that follows.

    Args:
        eps: added to the variance.
        momentum: of the running averages, as in ``torch.nn.BatchNorm2d``.
    """

    over = "batch"
    inline = True
    own_agent = True
    _flat = False
    kept = {"mean": 0.0, "var": 1.0}  # noqa: RUF012

    def __init__(self, eps: float = 1e-5, momentum: float = 0.1) -> None:
        check = Arguments("batchnorm", NetworkError)
        self.eps, self.momentum = check.number("eps", eps, 0), check.number("momentum", momentum, 0, 1)

    def frozen(self, mean: Any = None, var: Any = None) -> FrozenBatchNorm:
        """This normalization by given statistics, the same in every step and in ``predict``.

        Args:
            mean, var: of each channel, for example what a trained state keeps: ``state["h"]["mean"]``.

        Example:
            >>> BatchNorm().frozen(mean=[0.1, 0.2], var=[1.0, 4.0])
            frozenbatchnorm(2 channels)

        Raises:
            NetworkError: for statistics that are missing or not those of channels.
        """
        for name, given in (("mean", mean), ("var", var)):
            if given is None:
                raise NetworkError(
                    f"batchnorm: frozen needs the statistics of each channel, and {name} is missing; for those of a "
                    "trained unit write frozen(state['h']['mean'], state['h']['var'])"
                )
        return FrozenBatchNorm(mean, var, self.eps)

    def problem(self, channel: str, value: Tensor) -> str | None:  # noqa: D102
        return _no_variance(value, self.eps) if channel == "var" else None

    def shared(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """All dimensions but the channel."""
        return tuple(range(1, len(shape)))

    def _whole(self, z: Tensor) -> Any:
        return aten.native_batch_norm.default(z, None, None, None, None, True, 0.0, self.eps)

    def apply(self, z: Tensor) -> Tensor:  # noqa: D102
        return self._whole(z)[0]

    def statistics(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and unbiased variance of each channel."""
        _, mean, invstd = self._whole(z)  # written once: the code shares the call
        n = z.size(0) * math.prod(self.size[1:])
        return mean, (invstd**-2 - self.eps) * (n / (n - 1 + (n == 1)))

    def renew(self, kept: Mapping[str, Any], measured: tuple[Any, ...]) -> dict[str, Any]:
        """Moving averages of mean and variance."""
        pairs = zip(kept.items(), measured, strict=True)
        return {name: (1.0 - self.momentum) * old + self.momentum * new for (name, old), new in pairs}

    def recall(self, z: Any, **kept: Any) -> Any:
        """(z - mean) / sqrt(var + eps), by the running averages."""
        return (z - kept["mean"]) * torch.rsqrt(kept["var"] + self.eps)

    def vjp(self, e: Tensor, z: Tensor, y: Tensor) -> Tensor:  # noqa: D102
        _, mean, invstd = self._whole(z)
        mask = [True, False, False]
        back = aten.native_batch_norm_backward.default(e, z, None, None, None, mean, invstd, True, self.eps, mask)
        return back[0]

    # The same of values whose batch lies in several places: `total(value, how)` reduces over batch and positions, the
    # second argument is "mean" or "sum". The rest is arithmetic on values that broadcast.

    def apply_by_totals(self, total: Callable[[Any, str], Any], z: Any) -> Any:
        """:meth:`apply`, from totals over the whole batch."""
        mean, var = self._moments(total, z)
        return (z - mean) * torch.rsqrt(var + self.eps)

    def statistics_by_totals(self, total: Callable[[Any, str], Any], z: Any) -> tuple[Any, Any]:
        """:meth:`statistics`, from totals over the whole batch."""
        mean, var = self._moments(total, z)
        n = total(1.0, "sum")
        return mean, var * n / (n - 1.0)

    def vjp_by_totals(self, total: Callable[[Any, str], Any], e: Any, z: Any, y: Any) -> Any:
        """:meth:`vjp`, from totals over the whole batch."""
        _, var = self._moments(total, z)
        return (e - total(e, "mean") - y * total(e * y, "mean")) * torch.rsqrt(var + self.eps)

    @staticmethod
    def _moments(total: Callable[[Any, str], Any], z: Any) -> tuple[Any, Any]:
        mean = total(z, "mean")
        centered = z - mean
        return mean, total(centered * centered, "mean")


def _no_variance(var: Tensor, eps: float) -> str | None:
    """Why numbers cannot be variances that are divided by, if they cannot."""
    low = float(var.min()) if var.numel() else 1.0
    if low < 0:
        return f"must not be below zero, got {low:g}: variances are squares"
    return "must be above zero where eps is zero, got 0" if low + eps == 0 else None


class FrozenBatchNorm(Activation):
    """Each channel (first dimension) normalized by fixed statistics, as ``torch.nn.BatchNorm2d`` does in eval mode.

    Args:
        mean, var: of each channel, ``(channels,)``; they are copied.
        eps: added to the variance.

    Raises:
        NetworkError: for statistics that are not two rows of finite numbers, or a variance below zero (or zero, where
            ``eps`` is zero as well).
    """

    over = "node"

    def __init__(self, mean: Any, var: Any, eps: float = 1e-5) -> None:
        self.mean = own_tensor("batch normalization: mean", mean).double()
        self.var = own_tensor("batch normalization: var", var).double()
        self.eps = Arguments("batch normalization", NetworkError).number("eps", eps, 0)
        shapes = tuple(self.mean.shape), tuple(self.var.shape)
        if shapes[0] != shapes[1] or len(shapes[0]) != 1:
            raise NetworkError(
                f"batch normalization: mean and var must be (channels,) both, got {shapes[0]} and {shapes[1]}; give "
                "one number for each channel, such as mean=[0.1, 0.2], var=[1.0, 4.0]"
            )
        problem = _no_variance(self.var, self.eps)
        if problem:
            raise NetworkError(f"batch normalization: var {problem}")

    def _of_channels(self, numbers: Tensor, z: Tensor) -> Tensor:
        """One number for each channel, ready to broadcast over a batch ``z``."""
        if len(numbers) != z.shape[1]:
            raise NetworkError(f"{self!r} normalizes a unit of {z.shape[1]} channels; give mean and var for each")
        return numbers.to(z).reshape(-1, *[1] * (z.ndim - 2))

    def apply(self, z: Tensor) -> Tensor:  # noqa: D102
        return (z - self._of_channels(self.mean, z)) * self._of_channels(torch.rsqrt(self.var + self.eps), z)

    def vjp(self, e: Tensor, z: Tensor, y: Tensor) -> Tensor:  # noqa: D102
        return e * self._of_channels(torch.rsqrt(self.var + self.eps), z)

    def __repr__(self) -> str:
        return f"{self.name}({len(self.mean)} channels)"
