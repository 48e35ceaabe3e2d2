"""Three ways to call a function on lazy values: number by number, on whole tensors, or for one agent at a time."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch

from mpgraph.errors import ProtocolError
from mpgraph.network.axes import BATCH, Axis, ordered

from .emitter import Emitter
from .terms import Factor
from .value import Operand, Value, aligned, coerce, leaf


def pointwise(
    emitter: Emitter, func: Callable[..., Any], args: Sequence[Operand], condition: bool = False, **kwargs: Any
) -> Value:
    """A function of single numbers: all arguments broadcast to the union of their axes.

    ``condition`` marks a function that returns truth values. Python numbers are passed on as they are.
    """
    lazy = iter(aligned(emitter, *(a for a in args if not isinstance(a, (int, float))), conditions=True))
    values = [a if isinstance(a, (int, float)) else next(lazy) for a in args]
    factors = [v.materialize() for v in values if isinstance(v, Value)]
    axes = ordered(a for f in factors for a in f.axes)
    if BATCH in axes and len(axes) > max(len(f.axes) for f in factors):
        emitter.note(f"{getattr(func, '__name__', func)} materialised")
    operands = [emitter.arrange(v.materialize(), axes) if isinstance(v, Value) else v for v in values]
    node = emitter.emit(func, *operands, work=axes, **kwargs)
    if condition:
        node.meta["bool"] = True
    local = max((v.local for v in values if isinstance(v, Value)), key=len)
    return Value(emitter, (), local).like(Factor(node, axes))


def opaque(
    emitter: Emitter,
    func: Callable[..., Any],
    values: Sequence[Value],
    layouts: Sequence[Sequence[Axis]],
    inline: bool,
) -> Any:
    """A function of whole tensors in given layouts; ``inline`` writes its torch calls, otherwise a call of it.

    Returns the node of its result, or with ``inline`` a tuple of nodes for a function that returns several.
    """
    nodes = [
        emitter.full(coerce(emitter, value).materialize(), axes) for value, axes in zip(values, layouts, strict=True)
    ]
    work: tuple[Axis, ...] = max((tuple(axes) for axes in layouts), key=len)
    return emitter.inline(func, nodes, work) if inline else emitter.emit(func, *nodes, work=work)


def mapped(emitter: Emitter, name: str, func: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> Any:
    """Any function of local tensors: vmapped over every named axis."""
    nested = [v for a in (*args, *kwargs.values()) if isinstance(a, (list, tuple)) for v in a]
    if any(isinstance(v, Value) for v in (*kwargs.values(), *nested)):
        raise ProtocolError(f"torch function {name!r} in a rule: pass the agent's values by position, one by one")
    values = [coerce(emitter, a) for a in args if isinstance(a, Value)]
    axes = ordered(a for v in values for a in v.axes)
    slots = [isinstance(a, Value) for a in args]

    def local(*tensors: torch.Tensor) -> Any:
        given = iter(tensors)
        return func(*(next(given) if slot else a for slot, a in zip(slots, args, strict=True)), **kwargs)

    try:
        probe = local(*(torch.ones(tuple(v.shape), dtype=emitter.dtype) for v in values))
    except Exception as error:
        raise ProtocolError(f"torch function {name!r} failed on the agent's local values: {error}") from error
    call: Callable[..., Any] = local
    factors = [v.materialize() for v in values]
    for axis in reversed(axes):
        call = torch.func.vmap(call, in_dims=tuple(0 if axis in f.axes else None for f in factors))
    call.__name__ = call.__qualname__ = f"each_{name}"
    call.__module__ = "mpgraph"
    if len(axes) > max(len(v.axes) for v in values):
        emitter.note(f"{name} materialised")
    else:
        emitter.note(f"{name} mapped over agents")
    nodes = []
    for value, factor in zip(values, factors, strict=True):
        layout = tuple(a for a in (*axes, *value.local) if a in factor.axes or a.is_local)
        nodes.append(emitter.full(factor, layout))
    result = emitter.emit(call, *nodes, work=axes)
    if isinstance(probe, tuple):
        parts = [emitter.emit(operator.getitem, result, i) for i in range(len(probe))]
        return tuple(_result(emitter, *pair, axes) for pair in zip(parts, probe, strict=True))
    return _result(emitter, result, probe, axes)


def _result(emitter: Emitter, node: Any, probe: Any, axes: tuple[Axis, ...]) -> Value:
    """A result as a value of the program's dtype; truth values stay conditions."""
    if not isinstance(probe, torch.Tensor):
        raise ProtocolError(f"a torch function in a rule returned {type(probe).__name__} (in {emitter.origin})")
    if probe.dtype == torch.bool:
        node.meta["bool"] = True
    elif probe.dtype != emitter.dtype:
        node = emitter.emit("to", node, emitter.dtype, work=axes)
    return leaf(emitter, node, axes, probe.shape)
