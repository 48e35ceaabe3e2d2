"""A table of what each arrow and update of a program was lowered to."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from torch import fx

from mpgraph.budget import Account, shown
from mpgraph.graph.arrows import Arrow
from mpgraph.graph.wiring import AgentGraph
from mpgraph.network.axes import Axis

from .compile import Compiled
from .shapes import Size, tensors_of

# Views and numbers: they cost nothing.
FREE = (
    "t",
    "permute",
    "unsqueeze",
    "expand",
    "select",
    "size",
    operator.getitem,
    operator.truediv,
    operator.add,
    getattr,
)


class Row(NamedTuple):
    """One line: an arrow, or an update of a node."""

    pass_name: str
    what: str
    became: str
    shapes: str
    flops: float
    bytes: float
    note: str


def rows(graph: AgentGraph, compiled: Compiled, arguments: Sequence[Any], batch_size: int) -> list[Row]:
    """All lines in the order of the schedule, then readouts, losses and writes.

    Args:
        graph: nodes and arrows.
        compiled: one step.
        arguments: what the generated function takes, at ``batch_size``; it is run once to see all shapes.
        batch_size: for FLOPs.
    """
    sizes = tensors_of(compiled.module, arguments)
    calls: dict[Any, list[fx.Node]] = {}
    for node in compiled.module.graph.nodes:
        if node.op in ("call_function", "call_method") and node.target not in FREE:
            calls.setdefault(node.meta.get("origin"), []).append(node)
    notes: dict[Any, list[str]] = {}
    for origin, text in compiled.notes:
        notes.setdefault(origin, []).append(text)
    result = []

    def line(pass_name: str, what: str, origin: Any) -> None:
        nodes, note = calls.pop(origin, []), "; ".join(notes.pop(origin, []))
        if not nodes and not isinstance(origin, Arrow):
            return
        flops = sum(per * _elements(axes, batch_size) for per, axes in (n.meta["work"] for n in nodes))
        moved = sum(sizes[m].bytes for n in nodes for m in (n, *n.all_input_nodes) if m in sizes)
        shapes = ", ".join(_signature(n, sizes) for n in nodes)
        result.append(
            Row(
                pass_name,
                what,
                ", ".join(map(_name, nodes)) or "-",
                shapes,
                flops,
                moved,
                note if nodes else "",
            )
        )

    for name in dict.fromkeys(compiled.passes):
        for node in graph.order[name]:
            for arrows in graph.arrows[name][node.name].values():
                for arrow in arrows:
                    line(name, f"{arrow.source.name} => {arrow.target.name} ({arrow.role})", arrow)
            line(name, f"{node.name} update", (name, node))
    for kind in ("readout", "loss", "write"):
        for node in graph.nodes.values():
            line(kind, node.name, (kind, node))
    return result


def _signature(node: fx.Node, sizes: dict[fx.Node, Size]) -> str:
    """Shapes of a call: ``32x64 10x64 -> 32x10``."""
    operands = " ".join(_shape(sizes[n].shape) for n in node.all_input_nodes if n in sizes)
    return f"{operands} -> {_shape(sizes[node].shape if node in sizes else ())}"


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "1"


def table(lines: Sequence[Row], batch_size: int) -> str:
    """The lines as aligned text, with totals; ``-`` is an arrow that costs nothing or is never needed."""
    cells = [("pass", "arrow", "became", "shapes", "FLOPs", "bytes", "note")]
    for row in lines:
        cells.append((*row[:4], _short(row.flops), _short(row.bytes), row.note))
    total = (_short(sum(r.flops for r in lines)), _short(sum(r.bytes for r in lines)))
    cells.append(("total", f"batch {batch_size}", "", "", *total, ""))
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in cells)


def budgeted(compiled: Compiled, account: Account, batch: int) -> str:
    """A line on what segments keep for the backward pass; empty where there are none."""
    made: Any = compiled.module.segments
    metas = [part.meta for part in made.children()]
    step = sum(meta["segment"].kept * _elements(meta["axes"], batch) for meta in metas)
    if not step:
        return ""
    return (
        f"\nsegments keep {shown(step)} a step for the backward pass; the budget of {shown(account.limit)} holds "
        f"{int(account.limit // step)} steps, what finds no room is computed again"
    )


def _name(node: fx.Node) -> str:
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
    return str(name).removeprefix("_C._nn.")


def _elements(axes: Iterable[Axis], batch: int) -> float:
    return math.prod(batch if a.size is None else a.size for a in axes)


def _short(number: float) -> str:
    if not number:
        return ""
    for unit in ("", "k", "M", "G"):
        if number < 1000:
            return f"{number:.3g}{unit}"
        number /= 1000
    return f"{number:.3g}T"


def readable(module: fx.GraphModule) -> str:
    """Generated code without the statements that free memory, and that of its segments."""
    segments: Any = module.segments
    codes = [module.code]
    codes += [part.code.replace("def forward(self, ", f"def {name}(", 1) for name, part in segments.items()]
    return "\n".join(re.sub(r";  (?:\w+ = )+None", "", code).strip() + "\n" for code in codes)
