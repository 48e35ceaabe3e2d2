"""The command line: ``mpgraph protocols``, and the commands of :mod:`mpgraph.experiments` and :mod:`mpgraph.meta`.

Exit status: 0 if all went well, 1 if a run diverged, 2 for a wrong argument or file, 130 after an interrupt.
"""

from __future__ import annotations

import argparse
import inspect
import json
import os
import re
import sys
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path

from . import __version__
from .agents.protocol import list_protocols
from .errors import MPGraphError
from .experiments.bench import add_bench
from .experiments.commands import add_compare
from .experiments.flags import Parser, from_file
from .experiments.looks import add_looks
from .experiments.reproduce import add_reproduce
from .meta.commands import add_commands
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
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not re.search(r"allocate memory|out of memory", str(error)):
            raise
        print(f"mpgraph: out of memory: {str(error).splitlines()[0]}; a smaller --hidden or --batch needs less",
              file=sys.stderr)  # fmt: skip
        return 2
    except BrokenPipeError:  # the reader, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
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
    add_bench(commands)

    listing = commands.add_parser("protocols", help="list the registered rules")
    listing.add_argument("--json", action="store_true", help="as JSON")
    listing.set_defaults(run=_protocols)

    add_looks(commands)
    add_reproduce(commands)
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


if __name__ == "__main__":
    sys.exit(main())
