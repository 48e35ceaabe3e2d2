"""One batch over several processes: whatever is reduced over examples is reduced over processes as well.

Each process has a slice of every batch, all of one size, and runs the same code on it. What a process keeps of single
examples stays where it is. What is summed over the batch is summed in each process first, then over all of them. So
nothing else of the compiler, and no rule, knows of processes:

- :func:`materialize` splits a sum of products: terms that are summed over the batch become one tensor, which is added
  up over the processes before the other terms join it;
- the size of the batch that the code divides by is that of all slices together (``Emitter.number``);
- a function of all examples at once (an activation ``over="batch"``) gets the rows of all processes;
- :func:`coalesce` joins what is added up at the same time: as many calls remain as there are *rounds*, in which one sum
  needs the result of another. A step of backprop has one round, however deep the network is.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence

from torch import fx
from torch.nn import functional

from mpgraph.network.axes import Axis

from . import contraction
from .emitter import Emitter
from .ranks import Ranks
from .terms import Factor, Term

# -- while code is written --------------------------------------------------------------------------------


def materialize(code: Emitter, terms: Sequence[Term]) -> Factor:
    """A sum of products as one tensor, the same in all processes where it does not depend on the example."""
    if code.ranks is None or not any(map(spread, terms)):
        return contraction.materialize(code, terms)
    local: dict[frozenset[Axis], list[Term]] = {}
    for term in terms:
        if spread(term):
            local.setdefault(frozenset(term.axes), []).append(term)
    whole = [term for term in terms if not spread(term)]
    for group in local.values():
        scale = group[0]._replace(factors=(), bound=frozenset(), fold=None)
        if len(group) == 1:  # scaled once it is added up, where it is added to something else
            group = [group[0]._replace(coefficient=1.0, power=0)]
        else:
            scale = scale._replace(coefficient=1.0, power=0)
        with code.at(scale.origin):
            factor = contraction.materialize(code, group)
            node = code.emit(code.ranks.add, factor.node, work=factor.axes)
        whole.append(scale._replace(factors=(Factor(node, factor.axes),)))
    return contraction.materialize(code, whole)


def spread(term: Term) -> bool:
    """Whether a term is summed over the batch."""
    return any(axis.size is None for axis in term.bound)


def extremum(code: Emitter, factor: Factor, how: str) -> Factor:
    """The largest or smallest of all processes, from that of each."""
    assert code.ranks is not None
    reduce = code.ranks.largest if how == "max" else code.ranks.smallest
    return Factor(code.emit(reduce, factor.node, work=factor.axes), factor.axes)


def all_rows(code: Emitter, node: fx.Node, axes: Sequence[Axis]) -> fx.Node:
    """The rows of all processes, of a tensor laid out as ``axes``, the batch first: each adds its own to zeros."""
    assert code.ranks is not None
    size = code.batch_size()
    before, after = (code.emit(operator.mul, size, n) for n in (code.ranks.rank, code.ranks.size - 1 - code.ranks.rank))
    padded = code.emit(functional.pad, node, (*[0, 0] * (len(axes) - 1), before, after))
    return code.emit(code.ranks.add, padded, work=axes)


def own_rows(code: Emitter, node: fx.Node) -> fx.Node:
    """The rows of this process, of a tensor with those of all."""
    assert code.ranks is not None
    size = code.batch_size()
    return code.emit("narrow", node, 0, code.emit(operator.mul, size, code.ranks.rank), size)


# -- when it is finished ----------------------------------------------------------------------------------


def coalesce(module: fx.GraphModule, ranks: Ranks) -> None:
    """Join reductions that do not wait for each other, and let the first compare the processes."""
    rounds: dict[fx.Node, int] = {}  # how many a call waits for
    for node in module.graph.nodes:
        rounds[node] = max((rounds[i] + _reduces(i, ranks) for i in node.all_input_nodes), default=0)
    if not any(_reduces(node, ranks) for node in rounds):
        return
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    (end,) = (node for node in rounds if node.op == "output")
    calls: list[list[fx.Node]] = [[] for _ in range(rounds[end] + 1)]
    for node, number in rounds.items():
        if node is not end:
            calls[number].append(node)
    for number, nodes in enumerate(calls):
        here = [node for node in nodes if _reduces(node, ranks)]
        for node in nodes:
            if not _reduces(node, ranks):
                copies[node] = graph.node_copy(node, copies.__getitem__)
        targets = [target for target in ranks.reductions if any(node.target is target for node in here)]
        if number == 0 and ranks.check and ranks.add not in targets:
            targets.append(ranks.add)
        for target in targets:
            parts = [node for node in here if node.target is target]
            arguments = [copies[node.all_input_nodes[0]] for node in parts]
            marks = []
            if number == 0 and ranks.check and target is ranks.add:
                target, marks = ranks.add_compared, [_written_marks(graph, ranks)]
            call = graph.call_function(target, (*marks, *arguments))
            call.meta["joins"] = len(arguments)  # the last of its arguments
            for index, (node, argument) in enumerate(zip(parts, arguments, strict=True)):
                copies[node] = graph.call_function(operator.getitem, (call, index))
                copies[node].meta.update(node.meta, reduced=argument)
    graph.output(fx.map_arg(end.args[0], copies.__getitem__))
    module.graph = graph
    module.recompile()


def _reduces(node: fx.Node, ranks: Ranks) -> bool:
    return node.op == "call_function" and node.target in ranks.reductions


def _written_marks(graph: fx.Graph, ranks: Ranks) -> fx.Node:
    """The call that writes down what the processes must agree on."""
    state, _, _, x, *_ = (node for node in graph.nodes if node.op == "placeholder")
    program = graph.call_function(operator.getitem, (state, "program"))
    counters = [graph.call_function(operator.getitem, (program, name)) for name in ("seed", "step")]
    return graph.call_function(ranks.marks, (x, *counters))
