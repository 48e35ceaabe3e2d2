"""The commands ``mpgraph explain`` and ``mpgraph draw``: what a rule and a network become, as wide as the terminal."""

from __future__ import annotations

import argparse
import io
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mpgraph.draw.drawing import SUFFIXES, TEXTS
from mpgraph.draw.text import agents_text, graph_text, network_text
from mpgraph.errors import FileError, InputError, unknown
from mpgraph.lowering.explain import short
from mpgraph.program.program import Program
from mpgraph.serialization import atomic

from . import flags, page, plots
from .cells import Cell
from .commands import model_flags, plan_of
from .report import MOST_UNITS

SCREEN = (100, 24)  # letters and lines, where there is no terminal
LEAST = 60  # letters that a table needs
ENDS = {".md": "mermaid", ".mmd": "mermaid", ".dot": "graphviz", ".gv": "graphviz"}


def add_looks(commands: Any) -> None:
    """Add both to the sub-parsers of the command line."""
    explain = commands.add_parser("explain", parents=[_named_flags()], help="show what a rule compiles to")
    what = explain.add_mutually_exclusive_group()
    what.add_argument("--code", action="store_true", help="print the generated torch code, with the arrow of each line")
    what.add_argument("--agents", action="store_true", help="print what the agents compute in each pass")
    what.add_argument("--wide", action="store_true", help="print every call and shape, in lines as long as need be")
    explain.add_argument("--html", type=Path, metavar="FILE", help="write all of it as one page, with pictures")
    explain.set_defaults(run=_explain)

    draw = commands.add_parser("draw", parents=[_named_flags()], help="show a network and the arrows of a rule on it")
    draw.add_argument("--network-only", action="store_true", help="no agents and arrows")
    draw.add_argument(
        "--neurons", action="store_true", help="single neurons and their initial weights, of a small network, to --out"
    )
    draw.add_argument("--passes", type=lambda text: text.split(","), default=[], metavar="A,B", help="only these")
    draw.add_argument(
        "--out", type=Path, metavar="FILE",
        help=f"a picture ({', '.join(SUFFIXES)}), mermaid (.md), graphviz (.dot) or a page (.html); without it, text",
    )  # fmt: skip
    draw.set_defaults(run=_draw)


def _named_flags() -> flags.Parser:
    parser = flags.Parser(add_help=False, parents=[model_flags()])
    parser.add_argument(
        "--task", type=flags.task, default="digits", help="whose sizes the network has (default: digits)"
    )
    parser.add_argument("--network", default="mlp", help="the architecture, named as for compare (default: mlp)")
    parser.add_argument("--protocol", default="backprop", help="the rule, named as for compare")
    parser.add_argument("--batch", type=flags.positive, default=32, help="examples in a step (default: 32)")
    return parser


def _program(options: argparse.Namespace) -> Program:
    """The network and rule that are named; random rules need not be trained to be looked at."""
    cell = Cell(options.task, options.network, options.protocol, 0)
    return plan_of(options).program(cell, trained=False)


def _explain(options: argparse.Namespace) -> int:
    program = _program(options)
    if options.html:
        _write(options.html, explained(program, options.batch))
        print(f"wrote {options.html}")
    elif options.code:
        print(_code(program))
    elif options.agents:
        print(agents_text(program.graph))
    else:
        for phase in _phases(program):
            heading = f"phase {phase}\n" if phase else ""
            print(heading + program.explain(options.batch, phase, None if options.wide else _width()))
    return 0


def _phases(program: Program) -> list[str | None]:
    """Those of the rule; ``None`` for a rule without."""
    return [*program.protocol.phases] or [None]


def _code(program: Program) -> str:
    parts = [(phase, program.code_of(phase, comments=True)) for phase in _phases(program)]
    return "\n".join(f"# phase {phase}\n{code}" if phase else code for phase, code in parts)


def _draw(options: argparse.Namespace) -> int:
    program = _program(options)
    graph = program.graph
    _known(program, options.passes)
    if options.neurons and (options.out is None or options.out.suffix not in SUFFIXES):
        raise InputError(f"--neurons draws a picture: name its file, --out FILE with one of {', '.join(SUFFIXES)}")
    if options.out is None:
        print(network_text(graph.network, _width()))
        if not options.network_only:
            print("\n" + graph_text(graph, _width(), options.passes))
        return 0
    suffix = options.out.suffix
    allowed = (*SUFFIXES, *ENDS, ".html")
    if suffix not in allowed:
        raise InputError(f"--out {options.out}: " + unknown("suffix", suffix, allowed))
    if options.neurons:
        made = graph.draw(state=program.init(seed=0))
        _written(options.out, lambda: made.savefig(options.out, dpi=150))
    elif suffix == ".html":
        _write(options.out, page.page(_title(program), _pictures(program, options.passes)))
    else:
        format = ENDS.get(suffix, "matplotlib")
        only = options.network_only
        made = graph.network.draw(format=format) if only else graph.draw(format=format, passes=tuple(options.passes))
        if format in TEXTS:
            fence = ("```mermaid\n", "\n```\n") if suffix == ".md" else ("", "\n")
            _write(options.out, fence[0] + made.rstrip("\n") + fence[1])
        else:
            _written(options.out, lambda: made.savefig(options.out, dpi=150))
    print(f"wrote {options.out}")
    return 0


def _known(program: Program, passes: list[str]) -> None:
    for name in passes:
        if name not in program.graph.order:
            raise InputError("--passes: " + unknown("pass", name, program.graph.order))


def _title(program: Program) -> str:
    return f"{program.protocol.name} on {len(program.graph.network.units)} units"


def explained(program: Program, batch: int) -> str:
    """A page of all there is to see: pictures, the agents' methods, arrows with their cost, and the generated code."""
    cost = program.cost(batch)
    parts = [page.code(network_text(program.graph.network, 100))]
    parts += _pictures(program)
    parts += [page.heading("What the agents compute"), page.code(agents_text(program.graph))]
    counted = f"One step with {batch} examples: {short(cost.flops)} FLOPs, {short(cost.synaptic)} multiply-adds at "
    counted += f"synapses, {short(cost.bytes)} bytes read and written, "
    counted += f"{cost.calls} calls of torch functions; the state takes {short(cost.state)} bytes."
    parts += [page.heading("What the arrows became"), page.paragraph(counted)]
    for phase in _phases(program):
        parts += [page.heading(f"Phase {phase}", 3)] if phase else []
        parts.append(page.code(program.explain(batch, phase)))
    parts += [page.heading("Generated code"), page.code(_code(program))]
    return page.page(_title(program), parts)


def _pictures(program: Program, passes: list[str] | None = None) -> Iterator[str]:
    """The network, then the arrows of one pass after the other."""
    graph = program.graph
    if len(graph.network.units) > MOST_UNITS:
        yield page.paragraph(f"A picture of {len(graph.network.units)} units could not be read, so there is none.")
        yield page.code(graph_text(graph, 100, passes or ()))
        return
    yield page.picture(_svg(graph.network.draw()), network_text(graph.network, 10**6), "The network.", panel=False)
    for name in passes or graph.order:
        text = graph_text(graph, 10**6, [name])
        yield page.picture(_svg(graph.draw(passes=(name,))), text, f"Arrows of the pass {name}.", panel=False)


def _svg(figure: Any) -> bytes:
    target = io.BytesIO()
    plots.save(figure, target)
    return target.getvalue()


def _write(path: Path, text: str) -> None:
    _written(path, lambda: atomic.write(path, text.encode()))


def _written(path: Path, write: Any) -> None:
    try:
        write()
    except OSError as error:
        raise FileError(f"{path} cannot be written: {error.strerror or error}") from None


def _width() -> int:
    return max(LEAST, shutil.get_terminal_size(SCREEN).columns)
