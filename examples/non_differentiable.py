"""Nodes without a derivative, trained through: each kind between the pixels and the readout.

Node perturbation shakes every unit and follows what that does to the loss; direct feedback alignment carries the error
to each unit and replaces the missing derivative by one of the user's choice. The floor is the same network with only
its output connection trained.

python examples/non_differentiable.py
"""

import argparse
import warnings

import numpy as np
import torch

import mpgraph as mg
from mpgraph import data, experiments
from mpgraph.architectures import mlp
from mpgraph.protocols import Backprop, DirectFeedbackAlignment, NodePerturbation


def ternary(z):
    """A function that leaves torch: -1, 0 or 1 by a table look-up in NumPy."""
    return torch.from_numpy(np.digitize(z.numpy(), [-0.5, 0.5]) - 1.0).to(z.dtype)


KINDS = {  # the kind, the learning rate of node perturbation, and the surrogate of direct feedback
    "step": ("step", 0.02, "tanh"),
    "sign": ("sign", 0.02, "tanh"),
    "quantizer": (mg.Quantizer(4), 0.02, "tanh"),
    "winner_take_all": ("winner_take_all", 0.1, "identity"),
    "numpy function": (mg.Function(ternary), 0.02, "tanh"),
}


def accuracies(kind, lr, surrogate, epochs, seed=0):
    """Test accuracy of the readout alone, of node perturbation, and of direct feedback alignment."""
    digits, network = data.load("digits", seed=seed).flat(), mlp([64, 32, 10], kind)
    rules = {
        "readout_only": (network.readout_only(), Backprop()),
        "node_perturbation": (network, NodePerturbation(lr=lr, sigma=1.0)),
        "direct_feedback_alignment": (network, DirectFeedbackAlignment(surrogate=surrogate)),
    }
    found = {}
    for name, (drawn, rule) in rules.items():
        program = mg.compile(drawn, rule)
        _, curve, _ = experiments.train(program, digits, epochs=epochs, seed=seed)
        found[name] = curve[-1]
    return found


def main():
    """Print a line for each kind."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=200)
    options = parser.parse_args()
    warnings.simplefilter("ignore", mg.FlatUnitWarning)  # the readout alone is backprop below which nothing learns
    torch.set_num_threads(1)
    for name, settings in KINDS.items():
        found = accuracies(*settings, options.epochs)
        print(f"{name:16}", "  ".join(f"{rule} {100 * score:.1f} %" for rule, score in found.items()), flush=True)


if __name__ == "__main__":
    main()
