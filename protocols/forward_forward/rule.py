"""Forward-forward: two forward passes with opposite aims, and no backward pass.

Hinton (2022), "The forward-forward algorithm: some preliminary investigations". Every unit is a layer with an aim of
its own (:mod:`.layers`): much activity for an input with its true label (positive), little for one with a wrong label
(negative).

    goodness    g_l = sum_j y_j^2, which learns to be above theta n or below it, with n the size of the unit
    positive    a run with the true label     teach     what it taught, kept by the synapses
    negative    a run with a wrong label      learn     from both
    score       a run with every label        judge     the goodness with each, summed over all layers

Labels come in beside the input (:mod:`.labels`), by connections ``h -> loss`` of the pathway ``label`` to the units
that hear an input; connections ``h -> y`` of the pathway ``goodness`` collect what is predicted. The rule adds both.
A wrong label is sampled evenly from all but the true one. The output is a layer like the others. In ``score`` all
labels are run at once: what is one number elsewhere is a vector there, with an entry for each. Hinton leaves the
first layer out of the sum, which a network of one hidden layer cannot.
"""

from __future__ import annotations

import mpgraph as mg
from mpgraph import Protocol, option
from mpgraph.network.losses import CrossEntropy

from .labels import Goodness, Label, Loss
from .layers import Input, Operation, Output, Unit, Weight


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
