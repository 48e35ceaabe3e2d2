"""Many ticks of a program whose step is one tick, in one call: the code of a step in three parts.

What is the same at every tick is computed *before*, what the next tick or a prediction needs in the *body*, and losses,
which nobody waits for, *after*: for all ticks at once. Nothing is traced again: the parts are those calls of the step's
code that each of them needs.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from .quick import quick

SIZES = frozenset(["size", "new_full", "new_zeros"])  # of what a batch holds they need no numbers


class Stream:
    """The code of one tick as a function of whole sequences.

    Args:
        module: ``(state, parameters, noise, *inputs) -> (state, predictions, losses, recorded)``, without noise.
        cheaper: whether nobody differentiates it, so that cheaper calls may take the places of others.
    """

    def __init__(self, module: fx.GraphModule, cheaper: bool) -> None:
        self._module, self._cheaper, nodes = module, cheaper, list(module.graph.nodes)
        given = [node for node in nodes if node.op == "placeholder"]
        held, self._fed = given[:3], given[3:]
        (self._state, self._predictions, self._losses, self._recorded) = nodes[-1].args[0]
        read = dict[tuple[Any, Any], fx.Node]()
        for node in nodes:
            holder: Any = node.args[0] if node.target is operator.getitem else None
            if isinstance(holder, fx.Node) and holder.args and holder.args[0] is held[0]:
                read[holder.args[1], node.args[1]] = node
        after = {(name, channel): end for name, channels in self._state.items() for channel, end in channels.items()}
        changed = [key for key, end in after.items() if end is not read.get(key)]
        self._moving = [key for key in changed if key in read]
        self._last = [key for key in changed if key not in read]
        moving = [read[key] for key in self._moving]
        varies = {*self._fed, *moving}
        for node in nodes[:-1]:
            size = node.op == "call_method" and node.target in SIZES and node.args[0] in self._fed
            if not size and any(source in varies for source in node.all_input_nodes):
                varies.add(node)
        ends = [after[key] for key in (*self._moving, *self._last)]
        self._shown = list(dict.fromkeys(_nodes((self._predictions, self._recorded))))
        losses = list(dict.fromkeys(_nodes(self._losses)))
        body = _needed([*ends, *self._shown], varies - set(moving))
        rest = _needed(losses, varies - set(moving) - body)
        if not all(map(_maps, rest)):
            body |= rest
            rest = set()
        late = {source for node in rest for source in node.all_input_nodes} | {one for one in losses if one not in rest}
        known = {*body, *moving, *self._fed}
        self._kept = [*self._shown, *(node for node in nodes if node in late & known - {*self._shown, *self._fed})]
        wanted = {*ends, *self._shown, *losses, *(s for node in body | rest for s in node.all_input_nodes)}
        same = [node for node in nodes if node in wanted and node not in varies]
        self._slices = [i for i, node in enumerate(self._fed) if node in wanted]
        slices = [self._fed[i] for i in self._slices]
        self._before = self._part(given, [node for node in nodes[:-1] if node not in varies], same)
        self._body = self._part([*same, *moving, *slices], [n for n in nodes if n in body], [*ends, *self._kept])
        self._after = self._part([*same, *self._kept, *slices], [n for n in nodes if n in rest], losses)
        self._places = {node: i for i, node in enumerate(losses)}

    def _part(
        self, given: Sequence[fx.Node], calls: Iterable[fx.Node], results: Sequence[fx.Node]
    ) -> Callable[..., tuple[Any, ...]]:
        """A function of these calls."""
        graph, copies = fx.Graph(), dict[fx.Node, fx.Node]()
        for node in given:
            copies[node] = graph.placeholder(node.name)
        for node in calls:
            if node not in copies:
                copies[node] = graph.node_copy(node, copies.__getitem__)
        graph.output(tuple(copies[node] for node in results))
        graph.eliminate_dead_code()
        if self._cheaper:
            quick(graph)
        made: Any = fx.GraphModule(self._module, graph, class_name="Ticks").forward
        return made

    def __call__(
        self, state: Mapping[str, Mapping[str, Tensor]], parameters: Any, fed: Sequence[Tensor]
    ) -> tuple[Any, Any, dict[str, Tensor], Any]:
        """The state after all ticks, predictions, losses (means over the ticks) and recorded channels.

        Args:
            state: as a step takes it.
            parameters: likewise.
            fed: what a step takes, with ticks after the batch.
        """
        same = self._before(state, parameters, {}, *(tensor.select(1, 0) for tensor in fed))
        slices = [fed[i] for i in self._slices]
        moving: Sequence[Tensor] = [state[name][channel] for name, channel in self._moving]
        kept: list[list[Tensor]] = [[] for _ in self._kept]
        count, first = len(moving), len(moving) + len(self._last)
        results: Sequence[Tensor] = ()
        parts = [tensor.unbind(1) for tensor in slices]
        for tick in range(fed[0].shape[1]):
            results = self._body(*same, *moving, *(part[tick] for part in parts))
            moving = results[:count]
            for values, value in zip(kept, results[first:], strict=True):
                values.append(value)
        new = dict(zip((*self._moving, *self._last), results, strict=False))
        after = {
            name: {channel: new.get((name, channel), state[name].get(channel)) for channel in channels}
            for name, channels in self._state.items()
        }
        stacked = [torch.stack(values, min(values[0].ndim, 1)) for values in kept]
        shown = dict(zip(self._shown, stacked, strict=False))
        losses = self._losses_of(same, stacked, slices)
        return (
            after,
            _filled(self._predictions, shown),
            {name: losses[self._places[node]].mean(0) for name, node in self._losses.items()},
            _filled(self._recorded, shown),
        )

    def _losses_of(self, same: Sequence[Any], stacked: Sequence[Tensor], slices: Sequence[Tensor]) -> Sequence[Tensor]:
        """The losses of all ticks."""
        if not self._losses:
            return ()
        dims = (*(None for _ in same), *(min(tensor.ndim - 1, 1) for tensor in stacked), *(1 for _ in slices))
        return torch.func.vmap(self._after, dims)(*same, *stacked, *slices)


def _nodes(results: Any) -> list[fx.Node]:
    found: list[fx.Node] = []
    fx.map_arg(results, found.append)
    return found


def _filled(results: Any, values: Mapping[fx.Node, Tensor]) -> Any:
    """Nested dictionaries of calls as those of their values."""
    if isinstance(results, Mapping):
        return {key: _filled(part, values) for key, part in results.items()}
    return values[results]


def _needed(roots: Iterable[fx.Node], among: set[fx.Node]) -> set[fx.Node]:
    """The calls that these results need, of those among which to look."""
    found, left = set[fx.Node](), list(roots)
    while left:
        node = left.pop()
        if node in among and node not in found and node.op != "placeholder":
            found.add(node)
            left += node.all_input_nodes
    return found


def _maps(node: fx.Node) -> bool:
    """Whether a call is one of torch's own, which can be mapped over ticks."""
    module = getattr(node.target, "__module__", None) or ""
    builtin = isinstance(node.target, torch._ops.OpOverload) or module.partition(".")[0] in ("torch", "_operator")
    return node.op == "call_method" or (
        node.op == "call_function" and builtin and not isinstance(node.target, nn.Module)
    )
