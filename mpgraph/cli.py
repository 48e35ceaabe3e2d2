"""The command line: ``mpgraph compare``, ``mpgraph protocols``, ``mpgraph explain``.

Exit status: 0 if all went well, 1 if a run diverged, 2 for a wrong argument or file, 130 after an interrupt.
"""

from __future__ import annotations

import argparse
import inspect
import json
import math
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from . import __version__, experiments
from .agents.protocol import Protocol, list_protocols
from .errors import FileError, InputError, MPGraphError
from .meta.commands import add_commands
from .network.network import Network
from .program.compile import compile
from .registry import lookup
from .serialization.protocol import load_protocol, pretrained


class Task(NamedTuple):
    """A data set's sizes, and what a newcomer gets for it without further options."""

    pixels: int
    classes: int
    hidden: list[int]
    epochs: int


TASKS = {
    "digits": Task(64, 10, [32], 20),
    "mnist": Task(784, 10, [128], 2),
    "fashion_mnist": Task(784, 10, [128], 2),
    "emnist47": Task(784, 47, [256, 256], 12),
    "omniglot": Task(784, 964, [256], 10),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"
    options = argparse.Namespace()
    try:
        options = _parser().parse_args(arguments)
        return options.run(options)
    except MPGraphError as error:
        print(f"mpgraph: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        results = (getattr(options, "out", None) or Path()) / "results.json"
        advice = f"; finished runs are in {results}, --resume continues" if results.exists() else ""
        print(f"mpgraph: interrupted{advice}", file=sys.stderr)
        return 130


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are of the family."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and where the arguments are listed."""
        raise InputError(f"{message}; see {self.prog} --help")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="mpgraph", description="Learning rules as messages between neurons and synapses, on torch.")
    parser.add_argument("--version", action="version", version=f"mpgraph {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)

    task = _Parser(add_help=False)
    task.add_argument("--task", choices=TASKS, default="digits", help="data set (default: digits, without files)")
    task.add_argument("--hidden", type=_sizes, metavar="N,N", help="hidden units of each layer (default: by task)")
    task.add_argument("--activation", default="tanh", help="of hidden units (default: tanh)")
    task.add_argument("--loss", default="cross_entropy", help="on the output (default: cross_entropy)")
    task.add_argument("--lr", type=float, default=0.1, help="learning rate (default: 0.1)")
    task.add_argument("--surrogate", help="activation whose derivative replaces that of units without one")
    task.add_argument("--device", help="where to run, for example cuda (default: torch's)")

    compare = commands.add_parser("compare", parents=[task], help="train rules side by side on real data")
    compare.add_argument(
        "--protocols",
        type=experiments.rules_named,
        default=["backprop", "feedback_alignment"],
        metavar="A,B",
        help='names as `mpgraph protocols` lists them, also with arguments, "backprop(lr=0.3)"; name:FOLDER for a '
        "rule that was saved, FILE.py:CLASS for one of your own",
    )
    compare.add_argument("--seeds", type=_positive, default=3, metavar="N", help="runs of each rule (default: 3)")
    compare.add_argument("--epochs", type=_positive, help="passes over the training set (default: by task)")
    compare.add_argument("--batch", type=_positive, default=32, help="examples in a step (default: 32)")
    compare.add_argument("--data", metavar="DIR", help="folder of the data files (default: MPGRAPH_DATA)")
    compare.add_argument("--raw", action="store_true", help="leave pixels in 0..1; by default they are standardised")
    compare.add_argument("--limit", type=_positive, metavar="N", help="train on the first N examples only")
    compare.add_argument("--out", type=Path, metavar="DIR", help="write results.json and curves.png there")
    compare.add_argument("--resume", action="store_true", help="keep the finished runs of DIR/results.json")
    compare.add_argument("--json", action="store_true", help="print the summary as JSON")
    compare.add_argument("--quiet", action="store_true", help="no progress bar, also on a terminal")
    compare.set_defaults(run=_compare)

    listing = commands.add_parser("protocols", help="list the registered rules")
    listing.add_argument("--json", action="store_true", help="as JSON")
    listing.set_defaults(run=_protocols)

    explain = commands.add_parser("explain", parents=[task], help="show what a rule compiles to")
    explain.add_argument("--protocol", default="backprop", help="the rule, named as for compare")
    explain.add_argument("--batch", type=_positive, default=32, help="examples in a step (default: 32)")
    explain.add_argument("--code", action="store_true", help="print the generated torch code")
    explain.set_defaults(run=_explain)
    add_commands(commands)
    return parser


def _compare(options: argparse.Namespace) -> int:
    from . import data

    if not options.protocols:
        raise InputError(f"--protocols names no rule; allowed are {', '.join(list_protocols())}")
    if not math.isfinite(options.lr):
        raise InputError(f"--lr must be a finite number, got {options.lr}")
    network = _network(options)
    rules = {name: _maker(name, options) for name in [experiments.READOUT_ONLY, *options.protocols]}
    epochs = options.epochs or TASKS[options.task].epochs
    settings = {
        "task": options.task, "network": experiments.shape_of(network), "loss": options.loss, "epochs": epochs,
        "batch": options.batch, "lr": options.lr, "surrogate": options.surrogate, "standardised": not options.raw,
        "limit": options.limit,
    }  # fmt: skip
    done: list[experiments.Run] = []
    if options.resume:
        if not options.out:
            raise InputError("--resume needs --out DIR, the folder of the earlier results.json")
        done = experiments.read(options.out / "results.json", settings)
    if options.out:
        try:
            options.out.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=options.out):  # before the first run is lost
                pass
        except OSError as error:
            raise FileError(f"--out {options.out} cannot be written: {error.strerror}") from None

    def load(seed: int) -> data.Dataset:
        found = data.load(
            options.task, options.data, seed=seed, standardise=not options.raw, progress=not options.quiet
        )
        if found.classes != TASKS[options.task].classes:
            raise FileError(f"{options.task} has {TASKS[options.task].classes} classes, its files {found.classes}")
        return found.head(options.limit) if options.limit else found

    runs = experiments.compare(
        network,
        rules,
        load,
        seeds=range(options.seeds),
        epochs=epochs,
        batch=options.batch,
        device=options.device,
        done=done,
        on_run=(lambda runs: experiments.write(options.out / "results.json", runs, settings)) if options.out else None,
        progress=not options.quiet,
    )
    rows = experiments.summary(runs)
    title = f"{options.task}, {settings['network']}, batch {options.batch}, lr {options.lr:g}, "
    title += f"{options.seeds} seed{'s' * (options.seeds > 1)}"
    if options.json:
        print(json.dumps({"settings": settings, "summary": rows}, indent=1))
    else:
        _print_table(title, rows)
    if options.out:
        from .experiments.plots import curves

        kept = {(run.protocol, run.seed): run for run in [*done, *runs]}
        experiments.write(options.out / "results.json", list(kept.values()), settings)
        try:
            curves(runs, options.out / "curves.png", title)
        except OSError as error:
            raise FileError(f"{options.out / 'curves.png'} cannot be written: {error.strerror}") from None
        if not options.json:
            print(f"\nwrote {options.out / 'results.json'} and {options.out / 'curves.png'}")
    return 1 if any(run.diverged for run in runs) else 0


def _print_table(title: str, rows: Sequence[dict[str, Any]]) -> None:
    print(title)
    width = max(len(row["protocol"]) for row in rows)
    print(f"{'protocol':{width}}  test accuracy %   above readout  seconds")
    for row in rows:
        gain = "" if row["above_readout"] is None else f"{100 * row['above_readout']:+.1f}"
        note = f"  {row['diverged']} of {row['seeds']} diverged" if row["diverged"] else ""
        spread = "" if row["deviation"] is None else f" +- {100 * row['deviation']:.2f}"
        score = f"{100 * row['test_accuracy']:.2f}{spread}"
        print(f"{row['protocol']:{width}}  {score:15}  {gain:>13}  {row['seconds']:7.2f}{note}")


def _protocols(options: argparse.Namespace) -> int:
    rows = []
    for name in list_protocols():
        cls = lookup("mpgraph.protocols", name)
        rows.append({"name": name, "class": cls.__name__, "about": (inspect.getdoc(cls) or "").partition("\n")[0]})
    for name in pretrained():
        rule = load_protocol(name)
        rows.append({"name": name, "class": type(rule).__name__, "about": f"pretrained {rule.name}"})
    if options.json:
        print(json.dumps(rows, indent=1))
    else:
        width = max(len(row["name"]) for row in rows)
        print("\n".join(f"{row['name']:{width}}  {row['about']}" for row in rows))
    return 0


def _explain(options: argparse.Namespace) -> int:
    program = compile(_network(options), _maker(options.protocol, options)(), device=options.device)
    print(program.code if options.code else program.explain(options.batch))
    return 0


def _network(options: argparse.Namespace) -> Network:
    mlp = lookup("mpgraph.architectures", "mlp")
    task = TASKS[options.task]
    return mlp([task.pixels, *(options.hidden or task.hidden), task.classes], options.activation, options.loss)


def _maker(name: str, options: argparse.Namespace) -> Callable[[], Protocol]:
    """A function that makes the rule, with the options that it takes."""
    usual = {k: v for k, v in {"lr": options.lr, "surrogate": options.surrogate}.items() if v is not None}
    return experiments.maker_of(name, usual, trained=options.run is _compare)


def _sizes(text: str) -> list[int]:
    return [_positive(part) for part in text.split(",")]


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive integer")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
