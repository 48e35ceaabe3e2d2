"""Networks as PyTorch Geometric graphs; :mod:`mpgraph.convert.pyg_reading` leads back.

``to_pyg`` writes a ``HeteroData``: a node type for each input, unit and operation, an edge type ``(pre, connection,
post)`` for each connection. What agents keep becomes node features (a unit's bias under ``bias``) and edge features
(``w`` and whatever else the rule keeps), one row for each agent or edge; ``x`` of a node type is all its features side
by side. What else makes a network (kind, activation, shape, delay, losses, ticks) is stored under its name. The data
holds copies: changing it changes neither network nor state.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mpgraph.agents.node import AgentNode
from mpgraph.errors import NetworkError, StateError
from mpgraph.network.activations import ACTIVATIONS
from mpgraph.network.axes import BATCH, Axis
from mpgraph.network.connections import Dense, OneToOne, Sparse
from mpgraph.network.losses import LOSSES
from mpgraph.network.network import Network, Unit, Wire
from mpgraph.network.operations import OPERATIONS, Concat, Flatten, Product, Reshape

from .grouping import Select
from .pyg_reading import OPERAND

if TYPE_CHECKING:
    from mpgraph.program.program import Program


def to_pyg(program: Program, state: Mapping[str, Mapping[str, Tensor]]) -> Any:
    """The network of a program with a state, as a ``torch_geometric.data.HeteroData``.

    Args:
        program: whose network is written.
        state: from ``program.init`` or a step.

    Raises:
        NetworkError: for a convolution: its weights belong to no single edges.
        StateError: for a state of another program.
    """
    from torch_geometric.data import HeteroData

    network, data = program.graph.network, HeteroData()
    data.ticks = network.ticks
    data.losses = {name: (node.pre, _named(node.loss, LOSSES)) for name, node in network.losses.items()}
    for unit in network.units.values():
        _write_unit(program, state, unit, data[unit.name])
    for unit in network.units.values():
        for operand, edge_index in zip(unit.operands, _moves(network, unit), strict=False):
            edges = data[operand, f"{operand}->{unit.name}", unit.name]
            edges.edge_index, edges.connection = edge_index, OPERAND
    for wire in network.wires.values():
        if wire.post in network.units:
            _write_wire(program, state, wire, data[wire.pre, wire.name, wire.post])
    return data


# -- writing ----------------------------------------------------------------------------------------------


def _named(item: Any, names: Mapping[str, Any]) -> Any:
    """The registered name of a kind, operation or loss without arguments, or the object itself."""
    known = names.get(item.name)
    return item.name if known is not None and type(item) is known and repr(item) == item.name else item


def _write_unit(program: Program, state: Mapping[str, Mapping[str, Tensor]], unit: Unit, store: Any) -> None:
    store.num_nodes, store.shape = math.prod(unit.shape), list(unit.shape)
    store.kind = "input" if unit.is_input else "operation" if unit.operands else "unit"
    if unit.operands:
        store.operation, store.operands = _named(unit.activation, OPERATIONS), list(unit.operands)
    elif not unit.is_input:
        store.activation = _named(unit.activation, ACTIVATIONS)
        store.bias_shared, store.bias_trained = list(unit.bias_shared), unit.bias_trained
    features = dict(_channels(program, state, unit.name))
    if unit.bias:
        biases = _channels(program, state, f"{unit.name}.bias")
        features.update({"bias" if name == "w" else f"bias_{name}": value for name, value in biases.items()})
    store.update(features)
    if features:
        store.x = torch.cat([value.flatten(1) if value.ndim > 1 else value[:, None] for value in features.values()], 1)
    own = state.get(unit.name)
    if own:
        fixed = [name for name in own if BATCH not in _layout(program, unit.name, name)]
        store.initial = {name: own[name].detach().clone() for name in fixed}


def _write_wire(program: Program, state: Mapping[str, Mapping[str, Tensor]], wire: Wire, store: Any) -> None:
    pre, post = (program.graph.network.shape(end) for end in (wire.pre, wire.post))
    once = isinstance(wire.connection, Dense) and not wire.connection.shared
    if not once and not isinstance(wire.connection, (OneToOne, Sparse)):
        raise NetworkError(f"to_pyg: {wire.name!r} is {wire.connection}, whose weights belong to no single edges")
    store.connection = wire.connection.name
    if isinstance(wire.connection, Sparse):
        store.edge_index = wire.connection.edge_index.clone()
    elif isinstance(wire.connection, OneToOne):
        store.edge_index = torch.arange(math.prod(post), device="cpu").expand(2, -1).contiguous()
        store.shared = list(wire.connection.shared)
    else:
        rows, columns = (torch.arange(math.prod(shape), device="cpu") for shape in (post, pre))
        # Edges are listed in the order of the weights: by target, of a transposed connection by source.
        ends = torch.cartesian_prod(columns, rows).t() if wire.transposed else torch.cartesian_prod(rows, columns).t()
        store.edge_index = (ends if wire.transposed else ends.flip(0)).contiguous()
    store.delay, store.trained = wire.delay, wire.trained
    if wire.tied:
        store.tied, store.transposed = wire.tied, wire.transposed
    if wire.connection.weighted:
        store.update(_channels(program, state, wire.name))


def _node(program: Program, name: str) -> AgentNode | None:
    """The node of this name, or its use at an earlier tick if it has none at the last."""
    nodes = program.graph.nodes
    return nodes.get(name) or next((node for key, node in nodes.items() if key.partition("@")[0] == name), None)


def _layout(program: Program, name: str, channel: str) -> tuple[Axis, ...]:
    node = _node(program, name)
    assert node is not None
    return node.layout(program.graph.channels[node.name][channel])


def _channels(program: Program, state: Mapping[str, Mapping[str, Tensor]], name: str) -> dict[str, Tensor]:
    """Kept channels of a node, one row for each agent; of a memory, then the examples."""
    node = _node(program, name)
    if node is None:
        return {}
    found = {}
    for channel, declared in program.graph.channels[node.name].items():
        if declared.kept:
            holder = node.keeper(declared)
            if channel not in state.get(holder, {}):
                raise StateError(f"the state has no tensor {channel!r} at node {holder!r}")
            tensor, axes = state[holder][channel].detach(), list(node.layout(declared))
            if BATCH in axes:
                tensor = tensor.movedim(0, len(axes) - 1)
                axes.remove(BATCH)
            for place, axis in enumerate(node.axes):  # along which one value serves several agents
                tensor = tensor if axis in axes else tensor.unsqueeze(place)
            many = len(node.axes)
            rows = tensor.expand(*node.shape, *tensor.shape[many:]).flatten(0, many - 1)
            found[channel] = rows.clone(memory_format=torch.contiguous_format)
    return found


def _moves(network: Network, unit: Unit) -> list[Tensor]:
    """For each operand the edges along which an operation takes its numbers; none where it computes new ones."""
    shapes = [network.shape(operand) for operand in unit.operands]
    sizes = [math.prod(shape) for shape in shapes]
    if isinstance(unit.activation, Product):
        return [torch.arange(size, device="cpu").expand(2, -1).contiguous() for size in sizes]
    if not isinstance(unit.activation, (Concat, Flatten, Reshape, Select)):
        return []
    places = torch.arange(sum(sizes), device="cpu").split(sizes)
    came = unit.activation.apply(*(p.reshape(1, *shape) for p, shape in zip(places, shapes, strict=True))).flatten()
    found = []
    for place in places:
        post = ((came >= place[0]) & (came <= place[-1])).nonzero().flatten()
        found.append(torch.stack([came[post] - place[0], post]))
    return found
