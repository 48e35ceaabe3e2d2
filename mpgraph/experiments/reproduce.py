"""``mpgraph reproduce``: run what ``examples/`` measures of a paper, and keep it beside what the paper says.

``examples/published.toml`` names the scripts, and ``examples/measured.toml`` holds what they gave here. Each run writes
``NAME.json``; ``--page`` makes a page of all of them, on which what was not reached, or not run, stands as such.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mpgraph.environment import commit_of
from mpgraph.errors import FileError, InputError, unknown
from mpgraph.serialization import atomic, toml

from .results import versions

TABLE, OURS = "published.toml", "measured.toml"
STATES = ("reached", "partly", "not reached")
BUDGETS = ("small", "medium", "paper")
KEYS = {"source", "script", "arguments", "published"}
OUR_KEYS = {"state", "ours", "command", "budget", "spread", "commit", "page"}
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
    parser.add_argument(
        "--page",
        type=Path,
        metavar="FILE",
        help="write a page of what was published and measured, and of all results in DIR",
    )
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
        place = os.path.relpath(options.page.parent, folder.parent)
        _write(options.page, page(known, measured(folder, known), dict(_found(options.out, known)), place))
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


def measured(folder: Path, known: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """What was measured of these figures, by name; none where nobody wrote it down.

    Raises:
        FileError: for an entry of a figure that is not known, or that lacks something.
    """
    path = folder / OURS
    found = toml.read(path) if path.is_file() else {}
    for name, entry in found.items():
        if name not in known:
            raise FileError(f"{path}: " + unknown("figure or table", name, known))
        if not isinstance(entry, dict) or not OUR_KEYS <= entry.keys() <= OUR_KEYS | {"missing"}:
            raise FileError(f"{path}: {name} must be a table with {', '.join(sorted(OUR_KEYS))}, and perhaps missing")
        if entry["state"] not in STATES:
            raise FileError(f"{path}: {name}: " + unknown("state", entry["state"], STATES))
    return found


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


def page(
    known: Mapping[str, Mapping[str, Any]],
    ours: Mapping[str, Mapping[str, str]],
    found: Mapping[str, Mapping[str, Any]],
    place: str = "docs",
) -> str:
    """A page in Markdown: for each figure and table what was published, beside what came out here.

    Args:
        known: what can be reproduced.
        ours: what was measured of it.
        found: results of runs of this checkout.
        place: folder of the page, as seen from the checkout.
    """
    states = {name: ours[name]["state"] if name in ours else "run" if name in found else "not run" for name in known}
    counted = ", ".join(f"{number} {state}" for state, number in Counter(states.values()).most_common())
    lines = [
        "# Figures and tables of papers, run here",
        "",
        f"Written by `mpgraph reproduce --page FILE` from `examples/{TABLE}` and `examples/{OURS}`, by nothing else. "
        "The command beside a figure of ours printed it; the document named there says what came before. "
        f"Of {len(known)} figures and tables: {counted}.",
        "",
        "| name | source | here |",
        "| --- | --- | --- |",
        *(f"| [{name}](#{name}) | {entry['source']} | {states[name]} |" for name, entry in known.items()),
    ]
    for name, entry in known.items():
        lines += ["", f"## {name}", "", f"{entry['source']}: **{states[name]}**.", ""]
        told = ours[name]["ours"] if name in ours else "See below." if name in found else "Not run."
        lines += ["| published | here |", "| --- | --- |", f"| {_cell(entry['published'])} | {_cell(told)} |", ""]
        if name in ours:
            lines += _measured(ours[name], place)
        elif name not in found:
            lines.append(f"`mpgraph reproduce {name}` runs it.")
        if name in found:
            lines += _output(found[name])
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    """Text that does not end a cell of a table."""
    return " ".join(text.split()).replace("|", "\\|")


def _measured(entry: Mapping[str, str], place: str) -> list[str]:
    """What is missing, and how it was measured."""
    lines = [f"**Not reached.** {entry['missing']}", ""] if "missing" in entry else []
    where = f"[{Path(entry['page']).name}]({os.path.relpath(entry['page'], place)})"
    how = f"Budget: {entry['budget']}. Spread: {entry['spread']}. Commit {entry['commit']}. More in {where}."
    return [*lines, f"`{entry['command']}`", "", how]


def _output(run: Mapping[str, Any]) -> list[str]:
    """What a run of this checkout printed."""
    how = f"`{run['command']}`, {run['seconds']:.0f} s, budget {run['budget']}, commit {run['commit'] or 'unknown'}"
    ended = "" if not run["status"] else f" It ended with status {run['status']}: it did not get through."
    return ["", f"**Run here.** {how}.{ended}", "", "```text", *(line.rstrip() for line in run["output"]), "```"]


def _write(path: Path, text: str) -> None:
    try:
        atomic.write(path, text.encode())
    except OSError as error:
        raise FileError(f"{path} cannot be written: {error.strerror or error}") from None
