"""The command ``mpgraph compare``."""

from __future__ import annotations

import argparse
import json
import math
import shlex
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mpgraph.agents.protocol import list_protocols
from mpgraph.errors import FileError, InputError
from mpgraph.serialization import atomic

from . import flags, results
from .cells import Cell, Plan, cells_of, checked, run_cells
from .contrasts import contrasts
from .naming import rules_named
from .results import READOUT_ONLY, Run, shown, spread
from .tasks import TASKS
from .tuning import space_of


def model_flags() -> flags.Parser:
    """Flags of all commands that make networks and rules."""
    parser = flags.Parser(add_help=False)
    parser.add_argument(
        "--hidden", type=flags.sizes, metavar="N,N", help="hidden units of each layer (default: by task)"
    )
    parser.add_argument("--activation", help="of hidden units (default: tanh)")
    parser.add_argument("--loss", help="on the output (default: cross_entropy, of numbers l2)")
    parser.add_argument("--lr", type=float, default=0.1, help="learning rate (default: 0.1)")
    parser.add_argument("--surrogate", help="activation whose derivative replaces that of units without one")
    parser.add_argument("--device", help="where to run, for example cuda (default: torch's)")
    return parser


def run_flags(parser: argparse.ArgumentParser, what: str) -> None:
    """Flags of all commands that train many cells and write what came of it."""
    parser.add_argument("--jobs", type=flags.positive, default=1, metavar="N", help="processes at once (default: 1)")
    parser.add_argument("--data", metavar="DIR", help="folder of the data files (default: MPGRAPH_DATA)")
    parser.add_argument("--out", type=Path, metavar="DIR", help=f"write {what} there")
    parser.add_argument("--resume", action="store_true", help="keep the finished runs of DIR/results.json")
    parser.add_argument("--quiet", action="store_true", help="no progress bar, also on a terminal")


def add_compare(commands: Any) -> None:
    """Add it to the sub-parsers of the command line."""
    parser = commands.add_parser(
        "compare", parents=[model_flags()], help="train rules side by side: rules x networks x tasks x seeds"
    )
    parser.add_argument("--settings", type=Path, metavar="FILE", help="TOML with any of these flags; those typed win")
    parser.add_argument(
        "--task", "--tasks", dest="tasks", type=flags.tasks, default=["digits"], metavar="A,B",
        help=f"of {', '.join(TASKS)} (default: digits, without files)",
    )  # fmt: skip
    parser.add_argument(
        "--networks", type=rules_named, default=["mlp"], metavar="A,B",
        help='architectures, also with arguments, "convnet(kernel=3)", or FILE.py:FUNCTION (default: mlp)',
    )  # fmt: skip
    parser.add_argument(
        "--protocols",
        type=rules_named,
        default=["backprop", "feedback_alignment"],
        metavar="A,B",
        help='names as `mpgraph protocols` lists them, also with arguments, "backprop(lr=0.3)"; name:FOLDER for a '
        "rule that was saved, FILE.py:CLASS for one of your own",
    )
    parser.add_argument("--seeds", type=flags.positive, default=3, metavar="N", help="runs of each rule (default: 3)")
    parser.add_argument("--epochs", type=flags.positive, help="passes over the training set (default: by task)")
    parser.add_argument("--batch", type=flags.positive, default=32, help="examples in a step (default: 32)")
    parser.add_argument("--raw", action="store_true", help="leave inputs as they are; by default they are standardised")
    parser.add_argument("--limit", type=flags.positive, metavar="N", help="train on the first N examples only")
    parser.add_argument(
        "--tune", metavar="NAME=LOW..HIGH,NAME=A|B",
        help="choose these arguments of each rule that takes them on validation data, for example lr=0.01..1",
    )  # fmt: skip
    parser.add_argument(
        "--trials", type=flags.positive, default=8, metavar="N",
        help="of --tune, for each rule, network, task and seed (default: 8)",
    )  # fmt: skip
    parser.add_argument(
        "--angles", action="store_true",
        help="measure at each epoch the angle of updates to the gradient, and the ratio of their norms",
    )  # fmt: skip
    parser.add_argument("--against", metavar="RULE", help="rule that the others are held against (default: the first)")
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")
    run_flags(parser, "results.json, report.html and curves.png and .svg")
    parser.set_defaults(run=compare, reads=parser)


def plan_of(options: argparse.Namespace) -> Plan:
    """What the flags say of all cells."""
    if not math.isfinite(options.lr):
        raise InputError(f"--lr must be a finite number, got {options.lr}")
    return Plan(
        epochs=getattr(options, "epochs", None),
        batch=options.batch,
        lr=options.lr,
        surrogate=options.surrogate,
        hidden=tuple(options.hidden) if options.hidden else None,
        activation=options.activation,
        loss=options.loss,
        raw=getattr(options, "raw", False),
        limit=getattr(options, "limit", None),
        space=space_of(options.tune, options.trials) if getattr(options, "tune", None) else None,
        device=options.device,
        root=getattr(options, "data", None),
        angles=getattr(options, "angles", False),
    )


def settings_of(plan: Plan) -> dict[str, Any]:
    """What runs must share to stand in one file."""
    return {
        "epochs": plan.epochs, "batch": plan.batch, "lr": plan.lr, "surrogate": plan.surrogate,
        "hidden": plan.hidden and list(plan.hidden), "activation": plan.activation, "loss": plan.loss,
        "standardised": not plan.raw, "limit": plan.limit,
        "tune": plan.space and {"space": plan.space.text, "trials": plan.space.trials},
    }  # fmt: skip


def compare(options: argparse.Namespace) -> int:
    """Run ``mpgraph compare``."""
    if not options.protocols:
        raise InputError(f"--protocols names no rule; allowed are {', '.join(list_protocols())}")
    for flag, given in (("--tasks", options.tasks), ("--networks", options.networks)):
        if not given:
            raise InputError(f"{flag} names none")
    reference = options.against or next(name for name in [*options.protocols, ""] if name != READOUT_ONLY)
    if reference and reference not in options.protocols:
        raise InputError(f"--against {reference!r} must be one of --protocols: {', '.join(options.protocols)}")
    plan = plan_of(options)
    rules = list(dict.fromkeys([READOUT_ONLY, *options.protocols]))
    cells = cells_of(plan, options.tasks, options.networks, rules, range(options.seeds))
    done = done_before(options, settings_of(plan))
    known = {run.key for run in done}
    checked(plan, [cell for cell in cells if cell.key not in known])
    others = {"command": command_line(options)}

    def write(runs: Sequence[Run]) -> None:
        rows = contrasts(runs, reference)
        results.write(options.out / "results.json", runs, settings_of(plan), **others, contrasts=rows)

    runs = run_cells(
        plan, cells, jobs=options.jobs, done=done, on_run=write if options.out else None, progress=not options.quiet
    )
    rows, differences = results.summary(runs), contrasts(runs, reference)
    if options.json:
        print(json.dumps({"settings": settings_of(plan), "summary": rows, "contrasts": differences}, indent=1))
    else:
        print_tables(plan, cells, rows, differences)
    if options.out:
        kept = {run.key: run for run in [*runs, *done]}
        write(list(kept.values()))
        names = pictures(options.out, runs, plan, cells, others["command"], differences)
        if not options.json:
            print(f"\nwrote {', '.join(str(options.out / name) for name in ('results.json', *names))}")
    return 1 if any(run.diverged for run in runs) else 0


def pictures(
    out: Path,
    runs: Sequence[Run],
    plan: Plan,
    cells: Sequence[Cell],
    command: str,
    differences: Sequence[dict[str, Any]],
) -> tuple[str, ...]:
    """Write the figures and the report; returns the names of the files."""
    from .plots import alignment, measured, overview, save
    from .report import report

    drawn = {"curves": overview}
    if any(measured(run) for run in runs):
        drawn["alignment"] = alignment
    names = *(f"{name}.{suffix}" for name in drawn for suffix in ("png", "svg")), "report.html"
    title = title_of(plan, *cells)
    networks = {cell.key[:2]: plan.network(cell) for cell in cells if cell.protocol != READOUT_ONLY}
    text = report(
        runs, title=title, command=command, settings=settings_of(plan), contrasts=differences, networks=networks
    )
    try:
        for name, draw in drawn.items():
            figure = draw(runs, title)
            save(figure, out / f"{name}.svg")
            save(figure, out / f"{name}.png")
        atomic.write(out / "report.html", text.encode())
    except OSError as error:
        raise FileError(f"--out {out} cannot be written: {error.strerror}") from None
    return names


def done_before(options: argparse.Namespace, settings: dict[str, Any]) -> list[Run]:
    """Runs that are kept, after a look at whether the folder can be written, before the first run is lost."""
    done: list[Run] = []
    if options.resume:
        if not options.out:
            raise InputError("--resume needs --out DIR, the folder of the earlier results.json")
        done = results.read(options.out / "results.json", settings)
    if options.out:
        try:
            options.out.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=options.out):
                pass
        except OSError as error:
            raise FileError(f"--out {options.out} cannot be written: {error.strerror}") from None
    return done


def command_line(options: argparse.Namespace) -> str:
    """What was typed, as a shell takes it."""
    return shlex.join(["mpgraph", *options.typed])


def title_of(plan: Plan, *cells: Cell) -> str:
    """Task, network, batch and learning rate of a table or figure; of several tasks or networks, how many."""
    rate = f"lr {plan.lr:g}" if plan.space is None else f"tuned {plan.space.text} in {plan.space.trials} trials"
    found = {"tasks": {cell.task for cell in cells}, "networks": {cell.label for cell in cells}}
    what = [names.copy().pop() if len(names) == 1 else f"{len(names)} {kind}" for kind, names in found.items()]
    sizes = sorted({plan.batch_of(cell) for cell in cells})
    return ", ".join([*what, f"batch {' and '.join(map(str, sizes))}", rate])


def print_tables(
    plan: Plan, cells: Sequence[Cell], rows: Sequence[dict[str, Any]], differences: Sequence[dict[str, Any]]
) -> None:
    """A table for each task, network and output, with the contrasts below it."""
    groups = {(cell.task, cell.label): cell for cell in cells}
    for i, (group, cell) in enumerate(groups.items()):
        here = [row for row in rows if (row["task"], row["network"]) == group]
        seeds = here[0]["seeds"]
        print("\n" * (i > 0) + f"{title_of(plan, cell)}, {seeds} seed{'s' * (seeds > 1)}")
        for output in dict.fromkeys(row["output"] for row in here):
            if output:
                print(f"\noutput {output}")
            _print_table(*(
                [row for row in table if (row["task"], row["network"], row["output"]) == (*group, output)]
                for table in (rows, differences)
            ))  # fmt: skip


def _print_table(here: Sequence[dict[str, Any]], differences: Sequence[dict[str, Any]]) -> None:
    """The scores of one output, and the differences between rules."""
    numbers = here[0]["test_accuracy"] is None
    width = max(len(row["protocol"]) for row in here)
    heading = "test error       " if numbers else "test accuracy %  "
    print(f"{'protocol':{width}}  {heading} above readout  seconds")
    for row in here:
        print(_line(row, width, numbers))
    lines = [row for row in differences if row["pairs"] > 1]
    if lines:
        unit = "less error" if numbers else "points"
        print(f"\n{'minus ' + lines[0]['against']:{width}}  {unit:15}  effect size  pairs needed")
    for row in lines:
        print(_contrast(row, width, numbers))


def _line(row: dict[str, Any], width: int, numbers: bool) -> str:
    scale, digits = (1.0, 4) if numbers else (100.0, 2)
    score = row["test_error"] if numbers else row["test_accuracy"]
    gain = "" if row["above_readout"] is None else shown(scale * row["above_readout"], digits - 1, "+")
    note = f"  {row['diverged']} of {row['seeds']} diverged" if row["diverged"] else ""
    found = spread(scale * score, None if row["deviation"] is None else scale * row["deviation"], digits, " +- ")
    return f"{row['protocol']:{width}}  {found:15}  {gain:>13}  {row['seconds']:7.2f}{note}"


def _contrast(row: dict[str, Any], width: int, numbers: bool) -> str:
    scale, digits = (1.0, 4) if numbers else (100.0, 2)
    error = " +- " + shown(scale * row["standard_error"], digits)
    effect = "-" if row["effect_size"] is None else f"{row['effect_size']:+.2f}"
    pairs = "-" if row["needed"] is None else str(row["needed"])
    difference = shown(scale * row["difference"], digits, "+")
    return f"{row['protocol']:{width}}  {difference}{error:10}  {effect:>11}  {pairs:>12}"
