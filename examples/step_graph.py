"""A random graph of 200 step neurons learns to read digits, though nothing in it has a derivative.

The pixels reach only the first 50 neurons and the outputs hear only the last 50; in between each neuron hears a few
earlier ones. Direct feedback alignment brings the error to every neuron by fixed random connections and borrows the
derivative of tanh. The floor is the same graph with only the connections into its outputs trained.

python examples/step_graph.py
"""

import statistics
import warnings

import torch

import mpgraph as mg
from mpgraph import data, experiments
from mpgraph.architectures import random_graph
from mpgraph.protocols import Backprop, DirectFeedbackAlignment


def differences(kind="watts_strogatz", degree=8, epochs=20, seeds=5):
    """Points by which the rule beats the readout alone, one for each seed of graph, split, weights and order."""
    found = []
    for seed in range(seeds):
        digits = data.load("digits", seed=seed).flat()
        network = random_graph(200, kind, degree=degree, activation="step", seed=seed)
        scores = []
        for drawn, rule in (
            (network.readout_only(), Backprop()),
            (network, DirectFeedbackAlignment(surrogate="tanh")),
        ):
            _, curve, _ = experiments.train(mg.compile(drawn, rule), digits, epochs=epochs, seed=seed)
            scores.append(100 * curve[-1])
        print(f"{kind} seed {seed}: readout {scores[0]:.1f} %, direct feedback {scores[1]:.1f} %", flush=True)
        found.append(scores[1] - scores[0])
    return found


def main():
    """Three kinds of random graph."""
    warnings.simplefilter("ignore", mg.FlatUnitWarning)  # the readout alone is backprop below which nothing learns
    torch.set_num_threads(1)
    for kind, degree in (("watts_strogatz", 8), ("erdos_renyi", 20), ("barabasi_albert", 8)):
        points = differences(kind, degree)
        error = statistics.stdev(points) / len(points) ** 0.5
        print(f"{kind}: {statistics.mean(points):.1f} +- {error:.1f} points above the readout alone\n")


if __name__ == "__main__":
    main()
