"""Products of tensors on named axes: the terms of which a value is a sum. Plain data, without any code behind it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from torch import fx

from mpgraph.network.axes import Axis
from mpgraph.network.incidence import Incidence


class Factor(NamedTuple):
    """A tensor of the code being written, and the axis of each of its dimensions.

    With ``gathered``, a lazy look-up: the tensor's last dimensions are the unit axes of that incidence, while the
    last ``axes`` are its sites. ``Emitter.plain`` carries it out.
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
    """``coefficient * B**power * sum_bound factor_1 * factor_2 * ...`` with ``B`` the batch size.

    ``origin`` is the arrow that bound its axes, for ``explain()``.
    """

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

    def times(self, other: Term) -> Term:
        """The product of two terms; an axis that both sum over is summed twice, the second time under a new name."""
        if self.bound & other.bound:
            names = {axis: axis.fresh() for axis in other.bound}
            other = other.renamed(names)._replace(bound=frozenset(names.values()))
        return Term(
            self.coefficient * other.coefficient,
            self.power + other.power,
            self.factors + other.factors,
            self.bound | other.bound,
            self.origin or other.origin,
        )

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

    def folded(self, incidence: Incidence, origin: object) -> Term:
        """Bind the sites of an incidence; what is summed over them is added up at the agents where they lead."""
        fresh = {axis: axis.fresh() for axis in incidence.sites}
        sites = tuple(fresh.values())
        fold = Fold(incidence, sites, incidence.unit)
        return self.renamed(fresh)._replace(bound=self.bound.union(sites), fold=fold, origin=origin)

    def scaled(self, axis: Axis, power: int) -> Term:
        """This term times the length of ``axis`` to a power."""
        if axis.size is None:
            return self._replace(power=self.power + power)
        return self._replace(coefficient=self.coefficient * float(axis.size) ** power)
