"""The command line: ``mpgraph compare``, ``protocols``, ``explain``, and those of :mod:`mpgraph.meta.commands`.

Exit status: 0 if all went well, 1 if a run diverged, 2 for a wrong argument or file, 130 after an interrupt.
"""

from __future__ import annotations

import argparse
import inspect
import json
import sys
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path

from . import __version__
from .agents.protocol import list_protocols
from .errors import MPGraphError
from .experiments.cells import Cell
from .experiments.commands import add_compare, model_flags, plan_of
from .experiments.flags import Parser, from_file, positive, task
from .meta.commands import add_commands
from .program.program import Program
from .registry import lookup
from .serialization.protocol import load_protocol, pretrained


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"
    options = argparse.Namespace()
    given = list(sys.argv[1:] if arguments is None else arguments)
    typed = [word for word in given if word != "--debug"]
    try:
        parser = _parser()
        options = parser.parse_args(typed)
        if "reads" in options:  # flags that a file may hold
            options = parser.parse_args([typed[0], *from_file(options.reads, typed[1:])])
        options.typed = typed
        return options.run(options)
    except MPGraphError as error:
        if typed != given:
            traceback.print_exc()
        print(f"mpgraph: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        results = (getattr(options, "out", None) or Path()) / "results.json"
        advice = f"; finished runs are in {results}, --resume continues" if results.exists() else ""
        print(f"mpgraph: interrupted{advice}", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="mpgraph", description="Learning rules as messages between neurons and synapses, on torch.")
    parser.add_argument("--version", action="version", version=f"mpgraph {__version__}")
    parser.add_argument("--debug", action="store_true", help="show where an error was raised; allowed anywhere")
    commands = parser.add_subparsers(dest="command", required=True)

    add_compare(commands)

    listing = commands.add_parser("protocols", help="list the registered rules")
    listing.add_argument("--json", action="store_true", help="as JSON")
    listing.set_defaults(run=_protocols)

    explain = commands.add_parser("explain", parents=[model_flags()], help="show what a rule compiles to")
    explain.add_argument("--task", type=task, default="digits", help="whose sizes the network has (default: digits)")
    explain.add_argument("--network", default="mlp", help="the architecture, named as for compare (default: mlp)")
    explain.add_argument("--protocol", default="backprop", help="the rule, named as for compare")
    explain.add_argument("--batch", type=positive, default=32, help="examples in a step (default: 32)")
    explain.add_argument("--code", action="store_true", help="print the generated torch code")
    explain.set_defaults(run=_explain)
    add_commands(commands)
    return parser


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
    program = _program(options)
    print(program.code if options.code else program.explain(options.batch))
    return 0


def _program(options: argparse.Namespace) -> Program:
    """The network and rule that are named; random rules need not be trained to be looked at."""
    plan = plan_of(options)
    return plan.program(Cell(options.task, options.network, options.protocol, 0), trained=False)


if __name__ == "__main__":
    sys.exit(main())
