"""Write a learning rule in a few lines: backprop in which only units with large errors learn.

A hidden unit sends its error only if it is larger than the average error of its layer; all others send nothing and
learn nothing from that example. Weights, losses and the forward pass are those of backprop.

python examples/own_rule.py
"""

import torch

import mpgraph as mg
from mpgraph import data, experiments
from mpgraph.architectures import mlp
from mpgraph.protocols import Backprop


class QuietUnit(mg.UnitAgent):
    """Sends its error if it is larger than the average in its layer."""

    def backward_update(self, s, post):
        """Apply the chain rule, then set small errors to zero."""
        e = s.vjp(post, s.z, out=s.y)
        large = e.abs() > s.population(e.abs(), "mean")
        return s.set(e=torch.where(large, e, 0.0))


class Quiet(Backprop):
    """Backprop with errors from units with large errors only."""

    def __init__(self, lr=0.1):
        super().__init__(lr, unit=QuietUnit(), output=mg.UnitAgent())


def main(seeds=3, epochs=20):
    """Compare with backprop and with training the readout only, on digits; print the generated torch code."""
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
