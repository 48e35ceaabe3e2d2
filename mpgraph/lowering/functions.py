"""What torch functions mean on lazy values: linear ones stay lazy, the rest is written as a call.

A function that is not in this table is still right: it is mapped over agents and examples with ``torch.func.vmap``,
which is the definition of a value, only slower; ``explain()`` names it.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch

from mpgraph.errors import ProtocolError
from mpgraph.network.axes import BATCH, Axis, local_axes, ordered

from .algebra import Factor, Value
from .recorder import Recorder

# Functions of single numbers: applied to a whole tensor they act on every agent and example alone.
POINTWISE = frozenset(
    [
        "abs",
        "absolute",
        "acos",
        "arctan",
        "asin",
        "atan",
        "atan2",
        "celu",
        "ceil",
        "clamp",
        "clamp_max",
        "clamp_min",
        "clip",
        "cos",
        "cosh",
        "detach",
        "elu",
        "erf",
        "erfc",
        "exp",
        "exp2",
        "expm1",
        "fabs",
        "floor",
        "floor_divide",
        "fmod",
        "frac",
        "gelu",
        "hardshrink",
        "hardsigmoid",
        "hardtanh",
        "heaviside",
        "leaky_relu",
        "lerp",
        "log",
        "log10",
        "log1p",
        "log2",
        "log_sigmoid",
        "logaddexp",
        "logit",
        "logsigmoid",
        "maximum",
        "minimum",
        "mish",
        "nan_to_num",
        "reciprocal",
        "relu",
        "relu6",
        "remainder",
        "round",
        "rsqrt",
        "selu",
        "sigmoid",
        "sign",
        "silu",
        "sin",
        "sinc",
        "sinh",
        "softplus",
        "softshrink",
        "softsign",
        "sqrt",
        "tan",
        "tanh",
        "tanhshrink",
        "threshold",
        "trunc",
        "xlogy",
    ]
)
CONDITIONS = frozenset(
    [
        "eq",
        "ne",
        "lt",
        "le",
        "gt",
        "ge",
        "isnan",
        "isfinite",
        "isinf",
        "logical_and",
        "logical_or",
        "logical_not",
        "less",
        "greater",
    ]
)
RANDOM = frozenset(["rand_like", "randn_like", "randint_like", "bernoulli", "dropout", "normal", "multinomial"])
HANDLERS: dict[str, Callable[..., Any]] = {}


def handles(*names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register the meaning of torch functions of these names."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        HANDLERS.update(dict.fromkeys(names, function))
        return function

    return register


def dispatch(name: str, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Apply a torch function of which at least one argument is a lazy value."""
    recorder = _recorder(args, kwargs)
    if name in HANDLERS:
        return HANDLERS[name](recorder, *args, **kwargs)
    if name in RANDOM:
        raise ProtocolError(f"torch.{name} in a rule: a step is pure; use s.normal(), or s.normal() > 0 for a coin")
    kwargs = {k: float(v) if isinstance(v, torch.Tensor) and v.ndim == 0 else v for k, v in kwargs.items()}
    if name in CONDITIONS:
        return recorder.pointwise(func, args, condition=True, **kwargs)
    if name in POINTWISE:
        lazy = {k: v for k, v in kwargs.items() if isinstance(v, Value)}
        if lazy:
            raise ProtocolError(f"torch.{name} in a rule: pass {', '.join(lazy)} by position")
        return recorder.pointwise(func, args, **kwargs)
    return _mapped(recorder, name, func, args, kwargs)


def _recorder(args: Any, kwargs: dict[str, Any]) -> Recorder:
    for item in [*args, *kwargs.values()]:
        if isinstance(item, Value):
            return item.recorder
        if isinstance(item, (list, tuple)):
            found = [v for v in item if isinstance(v, Value)]
            if found:
                return found[0].recorder
    raise ProtocolError("a lazy value was used outside of its rule")


@handles("add", "__add__", "__radd__")
def _add(recorder: Recorder, one: Any, two: Any, *, alpha: float = 1) -> Value:
    return recorder.coerce(one) + (two if alpha == 1 else two * alpha)


@handles("sub", "subtract", "__sub__")
def _sub(recorder: Recorder, one: Any, two: Any, *, alpha: float = 1) -> Value:
    return recorder.coerce(one) - (two if alpha == 1 else two * alpha)


@handles("rsub", "__rsub__")
def _rsub(recorder: Recorder, one: Any, two: Any) -> Value:
    return recorder.coerce(two) - one


@handles("mul", "multiply", "__mul__", "__rmul__")
def _mul(recorder: Recorder, one: Any, two: Any) -> Value:
    return recorder.coerce(one) * two


@handles("neg", "negative")
def _neg(recorder: Recorder, one: Any) -> Value:
    return -recorder.coerce(one)


@handles("div", "divide", "true_divide", "__truediv__", "__rtruediv__")
def _div(recorder: Recorder, one: Any, two: Any) -> Value:
    if isinstance(two, (int, float)):
        return recorder.coerce(one) * (1.0 / two)
    one, two = recorder.coerce(one), recorder.coerce(two)
    if len(two.terms) == 1 and not two.terms[0].factors:  # a number, or one times a power of the batch size
        number = two.terms[0]
        inverse = number._replace(coefficient=1.0 / number.coefficient, power=-number.power)
        return one * Value(recorder, (inverse,), two.local)
    if not set(two.axes) - set(one.axes) and not set(one.axes) - set(two.axes):
        return recorder.pointwise(torch.div, (one, two))
    return one * recorder.pointwise(torch.reciprocal, (two,))


@handles("pow", "__pow__")
def _pow(recorder: Recorder, base: Any, exponent: Any) -> Value:
    if isinstance(exponent, int) and exponent in (1, 2, 3):  # products stay lazy; powers would not
        result = base
        for _ in range(exponent - 1):
            result = result * base
        return result
    return recorder.pointwise(torch.pow, (base, exponent))


@handles("square")
def _square(recorder: Recorder, value: Value) -> Value:
    return value * value


@handles("float", "double", "half", "to", "type", "type_as", "clone", "contiguous")
def _number(recorder: Recorder, value: Value, *_: Any, **__: Any) -> Value:
    """A program has one dtype and device; a condition becomes 0 and 1."""
    return recorder.coerce(value)


@handles("where")
def _where(recorder: Recorder, *args: Any) -> Value:
    if len(args) != 3:
        raise ProtocolError("torch.where in a rule needs a condition and two values")
    condition, *values = args
    if not (isinstance(condition, Value) and recorder.is_condition(condition)):
        values[0], condition = condition, values[0]  # the method: value.where(condition, other)
    return recorder.pointwise(torch.where, (condition, *map(recorder.coerce, values)))


@handles("matmul", "__matmul__", "__rmatmul__", "mm", "mv", "dot")
def _matmul(recorder: Recorder, one: Any, two: Any) -> Value:
    one, two = recorder.coerce(one), recorder.coerce(two)
    if not one.local or not two.local:
        raise ProtocolError(
            f"@ needs local dimensions on both sides, got shapes {tuple(one.shape)}, {tuple(two.shape)}"
        )
    left, right = one.local[-1], two.local[-2 if two.ndim > 1 else -1]
    if left.size != right.size:
        raise ProtocolError(f"@ of local shapes {tuple(one.shape)} and {tuple(two.shape)} (in {recorder.origin})")
    shared = left.fresh()
    rows = tuple(a for a in one.local if a is not left)
    columns = tuple(a.fresh() for a in two.local if a is not right)
    names = dict(zip((a for a in two.local if a is not right), columns, strict=True))
    one = Value(recorder, one.renamed({left: shared})._multipliable().terms)
    two = Value(recorder, two.renamed({right: shared, **names})._multipliable().terms)
    product = Value(recorder, (one * two).terms, (*rows, *columns, shared))
    return product.total((shared,))


@handles("linear")
def _linear(recorder: Recorder, value: Any, weight: Any, bias: Any = None) -> Value:
    result = _matmul(recorder, value, _transposed(recorder.coerce(weight)))
    return result if bias is None else result + bias


@handles("t")
def _t(recorder: Recorder, value: Value) -> Value:
    return _transposed(value)


def _transposed(value: Value) -> Value:
    result = Value(value.recorder, value.simple().terms, tuple(reversed(value.local)))
    result._settled = value._settled
    return result


def _reducer(how: str) -> Callable[..., Value]:
    def reduce(recorder: Recorder, value: Value, dim: Any = None, keepdim: bool = False) -> Value:
        if keepdim:
            raise ProtocolError(f"{how} in a rule: keepdim is not supported, index with None instead")
        dims = range(value.ndim) if dim is None else [dim] if isinstance(dim, int) else dim
        return value.total([value.local[d] for d in dims], how)

    return reduce


for _name, _how in {"sum": "sum", "mean": "mean", "amax": "max", "amin": "min"}.items():
    HANDLERS[_name] = _reducer(_how)


@handles("getitem", "__getitem__")
def _getitem(recorder: Recorder, value: Value, index: Any) -> Value:
    if isinstance(index, int):
        if not value.local or not -value.shape[0] <= index < value.shape[0]:
            raise ProtocolError(f"index {index} in a value of local shape {tuple(value.shape)} (in {recorder.origin})")
        return recorder.indexed(value, value.local[0], index)
    probe = torch.empty(tuple(value.shape), device="meta")[index]
    factor_axes = (*value.axes, *value.local)
    node = recorder.full(value, factor_axes)
    full = (*(slice(None) for _ in value.axes), *(index if isinstance(index, tuple) else (index,)))
    node = recorder.emit(operator.getitem, node, full)
    return _fresh(recorder, node, value.axes, probe.shape)


@handles("cat", "concat", "concatenate")
def _cat(recorder: Recorder, values: Any, dim: int = 0) -> Value:
    values = [recorder.coerce(v) for v in values]
    axes = ordered(a for v in values for a in v.axes)
    dim = dim % values[0].ndim
    size = sum(v.shape[dim] for v in values)
    nodes = [recorder.full(v, (*axes, *v.local)) for v in values]
    if BATCH in axes and any(len(v.axes) < len(axes) for v in values):
        recorder.note("cat materialised")
    shape = list(values[0].shape)
    shape[dim] = size
    return _fresh(recorder, recorder.emit(torch.cat, nodes, dim=len(axes) + dim, work=axes), axes, shape)


@handles("stack")
def _stack(recorder: Recorder, values: Any, dim: int = 0) -> Value:
    values = recorder.aligned(*values)
    axes = ordered(a for v in values for a in v.axes)
    nodes = [recorder.full(v, (*axes, *v.local)) for v in values]
    shape = list(values[0].shape)
    dim = dim % (len(shape) + 1)
    shape.insert(dim, len(values))
    return _fresh(recorder, recorder.emit(torch.stack, nodes, dim=len(axes) + dim, work=axes), axes, shape)


def _fresh(recorder: Recorder, node: Any, axes: tuple[Axis, ...], shape: Any) -> Value:
    """A new tensor laid out as named axes, then local axes of the given shape."""
    local = local_axes(shape)
    return Value(recorder, (), local).like(Factor(node, (*axes, *local)))


def _mapped(recorder: Recorder, name: str, func: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> Any:
    """Any function of local tensors: vmapped over every named axis."""
    nested = [v for a in (*args, *kwargs.values()) if isinstance(a, (list, tuple)) for v in a]
    if any(isinstance(v, Value) for v in (*kwargs.values(), *nested)):
        raise ProtocolError(f"torch function {name!r} in a rule: pass the agent's values by position, one by one")
    values = [recorder.coerce(a) for a in args if isinstance(a, Value)]
    axes = ordered(a for v in values for a in v.axes)
    slots = [isinstance(a, Value) for a in args]

    def local(*tensors: torch.Tensor) -> Any:
        given = iter(tensors)
        return func(*(next(given) if slot else a for slot, a in zip(slots, args, strict=True)), **kwargs)

    try:
        probe = local(*(torch.ones(tuple(v.shape), dtype=recorder.dtype) for v in values))
    except Exception as error:
        raise ProtocolError(f"torch function {name!r} failed on the agent's local values: {error}") from error
    mapped: Callable[..., Any] = local
    factors = [v.settle() for v in values]
    for axis in reversed(axes):
        mapped = torch.func.vmap(mapped, in_dims=tuple(0 if axis in f.axes else None for f in factors))
    mapped.__name__ = mapped.__qualname__ = f"each_{name}"
    mapped.__module__ = "mpgraph"
    if len(axes) > max(len(v.axes) for v in values):
        recorder.note(f"{name} materialised")
    else:
        recorder.note(f"{name} mapped over agents")
    orders = [
        tuple(a for a in (*axes, *v.local) if a in f.axes or a.is_local) for v, f in zip(values, factors, strict=True)
    ]
    nodes = [recorder.full(v, order) for v, order in zip(values, orders, strict=True)]
    result = recorder.emit(mapped, *nodes, work=axes)
    if isinstance(probe, tuple):
        parts = [recorder.emit(operator.getitem, result, i) for i in range(len(probe))]
        return tuple(_tensor(recorder, *pair, axes) for pair in zip(parts, probe, strict=True))
    return _tensor(recorder, result, probe, axes)


def _tensor(recorder: Recorder, node: Any, probe: Any, axes: tuple[Axis, ...]) -> Value:
    """A result as a value of the program's dtype; truth values stay conditions."""
    if not isinstance(probe, torch.Tensor):
        raise ProtocolError(f"a torch function in a rule returned {type(probe).__name__} (in {recorder.origin})")
    if probe.dtype == torch.bool:
        node.meta["bool"] = True
    elif probe.dtype != recorder.dtype:
        node = recorder.emit("to", node, recorder.dtype, work=axes)
    return _fresh(recorder, node, axes, probe.shape)
