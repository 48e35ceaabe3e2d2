"""Activation alignment.

Kunin et al. (2020), "Two routes to scalable credit assignment without weight symmetry", ICML, section 5. The feedback
weights, run forwards, are to make of the activity what the forward weights make of it:

    b_ji <- b_ji - lr (sparse <x_i q_j> - amp <x_i y_j>)         y = W x, q = B' x

With sparse = amp it descends |W x - B' x|^2 / 2, so that B' = W on all that the activity spans. That is ill conditioned
where activities are correlated: the paper needs an adaptive optimiser for B, and so it is here by default.
"""

from __future__ import annotations

from typing import Any

import mpgraph as mg

from .rule import Alignment


class ActivationAlignment(Alignment):
    """Errors sent through feedback weights that turn activity into what the forward weights turn it into.

    Args:
        lr: learning rate of plain gradient descent of W.
        sparse: coefficient of the pull of B' x towards zero.
        amp: coefficient of amplification.
        feedback_optimizer: inner optimiser of B; Adam by default.
        surrogate: activation whose derivative stands in for units that have none (a step).
        options: of :class:`Alignment`.
    """

    def __init__(
        self,
        lr: Any = 0.1,
        *,
        sparse: Any = 1.0,
        amp: Any = 1.0,
        feedback_optimizer: mg.Optimizer | None = None,
        surrogate: str | None = None,
        **options: Any,
    ) -> None:
        own = {"feedback_optimizer": feedback_optimizer or mg.Adam(0.01), "surrogate": surrogate, **options}
        super().__init__(lr, sparse=sparse, amp=amp, **own)
