"""Train through step units, which have no derivative: feedback alignment with the derivative of tanh as a surrogate.

python examples/step_units.py
"""

import warnings

import torch

import mpgraph as mg
from mpgraph import data, experiments
from mpgraph.architectures import mlp
from mpgraph.protocols import Backprop, FeedbackAlignment


def main(epochs=20):
    """Backprop trains only the readout, with a warning; feedback alignment with a surrogate trains all layers."""
    digits = data.load("digits").flat()
    network = mlp([64, 32, 10], activation="step")
    found = {}
    for rule in (Backprop(), FeedbackAlignment(surrogate="tanh")):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            program = mg.compile(network, rule)
        for warning in caught:
            print(f"warning: {warning.message}")
        _, curve, _ = experiments.train(program, digits, epochs=epochs)
        found[rule.name] = curve[-1]
        print(f"{rule.name}: {100 * curve[-1]:.1f} % of test digits")
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
