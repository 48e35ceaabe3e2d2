"""Losses: what the output should have been. A loss is a node with two roles, ``pre`` (logits) and ``target``.

All are sums over the features of an example; only the program takes the mean over the batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from mpgraph.errors import NetworkError, unknown
from mpgraph.registry import lookup

from .activations import Activation, Sigmoid, Softmax


class Loss:
    """Base of losses. Subclass it and define ``apply``; the gradient follows by ``torch.func.vjp`` unless given.

    Class attributes:
        inline: whether the methods are plain torch calls that may be written into the generated code.
    """

    inline: bool = False

    @property
    def name(self) -> str:
        """What people read in listings and errors."""
        return type(self).__name__.lower()

    def apply(self, z: Tensor, t: Tensor) -> Tensor:
        """Loss of each example ``(batch,)`` for predictions and targets ``(batch, *axes)``."""
        raise NotImplementedError(f"{type(self).__name__} must define apply(self, z, t)")

    def gradient(self, z: Tensor, t: Tensor) -> Tensor:
        """Derivative of each example's loss with respect to ``z``, of the shape of ``z``."""
        back: Any
        loss, back = torch.func.vjp(lambda z: self.apply(z, t), z)  # type: ignore[misc]
        return back(torch.ones_like(loss))[0]

    def split(self) -> tuple[Activation, Loss] | None:
        """The inverse link function and the loss of what it returns, if ``apply`` is one after the other.

        So generalized linear models are written (Nelder and Wedderburn, 1972): cross-entropy of logits is a softmax
        and the negative log-likelihood of its probabilities. See ``Protocol.link``.
        """
        return None

    def problem(self, t: Tensor) -> str | None:
        """What is wrong with the values of targets ``(batch, *axes)``, if anything."""
        return None

    def __repr__(self) -> str:
        return self.name


class CrossEntropy(Loss):
    """Softmax cross-entropy, ``-sum_i t_i log softmax(z)_i``; its gradient is for targets that sum to one."""

    inline = True

    @property
    def name(self) -> str:  # noqa: D102
        return "cross_entropy"

    def apply(self, z: Tensor, t: Tensor) -> Tensor:  # noqa: D102
        return torch.sum((torch.log_softmax(z, -1) * t).flatten(1), 1).neg()

    def gradient(self, z: Tensor, t: Tensor) -> Tensor:  # noqa: D102
        return torch.softmax(z, -1) - t

    def split(self) -> tuple[Activation, Loss]:  # noqa: D102
        return Softmax(), NegativeLogLikelihood()

    def problem(self, t: Tensor) -> str | None:  # noqa: D102
        off = float((t.sum(-1) - 1.0).abs().max())
        return None if off < 1e-3 else f"targets must sum to one over the classes; one is off by {off:.3g}"


class SigmoidCrossEntropy(Loss):
    """Sum over features of the cross-entropy between ``t`` and ``sigmoid(z)``."""

    inline = True

    @property
    def name(self) -> str:  # noqa: D102
        return "sigmoid_cross_entropy"

    def apply(self, z: Tensor, t: Tensor) -> Tensor:  # noqa: D102
        return functional.binary_cross_entropy_with_logits(z, t, reduction="none").flatten(1).sum(1)

    def gradient(self, z: Tensor, t: Tensor) -> Tensor:  # noqa: D102
        return torch.sigmoid(z) - t

    def split(self) -> tuple[Activation, Loss]:  # noqa: D102
        return Sigmoid(), BinaryCrossEntropy()


class NegativeLogLikelihood(Loss):
    """``-sum_i t_i log p_i`` of probabilities."""

    inline = True

    @property
    def name(self) -> str:  # noqa: D102
        return "negative_log_likelihood"

    def apply(self, z: Tensor, t: Tensor) -> Tensor:  # noqa: D102
        return torch.sum((torch.log(_positive(z)) * t).flatten(1), 1).neg()

    def gradient(self, z: Tensor, t: Tensor) -> Tensor:  # noqa: D102
        return torch.div(t, _positive(z)).neg()


class BinaryCrossEntropy(Loss):
    """``-sum_i t_i log p_i + (1 - t_i) log(1 - p_i)`` of probabilities."""

    inline = True

    @property
    def name(self) -> str:  # noqa: D102
        return "binary_cross_entropy"

    def apply(self, z: Tensor, t: Tensor) -> Tensor:  # noqa: D102
        likely = torch.log(_positive(z)) * t + torch.log(_positive(1.0 - z)) * (1.0 - t)
        return torch.sum(likely.flatten(1), 1).neg()

    def gradient(self, z: Tensor, t: Tensor) -> Tensor:  # noqa: D102
        return torch.div(1.0 - t, _positive(1.0 - z)) - torch.div(t, _positive(z))


def _positive(p: Tensor) -> Tensor:
    """Probabilities that have a logarithm: one that underflowed to zero counts as the smallest number."""
    return torch.clamp(p, min=1e-30)


class L2(Loss):
    """Half the sum of squared differences."""

    inline = True

    def apply(self, z: Tensor, t: Tensor) -> Tensor:  # noqa: D102
        return torch.square(z - t).flatten(1).sum(1) * 0.5

    def gradient(self, z: Tensor, t: Tensor) -> Tensor:  # noqa: D102
        return z - t


class L1(Loss):
    """Sum of absolute differences; derivative 0 where they vanish."""

    inline = True

    def apply(self, z: Tensor, t: Tensor) -> Tensor:  # noqa: D102
        return torch.abs(z - t).flatten(1).sum(1)

    def gradient(self, z: Tensor, t: Tensor) -> Tensor:  # noqa: D102
        return torch.sign(z - t)


LOSSES: dict[str, Callable[[], Loss]] = {
    "cross_entropy": CrossEntropy,
    "sigmoid_cross_entropy": SigmoidCrossEntropy,
    "negative_log_likelihood": NegativeLogLikelihood,
    "binary_cross_entropy": BinaryCrossEntropy,
    "l2": L2,
    "l1": L1,
}


def loss(given: str | Loss) -> Loss:
    """A loss from its name, or as it is.

    Raises:
        NetworkError: for a name that is neither built in nor registered under ``mpgraph.losses``.
    """
    if isinstance(given, Loss):
        return given
    if isinstance(given, type) or not isinstance(given, str):
        hint = f"; pass an instance, {given.__name__}()" if isinstance(given, type) else ""
        raise NetworkError(f"a loss is a name or an mg.Loss, got {given!r}{hint}")
    found: Any = LOSSES.get(given) or lookup("mpgraph.losses", given)
    if found is None:
        raise NetworkError(unknown("loss", given, LOSSES))
    return found()
