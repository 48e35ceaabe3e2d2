"""Inner optimisers: what turns a rule's update signal into a new value of the channel."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from .agent import View
from .sealed import Sealed


class Optimizer(Sealed, ABC):
    """Base of inner optimisers, written like a rule: for one agent, on its view."""

    @abstractmethod
    def update(self, s: View, channel: str, signal: Any) -> View:
        """The view after the step.

        Args:
            s: the agent; ``getattr(s, channel)`` is the present value.
            channel: name of the channel to write.
            signal: the increment to go against, averaged over the batch.
        """


class SGD(Optimizer):
    """Plain gradient descent: ``w - lr * signal``.

    Args:
        lr: learning rate; a float is a constant, ``mg.learnable(0.1)`` a meta-parameter.
    """

    def __init__(self, lr: Any = 0.1) -> None:
        super().__init__()
        self.lr = lr

    def update(self, s: View, channel: str, signal: Any) -> View:  # noqa: D102
        return s.set(**{channel: getattr(s, channel) - self.lr * signal})

    def extra_repr(self) -> str:  # noqa: D102
        return f"lr={float(self.lr):g}"
