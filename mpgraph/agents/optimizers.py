"""Inner optimizers: what turns a rule's update signal into a new value of the channel.

An optimizer is an agent of the weight: it may keep channels of its own in addition to the one it writes. They are part
of the state under the channel's name, ``state["x->h"]["w_momentum"]``, at exactly the nodes whose rule hands that
channel to ``s.descend``. So they are saved, mapped and differentiated like every other number.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, sqrt

from mpgraph.arguments import Arguments
from mpgraph.errors import ProtocolError

from .agent import View
from .channel import Channel, common, slow
from .module import RuleModule
from .options import Number


class Optimizer(RuleModule, ABC):
    """Base of inner optimizers, written like a rule: for one agent, on its view.

    Attributes:
        rereads: whether ``update`` reads the signal more than once, so that it is materialized first.
    """

    rereads = False

    @abstractmethod
    def update(self, s: View, channel: str, signal: Any) -> View:
        """The view after the step.

        Args:
            s: the agent; ``getattr(s, channel)`` is the present value, ``getattr(s, f"{channel}_{name}")`` that of
                a channel of the optimizer's own.
            channel: name of the channel to write.
            signal: the increment to go against, averaged over the batch.
        """

    def channels(self) -> dict[str, Channel]:
        """What it keeps, by name: ``slow()`` one for each number of what it writes, ``common()`` one for the node."""
        return {}

    def declare(self, channel: str, present: Mapping[str, Channel]) -> dict[str, Channel]:
        """Its channels for one that it writes, under the names and with the sizes that they have in the state.

        Args:
            channel: which it writes.
            present: channels of the node.

        Raises:
            ProtocolError: if the agent has a channel of such a name.
        """
        written, added = present[channel], {}
        for name, own in self.channels().items():
            full = f"{channel}_{name}"
            if full in present:
                raise ProtocolError(
                    f"{type(self).__name__} keeps {name!r} of channel {channel!r} as {full!r}, but the agent has a "
                    "channel of that name; rename the agent's"
                )
            like = replace(own, extent=written.extent, size=written.size, end=written.end)
            added[full] = like if own.extent == "slow" else own
        return added


class SGD(Optimizer):
    """Gradient descent, as ``torch.optim.SGD``: ``v <- momentum v + g; w <- w - lr v``.

    Plain (without momentum) it keeps nothing.

    Args:
        lr: learning rate; a float is a constant, ``mg.learnable(0.1)`` a meta-parameter. So with the others.
        momentum: share of the last step that is kept; adds the channel ``momentum``.
        nesterov: step along ``g + momentum v``.
        weight_decay: times the weight, added to the signal.

    Raises:
        ProtocolError: for a number out of range, or Nesterov's step without momentum.
    """

    def __init__(
        self, lr: Number = 0.1, momentum: Number = 0.0, nesterov: bool = False, weight_decay: Number = 0.0
    ) -> None:
        super().__init__()
        check = Arguments("SGD")
        self.lr, self.momentum = check.learnable("lr", lr, 0), check.learnable("momentum", momentum, 0, below=1)
        self.weight_decay = check.learnable("weight_decay", weight_decay, 0)
        self.nesterov = self.rereads = check.flag("nesterov", nesterov)
        if nesterov and _is_zero(self.momentum):
            raise ProtocolError("SGD(nesterov=True) needs a momentum, for example momentum=0.9")

    def channels(self) -> dict[str, Channel]:  # noqa: D102
        return {} if _is_zero(self.momentum) else {"momentum": slow()}

    def update(self, s: View, channel: str, signal: Any) -> View:  # noqa: D102
        value = getattr(s, channel)
        if not _is_zero(self.weight_decay):
            signal = signal + self.weight_decay * value
        if not _is_zero(self.momentum):
            moving = self.momentum * getattr(s, f"{channel}_momentum") + signal
            s = s.set(**{f"{channel}_momentum": moving})
            moving = getattr(s, f"{channel}_momentum")
            signal = signal + self.momentum * moving if self.nesterov else moving
        return s.set(**{channel: value - self.lr * signal})

    def extra_repr(self) -> str:  # noqa: D102
        shown = [_shown(self, name) for name in ("momentum", "weight_decay") if not _is_zero(getattr(self, name))]
        return ", ".join([_shown(self, "lr"), *shown, *(["nesterov=True"] if self.nesterov else [])])


class Adam(Optimizer):
    """Adam (Kingma and Ba, 2015), as ``torch.optim.Adam``, or ``AdamW`` with ``decoupled``.

    Keeps the moving averages ``mean`` and ``square`` of the signal. Both start at zero, and are divided by the same
    moving average of the number one (``mean_of_one``, ``square_of_one``): that is 1 - beta^t after t steps, without
    a count of steps, and so it is right as well where a node learns in some phases only, or where a beta changes.

    Args:
        lr: learning rate; a float is a constant, ``mg.learnable(1e-3)`` a meta-parameter. So with the others.
        betas: of the two averages.
        eps: added to the root of the second.
        weight_decay: times the weight, added to the signal.
        decoupled: take ``lr * weight_decay`` of the weight off instead, in addition to the step (AdamW).

    Raises:
        ProtocolError: for a number out of range.
    """

    rereads = True

    def __init__(
        self,
        lr: Number = 1e-3,
        betas: tuple[Number, Number] = (0.9, 0.999),
        eps: Number = 1e-8,
        weight_decay: Number = 0.0,
        decoupled: bool = False,
    ) -> None:
        super().__init__()
        check = Arguments("Adam")
        if not isinstance(betas, (tuple, list)) or len(betas) != 2:
            check.refuse("betas", betas, "a pair of numbers, such as (0.9, 0.999)")
        self.beta1, self.beta2 = (check.learnable(f"beta{i}", b, 0, below=1) for i, b in enumerate(betas, start=1))
        self.lr, self.eps = check.learnable("lr", lr, 0), check.learnable("eps", eps, 0)
        self.weight_decay = check.learnable("weight_decay", weight_decay, 0)
        self.decoupled = check.flag("decoupled", decoupled)

    def channels(self) -> dict[str, Channel]:  # noqa: D102
        return {"mean": slow(), "square": slow(), "mean_of_one": common(), "square_of_one": common()}

    def update(self, s: View, channel: str, signal: Any) -> View:  # noqa: D102
        value = getattr(s, channel)
        if not _is_zero(self.weight_decay):
            if self.decoupled:
                value = value - self.lr * self.weight_decay * value
            else:
                signal = signal + self.weight_decay * value
        averaged = {
            "mean": (self.beta1, signal),
            "square": (self.beta2, signal * signal),
            "mean_of_one": (self.beta1, 1.0),
            "square_of_one": (self.beta2, 1.0),
        }
        for name, (beta, new) in averaged.items():
            own = f"{channel}_{name}"
            s = s.set(**{own: beta * getattr(s, own) + (1.0 - beta) * new})
        mean, square, mean_of_one, square_of_one = (getattr(s, f"{channel}_{name}") for name in averaged)
        # The root has no derivative at 0, where a synapse never received a message: differentiating through learning
        # would give NaN. 1e-30 is far below what eps hides.
        spread = sqrt(square + 1e-30) / sqrt(square_of_one) + self.eps
        return s.set(**{channel: value - self.lr / mean_of_one * (mean / spread)})

    def extra_repr(self) -> str:  # noqa: D102
        usual = {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.0}
        shown = [_shown(self, name) for name, number in usual.items() if _number(getattr(self, name)) != number]
        return ", ".join([_shown(self, "lr"), *shown, *(["decoupled=True"] if self.decoupled else [])])


def _shown(optimizer: Optimizer, name: str) -> str:
    """A hyper-parameter as people write it."""
    return f"{name}={_number(getattr(optimizer, name)):g}"


def _number(given: Any) -> float:
    """A hyper-parameter as a number of Python."""
    return given.item() if isinstance(given, Tensor) else given


def _is_zero(number: Any) -> bool:
    """Whether a hyper-parameter is the constant zero: what it scales need not be written down."""
    return isinstance(number, (int, float)) and number == 0
