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

import mpgraph as mg

from .rule import Alignment


class SymmetricAlignment(Alignment):
    """Errors sent through feedback weights that follow the forward weights."""

    decay, self = 0.5, 0.5

    def usual_feedback_optimizer(self) -> mg.Optimizer:
        """Gradient descent of rate 1."""
        return mg.SGD(1.0)
