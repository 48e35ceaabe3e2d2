"""What each torch layer becomes in a network; the table at the end lists what is supported."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from typing import Any

from torch import Tensor, fx, nn

from mpgraph.network import convolutions
from mpgraph.network.activations import Activation, Function, ReLU, Sigmoid, Softmax, Softplus, Tanh
from mpgraph.network.connections import Dense, Embedding, OneToOne
from mpgraph.network.normalization import BatchNorm, FrozenBatchNorm, GroupNorm, LayerNorm
from mpgraph.network.operations import AvgPool, GlobalAvgPool, MaxPool, OneHot, Operation, Whole
from mpgraph.network.stochastic import Dropout

from .torch_builder import Builder, Placed, Result, Sum, Term, Value
from .torch_recurrent import TICK_BY_TICK, recurrent

# -- layers -----------------------------------------------------------------------------------------------


def _linear(builder: Builder, node: fx.Node, layer: nn.Linear) -> Result:
    (source,) = builder.operands(node)
    return linear(builder, node, source, builder.label(node), layer.weight, layer.bias)


def linear(builder: Builder, node: fx.Node, source: fx.Node, label: str, weight: Tensor, bias: Tensor | None) -> Result:
    """Weights from all numbers to all, or from those of a token to those of a token, the same for every token."""
    tokens = tuple(range(len(builder.shape(source)) - 1))
    dense = Dense(tokens) if tokens else "dense"
    return builder.weighted(label, builder.shape(node), builder.name_of(source), dense, weight, bias, tokens)


def _embedding(builder: Builder, node: fx.Node, layer: nn.Embedding) -> Result:
    """A one at the place of each symbol, and its row of weights."""
    (source,) = builder.operands(node)
    for option in ("max_norm", "scale_grad_by_freq"):
        if getattr(layer, option):
            builder.refuse(node, f"{option}={getattr(layer, option)} is not supported; leave it out")
    silent = layer.padding_idx
    if silent is not None and bool(layer.weight[silent].any()):
        builder.refuse(node, f"the row of padding_idx={silent} must be zero, as nn.Embedding makes it")
    label, rows = builder.label(node), OneHot(layer.num_embeddings, padding=silent)
    name = builder.network.operation(builder.name(f"{label}.symbols"), rows, builder.name_of(source))
    tokens = tuple(range(len(builder.shape(source))))
    return builder.weighted(label, builder.shape(node), name, Embedding(tokens), layer.weight, None)


def _convolution(make: type[convolutions.Convolution]) -> Callable[..., Result]:
    def convolution(builder: Builder, node: fx.Node, layer: Any) -> Result:
        source = builder.operands(node)[0]
        if layer.padding_mode != "zeros":
            builder.refuse(node, f"padding_mode={layer.padding_mode!r} is not supported; only 'zeros' is")
        padding = layer.padding
        if isinstance(padding, str):
            total = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
            if padding == "same" and any(n % 2 for n in total):
                builder.refuse(node, "padding='same' with an even kernel pads one side more than the other")
            padding = tuple(n // 2 if padding == "same" else 0 for n in total)
        connection = make(layer.kernel_size, layer.stride, padding, layer.dilation, layer.groups)
        pre = builder.name_of(source)
        return builder.weighted(builder.label(node), builder.shape(node), pre, connection, layer.weight, layer.bias)

    return convolution


def _prelu(builder: Builder, node: fx.Node, layer: nn.PReLU) -> Result:
    """What is positive, plus a gain times what is negative."""
    (source,) = builder.operands(node)
    shape, label, pre = builder.shape(source), builder.label(node), builder.name_of(source)

    def part(which: str, kind: Activation) -> str:
        return builder.unit(Sum(shape, f"{label}.{which}", [Term(pre)]), kind)

    positive, negative = part("positive", ReLU()), part("negative", Function(_below, name="negative_part"))
    gain = OneToOne(tuple(range(layer.num_parameters > 1, len(shape))))
    return Sum(shape, label, [Term(positive), Term(negative, gain, layer.weight)], parts=(label,))


def _below(z: Tensor) -> Tensor:
    """min(z, 0)."""
    return z.clamp(max=0.0)


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
    """Over all numbers of an example, or over those of a token, with a gain and bias that all tokens share."""
    tokens = len(builder.shape(node)) - len(layer.normalized_shape)
    if tokens < 0:
        builder.refuse(node, TICK_BY_TICK)
    kind = LayerNorm(layer.eps, len(layer.normalized_shape)) if tokens else LayerNorm(layer.eps)
    return _normalized(builder, node, layer, kind, OneToOne(tuple(range(tokens))), None)


def _group_norm(builder: Builder, node: fx.Node, layer: nn.GroupNorm) -> Result:
    gain = OneToOne(tuple(range(1, len(builder.shape(node)))))
    return _normalized(builder, node, layer, GroupNorm(layer.num_groups, layer.eps), gain, None)


def _normalized(
    builder: Builder, node: fx.Node, layer: Any, kind: Activation, gain: OneToOne, values: dict[str, Tensor] | None
) -> Value:
    """A unit that normalizes, and a gain and bias for the unit that follows."""
    (source,) = builder.operands(node)
    affine = layer.weight is not None or layer.bias is not None
    value, label = builder.take(source, builder.label(node)), builder.label(node)
    # Weights that go straight into the normalization give it their name too; otherwise the affine part has it.
    alone = f"{label}.norm" if affine and not value.parts else label
    unit = builder.unit(value, kind, alone, values=values)
    if not affine:
        return Placed(unit, builder.shape(node))
    return builder.weighted(label, builder.shape(node), unit, gain, layer.weight, layer.bias, gain.shared)


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
    before, after = builder.shape(source)[1:], builder.shape(node)[1:]
    if len(before) == 2 and after == (1, 1):
        return builder.operation(node, GlobalAvgPool(), source)
    if len(before) == 2 and not any(n % wanted for n, wanted in zip(before, after, strict=True)):
        return builder.operation(node, AvgPool((before[0] // after[0], before[1] // after[1])), source)
    return _whole(builder, node, layer)


def _whole(builder: Builder, node: fx.Node, layer: nn.Module) -> Result:
    """A layer without weights that acts on a whole example."""
    own = copy(layer)
    own.__dict__["inplace"] = False
    return builder.operation(node, Whole(own, type(layer).__name__.lower()), *builder.operands(node))


def _softmax(builder: Builder, node: fx.Node, layer: nn.Softmax) -> Result:
    """A unit over the last dimension, an operation over another."""
    (source,) = builder.operands(node)
    dims = len(builder.shape(source)) + 1
    if layer.dim is None:
        builder.refuse(node, "needs a dim, such as dim=-1")
    if layer.dim % dims != dims - 1:
        return _whole(builder, node, layer)
    return builder.activated(node, source, Softmax())


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


def identity(builder: Builder, node: fx.Node, layer: nn.Module | None = None) -> Result:
    """The operand itself."""
    return builder.passed(node, builder.operands(node)[0])


def reshape(builder: Builder, node: fx.Node, layer: nn.Module | None = None) -> Result:
    """The same numbers in another shape, which is made only where it matters."""
    (source,) = builder.operands(node)
    value = builder.passed(node, source)
    if isinstance(value, Sum):
        value = Placed(builder.name_of(source), builder.shape(source))
    return Placed(value.name, builder.shape(node), builder.label(node))


def kind(make: Callable[[Any], Activation]) -> Callable[..., Result]:
    """A unit with an activation."""

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


# -- table ------------------------------------------------------------------------------------------------

POINTWISE = (
    nn.CELU, nn.ELU, nn.GELU, nn.Hardshrink, nn.Hardsigmoid, nn.Hardswish, nn.Hardtanh, nn.LeakyReLU, nn.LogSigmoid,
    nn.Mish, nn.ReLU6, nn.SELU, nn.SiLU, nn.Softshrink, nn.Softsign, nn.Tanhshrink, nn.Threshold,
)  # fmt: skip

WHOLE = (
    nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool3d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AvgPool1d, nn.AvgPool3d,
    nn.ConstantPad1d, nn.ConstantPad2d, nn.GLU, nn.LogSoftmax, nn.MaxPool1d, nn.MaxPool3d, nn.PixelShuffle,
    nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReplicationPad1d, nn.ReplicationPad2d, nn.Upsample, nn.ZeroPad1d,
    nn.ZeroPad2d,
)  # fmt: skip

LAYERS: dict[type[nn.Module], Callable[..., Result]] = {
    nn.Linear: _linear,
    nn.Embedding: _embedding,
    nn.Conv1d: _convolution(convolutions.Conv1d),
    nn.Conv2d: _convolution(convolutions.Conv2d),
    nn.Conv3d: _convolution(convolutions.Conv3d),
    nn.ConvTranspose1d: _convolution(convolutions.ConvTranspose1d),
    nn.ConvTranspose2d: _convolution(convolutions.ConvTranspose2d),
    nn.ConvTranspose3d: _convolution(convolutions.ConvTranspose3d),
    **dict.fromkeys((nn.RNN, nn.GRU, nn.LSTM), recurrent),
    **dict.fromkeys((nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d), _batch_norm),
    nn.GroupNorm: _group_norm,
    nn.LayerNorm: _layer_norm,
    nn.MaxPool2d: _pool(MaxPool),
    nn.AvgPool2d: _pool(AvgPool),
    nn.AdaptiveAvgPool2d: _adaptive_pool,
    **dict.fromkeys(WHOLE, _whole),
    **dict.fromkeys((nn.Flatten, nn.Unflatten), reshape),
    nn.Identity: identity,
    nn.Dropout: _dropout,
    **dict.fromkeys((nn.Dropout1d, nn.Dropout2d, nn.AlphaDropout), _without_dropout),
    nn.Tanh: kind(lambda layer: Tanh()),
    nn.Sigmoid: kind(lambda layer: Sigmoid()),
    nn.ReLU: kind(lambda layer: ReLU()),
    nn.PReLU: _prelu,
    nn.Softmax: _softmax,
    nn.Softplus: kind(_softplus),
    **dict.fromkeys(POINTWISE, _pointwise),
}

AT_EACH_TICK = {
    nn.Linear, nn.Embedding, nn.RNN, nn.GRU, nn.LSTM, nn.LayerNorm, nn.Identity, nn.Dropout, nn.Tanh, nn.Sigmoid,
    nn.ReLU, nn.Softplus, *POINTWISE,
}  # fmt: skip


def kind_of(module: nn.Module) -> type[nn.Module] | None:
    """The layer of the table that a module is; a subclass counts if it computes the same."""
    own = "forward" in vars(module)  # replaced on this instance
    kinds = [k for k in LAYERS if isinstance(module, k) and type(module).forward is k.forward]
    return kinds[0] if kinds and not own else None


def convert_layer(builder: Builder, node: fx.Node, layer: nn.Module) -> Result:
    """Add a layer of the table."""
    found = kind_of(layer)
    if found is None:
        builder.refuse(node, "is not supported")
    if node in builder.timed and found not in AT_EACH_TICK:
        builder.refuse(node, TICK_BY_TICK)
    return LAYERS[found](builder, node, layer)
