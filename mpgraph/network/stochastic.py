"""Units that draw: functions of the sum of messages and of noise, which a program takes from its own generator.

In a step every agent of such a unit has one standard normal number for each example (and tick), the same in all passes:
a network that runs twice runs with the same masks. It comes from the state's seed and step, as all noise of a program,
so steps stay pure. In ``predict`` there is no noise.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import NormalDist
from typing import Any

import torch
from torch import Tensor

from mpgraph.arguments import Arguments
from mpgraph.errors import NetworkError

from .activations import Activation, activation


class Stochastic(Activation):
    """Base of functions with noise. Subclass it, define ``sample``, and pass an instance as ``activation``."""

    def sample(self, z: Tensor, xi: Tensor) -> Tensor:
        """The value of the node in a step, for the sum ``z`` of its messages and standard normal numbers ``xi``."""
        raise NotImplementedError(f"{type(self).__name__} must define sample(self, z, xi)")

    def apply(self, z: Tensor) -> Tensor:
        """The value in ``predict``; by default that without noise."""
        return self.sample(z, torch.zeros_like(z))

    def sample_vjp(self, e: Tensor, z: Tensor, y: Tensor, xi: Tensor) -> Any:
        """Transposed derivative of ``sample`` with respect to ``z``, times ``e``; ``y = sample(z, xi)``."""
        _, back = torch.func.vjp(lambda z: self.sample(z, xi), z)  # type: ignore[misc]
        return back(e)[0]


class _Over(Stochastic):
    """Noise on top of another function."""

    def __init__(self, function: str | Activation | Callable[[Tensor], Tensor]) -> None:
        self.function = activation(function)
        if self.function.kept or self.function.over == "batch" or isinstance(self.function, Stochastic):
            raise NetworkError(
                f"{type(self).__name__.lower()}: {self.function!r} cannot have noise on top; give it a unit of its own"
            )
        self.over = self.function.over


class Noisy(_Over):
    """y = f(z + sigma xi): Gaussian noise on what a unit receives.

    Args:
        activation: f, as :meth:`Network.unit` takes it.
        sigma: standard deviation of the noise.

    Raises:
        NetworkError: for a function that keeps something (a batch normalization), or a negative deviation.
    """

    def __init__(
        self, activation: str | Activation | Callable[[Tensor], Tensor] = "identity", sigma: float = 0.1
    ) -> None:
        super().__init__(activation)
        self.sigma = Arguments("noisy", NetworkError).number("sigma", sigma, low=0)

    def sample(self, z: Tensor, xi: Tensor) -> Tensor:  # noqa: D102
        return self.function.apply(z + self.sigma * xi)

    def sample_vjp(self, e: Tensor, z: Tensor, y: Tensor, xi: Tensor) -> Any:  # noqa: D102
        return self.function.vjp(e, z + self.sigma * xi, y)

    def __repr__(self) -> str:
        return f"noisy({self.function!r}, sigma={self.sigma:g})"


class Dropout(_Over):
    """y = f(z) / (1 - p), or 0 with probability p; f(z) in ``predict`` (Srivastava et al., 2014).

    Args:
        p: probability of a zero, at least 0 and below 1.
        activation: f, as :meth:`Network.unit` takes it.

    Raises:
        NetworkError: for a probability outside that range, or a function that keeps something.
    """

    def __init__(self, p: float = 0.5, activation: str | Activation | Callable[[Tensor], Tensor] = "identity") -> None:
        super().__init__(activation)
        self.p = Arguments("dropout", NetworkError).number("p", p, low=0, below=1)
        self._least = NormalDist().inv_cdf(self.p) if self.p else -torch.inf  # xi is below it with probability p

    def apply(self, z: Tensor) -> Tensor:  # noqa: D102
        return self.function.apply(z)

    def sample(self, z: Tensor, xi: Tensor) -> Tensor:  # noqa: D102
        return self._masked(self.function.apply(z), xi)

    def sample_vjp(self, e: Tensor, z: Tensor, y: Tensor, xi: Tensor) -> Any:  # noqa: D102
        return self.function.vjp(self._masked(e, xi), z, self.function.apply(z))

    def _masked(self, y: Tensor, xi: Tensor) -> Tensor:
        return torch.where(xi >= self._least, y / (1.0 - self.p), 0.0)

    def __repr__(self) -> str:
        return f"dropout(p={self.p:g}, {self.function!r})"


class Bernoulli(Stochastic):
    """y = 1 with probability 1 / (1 + exp(-z)), else 0; in ``predict`` the probability.

    A sample has no derivative: use a rule that needs none, or a ``surrogate``.
    """

    def apply(self, z: Tensor) -> Tensor:  # noqa: D102
        return torch.sigmoid(z)

    def sample(self, z: Tensor, xi: Tensor) -> Tensor:  # noqa: D102
        return torch.lt(torch.special.ndtr(xi), torch.sigmoid(z)).type_as(z)

    def is_flat(self) -> bool:  # noqa: D102
        return True
