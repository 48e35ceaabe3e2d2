"""A learning rule of one's own in a few lines: backprop in which most units stay silent.

A hidden unit speaks up only if its error is larger than the average error of its layer; all others send nothing and
learn nothing from that example. Weights, losses and the forward pass are backprop's.

    python examples/own_rule.py
"""

import torch

import mpgraph as mg
from mpgraph import data, experiments
from mpgraph.architectures import mlp
from mpgraph.protocols import Backprop


class QuietUnit(mg.UnitAgent):
    """Sends its error if that is larger than its peers' are on average."""

    def backward_update(self, s, post):
        """The chain rule, then silence where the error is small."""
        e = s.vjp(post, s.z, out=s.y)
        loud = e.abs() > s.population(e.abs(), "mean")
        return s.set(e=torch.where(loud, e, 0.0))


class Quiet(Backprop):
    """Backprop with errors from loud units only."""

    def __init__(self, lr=0.1):
        super().__init__(lr, unit=QuietUnit(), output=mg.UnitAgent())


def main(seeds=3, epochs=20):
    """Against backprop and the readout alone, on digits; prints the torch code that the rule became."""
    rules = {"readout_only": Backprop, "backprop": Backprop, "quiet": Quiet}
    network = mlp([64, 32, 32, 10])
    runs = experiments.compare(
        network, rules, lambda seed: data.load("digits", seed=seed), seeds=range(seeds), epochs=epochs
    )
    rows = experiments.summary(runs)
    print(mg.compile(network, Quiet()).code)
    for row in rows:
        print(f"{row['protocol']:14} {100 * row['test_accuracy']:.1f} % of test digits")
    return {row["protocol"]: row["test_accuracy"] for row in rows}


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
