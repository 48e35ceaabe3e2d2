"""Writing torch code: single calls, layouts of tensors, and the finished function.

The :class:`Emitter` appends calls to an ``fx.Graph``. A call that was written before is not written again (common
sub-expressions), and calls that nobody reads are dropped when the graph is finished. It knows tensors and their axes
(:class:`~mpgraph.lowering.terms.Factor`), not the values of rules.
"""

from __future__ import annotations

import builtins
import keyword
import operator
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional

from mpgraph.network.axes import BATCH, Axis
from mpgraph.network.incidence import sizes_of

from .loop import LoopCode, Scope, copied, live
from .ranks import Ranks
from .terms import Factor

TAKEN = frozenset(["self", "torch", "device", *dir(builtins)])  # what generated code calls something else
Number = Any  # a float, or an fx node that holds one


class Emitter:
    """Writes torch calls; see the module docstring.

    Args:
        dtype: of all numbers.
        single: whether every batch holds one example: a product summed over the batch is then an outer product,
            which torch computes twice as fast without a matrix product.
        ranks: processes that each have a slice of the batch; without them the batch is whole.

    Attributes:
        origin: the arrow or update that is being traced; each call remembers it for ``explain()``.
        inputs: placeholder nodes by name, in the order in which the finished function takes them.
        constants: tensors that a rule mentions and that are nobody's parameters.
        segments: code of the segments that are called, by name.
        products: pairs of tensors whose product, summed over what they share, was written.
        notes: what could not stay a contraction, as (origin, text), for ``explain()``.
    """

    def __init__(self, dtype: torch.dtype, single: bool = False, ranks: Ranks | None = None) -> None:
        self.dtype, self.single, self.ranks = dtype, single, ranks
        self.graph = fx.Graph()
        self.origin: Any = None
        self.inputs: dict[str, fx.Node] = {}
        self.constants: dict[str, Tensor] = {}
        self.segments: dict[str, fx.GraphModule] = {}
        self.notes: list[tuple[Any, str]] = []
        self.products: set[Any] = set()
        self.scopes: list[Scope] = []  # loops whose body is being written, outer ones first
        self._batched: fx.Node | None = None  # a tensor that tells the batch size, dtype and device
        self._written: dict[Any, fx.Node] = {}
        self._around = [(self.graph, self._written, self.products)]  # what the code around each scope is written into

    # -- single calls -------------------------------------------------------------------------------------

    def input(self, name: str, own: bool = False) -> fx.Node:
        """Placeholder of the finished function; ``own`` ones are the engine's, whatever nodes may be called."""
        argument = identifier(name)
        while argument in {node.target for node in self.inputs.values()} or keyword.iskeyword(argument):
            argument += "_"
        key = f"{name} (own)" if own else name
        self.inputs[key] = self._around[0][0].placeholder(argument)
        return self.inputs[key]

    def batched(self, node: fx.Node) -> None:
        """Declare a tensor whose first dimension is the batch, and which has the program's dtype and device."""
        self._batched = self._batched or node

    def emit(self, target: Any, *args: Any, work: Iterable[Axis] = (), per: float = 1.0, **kwargs: Any) -> fx.Node:
        """Write one call, or find it written. A string is a tensor method; ``per`` operations for each of ``work``."""
        if self.scopes:
            args, kwargs = fx.map_arg((args, kwargs), self.local)
        key = (target, _hashable(args), _hashable(kwargs))
        if key not in self._written:
            kind = "call_method" if isinstance(target, str) else "call_function"
            node = self.graph.create_node(kind, target, args, kwargs)
            node.meta.update(origin=self.origin, work=(per, tuple(work)))
            self._written[key] = node
        return self._written[key]

    @contextmanager
    def at(self, origin: object) -> Iterator[None]:
        """Attribute the calls written inside to an arrow or update."""
        before, self.origin = self.origin, origin or self.origin
        try:
            yield
        finally:
            self.origin = before

    def batch_size(self) -> fx.Node:
        """The number of examples of this process, as the generated code reads it."""
        assert self._batched is not None
        return self.emit("size", self._batched, 0)

    def fill(self, value: Number) -> fx.Node:
        """A single number of the program's dtype and device."""
        assert self._batched is not None
        return self.emit("new_full", self._batched, (), value)

    def zeros(self, axes: Iterable[Axis]) -> fx.Node:
        """A tensor of zeros on these axes."""
        assert self._batched is not None
        sizes = tuple(self.batch_size() if a is BATCH else a.size for a in axes)
        return self.emit("new_zeros", self._batched, sizes)

    def number(self, coefficient: float, power: int) -> Number:
        """``coefficient * B**power``, with ``B`` the size of the whole batch."""
        coefficient *= float(self.ranks.size) ** power if self.ranks else 1.0
        if power == 0 or self.single:
            return coefficient
        size = self.batch_size()
        for _ in range(abs(power) - 1):
            size = self.emit(operator.mul, size, self.batch_size())
        return self.emit(operator.truediv if power < 0 else operator.mul, coefficient, size)

    def constant(self, tensor: Tensor, hint: str = "constant") -> fx.Node:
        """A tensor that the finished function holds."""
        name = next((n for n, t in self.constants.items() if t is tensor), f"{identifier(hint)}_{len(self.constants)}")
        self.constants[name] = tensor
        graph, written, _ = self._around[0]
        key = ("constant", name)
        if key not in written:
            written[key] = graph.create_node("get_attr", name, (), {})
        return written[key]

    def inline(self, func: Any, nodes: Sequence[fx.Node], work: Iterable[Axis]) -> Any:
        """Write the torch calls that a function of whole tensors makes; its result, or a tuple of them."""
        nodes = [self.local(node) for node in nodes]
        last = next(reversed(self.graph.nodes))
        tracer = fx.proxy.GraphAppendingTracer(self.graph)
        result = func(*(fx.Proxy(node, tracer) for node in nodes))
        node = last.next
        while node is not self.graph._root:
            node.meta.setdefault("origin", self.origin)
            node.meta.setdefault("work", (1.0, tuple(work)))
            node = node.next
        return tuple(part.node for part in result) if isinstance(result, tuple) else result.node

    def note(self, text: str) -> None:
        """Remember what could not stay a contraction, for ``explain()``."""
        if (self.origin, text) not in self.notes:
            self.notes.append((self.origin, text))

    # -- bodies of loops ----------------------------------------------------------------------------------

    @contextmanager
    def inside(self, scope: Scope) -> Iterator[None]:
        """Write into the body of a loop; what is read of the code around becomes an argument of it."""
        self.scopes.append(scope)
        self._around.append((scope.graph, {}, set()))
        self.graph, self._written, self.products = self._around[-1]
        try:
            yield
        finally:
            self.scopes.pop()
            self._around.pop()
            self.graph, self._written, self.products = self._around[-1]

    def local(self, node: fx.Node) -> fx.Node:
        """A node of the code around as the code being written sees it."""
        if node.graph is self.graph:
            return node
        inside = [graph for graph, _, _ in self._around].index(node.graph)
        for scope in self.scopes[inside:]:
            if node not in scope.given:
                scope.given[node] = scope.graph.placeholder(node.meta.get("hint") or node.name)
                scope.given[node].meta.update(node.meta)
            node = scope.given[node]
        return node

    def same_each_round(self, node: fx.Node) -> bool:
        """Whether a node is nothing that a round of the loop being written changes."""
        known: dict[fx.Node, bool] = {}

        def same(node: fx.Node) -> bool:
            if node.graph is not self.graph:
                return True
            if node not in known:
                given = node.op == "placeholder" and node in given_nodes
                calls = node.op in ("call_function", "call_method") and "loop" not in node.meta
                known[node] = given or (calls and all(map(same, node.all_input_nodes)))
            return known[node]

        given_nodes = set(self.scopes[-1].given.values())
        return same(node)

    def hoisted(self, scope: Scope) -> dict[fx.Node, fx.Node]:
        """Of a body that was written, the nodes that are the same in every round, each with what computes it outside.

        Their calls are written into the code around.
        """
        outside = {inner: outer for outer, inner in scope.given.items()}
        for node in scope.graph.nodes:
            calls = node.op in ("call_function", "call_method") and "loop" not in node.meta
            if calls and all(source in outside for source in node.all_input_nodes):
                args, kwargs = fx.map_arg((node.args, node.kwargs), outside.__getitem__)
                outside[node] = self.emit(node.target, *args, **kwargs)
                outside[node].meta.update(node.meta)
        return outside

    def times(self, name: str, number: int) -> fx.Node:
        """A number of rounds that a program can be given another one for."""
        node = self._around[0][0].create_node("call_function", int, (number,), {})
        node.meta.update(times=name, hint=f"{identifier(name)}_times", work=(0.0, ()))
        return node

    # -- layouts ------------------------------------------------------------------------------------------

    def plain(self, factor: Factor) -> Factor:
        """The factor as a tensor on its axes: a lazy look-up is carried out, once."""
        incidence, node = factor.gathered, factor.node
        if incidence is None:
            return factor
        if len(incidence.unit) > 1:
            node = self.emit("flatten", node, -len(incidence.unit))
        if incidence.partial:
            node = self.emit(functional.pad, node, (0, 1))
        index = self.constant(incidence.places, "places")
        node = self.emit(torch.index_select, node, -1, index, work=factor.axes, per=0)
        if len(incidence.sites) > 1:
            node = self.emit("unflatten", node, -1, sizes_of(incidence.sites))
        return Factor(node, factor.axes)

    def arrange(self, factor: Factor, axes: Sequence[Axis]) -> fx.Node:
        """The tensor with its dimensions in the order of ``axes``, ready to broadcast over those it lacks."""
        factor = self.plain(factor)
        present = [a for a in axes if a in factor.axes]
        node, order = factor.node, [factor.axes.index(a) for a in present]
        if order == [1, 0]:
            node = self.emit("t", node)
        elif order != sorted(order):
            node = self.emit("permute", node, *order)
        first = next((i for i, a in enumerate(axes) if a in factor.axes), len(axes))
        for position in range(first + 1, len(axes)):
            if axes[position] not in factor.axes:
                node = self.emit("unsqueeze", node, position - first)
        return node

    def full(self, factor: Factor, axes: Sequence[Axis]) -> fx.Node:
        """The tensor with *all* of ``axes``, broadcast over those that it lacks."""
        node = self.arrange(factor, axes)
        if set(axes) - set(factor.axes):
            sizes = [self.batch_size() if a is BATCH else a.size for a in axes]
            node = self.emit("expand", node, *sizes)
        return node

    # -- the finished function ----------------------------------------------------------------------------

    def finish(self, outputs: Any) -> fx.GraphModule:
        """Copy what ``outputs`` need into a fresh graph, with readable names, and generate its code."""
        roots: list[fx.Node] = []
        fx.map_arg(outputs, roots.append)
        needed, plans = live(self.graph, roots, {})
        graph, copies, loops = fx.Graph(), dict[fx.Node, fx.Node](), dict[str, LoopCode]()
        chosen = [node for node in self.graph.nodes if node in needed or node.op == "placeholder"]
        copied(chosen, graph, plans, copies, _hashable, loops)
        graph.output(fx.map_arg(outputs, copies.__getitem__))
        root = torch.nn.Module()
        for name, tensor in self.constants.items():
            root.register_buffer(name, tensor, persistent=False)
        module = fx.GraphModule(root, graph, class_name="Step")
        module.segments = torch.nn.ModuleDict(self.segments)
        module.meta["loops"] = loops
        return module


def identifier(text: str) -> str:
    """A Python name that resembles a node's."""
    name = "".join(c if c.isalnum() and c.isascii() else "_" for c in text)
    name = name if name[:1].isalpha() else f"n{name}"
    return f"{name}_" if name in TAKEN else name


def _hashable(item: Any) -> Any:
    if isinstance(item, dict):
        return tuple((k, _hashable(v)) for k, v in item.items())
    if isinstance(item, (list, tuple)):
        return (type(item), *map(_hashable, item))
    if isinstance(item, slice):
        return (slice, item.start, item.stop, item.step)
    return (type(item), item)
