"""``mpgraph bench``: every rule on a fixed suite of small tasks, each with the same budget for its search.

The results file is that of ``mpgraph compare``; runs of other rules are added to it with ``--resume --protocols``, and
those of another file with ``--add``. The page is made from the file alone. Whatever a rule does, the others go on: what
fails becomes a row that says why.
"""

from __future__ import annotations

import argparse
import math
import shlex
import statistics
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mpgraph.agents.protocol import list_protocols
from mpgraph.errors import FileError, InputError, MPGraphError
from mpgraph.serialization import atomic

from . import flags, profiles, results
from .cells import Cell, Plan, cells_of, checked, reason, run_cells
from .commands import command_line, done_before, run_flags, settings_of
from .naming import named, rules_named
from .results import READOUT_ONLY, Run, shown, spread
from .tasks import TASKS
from .tuning import space_of

SEARCHED = "lr=0.001..1"
STEP = "mlp(activation='step')"
SUITE = (  # task and network; the last ones need files
    ("digits", "mlp"),
    ("digits", "convnet(kernel=3, channels=(8,), hidden=(32,))"),
    ("digits", STEP),
    ("digits", "layered_sparse"),
    ("xor", "mlp"),
    ("teacher", "mlp"),
    ("mackey_glass", "mlp"),
    ("delayed_cue", "recurrent"),
    ("digits", "random_graph(neurons=40, model='erdos_renyi', degree=4)"),
    ("digits_5way", "mlp"),
    ("emnist47_5way", "mlp"),
    ("mnist", "mlp"),
    ("fashion_mnist", "mlp"),
    ("mnist", "convnet"),
)
FILES = ("mnist", "fashion_mnist", "emnist47", "emnist47_5way", "omniglot")


@dataclass(frozen=True)
class Budget:
    """How much is spent on each rule and problem.

    Attributes:
        seeds: runs of each rule on each problem.
        trials: of the search.
        epochs: passes over the training set.
        limit: examples of it.
        problems: how many of the suite are run.
        files: whether problems that need files are among them.
        moved: bytes that one training may read and write, as :meth:`mpgraph.Program.cost` counts them; no limit if
            not given. A count, not seconds, so that it is the same on every machine.
    """

    seeds: int
    trials: int
    epochs: int
    limit: int | None
    problems: int = len(SUITE)
    files: bool = True
    moved: float | None = None


BUDGETS = {
    "tiny": Budget(seeds=1, trials=1, epochs=1, limit=64, problems=5, files=False),
    "small": Budget(seeds=2, trials=3, epochs=3, limit=500, problems=8, files=False),
    "medium": Budget(seeds=3, trials=5, epochs=5, limit=2000, moved=5e10),
    "large": Budget(seeds=5, trials=10, epochs=20, limit=10_000, moved=1e12),
}


def add_bench(commands: Any) -> None:
    """Add it to the sub-parsers of the command line."""
    parser = commands.add_parser("bench", help="every rule on a suite of small tasks, with equal budgets")
    parser.add_argument(
        "--budget", choices=BUDGETS, default="small",
        help="what is spent on each rule (default: small, without files)",
    )  # fmt: skip
    parser.add_argument(
        "--protocols", type=rules_named, metavar="A,B", help="rules (default: all that can be compared)"
    )
    parser.add_argument("--tasks", type=flags.tasks, metavar="A,B", help="of the suite (default: all of the budget)")
    parser.add_argument("--page", type=Path, metavar="FILE", help="write the page, and its figure beside it")
    parser.add_argument(
        "--add", type=Path, action="append", default=[], metavar="FILE",
        help="keep the runs of another results.json too, made with the same budget; may be repeated",
    )  # fmt: skip
    run_flags(parser, "results.json")
    parser.set_defaults(run=bench)


def bench(options: argparse.Namespace) -> int:
    """Run ``mpgraph bench``."""
    if options.out is None:
        raise InputError("bench needs --out DIR, for its results")
    budget = BUDGETS[options.budget]
    plan = Plan(
        epochs=budget.epochs, limit=budget.limit, lr=0.1, surrogate="tanh", root=options.data,
        space=space_of(SEARCHED, budget.trials),
    )  # fmt: skip
    rules, refused = _rules(options.protocols)
    cells = _cells(plan, budget, rules, options.tasks)
    done = done_before(options, settings_of(plan))
    kept: dict[tuple[str, str, str], str] = dict(refused)
    added: list[dict[str, Any]] = []
    if options.resume:
        content, _ = results.read_all(options.out / "results.json")
        kept |= _reasons(content)
        added = content.get("added", [])
    for path in options.add:
        theirs = results.read(path, settings_of(plan))
        known = {run.key for run in done}
        done += [run for run in theirs if run.key not in known]
        content, _ = results.read_all(path)
        kept |= {key: why for key, why in _reasons(content).items() if key not in kept and all(key)}
        added.append({"file": path.name, "runs": len(theirs), "versions": content["versions"]})
    with warnings.catch_warnings():
        warnings.simplefilter("once")  # not for every cell again
        return _run(options, plan, budget.moved, cells, done, kept, added)


def _reasons(content: Mapping[str, Any]) -> dict[tuple[str, str, str], str]:
    """Why rules cannot run, of a results file."""
    return {(row["task"], row["network"], row["protocol"]): row["reason"] for row in content.get("refused", [])}


def _run(
    options: argparse.Namespace,
    plan: Plan,
    moved: float | None,
    cells: list[Cell],
    done: Sequence[Run],
    kept: dict[tuple[str, str, str], str],
    added: list[dict[str, Any]],
) -> int:
    """Run what can run, and write what came of it; ``kept`` says what cannot and why."""
    settings = settings_of(plan)
    known = {run.key[:3] for run in done} | kept.keys()
    kept |= checked(plan, [cell for cell in cells if cell.key[:3] not in known], keep_going=True)
    if moved is not None:
        kept |= _too_long(plan, [cell for cell in cells if cell.key[:3] not in known | kept.keys()], moved)
    cells = [cell for cell in cells if cell.key[:3] not in kept]

    def write(runs: Sequence[Run]) -> None:
        rows = [{"task": t, "network": n, "protocol": p, "reason": why} for (t, n, p), why in kept.items()]
        others = {"command": command_line(options), "refused": rows, **({"added": added} if added else {})}
        results.write(options.out / "results.json", runs, settings, **others)

    def cannot(cell: Cell, error: Exception) -> None:
        kept[cell.key[:3]] = f"seed {cell.seed}: {reason(error)}"

    runs = run_cells(
        plan, cells, jobs=options.jobs, done=done, on_run=write, on_refused=cannot, progress=not options.quiet
    )
    everything = list({run.key: run for run in [*done, *runs]}.values())
    write(everything)
    print(f"wrote {options.out / 'results.json'}: {len(everything)} runs, {len(kept)} combinations that cannot run")
    if options.page:
        content, found = results.read_all(options.out / "results.json")
        figure = options.page.with_name(f"{options.page.stem}_profile.png")
        try:
            atomic.write(options.page, page(content, found, figure.name).encode())
            profiles.draw(profiles.ratios(_whole(content, found)), figure)
        except OSError as error:
            raise FileError(f"{options.page} cannot be written: {error.strerror or error}") from None
        print(f"wrote {options.page} and {figure}")
    return 0


def _too_long(plan: Plan, cells: Sequence[Cell], most: float) -> dict[tuple[str, str, str], str]:
    """The combinations one training of which would read and write more than so many bytes, or whose files are missing.

    Counted without memory, on the ``meta`` device: a training that is too long may well be too large for the machine.
    """
    found: dict[tuple[str, str, str], str] = {}
    shapes = replace(plan, device="meta")
    for cell in {cell.key[:3]: cell for cell in cells}.values():
        try:
            moved = shapes.program(cell).cost(plan.batch_of(cell)).bytes * plan.steps_of(cell)
        except Exception as error:
            found[cell.key[:3]] = reason(error)
            continue
        if moved > most:
            found[cell.key[:3]] = (
                f"one training would read and write {moved / 1e9:,.0f} GB, as program.cost() counts; this budget "
                f"allows {most / 1e9:,.0f} GB"
            )
    return found


def _whole(content: Mapping[str, Any], runs: Sequence[Run]) -> list[Run]:
    """The runs of rules that failed on no seed of a problem."""
    failed = _reasons(content)
    return [run for run in runs if run.key[:3] not in failed]


def _rules(given: Sequence[str] | None) -> tuple[list[str], dict[tuple[str, str, str], str]]:
    """The floor and the rules; those that ship and cannot be compared by name alone, with the reason."""
    if given is not None:
        if not given:
            raise InputError(f"--protocols names no rule; allowed are {', '.join(list_protocols())}")
        return list(dict.fromkeys([READOUT_ONLY, *given])), {}
    rules, refused = [READOUT_ONLY], {}
    for name in list_protocols():
        try:
            named(name, {}, trained=True)
        except MPGraphError as error:
            refused["", "", name] = str(error)
        else:
            rules.append(name)
    return rules, refused


def _cells(plan: Plan, budget: Budget, rules: Sequence[str], tasks: Sequence[str] | None) -> list[Cell]:
    """The cells of the budget's part of the suite."""
    suite = [(task, network) for task, network in SUITE if budget.files or task not in FILES][: budget.problems]
    suite = [(task, network) for task, network in suite if tasks is None or task in tasks]
    if not suite:
        offered = sorted({task for task, _ in SUITE if budget.files or task not in FILES})
        raise InputError(f"--tasks: none of them is in the suite of this budget, which has {', '.join(offered)}")
    cells: list[Cell] = []
    for task, network in suite:
        cells += cells_of(plan, [task], [network], rules, range(budget.seeds))
    return cells


def page(content: Mapping[str, Any], runs: Sequence[Run], figure: str) -> str:
    """The page in Markdown: the command, the profile, a table for each problem and what cannot be done."""
    settings, made = content["settings"], content["versions"]
    online = any(run.task in TASKS and TASKS[run.task].online for run in runs)
    search = settings["tune"] or {"space": "nothing", "trials": 0}
    lines = [
        "# The bench of learning rules",
        "",
        "Written by this command, and to be written by nothing else:",
        "",
        "```text",
        essential(content.get("command", "")),
        "```",
        "",
        f"Every rule had the same budget on every problem: a search of `{search['space']}` with the number of trials "
        f"{search['trials']}, on validation data, for each seed; then one training. Passes over the training set: "
        f"{settings['epochs']}; examples at most: {settings['limit'] or 'all'}; batch: {settings['batch']}. A "
        "pretrained rule, or one without such an argument, had nothing to search. Made with mpgraph "
        f"{made['mpgraph']} and torch {made['torch']}."
        + (" On tasks that end in `5way` examples come one at a time, each once." if online else ""),
        *(_addition(row) for row in content.get("added", [])),
        "",
        "## Profile",
        "",
        f"![How many times the smallest error on a problem each rule has, over all problems]({figure})",
        "",
        "The profile of a rule (Dolan and Moré, 2002) is the share of problems on which its error is at most so many "
        f"times the smallest of any rule. With more than {profiles.CURVES} rules the picture has a dot for each "
        "problem and a bar at the median. Errors below 0.001 count as 0.001; a rule that diverged on a seed, or cannot "
        "run, has not solved the problem.",
        "",
        *_profile_table(profiles.ratios(_whole(content, runs))),
    ]
    rows = results.summary(runs)
    for problem in dict.fromkeys((row["task"], row["network"], row["output"]) for row in rows):
        lines += ["", f"## {results.named_group(*problem)}", ""]
        lines += _problem_table([row for row in rows if (row["task"], row["network"], row["output"]) == problem], runs)
    lines += ["", "## What cannot be done", ""]
    refused = content.get("refused", [])
    lines += [_refusal(row) for row in refused] or ["Every rule ran on every problem."]
    return "\n".join(lines) + "\n"


def _addition(row: Mapping[str, Any]) -> str:
    made = row["versions"]
    return (
        f"\nWith {row['runs']} runs of another file, `{row['file']}`: mpgraph {made['mpgraph']}, torch "
        f"{made['torch']}, {made['machine']}. Milliseconds are those of the machine that a run was made on."
    )


def essential(command: str) -> str:
    """The command without the folder that it wrote to and how many processes it used, which change nothing."""
    words = shlex.split(command)
    kept, skip = [], False
    for word in words:
        if skip or word in ("--out", "--jobs", "--data"):
            skip = not skip and word in ("--out", "--jobs", "--data")
        elif word not in ("--quiet", "--resume"):
            kept.append(word)
    return shlex.join(kept)


def _profile_table(found: Mapping[str, Sequence[float]]) -> list[str]:
    factors = (1.0, 1.5, 3.0, 10.0)
    lines = ["| rule | best | within 1.5 | within 3 | within 10 |", "| --- | ---: | ---: | ---: | ---: |"]
    rows = {name: [profiles.share(values, factor) for factor in factors] for name, values in found.items()}
    for name, row in sorted(rows.items(), key=lambda item: [-value for value in item[1][::-1]]):
        lines.append(f"| `{name}` | " + " | ".join(f"{100 * value:.0f} %" for value in row) + " |")
    return lines


def _problem_table(rows: Sequence[Mapping[str, Any]], runs: Sequence[Run]) -> list[str]:
    numbers = rows[0]["test_accuracy"] is None
    scale, digits = (1.0, 4) if numbers else (100.0, 2)
    key = "test_error" if numbers else "test_accuracy"
    score = "test error" if numbers else "test accuracy, %"
    lines = [f"| rule | {score} | above readout | ms a step | chosen | |", "| --- | ---: | ---: | ---: | --- | --- |"]
    best_first = sorted(rows, key=lambda row: row[key], reverse=not numbers)
    for row in sorted(best_first, key=lambda row: math.isnan(row[key])):  # what has no score comes last
        own = [run for run in runs if run.key[:3] == (row["task"], row["network"], row["protocol"])]
        chosen = sorted({str(v) for run in own if run.tuning for v in run.tuning["chosen"].values()})
        deviation = None if row["deviation"] is None else scale * row["deviation"]
        known = row["above_readout"] is not None and not math.isnan(row["above_readout"])
        gain = shown(scale * row["above_readout"], digits, "+") if known else ""
        reached = "" if math.isnan(row[key]) else spread(scale * row[key], deviation, digits)
        steps = statistics.fmean(1000.0 * run.seconds / max(1, run.steps[-1]) for run in own if run.steps)
        note = f"{row['diverged']} of {row['seeds']} diverged" if row["diverged"] else ""
        lines.append(f"| `{row['protocol']}` | {reached} | {gain} | {steps:.2f} | {', '.join(chosen)} | {note} |")
    return lines


def _refusal(row: Mapping[str, str]) -> str:
    where = f" on {row['task']}, {row['network']}" if row["task"] else ""
    return f"- `{row['protocol']}`{where}: {' '.join(row['reason'].split())}"
