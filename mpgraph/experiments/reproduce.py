"""``mpgraph reproduce``: run what ``examples/`` measures of a paper, and keep it beside what the paper says.

``examples/published.toml`` names the scripts. Each run writes ``NAME.json``; ``--page`` makes a page of all of them, on
which what was not run stands as such.
"""

from __future__ import annotations

import argparse
import json
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mpgraph.environment import commit_of
from mpgraph.errors import FileError, InputError, unknown
from mpgraph.serialization import atomic, toml

from .results import versions

TABLE = "published.toml"
BUDGETS = ("small", "medium", "paper")
KEYS = {"source", "script", "arguments", "published"}
SHOWN = 40  # last lines of what a script printed


def add_reproduce(commands: Any) -> None:
    """Add it to the sub-parsers of the command line."""
    parser = commands.add_parser("reproduce", help="run a figure or table of a paper beside what was published")
    parser.add_argument("names", nargs="*", metavar="NAME", help="of a figure or table; without any, they are listed")
    parser.add_argument("--budget", choices=BUDGETS, default="small", help="how long to train (default: small)")
    parser.add_argument(
        "--out", type=Path, default=Path("runs"), metavar="DIR", help="of runs and results (default: runs)"
    )
    parser.add_argument(
        "--examples", type=Path, metavar="DIR", help="folder of the examples (default: of this checkout)"
    )
    parser.add_argument("--page", type=Path, metavar="FILE", help="write a page of all results in DIR")
    parser.set_defaults(run=reproduce)


def reproduce(options: argparse.Namespace) -> int:
    """Run ``mpgraph reproduce``."""
    folder = options.examples or Path(__file__).resolve().parents[2] / "examples"
    known = entries(folder)
    for name in options.names:
        if name not in known:
            raise InputError(unknown("figure or table", name, known))
    if not options.names and not options.page:
        width = max(map(len, known))
        print("\n".join(f"{name:{width}}  {entry['source']}" for name, entry in known.items()))
        return 0
    status = 0
    for name in options.names:
        status |= _run(name, known[name], folder, options)
    if options.page:
        _write(options.page, page(known, dict(_found(options.out, known))))
        print(f"wrote {options.page}")
    return status


def entries(folder: Path) -> dict[str, dict[str, Any]]:
    """What can be reproduced, by name.

    Raises:
        FileError: for a folder without the table, or an entry that lacks something.
    """
    path = folder / TABLE
    if not path.is_file():
        raise FileError(
            f"there is no {path}: reproduce needs a checkout of the sources; name its examples by --examples"
        )
    known = toml.read(path)
    for name, entry in known.items():
        if not isinstance(entry, dict) or not entry.keys() >= KEYS:
            raise FileError(f"{path}: {name} must be a table with {', '.join(sorted(KEYS))}")
    return known


def command(name: str, entry: Mapping[str, Any], folder: Path, budget: str, out: Path) -> list[str]:
    """The script with its arguments for a budget; those that know budgets of their own are told its name."""
    words = [str(folder / entry["script"]), *entry["arguments"]]
    own = entry.get("budgets")
    return [*words, *(own[budget] if own is not None else ["--budget", budget, "--out", str(out / name)])]


def _run(name: str, entry: Mapping[str, Any], folder: Path, options: argparse.Namespace) -> int:
    """Run a script, show what it prints, and keep it."""
    words = command(name, entry, folder, options.budget, options.out)
    (options.out / name).mkdir(parents=True, exist_ok=True)
    print(f"{name}: {entry['source']}\npublished: {entry['published']}", flush=True)
    start, lines = time.perf_counter(), []
    running = subprocess.Popen(
        [sys.executable, *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, encoding="utf-8"
    )
    assert running.stdout is not None
    with running:
        for line in running.stdout:
            print(line, end="", flush=True)
            lines.append(line.rstrip("\n"))
    figures = sorted((options.out / name).glob("*.json"))
    ours = {path.stem: json.loads(path.read_text("utf-8")).get("ours") for path in figures}
    content = {
        "name": name, "source": entry["source"], "published": entry["published"], "budget": options.budget,
        "command": shlex.join(["mpgraph", "reproduce", name, "--budget", options.budget]),
        "status": running.returncode, "seconds": time.perf_counter() - start, "ours": ours,
        "output": lines[-SHOWN:], "commit": commit_of(folder),
        "versions": {**versions(), "processor": platform.processor() or platform.machine()},
    }  # fmt: skip
    _write(options.out / f"{name}.json", json.dumps(content, indent=1) + "\n")
    print(f"wrote {options.out / name}.json after {content['seconds']:.0f} s")
    return 1 if running.returncode else 0


def _found(out: Path, known: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Results of earlier runs."""
    for name in known:
        path = out / f"{name}.json"
        if path.is_file():
            try:
                content = json.loads(path.read_text("utf-8"))
            except (ValueError, RecursionError) as error:
                raise FileError(f"{path} is not JSON: {error}") from None
            if not isinstance(content, dict) or not content.keys() >= {"command", "output", "seconds", "status"}:
                raise FileError(f"{path} was not written by `mpgraph reproduce`")
            yield name, content


def page(known: Mapping[str, Mapping[str, Any]], found: Mapping[str, Mapping[str, Any]]) -> str:
    """A page in Markdown: for each figure and table what was published, and what came out here."""
    lines = [
        "# Figures and tables of papers, run here",
        "",
        "Written by `mpgraph reproduce --page`; every figure of ours was printed by the command beside it.",
    ]
    for name, entry in known.items():
        lines += ["", f"## {name}", "", f"{entry['source']}.", "", f"**Published.** {entry['published']}", ""]
        if name not in found:
            lines.append(f"**Here.** Not run. `mpgraph reproduce {name}` runs it.")
            continue
        run = found[name]
        how = f"`{run['command']}`, {run['seconds']:.0f} s, budget {run['budget']}, commit {run['commit'] or 'unknown'}"
        ended = "" if not run["status"] else f" It ended with status {run['status']}: it did not get through."
        lines += [f"**Here.** {how}.{ended}", "", "```text", *(line.rstrip() for line in run["output"]), "```"]
    return "\n".join(lines) + "\n"


def _write(path: Path, text: str) -> None:
    try:
        atomic.write(path, text.encode())
    except OSError as error:
        raise FileError(f"{path} cannot be written: {error.strerror or error}") from None
