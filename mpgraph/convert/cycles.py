"""Which edges of a graph of neurons take a tick, so that no neuron waits for itself."""

from __future__ import annotations

import heapq
from dataclasses import replace
from typing import Any, Literal, get_args

import numpy as np

from mpgraph.errors import NetworkError, unknown

from .neurons import INPUT, Edges, Neurons

Cycles = Literal["refused", "synchronous", "feedback_arcs"]


def with_delays(neurons: Neurons, edges: Edges, cycles: Any) -> Edges:
    """The edges, of which those without a delay of their own take a tick where ``cycles`` says so.

    Args:
        neurons, edges: as read.
        cycles: ``"refused"`` leaves them as they are; ``"synchronous"`` delays all edges between neurons, so that each
            hears what the others said a tick ago; ``"feedback_arcs"`` only a few, without which there is no cycle.

    Raises:
        NetworkError: for another word.
    """
    if cycles == "refused":
        return edges
    if cycles == "synchronous":
        late = neurons.kind[edges.source] != INPUT
    elif cycles == "feedback_arcs":
        late = closing_edges(edges.source, edges.target, edges.delay == 0, len(neurons.names))
    else:
        raise NetworkError("from_networkx: cycles: " + unknown("word", cycles, get_args(Cycles)))
    return replace(edges, delay=np.where(late & (edges.delay == 0), 1, edges.delay))


def closing_edges(source: np.ndarray, target: np.ndarray, counted: np.ndarray, neurons: int) -> np.ndarray:
    """A small set of edges whose removal leaves no cycle, all of them on cycles: (edges,) of booleans.

    In each strongly connected component, neurons are put in an order with few edges that lead backwards (Eades, Lin and
    Smyth, 1993): again and again those without successors at the end, those without predecessors at the beginning, else
    the one that has most more successors than predecessors.

    Args:
        source, target: of each edge, as numbers of neurons.
        counted: which edges could be on a cycle.
        neurons: how many.
    """
    import networkx

    graph: Any = networkx.DiGraph()
    graph.add_nodes_from(range(neurons))
    graph.add_edges_from(zip(source[counted].tolist(), target[counted].tolist(), strict=True))
    place, component = np.zeros(neurons, np.int64), np.zeros(neurons, np.int64)
    for number, members in enumerate(networkx.strongly_connected_components(graph)):
        component[list(members)] = number
        if len(members) > 1:
            order = _order({n: [m for m in graph.succ[n] if m in members and m != n] for n in sorted(members)})
            place[order] = np.arange(len(order))
    return counted & (component[source] == component[target]) & (place[source] >= place[target])


def _order(after: dict[int, list[int]]) -> list[int]:
    """Neurons of a component, by their successors in it, in an order with few edges backwards."""
    before: dict[int, list[int]] = {n: [] for n in after}
    for n, successors in after.items():
        for m in successors:
            before[m].append(n)
    out, into = {n: len(after[n]) for n in after}, {n: len(before[n]) for n in after}
    waiting = [(into[n] - out[n], n) for n in after]
    heapq.heapify(waiting)
    ready, left = [n for n in after if not (out[n] and into[n])], set(after)
    first: list[int] = []
    last: list[int] = []
    while left:
        n = ready.pop() if ready else heapq.heappop(waiting)[1]
        if n not in left:
            continue
        left.remove(n)
        (last if not out[n] else first).append(n)
        for count, others in ((into, after[n]), (out, before[n])):
            for m in others:
                if m in left:
                    count[m] -= 1
                    heapq.heappush(waiting, (into[m] - out[m], m))
                    if not count[m]:
                        ready.append(m)
    return first + last[::-1]
