"""Train random graphs of 200 step neurons to read digits, though nothing in them has a derivative.

The pixels reach only the first 50 neurons, and only the last 50 send to the outputs; in between, each neuron receives
from a few earlier ones. Direct feedback alignment sends the error to every neuron through fixed random connections and
uses the derivative of tanh. The floor is the same graph with only the connections into its outputs trained.

python examples/step_graph.py           # five graphs of each of three models: about four minutes
python examples/step_graph.py --quick   # two graphs each, five epochs: half a minute
"""

import argparse
import statistics
import time
import warnings

import torch
from tqdm import tqdm

import mpgraph as mg
from mpgraph import data, experiments
from mpgraph.architectures import random_graph
from mpgraph.protocols import Backprop, DirectFeedbackAlignment

MODELS = {"watts_strogatz": 8, "erdos_renyi": 20, "barabasi_albert": 8}  # and the average degree


def scores(model, degree, epochs, seed):
    """Accuracy in percent of the readout only and of the rule; the seed fixes graph, split, weights and order."""
    digits = data.load("digits", seed=seed).flat()
    network = random_graph(200, model, degree=degree, activation="step", seed=seed)
    found = []
    with tqdm(total=2 * epochs, desc=f"{model}, seed {seed}", leave=False, disable=None) as bar:  # on a terminal only
        for trained, rule in (
            (network.readout_only(), Backprop()),
            (network, DirectFeedbackAlignment(surrogate="tanh")),
        ):
            program = mg.compile(trained, rule)
            _, curve, _ = experiments.train(
                program, digits, epochs=epochs, seed=seed, on_epoch=lambda *_: bar.update() and None
            )
            found.append(100 * curve[-1])
    return found


def differences(model="watts_strogatz", degree=8, epochs=20, seeds=5):
    """Points by which the rule beats the readout only, one for each seed; prints a line for each and one for all."""
    table = []
    for seed in range(seeds):
        start = time.perf_counter()
        table.append(scores(model, degree, epochs, seed))
        readout, rule = table[-1]
        seconds = time.perf_counter() - start
        print(f"  seed {seed}: readout only {readout:.1f} %, rule {rule:.1f} %, {seconds:.0f} s", flush=True)
    points = [rule - readout for readout, rule in table]
    error = statistics.stdev(points) / len(points) ** 0.5
    readout, rule = (statistics.mean(column) for column in zip(*table, strict=True))
    print(f"{model:15} {statistics.mean(points):.1f} +- {error:.1f} points; {rule:.0f} % against {readout:.0f} %")
    return points


def main():
    """Three models of random graphs."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=5, help="graphs of each model, at least two")
    parser.add_argument("--quick", action="store_true", help="two graphs of each model, five epochs")
    options = parser.parse_args()
    epochs, seeds = (5, 2) if options.quick else (options.epochs, max(2, options.seeds))
    warnings.simplefilter("ignore", mg.FlatUnitWarning)  # of the readout only: nothing below it learns
    torch.set_num_threads(1)
    for model, degree in MODELS.items():
        print(f"{model}, degree {degree}: {seeds} graphs, {epochs} epochs", flush=True)
        differences(model, degree, epochs, seeds)


if __name__ == "__main__":
    main()
