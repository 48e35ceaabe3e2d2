"""Builds a network from a traced torch module: sums of messages, the units that take them, and their names."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn

import torch
from torch import Tensor, fx, nn

from mpgraph.errors import NetworkError
from mpgraph.network.activations import Activation, Identity
from mpgraph.network.connections import Connection, OneToOne
from mpgraph.network.network import Network
from mpgraph.network.operations import Flatten, Operation, Reshape
from mpgraph.network.parts import RESERVED

from .torch_trace import Shape, Traced, function_name, where


@dataclass
class Term:
    """One connection into a unit that is still to be added."""

    pre: str
    connection: Connection | str = "identity"
    weight: nn.Parameter | None = None


@dataclass
class Sum:
    """A sum of messages that has no unit yet: what follows, an activation or another sum, may share one with it.

    Attributes:
        parts: paths of the submodules whose parameters it holds; they name the unit.
        label: its name where there are none.
    """

    shape: Shape
    label: str
    terms: list[Term]
    bias: nn.Parameter | None = None
    parts: tuple[str, ...] = ()


@dataclass
class Placed:
    """The numbers of a node of the network, in a shape that is made only where it matters."""

    name: str
    shape: Shape
    label: str = ""


Result = Sum | Placed


class Ones(Operation):
    """The number one in any shape: a bias that several units share is a connection from it.

    Args:
        wanted: the shape.
    """

    def __init__(self, *wanted: int) -> None:
        self.wanted = wanted

    def shape(self, *operands: Shape) -> Shape:  # noqa: D102
        return self.wanted

    def apply(self, *z: Tensor) -> Tensor:  # noqa: D102
        return z[0].new_ones((z[0].shape[0], *self.wanted))

    def vjp(self, e: Any, z: Any, y: Any) -> tuple[Tensor, ...]:
        """Zero: the number one does not depend on the operand."""
        return (torch.zeros_like(z[0]),)


@dataclass
class Builder:
    """Adds a traced module to a network, call by call.

    Args:
        traced: the module's graph.
        module: the module, with its numbers.

    Attributes:
        network: what has been added.
        places: node and channel of the state by the name of a parameter or buffer.
    """

    traced: Traced
    module: nn.Module
    network: Network = field(default_factory=Network)
    places: dict[str, tuple[str, str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._results: dict[fx.Node, Result] = {}
        self._wires: dict[int, str] = {}  # by parameter, the connection that holds it
        self._names = {id(p): name for name, p in self.module.named_parameters()}
        self._used = Counter(
            id(parameter)
            for node in self.traced.nodes
            if node.op == "call_module"
            for parameter in self.module.get_submodule(str(node.target)).parameters()
        )
        self._ones: dict[Shape, str] = {}

    def build(self, convert: Callable[[Builder, fx.Node], Result]) -> str:
        """Add everything, each call by ``convert``; returns the name of the output."""
        for node in self.traced.nodes:
            if node.op == "placeholder":
                name = self.network.input(self.traced.inputs[node], self.shape(node))
                self._results[node] = Placed(name, self.shape(node))
            else:
                self._results[node] = convert(self, node)
        output = self.name_of(self.traced.output)
        if self.network.units[output].is_input:
            raise NetworkError(f"the module returns its input {output!r} as it is; there is nothing to learn")
        return output

    # -- reading ------------------------------------------------------------------------------------------

    def shape(self, node: fx.Node) -> Shape:
        """Shape of one example of a call's result."""
        return self.traced.shapes[node]

    def operands(self, node: fx.Node) -> list[fx.Node]:
        """The tensors that a call takes, in order, repeats included."""
        found: list[fx.Node] = []
        fx.node.map_arg((node.args, node.kwargs), lambda n: found.append(n) if n in self.traced.shapes else None)
        return found

    def arguments(self, node: fx.Node, *names: str) -> dict[str, Any]:
        """A function's other arguments by name."""
        given = {
            **dict(zip(names, node.args[1:], strict=False)),
            **{k: v for k, v in node.kwargs.items() if k in names},
        }
        return {name: self.traced.constant(node, value) for name, value in given.items()}

    def refuse(self, node: fx.Node, why: str) -> NoReturn:
        """Raise an error that names the call."""
        raise NetworkError(f"{where(node, self.traced.module)}: {why}")

    def label(self, node: fx.Node) -> str:
        """Dotted name of a call: its submodule, or the function within the submodule that calls it."""
        path = node.meta.get("path", "")
        return path if node.op == "call_module" else f"{path}.{function_name(node)}".lstrip(".")

    # -- adding -------------------------------------------------------------------------------------------

    def name(self, *labels: str) -> str:
        """A new name: paths with underscores for dots, what the later ones share with the first left out."""
        first, *others = [label.split(".") for label in labels]
        parts = [*first, *(part for other in others for part in _rest(first, other))]
        if parts[0][:1].isdigit():  # an entry of a Sequential
            parts.insert(0, type(_entry(self.module, first)).__name__.lower())
        name = wanted = re.sub(r"\W", "_", "_".join(parts))
        taken, count = {*RESERVED, *self.network.units, *self.traced.inputs.values(), "loss"}, 1
        while name in taken:
            count += 1
            name = f"{wanted}_{count}"
        return name

    def name_of(self, node: fx.Node) -> str:
        """The node of the network that holds a call's result, in its shape."""
        value = self._results[node]
        if isinstance(value, Sum):
            name = self.unit(value, Identity())
        elif self.network.shape(value.name) == value.shape:
            name = value.name
        else:
            reshape = Flatten() if len(value.shape) == 1 else Reshape(*value.shape)
            name = self.network.operation(self.name(value.label), reshape, value.name)
        self._results[node] = Placed(name, self.shape(node))
        return name

    def take(self, node: fx.Node, label: str) -> Sum:
        """A call's result as a sum, to be continued by the only call that uses it."""
        value = self._results[node]
        if isinstance(value, Sum) and self.traced.uses[node] == 1:
            return value
        return Sum(self.shape(node), label, [Term(self.name_of(node))])

    def passed(self, node: fx.Node, source: fx.Node) -> Result:
        """A call whose result is its operand."""
        if self.traced.uses[source] > 1:
            self.name_of(source)
        return self._results[source]

    def weighted(self, label: str, shape: Shape, pre: str, connection: Connection | str, weight: Any, bias: Any) -> Sum:
        """Messages of one unit through weights, plus a bias."""
        terms = [] if weight is None else [Term(pre, connection, weight)]
        if weight is None:
            terms.append(Term(pre))
        if bias is not None and self._used[id(bias)] > 1:
            ones = self._ones.get(shape) or self.network.operation(
                self.name("ones"), Ones(*shape), self.network.inputs[0]
            )
            self._ones[shape] = ones
            terms.append(Term(ones, OneToOne(tuple(range(bias.ndim, len(shape)))), bias))
            bias = None
        return Sum(shape, label, terms, bias, (label,))

    def unit(self, value: Sum, kind: Activation, *more: str, values: dict[str, Tensor] | None = None) -> str:
        """The unit of a sum; ``more`` are labels of what it also does."""
        if isinstance(kind, Identity) and value.bias is None and [t.weight for t in value.terms] == [None]:
            return value.terms[0].pre
        name = self.name(*((*value.parts, *more) or (value.label,)))
        bias: bool | Tensor = False
        if value.bias is not None:
            bias = value.bias.detach()
            self.places[self._names[id(value.bias)]] = (f"{name}.bias", "w")
        shared = None if value.bias is None else tuple(range(value.bias.ndim, len(value.shape)))
        self.network.unit(name, value.shape, kind, bias=bias, bias_shared=shared, values=values)
        if value.bias is not None and not value.bias.requires_grad:
            self.network.units[name] = replace(self.network.units[name], bias_trained=False)
        for term in value.terms:
            self._connect(term, name)
        return name

    def _connect(self, term: Term, post: str) -> None:
        weight = term.weight
        if weight is None or id(weight) in self._wires:
            tied = None if weight is None else self._wires[id(weight)]
            self.network.connect(term.pre, post, term.connection, tied=tied)
            return
        trained = weight.requires_grad
        wire = self.network.connect(term.pre, post, term.connection, weight=weight.detach(), trained=trained)
        self._wires[id(weight)] = wire
        self.places[self._names[id(weight)]] = (wire, "w")

    def activated(self, node: fx.Node, source: fx.Node, kind: Activation) -> Placed:
        """A function of one value."""
        if self.shape(source) != self.shape(node):
            self.refuse(node, f"must keep the shape of its operand, {self.shape(source)}; it makes {self.shape(node)}")
        return Placed(self.unit(self.take(source, self.label(node)), kind), self.shape(node))

    def operation(self, node: fx.Node, operation: str | Operation, *operands: fx.Node) -> Placed:
        """An operation on values, of which some may be the same."""
        names: list[str] = []
        for operand in operands:
            name = self.name_of(operand)
            if name in names:  # an operation takes each operand once: a second unit repeats it
                again = self.network.unit(self.name(self.label(node), "again"), self.shape(operand), bias=False)
                self.network.connect(name, again, "identity")
                name = again
            names.append(name)
        result = self.network.operation(self.name(self.label(node)), operation, *names)
        return Placed(result, self.shape(node), f"{self.label(node)}.shaped")


def _rest(first: list[str], other: list[str]) -> list[str]:
    """A path without what it shares with another but for its last part."""
    shared = 0
    while shared < len(other) - 1 and other[: shared + 1] == first[: shared + 1]:
        shared += 1
    return other[shared:]


def _entry(module: nn.Module, path: list[str]) -> nn.Module:
    """The first submodule on a path that is more than a list of others."""
    for part in path:
        module = module.get_submodule(part)
        if not isinstance(module, (nn.Sequential, nn.ModuleList)):
            break
    return module
