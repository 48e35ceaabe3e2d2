"""Node perturbation.

Fiete and Seung (2006), "Gradient learning in spiking neural networks by dynamic perturbation of conductances", Physical
Review Letters 97, 048104; Werfel, Xie and Seung (2005), Neural Computation 17. The network runs twice, the second time
with noise at every unit; what the noise did to the loss shows each unit its direction:

    forward     z_i = sum_j w_ij x_j                      loss L
    perturb     z'_i = sum_j w_ij x'_j + sigma xi_i       loss L'
    backward    e_i = (L' - L) / sigma * xi_i             an estimate of dL/dz_i
    learn       w_ij <- w_ij - lr <e_i x_j>

No derivative is used anywhere, so any unit will do. The one number L' - L reaches every unit from the loss itself, by
connections of the pathway ``reward`` that are added to the network before it is compiled. Each example has a difference
of its own.
"""

from __future__ import annotations

from typing import Any

import mpgraph as mg
from mpgraph import Agent, Protocol, fast
from mpgraph.agents.builtin import Constant, Input
from mpgraph.agents.options import Number, option

from .backprop import Weight as PlainWeight

AGAIN = {"perturb": "forward"}  # inputs, targets and constants send the same in both runs


class Weight(PlainWeight):
    """A synapse of backpropagation that sends nothing back, and carries the perturbed activity as well."""

    noisy_x = fast()
    backward_message = None  # type: ignore[assignment]

    def perturb_update(self, s: mg.View, pre: Any) -> mg.View:
        """Keep the perturbed activity."""
        return s.set(noisy_x=pre)

    def perturb_message(self, s: mg.View) -> Any:
        """w x'."""
        return s.w * s.noisy_x


class Reward(Agent):
    """A connection through which a unit receives what the noise did to a loss."""

    change = fast()

    def backward_update(self, s: mg.View, post: Any) -> mg.View:
        """Keep it."""
        return s.set(change=post)

    def backward_message(self, s: mg.View) -> Any:
        """Send it on."""
        return s.change


class Unit(mg.UnitAgent):
    """A unit to which noise is added in the second run."""

    noisy_y, xi = fast(), fast()

    def __init__(self, rule: NodePerturbation) -> None:
        super().__init__()
        self.sigma = rule.sigma

    def perturb_update(self, s: mg.View, pre: Any) -> mg.View:
        """y' = f(z' + sigma xi)."""
        xi = s.normal()
        return s.set(xi=xi, noisy_y=s.apply(pre + self.sigma * xi))

    def perturb_message(self, s: mg.View) -> Any:
        """The perturbed activity."""
        return s.noisy_y

    def backward_update(self, s: mg.View, reward: Any) -> mg.View:
        """e = (L' - L) / sigma * xi."""
        return s.set(e=reward * s.xi / self.sigma)


class Operation(mg.UnitAgent):
    """An operation, run twice; noise comes to its operands and to the unit above."""

    noisy_y = fast()
    backward_update = backward_message = None  # type: ignore[assignment]

    def perturb_update(self, s: mg.View, pre: mg.Each) -> mg.View:
        """f(z1', z2', ...)."""
        return s.set(noisy_y=s.apply(pre))

    def perturb_message(self, s: mg.View) -> Any:
        """The perturbed result."""
        return s.noisy_y


class Loss(Agent):
    """Compares the two losses."""

    z, t, noisy_z, change = fast(), fast(), fast(), fast()

    def forward_update(self, s: mg.View, pre: Any, target: Any) -> mg.View:
        """Keep the prediction and the target."""
        return s.set(z=pre, t=target)

    def perturb_update(self, s: mg.View, pre: Any) -> mg.View:
        """Keep the perturbed prediction."""
        return s.set(noisy_z=pre)

    def backward_update(self, s: mg.View) -> mg.View:
        """L' - L in equal shares, so that the sum over all agents of the loss is the whole."""
        return s.set(change=(s.loss(s.noisy_z, s.t) - s.loss(s.z, s.t)) / s.population(1.0))

    def backward_message(self, s: mg.View) -> Any:
        """The share."""
        return s.change


class NodePerturbation(Protocol):
    """Gradient descent on what random noise at the units reveals; needs no derivative."""

    lr = 0.01
    sigma: Number = option(0.1, "standard deviation of the noise.", positional=True)
    without = ("surrogate",)

    passes = ("forward", "perturb", "backward", "learn")
    adds_connections = ("reward",)
    agents = {
        "input": Input(AGAIN),
        "target": Input(AGAIN),
        "constant": Constant(1.0, AGAIN),
        "zero": Constant(0.0, AGAIN),
        "weight": Weight,
        "reward": Reward,
        "unit": Unit,
        "operation": Operation,
        "loss": Loss,
    }
    source = """
@article{fiete2006gradient,
  title={Gradient learning in spiking neural networks by dynamic perturbation of conductances},
  author={Fiete, Ila R. and Seung, H. Sebastian},
  journal={Physical Review Letters}, volume={97}, pages={048104}, year={2006}
}"""

    def rewrite(self, network: mg.Network) -> mg.Network:
        """The network with a reward connection between every unit and every loss."""
        for name, unit in network.units.items():
            if not (unit.is_input or unit.operands):
                for loss in network.losses:
                    network.connect(name, loss, pathway="reward")
        return network
