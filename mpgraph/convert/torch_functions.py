"""What each torch function and method becomes in a network; the table at the end lists what is supported."""

from __future__ import annotations

import builtins
import math
import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from mpgraph.errors import NetworkError
from mpgraph.network.activations import Function, ReLU, Sigmoid, Tanh
from mpgraph.network.connections import OneToOne
from mpgraph.network.operations import GlobalAvgPool, Whole

from .torch_builder import Builder, Held, Placed, Result, Several, Sum, Term
from .torch_layers import LAYERS, convert_layer, identity, kind, kind_of, linear, reshape
from .torch_recurrent import TICK_BY_TICK
from .torch_trace import function_name, in_place, where
from .torch_written_out import WRITTEN_OUT


def _called(builder: Builder, node: fx.Node) -> Callable[..., Any]:
    """A call as a function of the activities that it takes, each once; numbers and buffers stay what they are."""
    sources = list(dict.fromkeys(builder.operands(node)))
    target, overwrites = node.target, in_place(node, builder.traced.module)
    held = {n: builder.tensor(n) for n in builder.held(node)}
    for tensor in held.values():
        if isinstance(tensor, nn.Parameter):
            builder.refuse(
                node,
                "takes a parameter directly, which only F.linear, sums and products with an activity do; hold it in a "
                "layer, or register it as a buffer if it is not trained",
            )

    def constant(n: fx.Node) -> Any:
        return n if n in sources or n in held else builder.traced.constant(node, n)

    given: Any = fx.node.map_arg((node.args, node.kwargs), constant)

    def function(*z: Tensor) -> Any:
        like, values = z[0], dict(zip(sources, (t.clone() for t in z) if overwrites else z, strict=True))

        def value(n: fx.Node) -> Tensor:
            if n in values:
                return values[n]
            fixed = held[n].to(like.device)
            return fixed.to(like.dtype) if fixed.is_floating_point() else fixed

        args, kwargs = fx.node.map_arg(given, value)
        call: Any = getattr(args[0], target) if isinstance(target, str) else target
        return call(*(args[1:] if isinstance(target, str) else args), **kwargs)

    return function


def _whole(builder: Builder, node: fx.Node) -> Result:
    """Any function of activities: one operation, or for several results one for each that is used."""
    function, sources = _called(builder, node), tuple(dict.fromkeys(builder.operands(node)))
    if node in builder.traced.several:
        return Several(function, sources)
    builder.shape(node)  # refuses what does not begin with the batch
    return builder.operation(node, Whole(function, function_name(node)), *sources)


def _getitem(builder: Builder, node: fx.Node) -> Result:
    """One of several results; the last tick of a sequence; a part of a tensor."""
    source: Any = node.args[0]
    value, index = builder.result(source), node.args[1]
    if isinstance(value, Several):
        if not value.parts:
            made = value.function
            assert made is not None

            def part(*z: Tensor) -> Any:
                return made(*z)[index]

            return builder.operation(node, Whole(part, function_name(source)), *value.operands, called=source)
        rest: Sequence[Any] = ()
        if isinstance(index, tuple):
            index, *rest = index
        if not isinstance(index, int) or any(i not in (slice(None), ...) for i in rest):
            builder.refuse(node, f"chooses one of {len(value.parts)} by its number, such as [-1], not {node.args[1]}")
        return value.parts[index]
    if source in builder.timed:  # nothing else leaves time
        return Placed(builder.name_of(source), builder.shape(node))
    return _whole(builder, node)


def _squeeze(builder: Builder, node: fx.Node) -> Result:
    """Also the only layer of the states of a recurrent one."""
    source: Any = node.args[0]
    value = builder.result(source)
    if isinstance(value, Several) and len(value.parts) == 1 and builder.arguments(node, "dim").get("dim", 0) == 0:
        return value.parts[0]
    return reshape(builder, node)


def _linear(builder: Builder, node: fx.Node) -> Result:
    """By the weights that a module holds itself."""
    given: dict[str, Any] = dict(zip(("input", "weight", "bias"), node.args, strict=False)) | node.kwargs
    sources = builder.operands(node)
    found = {name: builder.result(given[name]) for name in ("weight", "bias") if isinstance(given.get(name), fx.Node)}
    weight, bias = found.get("weight"), found.get("bias")
    if len(sources) != 1 or not isinstance(weight, Held) or not isinstance(bias, Held | None):
        builder.refuse(node, "needs one activity, and parameters of the module as weight and bias")
    label = weight.path.removesuffix("weight").rstrip("._") or builder.label(node)
    return linear(builder, node, sources[0], label, weight.tensor, None if bias is None else bias.tensor)


def _own(builder: Builder, node: fx.Node) -> Held | None:
    """The parameter that stands beside one activity, if there is one."""
    held = [builder.result(n) for n in builder.held(node)]
    if len(held) == len(builder.operands(node)) == 1 and isinstance(held[0], Held):
        return held[0] if isinstance(held[0].tensor, nn.Parameter) else None
    return None


def _shared(builder: Builder, node: fx.Node, own: Held) -> tuple[int, ...]:
    """Dimensions of an example along which a parameter is one, by the rules of broadcasting."""
    shape, given = builder.shape(node), tuple(own.tensor.shape)
    (source,) = builder.operands(node)
    if len(given) == len(shape) + 1 and given[0] == 1:  # the batch
        given = given[1:]
    sizes = (1,) * (len(shape) - len(given)) + given
    if builder.shape(source) != shape or len(sizes) != len(shape):
        builder.refuse(node, f"{own.path!r} of shape {given} does not fit values of shape {builder.shape(source)}")
    return tuple(dim for dim, n in enumerate(sizes) if n == 1 != shape[dim])


def _elementwise(builder: Builder, node: fx.Node) -> Result:
    """A function of one tensor that acts on every number by itself; its other arguments are numbers."""
    operands = builder.operands(node)
    if len(operands) != 1 or builder.held(node):
        return _whole(builder, node)
    (source,) = operands
    return builder.activated(node, source, Function(_called(builder, node), name=function_name(node)))


def _add(builder: Builder, node: fx.Node) -> Result:
    """A sum of messages; a parameter of the module is a bias."""
    operands = builder.operands(node)
    own = _own(builder, node)
    if own is not None and _plain(builder, node):
        label = builder.label(node)
        value = builder.take(operands[0], label)
        value = Sum(value.shape, label, list(value.terms), value.bias, value.bias_shared, (*value.parts, own.path))
        builder.add_bias(value, own.tensor, _shared(builder, node, own))
        return value
    if builder.held(node):
        return _whole(builder, node)
    if len(operands) == 1:
        zero = 0 in node.args and function_name(node) in ("add", "iadd")  # sum([...]) begins with it
        return builder.passed(node, operands[0]) if zero else _elementwise(builder, node)
    if not _plain(builder, node):
        return _whole(builder, node)
    label = builder.label(node)
    values = [builder.take(operand, label) for operand in operands]
    if sum(value.bias is not None for value in values) > 1:  # one unit has one bias
        values[1:] = [
            Sum(value.shape, label, [Term(builder.name_of(operand))])
            for operand, value in zip(operands[1:], values[1:], strict=True)
        ]
    return _merged(label, values)


def _plain(builder: Builder, node: fx.Node) -> bool:
    """Whether a call of two operands neither broadcasts an activity nor scales one."""
    return {builder.shape(n) for n in builder.operands(node)} == {builder.shape(node)} and "alpha" not in node.kwargs


def _merged(label: str, values: Sequence[Sum]) -> Sum:
    biased = next((value for value in values if value.bias is not None), values[0])
    parts = tuple(part for value in values for part in value.parts)
    terms = [term for value in values for term in value.terms]
    return Sum(values[0].shape, label, terms, biased.bias, biased.bias_shared, parts)


def _subtract(builder: Builder, node: fx.Node) -> Result:
    operands = builder.operands(node)
    if len(operands) == 1 or not _plain(builder, node):
        return _elementwise(builder, node)
    one, two = operands
    label = builder.label(node)
    negative = builder.unit(builder.take(two, f"{label}.neg"), Function(torch.neg, name="neg"))
    return _merged(label, [builder.take(one, label), Sum(builder.shape(two), label, [Term(negative)])])


def _multiply(builder: Builder, node: fx.Node) -> Result:
    """A gate; a parameter of the module is a gain."""
    operands, own = builder.operands(node), _own(builder, node)
    if own is not None:
        gain, pre = OneToOne(_shared(builder, node, own)), builder.name_of(operands[0])
        return builder.weighted(own.path, builder.shape(node), pre, gain, own.tensor, None)
    if len(operands) == 1 or builder.held(node) or not _plain(builder, node):
        return _elementwise(builder, node)
    return builder.operation(node, "product", *operands)


def _concatenate(builder: Builder, node: fx.Node) -> Result:
    operands = builder.operands(node)
    given = builder.arguments(node, "dim")
    if builder.held(node) or node.kwargs.get("axis", given.get("dim", 0)) not in (1, -len(builder.shape(node))):
        return _whole(builder, node)
    return builder.operation(node, "concat", *operands)


def _mean(builder: Builder, node: fx.Node) -> Result:
    (source,) = builder.operands(node)
    given = builder.arguments(node, "dim", "keepdim", "dtype")
    dims = given.get("dim", ())
    image = len(builder.shape(source)) == 3 and math.prod(builder.shape(node)) == builder.shape(source)[0]
    if image and {d % 4 for d in (dims if isinstance(dims, Sequence) else (dims,))} == {2, 3}:
        return builder.operation(node, GlobalAvgPool(), source)
    return _whole(builder, node)


def _attribute(builder: Builder, node: fx.Node) -> Result:
    """A tensor transposed."""
    if node.args[1] not in ("mT", "mH"):
        builder.refuse(node, f"the attribute {node.args[1]!r} is not supported; use permute or transpose")
    return _whole(builder, node)


def _functional(layer: Callable[..., nn.Module], *names: str) -> Callable[[Builder, fx.Node], Result]:
    """A function that does what a layer of these arguments does."""

    def call(builder: Builder, node: fx.Node) -> Result:
        made = layer(**builder.arguments(node, *names))
        return convert_layer(builder, node, made)

    return call


def _dropping(kind: Callable[[float], nn.Module]) -> Callable[..., nn.Module]:
    def layer(p: float = 0.5, training: bool = True, inplace: bool = False) -> nn.Module:
        return kind(p).train(training)

    return layer


# -- tables -----------------------------------------------------------------------------------------------

ELEMENTWISE = (
    "abs", "celu", "clamp", "clip", "cos", "div", "elu", "erf", "exp", "expm1", "gelu", "hardsigmoid", "hardswish",
    "hardtanh", "itruediv", "leaky_relu", "log", "log1p", "logsigmoid", "mish", "neg", "pow", "reciprocal", "relu6",
    "rsqrt", "selu", "silu", "sin", "softsign", "sqrt", "square", "tanhshrink", "truediv",
)  # fmt: skip

WHOLE = (
    "adaptive_avg_pool1d", "adaptive_max_pool1d", "adaptive_max_pool2d", "amax", "amin", "avg_pool1d", "bmm", "chunk",
    "cumsum", "einsum", "expand", "flip", "glu", "interpolate", "log_softmax", "logsumexp", "masked_fill", "matmul",
    "max_pool1d", "maximum", "minimum", "movedim", "narrow", "normalize", "pad", "permute", "pixel_shuffle", "prod",
    "roll", "scaled_dot_product_attention", "select", "split", "stack", "std", "sum", "swapaxes", "tensor_split",
    "tile", "transpose", "tril", "triu", "unbind", "var", "where",
)  # fmt: skip

FUNCTIONS: dict[str, Callable[[Builder, fx.Node], Result]] = {
    **dict.fromkeys(ELEMENTWISE, _elementwise),
    **dict.fromkeys(WHOLE, _whole),
    "getitem": _getitem,
    "getattr": _attribute,
    "linear": _linear,
    "squeeze": _squeeze,
    **dict.fromkeys(("add", "iadd"), _add),
    **dict.fromkeys(("sub", "isub", "subtract"), _subtract),
    **dict.fromkeys(("mul", "imul", "multiply"), _multiply),
    **dict.fromkeys(("cat", "concat", "concatenate"), _concatenate),
    **dict.fromkeys(("flatten", "reshape", "unflatten", "unsqueeze", "view"), reshape),
    **dict.fromkeys(("clone", "contiguous"), identity),
    "dropout": _functional(_dropping(nn.Dropout), "p", "training", "inplace"),
    "dropout1d": _functional(_dropping(nn.Dropout1d), "p", "training", "inplace"),
    "dropout2d": _functional(_dropping(nn.Dropout2d), "p", "training", "inplace"),
    "tanh": kind(lambda layer: Tanh()),
    "sigmoid": kind(lambda layer: Sigmoid()),
    "relu": kind(lambda layer: ReLU()),
    "softmax": _functional(nn.Softmax, "dim"),
    "softplus": _functional(nn.Softplus, "beta", "threshold"),
    "mean": _mean,
    "max_pool2d": _functional(
        nn.MaxPool2d, "kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices"
    ),
    "avg_pool2d": _functional(
        nn.AvgPool2d, "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override"
    ),
    "adaptive_avg_pool2d": _functional(nn.AdaptiveAvgPool2d, "output_size"),
}

HOMES = (torch, functional, operator, builtins)  # where functions of these names are looked for

AT_EACH_TICK = {
    *ELEMENTWISE, "add", "clone", "contiguous", "dropout", "getitem", "iadd", "imul", "isub", "linear", "mul",
    "multiply", "relu", "sigmoid", "softplus", "sub", "subtract", "tanh",
}  # fmt: skip


def convert(builder: Builder, node: fx.Node) -> Result:
    """Add a call that :func:`check` allows."""
    if node.op == "call_module":
        return convert_layer(builder, node, builder.module.get_submodule(str(node.target)))
    name = function_name(node)
    sources = builder.operands(node)
    if name not in AT_EACH_TICK and any(n in builder.timed and n not in builder.traced.several for n in sources):
        builder.refuse(node, TICK_BY_TICK)
    return FUNCTIONS[name](builder, node)


def is_layer(module: nn.Module) -> bool:
    """Whether a module is converted as a whole."""
    return kind_of(module) is not None


def check(node: fx.Node, root: nn.Module) -> None:
    """Refuse a call that cannot be converted.

    Raises:
        NetworkError: naming it, and what is supported.
    """
    if node.op == "get_attr" and str(node.target).startswith("_tensor_constant"):
        raise NetworkError(
            f"{where(node, root)}: a tensor used directly that is made in forward or kept as a plain attribute; use "
            "self.register_buffer for what is fixed, nn.Parameter for what is trained"
        )
    if node.op == "call_module":
        layer = root.get_submodule(str(node.target))
        if not is_layer(layer):
            names = _listed(kind.__name__ for kind in (*LAYERS, *WRITTEN_OUT))
            raise NetworkError(f"{where(node, root)}: not supported; supported are {names}")
    if node.op not in ("call_function", "call_method"):
        return
    target, name = node.target, function_name(node)
    known = node.op == "call_method" or any(getattr(home, target.__name__, None) is target for home in HOMES)  # type: ignore[union-attr]
    if not known or name not in FUNCTIONS:
        raise NetworkError(f"{where(node, root)}: not supported; supported are {_listed(FUNCTIONS)}")


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))
