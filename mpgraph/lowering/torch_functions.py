"""What torch functions mean on lazy values: linear ones stay lazy, the rest is written as a call.

A function that has no line here is still right: it is mapped over agents and examples with ``torch.func.vmap``, which
is the definition of a value, only slower; ``explain()`` names it.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

from mpgraph.errors import ProtocolError
from mpgraph.network.axes import BATCH, Axis, ordered

from .calls import mapped, pointwise
from .dispatch import HANDLERS, OTHERS, handles
from .emitter import Emitter
from .value import Value, aligned, coerce, is_condition, leaf

# Functions of single numbers: applied to a whole tensor they act on each agent and example by itself.
POINTWISE = frozenset({
    "abs", "absolute", "acos", "arctan", "asin", "atan", "atan2", "celu", "ceil", "clamp", "clamp_max", "clamp_min",
    "clip", "cos", "cosh", "detach", "elu", "erf", "erfc", "exp", "exp2", "expm1", "fabs", "floor", "floor_divide",
    "fmod", "frac", "gelu", "hardshrink", "hardsigmoid", "hardtanh", "heaviside", "leaky_relu", "lerp", "log",
    "log10", "log1p", "log2", "log_sigmoid", "logaddexp", "logit", "logsigmoid", "maximum", "minimum", "mish",
    "nan_to_num", "reciprocal", "relu", "relu6", "remainder", "round", "rsqrt", "selu", "sigmoid", "sign", "silu",
    "sin", "sinc", "sinh", "softplus", "softshrink", "softsign", "sqrt", "tan", "tanh", "tanhshrink", "threshold",
    "trunc", "xlogy",
})  # fmt: skip
CONDITIONS = frozenset({
    "eq", "ne", "lt", "le", "gt", "ge", "isnan", "isfinite", "isinf", "logical_and", "logical_or", "logical_not",
    "less", "greater",
})  # fmt: skip
RANDOM = frozenset({
    "rand_like", "randn_like", "randint_like", "bernoulli", "dropout", "normal", "multinomial",
})  # fmt: skip


@handles(OTHERS)
def _any(emitter: Emitter, name: str, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A function without a line of its own, by the kind of function it is."""
    if name in RANDOM:
        raise ProtocolError(f"torch.{name} in a rule: a step is pure; use s.normal(), or s.normal() > 0 for a coin")
    kwargs = {k: float(v) if isinstance(v, torch.Tensor) and v.ndim == 0 else v for k, v in kwargs.items()}
    if name in CONDITIONS:
        return pointwise(emitter, func, args, condition=True, **kwargs)
    if name in POINTWISE:
        lazy = {k: v for k, v in kwargs.items() if isinstance(v, Value)}
        if lazy:
            raise ProtocolError(f"torch.{name} in a rule: pass {', '.join(lazy)} by position")
        return pointwise(emitter, func, args, **kwargs)
    return mapped(emitter, name, func, args, kwargs)


@handles("add", "__add__", "__radd__")
def _add(emitter: Emitter, one: Any, two: Any, *, alpha: float = 1) -> Value:
    return coerce(emitter, one) + (two if alpha == 1 else two * alpha)


@handles("sub", "subtract", "__sub__")
def _sub(emitter: Emitter, one: Any, two: Any, *, alpha: float = 1) -> Value:
    return coerce(emitter, one) - (two if alpha == 1 else two * alpha)


@handles("rsub", "__rsub__")
def _rsub(emitter: Emitter, one: Any, two: Any) -> Value:
    return coerce(emitter, two) - one


@handles("mul", "multiply", "__mul__", "__rmul__")
def _mul(emitter: Emitter, one: Any, two: Any) -> Value:
    return coerce(emitter, one) * two


@handles("neg", "negative")
def _neg(emitter: Emitter, one: Any) -> Value:
    return -coerce(emitter, one)


@handles("div", "divide", "true_divide", "__truediv__", "__rtruediv__")
def _div(emitter: Emitter, one: Any, two: Any) -> Value:
    one = coerce(emitter, one)
    if isinstance(two, (int, float)):
        if two == 0:  # infinite, or not a number, as torch has it
            return pointwise(emitter, torch.div, (one, two))
        # Divided, not multiplied by the inverse, so that a mean of equal numbers is that number to the bit.
        shares = (t._replace(coefficient=t.coefficient / two) for t in one.simple().terms)
        return Value(emitter, shares, one.local)
    two = coerce(emitter, two)
    if len(two.terms) == 1 and not two.terms[0].factors:  # a number, or one times a power of the batch size
        number = two.terms[0]
        inverse = number._replace(coefficient=1.0 / number.coefficient, power=-number.power)
        return one * Value(emitter, (inverse,), two.local)
    if not set(two.axes) - set(one.axes) and not set(one.axes) - set(two.axes):
        return pointwise(emitter, torch.div, (one, two))
    return one * pointwise(emitter, torch.reciprocal, (two,))


@handles("pow", "__pow__")
def _pow(emitter: Emitter, base: Any, exponent: Any) -> Value:
    if isinstance(exponent, int) and exponent in (1, 2, 3):  # products stay lazy; powers would not
        result = base
        for _ in range(exponent - 1):
            result = result * base
        return result
    return pointwise(emitter, torch.pow, (base, exponent))


@handles("square")
def _square(emitter: Emitter, value: Value) -> Value:
    return value * value


@handles("float", "double", "half", "to", "type", "type_as", "clone", "contiguous")
def _number(emitter: Emitter, value: Value, *_: Any, **__: Any) -> Value:
    """A program has one dtype and device; a condition becomes 0 and 1."""
    return coerce(emitter, value)


@handles("where")
def _where(emitter: Emitter, *args: Any) -> Value:
    if len(args) != 3:
        raise ProtocolError("torch.where in a rule needs a condition and two values")
    condition, *values = args
    if not (isinstance(condition, Value) and is_condition(condition)):
        values[0], condition = condition, values[0]  # the method: value.where(condition, other)
    return pointwise(emitter, torch.where, (condition, *(coerce(emitter, v) for v in values)))


@handles("matmul", "__matmul__", "__rmatmul__", "mm", "mv", "dot")
def _matmul(emitter: Emitter, one: Any, two: Any) -> Value:
    one, two = coerce(emitter, one), coerce(emitter, two)
    if not one.local or not two.local:
        raise ProtocolError(
            f"@ needs local dimensions on both sides, got shapes {tuple(one.shape)}, {tuple(two.shape)}"
        )
    left, right = one.local[-1], two.local[-2 if two.ndim > 1 else -1]
    if left.size != right.size:
        raise ProtocolError(f"@ of local shapes {tuple(one.shape)} and {tuple(two.shape)} (in {emitter.origin})")
    shared = left.fresh()
    rows = tuple(a for a in one.local if a is not left)
    columns = tuple(a.fresh() for a in two.local if a is not right)
    names = dict(zip((a for a in two.local if a is not right), columns, strict=True))
    one = Value(emitter, one.renamed({left: shared}).multipliable().terms)
    two = Value(emitter, two.renamed({right: shared, **names}).multipliable().terms)
    product = Value(emitter, (one * two).terms, (*rows, *columns, shared))
    return product.total((shared,))


@handles("linear")
def _linear(emitter: Emitter, value: Any, weight: Any, bias: Any = None) -> Value:
    result = _matmul(emitter, value, _transposed(coerce(emitter, weight)))
    return result if bias is None else result + bias


@handles("t")
def _t(emitter: Emitter, value: Value) -> Value:
    return _transposed(value)


def _transposed(value: Value) -> Value:
    return value.simple().with_local(tuple(reversed(value.local)))


def _reducer(how: str) -> Callable[..., Value]:
    def reduce(emitter: Emitter, value: Value, dim: Any = None, keepdim: bool = False) -> Value:
        if keepdim:
            raise ProtocolError(f"{how} in a rule: keepdim is not supported, index with None instead")
        dims = range(value.ndim) if dim is None else [dim] if isinstance(dim, int) else dim
        return coerce(emitter, value).total([value.local[d] for d in dims], how)

    return reduce


for _name, _how in {"sum": "sum", "mean": "mean", "amax": "max", "amin": "min"}.items():
    HANDLERS[_name] = _reducer(_how)


@handles("getitem", "__getitem__")
def _getitem(emitter: Emitter, value: Value, index: Any) -> Value:
    if isinstance(index, int):
        if not value.local or not -value.shape[0] <= index < value.shape[0]:
            raise ProtocolError(f"index {index} in a value of local shape {tuple(value.shape)} (in {emitter.origin})")
        return value.indexed(value.local[0], index)
    probe = torch.empty(tuple(value.shape), device="meta")[index]
    node = emitter.full(value.materialize(), (*value.axes, *value.local))
    parts = list(index) if isinstance(index, tuple) else [index]
    if Ellipsis in parts:
        place, named = parts.index(Ellipsis), sum(part is not None for part in parts) - 1
        parts[place : place + 1] = [slice(None)] * (len(value.shape) - named)
    if all(part is None or _is_basic(part) for part in parts):
        node = _part(emitter, node, len(value.axes), value.shape, parts)
    else:
        node = emitter.emit(operator.getitem, node, (*(slice(None) for _ in value.axes), *parts))
    node.meta["bool"] = is_condition(value)
    return leaf(emitter, node, value.axes, probe.shape)


def _is_basic(part: Any) -> bool:
    return part.step in (None, 1) if isinstance(part, slice) else type(part) is int


def _part(emitter: Emitter, node: fx.Node, dim: int, shape: Sequence[int], parts: Sequence[Any]) -> fx.Node:
    """A basic index from dimension ``dim`` on, as the calls that torch makes of it."""
    sizes = iter(shape)
    for part in parts:
        if part is None:
            node = emitter.emit("unsqueeze", node, dim)
        elif isinstance(part, int):
            node = emitter.emit("select", node, dim, part % next(sizes))
            continue
        else:
            size = next(sizes)
            start, stop, _ = part.indices(size)
            if (start, stop) != (0, size):
                node = emitter.emit("narrow", node, dim, start, max(0, stop - start))
        dim += 1
    return node


@handles("cat", "concat", "concatenate")
def _cat(emitter: Emitter, values: Any, dim: int = 0) -> Value:
    values = [coerce(emitter, v) for v in values]
    if len(values) == 1:
        return values[0]
    axes = ordered(a for v in values for a in v.axes)
    dim = dim % values[0].ndim
    size = sum(v.shape[dim] for v in values)
    nodes = [emitter.full(v.materialize(), (*axes, *v.local)) for v in values]
    shape = list(values[0].shape)
    shape[dim] = size
    node = _rejoined(emitter, nodes, axes, len(axes) + dim)
    if node is None:
        if BATCH in axes and any(len(v.axes) < len(axes) for v in values):
            emitter.note("cat materialised")
        node = emitter.emit(torch.cat, nodes, dim=len(axes) + dim, work=axes)
    return leaf(emitter, node, axes, shape)


def _rejoined(emitter: Emitter, nodes: Sequence[Any], axes: Sequence[Axis], dim: int) -> fx.Node | None:
    """Neighbouring parts of one tensor as a view of it, where ``cat`` would copy.

    In a batch of one, the mean over examples of a part is that part: a rule that averages some of its numbers over the
    batch and joins them to the others does nothing then.
    """
    if any(node.op != "call_method" for node in nodes):
        return None
    source = next((node.args[0] for node in nodes if node.target == "narrow" and node.args[1] == dim), None)
    first: Any = None
    stop: Any = None
    for node in nodes:
        part, at = node, dim
        if emitter.single and BATCH in axes[:1] and node.target == "expand":  # the only example, as all of them
            part, at = node.args[0], dim - 1
        if (part.op, part.target) != ("call_method", "narrow") or part.args[1] != at:
            return None
        start, length = part.args[2:]
        whole = part.args[0]
        if part is not node:
            if (whole.op, whole.target, whole.args[1:]) != ("call_method", "select", (0, 0)):
                return None
            whole = whole.args[0]
        if whole is not source or stop not in (None, start):
            return None
        first, stop = start if first is None else first, start + length
    return emitter.emit("narrow", source, dim, first, stop - first)


@handles("stack")
def _stack(emitter: Emitter, values: Any, dim: int = 0) -> Value:
    values = aligned(emitter, *values)
    axes = ordered(a for v in values for a in v.axes)
    nodes = [emitter.full(v.materialize(), (*axes, *v.local)) for v in values]
    shape = list(values[0].shape)
    dim = dim % (len(shape) + 1)
    shape.insert(dim, len(values))
    if len(values) == 1:
        return leaf(emitter, emitter.emit("unsqueeze", nodes[0], len(axes) + dim), axes, shape)
    return leaf(emitter, emitter.emit(torch.stack, nodes, dim=len(axes) + dim, work=axes), axes, shape)
