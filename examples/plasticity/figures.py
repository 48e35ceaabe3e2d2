"""Figures and Table 1 of the plasticity paper: each meta-trains its rules, goes on where it stopped, and measures.

MPGRAPH_DATA=FOLDER python examples/plasticity/figures.py fig8 --budget medium
MPGRAPH_DATA=FOLDER python examples/plasticity/figures.py runs/backprop/rule plasticity_bio --episodes 20

fig3: backpropagation and the pseudo-gradient; fig4: the pool of ten terms; fig5: F_bio; fig6: F_eHebb; fig8: F_Oja.
Each draws accuracy and loss through meta-training (moving averages over 11 episodes), angles between the errors that
the rule sends and those of backpropagation, and the path of the coefficients. fig9: orthonormality errors of the first
four connections. table1: angles of rules that differ from layer to layer. Names of rules print a line of measures each.
Angles and errors are means over test tasks, on the query after 250 examples; the tasks, networks and orders of images
are the same for every rule. In the paper every rule is trained for 500 episodes, the budget `paper`.
"""

import argparse
import json
import os
from pathlib import Path

import torch

import mpgraph as mg
from mpgraph import cli, meta, probes
from mpgraph.meta import settings

HERE = Path(os.path.relpath(Path(__file__).parent))  # which a record can name
FIGURES = {
    "fig3": ("backprop", "pseudo"),
    "fig4": ("pool",),
    "fig5": ("bio",),
    "fig6": ("ehebb",),
    "fig8": ("oja",),
    "fig9": ("pseudo", "ehebb", "oja", "backprop"),
}
PLACES = {"W12": "h1->h2", "W23": "h2->y", "W01": "*"}  # the first connection is all that is left
ROWS = ["", "W12", "W23", "W01 W12", "W12 W23", "W01 W23", "W01 W12 W23"]  # connections with Hebb's rule of errors
BUDGETS = {"small": 60, "medium": 200, "paper": 500}  # episodes of meta-training
POINTS = 6  # of the path, at which angles and errors are measured


def trained(name, options, *changes):
    """The folder of a run, trained as far as the budget goes."""
    out, file = Path(options.out) / name, "per_layer" if name.startswith("table1") else name
    command = ["meta-train", "--settings", str(HERE / f"{file}.toml"), "--steps", str(BUDGETS[options.budget])]
    for change in (*changes, *options.set):
        command += ["--set", change]
    print("mpgraph", *command, "--out", out, "--resume", flush=True)
    if cli.main([*command, "--out", str(out), "--resume"]):
        raise SystemExit(f"meta-training of {name} ended early; {out}/log.jsonl says why")
    return out


def episodes(name, count, seed, parameters=None):
    """Accuracy in percent ``(count,)``, angles of input and hidden units, orthonormality errors ``(count, units)``."""
    rule = mg.load_protocol(name)
    given = settings.complete(rule.record["settings"])
    family = settings.family_of(given["family"])
    program = mg.compile(settings.network_of(given["network"], family), rule)
    with torch.no_grad():
        for key, p in program.protocol.named_parameters():
            p.copy_(p if parameters is None else torch.tensor(parameters[key]))
    units = ["x", *(unit for unit in program.graph.network.units if unit[0] == "h")]
    carries = getattr(rule, "feedback", "random") == "random"  # otherwise errors travel by the weights themselves
    tasks, found = meta.Tasks(family, seed, count, 0, "test"), []
    for i, task in enumerate(tasks):
        state = program.init(tasks.network_seed(i))
        state, _ = program.run(state, zip(task.x, task.y, strict=True))
        right = (program.predict(state, task.query_x).argmax(-1) == task.query_y).double().mean()
        query = (state, task.query_x, task.query_y)
        angles = probes.angles(program, *query, against={"b": "w"}, nodes=units) if carries else {}
        errors = list(probes.orthonormality(program, *query, activity="activity").values())
        found.append((100.0 * right, [angles.get(unit, 0.0) for unit in units], errors[: len(units) - 1]))
    return [torch.tensor(part, dtype=torch.float64) for part in zip(*found, strict=True)]


def log(run):
    """The rows of a run that have a loss."""
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [row for row in rows if row["loss"] is not None]


def path(run, options):
    """Outer steps along a run, and there the angles and orthonormality errors ``(points, units)``."""
    rows = log(run)
    chosen = [rows[i] for i in torch.linspace(0, len(rows) - 1, min(POINTS, len(rows))).round().int().tolist()]
    found = [episodes(run / "rule", options.episodes, options.seed, row["parameters"])[1:] for row in chosen]
    return [row["step"] for row in chosen], *(torch.stack([part[i].mean(0) for part in found]) for i in (0, 1))


def smooth(values, width=11):
    """Moving average over the last so many."""
    return [
        sum(values[max(0, i + 1 - width) : i + 1]) / len(values[max(0, i + 1 - width) : i + 1])
        for i in range(len(values))
    ]


def figure(name, options):
    """Meta-train the rules of a figure and draw it."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    runs = {rule: trained(rule, options) for rule in FIGURES[name]}
    size = (1, len(runs)) if name == "fig9" else (len(runs), 4)
    drawing, axes = plt.subplots(*size, figsize=(3.2 * size[1], 2.6 * size[0]), layout="constrained", squeeze=False)
    for i, (rule, run) in enumerate(runs.items()):
        rows, (at, angles, errors) = log(run), path(run, options)
        if name == "fig9":
            axes[0][i].semilogy(at, errors, label=["W01", "W12", "W23", "W34"][: errors.shape[1]])
            axes[0][i].set(title=rule, xlabel="episode", ylabel="orthonormality error")
            axes[0][i].legend(fontsize="small")
            continue
        steps = [row["step"] for row in rows]
        for axis, key, scale in ((axes[i][0], "accuracy", 100.0), (axes[i][1], "loss", 1.0)):
            axis.plot(steps, smooth([scale * row[key] for row in rows]))
            axis.set(title=rule, xlabel="episode", ylabel=key)
        axes[i][2].plot(at, angles[:, 1:], label=[f"h{n}" for n in range(1, angles.shape[1])])
        axes[i][2].set(ylim=(0, 95), xlabel="episode", ylabel="angle, degrees")
        for key in rows[-1]["parameters"]:
            axes[i][3].plot(steps, [row["parameters"][key] for row in rows], label=key.rpartition(".")[2])
        axes[i][3].set(xlabel="episode", ylabel="coefficient")
        for axis in axes[i][2:]:
            axis.legend(fontsize="x-small", bbox_to_anchor=(1.0, 1.0), loc="upper left")
    place = Path(options.out) / f"{name}.png"
    drawing.savefig(place)
    print(f"wrote {place}")
    for run in runs.values():
        line(run / "rule", options)


def line(name, options):
    """Print what a rule reaches."""
    accuracy, angles, errors = episodes(name, options.episodes, options.seed)
    error = accuracy.std() / len(accuracy) ** 0.5 if len(accuracy) > 1 else 0.0
    print(f"{name}: accuracy {accuracy.mean():.1f} +- {error:.1f} %")
    print("  angles of hidden units, degrees:", "  ".join(f"{a:.1f}" for a in angles.mean(0).tolist()[1:]))
    print("  orthonormality errors:", "  ".join(f"{e:.0f}" for e in errors.mean(0).tolist()), flush=True)


def table(options):
    """Table 1: every row is meta-trained with coefficients of its own for each connection."""
    print("ehebb on      angles at x, h1, h2    accuracy on test tasks %   mean of the last 50 episodes %")
    for row in ROWS:
        regions = [
            f'"{node}" = {{ learn = {{ pseudo = 1e-3{", ehebb = 0.0" if place in row.split() else ""} }} }}'
            for place, node in PLACES.items()
        ]
        run = trained(
            "table1_" + (row.replace(" ", "_") or "none"), options, f"protocol.regions={{ {', '.join(regions)} }}"
        )
        accuracy, angles, _ = episodes(run / "rule", options.episodes, options.seed)
        last = [100.0 * r["accuracy"] for r in log(run)[-50:]]
        shown = "  ".join(f"{a:5.1f}" for a in angles.mean(0).tolist())
        print(f"{row or 'none':13} {shown}    {accuracy.mean():5.1f}    {sum(last) / len(last):5.1f}", flush=True)


def main():
    """Make the figures, or measure the rules, that are named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="+", help=f"of {', '.join(FIGURES)}, table1; folders of rules, pretrained names")
    parser.add_argument(
        "--budget", choices=BUDGETS, default="medium", help="episodes of meta-training: small 60, medium 200"
    )
    parser.add_argument("--episodes", type=int, default=4, help="test tasks to measure on (default: 4)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", default="runs", help="folder of runs and figures")
    parser.add_argument("--set", action="append", default=[], help="other settings of the runs, as of meta-train")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in options.what:
        if name == "table1":
            table(options)
        elif name in FIGURES:
            figure(name, options)
        else:
            line(name, options)


if __name__ == "__main__":
    main()
