"""What a person draws: inputs, units, connections and losses. There is no learning rule in it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from copy import copy
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase

import torch
from torch import Tensor

from .connection import Connection, Dense, connection
from .errors import NetworkError, unknown
from .kinds import Identity, Kind, activation
from .losses import Loss, loss

Size = int | tuple[int, ...]


@dataclass(frozen=True)
class Unit:
    """A population of inputs or neurons. ``shape`` is that of one example; inputs compute nothing."""

    name: str
    shape: tuple[int, ...]
    kind: Kind = field(default_factory=Identity)
    is_input: bool = False
    bias: bool = False
    bias_value: Tensor | None = None
    bias_trained: bool = True


@dataclass(frozen=True)
class Wire:
    """A connection that was drawn between two units."""

    name: str
    pre: str
    post: str
    connection: Connection
    weight: Tensor | None = None
    trained: bool = True


@dataclass(frozen=True)
class LossNode:
    """A loss on the output of a unit."""

    name: str
    pre: str
    loss: Loss


class Network:
    """A directed graph of populations; every method that adds to it returns the name that was given.

    Example:
        >>> network = Network()
        >>> x, h, y = network.input("x", 64), network.unit("h1", 32, activation="tanh"), network.unit("y", 10)
        >>> network.connect(x, h), network.connect(h, y), network.loss(y, "cross_entropy")
        ('x->h1', 'h1->y', 'loss')
    """

    def __init__(self) -> None:
        self.units: dict[str, Unit] = {}
        self.wires: dict[str, Wire] = {}
        self.losses: dict[str, LossNode] = {}

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
        activation: str | Kind | Callable[[Tensor], Tensor] = "identity",
        *,
        bias: bool | Tensor = True,
    ) -> str:
        """Add a population of units, each computing ``activation(sum of messages + bias)``.

        Args:
            name: unique; used in states, errors and listings.
            size: number of units, or their shape.
            activation: a name (identity, tanh, sigmoid, relu, softplus, step), an :class:`mpgraph.Kind`, or any
                function of one tensor, differentiable or not.
            bias: whether there is one, or its initial value (zeros by default).

        Raises:
            NetworkError: for a name in use, a size that is not positive, an unknown activation.
        """
        self._free(name)
        shape = _shape(name, size)
        value = None if isinstance(bias, bool) else _weight(f"{name}.bias", bias, shape)
        self.units[name] = Unit(name, shape, _activation(activation), False, bias is not False, value)
        return name

    def connect(
        self,
        pre: str,
        post: str,
        connection: str | Connection = "dense",
        *,
        weight: Tensor | float | None = None,
        trained: bool = True,
    ) -> str:
        """Connect two units; the second connection of a pair is called ``pre->post#1``.

        Args:
            pre: where forward messages come from: an input or a unit.
            post: where they go: a unit (or a loss, for connections that carry feedback alone).
            connection: ``dense``, ``one_to_one`` or a :class:`mpgraph.Connection`.
            weight: initial weights ``(*post, *pre)`` (dense), or one number; by default the rule draws them.
            trained: ``False`` keeps the weights fixed under every rule.

        Raises:
            NetworkError: for an unknown unit or connection, shapes that do not fit, an input as ``post``.
        """
        for end, name in (("pre", pre), ("post", post)):
            if name not in self.units and not (end == "post" and name in self.losses):
                raise NetworkError(f"connect({pre!r}, {post!r}): " + unknown("unit", name, self.units))
        if post in self.units and self.units[post].is_input:
            raise NetworkError(f"connect({pre!r}, {post!r}): {post!r} is an input and receives no connections")
        meeting = _connection(connection)
        shapes = self.shape(pre), self.shape(post)
        problem = meeting.check(*shapes)
        if problem:
            raise NetworkError(f"connect({pre!r}, {post!r}): {problem}")
        name, count = f"{pre}->{post}", sum((w.pre, w.post) == (pre, post) for w in self.wires.values())
        name += f"#{count}" if count else ""
        if weight is not None:
            layout = (*shapes[1], *shapes[0]) if isinstance(meeting, Dense) else None
            weight = _weight(name, weight, layout)
        self.wires[name] = Wire(name, pre, post, meeting, weight, trained)
        return name

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
        return tuple(n for n, u in self.units.items() if not u.is_input and n not in sources)

    # -- variants -----------------------------------------------------------------------------------------

    def frozen(self, *patterns: str) -> Network:
        """A copy in which the weights and biases that match a pattern (``"x->*"``, ``"h1.bias"``) stay fixed.

        Raises:
            NetworkError: for a pattern that matches nothing.
        """
        other = self.copy()
        names = [*self.wires, *(f"{n}.bias" for n, u in self.units.items() if u.bias)]
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
        hidden = [name for name, wire in self.wires.items() if wire.post not in self.outputs]
        biases = [f"{n}.bias" for n, u in self.units.items() if u.bias and n not in self.outputs]
        return self.frozen(*hidden, *biases)

    def copy(self) -> Network:
        """An independent network that shares the (immutable) parts."""
        other = copy(self)
        other.units, other.wires, other.losses = dict(self.units), dict(self.wires), dict(self.losses)
        return other

    def _free(self, name: str) -> None:
        if not isinstance(name, str) or not name or "->" in name or name in ("program", "one"):
            raise NetworkError(
                f"{name!r} cannot name a node: use a non-empty string without '->', not 'program' or 'one'"
            )
        if name in self.units or name in self.losses:
            raise NetworkError(f"there is already a node called {name!r}; names are unique")

    def __repr__(self) -> str:
        units = [f"  {u.name}: {'input' if u.is_input else u.kind} {_text(u.shape)}" for u in self.units.values()]
        wires = [f"  {w.name}: {w.connection}" + ("" if w.trained else ", fixed") for w in self.wires.values()]
        losses = [f"  {node.name}: {node.loss} on {node.pre}" for node in self.losses.values()]
        return "\n".join(["Network(", *units, *wires, *losses, ")"])


# The arguments of the methods above are called like the functions that read them.
_activation, _connection, _loss = activation, connection, loss


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
        raise NetworkError(
            f"{name!r}: weight has shape {tuple(tensor.shape)}, the connection needs {shape} (post, pre)"
        )
    return tensor
