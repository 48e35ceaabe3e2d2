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
from mpgraph.network.parts import RESERVED, Unit

from .torch_trace import Shape, Traced, function_name, where


@dataclass
class Term:
    """One connection into a unit that is still to be added."""

    pre: str
    connection: Connection | str = "identity"
    weight: Tensor | None = None
    delay: int = 0


@dataclass
class Sum:
    """A sum of messages that has no unit yet: what follows, an activation or another sum, may share one with it.

    Attributes:
        bias_shared: dimensions along which one bias serves all.
        parts: paths of the submodules whose parameters it holds; they name the unit.
        label: its name where there are none.
    """

    shape: Shape
    label: str
    terms: list[Term]
    bias: Tensor | None = None
    bias_shared: tuple[int, ...] = ()
    parts: tuple[str, ...] = ()


@dataclass
class Placed:
    """The numbers of a node of the network, in a shape that is made only where it matters."""

    name: str
    shape: Shape
    label: str = ""


@dataclass
class Several:
    """What a call that returns several tensors returns: a function of some nodes, of which each part is an operation.

    ``parts``, where they are known, are nodes already.
    """

    function: Callable[..., Any] | None = None
    operands: tuple[fx.Node, ...] = ()
    parts: tuple[Any, ...] = ()


@dataclass
class Held:
    """A parameter or buffer that is used directly, without a layer."""

    tensor: Tensor
    path: str


Value = Sum | Placed
Result = Value | Several | Held


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
        network: what is added to.
        timed: values of which the network has one at each tick, and their number; they have one dimension less.

    Attributes:
        places: node and channel of the state by the name of a parameter or buffer.
    """

    traced: Traced
    module: nn.Module
    network: Network
    timed: frozenset[fx.Node] = frozenset()
    places: dict[str, tuple[str, str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._results: dict[fx.Node, Result] = {}
        self._wires: dict[int, str] = {}  # by parameter, the connection that holds it
        self._names = {id(p): name for name, p in (*self.module.named_buffers(), *self.module.named_parameters())}
        self._used: Counter[int] = Counter()
        for node in self.traced.nodes:
            if node.op == "call_module":
                self._used.update(id(p) for p in self.module.get_submodule(str(node.target)).parameters())
            elif node.op == "get_attr":
                self._used.update([id(self.tensor(node))] * self.traced.uses[node])
        self._ones: dict[Shape, str] = {}

    def build(self, convert: Callable[[Builder, fx.Node], Result]) -> str:
        """Add everything, each call by ``convert``; returns the name of the output."""
        for node in self.traced.nodes:
            if node.op == "placeholder":
                name = self._input(self.traced.inputs[node], self.shape(node))
                self._results[node] = Placed(name, self.shape(node))
            elif node.op == "get_attr":
                self._results[node] = Held(self.tensor(node), str(node.target))
            else:
                self._results[node] = convert(self, node)
        output = self.name_of(self.traced.output)
        if self.network.units[output].is_input:
            raise NetworkError(f"the module returns its input {output!r} as it is; there is nothing to learn")
        return output

    def _input(self, name: str, shape: Shape) -> str:
        """An input; one symbol at each tick is a single number, without any dimension."""
        if shape:
            return self.network.input(name, shape)
        self.network.units[name] = Unit(name, (), is_input=True)
        return name

    # -- reading ------------------------------------------------------------------------------------------

    def shape(self, node: fx.Node) -> Shape:
        """Shape of one example of a call's result, at one tick where there are ticks."""
        shape = self.traced.shape(node)
        return shape[1:] if node in self.timed else shape

    def tensor(self, node: fx.Node) -> Tensor:
        """The parameter or buffer of the module that is used directly."""
        found: Any = self.module
        for part in str(node.target).split("."):
            found = getattr(found, part)
        return found

    def result(self, node: fx.Node) -> Result:
        """What has become of a call."""
        return self._results[node]

    def value(self, node: fx.Node) -> Value:
        """What has become of a call whose result is one activity."""
        value = self._results[node]
        if isinstance(value, Several | Held):
            self.refuse(node, "is used as if it were one activity; choose one of its results")
        return value

    def operands(self, node: fx.Node) -> list[fx.Node]:
        """The activities that a call takes, in order, repeats included."""
        return [n for n in self._tensors(node) if n.op != "get_attr"]

    def held(self, node: fx.Node) -> list[fx.Node]:
        """The parameters and buffers that a call takes directly, in order."""
        return [n for n in self._tensors(node) if n.op == "get_attr"]

    def _tensors(self, node: fx.Node) -> list[fx.Node]:
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
        value = self.value(node)
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

    def passed(self, node: fx.Node, source: fx.Node) -> Value:
        """A call whose result is its operand."""
        if self.traced.uses[source] > 1:
            self.name_of(source)
        return self.value(source)

    def weighted(
        self,
        label: str,
        shape: Shape,
        pre: str,
        connection: Connection | str,
        weight: Tensor | None,
        bias: Tensor | None,
        bias_shared: tuple[int, ...] | None = None,
    ) -> Sum:
        """Messages of one unit through weights, plus a bias, by default one for each place of the first dimensions."""
        terms = [Term(pre) if weight is None else Term(pre, connection, weight)]
        value = Sum(shape, label, terms, parts=(label,))
        if bias is not None:
            self.add_bias(value, bias, tuple(range(bias.ndim, len(shape))) if bias_shared is None else bias_shared)
        return value

    def add_bias(self, value: Sum, bias: Tensor, shared: tuple[int, ...]) -> None:
        """One bias is that of the unit; a second one, or one of several units, is a connection from the number one."""
        if value.bias is None and self._used[id(bias)] == 1:
            value.bias, value.bias_shared = bias, shared
            return
        shape = value.shape
        if shape not in self._ones:
            self._ones[shape] = self.network.operation(self.name("ones"), Ones(*shape), self.network.inputs[0])
        value.terms.append(Term(self._ones[shape], OneToOne(shared), bias))

    def unit(self, value: Sum, kind: Activation, *more: str, values: dict[str, Tensor] | None = None) -> str:
        """The unit of a sum; ``more`` are labels of what it also does."""
        if isinstance(kind, Identity) and value.bias is None and [t.weight for t in value.terms] == [None]:
            return value.terms[0].pre
        name = self.name(*((*value.parts, *more) or (value.label,)))
        bias: bool | Tensor = False
        if value.bias is not None:
            own = [n for dim, n in enumerate(value.shape) if dim not in value.bias_shared]
            bias = value.bias.detach().reshape(own)
            self.places[self._names[id(value.bias)]] = (f"{name}.bias", "w")
        shared = None if value.bias is None else value.bias_shared
        self.network.unit(name, value.shape, kind, bias=bias, bias_shared=shared, values=values)
        if value.bias is not None and not value.bias.requires_grad:
            self.network.units[name] = replace(self.network.units[name], bias_trained=False)
        for term in value.terms:
            self.connect(term, name)
        return name

    def connect(self, term: Term, post: str) -> None:
        """Connect a unit to one that exists, with the weights of a parameter; later uses of it are tied."""
        weight = term.weight
        if weight is None or id(weight) in self._wires:
            tied = None if weight is None else self._wires[id(weight)]
            self.network.connect(term.pre, post, term.connection, tied=tied, delay=term.delay)
            return
        trained, numbers = weight.requires_grad, weight.detach()
        if isinstance(term.connection, OneToOne):  # the one number of an nn.PReLU, a gain with dimensions of one
            shape = self.network.shape(post)
            numbers = numbers.reshape(term.connection.weight_shape(shape, shape))
        wire = self.network.connect(term.pre, post, term.connection, weight=numbers, trained=trained, delay=term.delay)
        self._wires[id(weight)] = wire
        self.places[self._names[id(weight)]] = (wire, "w")

    def activated(self, node: fx.Node, source: fx.Node, kind: Activation) -> Placed:
        """A function of one value."""
        if self.shape(source) != self.shape(node):
            self.refuse(node, f"must keep the shape of its operand, {self.shape(source)}; it makes {self.shape(node)}")
        return Placed(self.unit(self.take(source, self.label(node)), kind), self.shape(node))

    def operation(
        self, node: fx.Node, operation: str | Operation, *operands: fx.Node, called: fx.Node | None = None
    ) -> Placed:
        """An operation on values, of which some may be the same; it has the name of ``called``, by default its own."""
        names: list[str] = []
        label = self.label(called or node)
        for operand in operands:
            name = self.name_of(operand)
            if name in names:  # an operation takes each operand once: a second unit repeats it
                again = self.network.unit(self.name(label, "again"), self.shape(operand), bias=False)
                self.network.connect(name, again, "identity")
                name = again
            names.append(name)
        result = self.network.operation(self.name(label), operation, *names)
        return Placed(result, self.shape(node), f"{label}.shaped")


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
