"""Networks, agent graphs and agents as text that fits a terminal."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mpgraph.network.network import Network

from .multigraph import is_trained, shape_text

if TYPE_CHECKING:
    from mpgraph.agents.agent import Agent
    from mpgraph.graph.wiring import AgentGraph


def network_text(network: Network, width: int = 80) -> str:
    """Every unit with its size and function, and below it what it is connected from.

    Args:
        network: to be shown.
        width: letters in a line, which longer lines are broken to.
    """
    lines = []
    for unit in network.units.values():
        what = "input" if unit.is_input else repr(unit.activation)
        lines.append(f"{unit.name}: {what}, {shape_text(unit.shape)}" + ", with a bias" * unit.bias)
        lines += [f"    from {operand}" for operand in unit.operands]
        for wire in network.wires.values():
            if wire.post == unit.name:
                parts = [f"    from {wire.pre} by {wire.name}: {wire.connection!r}"]
                parts += [f"weights of {wire.tied}"] if wire.tied else []
                parts += ["fixed"] if wire.connection.weighted and not is_trained(wire, network) else []
                parts += [f"delay {wire.delay}"] if wire.delay else []
                lines.append(", ".join(parts))
    lines += [f"{node.name}: {node.loss!r} of {node.pre}" for node in network.losses.values()]
    return "\n".join(broken(line, width) for line in lines)


def graph_text(graph: AgentGraph, width: int = 80, passes: Sequence[str] = ()) -> str:
    """Every pass with its arrows: each node that receives, and from whom.

    Args:
        graph: to be shown.
        width: letters in a line, which longer lines are broken to.
        passes: that are shown; by default all.
    """
    blocks = []
    for name in passes or graph.order:
        lines = [f"pass {name}"]
        for node in graph.order[name]:
            senders = [
                f"{arrow.source.name} ({arrow.role})"
                for arrows in graph.arrows[name][node.name].values()
                for arrow in arrows
            ]
            if senders:
                lines.append(f"    {node.name} <= {', '.join(senders)}")
        lines += ["    no messages: agents update by themselves"] * (len(lines) == 1)
        blocks.append("\n".join(broken(line, width) for line in lines))
    return "\n\n".join(blocks)


def agents_text(graph: AgentGraph) -> str:
    """The methods that run in the passes of a rule, class by class, with the nodes that they serve."""
    served: dict[type[Agent], list[str]] = {}
    for name, agent in graph.agents.items():
        served.setdefault(type(agent), []).append(name)
    blocks = []
    for cls, names in served.items():
        methods = _methods(cls, list(graph.order))
        shown = ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
        blocks.append(f"# {cls.__name__} serves {shown}\n" + "\n".join(methods or ["# sends what it holds\n"]))
    return "\n".join(blocks)


def _methods(cls: type[Agent], passes: Sequence[str]) -> list[str]:
    """Source of the methods of passes; that of a class made at run time cannot be shown."""
    found = {}
    for name in dir(cls):
        if any(name in (f"{one}_update", f"{one}_message") or name.startswith(f"{one}_message_to_") for one in passes):
            method = getattr(cls, name)
            try:
                found[name] = textwrap.dedent(inspect.getsource(method)) if callable(method) else ""
            except (OSError, TypeError):
                found[name] = f"# {name}: its source is not there\n"
    order = {one: i for i, one in enumerate(passes)}
    return [found[name] for name in sorted(found, key=lambda n: (order.get(n.split("_")[0], 0), "message" in n, n))]


def broken(line: str, width: int) -> str:
    """A line in as many as it needs, the others indented further."""
    indent = len(line) - len(line.lstrip())
    return "\n".join(textwrap.wrap(line, width, subsequent_indent=" " * (indent + 4), drop_whitespace=True) or [""])
