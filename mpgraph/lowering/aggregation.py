"""Aggregation by a module, such as those of ``torch_geometric.nn.aggr``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mpgraph.errors import ProtocolError
from mpgraph.graph.arrows import Arrow
from mpgraph.network.axes import BATCH, Axis

from .context import Context
from .value import Value


def aggregated(context: Context, arrows: Sequence[Arrow], values: Sequence[Any]) -> Value:
    """All messages of one role through a module called as ``aggregate(x, index, dim_size=n, dim=-2)``.

    It gets ``(batch, messages, k)`` with ``k`` the message's local size (1 for numbers) and for each message the flat
    index of its receiver, and returns ``(batch, n, k)``.
    """
    code, target, how = context.emitter, arrows[0].target, arrows[0].how
    if any(isinstance(v, dict) for v in values):
        raise ProtocolError(f"{arrows[0]}: a module cannot aggregate messages that are dictionaries")
    parts, indices = [], []
    for arrow, value in zip(arrows, values, strict=True):
        axes, index = _messages(arrow)
        nodes = code.full(value.materialize(), (BATCH, *axes, *value.local))
        nodes = code.emit("flatten", nodes, 1, len(axes)) if axes else code.emit("unsqueeze", nodes, 1)
        nodes = code.emit("flatten", nodes, 2) if value.local else code.emit("unsqueeze", nodes, -1)
        keep = index >= 0
        if not bool(keep.all()):
            nodes = code.emit(torch.index_select, nodes, 1, code.constant(keep.nonzero()[:, 0], "inside"))
        parts.append(nodes)
        indices.append(index[keep])
    messages = parts[0] if len(parts) == 1 else code.emit(torch.cat, parts, 1)
    agents = math.prod(target.shape)
    receivers = code.constant(torch.cat(indices), "receivers")
    call = context.function(how, f"aggregate_to_{agents}", lambda: _call(how, agents))
    result = code.emit(call, messages, receivers, work=target.axes)
    code.note(f"messages materialised for {type(how).__name__}")
    result = code.emit("reshape", result, (-1, *target.shape, *values[0].shape))
    return context.leaf(result, (BATCH, *target.axes), values[0].shape)


def _call(how: Any, agents: int) -> Any:
    def aggregate(messages: Tensor, index: Tensor) -> Tensor:
        return how(messages, index, dim_size=agents, dim=-2)

    return aggregate


def _messages(arrow: Arrow) -> tuple[tuple[Axis, ...], Tensor]:
    """Axes along which the messages of an arrow lie, and for each message its receiver (-1 for none)."""
    target = arrow.target
    if arrow.adds_up and arrow.incidence is not None:
        sites, unit = arrow.incidence.sites, arrow.incidence.unit
        plain = tuple(axis for axis in target.axes if axis not in unit)
        axes = (*plain, *arrow.aggregated, *sites)
        places: dict[Any, Tensor] = dict(
            zip(unit, torch.unravel_index(arrow.incidence.grid.clamp(min=0), [a.size or 0 for a in unit]), strict=True)
        )
        outside = arrow.incidence.grid < 0
    else:
        plain, sites, places, outside = target.axes, (), {}, torch.tensor(False)
        axes = (*plain, *arrow.aggregated)
    shape = [axis.size or 0 for axis in axes]
    grid = torch.zeros(shape, dtype=torch.long)
    for axis in target.axes:
        if axis in places:
            position = places[axis]
        else:
            position = torch.arange(axis.size or 0).reshape([-1 if a is axis else 1 for a in axes])
        grid = grid * (axis.size or 0) + position
    return axes, torch.where(outside, -1, grid).expand(shape).flatten()
