"""What a node computes: activations of units and functions of a user's own.

An activation defines ``apply`` on the forward values; ``vjp`` carries a backward message through it, in closed form
where one is known, otherwise by ``torch.func.vjp``. No rule needs a line about any activation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from mpgraph.arguments import Arguments
from mpgraph.errors import NetworkError, unknown
from mpgraph.registry import lookup

aten = torch.ops.aten


class Activation:
    """Base of what nodes compute. Subclass it, define ``apply``, and pass an instance as ``activation``.

    Class attributes:
        over: ``"agent"`` if ``apply`` acts on every number by itself; ``"node"`` if it needs the whole population, and
            then it gets tensors ``(batch, *axes of the node)``; ``"batch"`` if it needs all examples as well.
        inline: whether ``apply`` and ``vjp`` are plain torch calls that may be written into the generated code;
            otherwise the code calls them.

    Attributes:
        size: shape of the unit for one example, known once a network has a unit with this activation.
    """

    over: Literal["agent", "node", "batch"] = "agent"
    inline: bool = False
    size: tuple[int, ...] = ()
    _flat: bool | None = None
    kept: Mapping[str, float] = {}
    own_agent: bool = False  # whether protocols may hold an agent under the name of this very class

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "pull" in vars(cls):  # the name of the method before 0.2
            cls.vjp = cls.pull  # type: ignore[attr-defined, method-assign]
        if not cls.__module__.startswith("mpgraph."):
            cls.own_agent = True

    @property
    def name(self) -> str:
        """What people read in listings and errors."""
        return type(self).__name__.lower()

    def apply(self, z: Tensor) -> Tensor:
        """The value of the node for the sum ``z`` of its messages."""
        raise NotImplementedError(f"{type(self).__name__} must define apply(self, z)")

    def vjp(self, e: Tensor, z: Any, y: Tensor) -> Any:
        """Transposed derivative of ``apply`` at ``z``, times ``e``; ``y = apply(z)``."""
        _, back = torch.func.vjp(self.apply, z)  # type: ignore[misc]
        return back(e)[0]

    def statistics(self, z: Tensor) -> tuple[Tensor, ...]:
        """What it measures on population and batch, each ``(*kept axes of the node)``; see :meth:`shared`."""
        raise NotImplementedError(f"{type(self).__name__} measures nothing")

    def renew(self, kept: Mapping[str, Any], measured: tuple[Any, ...]) -> dict[str, Any]:
        """What is ``kept`` after a step of learning, from before and from :meth:`statistics`."""
        raise NotImplementedError(f"{type(self).__name__} keeps {', '.join(kept)} and must define renew")

    def recall(self, z: Any, **kept: Any) -> Any:
        """The value in ``predict``, from what is ``kept``."""
        raise NotImplementedError(f"{type(self).__name__} keeps {', '.join(kept)} and must define recall")

    def problem(self, channel: str, value: Tensor) -> str | None:
        """What is wrong with an initial value given for one of the channels that are ``kept``, if anything."""
        return None

    def shared(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Dimensions along which what the unit's agents keep between steps is one (positions of an image)."""
        return ()

    def is_flat(self) -> bool:
        """Whether the derivative is zero everywhere (a step), found by probing it near and far from zero, once."""
        if self._flat is None:  # a later compilation may run within a transform, where nothing can be probed
            self._flat = self._probe()
        return self._flat

    def _probe(self) -> bool:
        generator = np.random.default_rng(0)  # as torch samples nothing under vmap, where a program may be compiled
        # Some numbers show it where each goes by itself; a whole image would take seconds.
        numbers = (64,) if self.over == "agent" else self.size
        shape = (2, 32, *(numbers or (8,)))
        for scale in (1.0, 10.0, 100.0, 1000.0):
            z, e = torch.from_numpy(generator.standard_normal(shape)).to(torch.get_default_dtype())
            try:
                y = self.apply(z * scale)
                if bool(self.vjp(e, z * scale, y).any()):
                    return False
            except RuntimeError:  # it runs, but not under autograd: the function leaves torch
                return True
        return True

    def __repr__(self) -> str:
        return self.name


class Identity(Activation):
    """y = z."""

    inline = True

    def apply(self, z: Tensor) -> Tensor:  # noqa: D102
        return z

    def vjp(self, e: Tensor, z: Tensor, y: Tensor) -> Tensor:  # noqa: D102
        return e


class Tanh(Activation):
    """y = tanh(z)."""

    inline = True

    def apply(self, z: Tensor) -> Tensor:  # noqa: D102
        return torch.tanh(z)

    def vjp(self, e: Tensor, z: Tensor, y: Tensor) -> Tensor:  # noqa: D102
        return aten.tanh_backward.default(e, y)  # e * (1 - y * y) in one call


class Sigmoid(Activation):
    """y = 1 / (1 + exp(-z))."""

    inline = True

    def apply(self, z: Tensor) -> Tensor:  # noqa: D102
        return torch.sigmoid(z)

    def vjp(self, e: Tensor, z: Tensor, y: Tensor) -> Tensor:  # noqa: D102
        return aten.sigmoid_backward.default(e, y)  # e * y * (1 - y)


class Softmax(Activation):
    """y_i = exp(z_i) / sum_j exp(z_j), over the last dimension of the population."""

    over = "node"
    inline = True

    def apply(self, z: Tensor) -> Tensor:  # noqa: D102
        return torch.softmax(z, -1)

    def vjp(self, e: Tensor, z: Tensor, y: Tensor) -> Tensor:  # noqa: D102
        return aten._softmax_backward_data.default(e, y, -1, e.dtype)  # y * (e - sum_j e_j y_j)


class ReLU(Activation):
    """y = max(z, 0), with derivative 0 at 0."""

    inline = True

    def apply(self, z: Tensor) -> Tensor:  # noqa: D102
        return torch.relu(z)

    def vjp(self, e: Tensor, z: Tensor, y: Tensor) -> Tensor:  # noqa: D102
        return aten.threshold_backward.default(e, y, 0)  # e where y > 0


class Softplus(Activation):
    """y = log(1 + exp(beta z)) / beta; linear above ``beta z = 20``, as in torch."""

    inline = True

    def __init__(self, beta: float = 1.0) -> None:
        self.beta = Arguments("softplus", NetworkError).number("beta", beta, above=0)

    def apply(self, z: Tensor) -> Tensor:  # noqa: D102
        return functional.softplus(z, self.beta)

    def vjp(self, e: Tensor, z: Tensor, y: Tensor) -> Tensor:  # noqa: D102
        return aten.softplus_backward.default(e, z, self.beta, 20.0)

    def __repr__(self) -> str:
        return f"softplus(beta={self.beta:g})"


class _Flat(Activation):
    """Base of functions without a derivative."""

    inline = True

    def is_flat(self) -> bool:
        return True

    def vjp(self, e: Tensor, z: Tensor, y: Tensor) -> Tensor:
        return torch.zeros_like(e)


class Step(_Flat):
    """y = 1 where z > 0, else 0. Its derivative is zero everywhere."""

    def apply(self, z: Tensor) -> Tensor:  # noqa: D102
        return torch.gt(z, 0).type_as(z)


class Sign(_Flat):
    """y = -1, 0 or 1, the sign of z. Its derivative is zero everywhere."""

    def apply(self, z: Tensor) -> Tensor:  # noqa: D102
        return torch.sign(z)


class WinnerTakeAll(_Flat):
    """y = 1 for the largest z of the population (the first, if several), else 0: a hard softmax without derivative."""

    over = "node"

    @property
    def name(self) -> str:  # noqa: D102
        return "winner_take_all"

    def apply(self, z: Tensor) -> Tensor:  # noqa: D102
        rows = z.flatten(1)
        winner = torch.argmax(rows, 1, keepdim=True)
        return torch.zeros_like(rows).scatter(1, winner, 1.0).reshape_as(z)


class Quantizer(_Flat):
    """y = the nearest of n equidistant levels. Its derivative is zero everywhere.

    Args:
        levels: how many, at least two.
        low, high: the lowest and the highest.
    """

    def __init__(self, levels: int = 4, low: float = -1.0, high: float = 1.0) -> None:
        check = Arguments("quantizer", NetworkError)
        self.levels, self.low = check.integer("levels", levels, 2), check.number("low", low)
        self.high = check.number("high", high, above=self.low)

    def apply(self, z: Tensor) -> Tensor:  # noqa: D102
        width = (self.high - self.low) / (self.levels - 1)
        return torch.round((torch.clamp(z, self.low, self.high) - self.low) / width) * width + self.low

    def __repr__(self) -> str:
        return f"quantizer({self.levels} levels, {self.low:g}..{self.high:g})"


class Function(Activation):
    """Any function of one tensor, differentiable or not.

    Args:
        function: maps a tensor to one of the same shape.
        over: ``"agent"`` if it acts on every number by itself, ``"node"`` if it needs the whole population.
        name: for listings; the function's own name by default.

    Raises:
        NetworkError: for another word for ``over``.
    """

    def __init__(
        self,
        function: Callable[[Tensor], Tensor],
        over: Literal["agent", "node"] = "agent",
        name: str | None = None,
    ) -> None:
        if over not in ("agent", "node"):
            raise NetworkError(f"a function acts over 'agent' or 'node', not {over!r}")
        self.function, self.over = function, over
        self._name = name or getattr(function, "__name__", type(function).__name__).replace("<lambda>", "function")

    @property
    def name(self) -> str:  # noqa: D102
        return self._name

    def apply(self, z: Tensor) -> Tensor:  # noqa: D102
        return self.function(z)


ACTIVATIONS: dict[str, Callable[[], Activation]] = {
    "identity": Identity,
    "tanh": Tanh,
    "sigmoid": Sigmoid,
    "softmax": Softmax,
    "relu": ReLU,
    "softplus": Softplus,
    "step": Step,
    "sign": Sign,
    "winner_take_all": WinnerTakeAll,
    "quantizer": Quantizer,
}


def activation(given: str | Activation | Callable[[Tensor], Tensor]) -> Activation:
    """An activation from its name, from a function, or as it is.

    Raises:
        NetworkError: for a name that is neither built in nor registered under ``mpgraph.activations``.
    """
    if isinstance(given, Activation):
        return given
    if isinstance(given, str):
        found: Any = ACTIVATIONS.get(given) or lookup("mpgraph.activations", given) or lookup("mpgraph.kinds", given)
        if found is None:
            raise NetworkError(unknown("activation", given, ACTIVATIONS))
        return found()
    if isinstance(given, type):
        raise NetworkError(f"the activation is the class {given.__name__}; pass an instance, {given.__name__}()")
    if callable(given):
        return Function(given)
    raise NetworkError(f"an activation is a name, a function or an mg.Activation, got {given!r}")
