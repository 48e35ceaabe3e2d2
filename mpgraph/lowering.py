"""Writing torch code for sums of products: which call each contraction, sum and function becomes.

The :class:`Recorder` appends calls to an ``fx.Graph``. A call that was written before is not written again (common
sub-expressions), and calls that nobody reads are dropped when the graph is finished.
"""

from __future__ import annotations

import keyword
import math
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional

from .algebra import BATCH, Axis, Factor, Operand, Term, Value, ordered
from .errors import ProtocolError

TYPICAL_BATCH = 32  # only to compare costs of association orders while compiling
Number = Any  # a float, or an fx node that holds one


class Recorder:
    """Writes torch calls; see the module docstring.

    Attributes:
        online: whether every batch holds one example: a product summed over the batch is then an outer product,
            which torch computes twice as fast without a matrix product.
        origin: the arrow or update that is being traced; each call remembers it for ``explain()``.
        inputs: placeholder nodes by name, in the order in which the finished function takes them.
        constants: tensors that a rule mentions and that are nobody's parameters.
    """

    def __init__(self, dtype: torch.dtype, online: bool = False) -> None:
        self.dtype, self.online = dtype, online
        self.graph = fx.Graph()
        self.origin: Any = None
        self.inputs: dict[str, fx.Node] = {}
        self.constants: dict[str, Tensor] = {}
        self._batched: fx.Node | None = None  # a tensor that tells the batch size, dtype and device
        self._written: dict[Any, fx.Node] = {}

    # -- single calls -------------------------------------------------------------------------------------

    def input(self, name: str) -> fx.Node:
        """Placeholder of the finished function."""
        argument = identifier(name)
        while argument in {node.target for node in self.inputs.values()} or keyword.iskeyword(argument):
            argument += "_"
        self.inputs[name] = self.graph.placeholder(argument)
        return self.inputs[name]

    def batched(self, node: fx.Node) -> None:
        """Declare a tensor whose first dimension is the batch, and which has the program's dtype and device."""
        self._batched = self._batched or node

    def emit(self, target: Any, *args: Any, work: Iterable[Axis] = (), per: float = 1.0, **kwargs: Any) -> fx.Node:
        """Write one call, or find it written. A string is a tensor method; ``per`` operations for each of ``work``."""
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
        """The number of examples, as the generated code reads it."""
        assert self._batched is not None
        return self.emit("size", self._batched, 0)

    def number(self, coefficient: float, power: int) -> Number:
        """``coefficient * B**power``."""
        if power == 0 or self.online:
            return coefficient
        size = self.batch_size()
        for _ in range(abs(power) - 1):
            size = self.emit(operator.mul, size, self.batch_size())
        return self.emit(operator.truediv if power < 0 else operator.mul, coefficient, size)

    # -- operands -----------------------------------------------------------------------------------------

    def coerce(self, operand: Operand) -> Value:
        """A number, tensor or value as a value of numbers (a condition counts as 0 and 1)."""
        if isinstance(operand, Value):
            return self._numeric(operand)
        if isinstance(operand, (int, float)):
            return Value(self, (Term(float(operand)),))
        if isinstance(operand, Tensor):
            return self._constant(operand)
        raise ProtocolError(f"a rule combined an agent's value with {type(operand).__name__}: numbers and tensors only")

    def _numeric(self, value: Value) -> Value:
        if len(value.terms) == 1 and any(f.node.meta.get("bool") for f in value.terms[0].factors):
            factor = value.settle()
            return value.like(Factor(self.emit("to", factor.node, self.dtype, work=factor.axes), factor.axes))
        return value

    def _constant(self, tensor: Tensor) -> Value:
        if tensor.requires_grad:
            raise ProtocolError(
                f"a rule uses a tensor of shape {tuple(tensor.shape)} that requires gradients but is no parameter of "
                "its agent: assign it to the agent as an nn.Parameter (mg.learnable) so that the program can pass it in"
            )
        if tensor.ndim == 0 and not torch._C._functorch.is_functorch_wrapped_tensor(tensor):
            return Value(self, (Term(float(tensor)),))
        name = next((n for n, t in self.constants.items() if t is tensor), f"constant_{len(self.constants)}")
        self.constants[name] = tensor
        local = tuple(Axis(f"k{size}", size, rank=1) for size in tensor.shape)
        key = ("constant", name)
        if key not in self._written:
            self._written[key] = self.graph.create_node("get_attr", name, (), {})
        node = self._written[key]
        converted = self.emit("to", node, self.dtype) if tensor.dtype != self.dtype else node
        return Value(self, (), local).like(Factor(converted, local))

    def aligned(self, *operands: Operand) -> list[Value]:
        """Operands as values whose local axes are the same objects, by torch's broadcasting rule."""
        values = [self.coerce(operand) for operand in operands]
        local: tuple[Axis, ...] = ()
        for value in values:
            longest = max(local, value.local, key=len)
            shape = []
            for one, two in zip(_right(local, len(longest)), _right(value.local, len(longest)), strict=True):
                keep = two if one is None or one.size == 1 else one
                if one is not None and two is not None and 1 not in (one.size, two.size) and one.size != two.size:
                    raise ProtocolError(
                        f"rule combines local shapes {[tuple(v.shape) for v in values]}, which do not broadcast "
                        f"(while running {self.origin})"
                    )
                shape.append(keep)
            local = tuple(axis for axis in shape if axis is not None)
        return [self._on(value, local) for value in values]

    def _on(self, value: Value, local: tuple[Axis, ...]) -> Value:
        """The value broadcast to other local axes: axes renamed, axes of length 1 dropped."""
        names = {}
        for own, axis in zip(reversed(value.local), reversed(local), strict=False):
            if own is not axis and own.size == axis.size:
                names[own] = axis
            elif own is not axis:
                value = self.indexed(value, own, 0)
        if names:
            value = value.renamed(names)
        result = Value(self, value.terms, local)
        result._settled = value._settled
        return result

    def indexed(self, value: Value, axis: Axis, index: int) -> Value:
        """One entry along a local axis: of each factor that has it, so a product stays a product."""
        terms = []
        for term in value._multipliable().terms:
            factors = []
            for f in term.factors:
                if axis in f.axes:
                    rest = tuple(a for a in f.axes if a is not axis)
                    f = Factor(self.emit("select", f.node, f.axes.index(axis), index, work=()), rest)
                factors.append(f)
            terms.append(term._replace(factors=tuple(factors)))
        return Value(self, terms, tuple(a for a in value.local if a is not axis))

    # -- layouts ------------------------------------------------------------------------------------------

    def arrange(self, factor: Factor, axes: Sequence[Axis]) -> fx.Node:
        """The tensor with its dimensions in the order of ``axes``, ready to broadcast over those it lacks."""
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

    def full(self, value: Value, axes: Sequence[Axis]) -> fx.Node:
        """The tensor with *all* of ``axes``, broadcast where the value does not depend on one."""
        factor = value.settle()
        node = self.arrange(factor, axes)
        if set(axes) - set(factor.axes):
            sizes = [self.batch_size() if a is BATCH else a.size for a in axes]
            node = self.emit("expand", node, *sizes)
        return node

    # -- sums of products ---------------------------------------------------------------------------------

    def settle(self, value: Value) -> Factor:
        """Write a sum of products as torch calls: products first, then contractions accumulated onto them."""
        terms = _merged(value.terms)
        constants = [t for t in terms if not t.factors]
        plain = sorted((t for t in terms if t.factors and not t.bound), key=lambda t: (t[:2] != (1.0, 0), -len(t.axes)))
        total: Factor | None = None
        for term in plain:
            total = self._add(total, self.product(term.factors), self.number(*term[:2]))
        for term in (t for t in terms if t.bound):
            with self.at(term.origin):
                total = self.contract(term.factors, term.bound, total, self.number(*term[:2]))
        for term in constants:
            number = self.number(*term[:2])
            if total is None:
                assert self._batched is not None
                total = Factor(self.emit("new_full", self._batched, (), number), ())
            else:
                total = Factor(self.emit(torch.add, total.node, number, work=total.axes), total.axes)
        if total is None:
            assert self._batched is not None
            total = Factor(self.emit("new_zeros", self._batched, ()), ())
        return total

    def _add(self, total: Factor | None, factor: Factor, scale: Number) -> Factor:
        if total is None:
            if scale == 1.0:
                return factor
            return Factor(self.emit(torch.mul, factor.node, scale, work=factor.axes), factor.axes)
        axes = ordered(total.axes + factor.axes)
        one, two = self.arrange(total, axes), self.arrange(factor, axes)
        if scale == 1.0:
            node = self.emit(torch.add, one, two, work=axes)
        elif scale == -1.0:
            node = self.emit(torch.sub, one, two, work=axes)
        else:
            node = self.emit(torch.add, one, two, alpha=scale, work=axes, per=2)
        return Factor(node, axes)

    def product(self, factors: Iterable[Factor]) -> Factor:
        """Multiply tensors out, small ones first."""
        first, *rest = sorted(factors, key=lambda f: (_elements(f.axes), f.node.name))
        for factor in rest:
            axes = ordered(first.axes + factor.axes)
            if len(axes) > max(len(first.axes), len(factor.axes)) and BATCH in axes:
                self._note("product materialised")
            node = self.emit(torch.mul, self.arrange(first, axes), self.arrange(factor, axes), work=axes)
            first = Factor(node, axes)
        return first

    def contract(
        self, factors: Iterable[Factor], bound: frozenset[Axis], into: Factor | None = None, scale: Number = 1.0
    ) -> Factor:
        """``into + scale * sum_bound prod(factors)``, two factors at a time, cheapest intermediate first."""
        factors = self._sum_lone(list(factors), bound)
        while len(factors) > 2:
            pairs = [(i, j) for j in range(len(factors)) for i in range(j)]
            costs = {pair: _pair_cost(factors, pair, bound) for pair in pairs}
            i, j = min(pairs, key=lambda pair: costs[pair])
            others = [f for k, f in enumerate(factors) if k not in (i, j)]
            inside = bound - {a for f in others for a in f.axes}
            factors = self._sum_lone([self._pair(factors[i], factors[j], inside, None, 1.0), *others], bound)
        if len(factors) == 2:
            return self._pair(factors[0], factors[1], bound, into, scale)
        return self._add(into, factors[0], scale)

    def _sum_lone(self, factors: list[Factor], bound: frozenset[Axis]) -> list[Factor]:
        """Sum, before anything is multiplied, the bound axes that only one factor has."""
        result = []
        for i, factor in enumerate(factors):
            others = {a for k, f in enumerate(factors) if k != i for a in f.axes}
            lone = [a for a in factor.axes if a in bound and a not in others]
            result.append(self._sum(factor, lone))
        return result

    def _sum(self, factor: Factor, axes: Sequence[Axis]) -> Factor:
        if not axes:
            return factor
        rest = tuple(a for a in factor.axes if a not in axes)
        if self.online and len(axes) == 1 and _is_batch(axes[0]):
            return Factor(self.emit("select", factor.node, factor.axes.index(axes[0]), 0), rest)
        dims = tuple(factor.axes.index(a) for a in axes)
        node = self.emit("sum", factor.node, *([dims[0] if len(dims) == 1 else dims] if rest else []), work=factor.axes)
        return Factor(node, rest)

    def _pair(self, one: Factor, two: Factor, bound: frozenset[Axis], into: Factor | None, scale: Number) -> Factor:
        shared = [a for a in one.axes if a in two.axes]
        summed = [a for a in shared if a in bound]
        axes = ordered(a for a in one.axes + two.axes if a not in bound)
        if not summed or set(one.axes) == set(two.axes) and len(shared) > 1:
            return self._add(into, self._sum(self.product((one, two)), summed), scale)
        if len(summed) == len(shared) == 1:
            matrix = self._matrix_product(one, two, summed[0], axes, into, scale)
            if matrix is not None:
                return matrix
        letters = {a: chr(ord("a") + i) for i, a in enumerate(ordered(one.axes + two.axes))}
        text = ["".join(letters[a] for a in part) for part in (one.axes, two.axes, axes)]
        formula = f"{text[0]},{text[1]}->{text[2]}"
        node = self.emit(torch.einsum, formula, one.node, two.node, work=letters, per=2)
        return self._add(into, Factor(node, axes), scale)

    def _matrix_product(
        self, one: Factor, two: Factor, axis: Axis, axes: tuple[Axis, ...], into: Factor | None, scale: Number
    ) -> Factor | None:
        """The product over one shared axis as a call of linear algebra, fused with the sum it is added to."""
        work = {"work": (axis, *axes), "per": 2}
        if len(one.axes) == len(two.axes) == 1:
            node = self.emit(torch.dot, one.node, two.node, **work)
            return self._add(into, Factor(node, ()), scale)
        if len(one.axes) == 1 or (len(two.axes) > 1 and axes[0] in two.axes):
            one, two = two, one
        if len(one.axes) == 2 and len(two.axes) == 1:
            matrix = self.arrange(one, (*axes, axis))
            if into is not None and into.axes == axes:
                beta = {} if scale == 1.0 else {"alpha": scale}
                return Factor(self.emit(torch.addmv, into.node, matrix, two.node, **beta, **work), axes)
            return self._add(into, Factor(self.emit(torch.mv, matrix, two.node, **work), axes), scale)
        if len(two.axes) != 2:
            return None
        (column,) = (a for a in two.axes if a is not axis)
        rows = tuple(a for a in one.axes if a is not axis)
        if (*rows, column) != axes:
            return None
        left = self.arrange(one, (*rows, axis))
        if two.axes == (column, axis) and scale == 1.0 and (into is None or into.axes == (column,)):
            node = self.emit(functional.linear, left, two.node, *([into.node] if into else []), **work)
            return Factor(node, axes)
        right = self.arrange(two, (axis, column))
        if len(rows) != 1:
            return self._add(into, Factor(self.emit(torch.matmul, left, right, **work), axes), scale)
        if self.online and _is_batch(axis) and into is not None and into.axes == axes:
            beta = {} if scale == 1.0 else {"value": scale}
            return Factor(self.emit(torch.addcmul, into.node, left, right, **beta, **work), axes)
        if into is not None and into.axes in (axes, axes[1:]):
            beta = {} if scale == 1.0 else {"alpha": scale}
            return Factor(self.emit(torch.addmm, into.node, left, right, **beta, **work), axes)
        return self._add(into, Factor(self.emit(torch.mm, left, right, **work), axes), scale)

    # -- functions ----------------------------------------------------------------------------------------

    def extremum(self, value: Value, axes: tuple[Axis, ...], how: str, local: tuple[Axis, ...]) -> Value:
        """Largest or smallest along axes; an axis on which nothing depends changes nothing."""
        factor = value.settle()
        dims = tuple(i for i, a in enumerate(factor.axes) if a in axes)
        if not dims:
            return Value(self, value.terms, local)
        node = self.emit({"max": torch.amax, "min": torch.amin}[how], factor.node, dims, work=factor.axes)
        return Value(self, (), local).like(Factor(node, tuple(a for a in factor.axes if a not in axes)))

    def pointwise(self, func: Callable[..., Any], args: Sequence[Operand], condition: bool = False, **kwargs: Any) -> Value:
        """A function of single numbers: all arguments broadcast to the union of their axes.

        ``condition`` marks a function that returns truth values. Python numbers are passed on as they are.
        """
        values = [a if isinstance(a, (int, float)) or _is_condition(a) else self.coerce(a) for a in args]
        lazy = [v for v in values if isinstance(v, Value)]
        numeric = iter(self._aligned_conditions(lazy))
        values = [next(numeric) if isinstance(v, Value) else v for v in values]
        factors = [v.settle() for v in values if isinstance(v, Value)]
        axes = ordered(a for f in factors for a in f.axes)
        if BATCH in axes and len(axes) > max(len(f.axes) for f in factors):
            self._note(f"{getattr(func, '__name__', func)} materialised")
        operands = [self.arrange(v.settle(), axes) if isinstance(v, Value) else v for v in values]
        node = self.emit(func, *operands, work=axes, **kwargs)
        if condition:
            node.meta["bool"] = True
        local = max((v.local for v in values if isinstance(v, Value)), key=len)
        return Value(self, (), local).like(Factor(node, axes))

    def _aligned_conditions(self, values: list[Value]) -> list[Value]:
        flags = [_is_condition(v) for v in values]
        if not any(flags):
            return self.aligned(*values)
        if any(v.local != values[0].local for v in values):
            raise ProtocolError("torch.where and comparisons need conditions and values of one local shape")
        return values

    def opaque(self, func: Callable[..., Any], values: Sequence[Value], axes: Sequence[Axis], inline: bool) -> fx.Node:
        """A function of whole tensors laid out as ``axes``; ``inline`` writes its torch calls, else a call of it."""
        nodes = [self.full(self.coerce(value), axes) for value in values]
        if not inline:
            return self.emit(func, *nodes, work=axes)
        last = next(reversed(self.graph.nodes))
        tracer = fx.proxy.GraphAppendingTracer(self.graph)
        result = func(*(fx.Proxy(node, tracer) for node in nodes)).node
        node = last.next
        while node is not self.graph._root:
            node.meta.setdefault("origin", self.origin)
            node.meta.setdefault("work", (1.0, tuple(axes)))
            node = node.next
        return result

    def _note(self, text: str) -> None:
        notes = self.graph.__dict__.setdefault("notes", [])
        if (self.origin, text) not in notes:
            notes.append((self.origin, text))

    @property
    def notes(self) -> list[tuple[Any, str]]:
        """What could not stay a contraction, as (origin, text): shown by ``explain()``."""
        return self.graph.__dict__.get("notes", [])

    def name(self, value: Value, hint: str) -> None:
        """Suggest a name in the generated code for a settled value."""
        if value._settled is not None and value._settled.node.op in ("call_function", "call_method"):
            value._settled.node.meta.setdefault("hint", hint)

    # -- the finished function ----------------------------------------------------------------------------

    def finish(self, outputs: Any) -> fx.GraphModule:
        """Copy what ``outputs`` need into a fresh graph, with readable names, and generate its code."""
        live: set[fx.Node] = set()
        stack: list[fx.Node] = []
        fx.map_arg(outputs, stack.append)
        while stack:
            node = stack.pop()
            if node not in live:
                live.add(node)
                stack.extend(node.all_input_nodes)
        graph, copies = fx.Graph(), {}
        for node in self.graph.nodes:
            if node in live or node.op == "placeholder":
                copy = graph.create_node(
                    node.op,
                    node.target,
                    fx.map_arg(node.args, copies.__getitem__),
                    fx.map_arg(node.kwargs, copies.__getitem__),
                    name=node.meta.get("hint"),
                )
                copy.meta.update(node.meta)
                copies[node] = copy
        graph.output(fx.map_arg(outputs, copies.__getitem__))
        root = torch.nn.Module()
        for name, tensor in self.constants.items():
            root.register_buffer(name, tensor, persistent=False)
        return fx.GraphModule(root, graph, class_name="Step")


def identifier(text: str) -> str:
    """A Python name that resembles a node's."""
    name = "".join(c if c.isalnum() and c.isascii() else "_" for c in text)
    return name if name[:1].isalpha() else f"n{name}"


def _hashable(item: Any) -> Any:
    if isinstance(item, dict):
        return tuple((k, _hashable(v)) for k, v in item.items())
    if isinstance(item, (list, tuple)):
        return (type(item), *map(_hashable, item))
    if isinstance(item, slice):
        return (slice, item.start, item.stop, item.step)
    return (type(item), item)


def _right(axes: tuple[Axis, ...], length: int) -> list[Axis | None]:
    return [None] * (length - len(axes)) + list(axes)


def _is_condition(value: Any) -> bool:
    return isinstance(value, Value) and any(f.node.meta.get("bool") for t in value.terms for f in t.factors)


def _is_batch(axis: Axis) -> bool:
    return axis.size is None


def _elements(axes: Iterable[Axis]) -> int:
    return math.prod(a.size if a.size is not None else TYPICAL_BATCH for a in axes)


def _pair_cost(factors: list[Factor], pair: tuple[int, int], bound: frozenset[Axis]) -> tuple[int, int, tuple[int, int]]:
    others = {a for k, f in enumerate(factors) if k not in pair for a in f.axes}
    union = {a for k in pair for a in factors[k].axes}
    return _elements(union - (bound - others)), _elements(union), pair


def _merged(terms: Iterable[Term]) -> list[Term]:
    """Equal products added up: ``2*x - x`` is ``x``, and ``x - x`` is nothing."""
    found: dict[Any, Term] = {}
    for term in terms:
        if term.bound:
            found[object()] = term
            continue
        key = (term.power, tuple(sorted(term.factors, key=lambda f: f.node.name)))
        known = found.get(key)
        found[key] = term if known is None else known._replace(coefficient=known.coefficient + term.coefficient)
    return [term for term in found.values() if term.coefficient != 0.0]
