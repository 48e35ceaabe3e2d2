"""MPLP with the parameters that its authors released: the figures of the paper and of their code, again.

    python -m benchmarks.mplp_released mnist --released FOLDER --data FOLDER    144-50-10 sigmoid
    python -m benchmarks.mplp_released step ...                                 the same learners, step units
    python -m benchmarks.mplp_released big ...                                  the same learners, 784-100-10 on 28x28
    python -m benchmarks.mplp_released maml --released FOLDER                   sinusoids, 2 steps of 10 points

Every prior is fresh: weights N(0, 0.05), biases 0. Batches are 8 consecutive training images, shuffled; each prior gets
the next 20. After them accuracy is taken on the whole test set, and on 100 test images as the authors do it: after each
update of each prior the next 100.
"""

import argparse
import math
import time
from pathlib import Path

import torch
from torch.nn import functional

import mpgraph as mg
from mpgraph import data
from mpgraph.architectures import mlp
from mpgraph.protocols.mplp.released import MAML, MNIST, released, released_prior

SIZES = {"mnist": (144, 50, 10), "step": (144, 50, 10), "big": (784, 100, 10)}
STEPS, BATCH, BLOCK = 20, 8, 100


def images(root, side):
    """MNIST as the authors prepare it: bilinear without smoothing, one mean and one deviation."""
    mnist = data.load("mnist", root, standardise=False)
    train, test = (
        functional.interpolate(x, (side, side), mode="bilinear", align_corners=False).flatten(1)
        for x in (mnist.train_x, mnist.test_x)
    )
    mean, std = train.mean(), train.std(correction=0)
    return (train - mean) / std, mnist.train_y, (test - mean) / std, mnist.test_y


@torch.no_grad()
def classify(task, released_folder, root, runs):
    sizes = SIZES[task]
    rule = released(released_folder / "mnist_weights_00005000.npy", mlp([144, 50, 10], "sigmoid"), MNIST)
    program = mg.compile(mlp(list(sizes), "step" if task == "step" else "sigmoid"), rule)
    train_x, train_y, test_x, test_y = images(root, math.isqrt(sizes[0]))
    starts = BATCH * torch.randperm(len(train_x) // BATCH, generator=torch.Generator().manual_seed(0))
    whole, block = [], []
    for run in range(runs):
        state = program.init(run, batch_size=BATCH)
        for i in starts.roll(-STEPS * run)[:STEPS].tolist():
            state, _ = program.step(state, train_x[i : i + BATCH], train_y[i : i + BATCH])
        right = (program.predict(state, test_x).argmax(1) == test_y).float()
        whole.append(100 * right.mean())
        block.append(100 * right.roll(-BLOCK * (STEPS * (run + 1) - 1))[:BLOCK].mean())
    for name, scores in (("whole test set", whole), ("100 images", block)):
        scores = torch.stack(scores)
        print(f"{task} {'-'.join(map(str, sizes))}: {name} {scores.mean():.2f} +- {scores.std(correction=0):.2f} %")


@torch.no_grad()
def sinusoids(released_folder, runs):
    network = mlp([1, 20, 20, 1], "relu", "l2")
    rule = released(released_folder / "maml_sin_net_weights_00258202.npy", network, MAML)
    program = mg.compile(network, rule)
    prior = released_prior(released_folder / "maml_sin_prior_weights_00258202.npy", program)
    generator, grid = torch.Generator().manual_seed(0), torch.linspace(-5, 5, 100).unsqueeze(1)
    losses = torch.zeros(runs, 3)
    for run in range(runs):
        amplitude, phase = (
            0.1 + 0.4 * torch.rand((), generator=generator),
            math.pi * torch.rand((), generator=generator),
        )
        state = prior
        for step in range(3):
            wanted = amplitude * torch.sin(grid + phase)
            losses[run, step] = 0.5 * (program.predict(state, grid) - wanted).square().mean()
            x = 10 * torch.rand(10, 1, generator=generator) - 5
            state, _ = program.step(state, x, amplitude * torch.sin(x + phase))
    print("maml 1-20-20-1: L2 loss at steps 0..2", *(f"{v:.5f}" for v in losses.mean(0)), f"({runs} tasks)")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=[*SIZES, "maml"])
    parser.add_argument("--released", type=Path, required=True, help="folder of the authors' .npy files")
    parser.add_argument("--data", help="folder of the data sets; MPGRAPH_DATA by default")
    parser.add_argument("--runs", type=int, default=100, help="priors, or tasks")
    given = parser.parse_args()
    torch.set_num_threads(1)
    began = time.perf_counter()
    if given.task == "maml":
        sinusoids(given.released, given.runs)
    else:
        classify(given.task, given.released, given.data, given.runs)
    print(f"{time.perf_counter() - began:.0f} s")
