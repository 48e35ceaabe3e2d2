"""Local losses: a classifier at each layer, and no error from one layer to the next.

Nokland and Eidnes (2019), "Training neural networks with local error signals", ICML, the prediction loss. Each hidden
unit h has a linear classifier of its own, with the loss L of the network and its target t:

    forward     p_k = sum_i c_ki h_i
    backward    e_i = f'(z_i) sum_k c_ki dL(p, t)/dp_k      at the output e = dL/dz
    learn       w_ij <- w_ij - lr <e_i x_j>                 c_ki <- c_ki - lr <dL/dp_k h_i>

The classifiers are connections ``h -> loss`` of the pathway ``local``, which the rule adds.
"""

from __future__ import annotations

from typing import Any

import mpgraph as mg
from mpgraph import fast

from .backprop import Backprop, Weight
from .direct_feedback_alignment import ForwardOperation, ForwardWeight
from .pathways import hidden, joined


class Loss(mg.LossAgent):
    """Compares the output and each classifier with the target."""

    aggregate = {"local": "each"}
    errors = fast()

    def forward_update(self, s: mg.View, pre: Any, target: Any, local: Any = None) -> mg.View:
        """dL/dp of each classifier's prediction p."""
        s = s.set(z=pre, t=target)
        return s if local is None else s.set(errors=local.map(lambda p: s.gradient(p, target)))

    def backward_message_to_local(self, s: mg.View) -> Any:
        """To each classifier its own."""
        return s.errors


class Unit(mg.UnitAgent):
    """A hidden unit: its error comes from its own classifier."""

    def backward_update(self, s: mg.View, local: Any) -> mg.View:
        """e = f'(z) * what the classifier sends."""
        return mg.UnitAgent.backward_update(self, s, local)


class LocalLosses(Backprop):
    """Gradient descent on a loss of its own for each layer."""

    adds_connections = ("local",)
    agents = {
        "weight": ForwardWeight,
        "local": Weight,
        "unit": Unit,
        "output": mg.UnitAgent,
        "operation": ForwardOperation,
        "loss": Loss,
    }
    source = """
@inproceedings{nokland2019training,
  title={Training neural networks with local error signals},
  author={N{\\o}kland, Arild and Eidnes, Lars Hiller},
  booktitle={International Conference on Machine Learning}, pages={4839--4850}, year={2019}
}"""

    def rewrite(self, network: mg.Network) -> mg.Network:
        """The network with a classifier of each hidden unit at each loss.

        Raises:
            ProtocolError: for a network without a loss.
        """
        purpose = "for its layers to share"
        return joined(network, hidden(network), "local", "LocalLosses", purpose)
