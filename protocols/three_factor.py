"""Three-factor learning: Hebbian coincidences that a reward turns into changes.

Fremaux and Gerstner (2016), "Neuromodulated spike-timing-dependent plasticity, and theory of three-factor learning
rules", Frontiers in Neural Circuits 9. Units try something out; a synapse remembers what it did (its eligibility),
until one number that reaches all synapses alike says whether that was good:

    forward     z_i = sum_j w_ij x_j                          loss L
    explore     y_i = f(sum_j w_ij x_j + sigma xi_i)          loss L'
    reward      M = R - R_expected, with R = -L'
    learn       e_ij <- decay e_ij + h_i x_j                  w_ij <- w_ij + lr <M e_ij>

- ``form="reinforce"``: h_i = xi_i / sigma. Without decay, <M e> is an unbiased estimate of the gradient of the reward
  that a network of noisy units expects (Williams, 1992), whatever the units are: no derivative is used.
- ``form="bcm"``: for units that are no outputs h_i = y_i (y_i - theta_i), with theta_i the running mean of y_i^2 over
  ``memory`` steps (Bienenstock, Cooper and Munro, 1982): what is more active than usual is strengthened if that was
  good. This is no gradient.
- ``expected="stimulus"``: R_expected = -L, what the network earns on this very example without noise.
  ``"running"``: the mean of R over the last steps, which learns much more slowly, as examples differ in R by more than
  noise does.

M comes from the loss by connections of the pathway ``reward``, which the rule adds. A decay above 0 keeps e of every
synapse and slot of the batch from step to step, for rewards that come late in a stream.
"""

from __future__ import annotations

from typing import Any, Literal

import torch

import mpgraph as mg
from mpgraph import Agent, Protocol, carry, common, fast, option, slow

from .pathways import joined


def steps(s: mg.View, memory: float) -> Any:
    """Over how many steps a running mean goes: all at first."""
    return torch.clamp(s.step + 1.0, max=memory)


class Weight(Agent):
    """A synapse with an eligibility."""

    w = slow(init=mg.xavier_uniform)
    x = fast()
    same_as = {"explore": "forward"}

    def __init__(self, rule: ThreeFactor) -> None:
        super().__init__()
        self.decay = rule.decay

    def channels(self) -> dict[str, mg.Channel]:
        """The eligibility is kept if it lasts."""
        return {**super().channels(), **({"e": carry(per="use")} if self.decay else {})}

    def forward_update(self, s: mg.View, pre: Any) -> mg.View:
        """Keep the activity below."""
        return s.set(x=pre)

    def forward_message(self, s: mg.View) -> Any:
        """w x."""
        return s.w * s.x

    def learn_update(self, s: mg.View, post: Any) -> mg.View:
        """w + lr <M e>."""
        if not self.decay:
            return s.descend(w=-s.examples(post * s.x))
        e = self.decay * s.e + post["h"] * s.x
        return s.set(e=e).descend(w=-s.examples(post["m"] * e))


class Reward(Agent):
    """A connection that carries the reward to a unit."""

    m = fast()

    def reward_update(self, s: mg.View, post: Any) -> mg.View:
        """Keep it."""
        return s.set(m=post)

    def reward_message(self, s: mg.View) -> Any:
        """Send it on."""
        return s.m


class Unit(mg.UnitAgent):
    """A unit that tries something out."""

    xi, m, h, mh = fast(), fast(), fast(), fast()
    operations = False

    def __init__(self, rule: ThreeFactor) -> None:
        super().__init__()
        self.sigma, self.bcm, self.memory, self.decay = rule.sigma, rule.form == "bcm", rule.memory, rule.decay

    def channels(self) -> dict[str, mg.Channel]:
        """Also theta, for BCM."""
        return {**super().channels(), **({"theta": slow()} if self.bcm else {})}

    def explore_update(self, s: mg.View, pre: Any) -> mg.View:
        """y = f(z + sigma xi)."""
        xi = s.normal()
        return s.set(xi=xi, y=s.apply(pre + self.sigma * xi))

    def explore_message(self, s: mg.View) -> Any:
        """The activity."""
        return s.y

    def reward_update(self, s: mg.View, reward: Any) -> mg.View:
        """M and h."""
        h = s.xi / self.sigma
        if self.bcm:
            theta = s.theta + (s.examples(s.y * s.y) - s.theta) / steps(s, self.memory)
            s, h = s.set(theta=theta), s.y * (s.y - theta)
        return s.set(m=reward, h=h, mh=reward * h)

    def learn_message(self, s: mg.View) -> Any:
        """M h; both apart to synapses that keep their eligibility."""
        return {"m": s.m, "h": s.h} if self.decay else s.mh


class Output(Unit):
    """An output, which follows the gradient under both forms."""

    def __init__(self, rule: ThreeFactor) -> None:
        super().__init__(rule)
        self.bcm = False


class Operation(mg.UnitAgent):
    """An operation, run twice; noise comes to its operands and to the unit above."""

    same_as = {"explore": "forward"}


class Loss(Agent):
    """Says how good it was, in equal shares, so that the sum over all agents of the loss is the whole."""

    z, t, tried, m = fast(), fast(), fast(), fast()
    usual = common()

    def __init__(self, rule: ThreeFactor) -> None:
        super().__init__()
        self.running, self.memory = rule.expected == "running", rule.memory

    def forward_update(self, s: mg.View, pre: Any, target: Any) -> mg.View:
        """Keep the prediction and the target."""
        return s.set(z=pre, t=target)

    def explore_update(self, s: mg.View, pre: Any) -> mg.View:
        """Keep what was tried."""
        return s.set(tried=pre)

    def reward_update(self, s: mg.View) -> mg.View:
        """M = R - R_expected."""
        reward = -s.loss(s.tried, s.t)
        expected = s.usual if self.running else -s.loss(s.z, s.t)  # of earlier steps, so that M is no part of it
        usual = s.usual + (s.all(reward) - s.usual) / steps(s, self.memory)
        return s.set(m=(reward - expected) / s.population(1.0), **({"usual": usual} if self.running else {}))

    def reward_message(self, s: mg.View) -> Any:
        """The share."""
        return s.m


class ThreeFactor(Protocol):
    """Reward-modulated Hebbian learning with eligibility traces."""

    lr = 0.03
    sigma: float = option(0.1, "standard deviation of the noise.", above=0)
    form: Literal["reinforce", "bcm"] = option("reinforce", "what makes a synapse eligible, see above.")
    expected: Literal["stimulus", "running"] = option("stimulus", "which reward is no surprise, see above.")
    decay: float = option(0.0, "share of an eligibility that is left after a step.", low=0, below=1)
    memory: float = option(20.0, "steps, of running means.", low=1)
    without = ("surrogate",)
    passes = ("forward", "explore", "reward", "learn")
    adds_connections = ("reward",)
    agents = {
        "weight": Weight,
        "reward": Reward,
        "unit": Unit,
        "output": Output,
        "operation": Operation,
        "loss": Loss,
    }
    source = """
@article{fremaux2016neuromodulated,
  title={Neuromodulated spike-timing-dependent plasticity, and theory of three-factor learning rules},
  author={Fr{\\'e}maux, Nicolas and Gerstner, Wulfram},
  journal={Frontiers in Neural Circuits}, volume={9}, pages={85}, year={2016}
}
@article{williams1992simple,
  title={Simple statistical gradient-following algorithms for connectionist reinforcement learning},
  author={Williams, Ronald J.},
  journal={Machine Learning}, volume={8}, pages={229--256}, year={1992}
}"""

    def rewrite(self, network: mg.Network) -> mg.Network:
        """The network with a reward connection between every unit and every loss.

        Raises:
            ProtocolError: for a network without a loss.
        """
        units = [name for name, unit in network.units.items() if not (unit.is_input or unit.operands)]
        return joined(network, units, "reward", "ThreeFactor", "that could reward it")
