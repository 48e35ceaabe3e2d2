"""A repetition of the schedule as a loop: its passes are traced once, on what goes from round to round.

Which channels go from round to round, and on what axes, is found by tracing: a channel that a round changes is an
argument of the next one, on the axes that it has before or after. As that may widen others, the round is traced until
nothing widens any more, mostly twice. A channel that each round writes before anything reads it is only returned.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import fx

from mpgraph.agents.each import Each
from mpgraph.agents.repeat import Repeat
from mpgraph.errors import ProtocolError, unknown
from mpgraph.network.axes import Axis, local_axes, ordered

from .context import Context
from .emitter import Emitter
from .loop import Loop, Scope, live
from .terms import Factor
from .value import Value, leaf

# Node, channel; of what holds a value for each neighbor that one; of a dictionary the name in it.
Key = tuple[str, str, str | None, str | None]
Values = dict[str, dict[str, Any]]


class Form(NamedTuple):
    """The tensor in which a channel goes from round to round."""

    axes: tuple[Axis, ...]
    local: tuple[Axis, ...]


class Rounds(Context):
    """A context whose schedule may be repeated.

    Attributes:
        values: what each channel holds at present, by node and channel.
    """

    values: Values

    def element(self, element: str | Repeat) -> None:
        """Trace one entry of the schedule."""
        raise NotImplementedError


def follow_repeat(trace: Rounds, repeat: Repeat) -> None:
    """Trace a repetition and leave the trace with the values after it.

    Raises:
        ProtocolError: if ``until`` is a channel that no round changes.
    """
    code, before = trace.emitter, trace.values
    entry = flat(before)
    times = code.local(code.times(repeat.name, repeat.times))
    forms: dict[Key, Form] = {}
    marks = dict(trace.noise), len(trace.flat), len(trace.no_signal)
    while True:
        trace.noise.clear()
        trace.noise.update(marks[0])
        del trace.flat[marks[1] :], trace.no_signal[marks[2] :]
        scope = Scope(times, repeat.times, repeat.name)
        arguments = {key: scope.graph.placeholder(argument_name(key)) for key in forms}
        with code.inside(scope):
            starts = {key: _same(value) for key, value in entry.items()}
            for key, form in forms.items():
                factor = Factor(arguments[key], (*form.axes, *form.local))
                starts[key] = Value(code, (), form.local).like(factor)
            trace.values = nested(starts, before)
            for element in repeat.passes:
                trace.element(element)
            ends = flat(trace.values)
            changed = {key: v for key, v in ends.items() if v is not starts.get(key) and not _zeros(v, entry.get(key))}
            wider = {key: _form(key, entry[key], value, forms) for key, value in changed.items() if key in entry}
            if wider == {key: forms[key] for key in wider if key in forms}:
                loop, results = _closed(trace, repeat, scope, arguments, forms, ends, changed)
                break
        forms |= wider
    loop.outside = code.hoisted(scope)
    starting = {start: key for key, start in arguments.items()}
    loop.carried = [
        (start, tensor_of(trace, entry[starting[start]], forms[starting[start]]), end) for start, _, end in loop.carried
    ]
    node = called(code, loop)

    def outer(inner: fx.Node) -> fx.Node:
        if inner.graph is not scope.graph:
            return inner
        if inner in loop.outside:
            return loop.outside[inner]
        if inner not in loop.results:
            loop.results.append(inner)
        return trace.item(node, loop.results.index(inner), inner.meta.get("hint"))

    after = dict(entry)
    for key, value in changed.items():
        after[key] = _moved(code, results.get(key, value), outer)
    trace.values = nested(after, before)


def called(code: Emitter, loop: Loop) -> fx.Node:
    """The call of a loop, as the code around it holds it until the function is finished."""
    given = [*(one for _, one, _ in loop.carried), *dict.fromkeys(loop.outside.values())]
    node = code.graph.create_node("call_function", _loop, (loop.scope.times, *given), {})
    node.meta.update(loop=loop, origin=code.origin, work=(0.0, ()))
    return node


def _loop(*arguments: Any) -> Any:
    """Stands for a loop until the function is finished."""
    raise AssertionError


def _closed(
    trace: Rounds,
    repeat: Repeat,
    scope: Scope,
    arguments: Mapping[Key, fx.Node],
    forms: Mapping[Key, Form],
    ends: Mapping[Key, Value],
    changed: Mapping[Key, Value],
) -> tuple[Loop, dict[Key, Value]]:
    """What goes from round to round, and its values after a round."""
    code = trace.emitter
    watched = [key for key in forms if key[1] == repeat.until]
    if repeat.until is not None and not watched:
        known = dict.fromkeys(key[1] for key in forms)
        raise ProtocolError(
            f"{type(trace.graph.protocol).__name__}: {repeat!r}: "
            + unknown("channel", repeat.until, known)
            + ". It must be one that each round changes and that has a value before the first"
        )
    roots = [f.node for v in changed.values() for term in v.simple().terms for f in term.factors]
    needed, _ = live(scope.graph, [node for node in roots if node.graph is scope.graph], {})
    carried, results = [], {}
    for key, form in forms.items():
        if arguments[key] in needed or key in watched:
            end = tensor_of(trace, ends[key], form)
            carried.append((arguments[key], arguments[key], end))
            results[key] = leaf(code, end, form.axes, [axis.size or 0 for axis in form.local])
    change: fx.Node | None = None
    for start, _, end in (one for key in watched for one in carried if one[0] is arguments[key]):
        moved = code.emit(torch.amax, code.emit("abs", code.emit(torch.sub, end, start)))
        change = moved if change is None else code.emit(torch.maximum, change, moved)
    if change is not None and code.ranks is not None:
        change = code.emit(code.ranks.largest, change)
    return Loop(repeat, scope, carried, [], {}, change), results


def tensor_of(trace: Rounds, value: Value, form: Form) -> fx.Node:
    """A value in the form in which it goes from round to round."""
    if value.local != form.local:
        value = value.broadcast(form.local)
    return trace.emitter.local(trace.emitter.full(value.materialize(), (*form.axes, *form.local)))


def _form(key: Key, before: Value, after: Value, known: Mapping[Key, Form]) -> Form:
    """The axes of a channel before or after a round; its longer local shape."""
    old = known.get(key)
    axes = ordered([*before.axes, *after.axes, *(old.axes if old else ())])
    shapes = [tuple(before.shape), tuple(after.shape), *([tuple(a.size or 0 for a in old.local)] if old else [])]
    longest = max(shapes, key=lambda shape: (len(shape), shape))
    if old is not None and old.axes == axes and shapes[-1] == longest:
        return old
    return Form(axes, local_axes(longest))


def _zeros(one: Value, other: Value | None) -> bool:
    return other is not None and one.is_zero and other.is_zero


def _same(value: Value) -> Value:
    """A value with a memory of its own of whether it was written: what a body writes is not there outside."""
    copy = Value(value.emitter, value.terms, value.local)
    copy._tensor = value._tensor
    return copy


def _moved(code: Any, value: Value, outer: Any) -> Value:
    """A value of the body as one outside."""
    terms = [t._replace(factors=tuple(f._replace(node=outer(f.node)) for f in t.factors)) for t in value.simple().terms]
    moved = Value(code, terms, value.local)
    if value._tensor is not None:
        moved._tensor = value._tensor._replace(node=outer(value._tensor.node))
    return moved


def flat(values: Values) -> dict[Key, Value]:
    """All values by node, channel, neighbor and name."""
    found: dict[Key, Value] = {}
    for name, channels in values.items():
        for channel, value in channels.items():
            for part, one in value.items() if isinstance(value, Each) else [(None, value)]:
                named = one.items() if isinstance(one, dict) else [(None, one)]
                found.update({(name, channel, part, key): each for key, each in named})
    return found


def nested(values: Mapping[Key, Value], like: Values) -> Values:
    """The same by node and channel; of every node of ``like``."""
    found: Values = {name: {} for name in like}
    parts: dict[tuple[str, str], dict[str, Any]] = {}
    for (name, channel, part, key), value in values.items():
        if part is None:
            found[name][channel] = value
        elif key is None:
            parts.setdefault((name, channel), {})[part] = value
        else:
            parts.setdefault((name, channel), {}).setdefault(part, {})[key] = value
    for (name, channel), each in parts.items():
        found[name][channel] = Each(each)
    return found


def argument_name(key: Key) -> str:
    """What an argument of a body is called that holds a channel."""
    return "_".join("".join(c if c.isalnum() else "_" for c in part) for part in (key[1], key[0]))
