"""Sums of products over named axes: what a rule's values are while it is compiled.

A :class:`Value` stands for *one local tensor of every agent and every example*. Its *local* shape, ``()`` or
``(k,)``, is what the rule sees, and torch's shape rules hold for it. Over which agents and examples it varies is
said by *named axes*, which the rule never sees. The value is kept as a sum of terms, each a number times factors,
and every factor is a tensor that already exists in the code being written:

    value = sum_t  coefficient_t * B**power_t * sum_{bound_t}  factor_t1 * factor_t2 * ...

with ``B`` the batch size. A product of factors on different axes is *not* multiplied out; when an axis they share
is summed it becomes *bound*, and such a term is a contraction (a matrix product, an outer product summed over the
batch). To *materialize* a value is to write the code that computes it as one tensor, through the
:class:`~mpgraph.lowering.emitter.Emitter`.

Decisions that matter for speed: a sum is materialized before it is multiplied when one of its terms already spans all
its axes (``e * (1 - y*y)`` must not distribute); otherwise products distribute over sums; materialized values are
remembered, so that no value is written twice.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, fx

from mpgraph.errors import ProtocolError
from mpgraph.network.axes import Axis, local_axes, ordered
from mpgraph.network.incidence import Incidence

from . import collectives
from .dispatch import dispatch
from .emitter import Emitter
from .gather import add_up
from .terms import Factor, Fold, Term

Operand = Any  # Value, number or tensor: what may stand beside a value in a rule


class Value:
    """One local tensor of every agent and example, as a lazy sum of products; see the module docstring.

    Behaves like a tensor of its local shape: operators, ``torch`` functions and methods, indexing, ``@``.
    What it refuses (branches on its value, assignment into it) it refuses with a hint.

    Args:
        emitter: writes the code.
        terms: the sum; without terms it is zero.
        local: axes that the rule sees, none for a single number or one of length k.
    """

    __slots__ = ("_tensor", "emitter", "local", "terms")

    def __init__(self, emitter: Emitter, terms: Iterable[Term], local: tuple[Axis, ...] = ()) -> None:
        self.emitter = emitter
        self.terms = tuple(term for term in terms if term.coefficient != 0.0)
        self.local = local
        self._tensor: Factor | None = None  # once materialized

    # -- what it is ---------------------------------------------------------------------------------------

    @property
    def axes(self) -> tuple[Axis, ...]:
        """Named axes on which the value depends, without the local ones."""
        return ordered(a for term in self.terms for a in term.axes if not a.is_local)

    @property
    def shape(self) -> torch.Size:
        """Local shape, as the rule sees it: ``()`` or ``(k,)``."""
        return torch.Size(axis.size or 0 for axis in self.local)

    @property
    def ndim(self) -> int:
        """Number of local dimensions."""
        return len(self.local)

    @property
    def is_zero(self) -> bool:
        """Whether the value is known to be zero whatever the data: no code will ever be written for it."""
        return not self.terms

    def materialize(self) -> Factor:
        """Write the code that computes this value, once, and return the tensor."""
        if self._tensor is None:
            self._tensor = collectives.materialize(self.emitter, self.terms)
        return self._tensor

    def suggest_name(self, hint: str) -> None:
        """A name for its tensor in the generated code, if it is one and is computed there."""
        if self._tensor is not None and self._tensor.node.op in ("call_function", "call_method"):
            self._tensor.node.meta.setdefault("hint", hint)

    def simple(self) -> Value:
        """This value as a single tensor, if it has been materialized; otherwise itself."""
        return self if self._tensor is None else self.like(self._tensor)

    def like(self, factor: Factor) -> Value:
        """A value of this local shape that is the given tensor."""
        value = Value(self.emitter, (Term(1.0, factors=(factor,)),), self.local)
        value._tensor = factor
        return value

    def stored(self) -> Value:
        """The form in which a channel keeps it: materialized, unless that would multiply an outer product out.

        What is still to be added up over processes waits: several uses of an agent may write such sums, and their
        average is sent once.
        """
        value = self.simple()
        lone = len(value.terms) == 1 and len(value.terms[0].factors) <= 1 and not value.terms[0].bound
        waits = self.emitter.ranks is not None and any(map(collectives.spread, value.terms))
        if value.terms and not lone and not waits and value._spanned():
            value.materialize()
        return value.simple()

    def _spanned(self) -> bool:
        axes = set().union(*(term.axes for term in self.terms))
        return any(axes <= term.spans for term in self.terms)

    # -- sums and products --------------------------------------------------------------------------------

    def __add__(self, other: Operand) -> Value:
        if isinstance(other, (int, float)) and other == 0:
            return self
        one, two = aligned(self.emitter, self, other)
        return Value(self.emitter, one.simple().terms + two.simple().terms, one.local)

    def __mul__(self, other: Operand) -> Value:
        if isinstance(other, (int, float)):
            scaled = (t._replace(coefficient=t.coefficient * float(other)) for t in self.simple().terms)
            return Value(self.emitter, scaled, self.local)
        one, two = aligned(self.emitter, self, other)
        pairs = itertools.product(one.multipliable().terms, two.multipliable().terms)
        return Value(self.emitter, (s.times(t) for s, t in pairs), one.local)

    __radd__ = __add__
    __rmul__ = __mul__

    def __neg__(self) -> Value:
        return self * -1.0

    def __sub__(self, other: Operand) -> Value:
        return self + (-other)

    def __rsub__(self, other: Operand) -> Value:
        return -self + other

    def __pos__(self) -> Value:
        return self

    def multipliable(self) -> Value:
        """The form in which it is multiplied.

        Without sums that distribute where one tensor of their size says the same, and without bound axes, except those
        of contractions that grow.
        """
        value = self.simple()
        if len(value.terms) > 1 and value._spanned():
            return value.like(value.materialize())
        if any(map(self._better_written, value.terms)):
            terms = []
            for term in value.terms:
                if self._better_written(term):
                    one = term._replace(coefficient=1.0, power=0)
                    whole = self._before_look_up(one) or collectives.materialize(self.emitter, (one,))
                    term = Term(term.coefficient, term.power, (whole,))
                terms.append(term)
            return Value(self.emitter, terms, self.local)
        return value

    def _before_look_up(self, term: Term) -> Factor | None:
        """A contraction with what is looked up, where all sites have the same other factors: for each agent, once.

        So a convolution of ``nu @ states`` stays one. What is outside the image stays zero.
        """
        looked_up = [f for f in term.factors if f.gathered]
        if len(looked_up) != 1 or term.fold:
            return None
        (x,) = looked_up
        incidence, others = x.gathered, [f for f in term.factors if f is not x]
        assert incidence is not None
        place = {*x.axes[-len(incidence.sites) :], *incidence.unit}  # sites as this product calls them
        if place & term.bound or any(place & set(f.axes) for f in others):
            return None
        inside = Factor(x.node, (*x.axes[: -len(incidence.sites)], *incidence.unit))
        whole = collectives.materialize(self.emitter, (term._replace(factors=(inside, *others)),))
        return self._looked_up(whole, incidence)

    def _better_written(self, term: Term) -> bool:
        """Whether a contraction is written before it is multiplied; one over examples of other processes must be."""
        return bool(term.bound) and (not term.grows or (self.emitter.ranks is not None and collectives.spread(term)))

    # -- aggregation --------------------------------------------------------------------------------------

    def total(self, axes: Iterable[Axis], how: str = "sum") -> Value:
        """Aggregate over named axes (or local ones): ``sum``, ``mean``, ``max`` or ``min``.

        An axis on which the value does not depend counts as a broadcast one: a sum multiplies by its length.
        """
        axes = tuple(axes)
        if not axes:
            return self
        if how in ("max", "min"):
            return self._extremum(axes, how)
        if how not in ("sum", "mean"):
            raise ProtocolError(f"unknown aggregation {how!r}: allowed are sum, mean, max, min")
        # Sums of a convolution are taken of its result; only plain contractions are better summed inside.
        lowered = any(term.fold or (term.bound and any(f.gathered for f in term.factors)) for term in self.terms)
        value = self.multipliable() if lowered else self.simple()
        terms = [term.summed(axes, self.emitter.origin) for term in value.terms]
        total = Value(self.emitter, terms, tuple(axis for axis in self.local if axis not in axes))
        return total.shared_by(axes) if how == "mean" else total

    def _extremum(self, axes: tuple[Axis, ...], how: str) -> Value:
        """Largest or smallest along axes; an axis on which nothing depends changes nothing."""
        local = tuple(axis for axis in self.local if axis not in axes)
        factor = self.materialize()
        dims = tuple(i for i, a in enumerate(factor.axes) if a in axes)
        if not dims:
            return Value(self.emitter, self.terms, local)
        node = self.emitter.emit({"max": torch.amax, "min": torch.amin}[how], factor.node, dims, work=factor.axes)
        result = Factor(node, tuple(a for a in factor.axes if a not in axes))
        if self.emitter.ranks is not None and any(factor.axes[i].size is None for i in dims):
            result = collectives.extremum(self.emitter, result, how)
        return Value(self.emitter, (), local).like(result)

    def shared_by(self, axes: Iterable[Axis]) -> Value:
        """Divided by the length of axes, the batch's included."""
        terms = list(self.terms)
        for axis in axes:
            terms = [term.scaled(axis, -1) for term in terms]
        return Value(self.emitter, terms, self.local)

    def gathered(self, incidence: Incidence) -> Value:
        """The value of the unit that each site of a connection meets; sites that meet none (padding) get zero."""
        units, terms = set(incidence.unit), []
        for term in self.multipliable().terms:
            factors = tuple(self._looked_up(f, incidence) if units & set(f.axes) else f for f in term.factors)
            if incidence.partial and not any(f.gathered is incidence for f in factors):
                factors += (Factor(self.emitter.constant(incidence.inside(), "inside"), incidence.sites),)
            terms.append(term._replace(factors=factors))
        return Value(self.emitter, terms, self.local)

    def _looked_up(self, factor: Factor, incidence: Incidence) -> Factor:
        rest = tuple(a for a in factor.axes if a not in incidence.unit)
        whole = self.emitter.full(self.emitter.plain(factor), (*rest, *incidence.unit))
        return Factor(whole, (*rest, *incidence.sites), incidence)

    def scattered(self, incidence: Incidence, how: str = "sum") -> Value:
        """The sum (or extremum), for each agent of the unit, over the sites of a connection that meet it."""
        if how in ("max", "min"):
            fold = Fold(incidence, incidence.sites, incidence.unit)
            return self.like(add_up(self.emitter, self.materialize(), fold, how))
        value = self.multipliable() if any(term.fold for term in self.terms) else self.simple()
        return Value(self.emitter, (term.folded(incidence, self.emitter.origin) for term in value.terms), self.local)

    # -- other axes ---------------------------------------------------------------------------------------

    def renamed(self, names: Mapping[Axis, Axis]) -> Value:
        """The same value on other axes: what an arrow does between a unit's axes and a connection's."""
        value = Value(self.emitter, (t.renamed(names) for t in self.simple().terms), self.local)
        if self._tensor is not None:
            value._tensor = value.terms[0].factors[0] if value.terms else None
        return value

    def with_local(self, local: tuple[Axis, ...]) -> Value:
        """The same terms, whose local axes are these: in another order, or with some on which nothing depends."""
        value = Value(self.emitter, self.terms, local)
        value._tensor = self._tensor
        return value

    def broadcast(self, local: tuple[Axis, ...]) -> Value:
        """The value on other local axes: its own are renamed, those of length 1 dropped."""
        value, names = self, {}
        for own, axis in zip(reversed(self.local), reversed(local), strict=False):
            if own is not axis and own.size == axis.size:
                names[own] = axis
            elif own is not axis:
                value = value.indexed(own, 0)
        return (value.renamed(names) if names else value).with_local(local)

    def indexed(self, axis: Axis, index: int) -> Value:
        """One entry along a local axis: of each factor that has it, so a product stays a product."""
        terms = []
        for term in self.multipliable().terms:
            factors = []
            for f in term.factors:
                if axis in f.axes:
                    rest = tuple(a for a in f.axes if a is not axis)
                    node = self.emitter.emit("select", f.node, f.axes.index(axis), index, work=())
                    node.meta["bool"] = f.node.meta.get("bool", False)
                    f = f._replace(node=node, axes=rest)
                factors.append(f)
            terms.append(term._replace(factors=tuple(factors)))
        return Value(self.emitter, terms, tuple(a for a in self.local if a is not axis))

    # -- what a rule writes; other operators are in OPERATORS, functions in torch_functions.py --------------

    def __getitem__(self, index: Any) -> Value:
        if isinstance(index, str):
            raise ProtocolError(
                f"a rule read {index!r} of a value that is no dictionary (while running {self.emitter.origin}). A "
                "message that takes ticks to arrive is a single number; where a rule sends dictionaries, unroll the "
                "network: mg.compile(..., sequences=False)"
            )
        return dispatch(self.emitter, "getitem", torch.Tensor.__getitem__, (self, index), {})

    __hash__ = object.__hash__

    def __iter__(self) -> Iterable[Value]:
        if not self.local:
            raise ProtocolError("a rule iterated over a single number")
        return (self[i] for i in range(self.shape[0]))

    def __len__(self) -> int:
        if not self.local:
            raise ProtocolError("a rule took len() of a single number")
        return self.shape[0]

    def __bool__(self) -> bool:
        raise ProtocolError(
            f"rule branched on the value of an agent's state (while running {self.emitter.origin}): one program "
            "serves all agents and examples, so write torch.where(condition, a, b) instead of 'if'"
        )

    __float__ = __int__ = __index__ = __bool__

    def __setitem__(self, index: Any, item: Any) -> None:
        raise ProtocolError("values of a rule are immutable: build a new one with torch.cat or torch.where")

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(torch.Tensor, name, None)
        if name.startswith("_") or not callable(method):
            raise AttributeError(f"a rule's value has no attribute {name!r}")
        if name.endswith("_"):
            raise ProtocolError(f"in-place method {name!r} in a rule: use {name.rstrip('_')!r}, state is a value")
        return lambda *args, **kwargs: dispatch(self.emitter, name, method, (self, *args), kwargs)

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        given = [*args, *(kwargs or {}).values()]
        nested = [v for item in given if isinstance(item, (list, tuple)) for v in item]
        found = [v.emitter for v in (*given, *nested) if isinstance(v, Value)]
        if not found:
            raise ProtocolError(f"torch.{func.__name__} in a rule: pass the agent's values by position, one by one")
        return dispatch(found[0], func.__name__, func, args, kwargs or {})

    def __repr__(self) -> str:
        def show(term: Term) -> str:
            size = {0: ""}.get(term.power, f" B^{term.power}")
            bound = f" sum{list(term.bound)}" if term.bound else ""
            return f"{term.coefficient:g}{size}{bound} " + " ".join(
                f"{f.node.name}{list(f.axes)}" for f in term.factors
            )

        return "Value(" + (" + ".join(map(show, self.terms)) or "0") + f", local={tuple(self.shape)})"


# The torch function of each operator, and whether the operator also has a reflected form (``2 / value``).
OPERATORS: dict[str, tuple[Callable[..., Any], bool]] = {
    "truediv": (torch.div, True),
    "matmul": (torch.matmul, True),
    "pow": (torch.pow, True),
    "mod": (torch.remainder, True),
    "floordiv": (torch.floor_divide, True),
    "lt": (torch.lt, False),
    "le": (torch.le, False),
    "gt": (torch.gt, False),
    "ge": (torch.ge, False),
    "eq": (torch.eq, False),
    "ne": (torch.ne, False),
    "and": (torch.logical_and, False),
    "or": (torch.logical_or, False),
    "invert": (torch.logical_not, False),
    "abs": (torch.abs, False),
}


def _operator(func: Callable[..., Any], reflected: bool = False) -> Callable[..., Any]:
    def operator(self: Value, *other: Operand) -> Any:
        return dispatch(self.emitter, func.__name__, func, (*other, self) if reflected else (self, *other), {})

    return operator


for _name, (_func, _reflected) in OPERATORS.items():
    setattr(Value, f"__{_name}__", _operator(_func))
    if _reflected:
        setattr(Value, f"__r{_name}__", _operator(_func, reflected=True))


# -- operands of a torch function -------------------------------------------------------------------------


def coerce(emitter: Emitter, operand: Operand) -> Value:
    """A number, tensor or value as a value of numbers (a condition counts as 0 and 1)."""
    if isinstance(operand, Value):
        return _numeric(emitter, operand)
    if isinstance(operand, (int, float)):
        return Value(emitter, (Term(float(operand)),))
    if isinstance(operand, Tensor):
        return _constant(emitter, operand)
    raise ProtocolError(f"a rule combined an agent's value with {type(operand).__name__}: numbers and tensors only")


def _numeric(emitter: Emitter, value: Value) -> Value:
    if value.emitter is not emitter:
        raise ProtocolError(
            "a segment's function used a value of its agent that it was not given: hand it in, "
            "s.segment(function, value, ...)"
        )
    if len(value.terms) == 1 and is_condition(value):
        factor = value.materialize()
        return value.like(Factor(emitter.emit("to", factor.node, emitter.dtype, work=factor.axes), factor.axes))
    return value


def _constant(emitter: Emitter, tensor: Tensor) -> Value:
    if tensor.requires_grad:
        raise ProtocolError(
            f"a rule uses a tensor of shape {tuple(tensor.shape)} that requires gradients but is not a parameter of "
            "its agent: assign it to the agent as an nn.Parameter (mg.learnable) so that the program can pass it in"
        )
    if tensor.ndim == 0 and not torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        return Value(emitter, (Term(float(tensor)),))
    node = emitter.constant(tensor)
    converted = emitter.emit("to", node, emitter.dtype) if tensor.dtype != emitter.dtype else node
    return leaf(emitter, converted, (), tensor.shape)


def leaf(emitter: Emitter, node: fx.Node, axes: Iterable[Axis], shape: Iterable[int] = ()) -> Value:
    """A tensor that exists, laid out as named axes and then local dimensions of the given shape."""
    local = local_axes(shape)
    return Value(emitter, (), local).like(Factor(node, (*axes, *local)))


def is_condition(value: Any) -> bool:
    """Whether a value holds truth values."""
    return isinstance(value, Value) and any(f.node.meta.get("bool") for t in value.terms for f in t.factors)


def aligned(emitter: Emitter, *operands: Operand, conditions: bool = False) -> list[Value]:
    """Operands as values whose local axes are the same objects, by torch's broadcasting rule.

    ``conditions`` leaves truth values what they are.
    """
    values = [o if conditions and is_condition(o) else coerce(emitter, o) for o in operands]
    local: tuple[Axis, ...] = ()
    for value in values:
        longest = max(local, value.local, key=len)
        shape = []
        for one, two in zip(_right(local, len(longest)), _right(value.local, len(longest)), strict=True):
            keep = two if one is None or (two is not None and one.size == 1) else one
            if one is not None and two is not None and 1 not in (one.size, two.size) and one.size != two.size:
                raise ProtocolError(
                    f"rule combines local shapes {[tuple(v.shape) for v in values]}, which do not broadcast "
                    f"(while running {emitter.origin})"
                )
            shape.append(keep)
        local = tuple(axis for axis in shape if axis is not None)
    return [value.broadcast(local) for value in values]


def _right(axes: tuple[Axis, ...], length: int) -> list[Axis | None]:
    return [None] * (length - len(axes)) + list(axes)
