"""Online rules beside the nearest class mean on streams of images that training leaves out, by looks that it never met.

MPGRAPH_DATA=FOLDER python examples/vsml/held_out.py vsml_online RUN/rule --streams 40

Rules of fig6 are chosen here: no test image is read and no Fashion-MNIST. MNIST and letters as in training, then
letters dark on bright, each of a brightness of its own, and each laid over another one of its class. Accuracy over the
whole stream, %, and what it is more than that of the nearest class mean, with the standard error over streams.
"""

import argparse

import torch
from figures import LENGTH, class_means

import mpgraph as mg
from mpgraph.architectures import mlp
from mpgraph.meta import Minibatches, PermutedLabels, RandomFilter, RandomProjection


def bright(x, y, generator):
    """Each image times a number in 0.3..1, black at zero."""
    return (x - x.min()) * (0.3 + 0.7 * torch.rand(len(x), 1, generator=generator))


def laid_over(x, y, generator):
    """The larger of each pixel of an image and of another one of its class."""
    out = x.clone()
    for label in y.unique():
        rows = (y == label).nonzero()[:, 0]
        out[rows] = torch.maximum(x[rows], x[rows[torch.randperm(len(rows), generator=generator)]])
    return out


def streams(family, look, count):
    """Images and labels of validation streams."""
    found = []
    for seed in range(count):
        generator = torch.Generator().manual_seed(seed)
        task = family.draw(generator, LENGTH, "validation")
        x, y = task.x[:, 0], task.y[:, 0]
        if look is not None:
            x = look(x, y, generator)
            x = (x - x.mean()) / x.std()
        found.append((x, y))
    return found


@torch.no_grad()
def right(rule, found):
    """Which predictions were right ``(streams, images)``; all streams side by side."""
    program = mg.compile(mlp([49, 10], bias=False), rule)
    x, y = (torch.stack(column) for column in zip(*found, strict=True))
    state, rows = program.init(list(range(1000, 1000 + len(found))), batch_size=1), []

    def step(state, x, y):
        state, out = program.step(state, x, y)
        return state, out.prediction

    for t in range(LENGTH):
        state, prediction = torch.func.vmap(step)(state, x[:, t, None], y[:, t, None])
        rows.append(prediction.flatten(1).argmax(1) == y[:, t])
    return torch.stack(rows, 1).double()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rules", nargs="+", help="folders or names")
    parser.add_argument("--streams", type=int, default=40)
    given = parser.parse_args()
    torch.set_num_threads(1)
    numbers = {"side": 7, "batch": 1, "steps": LENGTH, "queries": 1}
    mnist, letters = Minibatches("mnist", **numbers), Minibatches("emnist47", ways=10, **numbers)
    kinds = {
        "MNIST": (PermutedLabels(mnist, 10), None),
        "letters": (letters, None),
        "letters, projected": (RandomProjection(letters, decay=1.5), None),
        "letters, filtered": (RandomFilter(letters), None),
        "letters, dark on bright": (letters, lambda x, y, generator: -x),
        "letters, brightness": (letters, bright),
        "letters, laid over": (letters, laid_over),
    }
    for kind, (family, look) in kinds.items():
        found = streams(family, look, given.streams)
        mean = 100.0 * class_means(found).mean(1)
        print(f"{kind}: nearest class mean {mean.mean():.1f}", end="")
        for name in given.rules:
            own = 100.0 * right(mg.load_protocol(name), found).mean(1)
            more = own - mean
            print(f"; {name} {own.mean():.1f}, {more.mean():+.1f} +- {more.std() / len(own) ** 0.5:.1f}", end="")
        print(flush=True)
