"""What each torch layer and function becomes in a network; the tables at the end list what is supported."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from copy import copy
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from mpgraph.errors import NetworkError
from mpgraph.network.activations import Activation, Function, ReLU, Sigmoid, Softplus, Tanh
from mpgraph.network.connections import OneToOne
from mpgraph.network.convolutions import Conv2d
from mpgraph.network.normalization import BatchNorm, FrozenBatchNorm, GroupNorm, LayerNorm
from mpgraph.network.operations import AvgPool, GlobalAvgPool, MaxPool, Operation
from mpgraph.network.stochastic import Dropout

from .torch_builder import Builder, Placed, Result, Sum, Term
from .torch_trace import function_name, in_place, where

# -- layers -----------------------------------------------------------------------------------------------


def _linear(builder: Builder, node: fx.Node, layer: nn.Linear) -> Result:
    (source,) = builder.operands(node)
    if len(builder.shape(source)) > 1:
        builder.refuse(node, f"acts on the last dimension of an example {builder.shape(source)}; flatten it first")
    pre = builder.name_of(source)
    return builder.weighted(builder.label(node), builder.shape(node), pre, "dense", layer.weight, layer.bias)


def _conv2d(builder: Builder, node: fx.Node, layer: nn.Conv2d) -> Result:
    (source,) = builder.operands(node)
    if layer.padding_mode != "zeros":
        builder.refuse(node, f"padding_mode={layer.padding_mode!r} is not supported; only 'zeros' is")
    padding = layer.padding
    if isinstance(padding, str):
        total = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
        if padding == "same" and any(n % 2 for n in total):
            builder.refuse(node, "padding='same' with an even kernel pads one side more than the other")
        padding = (total[0] // 2, total[1] // 2) if padding == "same" else (0, 0)
    kernel, stride, dilation = ((n[0], n[1]) for n in (layer.kernel_size, layer.stride, layer.dilation))
    connection = Conv2d(kernel, stride, (padding[0], padding[1]), dilation, layer.groups)
    pre = builder.name_of(source)
    return builder.weighted(builder.label(node), builder.shape(node), pre, connection, layer.weight, layer.bias)


def _batch_norm(builder: Builder, node: fx.Node, layer: nn.BatchNorm2d) -> Result:
    """By the statistics of the batch, as the layer in training mode; in eval mode by its running ones, which stay."""
    mean, var = layer.running_mean, layer.running_var
    shared = tuple(range(1, len(builder.shape(node))))
    if mean is None or var is None:
        builder.refuse(node, "has no running statistics to predict with; make it with track_running_stats=True")
    if not layer.training:
        return _normalized(builder, node, layer, FrozenBatchNorm(mean, var, layer.eps), OneToOne(shared), None)
    if not layer.track_running_stats:
        builder.refuse(node, "learns without updating its running statistics; set track_running_stats=True")
    if layer.momentum is None:
        builder.refuse(
            node,
            "momentum=None averages over all batches since the first, which is not supported; give it a momentum, such "
            "as 0.1, or call its .eval() to keep its statistics as they are",
        )
    if sum(n.op == "call_module" and n.target == node.target for n in builder.traced.nodes) > 1:
        builder.refuse(node, "is used more than once; running statistics cannot be shared")
    values = {"mean": mean, "var": var}
    result = _normalized(builder, node, layer, BatchNorm(layer.eps, layer.momentum), OneToOne(shared), values)
    unit = result.terms[0].pre if isinstance(result, Sum) else result.name
    path = f"{node.target}.".lstrip(".")
    builder.places |= {f"{path}running_mean": (unit, "mean"), f"{path}running_var": (unit, "var")}
    builder.places[f"{path}num_batches_tracked"] = ("program", "step")
    return result


def _layer_norm(builder: Builder, node: fx.Node, layer: nn.LayerNorm) -> Result:
    if tuple(layer.normalized_shape) != builder.shape(node):
        builder.refuse(
            node, f"must normalize all dimensions of an example, {builder.shape(node)}, not {layer.normalized_shape}"
        )
    return _normalized(builder, node, layer, LayerNorm(layer.eps), OneToOne(), None)


def _group_norm(builder: Builder, node: fx.Node, layer: nn.GroupNorm) -> Result:
    gain = OneToOne(tuple(range(1, len(builder.shape(node)))))
    return _normalized(builder, node, layer, GroupNorm(layer.num_groups, layer.eps), gain, None)


def _normalized(
    builder: Builder, node: fx.Node, layer: Any, kind: Activation, gain: OneToOne, values: dict[str, Tensor] | None
) -> Result:
    """A unit that normalizes, and a gain and bias for the unit that follows."""
    (source,) = builder.operands(node)
    affine = layer.weight is not None or layer.bias is not None
    value, label = builder.take(source, builder.label(node)), builder.label(node)
    # Weights that go straight into the normalization give it their name too; otherwise the affine part has it.
    alone = f"{label}.norm" if affine and not value.parts else label
    unit = builder.unit(value, kind, alone, values=values)
    if not affine:
        return Placed(unit, builder.shape(node))
    return builder.weighted(label, builder.shape(node), unit, gain, layer.weight, layer.bias)


def _pool(make: Callable[..., Operation]) -> Callable[..., Result]:
    def pool(builder: Builder, node: fx.Node, layer: Any) -> Result:
        (source,) = builder.operands(node)
        for option, allowed in {"dilation": (1, (1, 1)), "divisor_override": (None,)}.items():
            if getattr(layer, option, allowed[0]) not in allowed:
                builder.refuse(node, f"{option}={getattr(layer, option)!r} is not supported")
        if not getattr(layer, "count_include_pad", True) and layer.padding not in (0, (0, 0)):
            builder.refuse(node, "count_include_pad=False is not supported")
        if len(builder.shape(source)) != 3:
            builder.refuse(node, f"needs examples (channels, height, width), got {builder.shape(source)}")
        pooling = make(layer.kernel_size, layer.stride, layer.padding)
        if pooling.on(builder.shape(source)).size != builder.shape(node):
            builder.refuse(node, "ceil_mode=True is not supported where it adds a window that leaves the image")
        return builder.operation(node, pooling, source)

    return pool


def _adaptive_pool(builder: Builder, node: fx.Node, layer: nn.AdaptiveAvgPool2d) -> Result:
    (source,) = builder.operands(node)
    if builder.shape(node) == builder.shape(source):
        return builder.passed(node, source)
    if len(builder.shape(source)) != 3:
        builder.refuse(node, f"needs examples (channels, height, width), got {builder.shape(source)}")
    before, after = builder.shape(source)[1:], builder.shape(node)[1:]
    if after == (1, 1):
        return builder.operation(node, GlobalAvgPool(), source)
    if any(n % wanted for n, wanted in zip(before, after, strict=True)):
        builder.refuse(node, f"{before} positions do not fall into {after} windows of one size")
    return builder.operation(node, AvgPool((before[0] // after[0], before[1] // after[1])), source)


def _dropout(builder: Builder, node: fx.Node, layer: nn.Dropout) -> Result:
    """In training mode a unit with noise of its own."""
    (source,) = builder.operands(node)
    if layer.p == 0 or not layer.training:
        return builder.passed(node, source)
    if layer.p == 1:
        builder.refuse(node, "p=1 drops everything; give it a p below 1")
    return builder.activated(node, source, Dropout(layer.p))


def _without_dropout(builder: Builder, node: fx.Node, layer: Any) -> Result:
    """Dropout of whole channels, or to other values than zero: only where it does nothing."""
    if layer.p > 0 and layer.training:
        builder.refuse(
            node, f"p={layer.p} samples numbers for whole channels; use nn.Dropout, or call its .eval() to read without"
        )
    return builder.passed(node, *builder.operands(node))


def _identity(builder: Builder, node: fx.Node, layer: nn.Module | None = None) -> Result:
    return builder.passed(node, builder.operands(node)[0])


def _reshape(builder: Builder, node: fx.Node, layer: nn.Module | None = None) -> Result:
    (source,) = builder.operands(node)
    value = builder.passed(node, source)
    if isinstance(value, Sum):
        value = Placed(builder.name_of(source), builder.shape(source))
    return Placed(value.name, builder.shape(node), builder.label(node))


def _kind(make: Callable[[Any], Activation]) -> Callable[..., Result]:
    def activation(builder: Builder, node: fx.Node, layer: nn.Module | None = None) -> Result:
        return builder.activated(node, builder.operands(node)[0], make(layer))

    return activation


def _pointwise(builder: Builder, node: fx.Node, layer: nn.Module) -> Result:
    """A layer that acts on every number by itself."""
    own = copy(layer)
    own.__dict__["inplace"] = False  # kinds do not overwrite what they are given
    return builder.activated(node, builder.operands(node)[0], Function(own, name=type(layer).__name__.lower()))


def _softplus(layer: nn.Softplus) -> Activation:
    return Softplus(layer.beta) if layer.threshold == 20 else Function(layer, name="softplus")


# -- functions --------------------------------------------------------------------------------------------


def _elementwise(builder: Builder, node: fx.Node) -> Result:
    """A function of one tensor that acts on every number by itself; its other arguments are numbers."""
    operands = builder.operands(node)
    if len(operands) != 1:
        builder.refuse(node, "is supported with one tensor and numbers only")
    (source,) = operands
    call: Any = getattr(torch.Tensor, node.target) if isinstance(node.target, str) else node.target
    given: Any = (node.args, node.kwargs)
    given = fx.node.map_arg(given, lambda n: n if n is source else builder.traced.constant(node, n))
    overwrites = in_place(node, builder.traced.module)

    def function(z: Tensor) -> Tensor:
        z = z.clone() if overwrites else z
        args, kwargs = fx.node.map_arg(given, lambda n: z)
        return call(*args, **kwargs)

    return builder.activated(node, source, Function(function, name=function_name(node)))


def _add(builder: Builder, node: fx.Node) -> Result:
    operands = builder.operands(node)
    if len(operands) == 1:
        zero = 0 in node.args and function_name(node) in ("add", "iadd")  # sum([...]) begins with it
        return builder.passed(node, operands[0]) if zero else _elementwise(builder, node)
    _same_shapes(builder, node, operands)
    label = builder.label(node)
    values = [builder.take(operand, label) for operand in operands]
    if sum(value.bias is not None for value in values) > 1:  # one unit has one bias
        values[1:] = [
            Sum(value.shape, label, [Term(builder.name_of(operand))])
            for operand, value in zip(operands[1:], values[1:], strict=True)
        ]
    return _merged(label, values)


def _merged(label: str, values: Sequence[Sum]) -> Sum:
    bias = next((value.bias for value in values if value.bias is not None), None)
    parts = tuple(part for value in values for part in value.parts)
    return Sum(values[0].shape, label, [term for value in values for term in value.terms], bias, parts)


def _subtract(builder: Builder, node: fx.Node) -> Result:
    operands = builder.operands(node)
    if len(operands) == 1:
        return _elementwise(builder, node)
    _same_shapes(builder, node, operands)
    one, two = operands
    label = builder.label(node)
    negative = builder.unit(builder.take(two, f"{label}.neg"), Function(torch.neg, name="neg"))
    return _merged(label, [builder.take(one, label), Sum(builder.shape(two), label, [Term(negative)])])


def _multiply(builder: Builder, node: fx.Node) -> Result:
    operands = builder.operands(node)
    if len(operands) == 1:
        return _elementwise(builder, node)
    _same_shapes(builder, node, operands)
    return builder.operation(node, "product", *operands)


def _same_shapes(builder: Builder, node: fx.Node, operands: list[fx.Node]) -> None:
    shapes = [builder.shape(operand) for operand in operands]
    if len(set(shapes)) > 1:
        builder.refuse(node, f"needs operands of one shape, got {' and '.join(map(str, shapes))}")
    if node.kwargs.get("alpha", 1) != 1:
        builder.refuse(node, "alpha is not supported")


def _concatenate(builder: Builder, node: fx.Node) -> Result:
    operands = builder.operands(node)
    given = builder.arguments(node, "dim")
    if node.kwargs.get("axis", given.get("dim", 0)) not in (1, -len(builder.shape(node))):
        builder.refuse(node, "joins along dimension 1 only, the first of an example")
    return builder.operation(node, "concat", *operands)


def _mean(builder: Builder, node: fx.Node) -> Result:
    (source,) = builder.operands(node)
    given = builder.arguments(node, "dim", "keepdim", "dtype")
    dims = given.get("dim", ())
    if len(builder.shape(source)) != 3 or {d % 4 for d in (dims if isinstance(dims, Sequence) else (dims,))} != {2, 3}:
        builder.refuse(node, "is supported over the positions of an image only, dim=(2, 3)")
    return builder.operation(node, GlobalAvgPool(), source)


def _functional(layer: Callable[..., nn.Module], *names: str) -> Callable[[Builder, fx.Node], Result]:
    """A function that does what a layer of these arguments does."""

    def call(builder: Builder, node: fx.Node) -> Result:
        made = layer(**builder.arguments(node, *names))
        return _layer(made)(builder, node, made)  # type: ignore[misc]

    return call


def _dropping(kind: Callable[[float], nn.Module]) -> Callable[..., nn.Module]:
    def layer(p: float = 0.5, training: bool = True, inplace: bool = False) -> nn.Module:
        return kind(p).train(training)

    return layer


# -- tables -----------------------------------------------------------------------------------------------

POINTWISE = (
    nn.CELU, nn.ELU, nn.GELU, nn.Hardshrink, nn.Hardsigmoid, nn.Hardswish, nn.Hardtanh, nn.LeakyReLU, nn.LogSigmoid,
    nn.Mish, nn.ReLU6, nn.SELU, nn.SiLU, nn.Softshrink, nn.Softsign, nn.Tanhshrink, nn.Threshold,
)  # fmt: skip

LAYERS: dict[type[nn.Module], Callable[..., Result]] = {
    nn.Linear: _linear,
    nn.Conv2d: _conv2d,
    nn.BatchNorm1d: _batch_norm,
    nn.BatchNorm2d: _batch_norm,
    nn.GroupNorm: _group_norm,
    nn.LayerNorm: _layer_norm,
    nn.MaxPool2d: _pool(MaxPool),
    nn.AvgPool2d: _pool(AvgPool),
    nn.AdaptiveAvgPool2d: _adaptive_pool,
    nn.Flatten: _reshape,
    nn.Unflatten: _reshape,
    nn.Identity: _identity,
    nn.Dropout: _dropout,
    **dict.fromkeys((nn.Dropout1d, nn.Dropout2d, nn.AlphaDropout), _without_dropout),
    nn.Tanh: _kind(lambda layer: Tanh()),
    nn.Sigmoid: _kind(lambda layer: Sigmoid()),
    nn.ReLU: _kind(lambda layer: ReLU()),
    nn.Softplus: _kind(_softplus),
    **dict.fromkeys(POINTWISE, _pointwise),
}

ELEMENTWISE = (
    "abs", "celu", "clamp", "clip", "cos", "div", "elu", "erf", "exp", "expm1", "gelu", "hardsigmoid", "hardswish",
    "hardtanh", "itruediv", "leaky_relu", "log", "log1p", "logsigmoid", "mish", "neg", "pow", "reciprocal", "relu6",
    "rsqrt", "selu", "silu", "sin", "softsign", "sqrt", "square", "tanhshrink", "truediv",
)  # fmt: skip

FUNCTIONS: dict[str, Callable[[Builder, fx.Node], Result]] = {
    **dict.fromkeys(ELEMENTWISE, _elementwise),
    **dict.fromkeys(("add", "iadd"), _add),
    **dict.fromkeys(("sub", "isub", "subtract"), _subtract),
    **dict.fromkeys(("mul", "imul", "multiply"), _multiply),
    **dict.fromkeys(("cat", "concat", "concatenate"), _concatenate),
    **dict.fromkeys(("flatten", "reshape", "squeeze", "unflatten", "unsqueeze", "view"), _reshape),
    **dict.fromkeys(("clone", "contiguous"), _identity),
    "dropout": _functional(_dropping(nn.Dropout), "p", "training", "inplace"),
    "dropout1d": _functional(_dropping(nn.Dropout1d), "p", "training", "inplace"),
    "dropout2d": _functional(_dropping(nn.Dropout2d), "p", "training", "inplace"),
    "tanh": _kind(lambda layer: Tanh()),
    "sigmoid": _kind(lambda layer: Sigmoid()),
    "relu": _kind(lambda layer: ReLU()),
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

HOMES = (torch, functional, operator)  # where functions of these names are looked for


def _layer(module: nn.Module) -> Callable[..., Result] | None:
    """How a layer is converted; a subclass counts if it computes the same."""
    own = "forward" in vars(module)  # replaced on this instance
    kinds = [k for k in LAYERS if isinstance(module, k) and type(module).forward is k.forward]
    return LAYERS[kinds[0]] if kinds and not own else None


def convert(builder: Builder, node: fx.Node) -> Result:
    """Add a call that :func:`check` allows."""
    if node.op != "call_module":
        return FUNCTIONS[function_name(node)](builder, node)
    layer = builder.module.get_submodule(str(node.target))
    return _layer(layer)(builder, node, layer)  # type: ignore[misc]


def is_layer(module: nn.Module) -> bool:
    """Whether a module is converted as a whole."""
    return _layer(module) is not None


def check(node: fx.Node, root: nn.Module) -> None:
    """Refuse a call that cannot be converted.

    Raises:
        NetworkError: naming it, and what is supported.
    """
    if node.op == "get_attr":
        raise NetworkError(f"{where(node, root)}: a parameter or tensor used directly; only layers may hold weights")
    if node.op == "call_module":
        layer = root.get_submodule(str(node.target))
        if not is_layer(layer):
            names = _listed(kind.__name__ for kind in LAYERS)
            hint = _hint(type(layer).__name__)
            raise NetworkError(f"{where(node, root)}: not supported{hint}; supported are {names}")
    if node.op not in ("call_function", "call_method"):
        return
    target, name = node.target, function_name(node)
    known = node.op == "call_method" or any(getattr(home, target.__name__, None) is target for home in HOMES)  # type: ignore[union-attr]
    if not known or name not in FUNCTIONS:
        raise NetworkError(f"{where(node, root)}: not supported{_hint(name)}; supported are {_listed(FUNCTIONS)}")


def _hint(name: str) -> str:
    return " (leave it out: losses take what comes before it)" if "softmax" in name.lower() else ""


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))
