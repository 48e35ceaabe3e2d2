"""Figures of the BLUR paper: each meta-trains what it needs, goes on where it stopped, measures, and writes results.

MPGRAPH_DATA=FOLDER python examples/blur/figures.py fig5 --budget small
MPGRAPH_DATA=FOLDER python examples/blur/figures.py fig6 fig10 --genome runs/mnist/rule

fig2: is the update a gradient, of a plain or of a Riemannian metric (Section 3.5, Appendix A); fig5: MNIST and data
sets that the genome never met; fig6: against SGD with and without momentum, and Adam, over four decades of rate; fig7:
CMA-ES on 14x14 MNIST; fig8: without normalization; fig10: depth. Figures 3 and 4 are ``examples/learning_to_learn.py``.
Each writes FIGURE.png and FIGURE.json, which holds the published numbers beside ours. Figures 5, 6, 10 and the first
half of 2 measure a genome, ``blur_mnist`` by default, on ten fresh networks 784-512-10, whole test sets.

The ablations train a genome for each variant, from random ones by ``random.toml`` on 196-64-10 and ten updates. fig9
and fig17: symmetry, channels, initialization (and, in 17, the backward update), trained on MNIST or on Omniglot and
tried on both; fig13: states of a neuron; fig15: Oja's term and the size of weights; fig16: synapses that are normalized
while neurons are computed.
"""

import argparse
import json
import math
import os
from pathlib import Path

import torch

import mpgraph as mg
from mpgraph import cli, data, experiments, probes
from mpgraph.architectures import mlp
from mpgraph.meta import Tasks, make_family
from mpgraph.protocols import BLUR, Backprop
from mpgraph.serialization import toml

HERE = Path(os.path.relpath(Path(__file__).parent))  # which a record can name
BUDGETS = {  # outer steps of meta-training by run; networks that are measured
    "small": {"cma": 1, "mnist": 20, "random": 2, "networks": 2},
    "medium": {"cma": 40, "mnist": 300, "random": 60, "networks": 10},
    "paper": {"cma": 400, "mnist": 10000, "random": 10000, "networks": 10},
}
MARKS = (1, 2, 5, 10, 15, 20, 30, 45)  # updates after which test sets are seen
RATES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
SETS = ("mnist", "fashion_mnist", "emnist47")
BATCH = 128
UNROLL = 10  # updates of the ablations
FEW = {  # what they are trained and tried on, ten classes and images of 14x14
    "mnist": {"data": "mnist", "shots": 128, "queries": 40, "batch": BATCH},
    "omniglot": {"data": "omniglot", "shots": 12, "queries": 4, "batch": 12, "splits": [0.8, 0.1, 0.1]},
}
INITIAL = {"random": {}, "backprop": {"protocol.initial": "backprop", "estimator.genomes": 2}}


def images(name):
    """A data set, flat and standardized; of the 47 characters the first ten, which are the digits."""
    found = data.load(name).flat()
    if found.classes == 10:
        return found
    parts = []
    for x, y in ((found.train_x, found.train_y), (found.test_x, found.test_y)):
        parts += [x[y < 10], y[y < 10]]
    return data.Dataset(name, *parts, 10)


def curve(rule, found, networks, marks=MARKS, sizes=(784, 512, 10), readout=False):
    """Test accuracy in percent after some updates, of fresh networks: ``(networks, marks)``."""
    network = mlp(sizes, "tanh", "cross_entropy")
    program = mg.compile(network.readout_only() if readout else network, rule)
    rows = []
    for seed in range(100, 100 + networks):
        state, row = program.init(seed=seed), []
        order = torch.randperm(len(found.train_x), generator=torch.Generator().manual_seed(seed))
        for t, part in enumerate(order.split(BATCH)[: max(marks)], start=1):
            with torch.no_grad():
                state, _ = program.step(state, found.train_x[part], found.train_y[part])
            if t in marks:
                row.append(100.0 * experiments.accuracy(program, state, found.test_x, found.test_y))
        rows.append(row)
    return torch.tensor(rows)


def trained(name, options, *changes, run=None, steps=None):
    """The folder of a run, trained as far as the budget goes."""
    out = Path(options.out) / (run or name)
    command = ["meta-train", "--settings", str(HERE / f"{name}.toml"), "--steps", str(steps or options.steps[name])]
    for change in changes:
        command += ["--set", change]
    print("mpgraph", *command, "--out", out, "--resume", flush=True)
    if cli.main([*command, "--out", str(out), "--resume", "--quiet"]):
        raise SystemExit(f"meta-training of {name} ended early; {out}/log.jsonl says why")
    return out


def log(run):
    """The rows of a run."""
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def written(options, name, published, ours, plot):
    """Write the results and the picture."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    command = f"python examples/blur/figures.py {name} --budget {options.budget} --genome {options.genome}"
    results = {"command": command, "published": published, "ours": ours}
    (out / f"{name}.json").write_text(json.dumps(results, indent=1) + "\n")
    drawing, axes = plt.subplots(figsize=(5, 3.2), layout="constrained")
    plot(axes)
    axes.set_title(name)
    drawing.savefig(out / f"{name}.png")
    plt.close(drawing)
    print(json.dumps(ours, indent=1))
    print(f"wrote {out / name}.json and .png", flush=True)


def lines(axes, curves, at, label):
    """Curves by name."""
    for name, values in curves.items():
        axes.plot(at, values, marker="o", ms=3, label=name)
    axes.set(xlabel=label, ylabel="test accuracy, %")
    axes.legend(fontsize="x-small")


def fig2(options):
    """Asymmetry of the update's Jacobian, and metrics under which it would be a gradient (Eq. 13, constant)."""
    generator, ours = torch.Generator().manual_seed(0), {}
    x = 2.0 * torch.rand(64, 2, generator=generator, dtype=torch.float64) - 1.0
    y = (x.prod(1) > 0).long()
    rules = {"backprop genome": BLUR(eta_tilde=-1e-3), options.genome: mg.load_protocol(options.genome)}
    for name, rule in rules.items():
        program = mg.compile(mlp([2, 20, 2], "tanh", "cross_entropy"), rule, dtype=torch.float64)
        ours[name] = {"asymmetry of 2-20-2": probes.asymmetry(program, program.init(0), x, y).share}
        program = mg.compile(mlp([2, 5, 2], "tanh", "cross_entropy"), rule, dtype=torch.float64)
        ours[name] |= metrics(program, x, y)
    published = "entries of the antisymmetric part up to about 1; 4 of 265 constant metrics fit, none positive-definite"
    bars = {name: max(found["asymmetry of 2-20-2"], 1e-17) for name, found in ours.items()}
    written(options, "fig2", published, ours, lambda axes: axes.bar(list(bars), list(bars.values()), log=True))


def metrics(program, x, y, states=20):
    """How many constant symmetric g make g Q symmetric in random states, and whether a positive-definite one does.

    It does if the smallest eigenvalue of one with norm 1 is above zero. That is a concave function: ascent finds its
    maximum. For the identity, under which gradient descent is one, it is 1 / sqrt(weights).
    """
    jacobians = [jacobian(program, program.init(seed), x, y) for seed in range(states)]
    n = len(jacobians[0])
    pairs = torch.triu_indices(n, n)
    basis = torch.zeros(pairs.shape[1], n, n, dtype=torch.float64)
    basis[torch.arange(len(basis)), pairs[0], pairs[1]] = basis[torch.arange(len(basis)), pairs[1], pairs[0]] = 1.0
    basis /= basis.flatten(1).norm(dim=1)[:, None, None]
    rows = [torch.stack([(g @ q - (g @ q).T).flatten() for g in basis], 1) / q.norm() for q in jacobians]
    _, sizes, right = torch.linalg.svd(torch.cat(rows), full_matrices=False)
    fits = (right[sizes < 1e-8 * sizes.max()] @ basis.flatten(1)).unflatten(1, (n, n))
    found = {"weights": n, "constant metrics that fit": len(fits)}
    if not len(fits):
        return found
    c = fits.diagonal(dim1=1, dim2=2).sum(1) + 1e-9  # the identity, as far as it fits
    smallest = -1.0
    for step in range(1000):
        values, vectors = torch.linalg.eigh(torch.einsum("i,iab->ab", c / c.norm(), fits))
        smallest = max(smallest, float(values[0]))
        c = c / c.norm() + 0.1 / (1.0 + step) ** 0.5 * torch.einsum("a,iab,b->i", vectors[:, 0], fits, vectors[:, 0])
    return {**found, "smallest eigenvalue of the best of norm 1": smallest}


def jacobian(program, state, x, y):
    """Derivatives of the update of all weights by all weights."""
    nodes = [name for name in state if "w" in state[name]]
    sizes = [state[name]["w"].numel() for name in nodes]

    def update(flat):
        parts = dict(zip(nodes, flat.split(sizes), strict=True))
        now = {n: {**state[n], "w": parts[n].view_as(state[n]["w"])} if n in parts else state[n] for n in state}
        after, _ = program.step(now, x, y)
        return torch.cat([after[name]["w"].flatten() for name in nodes]) - flat

    start = torch.cat([state[name]["w"].detach().flatten() for name in nodes])
    return torch.func.jacrev(update)(start).detach()


def fig5(options):
    """MNIST, and data sets that the genome never met."""
    ours = {}
    for name in SETS:
        found = images(name)
        rules = {options.genome: mg.load_protocol(options.genome), "SGD 0.1": Backprop(lr=0.1)}
        for label, rule in rules.items():
            ours[f"{name}, {label}"] = curve(rule, found, options.networks).mean(0).tolist()
    ours["updates"] = list(MARKS)
    published = "4 states, 2 layers: converges much faster than SGD, which overtakes after about 100 updates"

    def plot(axes):
        for i, name in enumerate(SETS):
            for label, style in ((options.genome, "-"), ("SGD 0.1", ":")):
                axes.plot(MARKS, ours[f"{name}, {label}"], style, color=f"C{i}", marker="o", ms=3)
            end = ours[f"{name}, {options.genome}"][-1]
            va = "bottom" if name == "emnist47" else "top"  # it ends just above MNIST
            axes.annotate(name, (MARKS[-1], end), (4, 0), textcoords="offset points", color=f"C{i}", va=va)
        axes.set(xlabel=f"updates (solid: {options.genome}; dotted: SGD 0.1)", ylabel="test accuracy, %")
        axes.set_xlim(0, 1.35 * MARKS[-1])

    written(options, "fig5", published, ours, plot)


def fig6(options):
    """Against optimizers over four decades of rate, each at its best rate on the same test set."""
    makers = {
        "SGD": lambda lr: Backprop(lr=lr),
        "momentum 0.9": lambda lr: Backprop(optimizer=mg.SGD(lr=lr, momentum=0.9)),
        "Adam": lambda lr: Backprop(optimizer=mg.Adam(lr=lr)),
    }
    ours, marks = {"updates": [10, 15, 45]}, (10, 15, 45)
    for name in ("mnist", "fashion_mnist"):
        found = images(name)
        rows = {options.genome: curve(mg.load_protocol(options.genome), found, options.networks, marks)}
        for label, make in makers.items():
            rates = [lr / 30.0 if label == "Adam" else lr for lr in RATES]
            tried = {lr: curve(make(lr), found, 2, marks).mean(0) for lr in rates}
            best = max(rates, key=lambda lr: float(tried[lr][1]))
            rows[f"{label} {best:.3g}"] = curve(make(best), found, options.networks, marks)
        for label, row in rows.items():
            ours[f"{name}, {label}"] = {
                "mean": [round(v, 2) for v in row.mean(0).tolist()],
                "deviation": [round(v, 2) for v in row.std(0).tolist()],
            }
    published = "above SGD with and without momentum at every rate over four decades, without numbers"
    curves = {name: row["mean"] for name, row in ours.items() if name != "updates"}
    written(options, "fig6", published, ours, lambda axes: lines(axes, curves, marks, "updates"))


def fig7(options):
    """CMA-ES, from a random genome."""
    rows = log(trained("cma", options))
    ours = {
        "evaluations": [80 * (row["step"] + 1) for row in rows],
        "best accuracy": [round(1.0 - row["best"], 4) for row in rows],
        "mean accuracy": [round(row["accuracy"], 4) for row in rows],
    }
    published = "0.84 after 400 generations of 80"
    curves = {name: [100.0 * v for v in ours[name]] for name in ("best accuracy", "mean accuracy")}
    written(options, "fig7", published, ours, lambda axes: lines(axes, curves, ours["evaluations"], "evaluations"))


def fig8(options):
    """The same meta-training with and without standardized neurons."""
    found, ours = images("mnist"), {"updates": list(MARKS)}
    for name, changes in {"normalized": (), "without": ("protocol.normalise=false", "trainer.rates={}")}.items():
        run = trained("mnist", options, *changes, run=f"fig8_{name}")
        rule = mg.load_protocol(run / "rule")
        ours[name] = curve(rule, found, options.networks).mean(0).tolist()
    published = "identical runs without normalization learn less accurate genomes, which do not transfer as well"
    curves = {name: values for name, values in ours.items() if name != "updates"}
    written(options, "fig8", published, ours, lambda axes: lines(axes, curves, MARKS, "updates"))


def fig10(options):
    """The genome on other depths, with the same network's readout alone as the floor."""
    found, ours = images("mnist"), {}
    for hidden in (1, 2, 3, 6, 10):
        sizes, few = (784, *[128] * hidden, 10), max(2, options.networks // 3)
        rows = {
            "genome": curve(mg.load_protocol(options.genome), found, few, (15, 45), sizes),
            "readout alone, SGD 0.1": curve(Backprop(lr=0.1), found, few, (15, 45), sizes, readout=True),
            "SGD 0.1": curve(Backprop(lr=0.1), found, few, (15, 45), sizes),
        }
        ours[hidden] = {name: [round(v, 2) for v in row.mean(0).tolist()] for name, row in rows.items()}
        print(hidden, ours[hidden], flush=True)
    published = "genomes trained on 2, 3 or 4 layers learn at 1 to 10 layers, best near their own depth"
    depths = list(ours)
    curves = {name: [ours[d][name][0] for d in depths] for name in ours[1]}
    written(options, "fig10", published, ours, lambda axes: lines(axes, curves, depths, "hidden layers"))


def variant(name, options, changes, data_set="mnist"):
    """A genome of the ablations, trained as far as the budget goes."""
    family = {f"family.{key}": value for key, value in FEW[data_set].items()}
    growth = {"estimator.steps": {"growing": [2, UNROLL, max(1, options.steps["random"] // 2)]}}
    given = {**family, **growth, **changes}
    texts = [f"{key}={toml.text(value)}" for key, value in given.items()]
    run = trained("random", options, *texts, run=name.replace(" ", "_").replace(",", ""))
    return mg.load_protocol(run / "rule")


def few(rule, data_set, tasks):
    """Accuracy in percent on the queries of unseen tasks after ten updates, mean and deviation over tasks."""
    family, scores = make_family("few_shot", ways=10, pool=2, **FEW[data_set]), []
    program = mg.compile(mlp((196, 64, 10), "tanh", "cross_entropy"), rule)
    with torch.no_grad():
        for seed, task in enumerate(Tasks(family, 1, tasks, 0, "test")):
            state = program.init(seed=100 + seed)
            for x, y in zip(task.x[:UNROLL], task.y, strict=False):
                state, _ = program.step(state, x, y)
            scores.append(100.0 * experiments.accuracy(program, state, task.query_x, task.query_y))
    right = torch.tensor(scores)
    return {"mean": round(float(right.mean()), 1), "deviation": round(float(right.std(correction=0)), 1)}


def variants(name, options, table, published, data_sets=("mnist",)):
    """Train every variant on each data set and try it on all, beside gradient descent at its best rate."""
    ours = {}
    for seen in data_sets:
        for label, changes in table.items():
            rule = variant(f"{name} {seen} {label}", options, changes, seen)
            ours[f"{label}, trained on {seen}"] = {tried: few(rule, tried, options.networks) for tried in data_sets}
    for tried in data_sets:
        rows = [(few(Backprop(lr=lr), tried, options.networks), lr) for lr in RATES]
        best, lr = max(rows, key=lambda row: row[0]["mean"])
        ours[f"SGD {lr:g}, best of {len(RATES)} on {tried}"] = {tried: best}

    def plot(axes):
        axes.figure.set_size_inches(7.0, 1.4 + 0.17 * len(ours))
        for tried in data_sets:
            rows = [(label, row[tried]) for label, row in ours.items() if tried in row]
            labels, means, bars = zip(*((label, row["mean"], row["deviation"]) for label, row in rows), strict=True)
            axes.errorbar(means, labels, xerr=bars, fmt="o", ms=3, lw=0.7, label=f"tried on {tried}")
        axes.tick_params(axis="y", labelsize=7)
        axes.invert_yaxis()
        axes.set(xlabel="accuracy after ten updates, %")
        axes.figure.legend(loc="outside lower right", ncols=2, fontsize="x-small")

    written(options, name, published, ours, plot)


def synapses(initial):
    """Symmetry times channels times initialization."""
    return {
        f"{'symmetric' if same else 'asymmetric'}, {'one channel' if single else 'channels'}, {start}": {
            "protocol.symmetric": same,
            "protocol.single": single,
            **INITIAL[start],
        }
        for same in (True, False)
        for single in (True, False)
        for start in initial
    }


def fig9(options):
    """Symmetry, channels and initialization, on MNIST and Omniglot."""
    published = "eight variants, each the best of eight runs: most learn, and those trained on one set learn the other"
    variants("fig9", options, synapses(INITIAL), published, tuple(FEW))


def fig17(options):
    """The same for each kind of backward update."""
    table = {
        f"{backward}, {label}": {"protocol.backward": backward, **changes}
        for backward in ("additive", "multiplicative", "second")
        for label, changes in synapses(INITIAL).items()
    }
    variants("fig17", options, table, "24 variants: no clear order, most of them reasonable", tuple(FEW))


def fig13(options):
    """Neurons of more states."""
    table = {f"{k} states": {"protocol.k": k, "protocol.single": False} for k in (2, 3, 4, 8)}
    variants("fig13", options, table, "more states: slightly better, without numbers")


def long(rule, updates):
    """Mean |w| and test error in percent along a run of MNIST at 14x14, by updates."""
    found = data.load("mnist", standardise=False).pooled(2).standardised().flat()
    program = mg.compile(mlp((196, 64, 10), "tanh", "cross_entropy"), rule)
    state, generator, rows = program.init(seed=100), torch.Generator().manual_seed(100), {}
    with torch.no_grad():
        for t in range(1, updates + 1):
            part = torch.randint(len(found.train_x), (BATCH,), generator=generator)
            state, _ = program.step(state, found.train_x[part], found.train_y[part])
            if t in (1, 3, 10, 30, 100, 200, 500, 1000):
                wrong = 100.0 * (1.0 - experiments.accuracy(program, state, found.test_x, found.test_y))
                size = float(state["h1->y"]["w"].abs().mean())
                rows[t] = {"mean |w|": size if math.isfinite(size) else None, "test error": wrong}
    return rows


def along(name, options, table, what, published):
    """Train every variant, and follow one quantity far beyond the updates that it was trained for."""
    updates = 100 if options.budget == "small" else 1000
    ours = {label: long(variant(f"{name} {label}", options, changes), updates) for label, changes in table.items()}

    def plot(axes):
        for label, rows in ours.items():
            axes.loglog(list(rows), [row[what] for row in rows.values()], marker="o", ms=3, label=label)
        axes.set(xlabel="updates", ylabel=what)
        axes.legend(fontsize="x-small")

    written(options, name, published, ours, plot)


def fig15(options):
    """The size of weights with and without Oja's term."""
    table = {"Oja's term": {"protocol.oja": "activation"}, "without": {}}
    along("fig15", options, table, "mean |w|", "without Oja's rule synapses grow without bound")


def fig16(options):
    """Synapses that are divided by their length where neurons are computed."""
    table = {"normalized": {"protocol.lengths": "computing"}, "without": {}}
    along("fig16", options, table, "test error", "without normalization the error rises soon after update 500")


FIGURES = {
    "fig2": fig2, "fig5": fig5, "fig6": fig6, "fig7": fig7, "fig8": fig8, "fig9": fig9, "fig10": fig10,
    "fig13": fig13, "fig15": fig15, "fig16": fig16, "fig17": fig17,
}  # fmt: skip


def main():
    """Make the figures that are named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="+", choices=FIGURES)
    parser.add_argument("--budget", choices=BUDGETS, default="small")
    parser.add_argument("--genome", default="blur_mnist", help="folder of a rule, or the name of a pretrained one")
    parser.add_argument("--out", default="runs", help="folder of runs and figures")
    options = parser.parse_args()
    options.steps = BUDGETS[options.budget]
    options.networks = options.steps["networks"]
    torch.set_num_threads(1)
    for name in options.what:
        FIGURES[name](options)


if __name__ == "__main__":
    main()
