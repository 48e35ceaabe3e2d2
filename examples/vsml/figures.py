"""The experiments of the VS-ML paper with rules that we trained.

python examples/vsml/figures.py fig4
MPGRAPH_DATA=FOLDER python examples/vsml/figures.py fig5 --budget small
MPGRAPH_DATA=FOLDER python examples/vsml/figures.py fig6 --budget paper
MPGRAPH_DATA=FOLDER python examples/vsml/figures.py fig9 --budget medium

fig4: what a cloned synapse sends up, against tanh(x) w. fig5 (7 and 8 in the appendix): a network learns MNIST and
Fashion-MNIST by its cloned synapses, 784-10 and 784-32-10, beside gradient descent from the same weights; also how its
changes of weights correlate with those of gradient descent, for each layer. fig6: streams of 200 test images, one at a
time, beside gradient descent, Adam, the nearest class mean, and a Meta RNN and fast weights (--told FOLDER ...). fig9:
the first updates of 784-10 by the clone, by the clone refined by CMA-ES, which it trains (or --refined FOLDER), and by
gradient descent at its best rate. Each writes FIGURE.png and FIGURE.json.
"""

import argparse
import json
import math
from itertools import pairwise
from pathlib import Path

import torch
from torch.nn import functional

import mpgraph as mg
from mpgraph import cli, data, experiments
from mpgraph.architectures import mlp
from mpgraph.meta.settings import LEARNERS
from mpgraph.protocols import Backprop
from mpgraph.protocols.vsml.imitation import RATE, Synapses, weight

BUDGETS = {  # networks of each kind, updates, streams; updates of fig9, generations of its search
    "small": {"seeds": 1, "shallow": 50, "deep": 50, "streams": 5, "first": 20, "generations": 2},
    "medium": {"seeds": 3, "shallow": 300, "deep": 300, "streams": 20, "first": 60, "generations": 60},
    "paper": {"seeds": 6, "shallow": 1000, "deep": 1000, "streams": 20, "first": 1000, "generations": 200},
}
SIZES = {"shallow": (784, 10), "deep": (784, 32, 10)}
SETS = ("mnist", "fashion_mnist")
BATCH, HELD, EVERY = 64, 512, 50  # validation images on which curves are measured, every so many updates
LENGTH = 200
IMAGES = 1000  # of the test set in fig9
MARKS = (2, 5, 10, 20, 30, 60, 100, 300, 1000)  # updates after which fig9 tests
RATES = {
    "SGD": (0.003, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5),
    "Adam": (0.001, 0.002, 0.003, 0.005, 0.01, 0.02, 0.03, 0.05),
}


def figure(options, name, draw, found, size):
    """Write what was measured, and its picture."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    drawing, axes = plt.subplots(1, size, figsize=(4.2 * size, 3.2), layout="constrained", squeeze=False)
    draw(axes[0])
    drawing.savefig(f"{options.out}/{name}.png", dpi=110)
    with open(f"{options.out}/{name}.json", "w") as file:
        json.dump(found, file, indent=1)
    print(f"wrote {options.out}/{name}.png and {name}.json")


# -- a synapse ------------------------------------------------------------------------------------------------------


@torch.no_grad()
def fig4(options):
    """What a synapse sends up for a weight and an input, after two steps without an error."""
    rule = mg.load_protocol(options.clone)
    grid = torch.linspace(-2.0, 2.0, 41), torch.linspace(-1.0, 1.0, 21)
    x, w = (part.reshape(-1, 1, 1) for part in torch.meshgrid(*grid, indexing="ij"))
    known = rule.cells[0].random
    synapses = Synapses(rule.cells[0], (w / known**0.5)[..., None].expand(-1, -1, -1, known))
    for _ in range(2):
        sent = synapses.step(x, torch.zeros_like(x))[0]
    sent, wanted = (part.reshape(41, 21) for part in (sent, torch.tanh(x) * w))
    off = sent - wanted
    found = {"root mean square": float(off.square().mean().sqrt()), "largest": float(off.abs().max())}
    print("fig4, sent up against tanh(x) w:", found)

    def draw(axes):
        for i in range(0, 21, 4):
            (line,) = axes[0].plot(grid[0], sent[:, i], label=f"w = {float(grid[1][i]):.1f}")
            axes[0].plot(grid[0], wanted[:, i], ls=":", color=line.get_color())
        axes[0].set(xlabel="x", ylabel="sent up (dotted: tanh(x) w)")
        axes[0].legend(fontsize="x-small")
        heat = axes[1].imshow(off.abs().T, origin="lower", aspect="auto", extent=(-2, 2, -1, 1))
        axes[1].set(xlabel="x", ylabel="w", title="absolute error")
        axes[1].figure.colorbar(heat)

    figure(options, "fig4", draw, found, 2)


# -- backpropagation, cloned --------------------------------------------------------------------------------------


def weights(program, state):
    """The weights in a state, by connection."""
    known = program.protocol.cells[0].random
    return {n: weight(channels["c"].mean(0), known) for n, channels in state.items() if "c" in channels}


def logits(w, x):
    """Predictions by these weights, with a tanh before each layer, of the inputs and of the biases' one too."""
    names = ["x", *(name.removesuffix(".bias") for name in w if name.endswith(".bias"))]
    for pre, post in pairwise(names):
        x = torch.tanh(x) @ w[f"{pre}->{post}"].T + math.tanh(1.0) * w[f"{post}.bias"]
    return x


@torch.enable_grad()
def gradients(w, x, y):
    """Those of the mean loss by autograd: the measure, not how anything learns."""
    w = {name: tensor.detach().requires_grad_() for name, tensor in w.items()}
    found = torch.autograd.grad(functional.cross_entropy(logits(w, x), y), list(w.values()))
    return dict(zip(w, found, strict=True))


@torch.no_grad()
def learned(rule, sizes, found, seed, updates):
    """Accuracies along the way and at the end, those of gradient descent from the same weights, and correlations."""
    program = mg.compile(mlp(list(sizes), "tanh"), rule)
    state, generator = program.init(1000 + seed, batch_size=BATCH), torch.Generator().manual_seed(seed)
    kept = len(found.train_x) - HELD  # the others are for curves
    teacher, row = weights(program, state), {"at": [], "cloned": [], "gradient descent": [], "correlation": {}}

    for t in range(1, updates + 1):
        rows = torch.randint(kept, (BATCH,), generator=generator)
        x, y = found.train_x[rows], found.train_y[rows]
        before = weights(program, state)
        state, _ = program.step(state, x, y)
        own, theirs = gradients(before, x, y), gradients(teacher, x, y)
        teacher = {name: w - RATE * theirs[name] for name, w in teacher.items()}
        after = weights(program, state)
        for name, w in before.items():
            pair = torch.stack([(after[name] - w).flatten(), -own[name].flatten()])
            row["correlation"].setdefault(name, []).append(float(torch.corrcoef(pair)[0, 1]))
        if t % EVERY == 0 or t == updates:
            x, y = found.train_x[kept:], found.train_y[kept:]
            row["at"].append(t)
            row["cloned"].append(100.0 * experiments.accuracy(program, state, x, y))
            row["gradient descent"].append(100.0 * float((logits(teacher, x).argmax(1) == y).double().mean()))
    row["test"] = {
        "cloned": 100.0 * experiments.accuracy(program, state, found.test_x, found.test_y),
        "gradient descent": 100.0 * float((logits(teacher, found.test_x).argmax(1) == found.test_y).double().mean()),
    }
    row["correlation"] = {name: sum(parts) / len(parts) for name, parts in row["correlation"].items()}
    return row


def fig5(options):
    """Both data sets, both depths."""
    budget, table = BUDGETS[options.budget], {}
    sets = {name: data.load(name).flat() for name in options.data}
    for seed in options.seeds or range(budget["seeds"]):
        for depth in options.depths:
            for name, found in sets.items():
                row = learned(mg.load_protocol(options.clone), SIZES[depth], found, seed, budget[depth])
                table.setdefault(f"{name} {depth}", []).append(row)
                shown = ", ".join(f"{n} {r:.3f}" for n, r in row["correlation"].items())
                tests = ", ".join(f"{n} {a:.2f}" for n, a in row["test"].items())
                print(f"{name} {depth}, seed {seed}, {budget[depth]} updates of {BATCH}: test accuracy {tests} %; "
                      f"correlation of updates {shown}", flush=True)  # fmt: skip

    def draw(axes):
        for axis, (title, rows) in zip(axes, table.items(), strict=True):
            for kind, style in (("cloned", "-"), ("gradient descent", ":")):
                scores = torch.tensor([row[kind] for row in rows])
                axis.errorbar(rows[0]["at"], scores.mean(0), scores.std(0, correction=0), ls=style, label=kind)
            axis.set(title=title, xlabel=f"updates of {BATCH}", ylabel="validation accuracy, %")
            axis.legend()

    figure(options, "fig5", draw, table, len(table))


# -- the clone, refined ---------------------------------------------------------------------------------------------


def trained(settings, steps, options):
    """The rule of a run of these settings, which goes on where it stopped."""
    run = Path(options.out) / f"vsml_{settings}"
    words = ["--settings", str(Path(__file__).with_name(f"{settings}.toml")), "--steps", str(steps), "--every", "5"]
    if cli.main(["meta-train", *words, "--out", str(run), "--resume"]):
        raise SystemExit(f"meta-training stopped, see {run / 'log.jsonl'}")
    return str(run / "rule")


def first_updates(learner, found, seed, marks, x, y):
    """Accuracies after so many updates, %, of a rule, or of gradient descent at a rate from the same weights."""
    descends = not isinstance(learner, str)
    program = mg.compile(mlp([784, 10], "tanh"), mg.load_protocol("vsml_clone" if descends else learner))
    state, generator = program.init(1000 + seed, batch_size=BATCH), torch.Generator().manual_seed(seed)
    w, scores = weights(program, state), []
    for t in range(1, marks[-1] + 1):
        rows = torch.randint(len(found.train_x) - HELD, (BATCH,), generator=generator)
        batch = found.train_x[rows], found.train_y[rows]
        if descends:
            w = {name: w[name] - learner * g for name, g in gradients(w, *batch).items()}
        else:
            state, _ = program.step(state, *batch)
        if t in marks and descends:
            scores.append(100.0 * float((logits(w, x).argmax(1) == y).double().mean()))
        elif t in marks:
            scores.append(100.0 * experiments.accuracy(program, state, x, y))
    return scores


@torch.no_grad()
def fig9(options):
    """Figure 9: does a rule that is refined for the first updates on MNIST learn faster, there and elsewhere?"""
    budget, table = BUDGETS[options.budget], {}
    refined = options.refined or trained("refine", budget["generations"], options)
    mg.load_protocol(refined)  # refused now, not after minutes
    marks, seeds = [m for m in MARKS if m <= budget["first"]], options.seeds or range(budget["seeds"])
    for name in options.data:
        found = data.load(name).flat()
        held = found.train_x[-HELD:], found.train_y[-HELD:]
        tries = {r: [first_updates(r, found, 500 + s, marks, *held) for s in seeds] for r in RATES["SGD"]}
        best = max(tries, key=lambda rate: float(torch.tensor(tries[rate]).mean()))
        rows = torch.randperm(len(found.test_x), generator=torch.Generator().manual_seed(0))[:IMAGES]
        learners = {"cloned": options.clone, "refined": refined, f"gradient descent {best:g}": best}
        table[name] = {"at": marks, **{who: [] for who in learners}}
        for seed in seeds:
            for who, learner in learners.items():
                curve = first_updates(learner, found, seed, marks, found.test_x[rows], found.test_y[rows])
                table[name][who].append(curve)
                shown = ", ".join(f"{a:.1f} at {t}" for t, a in zip(marks, curve, strict=True))
                print(f"{name}, seed {seed}, {len(rows)} test images, {who}: {shown}", flush=True)

    def draw(axes):
        for axis, (title, rows) in zip(axes, table.items(), strict=True):
            for who in [who for who in rows if who != "at"]:
                scores = torch.tensor(rows[who])
                axis.errorbar(rows["at"], scores.mean(0), scores.std(0, correction=0), label=who)
            axis.set(title=title, xlabel=f"updates of {BATCH}", ylabel="test accuracy, %", xscale="log")
            axis.legend()

    figure(options, "fig9", draw, table, len(table))


# -- online, one image at a time ------------------------------------------------------------------------------------


def stream(found, seed, split):
    """Images and labels of a stream; those of validation are the last 5,000 for training."""
    x, y = (found.test_x, found.test_y) if split == "test" else (found.train_x[-5000:], found.train_y[-5000:])
    rows = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[:LENGTH]
    return x[rows], y[rows]


@torch.no_grad()
def online(program, streams, zero=False):
    """Which predictions were right ``(streams, images)``, each made before its label is seen."""
    right = []
    for seed, (x, y) in enumerate(streams):
        state = program.init(1000 + seed, batch_size=1)
        if zero:
            state = {n: {c: torch.zeros_like(t) if c == "w" else t for c, t in cs.items()} for n, cs in state.items()}
        row = []
        for i in range(len(x)):
            state, out = program.step(state, x[i : i + 1], y[i : i + 1])
            row.append(int(out.prediction.argmax()) == int(y[i]))
        right.append(row)
    return torch.tensor(right).double()


def class_means(streams, classes=10):
    """The class whose mean so far is nearest; at first any that was seen."""
    right = []
    for x, y in streams:
        sums, counts, row = torch.zeros(classes, x.shape[1]), torch.zeros(classes), []
        for image, label in zip(x, y, strict=True):
            far = (sums / counts.clamp(min=1)[:, None] - image).square().sum(1)
            row.append(int(torch.where(counts > 0, far, torch.inf).argmin()) == int(label))
            sums[label] += image
            counts[label] += 1
        right.append(row)
    return torch.tensor(right).double()


def told(folder):
    """A learner without a rule, meta-trained on streams of the same length, and its name in the picture."""
    learner = next((one for one in LEARNERS.values() if (folder / one.file()).is_file()), None)
    if learner is None:
        raise SystemExit(f"--told {folder}: no {' or '.join(one.file() for one in LEARNERS.values())} there")
    settings = learner.record(folder)["settings"]
    options = {key: value for key, value in settings["protocol"].items() if key != "name"}
    name = {"hebb": "fast weights, Hebb", "oja": "fast weights, Oja"}.get(options.get("rule"), "Meta RNN")
    name += ", labels in any order" if "permuted_labels" in settings["family"] else ""
    found = learner(settings["family"]["side"] ** 2, 10, **options)
    return name, found, found.load(folder)


def of_told(found, own, streams):
    """Which predictions were right ``(streams, images)``."""
    return torch.stack([found.predictions(own, x, y).argmax(1) == y for x, y in streams]).double()


def descent(kind, rate, inputs):
    """A linear classifier that begins with zeros."""
    rule = Backprop(lr=rate) if kind == "SGD" else Backprop(optimizer=mg.Adam(rate))
    return mg.compile(mlp([inputs, 10]), rule)


def fig6(options):
    """Cumulative accuracy over 200 images."""
    count, table = options.streams or BUDGETS[options.budget]["streams"], {}
    rule = mg.load_protocol(options.online)
    beside = [told(folder) for folder in options.told]  # refused now, not after minutes
    side = rule.record.get("images", {}).get("side", 7)  # one that does not ship yet does not say
    shown = options.online if "/" not in options.online else Path(options.online).parent.name  # of RUN/rule
    for name in options.data:
        found = data.load(name, standardise=False).resized(side).standardised().flat()
        test = [stream(found, seed, "test") for seed in range(count)]
        held = [stream(found, 500 + seed, "validation") for seed in range(count)]
        rows = {shown: online(mg.compile(mlp([side * side, 10], bias=False), rule), test)}
        for kind, rates in RATES.items():
            scores = {rate: float(online(descent(kind, rate, side * side), held, True).mean()) for rate in rates}
            best = max(scores, key=scores.__getitem__)
            rows[f"{kind} {best:g}"] = online(descent(kind, best, side * side), test, True)
        rows["nearest class mean"] = class_means(test)
        for who, learner, own in beside:
            rows[who] = of_told(learner, own, test)
        table[name] = {}
        for who, right in rows.items():
            curve = 100.0 * right.cumsum(1) / torch.arange(1, LENGTH + 1)
            table[name][who] = {"mean": curve.mean(0).tolist(), "deviation": curve.std(0, correction=0).tolist()}
            print(f"{name} at {side}x{side}, {count} streams, {who}: "
                  + ", ".join(f"{curve[:, t - 1].mean():.1f} +- {curve[:, t - 1].std(correction=0):.1f} % at {t}"
                              for t in (50, 100, LENGTH)), flush=True)  # fmt: skip
        ahead = 100.0 * (rows[shown] - rows["nearest class mean"]).mean(1)
        print(f"{name}, {shown} minus nearest class mean: {ahead.mean():+.2f} points, standard error "
              f"{ahead.std() / count**0.5:.2f}, ahead in {int((ahead > 0).sum())} of {count} streams")  # fmt: skip

    def draw(axes):
        for axis, (title, rows) in zip(axes, table.items(), strict=True):
            for who, row in rows.items():
                axis.plot(range(1, LENGTH + 1), row["mean"], label=who)
            axis.set(title=title, xlabel="images", ylabel="cumulative accuracy, %")
        axes[-1].legend(fontsize="x-small", loc="upper left", bbox_to_anchor=(1.0, 1.0))

    figure(options, "fig6", draw, table, len(table))


FIGURES = {"fig4": fig4, "fig5": fig5, "fig6": fig6, "fig9": fig9}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("figures", nargs="+", choices=FIGURES)
    parser.add_argument("--budget", choices=BUDGETS, default="medium")
    parser.add_argument("--clone", default="vsml_clone", help="rule of fig4, fig5 and fig9, folder or name")
    parser.add_argument("--refined", help="refined rule of fig9, folder or name (default: trained in --out)")
    parser.add_argument("--online", default="vsml_online", help="rule of fig6, RUN/rule or name")
    parser.add_argument(
        "--told",
        type=Path,
        nargs="+",
        default=[],
        metavar="FOLDER",
        help="of fig6: RUN/rule of `mpgraph meta-train` with meta_rnn.toml or fast_weights.toml",
    )
    parser.add_argument("--streams", type=int, help="of each data set in fig6 (default: as many as the budget has)")
    parser.add_argument("--data", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--depths", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--seeds", type=int, nargs="+", help="of networks (default: as many as the budget has)")
    parser.add_argument("--out", default=".", help="folder of pictures and numbers (default: here)")
    given = parser.parse_args()
    torch.set_num_threads(1)
    for one in given.figures:
        FIGURES[one](given)
