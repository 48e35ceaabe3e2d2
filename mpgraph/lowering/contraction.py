"""Sums of products as torch calls: which products are formed first, and what each contraction becomes.

To materialize a sum is to write it as one tensor. That starts with its smallest terms and adds each to the next that
has their axes, so that a large tensor is passed over as few times as possible; of one size, plain products come first
and contractions accumulate onto them. So ``w - lr * mean(e x)`` becomes one ``addmm`` and ``sum_i w x + b`` one
``linear``.
"""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import fx
from torch.nn import functional

from mpgraph.network.axes import BATCH, Axis, ordered

from .emitter import Emitter, Number
from .gather import add_up, lower
from .terms import Factor, Term

TYPICAL_BATCH = 32  # only to compare costs of association orders while compiling
OPERATIONS_A_NUMBER = 8  # multiplications in the time in which one number is read or written
FEW = 8  # channels of an agent, which make a product too narrow for a library of linear algebra
MOST_ORDERED = 6  # factors of which every order of multiplication is compared


def materialize(code: Emitter, given: Iterable[Term]) -> Factor:
    """Write a sum of products as torch calls: small ones first, and products before contractions of their size."""
    terms = _merged(given)
    if code.scopes:
        terms = _outside(code, terms)
    if common := _common(terms):  # written without it, as somebody else may need it so: c and tanh(c) = 2 s(2 c) - 1
        inside = [term._replace(coefficient=term.coefficient / common) for term in terms]
        return _add(code, None, materialize(code, inside), common)
    numbers = [code.number(*t[:2]) for t in terms if not t.factors]
    plain = _collected(code, [t for t in terms if t.factors and not t.bound])
    sums: list[Factor] = []  # of which none has all axes of another
    for term in sorted([*plain, *factored(code, [t for t in terms if t.bound])], key=_turn):
        below = [s for s in sums if term.axes.issuperset(s.axes)]
        sums = [s for s in sums if s not in below]
        with code.at(term.origin):  # the small ones first: other sums may hold the same
            total = _added(code, below)
            scale = code.number(*term[:2])
            if numbers and total is None and scale != 1.0 and len(term.factors) == 1 and not term.bound:
                (factor,) = (code.plain(f) for f in term.factors)
                sums.append(_plus(code, _affine(code, factor, scale, numbers[0]), numbers[1:]))
                numbers = []
                continue
            if term.bound:
                whole = contract(code, term, total, scale)
            else:
                whole = _add_product(code, total, [code.plain(f) for f in term.factors], scale)
        sums.append(_plus(code, whole, numbers))
        numbers = []
    for one, two in itertools.pairwise(sums):
        if BATCH in (axes := {*one.axes, *two.axes}) and len(axes) > max(len(one.axes), len(two.axes)):
            code.note("sum materialised")
    return _added(code, sums) or Factor(code.fill(_total(code, numbers)), ())


def _outside(code: Emitter, terms: list[Term]) -> list[Term]:
    """In the body of a loop, contractions that are the same in every round as tensors, with what is added to them."""
    same = [term for term in terms if all(code.same_each_round(f.node) for f in term.factors)]
    largest = max((term.axes for term in same if term.bound), key=len, default=None)
    if largest is None or len(same) == len(terms):
        return terms
    inside = [term for term in same if term.factors and term.axes <= largest]
    return [t for t in terms if t not in inside] + [Term(1.0, factors=(materialize(code, inside),))]


def _total(code: Emitter, numbers: Sequence[Number]) -> Number:
    total: Number = 0.0
    for number in numbers:  # one may be a call that reads the size of the batch
        total = code.emit(operator.add, total, number) if total != 0.0 else number
    return total


def _added(code: Emitter, sums: Iterable[Factor]) -> Factor | None:
    total: Factor | None = None
    for other in sums:
        total = _add(code, total, other, 1.0)
    return total


def _turn(term: Term) -> tuple[Any, ...]:
    """When a term is written: by number of axes and size; tensors, then products, then contractions; unscaled first."""
    kind = 2 if term.bound else int(len(term.factors) > 1)
    return len(term.axes), _elements(term.axes), kind, term[:2] != (1.0, 0)


def _add_product(code: Emitter, total: Factor | None, factors: Sequence[Factor], scale: Number) -> Factor:
    """``total + scale * prod(factors)``, in one call where everything has the same axes."""
    if total is None and scale != 1.0 and len(factors) > 1:
        smallest = min(factors, key=lambda f: (_elements(f.axes), f.node.name))
        if _elements(smallest.axes) < _elements({a for f in factors for a in f.axes}):
            factors = [f for f in factors if f is not smallest]
            return product(code, [*factors, _add(code, None, smallest, scale)])
    if total is not None and len(factors) == 2 and all(f.axes == total.axes for f in factors):
        one, two = (f.node for f in sorted(factors, key=lambda f: f.node.name))
        value = {} if scale == 1.0 else {"value": scale}
        return Factor(code.emit(torch.addcmul, total.node, one, two, **value, work=total.axes, per=2), total.axes)
    return _add(code, total, product(code, factors), scale)


def _common(terms: list[Term]) -> float | None:
    """The coefficient of a sum of products of numbers that is put in front, where it takes a call of its own anyway.

    It does where all terms are products and have it, and where it is that of the only tensor: ``2 a - 4 b c`` takes two
    calls, as ``2 (a - 2 b c)`` does.
    """
    if len(terms) < 2 or any(t.power != 0 or t.bound or not t.factors for t in terms):
        return None
    alone = [t for t in terms if len(t.factors) == 1]
    if alone:
        first, *more = alone
        alike = not more and all(t.axes == first.axes for t in terms)
    else:
        first = terms[0]
        alike = all(t.coefficient == first.coefficient for t in terms)
    return first.coefficient if alike and first.coefficient not in (1.0, -1.0) else None


def _affine(code: Emitter, factor: Factor, scale: Number, number: Number) -> Factor:
    """``number + scale * factor`` in one call."""
    minus = code.emit(operator.neg, scale) if isinstance(scale, fx.Node) else -scale
    alpha = {} if minus == 1.0 else {"alpha": minus}
    return Factor(
        code.emit(torch.rsub, factor.node, number, **alpha, work=factor.axes, per=1 + len(alpha)), factor.axes
    )


def _collected(code: Emitter, terms: list[Term]) -> list[Term]:
    """Products that share a tensor larger than what it is multiplied by: ``w - a w + b c w`` is ``(1 - a + b c) w``.

    So each large tensor is multiplied once.
    """
    shared: dict[Factor, list[Term]] = {}
    for term in terms:
        for factor in set(term.factors):
            shared.setdefault(factor, []).append(term)
    groups = {f: group for f, group in shared.items() if len(group) > 1 and _all_smaller(f, group)}
    if not groups:
        return terms
    outside = max(groups, key=lambda f: (_elements(f.axes), len(groups[f])))
    group, inside = groups[outside], []
    for term in group:
        factors = list(term.factors)
        factors.remove(outside)
        inside.append(term._replace(factors=tuple(factors)))
    sign = -1.0 if all(term.coefficient < 0.0 for term in group) else 1.0
    inside = [term._replace(coefficient=sign * term.coefficient) for term in inside]
    with code.at(group[0].origin):
        both = (materialize(code, inside), outside)
    whole = group[0]._replace(coefficient=sign, power=0, factors=both)
    return _collected(code, [whole, *(term for term in terms if term not in group)])


def _all_smaller(factor: Factor, group: list[Term]) -> bool:
    """Whether what stands beside a factor varies over fewer axes in all terms together, and in one at all."""
    if factor.gathered is not None:
        return False
    beside: set[Axis] = set()
    for term in group:
        others = list(term.factors)
        others.remove(factor)
        if any(f.gathered for f in others):
            return False
        beside.update(a for f in others for a in f.axes)
    return beside < set(factor.axes) and any(len(term.factors) > 1 for term in group)


def _plus(code: Emitter, factor: Factor, numbers: Iterable[Number]) -> Factor:
    for number in numbers:
        factor = Factor(code.emit(torch.add, factor.node, number, work=factor.axes), factor.axes)
    return factor


def _add(code: Emitter, total: Factor | None, factor: Factor, scale: Number) -> Factor:
    if total is None:
        if scale == 1.0:
            return factor
        return Factor(code.emit(torch.mul, factor.node, scale, work=factor.axes), factor.axes)
    axes = ordered(total.axes + factor.axes)
    one, two = code.arrange(total, axes), code.arrange(factor, axes)
    if scale == 1.0:
        if len(factor.axes) > len(total.axes):  # the layout of the first is that of the result
            one, two = two, one
        node = code.emit(torch.add, one, two, work=axes)
    elif scale == -1.0:
        node = code.emit(torch.sub, one, two, work=axes)
    elif len(axes) > 1:
        # torch.compile of torch 2.13 loses the alpha of a sum with a matrix product, not that of a difference.
        minus = code.emit(operator.neg, scale) if isinstance(scale, fx.Node) else -scale
        node = code.emit(torch.sub, one, two, alpha=minus, work=axes, per=2)
    else:
        node = code.emit(torch.add, one, two, alpha=scale, work=axes, per=2)
    return Factor(node, axes)


def factored(code: Emitter, terms: list[Term]) -> list[Term]:
    """Contractions that share a factor as one: ``sum_b e x + sum_b y x`` is ``sum_b (e + y) x``.

    Only where the sum of the other factors is no larger than one of them, and while any share one.
    """
    shared: dict[Any, list[tuple[Term, Factor]]] = {}
    for term in terms:
        for factor in term.factors:
            if _may_stand_out(term, factor):
                free = tuple(None if axis in term.bound else axis for axis in factor.axes)
                shared.setdefault((factor.node, free, term.power), []).append((term, factor))
    groups = [group for group in shared.values() if len(group) > 1 and _same_size(group)]
    if not groups:
        return terms
    group = max(groups, key=lambda group: (len(group), _elements(group[0][1].axes)))
    (first, outside), inside = group[0], []
    for term, factor in group:
        names = dict(zip(factor.axes, outside.axes, strict=True))
        rest = term._replace(factors=_others(term, factor), bound=frozenset(), power=0)
        inside.append(rest.renamed(names))
    sign = -1.0 if all(term.coefficient < 0.0 for term in inside) else 1.0
    inside = [term._replace(coefficient=sign * term.coefficient) for term in inside]
    with code.at(first.origin):
        whole = first._replace(coefficient=sign, factors=(materialize(code, inside), outside))
    done = [id(term) for term, _ in group]
    return factored(code, [whole, *(term for term in terms if id(term) not in done)])


def _others(term: Term, factor: Factor) -> tuple[Factor, ...]:
    return tuple(f for f in term.factors if f is not factor)


def _may_stand_out(term: Term, factor: Factor) -> bool:
    """Whether all that is summed is an axis of this factor, and the others are no outer product."""
    if term.fold or any(f.gathered for f in term.factors) or not term.bound <= set(factor.axes):
        return False
    others = _others(term, factor)
    return len(others) < len(term.factors) and set().union(*(f.axes for f in others)) <= _largest(others)


def _largest(factors: Iterable[Factor]) -> set[Axis]:
    return max((set(f.axes) for f in factors), key=len, default=set())


def _same_size(group: list[tuple[Term, Factor]]) -> bool:
    """Whether the other factors of one term have all axes of those of every other; each term stands there once."""
    (_, outside), sets = group[0], []
    for term, factor in group:
        names = dict(zip(factor.axes, outside.axes, strict=True))
        sets.append({names.get(axis, axis) for axis in _largest(_others(term, factor))})
    return len({id(term) for term, _ in group}) == len(group) and set().union(*sets) in sets


def product(code: Emitter, factors: Iterable[Factor]) -> Factor:
    """Multiply tensors out, small ones first."""
    first, *rest = sorted(factors, key=lambda f: (_elements(f.axes), f.node.name))
    for factor in rest:
        axes = ordered(first.axes + factor.axes)
        if len(axes) > max(len(first.axes), len(factor.axes)) and BATCH in axes:
            code.note("product materialised")
        large, small = (first, factor) if len(first.axes) > len(factor.axes) else (factor, first)
        node = code.emit(torch.mul, code.arrange(large, axes), code.arrange(small, axes), work=axes)
        first = Factor(node, axes)
    return first


def contract(code: Emitter, term: Term, into: Factor | None = None, scale: Number = 1.0) -> Factor:
    """``into + scale * sum_bound prod(factors)``, two factors at a time, cheapest intermediate first."""
    factors, bound = list(term.factors), term.bound
    incidence = term.fold.incidence if term.fold else next((f.gathered for f in factors if f.gathered), None)
    if incidence is not None:
        lowered = lower(incidence, code, term, into if scale == 1.0 else None)
        if lowered is not None:
            whole, fused = lowered
            return whole if fused else _add(code, into, whole, scale)
        factors = [code.plain(f) for f in factors]
        if term.fold:
            rest = bound - set(term.fold.sites)
            inside = term._replace(coefficient=1.0, power=0, factors=tuple(factors), bound=rest, fold=None)
            return _add(code, into, add_up(code, materialize(code, [inside]), term.fold), scale)
    factors = _sum_lone(code, factors, bound)
    while len(factors) > 2:
        i, j = _cheapest(code, factors, bound)
        others = [f for k, f in enumerate(factors) if k not in (i, j)]
        inside_ = bound - {a for f in others for a in f.axes}
        factors = _sum_lone(code, [_pair(code, factors[i], factors[j], inside_, None, 1.0), *others], bound)
    if len(factors) == 2:
        return _pair(code, factors[0], factors[1], bound, into, scale)
    return _add(code, into, factors[0], scale)


def _sum_lone(code: Emitter, factors: list[Factor], bound: frozenset[Axis]) -> list[Factor]:
    """Sum, before anything is multiplied, the bound axes that only one factor has."""
    result = []
    for i, factor in enumerate(factors):
        others = {a for k, f in enumerate(factors) if k != i for a in f.axes}
        lone = [a for a in factor.axes if a in bound and a not in others]
        result.append(_sum(code, factor, lone))
    return result


def _sum(code: Emitter, factor: Factor, axes: Sequence[Axis]) -> Factor:
    if not axes:
        return factor
    rest = tuple(a for a in factor.axes if a not in axes)
    if code.single and len(axes) == 1 and _is_batch(axes[0]):
        return Factor(code.emit("select", factor.node, factor.axes.index(axes[0]), 0), rest)
    dims = tuple(factor.axes.index(a) for a in axes)
    node = code.emit("sum", factor.node, *([dims[0] if len(dims) == 1 else dims] if rest else []), work=factor.axes)
    return Factor(node, rest)


def _pair(
    code: Emitter, one: Factor, two: Factor, bound: frozenset[Axis], into: Factor | None, scale: Number
) -> Factor:
    shared = [a for a in one.axes if a in two.axes]
    summed = [a for a in shared if a in bound]
    axes = ordered(a for a in one.axes + two.axes if a not in bound)
    if into is None:
        code.products.add(_product_key(one, two, bound))
    if not summed or (set(one.axes) == set(two.axes) and len(shared) > 1):
        return _add(code, into, _sum(code, product(code, (one, two)), summed), scale)
    if len(summed) == len(shared) == 1:
        matrix = _matrix_product(code, one, two, summed[0], axes, into, scale)
        if matrix is not None:
            return matrix
    letters = {a: chr(ord("a") + i) for i, a in enumerate(ordered(one.axes + two.axes))}
    text = ["".join(letters[a] for a in part) for part in (one.axes, two.axes, axes)]
    formula = f"{text[0]},{text[1]}->{text[2]}"
    node = code.emit(torch.einsum, formula, one.node, two.node, work=letters, per=2)
    return _add(code, into, Factor(node, axes), scale)


def _matrix_product(
    code: Emitter,
    one: Factor,
    two: Factor,
    axis: Axis,
    axes: tuple[Axis, ...],
    into: Factor | None,
    scale: Number,
) -> Factor | None:
    """The product over one shared axis as a call of linear algebra, fused with the sum it is added to."""
    work: dict[str, Any] = {"work": (axis, *axes), "per": 2}
    if len(one.axes) == len(two.axes) == 1:
        node = code.emit(torch.dot, one.node, two.node, **work)
        return _add(code, into, Factor(node, ()), scale)
    if len(one.axes) == 1 or (len(two.axes) > 1 and axes[0] in two.axes):
        one, two = two, one
    if len(one.axes) == 2 and len(two.axes) == 1:
        matrix = code.arrange(one, (*axes, axis))
        if into is not None and into.axes == axes:
            beta = {} if scale == 1.0 else {"alpha": scale}
            return Factor(code.emit(torch.addmv, into.node, matrix, two.node, **beta, **work), axes)
        return _add(code, into, Factor(code.emit(torch.mv, matrix, two.node, **work), axes), scale)
    if len(two.axes) != 2:
        return None
    (column,) = (a for a in two.axes if a is not axis)
    rows = tuple(a for a in one.axes if a is not axis)
    if (*rows, column) != axes:
        return None
    left = code.arrange(one, (*rows, axis))
    if BATCH in rows and len(rows) > 1 and _few(two):
        return _add(code, into, _mixed(code, left, code.arrange(two, (column, axis)), rows, column, axis), scale)
    if two.axes == (column, axis) and scale == 1.0 and (into is None or into.axes == (column,)):
        node = code.emit(functional.linear, left, two.node, *([into.node] if into else []), **work)
        return Factor(node, axes)
    right = code.arrange(two, (axis, column))
    if len(rows) != 1 and into is not None and into.axes == axes:
        above, rows_of = (code.emit("flatten", node, 0, len(rows) - 1) for node in (into.node, left))
        beta = {} if scale == 1.0 else {"alpha": scale}
        node = code.emit(torch.addmm, above, rows_of, right, **beta, **work)
        return Factor(code.emit("view_as", node, into.node), axes)
    if len(rows) != 1:
        return _add(code, into, Factor(code.emit(torch.matmul, left, right, **work), axes), scale)
    if code.single and _is_batch(axis) and into is not None and into.axes == axes:
        beta = {} if scale == 1.0 else {"value": scale}
        return Factor(code.emit(torch.addcmul, into.node, left, right, **beta, **work), axes)
    if into is not None and into.axes in (axes, axes[1:]):
        beta = {} if scale == 1.0 else {"alpha": scale}
        return Factor(code.emit(torch.addmm, into.node, left, right, **beta, **work), axes)
    return _add(code, into, Factor(code.emit(torch.mm, left, right, **work), axes), scale)


def _few(matrix: Factor) -> bool:
    """Whether it mixes a few channels of an agent: both axes are short."""
    return all(a.size is not None and a.size <= FEW for a in matrix.axes)


def _mixed(code: Emitter, left: fx.Node, matrix: fx.Node, rows: tuple[Axis, ...], column: Axis, axis: Axis) -> Factor:
    """``left @ matrix.T`` as ``(matrix @ left.T).T``, with channels first in memory.

    Of a million agents with two channels it takes 0.4 of the time, and the products that follow need not copy.
    """
    flat = code.emit("t", code.emit("flatten", left, 0, len(rows) - 1))
    node = code.emit("t", code.emit(torch.mm, matrix, flat, work=(axis, *rows, column), per=2))
    sizes = [code.batch_size() if a is BATCH else a.size for a in rows]
    return Factor(code.emit("unflatten", node, 0, sizes), (*rows, column))


def _is_batch(axis: Axis) -> bool:
    return axis.size is None


def _elements(axes: Iterable[Axis]) -> int:
    return math.prod(a.size if a.size is not None else TYPICAL_BATCH for a in axes)


def _cheapest(code: Emitter, factors: list[Factor], bound: frozenset[Axis]) -> tuple[int, int]:
    """The pair that is multiplied first in the cheapest order of all: by operations, and numbers read and written.

    What was written before costs nothing. More than six factors would have too many orders; of those, the pair of the
    smallest product is taken.
    """
    nodes = [frozenset([i]) for i in range(len(factors))]
    axes = {node: frozenset(factors[i].axes) for i, node in enumerate(nodes)}
    if len(factors) > MOST_ORDERED:
        whole = {(i, j): _step(axes, nodes, (i, j), bound) for j in range(len(nodes)) for i in range(j)}
        return min(whole, key=lambda pair: (_elements(whole[pair][1]), whole[pair][0], pair))
    known = {pair for pair in itertools.combinations(range(len(factors)), 2) if _written(code, factors, pair, bound)}

    def best(parts: list[frozenset[int]], axes: dict[frozenset[int], frozenset[Axis]]) -> tuple[float, tuple[int, int]]:
        found = []
        for i, j in itertools.combinations(range(len(parts)), 2):
            cost, left = _step(axes, parts, (i, j), bound)
            joined = parts[i] | parts[j]
            if tuple(sorted(joined)) in known:
                cost = 0.0
            if len(parts) > 2:
                others = [part for k, part in enumerate(parts) if k not in (i, j)]
                cost += best([joined, *others], {**axes, joined: left})[0]
            found.append((cost, (i, j)))
        return min(found)

    return best(nodes, axes)[1]


def _step(
    axes: dict[frozenset[int], frozenset[Axis]],
    parts: list[frozenset[int]],
    pair: tuple[int, int],
    bound: frozenset[Axis],
) -> tuple[float, frozenset[Axis]]:
    """What it costs to multiply two of these parts, in numbers touched, and the axes of their product."""
    one, two = (axes[parts[k]] for k in pair)
    others = {a for k, part in enumerate(parts) if k not in pair for a in axes[part]}
    left = frozenset(a for a in one | two if a not in bound or a in others)
    touched = _elements(one) + _elements(two) + _elements(left)
    return _elements(one | two) / OPERATIONS_A_NUMBER + touched, left


def _written(code: Emitter, factors: list[Factor], pair: tuple[int, int], bound: frozenset[Axis]) -> bool:
    """Whether the product of two factors is in the code already, as another message or update needed it too."""
    others = {a for k, f in enumerate(factors) if k not in pair for a in f.axes}
    return _product_key(factors[pair[0]], factors[pair[1]], bound - others) in code.products


def _product_key(one: Factor, two: Factor, bound: Iterable[Axis]) -> Any:
    """The same for the same product of the same tensors, whatever its bound axes are called."""
    one, two = sorted((one, two), key=lambda f: f.node.name)
    shared = tuple((i, two.axes.index(a), a in bound) for i, a in enumerate(one.axes) if a in two.axes)
    return one.node, two.node, shared


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
