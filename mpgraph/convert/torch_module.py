"""Networks from torch modules, and back.

:func:`from_torch` reads a module with ``torch.fx``. A weight becomes a connection, a bias the bias of a unit; what
follows a sum of messages - an activation, a normalization - is done by the same unit, if nothing else uses the sum.
The gain and bias of a normalization are a connection one to one and the bias of the unit that follows it. What acts on
whole examples without weights is an operation. Recurrent layers are ticks (:mod:`mpgraph.convert.torch_recurrent`).

Names. The input is ``x`` (with several, the arguments of ``forward``). A unit has the path of the submodule whose
weights it receives, with underscores for dots: ``layer1.conv`` is ``layer1_conv``. One that serves several is named
after all of them: ``conv1_bn1`` convolves and normalizes; gain and bias of ``bn1`` are those of the unit ``bn1``.
Where no submodule has weights, the unit or operation has the name of the activation, layer or function itself,
``layer1_add``. Entries of a Sequential get their class in front, ``linear_0``; a name in use gets a number.

Weights that a module uses several times are tied. Layers keep the mode that they are in. In training mode a batch
normalization learns by the statistics of the batch and predicts by running ones; in eval mode it learns and predicts
by the running ones, which stay as they are. Dropout in training mode is a unit with
noise (:class:`mpgraph.Dropout`); layers without effect (dropout in eval mode) vanish. Parameters that need
no gradient stay fixed under every rule.

Modules that only wrap another one (``torch.compile``, ``DataParallel``, ``DistributedDataParallel``) are read as the
one inside; :func:`to_torch` then returns that, without the wrapper. The network holds copies: changing the module
later changes nothing here.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from mpgraph.errors import NetworkError, StateError
from mpgraph.network.losses import Loss
from mpgraph.network.network import Network

from .torch_builder import Builder
from .torch_functions import check, convert, is_layer
from .torch_recurrent import in_time
from .torch_trace import trace
from .torch_wrappers import copied, usable
from .torch_written_out import written_out

if TYPE_CHECKING:
    from mpgraph.program.program import Program, State


@dataclass(frozen=True)
class Origin:
    """What a network was read from.

    Attributes:
        module: a copy of it, without wrappers.
        places: where the state keeps its parameters and buffers: node and channel by name.
        alone: whether the module is a single layer, held by another for the purpose.
    """

    module: nn.Module
    places: Mapping[str, tuple[str, str]]
    alone: bool = False


def from_torch(module: nn.Module, input_shape: Any, *, loss: str | Loss | None = None) -> Network:
    """A network that computes what a torch module does, with its weights as initial ones.

    Args:
        module: any ``torch.fx``-traceable module of the layers in :mod:`mpgraph.convert.torch_layers`, the functions in
            :mod:`mpgraph.convert.torch_functions` and the modules in :mod:`mpgraph.convert.torch_written_out`; it is
            not changed.
        input_shape: of one example, without the batch: ``(1, 8, 8)``, ``(64,)`` or ``64``; by argument of ``forward``
            if it takes several.
        loss: on the output, as in :meth:`mpgraph.Network.loss`.

    Raises:
        NetworkError: naming the submodule that cannot be traced, is not supported, or fails on inputs of this shape.
    """
    module = usable(module)
    alone = is_layer(module) or written_out(module) is not None
    held = copied(nn.Sequential(OrderedDict(y=module)) if alone else module)
    traced = trace(held, input_shape, is_layer, written_out, lambda node: check(node, held))
    ticks, timed = in_time(traced, held)
    builder = Builder(traced, held, Network(ticks), timed)
    output = builder.build(convert)
    if loss is not None:
        _no_softmax_twice(builder.network.units[output].activation.name, loss)
        builder.network.loss(output, loss)
    builder.network.module = Origin(held, builder.places, alone)
    return builder.network


def _no_softmax_twice(output: str, loss: str | Loss) -> None:
    if output in ("softmax", "log_softmax", "logsoftmax") and loss == "cross_entropy":
        raise NetworkError(
            f"the module ends in a {output}, and the loss 'cross_entropy' takes what comes before it: leave it out, or "
            "choose another loss"
        )


def to_torch(program: Program, state: State) -> nn.Module:
    """A copy of the module that a program's network was read from, with the weights of a state.

    Where that module was wrapped (``torch.compile``, ``DataParallel``) it is a copy of the one inside.

    Args:
        program: of a network made by :func:`from_torch`, with any rule.
        state: of this program.

    Raises:
        NetworkError: if the network was not read from a module.
        StateError: for a state of another program, or of a rule that keeps no weights ``w``.
    """
    origin = program.graph.network.module
    if not isinstance(origin, Origin):
        raise NetworkError("this network was not made by Network.from_torch, so there is no module to return to")
    program._layout.check(state, None)
    module = deepcopy(origin.module)
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    with torch.no_grad():
        for name, (node, channel) in origin.places.items():
            found = state.get(node, {}).get(channel)
            if found is None or found.numel() != tensors[name].numel():
                rule = type(program.protocol).__name__
                raise StateError(f"{rule} keeps no channel {channel!r} at {node!r} that could be the module's {name!r}")
            found = found.reshape(tensors[name].shape)
            tensors[name].copy_(found + tensors[name] if node == "program" else found)
    return module.get_submodule("y") if origin.alone else module
