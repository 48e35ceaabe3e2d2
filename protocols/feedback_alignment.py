"""Feedback alignment.

Lillicrap, Cownden, Tweed and Akerman (2016), "Random synaptic feedback weights support error backpropagation for
deep learning", Nature Communications 7, 13276. As backpropagation, but the error travels through fixed random
weights ``b`` in place of ``w``:

    backward    e_i = f'(z_i) sum_j b_ji e_j

``b`` has the layout of ``w``: ``b == w`` means B = W', and then the rule is backpropagation. The paper samples B
uniformly; here it is sampled like W (Xavier-uniform), so that errors keep their scale in networks of any width.
"""

from __future__ import annotations

from typing import Any

import mpgraph as mg
from mpgraph import slow

from .backprop import Backprop, Weight


class FeedbackWeight(Weight):
    """A synapse with a fixed random partner ``b`` that carries the error."""

    b = slow(init=mg.xavier_uniform, frozen=True)

    def backward_message(self, s: mg.View) -> Any:
        """b e, summed over j on its way to unit i."""
        return s.b * s.e


class FeedbackAlignment(Backprop):
    """Gradient descent with errors sent through fixed random weights."""

    agents = {"weight": FeedbackWeight, "bias": Weight}
    source = """
@article{lillicrap2016random,
  title={Random synaptic feedback weights support error backpropagation for deep learning},
  author={Lillicrap, Timothy P. and Cownden, Daniel and Tweed, Douglas B. and Akerman, Colin J.},
  journal={Nature Communications}, volume={7}, pages={13276}, year={2016}
}"""
