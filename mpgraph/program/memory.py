"""No tensor of a returned state shares memory with another tensor that the step returns or was given.

A rule may write one value to two channels, or write its input as it is; the generated code then returns one tensor
twice. Whoever changed one of them in place would change the other. Such tensors are copied at the end of the code. A
channel that a step leaves alone stays the tensor that it was in the state before: a state is a value.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

# Calls whose result may be a view of their first argument, or the argument itself.
# fmt: off
VIEWS = frozenset([
    "T", "alias", "bool", "broadcast_to", "chunk", "conj", "contiguous", "detach", "diagonal", "double", "einsum",
    "expand", "expand_as", "flatten", "float", "getattr", "half", "imag", "int", "long", "mT", "moveaxis", "movedim",
    "narrow", "permute", "pos", "positive", "ravel", "real", "reshape", "reshape_as", "select", "split", "squeeze",
    "swapaxes", "swapdims", "t", "tensor_split", "to", "transpose", "type", "type_as", "unbind", "unflatten", "unfold",
    "unsqueeze", "view", "view_as",
])
# fmt: on
SPREAD = frozenset(["broadcast_to", "expand", "expand_as"])


def separate(module: fx.GraphModule) -> None:
    """Copy the state's tensors that share memory with anything else, in the code of a step."""
    graph = module.graph
    end = next(node for node in reversed(graph.nodes) if node.op == "output")
    state, *others = end.args[0]
    segments = frozenset(name for name, _ in module.get_submodule("segments").named_children())
    taken: set[fx.Node] = set()
    fx.map_arg(others, lambda node: taken.update(_origins(node, segments)))
    copied, new = False, {}
    for name, channels in state.items():
        new[name] = dict(channels)
        for channel, tensor in channels.items():
            origins = _origins(tensor, segments)
            foreign = any(_given(origin) and not _is(origin, name, channel) for origin in origins)
            spread = tensor.op == "call_method" and tensor.target in SPREAD  # all its numbers may lie in one place
            if foreign or spread or not taken.isdisjoint(origins):
                with graph.inserting_before(end):
                    copy = graph.call_method("clone", (tensor,))
                copy.meta.update(tensor.meta)
                new[name][channel], copied = copy, True
            taken.update(origins)
    if copied:
        end.args = ((new, *others),)
        module.recompile()


def read_channels(module: fx.GraphModule) -> list[tuple[str, str]]:
    """Node and name of each channel of the state that the code reads."""
    found = []
    for node in module.graph.nodes:
        holder = node.args[0] if node.target is operator.getitem else None
        if isinstance(holder, fx.Node) and holder.target is operator.getitem:
            state, name = holder.args
            if isinstance(state, fx.Node) and state.op == "placeholder" and isinstance(name, str):
                found.append((name, node.args[1]))
    return found


def _origins(node: fx.Node, segments: frozenset[str]) -> set[fx.Node]:
    """The calls and inputs whose memory the result of a call may be; segments return tensors of their own."""
    found, left = set(), [node]
    while left:
        one = left.pop()
        left += (sources := _seen_through(one, segments))
        if not sources:
            found.add(one)
    return found


def _seen_through(node: fx.Node, segments: frozenset[str]) -> list[fx.Node]:
    """Of which arguments the result may be a view; none for a result with memory of its own, or an input."""
    if node.op == "call_method":
        return node.all_input_nodes[:1] if node.target in VIEWS else []
    if node.op == "call_module":
        return node.all_input_nodes
    if node.op != "call_function":
        return []
    target: Any = node.target
    if target is operator.getitem:
        source = node.args[0]
        assert isinstance(source, fx.Node)
        return [] if _given(node) or _several(source, segments) else [source]
    if isinstance(target, torch._ops.OpOverload):
        return node.all_input_nodes if any(r.alias_info for r in target._schema.returns) else []
    if getattr(target, "__name__", "") in segments:
        return []
    if hasattr(target, "__code__"):  # a function of Python: it may return what it is given
        return node.all_input_nodes
    return node.all_input_nodes if getattr(target, "__name__", "") in VIEWS else []


def _several(node: fx.Node, segments: frozenset[str]) -> bool:
    """Whether a call returns several tensors, each with memory of its own."""
    if getattr(node.target, "__name__", "") in segments:
        return True
    return isinstance(node.target, torch._ops.OpOverload) and not any(r.alias_info for r in node.target._schema.returns)


def _given(node: fx.Node) -> bool:
    """Whether a node is a tensor that the step is given: of the batch, the state, the rule, or a constant."""
    while node.op == "call_function" and node.target is operator.getitem and isinstance(node.args[0], fx.Node):
        if not isinstance(node.args[1], (str, int)):
            return False  # a part of a tensor
        node = node.args[0]
    return node.op in ("placeholder", "get_attr")


def _is(node: fx.Node, name: str, channel: str) -> bool:
    """Whether a node is this channel of the state before the step."""
    holder = node.args[0] if node.args else None
    return (
        isinstance(holder, fx.Node)
        and node.target is operator.getitem
        and node.args[1] == channel
        and holder.target is operator.getitem
        and holder.args[1] == name
    )
