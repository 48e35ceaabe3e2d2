"""The commands ``mpgraph meta-train`` and ``mpgraph evaluate``."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import mpgraph as mg
from mpgraph.agents.protocol import Protocol
from mpgraph.environment import commit_of
from mpgraph.errors import FileError, InputError
from mpgraph.registry import lookup
from mpgraph.serialization import toml
from mpgraph.serialization.protocol import load_protocol, pretrained

from . import settings as files
from .baselines import RATES, nearest_class_mean, tuned
from .distributed import join, leave
from .task import Tasks, list_families
from .trainer import DivergenceError, evaluate

NUMBERS = ("lr", "tasks", "seed")  # flags whose values are not words
FLAGS = {  # flag: setting, help
    "protocol": ("protocol.name", "rule to train, as `mpgraph protocols` lists them, or meta_rnn, fast_weights"),
    "network": ("network.name", "architecture (default: mlp)"),
    "family": ("family.name", "tasks: " + ", ".join(list_families())),
    "estimator": ("estimator.name", "of the meta-gradient: " + ", ".join(files.ESTIMATORS)),
    "optimizer": ("trainer.optimizer", "outer optimizer, of torch.optim (default: adam)"),
    "lr": ("trainer.lr", "outer learning rate (default: 1e-3)"),
    "tasks": ("trainer.tasks", "tasks in an outer step (default: 1)"),
    "seed": ("trainer.seed", "of all that is random (default: 0)"),
}


def add_commands(commands: Any) -> None:
    """Add both to the sub-parsers of the command line."""
    train = commands.add_parser("meta-train", help="train a learning rule on a family of tasks")
    train.add_argument("--settings", type=Path, metavar="FILE", help="TOML with all settings; flags win over it")
    train.add_argument(
        "--from",
        dest="start",
        metavar="RULE",
        help="go on with a saved rule, by its folder or pretrained name",
    )
    for flag, (_, text) in FLAGS.items():
        train.add_argument(f"--{flag}", help=text)
    train.add_argument(
        "--set", action="append", default=[], metavar="TABLE.KEY=VALUE", help="any other setting, its value as in TOML"
    )
    train.add_argument("--steps", type=int, required=True, metavar="N", help="outer steps in all")
    train.add_argument("--out", type=Path, required=True, metavar="DIR", help="log, curves, checkpoints and the rule")
    train.add_argument("--resume", action="store_true", help="go on from the newest checkpoint in DIR")
    train.add_argument("--every", type=int, default=10, metavar="N", help="outer steps between checkpoints")
    train.add_argument("--keep", type=int, default=3, metavar="N", help="checkpoints to keep (default: 3)")
    train.add_argument("--data", metavar="DIR", help="folder of the data files (default: MPGRAPH_DATA)")
    train.add_argument("--quiet", action="store_true", help="no progress bar")
    train.set_defaults(run=meta_train)

    test = commands.add_parser("evaluate", help="a trained rule on fresh tasks, with baselines beside it")
    test.add_argument("rule", help="folder of a saved rule, or the name of a pretrained one")
    test.add_argument("--family", help="other tasks than those it was trained on")
    test.add_argument("--set", action="append", default=[], metavar="TABLE.KEY=VALUE", help="other settings")
    test.add_argument("--tasks", type=int, default=20, metavar="N", help="how many (default: 20)")
    test.add_argument("--split", choices=("train", "validation", "test"), default="test")
    test.add_argument("--seed", type=int, default=0)
    test.add_argument(
        "--baselines", default="sgd,nearest_class_mean", metavar="A,B",
        help="of sgd, adam (rates tuned on validation tasks), nearest_class_mean, rules by folder or name; '' for none",
    )  # fmt: skip
    test.add_argument("--data", metavar="DIR", help="folder of the data files (default: MPGRAPH_DATA)")
    test.add_argument("--json", action="store_true", help="print as JSON")
    test.set_defaults(run=evaluate_rule)


def meta_train(options: argparse.Namespace) -> int:
    """Run ``mpgraph meta-train``."""
    given = files.read(options.settings) if options.settings else {}
    changes = _changes(options.set)
    for flag, (key, _) in FLAGS.items():
        value = getattr(options, flag)
        if value is not None:
            changes[key] = _value(value) if flag in NUMBERS else value
    if options.start:
        given = {**given, "protocol": {"from": options.start}}
    given = files.complete(files.changed(given, changes))
    group = join()
    trainer = files.trainer_of(given, root=options.data, steps=options.steps, group=group)
    command = ["mpgraph meta-train", *([f"--settings {options.settings}"] if options.settings else [])]
    command += [f"--from {options.start}"] if options.start else []
    command += ["--set " + shlex.quote(f"{key}={toml.text(value)}") for key, value in sorted(changes.items())]
    record = {
        "command": " ".join([*command, f"--steps {options.steps}"]),
        "settings": given,
        "commit": commit_of(Path(__file__).resolve().parent),
        "versions": {"mpgraph": mg.__version__, "torch": torch.__version__},
        **given.get("record", {}),
    }
    try:
        trainer.run(
            options.steps, options.out, resume=options.resume, every=options.every, keep=options.keep,
            record=record, progress=not options.quiet and sys.stderr.isatty(),
        )  # fmt: skip
    except DivergenceError as error:
        print(f"mpgraph: {error}", file=sys.stderr)
        return 1
    if group.rank == 0:
        curves(options.out / "log.jsonl", options.out / "curves.png")
        print(f"wrote {options.out / 'rule'}, log.jsonl and curves.png after {trainer.step} outer steps")
    leave()
    return 0


def evaluate_rule(options: argparse.Namespace) -> int:
    """Run ``mpgraph evaluate``."""
    rule, record = _loaded(options.rule)
    changes = _changes(options.set)
    given = record["settings"]
    if options.family and options.family != given["family"]["name"]:
        given = {**given, "family": {"name": options.family}}
    given = files.complete(files.changed(given, changes))
    family = files.family_of(given["family"], options.data)
    tasks = Tasks(family, options.seed, options.tasks, 0, options.split)
    validation = Tasks(family, options.seed, min(8, options.tasks), 0, "validation")
    at_once = int(given["trainer"]["tasks"])

    def measured(name: str, rule: Protocol | None, given: Mapping[str, Any]) -> dict[str, Tensor]:
        episode = files.episode_of(given, family, rule)
        return evaluate(episode, episode.load(Path(name)), tasks, at_once)

    rows = {Path(str(options.rule)).name: measured(options.rule, rule, given)}
    descent = lookup("mpgraph.protocols", "backprop")
    for name in filter(None, options.baselines.split(",")):
        if name == "nearest_class_mean":
            rows[name] = {"accuracy": nearest_class_mean(tasks)}
        elif name in ("sgd", "adam"):
            network = files.network_of(given["network"], family)
            rate, found = tuned(network, descent, name, tasks, validation, RATES, at_once)
            rows[f"{name} {rate:g}"] = found
        elif name in pretrained() or Path(name).is_dir():
            other, record = _loaded(name)
            rows[name] = measured(name, other, files.complete({**record["settings"], "family": given["family"]}))
        else:
            raise InputError(
                f"--baselines {name!r}: allowed are sgd, adam, nearest_class_mean, and rules, by folder or name"
            )
    table = {name: {key: _spread(row[key]) for key in ("accuracy", "loss") if key in row} for name, row in rows.items()}
    if options.json:
        print(json.dumps({"tasks": options.tasks, "split": options.split, "rules": table}, indent=1))
        return 0
    print(f"{options.tasks} {options.split} tasks of {given['family']['name']}; rates searched: {RATES}")
    width = max(map(len, table))
    for name, row in table.items():
        accuracy = "{:5.1f} +- {:.1f} %".format(*(100 * v for v in row["accuracy"])) if "accuracy" in row else ""
        loss = "{:.4f} +- {:.4f}".format(*row["loss"]) if "loss" in row else ""
        print(f"{name:{width}}  {accuracy:15}  {loss}")
    return 0


def _loaded(name: str) -> tuple[Protocol | None, dict[str, Any]]:
    """A saved rule and its training record; of a learner without a rule, no rule."""
    for learner in files.LEARNERS.values():
        if (Path(name) / learner.file()).is_file():
            return None, learner.record(Path(name))
    rule = load_protocol(name)
    if "settings" not in rule.record:
        raise FileError(f"{name} has no settings in its record: it was not made by `mpgraph meta-train`")
    return rule, dict(rule.record)


def curves(log: Path, figure: Path) -> None:
    """A picture of the losses, and of the meta-parameters if there are few."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = [json.loads(line) for line in log.read_text().splitlines()]
    if not rows:
        return
    named = "parameters" in rows[-1]
    drawing, axes = plt.subplots(1, 1 + named, figsize=(4 + 4 * named, 3), layout="constrained", squeeze=False)
    left = axes[0][0]
    steps = [row["step"] for row in rows]
    left.plot(steps, [row["loss"] for row in rows], lw=0.7, label="meta-loss")
    held = [(row["step"], row["validation"]) for row in rows if row.get("validation") is not None]
    if held:
        left.plot(*zip(*held, strict=True), marker="o", ms=3, label="validation")
    left.set(xlabel="outer step", ylabel="loss")
    left.legend()
    if named:
        right = axes[0][1]
        for name in rows[-1]["parameters"]:
            values = torch.tensor([row["parameters"][name] for row in rows]).reshape(len(rows), -1)
            right.plot(steps, values, lw=0.9, label=name.rpartition(".")[2] if values.shape[1] == 1 else None)
        right.set(xlabel="outer step", ylabel="meta-parameters")
        right.legend(fontsize="small")
    drawing.savefig(figure)
    plt.close(drawing)


def _changes(given: list[str]) -> dict[str, Any]:
    changes = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not equals or "." not in key:
            raise InputError(f"--set {text!r} must be TABLE.KEY=VALUE, for example trainer.clip=norm")
        changes[key.strip()] = _value(value)
    return changes


def _value(text: str) -> Any:
    """A value as TOML has it; a bare word is a string."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except ValueError as error:
        if text.strip()[:1] in ("{", "[", '"', "'"):
            raise InputError(f"--set: {text} is not a value as TOML has it, such as {{ lr = 0.01 }}: {error}") from None
        return text


def _spread(values: Tensor | Mapping[str, Any]) -> tuple[float, float]:
    """Mean and standard error."""
    assert isinstance(values, Tensor)
    values = values.double()
    error = values.std() / len(values) ** 0.5 if len(values) > 1 else torch.zeros(())
    return float(values.mean()), float(error)
