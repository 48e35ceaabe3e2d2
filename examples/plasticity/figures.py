"""What a meta-trained plasticity rule does: accuracy, angles and orthonormality over fresh episodes, and its path.

Names a rule that `mpgraph meta-train` wrote, or a pretrained one. Episodes are the same for every rule: tasks, networks
and order of images depend on the seed only. Angles are those between the errors that the rule sends and those of
backpropagation, orthonormality the error of the first four connections, both on the query after 250 examples.

MPGRAPH_DATA=FOLDER python examples/plasticity/figures.py runs/backprop/rule plasticity_bio --episodes 20
"""

import argparse
import json
from pathlib import Path

import torch

import mpgraph as mg
from mpgraph import meta, probes
from mpgraph.meta import settings


def episodes(name, count, seed):
    """Accuracy in percent ``(count,)``, angles of hidden units and orthonormality errors ``(count, units)``."""
    rule = mg.load_protocol(name)
    given = settings.complete(rule.record["settings"])
    family = settings.family_of(given["family"])
    program = mg.compile(settings.network_of(given["network"], family), rule)
    hidden = [unit for unit in program.graph.network.units if unit[0] == "h"]
    carries = getattr(rule, "feedback", "random") == "random"  # otherwise errors travel by the weights themselves
    tasks, found = meta.Tasks(family, seed, count, 0, "test"), []
    for i, task in enumerate(tasks):
        state = program.init(tasks.network_seed(i))
        state, _ = program.run(state, zip(task.x, task.y, strict=True))
        right = (program.predict(state, task.query_x).argmax(-1) == task.query_y).double().mean()
        query = (state, task.query_x, task.query_y)
        angles = probes.angles(program, *query, against={"b": "w"}, nodes=hidden) if carries else {}
        errors = probes.orthonormality(program, *query, activity="activity")
        first = [float(error) for error in list(errors.values())[:4]]
        found.append((100.0 * right, [angles.get(unit, 0.0) for unit in hidden], first))
    return [torch.tensor(part, dtype=torch.float64) for part in zip(*found, strict=True)]


def path(name, figure):
    """A picture of the meta-parameters through meta-training."""
    import matplotlib.pyplot as plt

    rows = [json.loads(line) for line in (Path(name).parent / "log.jsonl").read_text().splitlines()]
    drawing, axis = plt.subplots(figsize=(5, 3), layout="constrained")
    for parameter in rows[-1]["parameters"]:
        axis.plot([row["parameters"][parameter] for row in rows], label=parameter.rpartition(".")[2])
    axis.set(xlabel="episode", ylabel="coefficient"), axis.legend(fontsize="small"), drawing.savefig(figure)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rules", nargs="+", help="folders of rules, or names of pretrained ones")
    parser.add_argument("--episodes", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--path", help="where to save the path of the coefficients of the first rule")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in options.rules:
        accuracy, angles, errors = episodes(name, options.episodes, options.seed)
        error = accuracy.std() / len(accuracy) ** 0.5 if len(accuracy) > 1 else 0.0
        print(f"{name}: accuracy {accuracy.mean():.1f} +- {error:.1f} %")
        print("  angles of hidden units, degrees:", "  ".join(f"{a:.1f}" for a in angles.mean(0).tolist()))
        print("  orthonormality errors:", "  ".join(f"{e:.0f}" for e in errors.mean(0).tolist()))
    if options.path:
        path(options.rules[0], options.path)


if __name__ == "__main__":
    main()
