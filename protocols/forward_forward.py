"""Forward-forward: two forward passes with opposite aims, and no backward pass.

Hinton (2022), "The forward-forward algorithm: some preliminary investigations". Every unit is a layer with an aim of
its own: much activity for an input with its true label (positive), little for one with a wrong label (negative).

    run         a_l = W_l x_l-1 + b_l     y_l = f(a_l)     x_l = y_l / |y_l|: only the direction is passed on
    goodness    g_l = sum_j y_j^2         p(positive) = 1 / (1 + exp(theta n - g)), with n the size of the unit
    learn       L_l = -log p(positive) of the positive run - log (1 - p(positive)) of the negative one
                W_l <- W_l - lr <dL_l/da_l x_l-1'>, summed over both runs
    predict     for each label the goodness with it, summed over all layers

The label comes in beside the input, by connections ``h -> loss`` of the pathway ``label`` to the units that hear an
input; connections ``h -> y`` of the pathway ``goodness`` collect what is predicted. The rule adds both. A wrong label
is sampled evenly from all but the true one. The output is a layer like the others. In ``score`` all labels are run at
once: what is one number elsewhere is a vector there, with an entry for each. Hinton leaves the first layer out of the
sum, which a network of one hidden layer cannot.
"""

from __future__ import annotations

from typing import Any

import torch

import mpgraph as mg
from mpgraph import Agent, Protocol, fast, option, slow
from mpgraph.network.losses import CrossEntropy

AGAIN = {"negative": "positive", "score": "positive"}


def direction(s: mg.View, y: Any) -> Any:
    """y / |y|, from which goodness cannot be read."""
    return y / torch.sqrt(s.population(y * y) + 1e-8)


class Input(Agent):
    """An input, of which only the direction counts."""

    same_as = AGAIN
    value, x = fast(), fast()

    def __init__(self, rule: ForwardForward) -> None:
        super().__init__()
        self.length = rule.length

    def positive_update(self, s: mg.View) -> mg.View:
        """length x / |x|."""
        return s.set(x=self.length * direction(s, s.value))

    def positive_message(self, s: mg.View) -> Any:
        """The same."""
        return s.x


class Weight(Agent):
    """A synapse that keeps what the positive run taught until the negative one is over."""

    w = slow(init=mg.xavier_uniform)
    x, taught = fast(), fast()
    same_as = AGAIN

    def positive_update(self, s: mg.View, pre: Any) -> mg.View:
        """Keep the activity below."""
        return s.set(x=pre)

    def positive_message(self, s: mg.View) -> Any:
        """w x."""
        return s.w * s.x

    def teach_update(self, s: mg.View, post: Any) -> mg.View:
        """dL/dw of the positive run."""
        return s.set(taught=s.examples(post * s.x))

    def learn_update(self, s: mg.View, post: Any) -> mg.View:
        """And of the negative one."""
        return s.descend(w=s.taught + s.examples(post * s.x))


class Label(Weight):
    """A synapse from a label, which the loss sends, to a unit: its ends are the other way round."""

    def positive_update(self, s: mg.View, post: Any) -> mg.View:
        """Keep the label."""
        return s.set(x=post)

    def teach_update(self, s: mg.View, pre: Any) -> mg.View:
        """As any weight."""
        return Weight.teach_update(self, s, pre)

    def learn_update(self, s: mg.View, pre: Any) -> mg.View:
        """As any weight."""
        return Weight.learn_update(self, s, pre)


class Goodness(Agent):
    """A connection that carries y^2 of a unit to the prediction."""

    y2 = fast()

    def judge_update(self, s: mg.View, pre: Any) -> mg.View:
        """Keep it."""
        return s.set(y2=pre)

    def judge_message(self, s: mg.View) -> Any:
        """Send it on."""
        return s.y2


class Unit(mg.UnitAgent):
    """A layer, which learns from its own goodness."""

    x = fast()
    operations = False

    def __init__(self, rule: ForwardForward) -> None:
        super().__init__()
        self.theta = rule.threshold

    def score_update(self, s: mg.View, pre: Any, label: Any = 0.0) -> mg.View:
        """y = f(a) and x, with each label; what the function keeps is that of the other runs."""
        y = s.apply(pre + label) if s.learning else s.activate(pre + label)[1]
        return s.set(y=y, x=direction(s, y))

    def score_message(self, s: mg.View) -> Any:
        """The direction of y."""
        return s.x

    positive_message = negative_message = score_message

    def positive_update(self, s: mg.View, pre: Any, label: Any = 0.0) -> mg.View:
        """dL/da = -f'(a) 2 y / (1 + exp(g - theta n))."""
        s = self.run(s, pre + label)
        return s.set(e=s.vjp(-2.0 * s.y * torch.sigmoid(-self.excess(s)), s.z, out=s.y))

    def negative_update(self, s: mg.View, pre: Any, label: Any = 0.0) -> mg.View:
        """dL/da = f'(a) 2 y / (1 + exp(theta n - g))."""
        s = self.run(s, pre + label)
        return s.set(e=s.vjp(2.0 * s.y * torch.sigmoid(self.excess(s)), s.z, out=s.y))

    def run(self, s: mg.View, a: Any) -> mg.View:
        """y = f(a) and x."""
        s, y = s.activate(a)
        return s.set(z=a, y=y, x=direction(s, y))

    def excess(self, s: mg.View) -> Any:
        """g - theta n."""
        return s.population(s.y * s.y - self.theta)

    def teach_message(self, s: mg.View) -> Any:
        """dL/da."""
        return s.e

    learn_message = teach_message

    def judge_message(self, s: mg.View) -> Any:
        """y^2."""
        return s.y * s.y


class Output(Unit):
    """The last layer, which collects the goodness of all."""

    score = fast()

    def judge_update(self, s: mg.View, post: Any, goodness: Any = 0.0) -> mg.View:
        """The goodness with the label of this agent."""
        return s.set(score=(s.population(s.y * s.y) + goodness) @ post)

    judge_message = None  # type: ignore[assignment]

    def readout(self, s: mg.View) -> Any:
        """The goodness."""
        return s.score


class Operation(mg.UnitAgent):
    """An operation on what units passed on."""

    same_as = {**AGAIN, "positive": "forward"}


class Loss(Agent):
    """Sends the labels: in ``score`` to each class a vector in which it is the one that is tried."""

    label, wrong = fast(), fast()

    def channels_at(self, node: mg.AgentNode) -> dict[str, mg.Channel]:
        """Also the vector of each class."""
        return {**self.channels(), "tried": slow(node.shape[0], init="places", frozen=True)}

    def places(self, shape: Any, node: Any, generator: Any, dtype: torch.dtype) -> torch.Tensor:
        """One at its own place."""
        return torch.eye(shape[0], dtype=dtype, device="cpu")

    def score_message(self, s: mg.View) -> Any:
        """Every label at once."""
        return s.tried

    judge_message = score_message

    def positive_update(self, s: mg.View, target: Any) -> mg.View:
        """The true label, and a wrong one."""
        drawn = s.normal() - 100.0 * target
        return s.set(label=target, wrong=torch.where(drawn >= s.population(drawn, "max"), 1.0, 0.0))

    def positive_message(self, s: mg.View) -> Any:
        """The true label."""
        return s.label

    def negative_message(self, s: mg.View) -> Any:
        """The wrong label."""
        return s.wrong


class ForwardForward(Protocol):
    """Each layer learns to be active for inputs with their label, and silent for those with a wrong one."""

    threshold: float = option(0.35, "theta: y^2 of an agent, on average, at which both labels are as likely.", above=0)
    length: float = option(4.0, "of an input, where that of a label is 1.", above=0)
    predict_passes = ("score", "judge")
    passes = (*predict_passes, "positive", "teach", "negative", "learn")
    adds_connections = ("label", "goodness")
    agents = {
        "input": Input,
        "weight": Weight,
        "label": Label,
        "goodness": Goodness,
        "unit": Unit,
        "output": Output,
        "operation": Operation,
        "loss": Loss,
    }
    source = """
@article{hinton2022forward,
  title={The forward-forward algorithm: some preliminary investigations},
  author={Hinton, Geoffrey},
  journal={arXiv preprint arXiv:2212.13345}, year={2022}
}"""

    def rewrite(self, network: mg.Network) -> mg.Network:
        """The network with connections for labels and for goodness.

        Raises:
            ProtocolError: for a network whose only loss is not the cross-entropy of a unit with several classes.
        """
        loss, *others = network.losses.values() or [None]
        shape = network.shape(loss.pre) if loss and not network.units[loss.pre].operands else ()
        if loss is None or others or not isinstance(loss.loss, CrossEntropy) or len(shape) != 1 or shape == (1,):
            raise mg.ProtocolError(
                "ForwardForward tries one label after the other: the network needs one loss, cross_entropy, on a unit "
                "with an agent for each of several labels"
            )
        heard = set(network.inputs)
        for name, unit in network.units.items():
            heard |= {name} if heard & set(unit.operands) else set()
        for name in [n for n, unit in network.units.items() if not (unit.is_input or unit.operands)]:
            if any(wire.post == name and wire.pre in heard for wire in network.wires.values()):
                network.connect(name, loss.name, pathway="label")
            if name != loss.pre:
                network.connect(name, loss.pre, pathway="goodness")
        return network
