"""The writes of a step by themselves: from what was written before and small tensors to what is written now.

An online rule changes a weight matrix by outer products. What a step does to its large channels can therefore be done
again from a few vectors, at the cost of the write: no message is sent again. In the graph of a step the *wide* calls
are those whose results are about as large as the channel that they lead to. Everything narrow that they read is the
*cut*: whoever keeps it can replay the writes, to the bit.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import fx

from .shapes import Size
from .transposes import name_of

LARGE = 1024  # numbers of a channel that is worth it


@dataclass
class Replay:
    """A step whose large channels can be written again.

    Attributes:
        channels: node and channel of each of them.
        recording: the step; it returns ``(results, old, cut, wide)``: the channels before, what is to be kept, and the
            results of the wide calls.
        writes: ``(*old, *cut) -> wide``.
        new: which of ``wide`` are the channels after the step.
    """

    channels: list[tuple[str, str]]
    recording: fx.GraphModule
    writes: Callable[..., Any]
    new: list[int]


def replay_of(module: fx.GraphModule, sizes: Mapping[fx.Node, Size]) -> Replay | None:
    """The writes of a step; ``None`` where no large channel is written from small tensors.

    Args:
        module: code of a step.
        sizes: of the tensors in it, of one network.
    """
    end = next(node for node in reversed(module.graph.nodes) if node.op == "output")
    results = end.args[0]
    if not isinstance(results, tuple):  # a prediction
        return None
    held = _held(module)
    written = {
        (name, channel): node
        for name, channels in results[0].items()
        for channel, node in channels.items()
        if (name, channel) in held and node is not held[name, channel] and node in sizes and sizes[node].numel >= LARGE
    }
    while True:
        found = {key: _behind(node, sizes, {held[one] for one in written}) for key, node in written.items()}
        costly = [
            key
            for key, (wide, cut) in found.items()
            if not all(name_of(node.target) for node in wide)  # a segment, a collective: nothing to be done twice
            or sum(sizes[n].bytes for n in cut if not _given(n, held, written)) > sizes[written[key]].bytes // 2
        ]
        if not costly:
            break
        for key in costly:
            del written[key]
    if not written:
        return None
    old = [held[key] for key in written]
    reached = {node for wide, _ in found.values() for node in wide}
    calls = [node for node in module.graph.nodes if node in reached]
    wide = [node for node in calls if node in sizes]
    cut = list(dict.fromkeys(node for _, narrow in found.values() for node in narrow if node not in reached))
    return Replay(
        list(written),
        _recording(module, old, cut, wide),
        _writes(module, old, cut, calls, wide),
        [wide.index(node) for node in written.values()],
    )


def _held(module: fx.GraphModule) -> dict[tuple[str, str], fx.Node]:
    """The node of each channel of the state before the step."""
    found = {}
    for node in module.graph.nodes:
        holder = node.args[0] if node.target is operator.getitem else None
        if isinstance(holder, fx.Node) and holder.target is operator.getitem:
            state, name = holder.args
            if isinstance(state, fx.Node) and state.op == "placeholder" and isinstance(name, str):
                found[name, node.args[1]] = node
    return found


def _behind(end: fx.Node, sizes: Mapping[fx.Node, Size], old: set[fx.Node]) -> tuple[list[fx.Node], list[fx.Node]]:
    """The wide calls that lead to a node, and the narrow nodes that these read."""
    wide, cut, left = dict[fx.Node, None](), dict[fx.Node, None](), [end]
    while left:
        node = left.pop()
        if node in wide or node in cut or node in old:
            continue
        calls = node.op in ("call_function", "call_method") and node.target is not operator.getitem
        if node is end or (calls and (node not in sizes or 2 * sizes[node].numel > sizes[end].numel)):
            wide[node] = None  # numbers of Python, such as the size of the batch, are computed again as well
            left += node.all_input_nodes
        else:
            cut[node] = None
    return list(wide), list(cut)


def _given(node: fx.Node, held: Mapping[tuple[str, str], fx.Node], written: Mapping[tuple[str, str], fx.Node]) -> bool:
    """Whether a node is there anyway: a part of the batch, a parameter, a channel that no step changes."""
    while node.op == "call_function" and node.target is operator.getitem:
        if node in held.values():
            return False
        source = node.args[0]
        assert isinstance(source, fx.Node)
        node = source
    return node.op in ("placeholder", "get_attr")


def _recording(module: fx.GraphModule, old: list[fx.Node], cut: list[fx.Node], wide: list[fx.Node]) -> fx.GraphModule:
    graph, copies = fx.Graph(), dict[fx.Node, fx.Node]()
    results = graph.graph_copy(module.graph, copies)
    lists = [[copies[node] for node in nodes] for nodes in (old, cut, wide)]
    graph.output((results, *lists))
    return fx.GraphModule(module, graph, class_name="Recording")


def _writes(
    module: fx.GraphModule, old: list[fx.Node], cut: list[fx.Node], calls: list[fx.Node], wide: list[fx.Node]
) -> Callable[..., Any]:
    graph = fx.Graph()
    copies = {node: graph.placeholder(node.name) for node in (*old, *cut)}
    for node in calls:
        copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.output(tuple(copies[node] for node in wide))
    return fx.GraphModule(module, graph, class_name="Writes").forward
