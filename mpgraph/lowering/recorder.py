"""Writing torch code: single calls, operands, layouts, functions, and the finished function.

The :class:`Recorder` appends calls to an ``fx.Graph``. A call that was written before is not written again (common
sub-expressions), and calls that nobody reads are dropped when the graph is finished.
"""

from __future__ import annotations

import builtins
import keyword
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx

from mpgraph.errors import ProtocolError
from mpgraph.network.axes import BATCH, Axis, local_axes, ordered

from . import contraction
from .algebra import Factor, Operand, Term, Value
from .gather import look_up

TAKEN = frozenset(["self", "torch", "device", *dir(builtins)])  # what generated code calls something else
Number = Any  # a float, or an fx node that holds one


class Recorder:
    """Writes torch calls; see the module docstring.

    Attributes:
        online: whether every batch holds one example: a product summed over the batch is then an outer product,
            which torch computes twice as fast without a matrix product.
        origin: the arrow or update that is being traced; each call remembers it for ``explain()``.
        inputs: placeholder nodes by name, in the order in which the finished function takes them.
        constants: tensors that a rule mentions and that are nobody's parameters.
        segments: code of the segments that are called, by name.
    """

    def __init__(self, dtype: torch.dtype, online: bool = False) -> None:
        self.dtype, self.online = dtype, online
        self.graph = fx.Graph()
        self.origin: Any = None
        self.inputs: dict[str, fx.Node] = {}
        self.constants: dict[str, Tensor] = {}
        self.segments: dict[str, fx.GraphModule] = {}
        self._batched: fx.Node | None = None  # a tensor that tells the batch size, dtype and device
        self._written: dict[Any, fx.Node] = {}

    # -- single calls -------------------------------------------------------------------------------------

    def input(self, name: str, own: bool = False) -> fx.Node:
        """Placeholder of the finished function; ``own`` ones are the engine's, whatever nodes may be called."""
        argument = identifier(name)
        while argument in {node.target for node in self.inputs.values()} or keyword.iskeyword(argument):
            argument += "_"
        key = f"{name} (own)" if own else name
        self.inputs[key] = self.graph.placeholder(argument)
        return self.inputs[key]

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

    def fill(self, value: Number) -> fx.Node:
        """A single number of the program's dtype and device."""
        assert self._batched is not None
        return self.emit("new_full", self._batched, (), value)

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
        if value.recorder is not self:
            raise ProtocolError(
                "a segment's function used a value of its agent that it was not given: hand it in, "
                "s.segment(function, value, ...)"
            )
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
        local = local_axes(tensor.shape)
        node = self.constant(tensor)
        converted = self.emit("to", node, self.dtype) if tensor.dtype != self.dtype else node
        return Value(self, (), local).like(Factor(converted, local))

    def constant(self, tensor: Tensor, hint: str = "constant") -> fx.Node:
        """A tensor that the finished function holds."""
        name = next((n for n, t in self.constants.items() if t is tensor), f"{identifier(hint)}_{len(self.constants)}")
        self.constants[name] = tensor
        key = ("constant", name)
        if key not in self._written:
            self._written[key] = self.graph.create_node("get_attr", name, (), {})
        return self._written[key]

    def aligned(self, *operands: Operand, conditions: bool = False) -> list[Value]:
        """Operands as values whose local axes are the same objects, by torch's broadcasting rule.

        ``conditions`` leaves truth values what they are.
        """
        values = [o if conditions and self.is_condition(o) else self.coerce(o) for o in operands]
        local: tuple[Axis, ...] = ()
        for value in values:
            longest = max(local, value.local, key=len)
            shape = []
            for one, two in zip(_right(local, len(longest)), _right(value.local, len(longest)), strict=True):
                keep = two if one is None or (two is not None and one.size == 1) else one
                if one is not None and two is not None and 1 not in (one.size, two.size) and one.size != two.size:
                    raise ProtocolError(
                        f"rule combines local shapes {[tuple(v.shape) for v in values]}, which do not broadcast "
                        f"(while running {self.origin})"
                    )
                shape.append(keep)
            local = tuple(axis for axis in shape if axis is not None)
        return [self._on(value, local) for value in values]

    @staticmethod
    def is_condition(value: Any) -> bool:
        """Whether a value holds truth values."""
        return isinstance(value, Value) and any(f.node.meta.get("bool") for t in value.terms for f in t.factors)

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
                    f = f._replace(node=self.emit("select", f.node, f.axes.index(axis), index, work=()), axes=rest)
                factors.append(f)
            terms.append(term._replace(factors=tuple(factors)))
        return Value(self, terms, tuple(a for a in value.local if a is not axis))

    # -- layouts ------------------------------------------------------------------------------------------

    def plain(self, factor: Factor) -> Factor:
        """The factor as a tensor on its axes: a lazy look-up is carried out, once."""
        return factor if factor.gathered is None else look_up(self, factor)

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

    def full(self, value: Value, axes: Sequence[Axis]) -> fx.Node:
        """The tensor with *all* of ``axes``, broadcast where the value does not depend on one."""
        factor = value.settle()
        node = self.arrange(factor, axes)
        if set(axes) - set(factor.axes):
            sizes = [self.batch_size() if a is BATCH else a.size for a in axes]
            node = self.emit("expand", node, *sizes)
        return node

    def settle(self, value: Value) -> Factor:
        """Write a value; called once by :meth:`Value.settle`."""
        return contraction.settle(self, value.terms)

    # -- functions ----------------------------------------------------------------------------------------

    def extremum(self, value: Value, axes: tuple[Axis, ...], how: str, local: tuple[Axis, ...]) -> Value:
        """Largest or smallest along axes; an axis on which nothing depends changes nothing."""
        factor = value.settle()
        dims = tuple(i for i, a in enumerate(factor.axes) if a in axes)
        if not dims:
            return Value(self, value.terms, local)
        node = self.emit({"max": torch.amax, "min": torch.amin}[how], factor.node, dims, work=factor.axes)
        return Value(self, (), local).like(Factor(node, tuple(a for a in factor.axes if a not in axes)))

    def pointwise(
        self, func: Callable[..., Any], args: Sequence[Operand], condition: bool = False, **kwargs: Any
    ) -> Value:
        """A function of single numbers: all arguments broadcast to the union of their axes.

        ``condition`` marks a function that returns truth values. Python numbers are passed on as they are.
        """
        lazy = iter(self.aligned(*(a for a in args if not isinstance(a, (int, float))), conditions=True))
        values = [a if isinstance(a, (int, float)) else next(lazy) for a in args]
        factors = [v.settle() for v in values if isinstance(v, Value)]
        axes = ordered(a for f in factors for a in f.axes)
        if BATCH in axes and len(axes) > max(len(f.axes) for f in factors):
            self.note(f"{getattr(func, '__name__', func)} materialised")
        operands = [self.arrange(v.settle(), axes) if isinstance(v, Value) else v for v in values]
        node = self.emit(func, *operands, work=axes, **kwargs)
        if condition:
            node.meta["bool"] = True
        local = max((v.local for v in values if isinstance(v, Value)), key=len)
        return Value(self, (), local).like(Factor(node, axes))

    def opaque(
        self, func: Callable[..., Any], values: Sequence[Value], layouts: Sequence[Sequence[Axis]], inline: bool
    ) -> Any:
        """A function of whole tensors in given layouts; ``inline`` writes its torch calls, else a call of it."""
        nodes = [self.full(self.coerce(v), axes) for v, axes in zip(values, layouts, strict=True)]
        work: tuple[Axis, ...] = max((tuple(axes) for axes in layouts), key=len)
        if not inline:
            return self.emit(func, *nodes, work=work)
        last = next(reversed(self.graph.nodes))
        tracer = fx.proxy.GraphAppendingTracer(self.graph)
        result = func(*(fx.Proxy(node, tracer) for node in nodes))
        node = last.next
        while node is not self.graph._root:
            node.meta.setdefault("origin", self.origin)
            node.meta.setdefault("work", (1.0, work))
            node = node.next
        return tuple(part.node for part in result) if isinstance(result, tuple) else result.node

    def note(self, text: str) -> None:
        """Remember what could not stay a contraction, for ``explain()``."""
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
        graph = fx.Graph()
        copies: dict[fx.Node, fx.Node] = {}
        written: dict[Any, fx.Node] = {}  # calls written inline may say the same thing twice
        for node in self.graph.nodes:
            if node in live or node.op == "placeholder":
                args = fx.map_arg(node.args, copies.__getitem__)
                kwargs = fx.map_arg(node.kwargs, copies.__getitem__)
                key = (node.op, node.target, _hashable(args), _hashable(kwargs))
                if key not in written:
                    written[key] = graph.create_node(node.op, node.target, args, kwargs, name=node.meta.get("hint"))
                    written[key].meta.update(node.meta)
                copies[node] = written[key]
        graph.output(fx.map_arg(outputs, copies.__getitem__))
        root = torch.nn.Module()
        for name, tensor in self.constants.items():
            root.register_buffer(name, tensor, persistent=False)
        module = fx.GraphModule(root, graph, class_name="Step")
        module.segments = torch.nn.ModuleDict(self.segments)
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


def _right(axes: tuple[Axis, ...], length: int) -> list[Axis | None]:
    return [None] * (length - len(axes)) + list(axes)
