"""Direct feedback alignment.

Nokland (2016), "Direct feedback alignment provides learning in deep neural networks", NeurIPS. Every hidden unit hears
the error of the loss itself, through fixed random weights of its own, at once and whatever lies between:

    backward    e_i = f'(z_i) sum_k b_ki (dL/dy)_k
    learn       w_ij <- w_ij - lr <e_i x_j>

The feedback is drawn into the network before it is compiled: a connection ``h -> loss`` for each unit ``h`` that is no
output. It carries nothing forward, and fills a role of its own, ``feedback``; whatever else is sent back is not heard.
The paper draws B uniformly; here it is drawn like W (Xavier-uniform). Units of a kind without derivative learn with a
surrogate's, if one is chosen.
"""

from __future__ import annotations

from typing import Any

import mpgraph as mg
from mpgraph import Agent, fast, slow

from .backprop import Backprop, Weight


class ForwardWeight(Weight):
    """A synapse that sends nothing back."""

    backward_message = None  # type: ignore[assignment]


class Feedback(Agent):
    """A fixed random synapse through which a hidden unit hears the loss."""

    b = slow(init=mg.xavier_uniform, frozen=True)
    e = fast()

    def backward_update(self, s: mg.View, post: Any) -> mg.View:
        """Keep the error of the loss."""
        return s.set(e=post)

    def backward_message(self, s: mg.View) -> Any:
        """b e, summed over outputs k on its way to unit i."""
        return s.b * s.e


class DirectUnit(mg.UnitAgent):
    """A hidden unit: its error comes from the loss alone."""

    def backward_update(self, s: mg.View, feedback: Any) -> mg.View:
        """e = f'(z) * the feedback."""
        return mg.UnitAgent.backward_update(self, s, feedback)


class DirectBatchNorm(DirectUnit, mg.BatchNormAgent):
    """A hidden batch normalisation: likewise."""

    forward_update = mg.BatchNormAgent.forward_update


class ForwardOperation(mg.OperationAgent):
    """An operation that sends nothing back."""

    backward_update = backward_message = None  # type: ignore[assignment]


class DirectFeedbackAlignment(Backprop):
    """Gradient descent with the output error sent to every unit through fixed random weights.

    Args:
        lr: learning rate of plain gradient descent, a float or ``mg.learnable(0.1)``; ignored with ``optimizer``.
        optimizer: another inner optimiser.
        surrogate: activation whose derivative stands in for units that have none (a step).
    """

    draws = ("feedback",)
    source = """
@inproceedings{nokland2016direct,
  title={Direct feedback alignment provides learning in deep neural networks},
  author={N{\\o}kland, Arild},
  booktitle={Advances in Neural Information Processing Systems}, volume={29}, year={2016}
}"""

    def __init__(
        self,
        lr: Any = 0.1,
        *,
        optimizer: mg.Optimizer | None = None,
        surrogate: str | None = None,
        **agents: Agent,
    ) -> None:
        own: dict[str, Any] = {
            "weight": ForwardWeight(),
            "feedback": Feedback(),
            "unit": DirectUnit(surrogate),
            "output": mg.UnitAgent(surrogate),
            "batchnorm": DirectBatchNorm(),
            "operation": ForwardOperation(),
        }
        super().__init__(lr, optimizer=optimizer, surrogate=surrogate, **{**own, **agents})

    def rewrite(self, network: mg.Network) -> mg.Network:
        """The network with a feedback connection between every hidden unit and every loss.

        Raises:
            ProtocolError: for a network without a loss.
        """
        if not network.losses:
            raise mg.ProtocolError("DirectFeedbackAlignment: the network has no loss to feed back from; give it one")
        for name, unit in network.units.items():
            if not (unit.is_input or unit.operands or name in network.outputs):
                for loss in network.losses:
                    network.connect(name, loss, pathway="feedback")
        return network
