"""Networks from PyTorch Geometric graphs.

``from_pyg`` reads what :func:`mpgraph.convert.pyg.to_pyg` wrote, and graphs that come from elsewhere: a ``HeteroData``
whose node types are populations, or a ``Data`` in which every node is one neuron, as in
:mod:`mpgraph.convert.grouping`. Tensors, numpy arrays and lists will do; all are copied, so that changing the data
later changes no network.

Weights of edges are read from ``w``, ``weight``, ``edge_weight`` or an ``edge_attr`` of one column; where several are
given they must agree.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from mpgraph.arguments import Arguments
from mpgraph.errors import NetworkError, adding
from mpgraph.network.connections import Connection, Dense, Identity, OneToOne, Sparse
from mpgraph.network.losses import Loss
from mpgraph.network.network import Network

from .grouping import group
from .neurons import FIX, Edges, delays, numbers, shown
from .neurons import neurons as read_neurons

OPERAND = "operand"  # the connection of edges into an operation
WEIGHTS = ("w", "weight", "edge_weight", "edge_attr")


def from_pyg(data: Any, *, loss: str | Loss | None = None, ticks: int | None = None) -> Network:
    """A network from a PyTorch Geometric graph.

    Args:
        data: what :func:`mpgraph.convert.pyg.to_pyg` wrote; or another ``HeteroData``, in which a node type without
            incoming edges is an input and others are units (``tanh``; without outgoing edges ``identity``) unless
            ``kind`` and ``activation`` are given, and edge types are sparse connections, whose ``delay`` and
            ``trained`` hold for all their edges; or a ``Data`` of single neurons with ``edge_index`` and optional
            weights and ``delay`` (of edges), ``kind``, ``activation`` (lists), ``index`` and ``bias`` (of nodes).
        loss: on the outputs, if the data has none of its own.
        ticks: how often the network runs for one example; by default the number in the data, otherwise once.

    Raises:
        NetworkError: naming the node type, edge type or edge: for data that describes no network.
    """
    from torch_geometric.data import Data, HeteroData

    if not isinstance(data, (Data, HeteroData)):
        name = f"the class {data.__name__}" if isinstance(data, type) else f"an object of class {type(data).__name__}"
        raise NetworkError(
            f"from_pyg takes a torch_geometric.data.Data or HeteroData, got {name}; make one of it, for example "
            "Data(edge_index=edge_index, edge_weight=weights, num_nodes=4)"
        )
    if ticks is None:
        ticks = _ticks(getattr(data, "ticks", 1))
    ticks = Arguments("from_pyg", NetworkError).integer("ticks", ticks, 1)
    if isinstance(data, Data):
        return _from_neurons(data, loss, ticks)
    network = Network(ticks)
    for name in data.node_types:
        with _named(f"node type {name!r}"):
            _read_unit(network, data, name)
    for kind in data.edge_types:
        lost = [end for end in (kind[0], kind[2]) if end not in network.units]
        if lost:
            raise NetworkError(f"from_pyg: edge type {kind} joins {lost[0]!r}, which is no node type of the data")
        if data[kind].get("connection") != OPERAND:
            with _named(f"edge type {kind}"):
                _read_wire(network, kind, data[kind])
    with adding("from_pyg"):
        losses = _losses(getattr(data, "losses", None))
        for name, (pre, given) in losses.items():
            network.loss(pre, given, name)
        if loss is not None and not losses:
            for name in network.outputs:
                network.loss(name, loss)
    return network


def _ticks(given: Any) -> Any:
    """The number of ticks in the data as plain Python has it, if it is one number."""
    if isinstance(given, (Tensor, np.ndarray, np.generic)) and math.prod(given.shape) == 1:
        given = given.item()
    return int(given) if isinstance(given, float) and given.is_integer() else given


def _losses(given: Any) -> Mapping[str, tuple[str, str | Loss]]:
    """The losses in the data by name, each on a unit."""
    if given is None:
        return {}
    if not isinstance(given, Mapping) or not all(isinstance(v, (tuple, list)) and len(v) == 2 for v in given.values()):
        _refuse(f"losses={shown(given)} must be a dictionary of pairs (unit, loss) by name, {{'loss': ('y', 'l2')}}")
    return given


@contextmanager
def _named(where: str) -> Iterator[None]:
    """Errors within begin with the part of the data that they are about."""
    try:
        yield
    except NetworkError as error:
        raise NetworkError(f"from_pyg: {where} {error}") from None


def _refuse(problem: str) -> NoReturn:
    """Raise an error; it follows the name of a part of the data."""
    raise NetworkError(problem)


# -- parts ------------------------------------------------------------------------------------------------


def _tensor(name: str, given: Any) -> Tensor:
    """A copy of a tensor, array or list of numbers."""
    try:
        return torch.as_tensor(given, device="cpu").detach().clone()
    except (TypeError, ValueError, RuntimeError):
        article, kind = "an" if name[0] in "aeiou" else "a", type(given).__name__
        _refuse(f"has {article} {name} that is not a tensor, an array or a list of numbers, but of type {kind}")


def _column(name: str, given: Any, count: int) -> np.ndarray | list[Any]:
    """One value for each edge or node, as :func:`mpgraph.convert.neurons.numbers` takes them."""
    if isinstance(given, str):
        _refuse(f"has {name}={given!r}; give a list with one entry for each of {count}")
    try:
        array = _tensor(name, given).numpy()
    except (NetworkError, TypeError):
        array = np.array(None)
    if array.dtype.kind not in "iuf":
        values = list(given) if isinstance(given, (list, tuple)) else np.asarray(given).flatten().tolist()
        if len(values) != count:
            _refuse(f"has {len(values)} values of {name} for {count}; give one to each")
        return values
    if array.size != count:
        _refuse(f"has {array.size} values of {name}, of shape {array.shape}, for {count}; give one to each")
    return array.flatten()


def _edge_index(store: Any, sizes: tuple[int, int] | None) -> Tensor:
    """The edges, ``(2, edges)``, with ends that exist if their numbers are known."""
    given = store.get("edge_index")
    if given is None:
        hint = "; it has adj_t: undo the ToSparseTensor transform" if store.get("adj_t") is not None else ""
        _refuse(f"has no edge_index, so there are no connections{hint}")
    index = _tensor("edge_index", given)
    if index.is_floating_point() or index.is_complex() or index.dtype == torch.bool:
        _refuse(f"has an edge_index of {index.dtype}; give integers, the numbers of nodes")
    if index.ndim != 2 or len(index) != 2:
        hint = "; transpose it: edge_index.t()" if index.ndim == 2 and index.shape[1] == 2 else ""
        _refuse(f"has an edge_index of shape {tuple(index.shape)}, not (2, edges){hint}")
    if not index.shape[1]:
        _refuse("has an edge_index without edges, so there are no connections")
    index = index.long()
    limits = sizes or (int(index.max()) + 1,) * 2
    for end, row, size in zip(("source", "target"), index, limits, strict=True):
        wrong = ((row < 0) | (row >= size)).nonzero().flatten()
        if len(wrong):
            edge = int(wrong[0])
            _refuse(f"has an edge {edge} whose {end} is {int(row[edge])}, but there are {size} nodes, 0 to {size - 1}")
    return index


def _weight(store: Any, edges: int) -> np.ndarray | None:
    """The weights of the edges, under whichever name."""
    given = {name: store.get(name) for name in WEIGHTS if store.get(name) is not None}
    if "edge_attr" in given:
        columns = np.prod(np.shape(given["edge_attr"])[1:], dtype=int)
        if columns != 1:
            del given["edge_attr"]
            if not given:
                _refuse(
                    f"has an edge_attr of {columns} columns, of which none is known to be the weight; give the weights "
                    "as edge_weight"
                )
    found = {}
    for name, values in given.items():
        size = int(np.prod(np.shape(values), dtype=int))
        if size != edges:
            _refuse(f"has {edges} edges but {size} weights ({name})")
        found[name] = numbers("weight", _column(name, values, edges), lambda i: f"edge {i}")
    if not found:
        _near_miss(store)
        return None
    (first, weight), *others = found.items()
    for name, values in others:
        if not np.array_equal(weight, values):  # type: ignore[arg-type]
            _refuse(f"has weights under two names, {first} and {name}, that differ; leave one out")
    return weight


def _near_miss(store: Any) -> None:
    """Refuse what is called almost like weights. In what ``to_pyg`` wrote it may be a channel of a rule."""
    for name in () if "connection" in store else store.keys():
        near = get_close_matches(name, WEIGHTS, n=1, cutoff=0.8)
        if near and name not in WEIGHTS and store[name] is not None:
            _refuse(f"has {name}, which is read nowhere; did you mean {near[0]!r}?")


def _flag(store: Any, name: str, default: bool) -> bool:
    """A yes or no that holds for a whole node type or edge type, however it is written."""
    given = store.get(name)
    if given is None:
        return default
    values = np.unique(_tensor(name, given).numpy())
    if len(values) != 1:
        _refuse(f"has a {name} that differs within it; make a type for each value")
    if values[0] not in (0, 1):
        _refuse(f"has {name}={values[0]}; allowed are True and False")
    return bool(values[0])


def _delay(store: Any) -> int:
    given = store.get("delay")
    if given is None:
        return 0
    many = int(np.prod(np.shape(given), dtype=int))
    found = np.unique(delays(_column("delay", given, many), lambda i: f"edge {i}"))
    if len(found) != 1:
        _refuse(
            f"has edges with the delays {', '.join(map(str, found[:8].tolist()))}; all edges of a type have one delay, "
            "so make an edge type for each"
        )
    return int(found[0])


def _count(store: Any) -> int | None:
    """How many nodes there are, as far as PyTorch Geometric knows."""
    try:
        count = store.num_nodes
        return None if count is None else int(count)
    except (TypeError, ValueError, RuntimeError, AttributeError, IndexError):  # it looks at features and edges
        return None


# -- populations ------------------------------------------------------------------------------------------


def _read_unit(network: Network, data: Any, name: str) -> None:
    store = data[name]
    receives = any(post == name for _, _, post in data.edge_types)
    sends = any(pre == name for pre, _, _ in data.edge_types)
    kind = store.get("kind") or ("unit" if receives else "input")
    count, given = _count(store), store.get("shape")
    if given is None and count is None:
        _refuse(f"has no number of nodes; set data[{name!r}].num_nodes")
    shape = (count,) if given is None else tuple(np.asarray(given).reshape(-1).tolist())
    if count is not None and math.prod(shape) != count:
        _refuse(f"has the shape {shape} but {count} nodes")
    if kind == "input":
        network.input(name, shape)
    elif kind == "operation":
        if store.get("operation") is None or store.get("operands") is None:
            _refuse("has kind 'operation' and needs its operation and operands")
        network.operation(name, store.operation, *store.operands)
    elif kind in ("unit", "output"):
        shared = tuple(store.get("bias_shared") or ())
        given = store.get("initial")
        if not isinstance(given, Mapping | None):
            _refuse(f"has initial={shown(given)}; give a dictionary of initial values by channel")
        initial = {channel: _tensor(channel, value) for channel, value in (given or {}).items()}
        bias = _bias(store, shape, shared)
        activation = store.get("activation")
        activation = ("tanh" if sends else "identity") if activation is None else activation
        network.unit(name, shape, activation, bias=bias, bias_shared=shared, values=initial)
        if bias is not False and not _flag(store, "bias_trained", True):
            network.units = network.frozen(f"{name}.bias").units
    else:
        _refuse(f"has kind {kind!r}; allowed are input, unit, operation")


def _bias(store: Any, shape: tuple[int, ...], shared: tuple[int, ...]) -> bool | Tensor:
    """Initial biases; by default there are some, unless ``to_pyg`` wrote the unit."""
    given = store.get("bias")
    if given is None or isinstance(given, bool):
        return "shape" not in store if given is None else given
    many = math.prod(shape)
    bias = torch.from_numpy(numbers("bias", _column("bias", given, many), lambda i: f"node {i}")).reshape(shape)
    for dim in sorted(shared, reverse=True):
        bias = bias.select(dim, 0)
    return bias


def _read_wire(network: Network, kind: tuple[str, str, str], store: Any) -> None:
    pre, _, post = kind
    shapes = network.shape(pre), network.shape(post)
    sizes = math.prod(shapes[0]), math.prod(shapes[1])
    index = _edge_index(store, sizes)
    connection, tied = _connection(store, index, sizes), store.get("tied")
    given = _weight(store, index.shape[1])
    weight = None if given is None or tied or not connection.weighted else torch.from_numpy(given)
    if weight is not None and isinstance(connection, Dense):
        place = index[1] * sizes[0] + index[0]
        weight = torch.empty_like(weight).index_copy_(0, place, weight).reshape(*shapes[1], *shapes[0])
    elif weight is not None and isinstance(connection, OneToOne):
        weight = torch.empty_like(weight).index_copy_(0, index[1], weight).reshape(shapes[1])
        for dim in sorted(connection.shared, reverse=True):
            weight = weight.select(dim, 0)
    network.connect(
        pre,
        post,
        connection,
        weight=weight,
        trained=_flag(store, "trained", True),
        delay=_delay(store),
        tied=tied,
        transposed=_flag(store, "transposed", False),
    )


def _connection(store: Any, edges: Tensor, sizes: tuple[int, int]) -> Connection:
    """Dense or one-to-one where the data says so and its edges are still those, otherwise sparse."""
    (pre, post), written = sizes, store.get("connection")
    if written == "dense" and edges.shape[1] == pre * post == len(torch.unique(edges[1] * pre + edges[0])):
        return Dense()
    if written in ("one_to_one", "identity") and edges.shape[1] == post and bool((edges[0] == edges[1]).all()):
        return Identity() if written == "identity" else OneToOne(tuple(store.get("shared") or ()))
    return Sparse(edges)


# -- single neurons ---------------------------------------------------------------------------------------


def _from_neurons(data: Any, loss: str | Loss | None, ticks: int) -> Network:
    """The network of a ``Data`` in which every node is one neuron."""
    with _named("the data"):
        count = _count(data)
        index = _edge_index(data, None if count is None else (count, count))
        names = range(int(index.max()) + 1 if count is None else count)
        source, target = index.numpy()
        many = len(source)
        edges = Edges(names, source, target, np.zeros(many, np.int64), _weight(data, many))
        if data.get("delay") is not None:
            edges.delay = delays(_column("delay", data["delay"], many), edges.called)
        if data.get("trained") is not None and not _flag(data, "trained", True):
            _refuse(f"has trained=False; the edges of a graph are all trained. {FIX}")
        columns: dict[str, Any] = {}
        for name in ("kind", "activation", "index", "bias"):
            given = data.get(name)
            values = [None] * len(names) if given is None else given
            if isinstance(values, (Tensor, np.ndarray)):
                values = _column(name, values, len(names))
                values = values if isinstance(values, list) else values.tolist()
            if not isinstance(values, (list, tuple)) or len(values) != len(names):
                same = f"; for all alike give [{values!r}] * {len(names)}" * isinstance(values, str)
                _refuse(
                    f"has {name}={shown(values)}; {name} must be a list with one entry for each of {len(names)} "
                    f"nodes{same}"
                )
            columns[name] = values
    with adding("from_pyg"):
        return group(read_neurons(names, edges, **columns), edges, loss=loss, ticks=ticks)
