"""Recurrent torch layers as ticks: what a layer does at one time step is what the network does at one tick.

In a module with an ``nn.RNN``, ``nn.GRU`` or ``nn.LSTM``, the first dimension of a sequence is time. Everything before
such a layer, and everything after it until the last time step is chosen (``out[:, -1]`` or ``h_n[-1]``), has a value at
every tick and one dimension less. Hidden states come back through connections with a delay, zero at first.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

from mpgraph.errors import NetworkError
from mpgraph.network.activations import Activation, Identity, ReLU, Tanh
from mpgraph.network.operations import Whole
from mpgraph.network.stochastic import Dropout

from .torch_builder import Builder, Placed, Several, Sum, Term
from .torch_trace import Traced, function_name, where

TICK_BY_TICK = (
    "cannot act on a sequence that a recurrent layer reads or makes, which the network has tick by tick; choose its "
    "last tick first, [:, -1]"
)


def in_time(traced: Traced, module: nn.Module) -> tuple[int, frozenset[fx.Node]]:
    """How many ticks a network of this module has, and the values that it has at every tick.

    Raises:
        NetworkError: if values of all ticks meet others, or are what the module returns.
    """
    layers = [n for n in traced.nodes if _is_recurrent(n, module)]
    if not layers:
        return 1, frozenset()
    for node in layers:
        if len(node.all_input_nodes) > 1:
            _refuse(node, traced, "an initial state is not supported; sequences begin with zeros")
    timed: set[fx.Node] = set(layers)
    stack = [source for node in layers for source in node.all_input_nodes]
    while stack:
        node = stack.pop()
        if node in traced.shapes and node.op != "get_attr" and node not in timed:
            timed.add(node)
            stack += node.all_input_nodes
    for node in traced.nodes:
        if node.op != "get_attr" and not _leaves_time(node, module):
            sources = [n for n in node.all_input_nodes if n in traced.shapes and n.op != "get_attr"]
            if any(source in timed for source in sources):
                timed.add(node)
                if not all(source in timed for source in sources):
                    _refuse(node, traced, "joins values of every time step with values of one")
    ticks = traced.shape(layers[0].all_input_nodes[0])[0]
    for node in traced.nodes:
        if node in timed and node not in traced.several and (traced.shapes[node] or ())[:1] != (ticks,):
            _refuse(node, traced, TICK_BY_TICK)
    for node in traced.inputs:
        if node not in timed:
            _refuse(node, traced, "every input of a module with recurrent layers must be a sequence that they read")
    if traced.output in timed:
        _refuse(
            traced.output,
            traced,
            "returns values of every time step, and a network predicts at its last tick; return that, out[:, -1]",
        )
    return ticks, frozenset(timed)


def _is_recurrent(node: fx.Node, module: nn.Module) -> bool:
    return node.op == "call_module" and isinstance(module.get_submodule(str(node.target)), nn.RNNBase)


def _leaves_time(node: fx.Node, module: nn.Module) -> bool:
    """Whether a call chooses the last time step of a sequence, or the last states of a recurrent layer."""
    if function_name(node) != "getitem" or not isinstance(node.args[0], fx.Node):
        return False
    source, index = node.args[0], node.args[1]
    if _is_recurrent(source, module):
        return index in (1, -1)
    whole = slice(None)
    return isinstance(index, tuple) and index[:2] == (whole, -1) and all(i in (whole, ...) for i in index[2:])


def _refuse(node: fx.Node, traced: Traced, why: str) -> None:
    raise NetworkError(f"{where(node, traced.module)}: {why}")


# -- layers -----------------------------------------------------------------------------------------------


def recurrent(builder: Builder, node: fx.Node, layer: nn.RNNBase) -> Several:
    """Its layers, each with a delay; what it says at a tick, and the states of all layers."""
    for problem, refused in {
        "bidirectional=True needs the end of a sequence before its beginning; ticks go forward only": (
            layer.bidirectional
        ),
        "batch_first=False puts the batch second; make it with batch_first=True": not layer.batch_first,
        "proj_size is not supported; use 0, and a Linear behind it": bool(layer.proj_size),
    }.items():
        if refused:
            builder.refuse(node, problem)
    pre, states = builder.name_of(builder.operands(node)[0]), []
    shape, label = (layer.hidden_size,), builder.label(node)
    for i in range(layer.num_layers):
        if i and layer.dropout and layer.training:
            value = Sum(shape, f"{label}.dropout_l{i}", [Term(pre)])
            pre = builder.unit(value, Dropout(layer.dropout))
        states.append(CELLS[layer.mode](builder, label, f"l{i}", pre, layer))
        pre = states[-1][0]
    said = tuple(Several(parts=tuple(Placed(name, shape) for name in kind)) for kind in zip(*states, strict=True))
    return Several(parts=(Placed(pre, shape), said[0] if len(said) == 1 else Several(parts=said)))


def _weights(layer: nn.RNNBase, kind: str, which: str) -> tuple[Tensor, Tensor | None]:
    return getattr(layer, f"weight_{kind}_{which}"), getattr(layer, f"bias_{kind}_{which}", None)


def _driven(
    builder: Builder, name: str, pre: str, layer: nn.RNNBase, which: str, kind: Activation, both: bool = True
) -> str:
    """A unit of what the input says, plus both biases, or only that of the input."""
    weight, bias = _weights(layer, "ih", which)
    value = builder.weighted(name, (len(weight),), pre, "dense", weight, bias)
    _, other = _weights(layer, "hh", which)
    if both and other is not None:
        builder.add_bias(value, other, ())
    return builder.unit(value, kind)


def _back(builder: Builder, said: str, post: str, weight: Tensor) -> None:
    """What the hidden state was one tick ago, through weights."""
    builder.connect(Term(said, "dense", weight, delay=1), post)


def _past(builder: Builder, name: str, size: int) -> str:
    """A unit that will say what another said one tick ago."""
    return builder.network.unit(builder.name(name), size, bias=False)


def _elman(builder: Builder, label: str, which: str, pre: str, layer: nn.RNNBase) -> tuple[str, ...]:
    """h = f(W_ih x + b_ih + W_hh h' + b_hh), with h' one tick ago."""
    function = Tanh() if layer.mode == "RNN_TANH" else ReLU()
    unit = _driven(builder, f"{label}.{which}", pre, layer, which, function)
    _back(builder, unit, unit, _weights(layer, "hh", which)[0])
    return (unit,)


def _gru(builder: Builder, label: str, which: str, pre: str, layer: nn.RNNBase) -> tuple[str, ...]:
    weight, bias = _weights(layer, "hh", which)
    new = _driven(builder, f"{label}.input_{which}", pre, layer, which, Identity(), both=False)
    value = Sum((len(weight),), "", [], parts=(f"{label}.hidden_{which}",))
    if bias is not None:
        builder.add_bias(value, bias, ())
    hidden = builder.unit(value, Identity())
    past = _past(builder, f"{label}.past_{which}", layer.hidden_size)
    h = builder.network.operation(builder.name(f"{label}.{which}"), Whole(gru, "gru"), new, hidden, past)
    _back(builder, h, hidden, weight)
    builder.connect(Term(h, delay=1), past)
    return (h,)


def gru(new: Tensor, hidden: Tensor, past: Tensor) -> Tensor:
    """h = (1 - z) n + z h', with n = tanh(new_n + r hidden_n) and gates r, z = sigmoid(new + hidden)."""
    (new_r, new_z, new_n), (hidden_r, hidden_z, hidden_n) = new.chunk(3, -1), hidden.chunk(3, -1)
    r, z = torch.sigmoid(new_r + hidden_r), torch.sigmoid(new_z + hidden_z)
    return (1 - z) * torch.tanh(new_n + r * hidden_n) + z * past


def _lstm(builder: Builder, label: str, which: str, pre: str, layer: nn.RNNBase) -> tuple[str, ...]:
    gates = _driven(builder, f"{label}.gates_{which}", pre, layer, which, Identity())
    past = _past(builder, f"{label}.past_{which}", layer.hidden_size)
    add = builder.network.operation
    cell = add(builder.name(f"{label}.cell_{which}"), Whole(lstm_cell, "lstm_cell"), gates, past)
    h = add(builder.name(f"{label}.{which}"), Whole(lstm_output, "lstm_output"), gates, cell)
    _back(builder, h, gates, _weights(layer, "hh", which)[0])
    builder.connect(Term(cell, delay=1), past)
    return h, cell


def lstm_cell(gates: Tensor, past: Tensor) -> Tensor:
    """c = f c' + i g, with i, f = sigmoid and g = tanh of their gates."""
    i, f, g, _ = gates.chunk(4, -1)
    return torch.sigmoid(f) * past + torch.sigmoid(i) * torch.tanh(g)


def lstm_output(gates: Tensor, cell: Tensor) -> Tensor:
    """h = o tanh(c), with o = sigmoid of its gate."""
    return torch.sigmoid(gates.chunk(4, -1)[3]) * torch.tanh(cell)


CELLS: dict[str, Any] = {"RNN_TANH": _elman, "RNN_RELU": _elman, "GRU": _gru, "LSTM": _lstm}
