"""Sums of products over named axes: what a rule's values are while it is compiled.

A :class:`Value` stands for *one local tensor of every agent and every example*. Its *local* shape, ``()`` or
``(k,)``, is what the rule sees, and torch's shape rules hold for it. Over which agents and examples it varies is
said by *named axes*, which the rule never sees. The value is kept as a sum of terms, each a number times factors,
and every factor is a tensor that already exists in the code being written:

    value = sum_t  coefficient_t * B**power_t * sum_{bound_t}  factor_t1 * factor_t2 * ...

with ``B`` the batch size. A product of factors on different axes is *not* multiplied out; when an axis they share
is summed it becomes *bound*, and such a term is a contraction (a matrix product, an outer product summed over the
batch). Only :meth:`Value.settle` writes code, through the :class:`~mpgraph.lowering.recorder.Recorder`.

Decisions that matter for speed: a sum is settled before it is multiplied when one of its terms already spans all
its axes (``e * (1 - y*y)`` must not distribute); otherwise products distribute over sums; settled values are
remembered, so that no value is written twice.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import fx

from mpgraph.errors import ProtocolError
from mpgraph.network.axes import Axis, ordered

if TYPE_CHECKING:
    from mpgraph.network.incidence import Incidence

    from .recorder import Recorder


class Factor(NamedTuple):
    """A tensor of the code being written, and the axis of each of its dimensions.

    With ``gathered``, a lazy look-up: the tensor's last dimensions are the unit axes of that incidence, while the
    last ``axes`` are its sites. ``Recorder.plain`` carries it out.
    """

    node: fx.Node
    axes: tuple[Axis, ...]
    gathered: Incidence | None = None


class Fold(NamedTuple):
    """What happens to a product after its bound axes are summed: its sites are added up where they lead."""

    incidence: Incidence
    sites: tuple[Axis, ...]  # bound
    unit: tuple[Axis, ...]  # free


class Term(NamedTuple):
    """One product; see the module docstring. ``origin`` is the arrow that bound its axes, for ``explain()``."""

    coefficient: float
    power: int = 0
    factors: tuple[Factor, ...] = ()
    bound: frozenset[Axis] = frozenset()
    origin: object = None
    fold: Fold | None = None

    @property
    def axes(self) -> set[Axis]:
        """The free axes."""
        free = {axis for factor in self.factors for axis in factor.axes} - self.bound
        return free if self.fold is None else free.union(self.fold.unit)

    @property
    def spans(self) -> set[Axis]:
        """The axes of the largest tensor that exists anyway: a factor's, or those of a contraction's result."""
        if self.bound and not self.grows:
            return self.axes
        return max((set(factor.axes) for factor in self.factors), key=len, default=set())

    @property
    def grows(self) -> bool:
        """Whether it is a contraction larger than all that goes into it, and so better multiplied than written."""
        lazy = self.fold or any(factor.gathered for factor in self.factors)
        return bool(self.bound) and not lazy and len(self.axes) > max(len(factor.axes) for factor in self.factors)

    def renamed(self, names: Mapping[Axis, Axis]) -> Term:
        """The same product on other axes."""
        factors = tuple(f._replace(axes=tuple(names.get(a, a) for a in f.axes)) for f in self.factors)
        fold = self.fold
        if fold is not None:
            fold = fold._replace(unit=tuple(names.get(a, a) for a in fold.unit))
        return self._replace(factors=factors, fold=fold)

    def summed(self, axes: Iterable[Axis], origin: object) -> Term:
        """Bind ``axes``; an axis on which nothing depends multiplies by its length."""
        term = self
        free = self.axes
        for axis in axes:
            if axis in free:
                fresh = axis.fresh()
                term = term.renamed({axis: fresh})._replace(bound=term.bound | {fresh}, origin=origin)
            else:
                term = term.scaled(axis, 1)
        return term

    def scaled(self, axis: Axis, power: int) -> Term:
        """This term times the length of ``axis`` to a power."""
        if axis.size is None:
            return self._replace(power=self.power + power)
        return self._replace(coefficient=self.coefficient * float(axis.size) ** power)


Operand = Any  # Value, number or tensor: what may stand beside a value in a rule


class Value:
    """One local tensor of every agent and example, as a lazy sum of products; see the module docstring.

    Behaves like a tensor of its local shape: operators, ``torch`` functions and methods, indexing, ``@``.
    What it refuses (branches on its value, assignment into it) it refuses with a hint.
    """

    __slots__ = ("_settled", "local", "recorder", "terms")

    def __init__(self, recorder: Recorder, terms: Iterable[Term], local: tuple[Axis, ...] = ()) -> None:
        self.recorder = recorder
        self.terms = tuple(term for term in terms if term.coefficient != 0.0)
        self.local = local
        self._settled: Factor | None = None

    # -- what it is ---------------------------------------------------------------------------------------

    @property
    def axes(self) -> tuple[Axis, ...]:
        """Named axes on which the value depends, without the local ones."""
        return ordered(a for term in self.terms for a in term.axes if not a.is_local)

    @property
    def shape(self) -> torch.Size:
        """Local shape, as the rule sees it."""
        return torch.Size(axis.size or 0 for axis in self.local)

    @property
    def ndim(self) -> int:
        """Number of local dimensions."""
        return len(self.local)

    @property
    def is_zero(self) -> bool:
        """Whether the value is known to be zero whatever the data: no code will ever be written for it."""
        return not self.terms

    def settle(self) -> Factor:
        """Write the code that computes this value, once, and return the tensor."""
        if self._settled is None:
            self._settled = self.recorder.settle(self)
        return self._settled

    def simple(self) -> Value:
        """This value as a single tensor, if it has been settled; else itself."""
        return self if self._settled is None else self.like(self._settled)

    def like(self, factor: Factor) -> Value:
        """A value of this local shape that is the given tensor."""
        value = Value(self.recorder, (Term(1.0, factors=(factor,)),), self.local)
        value._settled = factor
        return value

    def stored(self) -> Value:
        """The form in which a channel keeps it: settled, unless that would multiply an outer product out."""
        value = self.simple()
        lone = len(value.terms) == 1 and len(value.terms[0].factors) <= 1 and not value.terms[0].bound
        if value.terms and not lone and value._spanned():
            value.settle()
        return value.simple()

    def _spanned(self) -> bool:
        axes = set().union(*(term.axes for term in self.terms))
        return any(axes <= term.spans for term in self.terms)

    # -- sums, products, aggregation ----------------------------------------------------------------------

    def __add__(self, other: Operand) -> Value:
        if isinstance(other, (int, float)) and other == 0:
            return self
        one, two = self.recorder.aligned(self, other)
        return Value(self.recorder, one.simple().terms + two.simple().terms, one.local)

    def __mul__(self, other: Operand) -> Value:
        if isinstance(other, (int, float)):
            scaled = (t._replace(coefficient=t.coefficient * float(other)) for t in self.simple().terms)
            return Value(self.recorder, scaled, self.local)
        one, two = self.recorder.aligned(self, other)
        terms: list[Term] = []
        for s, t in itertools.product(one._multipliable().terms, two._multipliable().terms):
            if s.bound & t.bound:  # a value times itself sums twice, each time over an axis of its own
                names = {axis: axis.fresh() for axis in t.bound}
                t = t.renamed(names)._replace(bound=frozenset(names.values()))
            bound, origin = s.bound | t.bound, s.origin or t.origin
            terms.append(Term(s.coefficient * t.coefficient, s.power + t.power, s.factors + t.factors, bound, origin))
        return Value(self.recorder, terms, one.local)

    def _multipliable(self) -> Value:
        """No bound axes but of terms that grow, no sum that distributes where one tensor of its size says the same."""
        value = self.simple()
        if len(value.terms) > 1 and value._spanned():
            return value.like(value.settle())
        if any(term.bound and not term.grows for term in value.terms):
            terms = []
            for term in value.terms:
                if term.bound and not term.grows:
                    unit = Value(self.recorder, (term._replace(coefficient=1.0, power=0),), self.local)
                    term = Term(term.coefficient, term.power, (unit.settle(),))
                terms.append(term)
            return Value(self.recorder, terms, self.local)
        return value

    def total(self, axes: Iterable[Axis], how: str = "sum") -> Value:
        """Aggregate over named axes (or local ones): ``sum``, ``mean``, ``max`` or ``min``.

        An axis on which the value does not depend counts as a broadcast one: a sum multiplies by its length.
        """
        axes = tuple(axes)
        if not axes:
            return self
        local = tuple(axis for axis in self.local if axis not in axes)
        if how in ("max", "min"):
            return self.recorder.extremum(self, axes, how, local)
        if how not in ("sum", "mean"):
            raise ProtocolError(f"unknown aggregation {how!r}: allowed are sum, mean, max, min")
        # Sums of a convolution are taken of its result; only plain contractions are better summed inside.
        lowered = any(term.fold or (term.bound and any(f.gathered for f in term.factors)) for term in self.terms)
        value = self._multipliable() if lowered else self.simple()
        terms = [term.summed(axes, self.recorder.origin) for term in value.terms]
        total = Value(self.recorder, terms, local)
        return total.shared_by(axes) if how == "mean" else total

    def shared_by(self, axes: Iterable[Axis]) -> Value:
        """Divided by the length of axes, the batch's included."""
        terms = list(self.terms)
        for axis in axes:
            terms = [term.scaled(axis, -1) for term in terms]
        return Value(self.recorder, terms, self.local)

    def gathered(self, incidence: Incidence) -> Value:
        """The value of the unit that each site of a connection meets; sites that meet none (padding) get zero."""
        units, terms = set(incidence.unit), []
        for term in self._multipliable().terms:
            factors = tuple(self._looked_up(f, incidence) if units & set(f.axes) else f for f in term.factors)
            if incidence.partial and not any(f.gathered is incidence for f in factors):
                factors += (Factor(self.recorder.constant(incidence.inside(), "inside"), incidence.sites),)
            terms.append(term._replace(factors=factors))
        return Value(self.recorder, terms, self.local)

    def _looked_up(self, factor: Factor, incidence: Incidence) -> Factor:
        rest = tuple(a for a in factor.axes if a not in incidence.unit)
        whole = Value(self.recorder, ()).like(self.recorder.plain(factor))
        return Factor(self.recorder.full(whole, (*rest, *incidence.unit)), (*rest, *incidence.sites), incidence)

    def scattered(self, incidence: Incidence, how: str = "sum") -> Value:
        """The sum (or extremum), for each agent of the unit, over the sites of a connection that meet it."""
        if how in ("max", "min"):
            fold = Fold(incidence, incidence.sites, incidence.unit)
            from .gather import add_up

            total = add_up(self.recorder, self.settle(), fold, how)
            return Value(self.recorder, (), self.local).like(total)
        value = self._multipliable() if any(term.fold for term in self.terms) else self.simple()
        terms = []
        for term in value.terms:
            fresh = {axis: axis.fresh() for axis in incidence.sites}
            sites = tuple(fresh.values())
            bound = term.bound.union(sites)
            fold = Fold(incidence, sites, incidence.unit)
            terms.append(term.renamed(fresh)._replace(bound=bound, fold=fold, origin=self.recorder.origin))
        return Value(self.recorder, terms, self.local)

    def renamed(self, names: Mapping[Axis, Axis]) -> Value:
        """The same value on other axes: what an arrow does between a unit's axes and a connection's."""
        value = Value(self.recorder, (t.renamed(names) for t in self.simple().terms), self.local)
        if self._settled is not None:
            value._settled = value.terms[0].factors[0] if value.terms else None
        return value

    # -- the operators a rule writes ----------------------------------------------------------------------

    def __neg__(self) -> Value:
        return self * -1.0

    def __sub__(self, other: Operand) -> Value:
        return self + (-other)

    def __rsub__(self, other: Operand) -> Value:
        return -self + other

    def __truediv__(self, other: Operand) -> Value:
        if isinstance(other, (int, float)):  # dividing, so that a mean of equal numbers is that number to the bit
            shares = (t._replace(coefficient=t.coefficient / other) for t in self.simple().terms)
            return Value(self.recorder, shares, self.local)
        return _dispatch("div", torch.div, (self, other), {})

    def __rtruediv__(self, other: Operand) -> Value:
        return _dispatch("div", torch.div, (other, self), {})

    def __matmul__(self, other: Operand) -> Value:
        return _dispatch("matmul", torch.matmul, (self, other), {})

    def __rmatmul__(self, other: Operand) -> Value:
        return _dispatch("matmul", torch.matmul, (other, self), {})

    def __pow__(self, other: Operand) -> Value:
        return _dispatch("pow", torch.pow, (self, other), {})

    def __rpow__(self, other: Operand) -> Value:
        return _dispatch("pow", torch.pow, (other, self), {})

    def __getitem__(self, index: Any) -> Value:
        return _dispatch("getitem", None, (self, index), {})

    def __lt__(self, other: Operand) -> Value:
        return _dispatch("lt", torch.lt, (self, other), {})

    def __le__(self, other: Operand) -> Value:
        return _dispatch("le", torch.le, (self, other), {})

    def __gt__(self, other: Operand) -> Value:
        return _dispatch("gt", torch.gt, (self, other), {})

    def __ge__(self, other: Operand) -> Value:
        return _dispatch("ge", torch.ge, (self, other), {})

    def __eq__(self, other: Operand) -> Value:  # type: ignore[override]
        return _dispatch("eq", torch.eq, (self, other), {})

    def __ne__(self, other: Operand) -> Value:  # type: ignore[override]
        return _dispatch("ne", torch.ne, (self, other), {})

    def __mod__(self, other: Operand) -> Value:
        return _dispatch("remainder", torch.remainder, (self, other), {})

    def __floordiv__(self, other: Operand) -> Value:
        return _dispatch("floor_divide", torch.floor_divide, (self, other), {})

    def __and__(self, other: Operand) -> Value:
        return _dispatch("logical_and", torch.logical_and, (self, other), {})

    def __or__(self, other: Operand) -> Value:
        return _dispatch("logical_or", torch.logical_or, (self, other), {})

    def __invert__(self) -> Value:
        return _dispatch("logical_not", torch.logical_not, (self,), {})

    def __abs__(self) -> Value:
        return _dispatch("abs", torch.abs, (self,), {})

    def __pos__(self) -> Value:
        return self

    __radd__ = __add__
    __rmul__ = __mul__
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
            f"rule branched on the value of an agent's state (while running {self.recorder.origin}): one program "
            "serves all agents and examples, so write torch.where(condition, a, b) instead of 'if'"
        )

    __float__ = __int__ = __index__ = __bool__

    def __setitem__(self, index: Any, item: Any) -> None:
        raise ProtocolError("values of a rule are immutable: build a new one with torch.cat or torch.where")

    def __getattr__(self, name: str) -> Callable[..., Value]:
        method = getattr(torch.Tensor, name, None)
        if name.startswith("_") or not callable(method):
            raise AttributeError(f"a rule's value has no attribute {name!r}")
        if name.endswith("_"):
            raise ProtocolError(f"in-place method {name!r} in a rule: use {name.rstrip('_')!r}, state is a value")
        return lambda *args, **kwargs: _dispatch(name, method, (self, *args), kwargs)

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        return _dispatch(func.__name__, func, args, kwargs or {})

    def __repr__(self) -> str:
        def show(term: Term) -> str:
            size = {0: ""}.get(term.power, f" B^{term.power}")
            bound = f" sum{list(term.bound)}" if term.bound else ""
            return f"{term.coefficient:g}{size}{bound} " + " ".join(
                f"{f.node.name}{list(f.axes)}" for f in term.factors
            )

        return "Value(" + (" + ".join(map(show, self.terms)) or "0") + f", local={tuple(self.shape)})"


def _dispatch(name: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    from .functions import dispatch  # the table of torch functions needs this module

    return dispatch(name, func, args, kwargs)
