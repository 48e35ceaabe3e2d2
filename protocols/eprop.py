"""e-prop: gradients of recurrent networks by eligibility traces, forward in time.

Bellec, Scherr, Subramoney, Hajek, Salaj, Legenstein and Maass (2020), "A solution to the learning dilemma for recurrent
networks of spiking neurons", Nature Communications 11. A step is one tick t; outputs y do not leak (alpha = 0):

    forward     h_j <- alpha h_j + (1 - alpha) (sum_i w_ji z_i + b_j) - reset z_j'
                z_j = f(h_j), and z_j' that of the tick before
    trace       p_i <- alpha p_i + (1 - alpha) z_i      the eligibility trace is f'(h_j) p_i
    backward    e_j = f'(h_j) sum_k b_kj (dL/dy)_k      at the output e = dL/dz
    learn       w_ji <- w_ji - lr <e_j p_i>

The paper's weights are 1 - alpha times these, in which the usual initial weights suit any alpha. With
``feedback="symmetric"`` b is the weight w, and of one layer the sum of the updates is the gradient of the summed losses
in which all that goes round through recurrent weights and the reset is left out; a unit's own potential is not. Rate
units are those of the network; spiking ones are units with a step, a threshold as their bias, ``reset`` and
``surrogate``.
"""

from __future__ import annotations

from typing import Any, Literal

import mpgraph as mg
from mpgraph import Agent, Number, carry, fast, option, slow

from .backprop import Backprop
from .direct_feedback_alignment import Feedback, ForwardOperation
from .pathways import hidden, joined


class Synapse(Agent):
    """A synapse with the trace p of what it has heard, the same for all units that hear one."""

    w = slow(init=mg.xavier_uniform)
    p = carry(end="pre", per="use")
    x, e = fast(), fast()

    def forward_update(self, s: mg.View, pre: Any) -> mg.View:
        """Keep what it hears."""
        return s.set(x=pre)

    def forward_message(self, s: mg.View) -> Any:
        """w z."""
        return s.w * s.x

    def trace_update(self, s: mg.View, post: Any) -> mg.View:
        """p <- alpha p + (1 - alpha) z, with the unit's alpha."""
        return s.set(p=post["keep"] * s.p + post["share"] * s.x)

    def backward_update(self, s: mg.View, post: Any) -> mg.View:
        """Keep the learning signal."""
        return s.set(e=post)

    def learn_update(self, s: mg.View) -> mg.View:
        """<e p>."""
        return s.descend(w=s.examples(s.e * s.p))


class SymmetricSynapse(Synapse):
    """A synapse through which the learning signal goes back, within a tick."""

    def backward_message(self, s: mg.View) -> Any:
        """w e."""
        return s.w * s.e


class Leaky(mg.UnitAgent):
    """A unit with a potential that leaks."""

    h = carry(per="use")
    last = carry("kept", per="use")

    def __init__(self, rule: EProp) -> None:
        super().__init__()
        self.decay, self.reset = rule.decay, rule.reset
        self.kept = None if rule.reset else 0  # a channel of size 0 is not there

    def forward_update(self, s: mg.View, pre: Any) -> mg.View:
        """The potential, and what the unit makes of it."""
        h = self.decay * s.h + (1.0 - self.decay) * pre - (self.reset * s.last if self.reset else 0.0)
        s, y = s.activate(h)
        return s.set(h=h, z=h, y=y, **({"last": y} if self.reset else {}))

    def trace_message(self, s: mg.View) -> Any:
        """alpha and 1 - alpha."""
        return {"keep": self.decay, "share": 1.0 - self.decay}

    def readout(self, s: mg.View) -> Any:
        """z."""
        return s.y


class DirectLeaky(Leaky):
    """A unit whose learning signal comes from the loss."""

    def backward_update(self, s: mg.View, feedback: Any) -> mg.View:
        """e = f'(h) * the feedback."""
        return Leaky.backward_update(self, s, feedback)


class Output(mg.UnitAgent):
    """An output: it does not leak."""

    def trace_message(self, s: mg.View) -> Any:
        """0 and 1."""
        return {"keep": 0.0, "share": 1.0}

    def readout(self, s: mg.View) -> Any:
        """z."""
        return s.y


class EProp(Backprop):
    """Gradient descent at every tick by eligibility traces and a learning signal of that tick."""

    decay: Number = option(0.9, "alpha: share of a potential that stays for the next tick.", low=0, below=1)
    feedback: Literal["random", "symmetric"] = option(
        "random", "of the learning signal: fixed weights from the loss to each unit, or the weights themselves."
    )
    reset: float = option(0.0, "times a unit's activity, taken from its potential in the next tick.", low=0)
    online = True
    passes = ("forward", "trace", "backward", "learn")
    predict_passes = ("forward", "trace")
    adds_connections = ("feedback",)
    agents = {
        "weight": lambda rule: Synapse() if rule.feedback == "random" else SymmetricSynapse(),
        "feedback": Feedback,
        "unit": lambda rule: DirectLeaky(rule) if rule.feedback == "random" else Leaky(rule),
        "output": Output,
        "operation": lambda rule: ForwardOperation() if rule.feedback == "random" else mg.UnitAgent(),
    }
    source = """
@article{bellec2020solution,
  title={A solution to the learning dilemma for recurrent networks of spiking neurons},
  author={Bellec, Guillaume and Scherr, Franz and Subramoney, Anand and Hajek, Elias and Salaj, Darjan and
    Legenstein, Robert and Maass, Wolfgang},
  journal={Nature Communications}, volume={11}, pages={3625}, year={2020}
}"""

    def rewrite(self, network: mg.Network) -> mg.Network:
        """The network with a feedback connection between every hidden unit and every loss, if it is random.

        Raises:
            ProtocolError: for random feedback in a network without a loss.
        """
        if self.feedback == "symmetric":
            return network
        return joined(network, hidden(network), "feedback", type(self).__name__, "to feed back from")
