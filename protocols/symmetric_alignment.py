"""Symmetric alignment.

Kunin et al. (2020), "Two routes to scalable credit assignment without weight symmetry", ICML, section 5. The feedback
weight decays, and follows the forward weight, which it must be able to read:

    b_ji <- b_ji - lr (decay b_ji - self w_ji)

With decay = self it descends |W - B'|^2 / 2, and B' settles at W. The published code has 1e-3 decay and 2e-3 self at
its scaling (here 2e-3 of both), for 450,000 steps.
"""

from __future__ import annotations

from typing import Any

from .alignment import Alignment


class SymmetricAlignment(Alignment):
    """Errors sent through feedback weights that follow the forward weights.

    Args:
        lr: learning rate of plain gradient descent.
        decay: of B.
        options: of :class:`Alignment`, among them ``self``, the coefficient of w, 1 by default.
    """

    def __init__(self, /, lr: Any = 0.1, *, decay: Any = 1.0, **options: Any) -> None:
        super().__init__(lr, **{"decay": decay, "self": 1.0, **options})
