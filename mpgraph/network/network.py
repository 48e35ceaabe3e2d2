"""What a person defines: inputs, units, connections and losses. There is no learning rule in it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from copy import copy
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from mpgraph.arguments import Arguments
from mpgraph.errors import NetworkError, adding, unknown

from .activations import Activation, activation
from .connections import Connection, Dense, connection
from .given import own_tensor, with_own_tensors
from .losses import Loss, loss
from .operations import OPERATIONS, Operation, Whole
from .parts import LossNode, Unit, Wire, check_name

if TYPE_CHECKING:
    import networkx

Size = int | tuple[int, ...]


class Network:
    """A directed graph of populations; every method that adds to it returns the name that was given.

    Tensors and arrays are copied when they are given, so the network does not follow later changes of them.

    Args:
        ticks: how often the network runs for one example. With more than one, inputs are ``(batch, ticks, *size)``,
            connections may have delays, and the prediction is that of the last tick. With
            ``mg.compile(..., sequences=True)`` or ``online=True`` sequences have any length.

    Example:
        >>> network = Network()
        >>> x, h, y = network.input("x", 64), network.unit("h1", 32, activation="tanh"), network.unit("y", 10)
        >>> network.connect(x, h), network.connect(h, y), network.loss(y, "cross_entropy")
        ('x->h1', 'h1->y', 'loss')
    """

    def __init__(self, ticks: int = 1) -> None:
        self.ticks = Arguments("Network", NetworkError).integer("ticks", ticks, 1)
        self.units: dict[str, Unit] = {}
        self.wires: dict[str, Wire] = {}
        self.losses: dict[str, LossNode] = {}
        self.edges: Callable[[Any, Any, Any], tuple[str, tuple[int, ...]]] | None = None
        self.module: Any = None  # what from_torch read, for to_torch

    # -- adding -------------------------------------------------------------------------------------------

    def input(self, name: str, size: Size) -> str:
        """Add an input; a batch for it has shape ``(batch, *size)``.

        Raises:
            NetworkError: for a name in use or a size that is not positive.
        """
        self._free(name)
        shape = Arguments(f"input {name!r}", NetworkError).shape("size", size)
        self.units[name] = Unit(name, shape, is_input=True)
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

        An activation is copied with everything in it: modules, lists and dictionaries. Only tensors that require a
        gradient stay yours, to be learned from outside, and those are by default the parameters of a module: call
        ``module.requires_grad_(False)`` first to have them copied. What a function closes over cannot be copied; do
        not change it afterwards.

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
            NetworkError: for a name in use, a size that is not positive, an unknown activation, initial values that
                are not finite.
        """
        self._free(name)
        check = Arguments(f"unit {name!r}", NetworkError)
        shape = check.shape("size", size)
        shared: tuple[int, ...] = (1, 2) if len(shape) == 3 else ()
        if bias_shared is not None:
            shared = check.dimensions("bias_shared", bias_shared, len(shape))
        value = None
        if not isinstance(bias, (bool, np.bool_)):
            value = _own(f"unit {name!r}: bias", bias, tuple(n for i, n in enumerate(shape) if i not in shared))
        with adding(f"unit {name!r}"):
            function = _activation(activation)
        if isinstance(function, Operation):
            raise NetworkError(f"unit {name!r}: {function!r} is an operation; use network.operation({name!r}, ...)")
        function = with_own_tensors(function)
        function.size = shape
        if not isinstance(values, Mapping | None):
            check.refuse("values", values, "a dictionary of initial values by channel")
        given = {c: _own(f"unit {name!r}: values[{c!r}]", number, None) for c, number in (values or {}).items()}
        for channel, numbers in given.items():
            problem = function.problem(channel, numbers)
            if problem:
                raise NetworkError(f"unit {name!r}: values[{channel!r}]: {problem}")
        has_bias = value is not None or bool(bias)
        self.units[name] = Unit(name, shape, function, False, has_bias, value, bias_shared=shared, values=given)
        return name

    def operation(self, name: str, operation: str | Operation | Callable[..., Tensor], *operands: str) -> str:
        """Add an operation on whole units: pooling, reshaping, a product, concatenation.

        Args:
            name: unique; the operation can be connected onwards like a unit, but not to.
            operation: ``product``, ``concat``, ``flatten``, ``max_pool``, ``avg_pool``, ``global_avg_pool``, an
                :class:`mpgraph.Operation`, or any function of tensors ``(batch, *shape)`` that treats every example by
                itself: ``lambda q, k: q @ k.mT``.
            operands: units, inputs or operations, each once.

        Raises:
            NetworkError: for a name in use, an unknown operation or operand, operands that do not fit.
        """
        self._free(name)
        found: Any = operation if isinstance(operation, Operation) else OPERATIONS.get(str(operation))
        if found is None and callable(operation) and not isinstance(operation, (type, Activation)):
            found = Whole(operation)
        if found is None or isinstance(operation, type):
            hint = f"; pass an instance, {operation.__name__}(...)" if isinstance(operation, type) else ""
            raise NetworkError(f"operation {name!r}: {unknown('operation', operation, OPERATIONS)}{hint}")
        for operand in operands:
            self._unit(operand, f"operation {name!r}", self.units)
        if not operands or len(set(operands)) < len(operands):
            raise NetworkError(f"operation {name!r} needs operands, each once, got {list(operands)}")
        try:
            function = (with_own_tensors(found) if isinstance(found, Operation) else found()).on(
                *map(self.shape, operands)
            )
        except NetworkError as error:
            raise NetworkError(f"operation {name!r}: {error}") from None
        self.units[name] = Unit(name, function.size, function, operands=operands)
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
            post: where they go: a unit (or a loss, for connections that only carry feedback).
            connection: ``dense``, ``one_to_one``, ``identity`` (no weights) or a :class:`mpgraph.Connection`.
            weight: initial weights, ``(*post, *pre)`` if dense, or one number; by default the rule samples them.
            trained: ``False`` keeps the weights fixed under every rule.
            delay: ticks that a message travels; nothing arrives before. Delays start anew with each step.
            tied: name of a connection whose weights (and all that is kept with them) this one uses too.
            transposed: whether it uses them the other way round (dense only).
            pathway: under which name a protocol holds the agent of its synapses. Any other than ``weight`` is also the
                role that they fill at both ends: a pathway of its own (``feedback``).

        Raises:
            NetworkError: for an unknown unit or connection, shapes that do not fit, an input as ``post``.
        """
        where = f"connect({pre!r}, {post!r})"
        check = Arguments(where, NetworkError)
        self._unit(pre, where, self.units)
        if post not in self.losses:
            self._unit(post, where, [n for n, u in self.units.items() if not u.is_input and not u.operands])
        trained, transposed = check.flag("trained", trained), check.flag("transposed", transposed)
        delay = check.integer("delay", delay, 0)
        if not isinstance(pathway, str) or not pathway:
            check.refuse("pathway", pathway, "a name, such as 'feedback'")
        if post in self.losses and pathway == "weight":
            raise NetworkError(
                f"{where}: a loss receives its prediction from the unit that it is put on, so this connection would do "
                "nothing; connect a unit and put a loss on that, network.loss(unit, ...), or for a connection that "
                "carries feedback name its pathway, pathway='feedback'"
            )
        with adding(where):
            synapses = _connection(connection)
        shapes = self.shape(pre), self.shape(post)
        problem = synapses.check(*shapes)
        if problem:
            raise NetworkError(f"{where}: {problem}")
        count = sum((w.pre, w.post) == (pre, post) for w in self.wires.values())
        name = f"{pre}->{post}" + (f"#{count}" if count else "")
        while name in self.wires:  # of a unit whose own name ends in #1
            name += "#1"
        own = synapses.weight_shape(*shapes)
        if transposed and not (tied and isinstance(synapses, Dense)):
            raise NetworkError(f"{name!r}: transposed needs tied= and a dense connection")
        if tied is not None:
            self._tie(name, tied, synapses.weight_shape(*shapes[::-1]) if transposed else own)
        if weight is not None:
            if tied or not synapses.weighted:
                raise NetworkError(f"{name!r}: a {'tied' if tied else synapses} connection takes no weight of its own")
            weight = _own(f"{name!r}: weight", weight, own)
        self.wires[name] = Wire(name, pre, post, synapses, weight, trained, delay, tied, transposed, pathway)
        return name

    def _tie(self, name: str, tied: str, shape: tuple[int, ...]) -> None:
        if not isinstance(tied, str) or tied not in self.wires:
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
        self._unit(pre, f"loss on {pre!r}", [n for n, u in self.units.items() if not u.is_input])
        name = name if name is not None else ("loss" if "loss" not in self.losses else f"{pre}.loss")
        self._free(name)
        with adding(f"loss {name!r} on {pre!r}"):
            found = _loss(loss)
        self.losses[name] = LossNode(name, pre, with_own_tensors(found))
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
    def from_networkx(
        cls,
        graph: Any,
        *,
        loss: str | Loss | None = None,
        ticks: int = 1,
        cycles: Literal["refused", "synchronous", "feedback_arcs"] = "refused",
    ) -> Network:
        """A network in which every node of a networkx graph is one neuron and every edge one weight.

        See :mod:`mpgraph.convert.grouping` for the attributes that are read and how neurons are grouped.

        Args:
            graph: a directed (multi)graph.
            loss: on the outputs, as in :meth:`loss`; ``None`` for a network without one.
            ticks: as in ``Network(ticks=...)``, for graphs with delays: how often all neurons run for one example.
            cycles: of edges whose ``delay`` is 0 or not given. ``"refused"``: an error. ``"synchronous"``: every edge
                between neurons takes one tick, so that all run at once and hear what the others said a tick ago; those
                from inputs arrive within the tick. ``"feedback_arcs"``: few edges that close cycles take one tick, the
                others arrive within the tick; which they are ``network.wires`` says.

        Raises:
            NetworkError: for a graph without inputs or outputs, unknown attributes, a cycle without delay, or fewer
                ticks than delays need.
        """
        from mpgraph.convert.grouping import from_networkx

        return from_networkx(graph, loss=loss, ticks=ticks, cycles=cycles)

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
            module: any ``torch.fx``-traceable module of linear layers (also over tokens), convolutions, embeddings,
                activations, normalizations, pooling, attention and transformer encoders, recurrent layers, and
                functions of tensors; docs/networks.md has all.
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
        if not patterns:
            raise NetworkError('frozen needs at least one pattern of weights or biases, such as frozen("x->*")')
        for pattern in patterns:
            if not isinstance(pattern, str):
                raise NetworkError(f"frozen: a pattern is a string such as 'x->*', got {pattern!r}")
            if not any(fnmatchcase(name, pattern) for name in names):
                tied = self.wires[pattern].tied if pattern in self.wires else None
                hint = f"; {pattern!r} uses the weights of {tied!r}, so freeze that" if tied else ""
                raise NetworkError(
                    f"frozen: no weight or bias matches {pattern!r}; there are {', '.join(names) or 'none'}{hint}"
                )
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
        fixed = [*hidden, *biases]
        return self.frozen(*fixed) if fixed else self.copy()

    def copy(self) -> Network:
        """An independent network that shares the (immutable) parts."""
        other = copy(self)
        other.units, other.wires, other.losses = dict(self.units), dict(self.wires), dict(self.losses)
        return other

    def _unit(self, name: Any, where: str, allowed: Iterable[str]) -> None:
        """Refuse what is not the name of an allowed unit, and say why."""
        if isinstance(name, str) and name in allowed:
            return
        unit = self.units.get(name) if isinstance(name, str) else None
        if unit is not None and unit.is_input:
            why = f"{name!r} is an input and receives no messages; choose a unit"
        elif unit is not None:
            why = f"{name!r} is an operation; its operands are given with it, in network.operation"
        elif isinstance(name, str) and name in self.losses:
            why = (
                f"{name!r} is a loss, which sends no forward messages; use the unit that it is put on, "
                f"{self.losses[name].pre!r}. What a loss sends back is the rule's affair"
            )
        elif isinstance(name, str) and name in self.wires:
            why = f"{name!r} is a connection; give the name of a unit"
        else:
            why = unknown("unit", name, allowed)
        raise NetworkError(f"{where}: {why}")

    def _free(self, name: Any) -> None:
        """Refuse a name that cannot name a node, or that is taken."""
        check_name(name)
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


def _own(what: str, value: Any, shape: tuple[int, ...] | None) -> Tensor:
    """A copy of given weights or biases, held against the shape that they must have; one number serves for all."""
    tensor = own_tensor(what, value)
    if shape is not None and tensor.ndim and tuple(tensor.shape) != shape:
        whose = "unit" if what.startswith("unit") else "connection"
        raise NetworkError(f"{what} has shape {tuple(tensor.shape)}, the {whose} needs {shape}")
    return tensor
