"""Direct random target projection.

Frenkel, Lefebvre and Bol (2021), "Learning without feedback: fixed random learning signals allow for feedforward
training of deep neural networks", Frontiers in Neuroscience 15. Direct feedback alignment in which hidden units receive
the *target* in place of the error, so that a layer can learn before those above have computed anything:

    backward    e_i = f'(z_i) sum_k b_ki t_k          at the output e = dL/dz
    learn       w_ij <- w_ij - lr <e_i x_j>
"""

from __future__ import annotations

from typing import Any

import mpgraph as mg

from .direct_feedback_alignment import DirectFeedbackAlignment


class Loss(mg.LossAgent):
    """Sends its output the error, and hidden units the target."""

    def backward_message_to_feedback(self, s: mg.View) -> Any:
        """The target."""
        return s.t


class DirectRandomTargetProjection(DirectFeedbackAlignment):
    """Hidden units learn from the target, sent through fixed random weights."""

    agents = {"loss": Loss}
    source = """
@article{frenkel2021learning,
  title={Learning without feedback: fixed random learning signals allow for feedforward training of deep neural
    networks},
  author={Frenkel, Charlotte and Lefebvre, Martin and Bol, David},
  journal={Frontiers in Neuroscience}, volume={15}, year={2021}
}"""
