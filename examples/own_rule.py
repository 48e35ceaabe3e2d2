"""A learning rule of one's own in a few lines: backprop in which a unit sends one bit.

Every hidden unit tells the layer below only the *sign* of its error; how large errors are is said once for the whole layer
(their mean magnitude). The rest - weights, losses, forward pass - is taken from backprop as it is.

    python examples/own_rule.py
"""

import torch

import mpgraph as mg
from mpgraph import data, experiment
from mpgraph.architectures import mlp
from mpgraph.protocols import Backprop


class OneBitUnit(mg.UnitAgent):
    """Sends the sign of its error, scaled by the mean magnitude among its peers."""

    e, scale = mg.fast(), mg.fast()

    def backward_update(self, s, post):
        """The chain rule, then the layer's scale."""
        e = s.pull(post, s.z, out=s.y)
        return s.set(e=e, scale=s.peers(e.abs(), "mean"))

    def backward_message(self, s):
        """One bit a unit, one number a layer."""
        return torch.sign(s.e) * s.scale


class OneBit(Backprop):
    """Backprop with one-bit errors between layers."""

    def __init__(self, lr=0.1):
        super().__init__(lr, unit=OneBitUnit(), output=mg.UnitAgent())


def main(seeds=3, epochs=20):
    """Against backprop and the readout alone, on digits."""
    rules = {"readout_only": Backprop, "backprop": Backprop, "one_bit": OneBit}
    network = mlp([64, 32, 32, 10])
    runs = experiment.compare(network, rules, lambda seed: data.load("digits", seed=seed), seeds=range(seeds), epochs=epochs)
    rows = experiment.summary(runs)
    for row in rows:
        print(f"{row['protocol']:14} {100 * row['test_accuracy']:.1f} % of test digits")
    print(mg.compile(network, OneBit()).code)
    return {row["protocol"]: row["test_accuracy"] for row in rows}


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
