"""Direct feedback alignment.

Nokland (2016), "Direct feedback alignment provides learning in deep neural networks", NeurIPS. Every hidden unit
receives the error of the loss itself, at once, through fixed random weights of its own, whatever lies between:

    backward    e_i = f'(z_i) sum_k b_ki (dL/dy)_k
    learn       w_ij <- w_ij - lr <e_i x_j>

The feedback is added to the network before it is compiled: a connection ``h -> loss`` for each unit ``h`` that is not
an output. It carries nothing forward and fills a role of its own, ``feedback``; whatever else is sent back is ignored.
The paper samples B uniformly; here it is sampled like W (Xavier-uniform).
"""

from __future__ import annotations

from typing import Any

import mpgraph as mg
from mpgraph import Agent, fast, slow

from .backprop import Backprop, Weight
from .pathways import hidden, joined


class ForwardWeight(Weight):
    """A synapse that sends nothing back."""

    backward_message = None  # type: ignore[assignment]


class Feedback(Agent):
    """A fixed random synapse from the loss to a hidden unit."""

    b = slow(init=mg.xavier_uniform, frozen=True)
    e = fast()

    def backward_update(self, s: mg.View, post: Any) -> mg.View:
        """Keep the error of the loss."""
        return s.set(e=post)

    def backward_message(self, s: mg.View) -> Any:
        """b e, summed over outputs k on its way to unit i."""
        return s.b * s.e


class DirectUnit(mg.UnitAgent):
    """A hidden unit: its error comes only from the loss."""

    def backward_update(self, s: mg.View, feedback: Any) -> mg.View:
        """e = f'(z) * the feedback."""
        return mg.UnitAgent.backward_update(self, s, feedback)


class ForwardOperation(mg.UnitAgent):
    """An operation that sends nothing back."""

    backward_update = backward_message = None  # type: ignore[assignment]


class DirectFeedbackAlignment(Backprop):
    """Gradient descent with the output error sent to every unit through fixed random weights."""

    adds_connections = ("feedback",)
    agents = {
        "weight": ForwardWeight,
        "feedback": Feedback,
        "unit": DirectUnit,
        "output": mg.UnitAgent,
        "operation": ForwardOperation,
    }
    source = """
@inproceedings{nokland2016direct,
  title={Direct feedback alignment provides learning in deep neural networks},
  author={N{\\o}kland, Arild},
  booktitle={Advances in Neural Information Processing Systems}, volume={29}, year={2016}
}"""

    def rewrite(self, network: mg.Network) -> mg.Network:
        """The network with a feedback connection between every hidden unit and every loss.

        Raises:
            ProtocolError: for a network without a loss.
        """
        purpose = "to feed back from"
        return joined(network, hidden(network), "feedback", "DirectFeedbackAlignment", purpose)
