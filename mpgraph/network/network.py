"""What a person draws: inputs, units, connections and losses. There is no learning rule in it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from copy import copy
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mpgraph.errors import NetworkError, unknown

from .activations import Activation, Identity, activation
from .connections import Connection, Dense, connection
from .losses import Loss, loss
from .operations import OPERATIONS, Operation

if TYPE_CHECKING:
    import networkx

Size = int | tuple[int, ...]
RESERVED = ("program", "one", "zero")


@dataclass(frozen=True)
class Unit:
    """A population of inputs or neurons. ``shape`` is that of one example; inputs compute nothing."""

    name: str
    shape: tuple[int, ...]
    activation: Activation = field(default_factory=Identity)
    is_input: bool = False
    bias: bool = False
    bias_value: Tensor | None = None
    bias_trained: bool = True
    bias_shared: tuple[int, ...] = ()  # dimensions along which one bias serves all
    operands: tuple[str, ...] = ()  # of an operation: it has no connections
    values: Mapping[str, Tensor] = field(default_factory=dict)  # initial, of channels that its agent keeps


@dataclass(frozen=True)
class Wire:
    """A connection that was drawn between two units."""

    name: str
    pre: str
    post: str
    connection: Connection
    weight: Tensor | None = None
    trained: bool = True
    delay: int = 0  # ticks
    tied: str | None = None  # the wire whose weights it uses
    transposed: bool = False
    pathway: str = "weight"


@dataclass(frozen=True)
class LossNode:
    """A loss on the output of a unit."""

    name: str
    pre: str
    loss: Loss


class Network:
    """A directed graph of populations; every method that adds to it returns the name that was given.

    Args:
        ticks: how often the network runs for one example. With more than one, inputs are ``(batch, ticks, *size)``,
            connections may have delays, and the prediction is that of the last tick.

    Example:
        >>> network = Network()
        >>> x, h, y = network.input("x", 64), network.unit("h1", 32, activation="tanh"), network.unit("y", 10)
        >>> network.connect(x, h), network.connect(h, y), network.loss(y, "cross_entropy")
        ('x->h1', 'h1->y', 'loss')
    """

    def __init__(self, ticks: int = 1) -> None:
        if not isinstance(ticks, int) or ticks < 1:
            raise NetworkError(f"Network(ticks={ticks!r}): ticks must be a positive integer")
        self.ticks = ticks
        self.units: dict[str, Unit] = {}
        self.wires: dict[str, Wire] = {}
        self.losses: dict[str, LossNode] = {}
        self.edges: Callable[[Any, Any, Any], tuple[str, tuple[int, ...]]] | None = None
        self.module: Any = None  # what from_torch read, for to_torch

    # -- drawing ------------------------------------------------------------------------------------------

    def input(self, name: str, size: Size) -> str:
        """Add an input; a batch for it has shape ``(batch, *size)``.

        Raises:
            NetworkError: for a name in use or a size that is not positive.
        """
        self._free(name)
        self.units[name] = Unit(name, _shape(name, size), is_input=True)
        return name

    def unit(
        self,
        name: str,
        size: Size,
        activation: str | Activation | Callable[[Tensor], Tensor] = "identity",
        *,
        bias: bool | Tensor = True,
        bias_shared: tuple[int, ...] | None = None,
        values: Mapping[str, Tensor | float] | None = None,
    ) -> str:
        """Add a population of units, each computing ``activation(sum of messages + bias)``.

        Args:
            name: unique; used in states, errors and listings.
            size: number of units, or their shape.
            activation: a name (identity, tanh, sigmoid, softmax, relu, softplus, step, sign, quantizer,
                winner_take_all), an :class:`mpgraph.Activation`, or any function of one tensor, differentiable or not.
            bias: whether there is one, or its initial value (zeros by default). Images ``(channels, height, width)``
                have one bias for each channel.
            bias_shared: dimensions along which one bias serves all units; by default those of an image but its
                channels.
            values: initial values of channels that the unit's agent keeps, such as the running statistics of a
                :class:`mpgraph.BatchNorm`: ``{"mean": ..., "var": ...}``.

        Raises:
            NetworkError: for a name in use, a size that is not positive, an unknown activation.
        """
        self._free(name)
        shape = _shape(name, size)
        shared = bias_shared if bias_shared is not None else (1, 2) if len(shape) == 3 else ()
        if any(not 0 <= dim < len(shape) for dim in shared):
            raise NetworkError(f"unit {name!r}: bias_shared={shared} names dimensions that units of shape {shape} lack")
        value = None
        if not isinstance(bias, bool):
            value = _weight(f"{name}.bias", bias, tuple(n for i, n in enumerate(shape) if i not in shared))
        kind = copy(_activation(activation))
        if isinstance(kind, Operation):
            raise NetworkError(f"unit {name!r}: {kind!r} is an operation; use network.operation({name!r}, ...)")
        kind.size = shape
        given = {channel: _weight(f"{name}.{channel}", number, None) for channel, number in (values or {}).items()}
        self.units[name] = Unit(name, shape, kind, False, bias is not False, value, bias_shared=shared, values=given)
        return name

    def operation(self, name: str, operation: str | Operation, *operands: str) -> str:
        """Add an operation on whole units: pooling, reshaping, a product, concatenation.

        Args:
            name: unique; the operation can be connected onwards like a unit, but not to.
            operation: ``product``, ``concat``, ``flatten``, ``max_pool``, ``avg_pool``, ``global_avg_pool`` or an
                :class:`mpgraph.Operation`.
            operands: units, inputs or operations, each once.

        Raises:
            NetworkError: for a name in use, an unknown operation or operand, operands that do not fit.
        """
        self._free(name)
        found: Any = operation if isinstance(operation, Operation) else OPERATIONS.get(str(operation))
        if found is None:
            raise NetworkError(unknown("operation", operation, OPERATIONS))
        for operand in operands:
            if operand not in self.units:
                raise NetworkError(f"operation {name!r}: " + unknown("unit", operand, self.units))
        if not operands or len(set(operands)) < len(operands):
            raise NetworkError(f"operation {name!r} needs operands, each once, got {list(operands)}")
        try:
            kind = (found if isinstance(found, Operation) else found()).on(*map(self.shape, operands))
        except NetworkError as error:
            raise NetworkError(f"operation {name!r}: {error}") from None
        self.units[name] = Unit(name, kind.size, kind, operands=operands)
        return name

    def connect(
        self,
        pre: str,
        post: str,
        connection: str | Connection = "dense",
        *,
        weight: Tensor | float | None = None,
        trained: bool = True,
        delay: int = 0,
        tied: str | None = None,
        transposed: bool = False,
        pathway: str = "weight",
    ) -> str:
        """Connect two units; the second connection of a pair is called ``pre->post#1``.

        Args:
            pre: where forward messages come from: an input or a unit.
            post: where they go: a unit (or a loss, for connections that carry feedback alone).
            connection: ``dense``, ``one_to_one``, ``identity`` (no weights) or a :class:`mpgraph.Connection`.
            weight: initial weights, ``(*post, *pre)`` if dense, or one number; by default the rule draws them.
            trained: ``False`` keeps the weights fixed under every rule.
            delay: ticks that a message travels; nothing arrives before. Delays start anew with each step.
            tied: name of a connection whose weights (and all that is kept with them) this one uses too.
            transposed: whether it uses them the other way round (dense only).
            pathway: under which name a protocol holds the agent of its synapses. Any other than ``weight`` is also the
                role that they fill at both ends: a pathway of its own (``feedback``).

        Raises:
            NetworkError: for an unknown unit or connection, shapes that do not fit, an input as ``post``.
        """
        for end, name in (("pre", pre), ("post", post)):
            if name not in self.units and not (end == "post" and name in self.losses):
                raise NetworkError(f"connect({pre!r}, {post!r}): " + unknown("unit", name, self.units))
        if post in self.units and self.units[post].is_input:
            raise NetworkError(f"connect({pre!r}, {post!r}): {post!r} is an input and receives no connections")
        if post in self.units and self.units[post].operands:
            raise NetworkError(f"connect({pre!r}, {post!r}): {post!r} is an operation; its operands are given with it")
        if not isinstance(delay, int) or delay < 0:
            raise NetworkError(f"connect({pre!r}, {post!r}): delay must be a number of ticks, got {delay!r}")
        meeting = _connection(connection)
        shapes = self.shape(pre), self.shape(post)
        problem = meeting.check(*shapes)
        if problem:
            raise NetworkError(f"connect({pre!r}, {post!r}): {problem}")
        name, count = f"{pre}->{post}", sum((w.pre, w.post) == (pre, post) for w in self.wires.values())
        name += f"#{count}" if count else ""
        own = meeting.weight_shape(*shapes)
        if transposed and not (tied and isinstance(meeting, Dense)):
            raise NetworkError(f"{name!r}: transposed needs tied= and a dense connection")
        if tied is not None:
            self._tie(name, tied, (*shapes[0], *shapes[1]) if transposed else own)
        if weight is not None:
            if tied or not meeting.weighted:
                raise NetworkError(f"{name!r}: a {'tied' if tied else meeting} connection takes no weight of its own")
            weight = _weight(name, weight, own)
        self.wires[name] = Wire(name, pre, post, meeting, weight, trained, delay, tied, transposed, pathway)
        return name

    def _tie(self, name: str, tied: str, shape: tuple[int, ...]) -> None:
        if tied not in self.wires:
            raise NetworkError(f"{name!r}: tied to an " + unknown("connection", tied, self.wires))
        other = self.wires[tied]
        theirs = other.connection.weight_shape(self.shape(other.pre), self.shape(other.post))
        if other.tied or not other.connection.weighted:
            raise NetworkError(f"{name!r}: {tied!r} has no weights of its own; tie to {other.tied or 'another'!r}")
        if theirs != shape:
            raise NetworkError(f"{name!r} needs weights of shape {shape}, but {tied!r} has {theirs}")

    def loss(self, pre: str, loss: str | Loss, name: str | None = None) -> str:
        """Add a loss on a unit, which makes it an output.

        Args:
            pre: the unit whose forward message is the prediction (logits).
            loss: ``cross_entropy``, ``sigmoid_cross_entropy``, ``l2``, ``l1`` or an :class:`mpgraph.Loss`.
            name: ``loss`` by default, ``<unit>.loss`` for further ones.

        Raises:
            NetworkError: for an unknown unit or loss, or a name in use.
        """
        if pre not in self.units or self.units[pre].is_input:
            units = [n for n, u in self.units.items() if not u.is_input]
            raise NetworkError(f"loss on {pre!r}: " + unknown("unit", pre, units))
        name = name or ("loss" if "loss" not in self.losses else f"{pre}.loss")
        self._free(name)
        self.losses[name] = LossNode(name, pre, _loss(loss))
        return name

    # -- reading ------------------------------------------------------------------------------------------

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of one example at a unit or loss."""
        return self.units[self.losses[name].pre if name in self.losses else name].shape

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the inputs, in the order in which they were added."""
        return tuple(name for name, unit in self.units.items() if unit.is_input)

    @property
    def outputs(self) -> tuple[str, ...]:
        """Units with a loss; in a network without one, units from which no connection leaves."""
        with_loss = dict.fromkeys(node.pre for node in self.losses.values())
        if with_loss:
            return tuple(with_loss)
        sources = {wire.pre for wire in self.wires.values()}
        sources.update(operand for unit in self.units.values() for operand in unit.operands)
        return tuple(n for n, u in self.units.items() if not u.is_input and n not in sources)

    def edge(self, u: Any, v: Any, key: Any = 0) -> tuple[str, tuple[int, ...]]:
        """Where the weight of an edge of the graph given to :meth:`from_networkx` lies: connection and index.

        Raises:
            NetworkError: if there is no such edge, or the network was not read from a graph.
        """
        if self.edges is None:
            raise NetworkError("this network was not made by Network.from_networkx, so it has no single edges")
        return self.edges(u, v, key)

    @classmethod
    def from_networkx(cls, graph: Any, *, loss: str | Loss | None = None, ticks: int = 1) -> Network:
        """A network in which every node of a networkx graph is one neuron and every edge one weight.

        See :mod:`mpgraph.convert.grouping` for the attributes that are read and how neurons are grouped.

        Args:
            graph: a directed (multi)graph.
            loss: on the outputs, as in :meth:`loss`; ``None`` for a network without one.
            ticks: as in ``Network(ticks=...)``, for graphs with delays.

        Raises:
            NetworkError: for a graph without inputs or outputs, unknown attributes, or a cycle without delay.
        """
        from mpgraph.convert.grouping import from_networkx

        return from_networkx(graph, loss=loss, ticks=ticks)

    @classmethod
    def from_torch(
        cls,
        module: torch.nn.Module,
        input_shape: int | tuple[int, ...] | Mapping[str, int | tuple[int, ...]],
        *,
        loss: str | Loss | None = None,
    ) -> Network:
        """A network that computes what a torch module does, with its weights; ``program.to_torch`` leads back.

        See :mod:`mpgraph.convert.torch_module` for what is read how, and how units are named.

        Args:
            module: any ``torch.fx``-traceable module of Linear, Conv2d, activations, pooling, flatten, LayerNorm,
                BatchNorm, additions, products and concatenations.
            input_shape: of one example, without the batch: ``(1, 8, 8)`` for an image, ``(64,)`` for a vector; by
                argument of ``forward`` if it takes several.
            loss: on the output, as in :meth:`loss`.

        Raises:
            NetworkError: naming the submodule that cannot be traced or is not supported.
        """
        from mpgraph.convert.torch_module import from_torch

        return from_torch(module, input_shape, loss=loss)

    @classmethod
    def from_pyg(cls, data: Any, *, loss: str | Loss | None = None, ticks: int | None = None) -> Network:
        """A network from a PyTorch Geometric ``HeteroData`` or ``Data``; see :mod:`mpgraph.convert.pyg_reading`."""
        from mpgraph.convert.pyg_reading import from_pyg

        return from_pyg(data, loss=loss, ticks=ticks)

    def to_networkx(self) -> networkx.MultiDiGraph:
        """Inputs, units, operations and losses as nodes, connections as edges, keyed by their names."""
        from mpgraph.draw.multigraph import network_to_networkx

        return network_to_networkx(self)

    def draw(self, path: str | None = None, format: str = "matplotlib") -> Any:
        """A picture; see :func:`mpgraph.draw.drawing.draw_network`."""
        from mpgraph.draw.drawing import draw_network

        return draw_network(self, path, format)

    # -- variants -----------------------------------------------------------------------------------------

    def frozen(self, *patterns: str) -> Network:
        """A copy in which the weights and biases that match a pattern (``"x->*"``, ``"h1.bias"``) stay fixed.

        Raises:
            NetworkError: for a pattern that matches nothing.
        """
        other = self.copy()
        weights = [n for n, w in self.wires.items() if w.connection.weighted and not w.tied]
        names = [*weights, *(f"{n}.bias" for n, u in self.units.items() if u.bias)]
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in names):
                raise NetworkError(f"frozen: no weight or bias matches {pattern!r}; there are {', '.join(names)}")
        for name in names:
            if any(fnmatchcase(name, pattern) for pattern in patterns):
                if name in other.wires:
                    other.wires[name] = replace(other.wires[name], trained=False)
                else:
                    unit = name.removesuffix(".bias")
                    other.units[unit] = replace(other.units[unit], bias_trained=False)
        return other

    def readout_only(self) -> Network:
        """A copy in which only connections into outputs are trained: the floor that every rule must clear."""
        hidden = [
            name
            for name, wire in self.wires.items()
            if wire.connection.weighted and not wire.tied and wire.post not in self.outputs
        ]
        biases = [f"{n}.bias" for n, u in self.units.items() if u.bias and n not in self.outputs]
        return self.frozen(*hidden, *biases)

    def copy(self) -> Network:
        """An independent network that shares the (immutable) parts."""
        other = copy(self)
        other.units, other.wires, other.losses = dict(self.units), dict(self.wires), dict(self.losses)
        return other

    def _free(self, name: str) -> None:
        if not isinstance(name, str) or not name or "->" in name or "@" in name or name in RESERVED:
            raise NetworkError(
                f"{name!r} cannot name a node: use a non-empty string without '->' or '@', not {', '.join(RESERVED)}"
            )
        if name.endswith((".bias", ".target", ".link")):
            raise NetworkError(
                f"{name!r}: names that end in .bias, .target and .link are those of biases, targets and links"
            )
        if name in self.units or name in self.losses:
            raise NetworkError(f"there is already a node called {name!r}; names are unique")

    def __repr__(self) -> str:
        units = [
            f"  {u.name}: {'input' if u.is_input else u.activation} {_text(u.shape)}"
            + f" of {', '.join(u.operands)}" * bool(u.operands)
            for u in self.units.values()
        ]
        wires = [f"  {w.name}: {w.connection}{_remarks(w)}" for w in self.wires.values()]
        losses = [f"  {node.name}: {node.loss} on {node.pre}" for node in self.losses.values()]
        return "\n".join(["Network(", *units, *wires, *losses, ")"])


# The arguments of the methods above are called like the functions that read them.
_activation, _connection, _loss = activation, connection, loss


def _remarks(wire: Wire) -> str:
    return "".join(
        [
            "" if wire.trained else ", fixed",
            f", delay {wire.delay}" if wire.delay else "",
            f", weights of {wire.tied}{' transposed' if wire.transposed else ''}" if wire.tied else "",
        ]
    )


def _text(shape: Iterable[int]) -> str:
    return "x".join(map(str, shape))


def _shape(name: str, size: Size) -> tuple[int, ...]:
    shape = size if isinstance(size, tuple) else (size,)
    if not shape or not all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in shape):
        raise NetworkError(f"{name!r}: size must be a positive integer or a tuple of them, got {size!r}")
    return shape


def _weight(name: str, value: Tensor | float, shape: tuple[int, ...] | None) -> Tensor:
    tensor = torch.as_tensor(value).detach().cpu()
    if shape is not None and tensor.ndim and tuple(tensor.shape) != shape:
        raise NetworkError(f"{name!r}: weight has shape {tuple(tensor.shape)}, the connection needs {shape}")
    return tensor
