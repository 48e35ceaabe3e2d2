"""A table of what each arrow and update of a program was lowered to."""

from __future__ import annotations

import math
import operator
import re
import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import fx
from torch.nn import functional

from mpgraph.agents.repeat import names_of
from mpgraph.budget import Account, shown
from mpgraph.graph.arrows import Arrow
from mpgraph.graph.wiring import AgentGraph
from mpgraph.network.axes import Axis

from .compile import Compiled
from .convolution import CALLS
from .shapes import Size, tensors_of
from .sparse import outer, product

# Views and numbers: they cost nothing.
FREE = (
    "t",
    "permute",
    "unsqueeze",
    "expand",
    "select",
    "narrow",
    "size",
    operator.getitem,
    operator.truediv,
    operator.add,
    getattr,
    int,
)
# Products that are added up: at each synapse a multiplication and an addition.
SUMMED = (
    *(functional.linear, torch.mm, torch.matmul, torch.addmm, torch.mv, torch.addmv, torch.dot, torch.einsum),
    *(call for calls in CALLS.values() for call in calls),
    *(product, outer),
)


class Cost(NamedTuple):
    """What one step costs, as counted from the generated code.

    Attributes:
        flops: additions, multiplications and functions of single numbers; a product that is added up counts two.
        bytes: memory that is read or written, if every call reads its arguments and writes its result once.
        calls: of torch functions that compute something; views cost nothing.
        sent: bytes that each process of the program's group gives to be added up: the size of what is all-reduced. In a
            ring of n processes each sends ``2 * (n - 1) / n`` times as many. Zero without a group.
        rounds: how many times it waits for the others.
        state: bytes of the state, with the memories of that many examples.
        synaptic: multiply-adds at synapses: of products that are added up, over synapses on the way of a message, over
            examples where a weight learns. Zeros count, and so do the padded positions of a convolution.
    """

    flops: float
    bytes: float
    calls: int
    sent: float
    rounds: int
    state: int
    synaptic: float


class Row(NamedTuple):
    """One line: an arrow, or an update of a node."""

    pass_name: str
    what: str
    became: str
    shapes: str
    flops: float
    bytes: float
    sent: float
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
    times = _times(compiled.module)
    for call in times:
        calls.setdefault(call.meta.get("origin"), []).append(call)
    notes: dict[Any, list[str]] = {}
    for origin, text in compiled.notes:
        notes.setdefault(origin, []).append(text)
    result = []

    def line(pass_name: str, what: str, origin: Any) -> None:
        nodes, said = calls.pop(origin, []), notes.pop(origin, [])
        rounds = dict.fromkeys(times[n] for n in nodes if times[n] > 1)
        note = "; ".join([*(f"{n} times" for n in rounds), *said])
        if not nodes and not isinstance(origin, Arrow):
            return
        shapes = ", ".join(_signature(n, sizes) for n in nodes)
        result.append(
            Row(
                pass_name,
                what,
                ", ".join(map(_name, nodes)) or "-",
                shapes,
                sum(times[n] * _flops(n, sizes, batch_size) for n in nodes),
                sum(times[n] * _moved(n, sizes) for n in nodes),
                sum(times[n] * _sent(n, sizes) for n in nodes),
                note if nodes else "",
            )
        )

    for name in dict.fromkeys([*names_of(compiled.passes), *graph.closing]):
        for node in graph.order[name]:
            for arrows in graph.arrows[name][node.name].values():
                for arrow in arrows:
                    line(name, arrow.label, arrow)
            line(name, f"{node.name} update", (name, node))
    for kind in ("readout", "loss", "write"):
        for node in graph.nodes.values():
            line(kind, node.name, (kind, node))
    for call in compiled.module.graph.nodes:
        if _sent(call, sizes) and "joins" in call.meta:
            marks = call.all_input_nodes[0]
            costs = (_flops(marks, sizes, batch_size), _moved(marks, sizes), _sent(call, sizes))
            result.append(Row("group", "slice, seed, step", _name(marks), "", *costs, "compared between processes"))
    return result


def cost(compiled: Compiled, arguments: Sequence[Any], batch_size: int) -> Cost:
    """What the whole of a generated function costs; arguments as in :func:`rows`."""
    sizes = tensors_of(compiled.module, arguments)
    times = _times(compiled.module)
    nodes = [node for node in times if not _is_view(node, sizes)]
    flops = sum(times[node] * _flops(node, sizes, batch_size) for node in nodes)
    rounds = [node for node in compiled.module.graph.nodes if "joins" in node.meta]
    sent = sum(times.get(node, 1) * _sent(node, sizes) for node in (*nodes, *rounds))
    tensors = [t for name, channels in arguments[0].items() if name != "program" for t in channels.values()]
    state = sum(t.numel() * t.element_size() for t in tensors)
    moved = sum(times[node] * _moved(node, sizes) for node in nodes)
    made: Any = compiled.module.segments
    segments = dict(made.named_children())
    synaptic = sum(times[node] * _multiplied(node, sizes, batch_size, segments) for node in nodes)
    return Cost(flops, moved, sum(times[node] for node in nodes), sent, len(rounds), state, synaptic)


def _calls(module: fx.GraphModule) -> list[fx.Node]:
    """Calls that may cost something; of calls of other processes, each tensor that is reduced over them."""
    calls = [node for node in module.graph.nodes if node.op in ("call_function", "call_method")]
    return [n for n in calls if "reduced" in n.meta or (n.target not in FREE and "joins" not in n.meta)]


def _times(module: fx.GraphModule, known: int = 1) -> dict[fx.Node, int]:
    """Calls that may cost something, those of loops too, and how many times each runs (or runs at most)."""
    found = {node: known for node in _calls(module) if "loop" not in node.meta}
    for node in module.graph.nodes:
        if "loop" in node.meta:
            times: Any = node.args[0]
            rounds = times.args[0] if times.target is int else node.meta["loop"].repeat.times
            found |= _times(node.meta["loop"].module, known * rounds)
    return found


def _flops(node: fx.Node, sizes: dict[fx.Node, Size], batch_size: int) -> float:
    per, axes = node.meta.get("work", (0.0, ()))
    return 0.0 if _is_view(node, sizes) else per * _elements(axes, batch_size)


def _multiplied(node: fx.Node, sizes: dict[fx.Node, Size], batch_size: int, segments: Mapping[str, Any]) -> float:
    """Multiply-adds of a product that is added up; of a segment, of all that are in it."""
    per, axes = node.meta.get("work", (0.0, ()))
    within = segments.get(getattr(node.target, "__name__", ""))
    if within is not None:
        per = 2.0 * sum(_multiplied(inner, {}, 1, {}) for inner in within.graph.nodes)
    elif node.target is torch.addcmul:  # an outer product, summed over a batch of one, or a product of single numbers
        per *= node in sizes and len(axes) > len(sizes[node].shape)
    elif node.target not in SUMMED:
        per = 0.0
    return per / 2.0 * _elements(axes, batch_size)


def _moved(node: fx.Node, sizes: dict[fx.Node, Size]) -> float:
    """Bytes that a call reads and writes."""
    if _is_view(node, sizes):
        return 0.0
    given = [node.meta["reduced"]] if "reduced" in node.meta else node.all_input_nodes
    return float(sum(sizes[n].bytes for n in (node, *given) if n in sizes))


def _sent(node: fx.Node, sizes: dict[fx.Node, Size]) -> float:
    """Bytes of a tensor that is reduced over processes; of such a call as a whole, those of what it compares."""
    if "joins" in node.meta:
        given: list[Any] = [*node.args[: len(node.args) - node.meta["joins"]]]
    else:
        given = [node.meta.get("reduced")]
    return float(sum(sizes[n].bytes for n in given if n in sizes))


def _is_view(node: fx.Node, sizes: dict[fx.Node, Size]) -> bool:
    return node in sizes and sizes[node].view and "reduced" not in node.meta


def _signature(node: fx.Node, sizes: dict[fx.Node, Size]) -> str:
    """Shapes of a call: ``32x64 10x64 -> 32x10``."""
    given = [node.meta["reduced"]] if "reduced" in node.meta else node.all_input_nodes
    operands = " ".join(_shape(sizes[n].shape) for n in given if n in sizes)
    return f"{operands} -> {_shape(sizes[node].shape if node in sizes else ())}"


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "1"


def table(lines: Sequence[Row], batch_size: int, width: int | None = None) -> str:
    """The lines as aligned text, with totals; ``-`` is an arrow that costs nothing or is never needed.

    With a ``width`` no line is longer than that, if it leaves room for the names at all: columns are broken into lines,
    calls that repeat are counted, and arrows that cost nothing are left out.
    """
    sent = any(row.sent for row in lines)
    cells = [("pass", "arrow", "became", "shapes", "FLOPs", "bytes", *["sent"] * sent, "note")]
    for row in lines:
        numbers = (row.flops, row.bytes, *[row.sent] * sent)
        cells.append((*row[:4], *map(_cell, numbers), row.note))
    totals = (sum(r.flops for r in lines), sum(r.bytes for r in lines), *[sum(r.sent for r in lines)] * sent)
    cells.append(("total", f"batch {batch_size}", "", "", *map(_cell, totals), ""))
    if width is not None:
        counted = [(*row[:2], _counted(row[2]), _counted(row[3]), *row[4:]) for row in cells[1:] if row[2] != "-"]
        idle = len(cells) - 1 - len(counted)
        return _wrapped([cells[0], *counted], width) + f"\n{idle} arrows cost nothing" * bool(idle)
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in cells)


def _counted(text: str) -> str:
    """A list in which what repeats stands once, with how many times: ``sum x12, add x3``."""
    found = Counter(text.split(", "))
    return ", ".join(f"{one} x{n}" if n > 1 else one for one, n in found.items())


def _wrapped(cells: Sequence[Sequence[str]], width: int) -> str:
    """Aligned text whose columns of words share what the columns of names and numbers leave of the width."""
    names = cells[0]
    free = [i for i, name in enumerate(names) if name in ("arrow", "became", "shapes", "note")]
    widths = [max(len(row[i]) for row in cells) for i in range(len(names))]
    room = width - sum(w for i, w in enumerate(widths) if i not in free) - 2 * (len(names) - 1)
    for i in sorted(free, key=widths.__getitem__):  # the narrow ones get what they want
        widths[i] = max(len(names[i]), min(widths[i], room // len(free)))
        room, free = room - widths[i], [j for j in free if j != i]
    made = []
    for row in cells:
        parts = [textwrap.wrap(cell, w) or [""] for cell, w in zip(row, widths, strict=True)]
        for k in range(max(map(len, parts))):
            line = [part[k] if k < len(part) else "" for part in parts]
            made.append("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip())
    return "\n".join(made)


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
    node = node.all_input_nodes[0] if "reduced" in node.meta else node
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
    return str(name).removeprefix("_C._nn.")


def _elements(axes: Iterable[Axis], batch: int) -> float:
    return math.prod(batch if a.size is None else a.size for a in axes)


def _cell(number: float) -> str:
    """A count in a table, empty for none."""
    return short(number) if number else ""


def short(number: float) -> str:
    """A count with a unit: ``329k``."""
    for unit in ("", "k", "M", "G"):
        if number < 1000:
            return f"{number:.3g}{unit}"
        number /= 1000
    return f"{number:.3g}T"


def readable(module: fx.GraphModule) -> str:
    """Generated code without the statements that free memory, and that of its segments."""
    segments: Any = module.segments
    codes = [module.code, *(loop.text() for loop in module.meta.get("loops", {}).values())]
    codes += [part.code.replace("def forward(self, ", f"def {name}(", 1) for name, part in segments.items()]
    return "\n".join(re.sub(r";  (?:\w+ = )+None", "", code).strip() + "\n" for code in codes)


def annotated(module: fx.GraphModule) -> str:
    """Generated code in which a comment says what each group of lines is for: a pass, and an arrow or an update."""
    nodes = {node.name: node for node in module.graph.nodes}
    lines: list[str] = []
    last = None
    for line in readable(module).splitlines():
        made = re.match(r"    (\w+) = ", line)
        origin = nodes[made[1]].meta.get("origin") if made and made[1] in nodes else None
        if origin is not None and origin is not last:
            lines.append(f"    # {_purpose(origin)}")
            last = origin
        lines.append(line)
    return "\n".join(lines) + "\n"


def _purpose(origin: Any) -> str:
    """An arrow, or an update, readout, loss or write of a node, in words."""
    if isinstance(origin, Arrow):
        return str(origin)
    if isinstance(origin, tuple) and len(origin) == 2:
        kind, node = origin
        name = getattr(node, "name", node)
        return f"{kind} of {name}" if kind in ("readout", "loss", "write") else f"{kind}: {name} update"
    return str(origin)
