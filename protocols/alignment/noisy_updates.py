"""Noisy updates: how robust is a rule?

Kunin et al. (2020), "Two routes to scalable credit assignment without weight symmetry", ICML, section 5, Fig. 5. After
every step of an inner optimizer Gaussian noise is added to what it wrote, scaled by the learning rate, as in the
published code: past the optimizer's averages, so that Adam does not shrink it.

    b <- step(b) + lr N(0, sigma^2)
"""

from __future__ import annotations

from typing import Any

import mpgraph as mg


class NoisyUpdates(mg.Optimizer):
    """An inner optimizer whose steps are noisy: ``SymmetricAlignment(feedback_optimizer=NoisyUpdates(mg.SGD(0.1)))``.

    Args:
        optimizer: whose steps; its learning rate scales the noise.
        sigma: standard deviation of the noise, in units of the gradient.

    Raises:
        ProtocolError: for an optimizer without a learning rate, or a negative sigma.
    """

    def __init__(self, optimizer: mg.SGD | mg.Adam, sigma: float = 0.01) -> None:
        super().__init__()
        if not isinstance(optimizer, (mg.SGD, mg.Adam)):
            raise mg.ProtocolError(
                f"NoisyUpdates({optimizer!r}): noise is scaled by a learning rate, so it takes an mg.SGD or mg.Adam"
            )
        if not sigma >= 0.0:
            raise mg.ProtocolError(f"NoisyUpdates: sigma={sigma!r} must not be negative")
        self.optimizer, self.sigma, self.rereads = optimizer, sigma, optimizer.rereads

    def channels(self) -> dict[str, mg.Channel]:
        """Those of the optimizer."""
        return self.optimizer.channels()

    def update(self, s: mg.View, channel: str, signal: Any) -> mg.View:
        """The optimizer's step, then noise."""
        s = self.optimizer.update(s, channel, signal)
        return s.set(**{channel: getattr(s, channel) + self.optimizer.lr * self.sigma * s.normal(per="agent")})

    def extra_repr(self) -> str:
        """Arguments, for ``repr``."""
        return f"{self.optimizer!r}, sigma={self.sigma:g}"
