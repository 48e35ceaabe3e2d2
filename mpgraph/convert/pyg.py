"""Networks as PyTorch Geometric graphs, and back.

``to_pyg`` writes a ``HeteroData``: a node type for each input, unit and operation, an edge type ``(pre, connection,
post)`` for each connection. What agents keep becomes node features (a unit's bias under ``bias``) and edge features
(``w`` and whatever else the rule keeps), one row for each agent or edge; ``x`` of a node type is all its features side
by side. What else makes a network (kind, activation, shape, delay, losses, ticks) is stored under its name.

``from_pyg`` reads that back. It also reads graphs that come from elsewhere: a ``HeteroData`` whose node types are
populations, or a ``Data`` in which every node is one neuron, as in :mod:`mpgraph.convert.grouping`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from mpgraph.agents.node import AgentNode
from mpgraph.errors import NetworkError, StateError
from mpgraph.network.activations import ACTIVATIONS
from mpgraph.network.axes import BATCH, Axis
from mpgraph.network.connections import Connection, Dense, Identity, OneToOne, Sparse
from mpgraph.network.losses import LOSSES, Loss
from mpgraph.network.network import Network, Unit, Wire
from mpgraph.network.operations import OPERATIONS, Concat, Flatten, Product, Reshape

from .gathering import Gather
from .grouping import group
from .neurons import Edges, numbers
from .neurons import neurons as read_neurons

if TYPE_CHECKING:
    from mpgraph.program.program import Program

OPERAND = "operand"  # the connection of edges into an operation


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


def from_pyg(data: Any, *, loss: str | Loss | None = None, ticks: int | None = None) -> Network:
    """A network from a PyTorch Geometric graph.

    Args:
        data: what :func:`to_pyg` wrote; or another ``HeteroData``, in which a node type without incoming edges is an
            input and others are units (``tanh``; without outgoing edges ``identity``) unless ``kind`` and
            ``activation`` say otherwise, and edge types are sparse connections with weights ``w``; or a ``Data`` of
            single neurons with ``edge_index`` and optional ``w``, ``delay`` (of edges), ``kind``, ``activation``
            (lists), ``index`` and ``bias`` (of nodes).
        loss: on the outputs, if the data has none of its own.
        ticks: how often the network runs for one example; by default what the data says, else once.

    Raises:
        NetworkError: for data that describes no network.
    """
    ticks = ticks or getattr(data, "ticks", None) or 1
    if not hasattr(data, "node_types"):
        return _from_neurons(data, loss, ticks)
    network = Network(ticks)
    for name in data.node_types:
        _read_unit(network, data, name)
    for kind in data.edge_types:
        lost = [end for end in (kind[0], kind[2]) if end not in network.units]
        if lost:
            raise NetworkError(f"from_pyg: edge type {kind} joins {lost[0]!r}, which is no node type of the data")
        if data[kind].get("connection") != OPERAND:
            _read_wire(network, kind, data[kind])
    losses = data.get("losses") if "losses" in data else None
    if losses:
        for name, (pre, drawn) in losses.items():
            network.loss(pre, drawn, name)
    elif loss is not None:
        for name in network.outputs:
            network.loss(name, loss)
    return network


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
        store.initial = {name: value for name, value in own.items() if BATCH not in _layout(program, unit.name, name)}


def _write_wire(program: Program, state: Mapping[str, Mapping[str, Tensor]], wire: Wire, store: Any) -> None:
    pre, post = (program.graph.network.shape(end) for end in (wire.pre, wire.post))
    if not isinstance(wire.connection, (Dense, OneToOne, Sparse)):
        raise NetworkError(f"to_pyg: {wire.name!r} is {wire.connection}, whose weights belong to no single edges")
    store.connection = wire.connection.name
    if isinstance(wire.connection, Sparse):
        store.edge_index = wire.connection.edge_index
    elif isinstance(wire.connection, OneToOne):
        store.edge_index = torch.arange(math.prod(post)).expand(2, -1).contiguous()
        store.shared = list(wire.connection.shared)
    else:
        rows, columns = (torch.arange(math.prod(shape)) for shape in (post, pre))
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
            found[channel] = tensor.expand(*node.shape, *tensor.shape[many:]).flatten(0, many - 1).contiguous()
    return found


def _moves(network: Network, unit: Unit) -> list[Tensor]:
    """For each operand the edges along which an operation takes its numbers; none where it computes new ones."""
    shapes = [network.shape(operand) for operand in unit.operands]
    sizes = [math.prod(shape) for shape in shapes]
    if isinstance(unit.activation, Product):
        return [torch.arange(size).expand(2, -1).contiguous() for size in sizes]
    if not isinstance(unit.activation, (Concat, Flatten, Reshape, Gather)):
        return []
    places = torch.arange(sum(sizes)).split(sizes)
    came = unit.activation.apply(*(p.reshape(1, *shape) for p, shape in zip(places, shapes, strict=True))).flatten()
    found = []
    for place in places:
        post = ((came >= place[0]) & (came <= place[-1])).nonzero().flatten()
        found.append(torch.stack([came[post] - place[0], post]))
    return found


# -- reading ----------------------------------------------------------------------------------------------


def _read_unit(network: Network, data: Any, name: str) -> None:
    store = data[name]
    hears = any(post == name for _, _, post in data.edge_types)
    speaks = any(pre == name for pre, _, _ in data.edge_types)
    kind = store.get("kind") or ("unit" if hears else "input")
    shape = tuple(store.get("shape") or (store.num_nodes,))
    if None in shape:
        raise NetworkError(f"from_pyg: node type {name!r} has no number of nodes; set data[{name!r}].num_nodes")
    if kind == "input":
        network.input(name, shape)
    elif kind == "operation":
        network.operation(name, store.operation, *store.operands)
    elif kind in ("unit", "output"):
        bias, shared = store.get("bias"), store.get("bias_shared")
        shared = tuple(shared) if shared is not None else ()
        known = "shape" in store
        if bias is not None:
            bias = bias.reshape(shape)
            for dim in sorted(shared, reverse=True):
                bias = bias.select(dim, 0)
        network.unit(
            name,
            shape,
            store.get("activation") or ("tanh" if speaks else "identity"),
            bias=(not known) if bias is None else bias,
            bias_shared=shared,
            values=store.get("initial"),
        )
        if store.get("bias_trained") is False and bias is not None:
            network.units = network.frozen(f"{name}.bias").units
    else:
        raise NetworkError(f"from_pyg: node type {name!r} has kind {kind!r}; allowed are input, unit, operation")


def _read_wire(network: Network, kind: tuple[str, str, str], store: Any) -> None:
    pre, _, post = kind
    connection, weight = _connection(network, kind, store), store.get("w")
    tied = store.get("tied")
    shapes = network.shape(pre), network.shape(post)
    if weight is not None and weight.numel() != store.edge_index.shape[1]:
        raise NetworkError(f"from_pyg: {kind} has {store.edge_index.shape[1]} edges but {weight.numel()} weights")
    if weight is not None and not tied:
        weight = weight.flatten()
        if isinstance(connection, Dense):
            place = store.edge_index[1] * math.prod(shapes[0]) + store.edge_index[0]
            weight = torch.empty_like(weight).index_copy_(0, place, weight).reshape(*shapes[1], *shapes[0])
        elif isinstance(connection, OneToOne):
            weight = torch.empty_like(weight).index_copy_(0, store.edge_index[1], weight).reshape(shapes[1])
            for dim in sorted(connection.shared, reverse=True):
                weight = weight.select(dim, 0)
    network.connect(
        pre,
        post,
        connection,
        weight=None if tied or not connection.weighted else weight,
        trained=store.get("trained") is not False,
        delay=int(store.get("delay") or 0),
        tied=tied,
        transposed=bool(store.get("transposed")),
    )


def _connection(network: Network, kind: tuple[str, str, str], store: Any) -> Connection:
    """Dense or one-to-one where the data says so and its edges are still those, else sparse."""
    if "edge_index" not in store:
        raise NetworkError(f"from_pyg: edge type {kind} has no edge_index")
    pre, post = (math.prod(network.shape(end)) for end in (kind[0], kind[2]))
    edges, said = store.edge_index, store.get("connection")
    if said == "dense" and edges.shape[1] == pre * post == len(torch.unique(edges[1] * pre + edges[0])):
        return Dense()
    if said in ("one_to_one", "identity") and edges.shape[1] == post and bool((edges[0] == edges[1]).all()):
        return Identity() if said == "identity" else OneToOne(tuple(store.get("shared") or ()))
    return Sparse(edges)


def _from_neurons(data: Any, loss: str | Loss | None, ticks: int) -> Network:
    """The network of a ``Data`` in which every node is one neuron."""
    if data.get("edge_index") is None or not data.edge_index.shape[1]:
        raise NetworkError("from_pyg: the data has no edge_index, so there are no connections")
    names = range(data.num_nodes)
    source, target = data.edge_index.cpu().numpy().astype(np.int64)
    edges = Edges(names, source, target, np.zeros(len(source), np.int64), None)
    for name in ("w", "delay"):
        given = data.get(name)
        if given is not None:
            values = numbers(name, given.flatten().tolist(), lambda i: f"edge {edges.name(i)}")
            if values is None or len(values) != len(source):
                raise NetworkError(f"from_pyg: {name} must be one number for each of {len(source)} edges")
            edges.weight, edges.delay = (
                (values, edges.delay) if name == "w" else (edges.weight, values.astype(np.int64))
            )
    columns: dict[str, Any] = {}
    for name in ("kind", "activation", "index", "bias"):
        given = data.get(name)
        values_ = given.flatten().tolist() if isinstance(given, Tensor) else given
        columns[name] = [None] * len(names) if values_ is None else list(values_)
        if len(columns[name]) != len(names):
            raise NetworkError(f"from_pyg: {name} must be a list with one entry for each of {len(names)} nodes")
    return group(read_neurons(names, edges, **columns), edges, loss=loss, ticks=ticks)
