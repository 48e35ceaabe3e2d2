"""Train through units without a derivative: each type of unit between the pixels and the readout.

Node perturbation adds noise to every unit and follows what that does to the loss; direct feedback alignment sends the
error to each unit and replaces the missing derivative by a surrogate. The floor is the same network with only its
output connection trained.

python examples/non_differentiable.py           # one seed, 200 epochs: 80 seconds
python examples/non_differentiable.py --quick   # 20 epochs: ten seconds
"""

import argparse
import statistics
import warnings

import numpy as np
import torch
from tqdm import tqdm

import mpgraph as mg
from mpgraph import data, experiments
from mpgraph.architectures import mlp
from mpgraph.protocols import Backprop, DirectFeedbackAlignment, NodePerturbation


def ternary(z):
    """A function that leaves torch: -1, 0 or 1 by a table look-up in NumPy."""
    return torch.from_numpy(np.digitize(z.numpy(), [-0.5, 0.5]) - 1.0).to(z.dtype)


UNITS = {  # the activation, the learning rate of node perturbation, and the surrogate of direct feedback
    "step": ("step", 0.02, "tanh"),
    "sign": ("sign", 0.02, "tanh"),
    "quantizer": (mg.Quantizer(4), 0.02, "tanh"),
    "winner_take_all": ("winner_take_all", 0.1, "identity"),
    "numpy function": (mg.Function(ternary), 0.02, "tanh"),
}


def accuracies(activation, lr, surrogate, epochs, seed=0):
    """Test accuracy of the readout only, of node perturbation, and of direct feedback alignment."""
    digits, network = data.load("digits", seed=seed).flat(), mlp([64, 32, 10], activation)
    rules = {
        "readout_only": (network.readout_only(), Backprop()),
        "node_perturbation": (network, NodePerturbation(lr=lr, sigma=1.0)),
        "direct_feedback_alignment": (network, DirectFeedbackAlignment(surrogate=surrogate)),
    }
    found = {}
    for name, (trained, rule) in rules.items():
        program = mg.compile(trained, rule)
        _, curve, _ = experiments.train(program, digits, epochs=epochs, seed=seed)
        found[name] = curve[-1]
    return found


def main():
    """Print a line for each type of unit: the mean over seeds."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--epochs", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="20 epochs")
    options = parser.parse_args()
    epochs = 20 if options.quick else options.epochs
    warnings.simplefilter("ignore", mg.FlatUnitWarning)  # of the readout only: nothing below it learns
    torch.set_num_threads(1)
    for name, settings in UNITS.items():
        bar = tqdm(range(options.seeds), desc=name, unit="seed", leave=False, disable=None)  # on a terminal only
        rows = [accuracies(*settings, epochs, seed) for seed in bar]
        means = {rule: 100 * statistics.mean(row[rule] for row in rows) for rule in rows[0]}
        print(f"{name:16}", "  ".join(f"{rule} {score:.1f} %" for rule, score in means.items()), flush=True)


if __name__ == "__main__":
    main()
