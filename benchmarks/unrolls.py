"""Memory and time of a meta-gradient by the length of the episode: the plain unroll, and the recomputed one.

python -m benchmarks.unrolls [--steps 25,100,400] [--hidden 256]

Each row is a process of its own; memory is the peak of the process above what it had before the estimate.
"""

import argparse
import multiprocessing
import resource
import time

import torch

import mpgraph as mg
from mpgraph import meta
from mpgraph.architectures import mlp
from mpgraph.protocols import Backprop


def peak():
    """MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(kind, steps, hidden, results):
    torch.set_num_threads(1)
    program = mg.compile(mlp([1, hidden, hidden, 1], "tanh", "l2"), Backprop(lr=mg.learnable(0.01)))
    episode, estimator = meta.Episode(program), getattr(meta, kind)()
    estimator.estimate(episode, episode.parameters(), meta.Tasks(meta.Sinusoids(steps=2)), torch.Generator())
    before, start = peak(), time.perf_counter()
    tasks = meta.Tasks(meta.Sinusoids(steps=steps))
    found = estimator.estimate(episode, episode.parameters(), tasks, torch.Generator())
    results.put((time.perf_counter() - start, peak() - before, float(found.gradient["optimizer.lr"])))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", default="25,100,400")
    parser.add_argument("--hidden", type=int, default=256)
    options = parser.parse_args()
    print(f"1-{options.hidden}-{options.hidden}-1, one task, one thread")
    print("steps  estimator     seconds    MiB   gradient")
    for steps in map(int, options.steps.split(",")):
        for kind in ("Unroll", "Recomputed"):
            results = multiprocessing.Queue()
            process = multiprocessing.Process(target=measure, args=(kind, steps, options.hidden, results))
            process.start()
            seconds, mib, gradient = results.get()
            process.join()
            print(f"{steps:5}  {kind:10}  {seconds:9.2f}  {mib:5.0f}   {gradient:.6g}", flush=True)


if __name__ == "__main__":
    main()
