"""Sequences of any length: a pass goes through all ticks in a loop whose body, one tick, is traced once.

Outside of loops, what differs from tick to tick is one tensor of all ticks, on the axis ``trace.tick``; in a body it is
the part of one tick. What a body computes and anybody reads later becomes such a tensor again; a sum of products
stays one, so that gradients of all ticks are added up by one matrix product. From tick to tick go memories and the
messages of delayed connections, each as the tensors that it is a product of. Which these are is found by tracing:
a message of the first tick is zero, and the tick is traced until messages are made of what they were made of before.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

from torch import fx

from mpgraph.agents.each import Each
from mpgraph.agents.repeat import Repeat
from mpgraph.errors import ProtocolError
from mpgraph.graph.arrows import Arrow
from mpgraph.network.axes import BATCH, Axis
from mpgraph.network.incidence import Incidence

from .loop import Loop, Scope
from .repetition import Form, Key, Rounds, argument_name, called, flat, nested, tensor_of
from .terms import Factor, Term
from .value import Value, coerce

Said = tuple[str, str]  # a node, and to which of its neighbors it speaks
Writes = dict[str, list[tuple[dict[str, Value], dict[str, Value]]]]  # by owner, what each use wrote and its signals
PATIENCE = 3  # traces after which a message goes from tick to tick as one tensor


class Ticks(Rounds):
    """A context whose passes may go through sequences.

    Attributes:
        told: by loss, one for examples that have a target, else zero.
        past: what a node said one tick ago, two ticks ago, and so on; for earlier ticks where a pass goes backwards.
    """

    told: dict[str, Value]
    past: dict[Said, list[Value]]

    def everywhere_once(self, element: str, silent: Collection[str]) -> Writes:
        """Trace one pass in one tick; ``silent`` nodes lack the target."""
        raise NotImplementedError

    def said_last(self, arrow: Arrow) -> object:
        """The message of an arrow's source in the tick that was traced last."""
        raise NotImplementedError

    def silent_now(self) -> frozenset[str]:
        """Nodes that lack the target."""
        raise NotImplementedError


class _Part(NamedTuple):
    """A factor of a message: a tensor that goes from tick to tick, or one that is the same in all (``outside``)."""

    axes: tuple[Axis, ...]
    gathered: Incidence | None
    outside: fx.Node | None


_Shape = tuple[tuple[float, int, tuple[_Part, ...]], ...]  # of what a message is a sum: coefficient, power, factors


class _Body:
    """The body of a loop over ticks, while it is written and after.

    Args:
        trace: whose channels are seen at one tick inside.
        name: of the loop.
        backwards: whether the last tick comes first.
    """

    def __init__(self, trace: Ticks, name: str, backwards: bool = False) -> None:
        assert trace.ticks is not None
        self.trace, self.code = trace, trace.emitter
        self.entry = flat(trace.values)
        times = self.code.local(self.code.times("ticks", trace.ticks))
        self.repeat = Repeat((name,), trace.ticks, name=f"{name} over ticks")
        self.scope = Scope(times, trace.ticks, "ticks")
        self.backwards = backwards
        self.starts: dict[Key, Value] = {}

    @contextmanager
    def inside(self) -> Iterator[None]:
        """The trace sees one tick."""
        trace, before, told = self.trace, self.trace.values, self.trace.told
        with self.code.inside(self.scope):
            self.starts = {key: self._at_tick(value) for key, value in self.entry.items()}
            trace.values = nested(self.starts, before)
            trace.told = {name: self._at_tick(value) for name, value in told.items()}
            try:
                yield
            finally:
                trace.values, trace.told = before, told

    def _at_tick(self, value: Value) -> Value:
        value, whole = value.simple(), value._tensor is not None
        terms = [t._replace(factors=tuple(map(self._part, t.factors))) for t in value.terms]
        part = Value(self.code, terms, value.local)
        return part.like(terms[0].factors[0]) if whole and terms else part

    def _part(self, factor: Factor) -> Factor:
        tick = self.trace.tick
        if tick not in factor.axes:
            return factor
        dim = factor.axes.index(tick)
        node = self.code.emit("select", factor.node, dim, self.scope.number)
        node.meta.update(bool=factor.node.meta.get("bool", False))
        node.meta.setdefault("hint", factor.node.meta.get("hint"))
        if dim == 0:
            node.meta["ticks of"] = factor.node
        return factor._replace(node=node, axes=tuple(a for a in factor.axes if a is not tick))

    def close(self, carried: list[tuple[fx.Node, fx.Node, fx.Node]]) -> None:
        """Write the loop; what goes from tick to tick has an argument, a start and an end."""
        self.loop = Loop(self.repeat, self.scope, carried, [], {}, backwards=self.backwards)
        self.loop.outside = self.code.hoisted(self.scope)
        self.call = called(self.code, self.loop)

    def everywhere(self, value: Value) -> Value:
        """A value of the body at all ticks."""
        value, whole = value.simple(), value._tensor is not None
        terms = [t._replace(factors=tuple(map(self._whole, t.factors))) for t in value.terms]
        found = Value(self.code, terms, value.local)
        return found.like(terms[0].factors[0]) if whole and terms else found

    def _whole(self, factor: Factor) -> Factor:
        node = factor.node
        if node.graph is not self.scope.graph:
            return factor
        if node in self.loop.outside:
            return factor._replace(node=self.loop.outside[node])
        stacked: fx.Node = node.meta.get("ticks of") or self.last(node, every=True)
        stacked.meta["bool"] = node.meta.get("bool", False)
        return factor._replace(node=stacked, axes=(self.trace.tick, *factor.axes))

    def last(self, node: fx.Node, every: bool = False) -> fx.Node:
        """A tensor of the body after the last tick, or at ``every`` one."""
        places = [i for i, one in enumerate(self.loop.results) if one is node and (i in self.loop.every) is every]
        if not places:
            places = [len(self.loop.results)]
            self.loop.results.append(node)
            self.loop.every.update(places if every else ())
        return self.trace.item(self.call, places[0], node.meta.get("hint"))


def at_each_tick(trace: Ticks, compute: Callable[[], Value]) -> Value:
    """What a function of the present values says at each tick, where no tick needs another."""
    body = _Body(trace, "readout")
    with body.inside():
        value = compute()
    body.close([])
    return body.everywhere(value)


def follow_ticks(trace: Ticks, name: str) -> Writes:
    """Trace a pass through all ticks, and leave the trace with the values after it.

    Returns:
        What uses wrote, averaged over the ticks.
    """
    code, graph, silent = trace.emitter, trace.graph, trace.silent_now()
    late = _late(graph.arrows[name])
    marks = dict(trace.noise), len(trace.flat), len(trace.no_signal)
    shapes: dict[Said, _Shape] = dict.fromkeys(late, ())
    for attempt in itertools.count():
        trace.noise.clear()
        trace.noise.update(marks[0])
        del trace.flat[marks[1] :], trace.no_signal[marks[2] :]
        body = _Body(trace, name, name in graph.back)
        lanes: list[tuple[list[fx.Node], _Part]] = []  # of each tensor of a message, one argument for each tick ago
        with body.inside():
            memories = _memories(trace, body)
            trace.past = {key: _earlier(trace, body, key, shapes[key], ago, lanes) for key, (ago, _) in late.items()}
            writes = trace.everywhere_once(name, silent)
            ends = flat(trace.values)
            said = {key: _sent(trace, arrow, attempt >= PATIENCE) for key, (_, arrow) in late.items()}
            found = {key: _shape(body, value) for key, value in said.items()}
            if found == shapes:
                moving = [code.local(f.node) for key, v in said.items() for f in _moving(v, shapes[key])]
                after = [tensor_of(trace, ends[key], form) for key, (_, form) in memories.items()]
                break
        shapes = found
    carried = [
        (start, tensor_of(trace, body.entry[key], form), end)
        for (key, (start, form)), end in zip(memories.items(), after, strict=True)
    ]
    for (arguments, part), end in zip(lanes, moving, strict=True):
        zeros = code.zeros(_dimensions(part))
        carried += zip(arguments, itertools.repeat(zeros), (end, *arguments), strict=False)
    body.close(carried)
    values = dict(body.entry)
    for key, value in ends.items():
        if value is body.starts.get(key):
            continue
        if key in memories:
            (_, form), end = memories[key], after[list(memories).index(key)]
            values[key] = Value(code, (), form.local).like(Factor(body.last(end), (*form.axes, *form.local)))
        else:
            values[key] = body.everywhere(value)
    trace.values = nested(values, trace.values)

    def mean(channels: Mapping[str, Value]) -> dict[str, Value]:
        return {channel: body.everywhere(value).total((trace.tick,), "mean") for channel, value in channels.items()}

    return {owner: [(mean(wrote), mean(signals)) for wrote, signals in uses] for owner, uses in writes.items()}


def _late(arrows: Mapping[str, Mapping[str, list[Arrow]]]) -> dict[Said, tuple[int, Arrow]]:
    """Who is heard in other ticks than his own: how many ticks later at most, and an arrow that says so."""
    found: dict[Said, tuple[int, Arrow]] = {}
    for arrow in (arrow for roles in arrows.values() for one in roles.values() for arrow in one if arrow.delay):
        key = arrow.source.name, arrow.to
        if key not in found or found[key][0] < abs(arrow.delay):
            found[key] = abs(arrow.delay), arrow
    return found


def _memories(trace: Ticks, body: _Body) -> dict[Key, tuple[fx.Node, Form]]:
    """Channels that go from tick to tick, each as an argument of the body."""
    found: dict[Key, tuple[fx.Node, Form]] = {}
    for name, node in trace.graph.nodes.items():
        for channel, declared in trace.graph.channels[name].items():
            if declared.extent == "carry" and node.keeper(declared) == name:
                key = (name, channel, None, None)
                form = Form(node.layout(declared), body.entry[key].local)
                argument = body.scope.graph.placeholder(argument_name(key))
                start = Value(trace.emitter, (), form.local).like(Factor(argument, (*form.axes, *form.local)))
                body.starts[key] = trace.values[name][channel] = start
                found[key] = argument, form
    return found


def _earlier(
    trace: Ticks, body: _Body, key: Said, shape: _Shape, ago: int, lanes: list[tuple[list[fx.Node], _Part]]
) -> list[Value]:
    """What a node said in the last ticks, as arguments of the body."""
    code = trace.emitter
    terms: list[list[Term]] = [[] for _ in range(ago)]
    for coefficient, power, parts in shape:
        factors: list[list[Factor]] = [[] for _ in range(ago)]
        for part in parts:
            nodes = [part.outside] * ago if part.outside is not None else []
            if part.outside is None:
                hint = argument_name((key[0], "said", None, None))
                nodes = [body.scope.graph.placeholder(hint) for _ in range(ago)]
                lanes.append((nodes, part))
            for one, node in zip(factors, nodes, strict=True):
                one.append(Factor(code.local(node), part.axes, part.gathered))
        for sum_, product in zip(terms, factors, strict=True):
            sum_.append(Term(coefficient, power, tuple(product)))
    return [Value(code, one) for one in terms]


def _sent(trace: Ticks, arrow: Arrow, whole: bool) -> Value:
    """What goes from tick to tick of a message: a sum of products, each with a tensor that starts from zero."""
    message = trace.said_last(arrow)
    if isinstance(message, (dict, Each)) or tuple(getattr(message, "shape", ())):
        kind = "a dictionary" if isinstance(message, dict) else f"of shape {tuple(getattr(message, 'shape', ()))}"
        raise ProtocolError(
            f"{arrow}: the message that is delayed is {kind}; from tick to tick goes a single number. Unroll the "
            "network instead: mg.compile(..., sequences=False)"
        )
    value = coerce(trace.emitter, message).simple()
    scope = trace.emitter.scopes[-1]
    simple = all(
        not t.bound and t.fold is None and any(_outside(scope, f) is None for f in t.factors) for t in value.terms
    )
    if whole:
        axes = (BATCH, *arrow.source.axes)
        return value.like(Factor(trace.emitter.full(value.materialize(), axes), axes))
    return value if simple else value.like(value.materialize())


def _outside(scope: Scope, factor: Factor) -> fx.Node | None:
    """What a factor is in the code around a body, if it is the same at all ticks."""
    if factor.node.graph is not scope.graph:
        return factor.node
    return next((outer for outer, inner in scope.given.items() if inner is factor.node), None)


def _shape(body: _Body, value: Value) -> _Shape:
    """What a message is a sum of."""
    lone = len(value.terms) == 1 and len(value.terms[0].factors) == 1
    if lone:  # it starts from zero, also where it is the same at all ticks
        (factor,) = value.terms[0].factors
        return ((*value.terms[0][:2], (_Part(factor.axes, factor.gathered, None),)),)
    return tuple(
        (*term[:2], tuple(_Part(f.axes, f.gathered, _outside(body.scope, f)) for f in term.factors))
        for term in value.terms
    )


def _moving(value: Value, shape: _Shape) -> Iterator[Factor]:
    """The factors of a message that go from tick to tick."""
    for term, (_, _, parts) in zip(value.terms, shape, strict=True):
        yield from (f for f, part in zip(term.factors, parts, strict=True) if part.outside is None)


def _dimensions(part: _Part) -> tuple[Axis, ...]:
    """The dimensions of a factor's tensor, one that is looked up lazily before that."""
    if part.gathered is None:
        return part.axes
    return (*part.axes[: -len(part.gathered.sites)], *part.gathered.unit)
