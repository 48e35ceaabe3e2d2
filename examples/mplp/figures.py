"""The experiments of MPLP with rules that we trained: accuracy, transfer, baselines; and curves of the training.

MPGRAPH_DATA=FOLDER python examples/mplp/figures.py mnist step big fashion --priors 100
MPGRAPH_DATA=FOLDER python examples/mplp/figures.py baselines --priors 20
MPGRAPH_DATA=FOLDER python examples/mplp/figures.py networks --priors 10 --at 60 200
python examples/mplp/figures.py sinusoids --priors 100 --baselines
python examples/mplp/figures.py prior --priors 100 --maml runs/maml_one/rule runs/maml/rule --out mplp_prior.png
MPGRAPH_DATA=FOLDER python examples/mplp/figures.py mnist --priors 10 --at 20 60 200
MPGRAPH_DATA=FOLDER python examples/mplp/figures.py mnist step --priors 10 --rule runs/alone/rule --held-out
python examples/mplp/figures.py training runs/alone runs/tune runs/grow

mnist (section 4.2, Figure 4, Table 1): 144-50-10, images of 12x12; step: step units in place of sigmoids; big:
784-100-10, 28x28; fashion: Fashion-MNIST at 12x12. Batches of 8 training images, 20 updates; `--at 60 200` shows
whether what was learned stays. After them accuracy is taken on the whole test set, and on 100 test images as the
authors do it: for each prior the next 100. `--held-out`, for choosing: 2,000 images held out from the training set in
place of the test set, those of search.py. baselines: SGD and Adam from the same priors, N(0, 0.05) and biases of
zero, by their best rate. networks: other kinds than 144-50-10, digits, beside the readout alone, from the same weights
and by the same batches. sinusoids (4.1.1): L2 loss, 1-20-20-1, fresh points in every step. prior (4.1.2, Figure 3): two
steps from initial weights that were learned with the rule; and from random ones.
"""

import argparse
import json
import math
import warnings
from dataclasses import replace
from pathlib import Path

import torch

import mpgraph as mg
from mpgraph import data
from mpgraph.architectures import convnet, mlp, random_graph
from mpgraph.meta import Tasks, make_family
from mpgraph.protocols import Backprop

TASKS = {  # data, sizes, activation
    "mnist": ("mnist", (144, 50, 10), "sigmoid"),
    "step": ("mnist", (144, 50, 10), "step"),
    "big": ("mnist", (784, 100, 10), "sigmoid"),
    "fashion": ("fashion_mnist", (144, 50, 10), "sigmoid"),
}
RATES = {"SGD": (0.1, 0.3, 1.0, 3.0), "Adam": (0.003, 0.01, 0.02, 0.03)}
BATCH, BLOCK, DEVIATION, HELD_OUT = 8, 100, 0.05, 2000


def images(name, side, held_out=False):
    """Flat images of ``side`` pixels, bilinear without smoothing, with one mean and one deviation."""
    found = data.load(name, standardise=False).resized(side).standardised().flat()
    return found.validation(min(HELD_OUT / len(found.train_x), 0.25), seed=0) if held_out else found


def prior(program, seed):
    """Fresh weights N(0, 0.05) and biases of zero, whatever the rule begins with."""
    state, generator = program.init(seed, batch_size=BATCH), torch.Generator().manual_seed(seed)
    for name, channels in state.items():
        if "w" in channels:
            w = channels["w"]
            fresh = DEVIATION * torch.randn(w.shape, generator=generator)
            state[name] = {**channels, "w": torch.zeros_like(w) if name.endswith(".bias") else fresh}
    return state


@torch.no_grad()
def learned(program, found, priors, at, begin):
    """Accuracies in percent after updates ``at``: of each prior on the whole test set, and on its 100 images."""
    whole, block = {t: [] for t in at}, {t: [] for t in at}
    for i in range(priors):
        state, generator = begin(1000 + i), torch.Generator().manual_seed(i)
        for t in range(1, max(at) + 1):
            rows = torch.randint(len(found.train_x), (BATCH,), generator=generator)
            state, _ = program.step(state, found.train_x[rows], found.train_y[rows])
            if t in at:
                right = 100.0 * (program.predict(state, found.test_x).argmax(1) == found.test_y).double()
                whole[t].append(right.mean())
                block[t].append(right.roll(-BLOCK * i)[:BLOCK].mean())
    return tuple({t: torch.stack(scores) for t, scores in part.items()} for part in (whole, block))


def shown(scores):
    return "  ".join(f"{t}: {s.mean():.1f} +- {s.std(correction=0):.1f}" for t, s in scores.items())


def classify(task, options):
    name, sizes, activation = TASKS[task]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of step units, which use the learner of sigmoids
        program = mg.compile(mlp(list(sizes), activation), mg.load_protocol(options.rule))
    found = images(name, math.isqrt(sizes[0]), options.held_out)
    whole, block = learned(
        program, found, options.priors, options.at, lambda seed: program.init(seed, batch_size=BATCH)
    )
    judged = "held-out training images" if options.held_out else "whole test set"
    print(f"{task}, {options.priors} priors, accuracy in % after updates, {judged}: {shown(whole)}")
    print(f"{task}, 100 images each: {shown(block)}", flush=True)


def baselines(options):
    """SGD and Adam from the same priors; the best rate of each on other priors is what counts."""
    for task in ("mnist", "fashion", "big"):
        name, sizes, activation = TASKS[task]
        found = images(name, math.isqrt(sizes[0]))
        for optimizer, rates in RATES.items():
            scores = {}
            for rate in rates:
                rule = Backprop(lr=rate) if optimizer == "SGD" else Backprop(optimizer=mg.Adam(rate))
                program = mg.compile(mlp(list(sizes), activation), rule)
                whole, block = learned(program, found, options.priors, (20, 60), lambda s, p=program: prior(p, s))
                scores[rate] = (whole, block[20])
            best = max(scores, key=lambda rate: float(scores[rate][0][20].mean()))
            listed = ", ".join(f"{rate:g}: {whole[20].mean():.1f}" for rate, (whole, _) in scores.items())
            whole, block = scores[best]
            print(
                f"{task}, {optimizer} ({listed}), best {best:g}: {shown(whole)}; 100 images {shown({20: block})}",
                flush=True,
            )


def skip():
    """Two hidden layers, and connections past them."""
    network = mg.Network()
    x, a, b, y = (network.input("x", 64), *(network.unit(n, 32, "sigmoid") for n in "ab"), network.unit("y", 10))
    for pre, post in ((x, a), (a, b), (b, y), (x, y), (a, y)):
        network.connect(pre, post)
    network.loss(y, "cross_entropy")
    return network


NETWORKS = {
    "64-32-10 tanh": lambda: mlp([64, 32, 10], "tanh"),
    "64-32-10 relu": lambda: mlp([64, 32, 10], "relu"),
    "64-32-32-10 sigmoid": lambda: mlp([64, 32, 32, 10], "sigmoid"),
    "two hidden layers and skips": skip,
    "convolution": lambda: convnet((1, 8, 8), (4,), (16,), kernel=3, activation="sigmoid"),
    "random graph of step neurons": lambda: random_graph(100, activation="step"),
}


@torch.no_grad()
def networks(options):
    """Other kinds of networks, on digits, beside the readout alone."""
    found = images("digits", 8, options.held_out)
    for name, build in NETWORKS.items():
        cells = []
        for network in (build(), build().readout_only()):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of units that use the learner of sigmoids
                program = mg.compile(network, mg.load_protocol(options.rule))
            shape = (-1, *network.units["x"].shape) if "x" in network.units else (-1, 64)
            part = [t.reshape(shape) for t in (found.train_x, found.test_x)]
            shaped = replace(found, train_x=part[0], test_x=part[1])
            whole, _ = learned(
                program, shaped, options.priors, options.at, lambda s, p=program: p.init(s - 1000, batch_size=BATCH)
            )
            cells.append(whole)
        ours, alone = cells
        above = {t: ours[t] - alone[t] for t in options.at}
        print(f"{name}, {options.priors} seeds, accuracy in % after updates of 8: {shown(ours)}", flush=True)
        print(f"    readout alone {shown(alone)}; above it {shown(above)}", flush=True)


def along(program, state, batches):
    """The state before and after each step."""
    yield state
    for x, y in batches:
        state, _ = program.step(state, x, y)
        yield state


def halved(program, state, x, y):
    """L2 loss: half the mean squared error."""
    return 0.5 * (program.predict(state, x) - y).square().mean()


@torch.no_grad()
def fitted(program, tasks, begin):
    """L2 losses ``(tasks, 6)`` on 100 points of [-5, 5], before and after each of five steps of ten fresh points."""
    losses, query = [], torch.linspace(-5.0, 5.0, 100)[:, None]
    for i in range(tasks):
        generator = torch.Generator().manual_seed(i)
        a, p = 0.1 + 0.4 * torch.rand((), generator=generator), math.pi * torch.rand((), generator=generator)
        points = [10.0 * torch.rand(10, 1, generator=generator) - 5.0 for _ in range(5)]
        states = along(program, begin(1000 + i), [(x, a * torch.sin(x + p)) for x in points])
        losses.append(torch.stack([halved(program, state, query, a * torch.sin(query + p)) for state in states]))
    return torch.stack(losses)


def sinusoids(options):
    """The rule beside SGD and Adam, each by its best rate."""
    network, rates = mlp([1, 20, 20, 1], "relu", "l2"), (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
    shipped = "mplp_sinusoid" if options.rule == "mplp_mnist" else options.rule
    program = mg.compile(network, mg.load_protocol(shipped))
    rows = {shipped: fitted(program, options.priors, lambda seed: program.init(seed, batch_size=10))}
    for optimizer in ("SGD", "Adam") if options.baselines else ():
        for rate in rates:
            rule = Backprop(lr=rate) if optimizer == "SGD" else Backprop(optimizer=mg.Adam(rate))
            other = mg.compile(network, rule)
            rows[f"{optimizer} {rate:g}"] = fitted(other, options.priors, lambda seed, p=other: prior(p, seed))
    for name, found in rows.items():
        line = "  ".join(f"{v:.5f} +- {d:.5f}" for v, d in zip(found.mean(0), found.std(0, correction=0), strict=True))
        print(f"sinusoids, {name}, {options.priors} tasks, L2 after 0..5 steps: {line}", flush=True)


@torch.no_grad()
def prior_learned(options):
    """Learned initial weights: losses and curves after 0, 1 and 2 steps of ten fresh points, beside MAML."""
    network = mlp([1, 20, 20, 1], "relu", "l2")
    family = make_family("sinusoids", amplitude=(0.1, 0.5), fresh=True, steps=2, queries=100)
    tasks = Tasks(family, 0, options.priors, 0, "test").batch().to(torch.device("cpu"), torch.float32)
    named = options.rule if options.rule != "mplp_mnist" else "mplp_sinusoid_prior"
    curves = {}
    for place in (named, *options.maml):
        program = mg.compile(network, mg.load_protocol(place), dtype=torch.float32)
        begin = {"": lambda seed, p=program, f=place: p.load(f)}
        if place == named:
            begin[", random weights"] = lambda seed, p=program: prior(p, 1000 + seed)
        for words, start in begin.items():
            losses, curves[place + words] = after_steps(program, tasks, start)
            cells = ", ".join(f"{m:.5f} +- {d:.5f}" for m, d in zip(losses.mean(0), losses.std(0), strict=True))
            print(f"{place}{words}, {options.priors} tasks, L2 after 0, 1, 2 steps: {cells}", flush=True)
    drawn(curves, tasks, options.out or "mplp_prior.png")


GRID = torch.linspace(-5.0, 5.0, 200)[:, None]


def after_steps(program, tasks, begin):
    """Losses ``(tasks, 1 + steps)`` on the query, and what the network of the first task says on a grid."""
    losses, curves = [], []
    for i in range(len(tasks.seeds)):
        states = list(along(program, begin(i), zip(tasks.x[i], tasks.y[i], strict=True)))
        losses.append(torch.stack([halved(program, state, tasks.query_x[i], tasks.query_y[i]) for state in states]))
        curves += [] if i else [program.predict(state, GRID) for state in states]
    return torch.stack(losses), curves


def drawn(curves, tasks, out):
    """One task as Figure 3 has it: the network before any step and after each."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    drawing, axes = plt.subplots(1, len(curves), figsize=(3 * len(curves), 2.6), layout="constrained", sharey=True)
    for axis, (name, steps) in zip(axes, curves.items(), strict=True):
        axis.plot(tasks.query_x[0], tasks.query_y[0], ".", ms=3, color="0.6", label="target")
        for t, curve in enumerate(steps):
            axis.plot(GRID, curve, lw=1, label=f"after {t} steps" if t != 1 else "after 1 step")
        axis.set_title(name, fontsize="small")
    axes[0].legend(fontsize="x-small")
    drawing.savefig(out, dpi=120)
    print(f"wrote {out}")


def training(options):
    """Losses of runs, one after the other, and accuracies on their queries."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    drawing, axes = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
    for run in options.what[1:]:
        rows = [json.loads(line) for line in (Path(run) / "log.jsonl").read_text().splitlines()]
        for axis, key in zip(axes, ("loss", "accuracy"), strict=True):
            axis.plot([row["step"] for row in rows], [row.get(key) for row in rows], lw=0.7, label=Path(run).name)
            axis.set(xlabel="outer step", ylabel=key)
    axes[0].legend()
    out = options.out or "mplp_training.png"
    drawing.savefig(out)
    print(f"wrote {out}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "what", nargs="+", help=f"of {', '.join(TASKS)}, baselines, networks, sinusoids, prior; training RUN ..."
    )
    parser.add_argument("--rule", default="mplp_mnist", help="folder or name (default: mplp_mnist)")
    parser.add_argument("--priors", type=int, default=100, help="fresh networks, or tasks (default: 100)")
    parser.add_argument("--at", type=int, nargs="+", default=[20], help="updates after which to ask (default: 20)")
    parser.add_argument("--maml", nargs="+", default=[], metavar="RULE", help="with `prior`: rules of maml.toml")
    parser.add_argument("--held-out", action="store_true", help="of the training set, in place of the test set")
    parser.add_argument("--baselines", action="store_true", help="of `sinusoids`: SGD and Adam too")
    parser.add_argument("--out", help="picture of `training` or `prior` (default: mplp_training.png, mplp_prior.png)")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.what[0] == "training":
        training(given)
    else:
        others = {"baselines": baselines, "networks": networks, "sinusoids": sinusoids, "prior": prior_learned}
        for one in given.what:
            if one not in TASKS and one not in others:
                parser.error(f"unknown: {one}")
            others[one](given) if one in others else classify(one, given)
