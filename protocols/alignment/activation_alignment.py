"""Activation alignment.

Kunin et al. (2020), "Two routes to scalable credit assignment without weight symmetry", ICML, section 5. The feedback
weights, run forwards, are to make of the activity what the forward weights make of it:

    b_ji <- b_ji - lr (sparse <x_i q_j> - amp <x_i y_j>)         y = W x, q = B' x

With sparse = amp it descends |W x - B' x|^2 / 2, so that B' = W on all that the activity spans. That is ill conditioned
where activities are correlated: the paper needs an adaptive optimizer for B, and so it is here by default.
"""

from __future__ import annotations

import mpgraph as mg

from .rule import Alignment


class ActivationAlignment(Alignment):
    """Errors sent through feedback weights that turn activity into what the forward weights turn it into."""

    sparse, amp = 1.0, 1.0

    def usual_feedback_optimizer(self) -> mg.Optimizer:
        """Adam, as B descends an ill-conditioned square."""
        return mg.Adam(0.01)
