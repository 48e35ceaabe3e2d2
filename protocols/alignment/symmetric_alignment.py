"""Symmetric alignment.

Kunin et al. (2020), "Two routes to scalable credit assignment without weight symmetry", ICML, section 5. The feedback
weight decays, and follows the forward weight, which it must be able to read:

    b_ji <- b_ji - (decay b_ji - self w_ji)

With decay = self it descends |W - B'|^2 / 2, and B' settles at W. B has a rate of its own, 1 by default, so that it
covers the share ``decay`` of its distance to W' in each step. The published code has 1e-3 decay and 2e-3 self at its
scaling (here 2e-3 of both, times the rate of W), for 450,000 steps; in shorter training a B that lags behind costs
accuracy, as an old gradient does, at angles of a degree.
"""

from __future__ import annotations

from typing import Any

import mpgraph as mg

from .rule import Alignment


class SymmetricAlignment(Alignment):
    """Errors sent through feedback weights that follow the forward weights.

    Args:
        lr: learning rate of plain gradient descent.
        decay: of B.
        feedback_optimizer: inner optimiser of B; gradient descent of rate 1 by default.
        surrogate: activation whose derivative stands in for units that have none (a step).
        options: of :class:`Alignment`, among them ``self``, the coefficient of w, 0.5 by default.
    """

    def __init__(
        self,
        /,
        lr: Any = 0.1,
        *,
        decay: Any = 0.5,
        feedback_optimizer: mg.Optimizer | None = None,
        surrogate: str | None = None,
        **options: Any,
    ) -> None:
        own = {"feedback_optimizer": feedback_optimizer or mg.SGD(1.0), "surrogate": surrogate}
        super().__init__(lr, **{"decay": decay, "self": 0.5, **own, **options})
