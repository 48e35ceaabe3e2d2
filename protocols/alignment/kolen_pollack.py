"""Kolen and Pollack's rule.

Kolen and Pollack (1994), "Backpropagation without weight transport", IEEE ICNN; in the form of Akrout, Wilson,
Humphreys, Lillicrap and Tweed (2019), "Deep learning without weight transport", NeurIPS, section 3.1. Forward and
feedback weights get the same increment, and the same decay:

    w_ji <- w_ji - lr (<e_j x_i> + decay w_ji)
    b_ji <- b_ji - lr (<e_j x_i> + decay b_ji)

so that b - w shrinks by 1 - lr decay in each step, whatever is learned. Each synapse needs only what meets at it. Decay
is within the rate, as in an optimizer; biases do not decay. Akrout et al. write 1 - lambda for the factor, and publish
runs without decay (lambda = 0), where b - w stays as it is and only its share falls.

That needs equal increments: ``scaling="code"``, which would decay B twice as fast as W, is refused. Options that part
them are allowed, but give it up: ``forward_decay``, ``feedback_optimizer``, more primitives, and ``alternate``, by
which W and B learn from different batches, so that b - w also keeps the difference between their gradients.
"""

from __future__ import annotations

import mpgraph as mg
from mpgraph.agents.options import option

from .rule import Alignment, Coefficient


class KolenPollack(Alignment):
    """Errors sent through feedback weights that change exactly as the forward weights do.

    Raises:
        ProtocolError: for ``scaling="code"``, and as :class:`Alignment` does.
    """

    decay: Coefficient = option(0.01, "of W and of B.")
    task, forward_decay = 1.0, None
    source = """
@inproceedings{kolen1994backpropagation,
  title={Backpropagation without weight transport},
  author={Kolen, John F. and Pollack, Jordan B.},
  booktitle={IEEE International Conference on Neural Networks}, volume={3}, pages={1375--1380}, year={1994}
}
@inproceedings{akrout2019deep,
  title={Deep learning without weight transport},
  author={Akrout, Mohamed and Wilson, Collin and Humphreys, Peter C. and Lillicrap, Timothy and Tweed, Douglas B.},
  booktitle={Advances in Neural Information Processing Systems}, volume={32}, year={2019}
}"""

    def setup(self) -> None:
        """Decay W as B."""
        if self.scaling == "code":
            raise mg.ProtocolError(
                "KolenPollack: scaling='code' would decay B twice as fast as W, so that they never meet; leave it out, "
                "and give decay as it is to act on both"
            )
        if self.forward_decay is None:
            self.__dict__["forward_decay"] = self.decay
        super().setup()
