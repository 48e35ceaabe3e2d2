"""Writing the backward pass of generated code: gradients as sums, written with as few calls and tensors as possible.

A :class:`Tape` appends calls to an ``fx.Graph`` of its own and keeps, for every tensor of the forward code, the terms
of its gradient. A term that is a product of two matrices stays one until all terms are known, so that it is added in
the call that computes it; what the backward pass itself has made and nobody else reads is added to in place.
"""

from __future__ import annotations

from collections import Counter
from typing import Any, NamedTuple

import torch
from torch import fx


class Product(NamedTuple):
    """``scale * one @ two``, a term of a gradient that is not written yet.

    Where one number is summed (``inner`` is 1), it is the product of numbers ``scale * one * two``, which broadcast.
    Without ``two`` it is the tensor ``scale * one``.
    """

    one: fx.Node
    two: fx.Node | None
    inner: int = 1
    scale: float = 1.0


class Tape:
    """Calls of a backward pass; see the module docstring.

    Args:
        shapes: of every tensor of the forward code.
        values: what those nodes of the forward code hold that are no tensors.
        active: nodes of the forward code whose gradient is wanted, or needed on the way.

    Attributes:
        scale: a number by which the gradient that was asked for last is still to be multiplied; what is added while a
            rule runs is multiplied by it.
    """

    def __init__(self, shapes: dict[fx.Node, torch.Size], values: dict[fx.Node, Any], active: set[fx.Node]) -> None:
        self.shapes, self.values, self.active = shapes, values, active
        self.graph, self.scale = fx.Graph(), 1.0
        self.saved: dict[fx.Node, fx.Node] = {}  # tensors of the forward code that are read, and their placeholders
        self._terms: dict[fx.Node, list[Product]] = {}
        self._written: dict[Any, fx.Node] = {}
        self._own: set[fx.Node] = set()  # results that alias nothing
        self._pending: Counter[fx.Node] = Counter()  # how often a result stands in terms that are not written yet

    # -- calls --------------------------------------------------------------------------------------------

    def call(self, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        """Write a call, or find it written; a string is a tensor method. Its result shares memory with nothing."""
        node = self.view(target, *args, **kwargs)
        self._own.add(node)
        return node

    def view(self, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        """The same for a call whose result may share memory with an argument."""
        args, kwargs = fx.map_arg((args, kwargs), self.read)
        key = (target, repr(args), repr(kwargs))
        if key not in self._written:
            kind = "call_method" if isinstance(target, str) else "call_function"
            self._written[key] = self.graph.create_node(kind, target, args, kwargs)
        return self._written[key]

    def read(self, node: fx.Node) -> Any:
        """A node of the forward code as the backward pass sees it: a number, or a tensor that was kept."""
        if node.graph is self.graph:
            return node
        if node in self.values:
            return self.values[node]
        if node not in self.saved:
            self.saved[node] = self.argument(node.name)
        return self.saved[node]

    def argument(self, name: str) -> fx.Node:
        """An argument of the backward pass, of that name or a longer one."""
        node = self.graph.placeholder(name)
        node.target = node.name  # the graph makes names unique
        return node

    def _into(self, total: fx.Node, method: str, function: Any, *args: Any, **kwargs: Any) -> fx.Node:
        """Add to ``total``: in place where it is the backward pass's own and nobody reads it."""
        if self._free(total):
            self._written = {key: node for key, node in self._written.items() if node is not total}
            self._own.discard(total)
            node = self.graph.create_node("call_method", method, (total, *args), kwargs)
        else:
            node = self.graph.create_node("call_function", function, (total, *args), kwargs)
        self._own.add(node)
        return node

    def _free(self, node: fx.Node) -> bool:
        return node in self._own and not node.users and not self._pending[node]

    # -- gradients ----------------------------------------------------------------------------------------

    def add(self, node: Any, part: fx.Node | Product, scale: float = 1.0) -> None:
        """Another term of the gradient of a node of the forward code: ``scale`` times a tensor or a product."""
        if isinstance(part, fx.Node):
            part = Product(part, None)
        while node.target == "t" and len(self.shapes[node]) == 2:  # (A B)' is B'A'
            one, two = self.turned(part.one), None if part.two is None else self.turned(part.two)
            part = (
                part._replace(one=one, two=two) if two is None or part.inner == 1 else part._replace(one=two, two=one)
            )
            node = node.args[0]
        two = None if part.two is None else self.read(part.two)  # what a product reads is kept from now on
        part = part._replace(one=self.read(part.one), two=two, scale=part.scale * scale * self.scale)
        self._terms.setdefault(node, []).append(part)
        self._pending.update(_operands(part))

    def keep(self, node: fx.Node) -> fx.Node:
        """A gradient that is returned, with its scale, and so never added to in place."""
        if self.scale != 1.0:
            node = self._into(node, "mul_", torch.mul, self.scale)
        self._pending[node] += 1
        return node

    def wants(self, node: Any) -> bool:
        """Whether the gradient of an argument of the forward code is needed."""
        return isinstance(node, fx.Node) and node in self.active

    def gradient(self, node: fx.Node) -> fx.Node | None:
        """All terms of a gradient as one tensor, to be multiplied by ``scale``; ``None`` without any."""
        terms = self._terms.pop(node, [])
        if not terms:
            return None
        for term in terms:
            self._pending.subtract(_operands(term))
        terms.sort(key=lambda t: 2 if t.two is not None else int(not self._free(t.one)))  # what may be added to first
        (one, two, inner, self.scale), *others = terms
        total = one if two is None else self.call(torch.mul if inner == 1 else torch.mm, one, two)
        for one, two, inner, scale in others:
            share = scale / self.scale
            if two is None:
                total = self._into(total, "add_", torch.add, one, **_unless_one(alpha=share))
            elif inner == 1:  # of an outer product it is twice as fast as a matrix product
                total = self._into(total, "addcmul_", torch.addcmul, one, two, **_unless_one(value=share))
            else:
                total = self._into(total, "addmm_", torch.addmm, one, two, **_unless_one(alpha=share))
        return total

    # -- pieces that rules share --------------------------------------------------------------------------

    def shape(self, item: Any) -> torch.Size:
        """Of a tensor of the forward code, or a number."""
        return self.shapes[item] if isinstance(item, fx.Node) and item in self.shapes else torch.Size()

    def turned(self, item: fx.Node) -> fx.Node:
        """The transposed matrix, or the one that this is the transpose of."""
        return item.args[0] if item.target == "t" else self.view("t", item)  # type: ignore[return-value]

    def reduced(self, tensor: fx.Node, given: torch.Size, wanted: torch.Size) -> fx.Node:
        """A gradient summed over what an argument was broadcast along."""
        if given == wanted:
            return tensor
        if wanted.numel() == 1:
            total = self.call("sum", tensor) if given.numel() > 1 else tensor
            return self.view("reshape", total, tuple(wanted)) if len(wanted) or given.numel() == 1 else total
        lead = len(given) - len(wanted)
        dims = [i for i, n in enumerate(given) if i < lead or (wanted[i - lead] == 1 and n != 1)]
        if dims:
            tensor = self.call("sum", tensor, dims[0] if len(dims) == 1 else dims, True)
        return self.view("reshape", tensor, tuple(wanted)) if lead else tensor

    def times(self, g: fx.Node, given: torch.Size, other: Any, wanted: torch.Size) -> Product:
        """``g * other``, summed over what an argument of shape ``wanted`` was broadcast along."""
        theirs = self.shape(other)
        if not isinstance(other, fx.Node) or other in self.values:
            number = self.values[other] if isinstance(other, fx.Node) else other
            return Product(self.reduced(g, given, wanted), None, 1, number)
        if given == wanted:
            return Product(g, other)
        if given == theirs and wanted.numel() == 1 < given.numel():
            if len(given) == 2 and given[0] == 1 and len(wanted) == 2:
                return Product(g, self.turned(other), given[1])
            if len(given) == 2 and given[0] == 1:
                return Product(self.view("reshape", self.call(torch.mm, g, self.turned(other)), tuple(wanted)), None)
            total = self.call(torch.dot, self.view("flatten", g), self.view("flatten", other))
            return Product(self.view("reshape", total, tuple(wanted)) if len(wanted) else total, None)
        if len(given) == len(wanted) == len(theirs) == 2 and given.numel() > max(wanted.numel(), theirs.numel()):
            if wanted[1] == 1 and theirs[0] == 1:
                return Product(g, self.turned(other), given[1])
            if wanted[0] == 1 and theirs[1] == 1:
                return Product(self.turned(other), g, given[0])
        if given.numel() == wanted.numel() == 1:
            return Product(self.view("reshape", g, tuple(wanted)), self._one(other, wanted))
        return Product(self.reduced(self.call(torch.mul, g, other), given, wanted), None)

    def _one(self, other: fx.Node, wanted: torch.Size) -> fx.Node:
        """A tensor of one number that does not make the product with one of ``wanted`` shape any wider."""
        return self.view("reshape", other, tuple(wanted)) if len(self.shape(other)) > len(wanted) else other


def _operands(part: Product) -> tuple[fx.Node, ...]:
    return (part.one,) if part.two is None else (part.one, part.two)


def _unless_one(**scale: Any) -> dict[str, Any]:
    return {name: number for name, number in scale.items() if number != 1}
