"""Weight mirrors.

Akrout, Wilson, Humphreys, Lillicrap and Tweed (2019), "Deep learning without weight transport", NeurIPS, section 3.2;
as a sum of primitives in Kunin et al. (2020), section 3.2. The units below are driven by noise, the feedback weight
grows with what it meets at both ends, and decays:

    x_i = sigma xi_i,   y_j = sum_i w_ji x_i
    b_ji <- b_ji + amp <x_i y_j> - decay b_ji

On average <x y'> = sigma^2 W', so that B settles at amp sigma^2 / decay times W'. Noise and activity take turns in the
paper, which stops one to let the other run. Here each step does both, as neither disturbs the other; ``alternate``
takes turns. The paper subtracts from y its answer to zero noise, the unit's bias; here y has no bias to begin with. B
has a rate of its own, 1 by default; a slower mirror is less noisy, but lags behind W.
"""

from __future__ import annotations

import mpgraph as mg

from .rule import Alignment


class WeightMirror(Alignment):
    """Errors sent through feedback weights that mirror how noise passes the forward weights.

    A ``decay`` of ``amp * noise ** 2`` makes B as large as W'; with ``noise=None`` the activity drives the units.
    """

    amp, decay, noise = 0.1, 0.1, 1.0
    source = """
@inproceedings{akrout2019deep,
  title={Deep learning without weight transport},
  author={Akrout, Mohamed and Wilson, Collin and Humphreys, Peter C. and Lillicrap, Timothy and Tweed, Douglas B.},
  booktitle={Advances in Neural Information Processing Systems}, volume={32}, year={2019}
}"""

    def usual_feedback_optimizer(self) -> mg.Optimizer:
        """Gradient descent of rate 1."""
        return mg.SGD(1.0)
