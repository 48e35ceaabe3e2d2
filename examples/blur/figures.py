"""Figures of the BLUR paper: each meta-trains what it needs, goes on where it stopped, measures, and writes results.

MPGRAPH_DATA=FOLDER python examples/blur/figures.py fig5 --budget small
MPGRAPH_DATA=FOLDER python examples/blur/figures.py fig6 fig10 --genome runs/mnist/rule

fig2: is the update a gradient, of a plain or of a Riemannian metric (Section 3.5, Appendix A); fig4: toys and held-out
toys (Fig. 3, 4); fig5: MNIST and data sets that the genome never met; fig6: against SGD with and without momentum, and
Adam, over four decades of rate; fig7: CMA-ES on 14x14 MNIST; fig8: without normalization; fig10: depth.
Each writes FIGURE.png and FIGURE.json, which holds the published numbers beside ours. Figures 5, 6, 10 and the first
half of 2 measure a genome, ``blur_mnist`` by default, on ten fresh networks 784-512-10, whole test sets.
"""

import argparse
import json
import os
from pathlib import Path

import torch

import mpgraph as mg
from mpgraph import cli, data, experiments, probes
from mpgraph.architectures import mlp
from mpgraph.protocols import BLUR, Backprop

HERE = Path(os.path.relpath(Path(__file__).parent))  # which a record can name
BUDGETS = {  # outer steps of meta-training by run; networks that are measured
    "small": {"toys": 150, "cma": 2, "mnist": 20, "networks": 2},
    "medium": {"toys": 600, "cma": 40, "mnist": 300, "networks": 10},
    "paper": {"toys": 10000, "cma": 400, "mnist": 10000, "networks": 10},
}
MARKS = (1, 2, 5, 10, 15, 20, 30, 45)  # updates after which test sets are seen
RATES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
SETS = ("mnist", "fashion_mnist", "emnist47")
BATCH = 128


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


def fig4(options):
    """Toys: meta-train on xor and or, test on nxor."""
    run = trained("toys", options)
    rule = mg.load_protocol(run / "rule")
    from mpgraph.meta import Boolean

    program, ours = mg.compile(mlp([2, 20, 1], "tanh", "l2"), rule), {}
    for name in ("xor", "or", "and", "nor", "nand", "nxor"):
        family = Boolean((name,), (name,), (name,), steps=20, batch=64, queries=500)
        rows = []
        for i in range(20):
            task = family.draw(torch.Generator().manual_seed(i))
            state, row = program.init(seed=i), []
            for x, y in zip(task.x.float(), task.y.float(), strict=True):
                state, _ = program.step(state, x, y)
                right = (program.predict(state, task.query_x.float()) > 0) == (task.query_y > 0)
                row.append(float(right.double().mean()))
            rows.append(row)
        ours[name] = {f"after {n} updates": round(float(torch.tensor(rows)[:, n - 1].mean()), 4) for n in (5, 10, 20)}
    published = "curves without numbers; the reference reached .93 on xor and .92 on nxor here after five updates"
    at = [5, 10, 20]
    curves = {name: [100.0 * v for v in found.values()] for name, found in ours.items()}
    written(options, "fig4", published, ours, lambda axes: lines(axes, curves, at, "updates"))


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
    curves = {name: values for name, values in ours.items() if name != "updates"}
    written(options, "fig5", published, ours, lambda axes: lines(axes, curves, MARKS, "updates"))


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
    """CMA-ES, from the genome of backpropagation between standardized neurons."""
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
    for hidden in (1, 2, 3, 4, 6, 10):
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


FIGURES = {"fig2": fig2, "fig4": fig4, "fig5": fig5, "fig6": fig6, "fig7": fig7, "fig8": fig8, "fig10": fig10}


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
