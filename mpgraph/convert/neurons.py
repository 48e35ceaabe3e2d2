"""Single neurons and edges as arrays: reading them from networkx, checking them, and their levels."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from mpgraph.errors import NetworkError, unknown
from mpgraph.network.activations import Activation, activation
from mpgraph.network.cycles import in_order
from mpgraph.network.operations import Operation

KINDS = ("input", "unit", "output")
INPUT, UNIT, OUTPUT = range(3)
FIX = "Fix weights with network.frozen(...), once the network is made"
SHOWN = 60  # characters of what was received


@dataclass
class Neurons:
    """Neurons in the order of the graph.

    Attributes:
        names: what the graph calls them.
        kind: number of each one's kind in ``KINDS``.
        activation: number of each one's activation in ``kinds``; of inputs 0.
        kinds: the activations, sorted by name.
        place: for inputs and outputs the index among them, for units the place in the graph.
        bias: initial values, or ``None`` if none was given.
    """

    names: Sequence[Hashable]
    kind: np.ndarray
    activation: np.ndarray
    kinds: list[Activation]
    place: np.ndarray
    bias: np.ndarray | None


@dataclass
class Edges:
    """Edges in the order of the graph, ends as places of the neurons.

    Attributes:
        weight: initial values, or ``None`` if none was given.
        keys: of parallel edges, or ``None`` in a graph without any.
    """

    names: Sequence[Hashable]  # of the neurons
    source: np.ndarray
    target: np.ndarray
    delay: np.ndarray
    weight: np.ndarray | None
    keys: Sequence[Hashable] | None = None

    def name(self, row: int) -> str:
        """What people read."""
        key = "" if self.keys is None else f" (key {self.keys[row]!r})"
        return f"{self.names[self.source[row]]!r} -> {self.names[self.target[row]]!r}{key}"

    def called(self, row: int) -> str:
        """An edge at the beginning of an error."""
        return f"edge {self.name(row)}"


def listed(found: Iterable[int], name: Callable[[int], str], most: int = 8) -> str:
    """The names of what was found, of many the first few and how many there are."""
    rows = list(found)
    return ", ".join(name(int(i)) for i in rows[:most]) + (f" ... ({len(rows)} in all)" if len(rows) > most else "")


# -- reading ----------------------------------------------------------------------------------------------


def read_edges(graph: Any) -> Edges:
    """The edges of a directed networkx graph.

    Raises:
        NetworkError: for a weight or delay that is not a number, or weights of some edges only.
    """
    if not graph.number_of_edges():
        raise NetworkError("the graph has no edges")
    number = {node: i for i, node in enumerate(graph)}
    count, parallel = graph.number_of_edges(), graph.is_multigraph()
    source = np.fromiter((number[u] for u, _ in graph.edges()), np.int64, count)
    target = np.fromiter((number[v] for _, v in graph.edges()), np.int64, count)
    keys = [key for *_, key in graph.edges(keys=True)] if parallel else None
    data = [attributes for *_, attributes in graph.edges(data=True)]
    edges = Edges(list(graph), source, target, np.zeros(count, np.int64), None, keys)
    edges.weight = numbers("weight", [d.get("weight") for d in data], edges.called)
    for row, attributes in enumerate(data):
        if not is_trained(attributes.get("trained")):
            raise NetworkError(
                f"{edges.called(row)}: trained={shown(attributes['trained'])}; the edges of a graph are all trained. "
                f"{FIX}"
            )
    edges.delay = delays([d.get("delay") for d in data], edges.called)
    return edges


def is_trained(given: Any) -> bool:
    """Whether an edge says that its weight is trained, or says nothing: ``True``, or 1 in any type."""
    if given is None or isinstance(given, str):
        return given is None
    try:
        return float(given) == 1
    except (TypeError, ValueError, RuntimeError, OverflowError):
        return False


def delays(values: Sequence[Any] | np.ndarray, name: Callable[[int], str]) -> np.ndarray:
    """Delays as whole numbers of ticks; 0 where none is given.

    Raises:
        NetworkError: for one that is not a whole number of at least 0.
    """
    filled = values if isinstance(values, np.ndarray) else [0 if value is None else value for value in values]
    given = numbers("delay", filled, name)
    assert given is not None
    wrong = np.flatnonzero((given < 0) | (given % 1 != 0) | (given >= 2**31))
    if len(wrong):
        first = int(wrong[0])
        raise NetworkError(
            f"{name(first)}: delay must be a number of ticks, such as 0 or 1, got {shown(filled[first])}"
        )
    return given.astype(np.int64)


def read_neurons(graph: Any, edges: Edges) -> Neurons:
    """The nodes of a directed networkx graph, with what they lack filled in.

    Raises:
        NetworkError: for an unknown kind or activation, a bias that is not a number, an index that is missing or twice.
    """
    names, data = list(graph), [attributes for _, attributes in graph.nodes(data=True)]
    return neurons(
        names,
        edges,
        kind=[d.get("kind") for d in data],
        activation=[d.get("activation") for d in data],
        index=[d.get("index") for d in data],
        bias=[d.get("bias") for d in data],
    )


def neurons(
    names: Sequence[Hashable],
    edges: Edges,
    *,
    kind: Sequence[Any],
    activation: Sequence[Any],
    index: Sequence[Any],
    bias: Sequence[Any],
) -> Neurons:
    """Neurons from lists of attributes, in which ``None`` stands for what was not given.

    Raises:
        NetworkError: as in :func:`read_neurons`.
    """
    numbered = _kinds(names, edges, kind)
    which, kinds = _activations(names, numbered, activation)
    place = np.arange(len(names))
    for role in (INPUT, OUTPUT):
        members = np.flatnonzero(numbered == role)
        place[members] = _places(names, KINDS[role], members, [index[int(i)] for i in members])
    given = [i for i, value in enumerate(bias) if value is not None]
    wrong = [i for i in given if numbered[i] == INPUT]
    if wrong:
        raise NetworkError(f"inputs have no bias: {listed(wrong, lambda i: repr(names[i]))}")
    filled = [0.0 if value is None else value for value in bias]
    values = numbers("bias", filled, lambda i: f"neuron {names[i]!r}") if given else None
    return Neurons(names, numbered, which, kinds, place, values)


def _kinds(names: Sequence[Hashable], edges: Edges, given: Sequence[Any]) -> np.ndarray:
    receives = np.bincount(edges.target, minlength=len(names)) > 0
    sends = np.bincount(edges.source, minlength=len(names)) > 0
    kind = np.where(receives, np.where(sends, UNIT, OUTPUT), INPUT)
    for i, value in enumerate(given):
        if value is None and not receives[i] and not sends[i]:
            raise NetworkError(f"neuron {names[i]!r} has no edges; remove it, or give it kind='input'")
        if value is not None:
            if not isinstance(value, str) or value not in KINDS:
                raise NetworkError(f"neuron {names[i]!r}: {unknown('kind', value, KINDS)}")
            kind[i] = KINDS.index(value)
    return kind


def _activations(
    names: Sequence[Hashable], kind: np.ndarray, given: Sequence[Any]
) -> tuple[np.ndarray, list[Activation]]:
    """Number of each neuron's activation, and the activations."""
    members: dict[Hashable, tuple[Any, list[int]]] = {}
    for i, value in enumerate(given):
        if kind[i] == INPUT:
            if value is not None:
                raise NetworkError(f"neuron {names[i]!r} is an input and has no activation, got {value!r}")
        else:
            default = "identity" if kind[i] == OUTPUT else "tanh"
            value = default if value is None else value
            key = value if isinstance(value, Hashable) else id(value)
            members.setdefault(key, (value, []))[1].append(i)
    found = {key: _activation(names[rows[0]], value) for key, (value, rows) in members.items()}
    which = np.zeros(len(names), np.int64)
    order = sorted(found, key=lambda key: found[key].name)
    for number, key in enumerate(order):
        which[members[key][1]] = number
    return which, [found[key] for key in order]


def _activation(name: Hashable, value: Any) -> Activation:
    try:
        kind = activation(value)
    except NetworkError as error:
        raise NetworkError(f"neuron {name!r}: {error}") from None
    if kind.over != "agent" or isinstance(kind, Operation):
        raise NetworkError(f"neuron {name!r}: {kind} needs a whole population, and this is one neuron")
    return kind


def _places(names: Sequence[Hashable], kind: str, members: np.ndarray, index: Sequence[Any]) -> np.ndarray:
    """Rank of each input or output among its like."""
    without = [members[i] for i, value in enumerate(index) if value is None]
    if len(without) == len(members):
        return np.arange(len(members))
    if without:
        raise NetworkError(
            f"some {kind}s have an index and others not: {listed(without, lambda i: repr(names[i]))}; give one to all"
        )
    values = numbers("index", index, lambda i: f"neuron {names[members[i]]!r}")
    assert values is not None
    order = np.argsort(values, kind="stable")
    twice = np.flatnonzero(np.diff(values[order]) == 0)
    if len(twice):
        one, two = (names[members[order[twice[0] + k]]] for k in (0, 1))
        raise NetworkError(f"{kind}s {one!r} and {two!r} have the same index {index[order[twice[0]]]!r}")
    place = np.empty(len(members), np.int64)
    place[order] = np.arange(len(members))
    return place


def numbers(what: str, values: Sequence[Any] | np.ndarray, name: Callable[[int], str]) -> np.ndarray | None:
    """An attribute as float64, or ``None`` if nothing was given.

    Args:
        what: the attribute.
        values: one for each node or edge, ``None`` for none.
        name: of the node or edge in an error.

    Raises:
        NetworkError: for a value that is not a finite number, or values for some only.
    """
    if not isinstance(values, np.ndarray):
        missing = sum(value is None for value in values)
        if missing == len(values):
            return None
        if missing:
            with_one = next(i for i, value in enumerate(values) if value is not None)
            without = next(i for i, value in enumerate(values) if value is None)
            raise NetworkError(
                f"{name(with_one)} has a {what} but {name(without)} has none ({missing} lack it): give one to all or "
                "to none"
            )
        if not all(type(value) in (float, int) for value in values):  # the common ones are converted at once
            return np.array([_number(what, value, name, i) for i, value in enumerate(values)])
    try:
        array = np.asarray(values, np.float64)
    except (TypeError, ValueError, OverflowError):
        array = np.full(len(values), np.nan)
    if not np.isfinite(array).all():
        wrong = next(i for i, value in enumerate(values) if not _finite(value))
        raise NetworkError(f"{name(wrong)}: {what} must be a finite number, got {shown(values[wrong])}")
    return array


def _number(what: str, value: Any, name: Callable[[int], str], i: int) -> float:
    if not _finite(value):
        raise NetworkError(f"{name(i)}: {what} must be a finite number, got {shown(value)}")
    return float(value.detach() if isinstance(value, torch.Tensor) else value)


def _finite(value: Any) -> bool:
    """Whether it is one number: of Python or numpy, or a tensor that holds one."""
    if isinstance(value, torch.Tensor):
        value = value.detach()
    if isinstance(value, (str, bytes, bool, np.bool_)) or getattr(value, "dtype", None) == torch.bool:
        return False
    try:
        return math.isfinite(float(value))
    except (TypeError, ValueError, RuntimeError, OverflowError):
        return False


def shown(value: Any) -> str:
    """A value in an error, shortened where it is long."""
    value = value.item() if isinstance(value, np.generic) else value
    try:
        text = " ".join(repr(value).split())
    except ValueError:  # an integer with more digits than Python prints
        text = f"an integer of {value.bit_length()} bits"
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


# -- checking ---------------------------------------------------------------------------------------------


def check(neurons: Neurons, edges: Edges, ticks: int) -> None:
    """Refuse graphs that no rule could run, except for cycles, which :func:`levels` finds.

    Raises:
        NetworkError: naming the neurons or edges.
    """
    names, kind = neurons.names, neurons.kind

    def refuse(wrong: np.ndarray, text: str, name: Callable[[int], str]) -> None:
        if len(wrong):
            raise NetworkError(text.format(listed(wrong, name)))

    def neuron(i: int) -> str:
        return repr(names[i])

    for role, where, ends in ((INPUT, "incoming", edges.target), (OUTPUT, "outgoing", edges.source)):
        if not (kind == role).any():
            without = np.flatnonzero(np.bincount(ends, minlength=len(names)) == 0)
            why = f"every neuron has {where} edges; mark some with kind={KINDS[role]!r}"
            if len(without):
                marked = listed(without, lambda i: f"{names[i]!r} is marked {KINDS[kind[i]]!r}")
                why = f"of the neurons without {where} edges, {marked}; mark one of them with kind={KINDS[role]!r}"
            raise NetworkError(f"the graph has no {KINDS[role]}: {why}")
    refuse(np.flatnonzero(kind[edges.target] == INPUT), "edges into inputs: {}; an input receives nothing", edges.name)
    receives = np.bincount(edges.target, minlength=len(names)) > 0
    refuse(np.flatnonzero(~receives & (kind != INPUT)), "no edge leads to {}; connect it, or make it an input", neuron)
    loops = (edges.source == edges.target) & (edges.delay == 0)
    refuse(
        np.flatnonzero(loops),
        "edges from a neuron to itself need a delay (cycles='feedback_arcs' gives them one): {}",
        edges.name,
    )
    late = np.flatnonzero(edges.delay >= ticks)
    many = f"the network runs for {ticks} tick{'s' * (ticks > 1)}, too few for the delay of {{}}; give more ticks"
    refuse(late, many, edges.name)
    refuse(np.flatnonzero((kind == OUTPUT) & ~_reached(neurons, edges)), "outputs that no input reaches: {}", neuron)


def _reached(neurons: Neurons, edges: Edges) -> np.ndarray:
    reached = neurons.kind == INPUT
    front = np.flatnonzero(reached)
    onward = _Onward(edges.source, edges.target, len(reached))
    while len(front):
        next_ = onward(front)
        front = np.unique(next_[~reached[next_]])
        reached[front] = True
    return reached


class _Onward:
    """The targets of the edges that leave some neurons."""

    def __init__(self, source: np.ndarray, target: np.ndarray, neurons: int) -> None:
        self.targets = target[np.argsort(source, kind="stable")]
        self.count = np.bincount(source, minlength=neurons)
        self.starts = np.cumsum(self.count) - self.count

    def __call__(self, neurons: np.ndarray) -> np.ndarray:
        count = self.count[neurons]
        shift = np.repeat(self.starts[neurons] - (np.cumsum(count) - count), count)
        return self.targets[shift + np.arange(len(shift))]


def levels(neurons: Neurons, edges: Edges) -> np.ndarray:
    """For each neuron the longest path without delay from the inputs; 1 where only delayed edges lead to it.

    Raises:
        NetworkError: for a cycle without delay, naming its neurons.
    """
    at_once = edges.delay == 0
    source, target = edges.source[at_once], edges.target[at_once]
    waiting = np.bincount(target, minlength=len(neurons.names))
    onward = _Onward(source, target, len(waiting))
    level = np.full(len(waiting), -1)
    front = np.flatnonzero(neurons.kind == INPUT)
    late = np.flatnonzero((neurons.kind != INPUT) & (waiting == 0))
    depth = 0
    while len(front) or depth == 1:
        level[front] = depth
        receivers, times = np.unique(onward(front), return_counts=True)
        waiting[receivers] -= times
        front = receivers[waiting[receivers] == 0]
        depth += 1
        if depth == 1:
            front = np.concatenate([front, late])
    if (level < 0).any():
        left = level < 0
        inside = left[source] & left[target]
        before: dict[int, list[int]] = {}
        for one, two in zip(source[inside].tolist(), target[inside].tolist(), strict=True):
            before.setdefault(two, []).append(one)
        in_order(
            before,
            "cycle without a delay",
            "A neuron cannot wait for itself: remove an edge, or give one a delay (with ticks=...); "
            'Network.from_networkx(..., ticks=..., cycles="feedback_arcs" or "synchronous") chooses edges for it',
            lambda i: repr(neurons.names[i]),
        )
    return level
