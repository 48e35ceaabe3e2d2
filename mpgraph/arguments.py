"""Checks of arguments: each is what it must be, or refused in one sentence before anything is made from it."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Any, Literal, NoReturn, Union, get_args, get_origin

import numpy as np
from torch import Tensor

from .errors import MPGraphError, ProtocolError, unknown

SHOWN = 80  # characters of what was received
_LISTS = {list: "a list", tuple: "a tuple", Sequence: "a sequence"}
_MAPPINGS = (dict, Mapping)


class Arguments:
    """Checks of the arguments of one class; every one returns the argument as plain Python has it.

    Numbers of numpy become numbers of Python. ``None``, ``True`` and tensors are not numbers: what may be learnable
    is checked by :meth:`learnable`.

    Args:
        owner: what messages begin with: the class, or its method.
        error: the class of what is raised.
        also: what else is allowed, said at the end of every refusal.

    Raises:
        MPGraphError: by every check, of the class ``error``: ``OWNER: NAME=RECEIVED must be ALLOWED``.
    """

    def __init__(self, owner: str, error: type[MPGraphError] = ProtocolError, *, also: str = "") -> None:
        self.owner, self.error, self.also = owner, error, also

    def refuse(self, name: str, value: Any, allowed: str) -> NoReturn:
        """Say what is wrong."""
        text = " ".join(repr(value).split())
        shown = text if len(text) <= SHOWN else f"{text[:SHOWN]}... ({type(value).__name__})"
        single = (
            isinstance(value, (Tensor, np.ndarray)) and value.ndim == 0 and not getattr(value, "requires_grad", False)
        )
        hint = f"; write {name}.item() of it" * single
        raise self.error(f"{self.owner}: {name}={shown} must be {allowed}{self.also}{hint}")

    def annotated(self, name: str, value: Any, annotation: Any, **bounds: float) -> Any:
        """What an annotation allows.

        It may be ``bool``, ``int``, ``float``, ``str``, ``Literal`` words, a class, ``Callable``, a ``tuple``,
        ``list``, ``Sequence``, ``Mapping`` or ``dict`` of such, or a union, also with ``None``; ``Any`` allows
        everything. A list comes out as a list, every other sequence as a tuple.

        Args:
            name: of the argument.
            value: of it.
            annotation: the type, as an object.
            bounds: of numbers, also of those in a sequence or dictionary: ``low``, ``high``, ``above``, ``below``.
        """
        if not _readable(annotation):
            raise self.error(
                f"{self.owner}: option {name!r}: its annotation {annotation!r} cannot be checked; write bool, int, "
                "float, str, Literal, a class, Callable, tuple, list, Sequence, Mapping or dict of such, a union or Any"
            )
        members = _members(annotation)
        if Any in members or (value is None and NoneType in members):
            return value
        fitting = [one for one in members if _fits(value, one)]
        if not fitting:
            listed = any(_items(one) == [str] for one in members) and isinstance(value, str)
            hint = f"; write ({value!r},)" if listed else ""
            if isinstance(value, type) and any(isinstance(one, type) and issubclass(value, one) for one in members):
                hint = f"; write {value.__name__}()"
            self.refuse(name, value, ", or ".join(_allowed(one, bounds) for one in members) + hint)
        if float in fitting:  # an integer is a number
            fitting = [float]
        for one in fitting:
            others = "".join(f", or {_allowed(other, bounds)}" for other in members if other is not one)
            try:
                return self._member(name, value, one, others, bounds)
            except self.error:
                if one is fitting[-1]:
                    raise
        raise AssertionError  # the last one returns or raises

    def _member(self, name: str, value: Any, one: Any, others: str, bounds: Mapping[str, float]) -> Any:
        """The value as one member of an annotation has it; its outer type fits."""
        given = Arguments(self.owner, self.error, also=others + self.also)
        if one is bool:
            return bool(value)
        if one is int:
            return given.integer(name, value, *_integral(bounds))
        if one is float:
            return given.number(name, value, **bounds)
        if get_origin(one) in _LISTS:
            kinds = _items(one)
            if len(kinds) == 1:
                kinds = kinds * len(value)
            pairs = zip(value, kinds, strict=True)
            parts = [self.annotated(f"{name}[{i}]", part, kind, **bounds) for i, (part, kind) in enumerate(pairs)]
            return parts if get_origin(one) is list else tuple(parts)
        if get_origin(one) in _MAPPINGS:
            keys, values = get_args(one)
            return {
                self.annotated(f"key of {name}", key, keys): self.annotated(f"{name}[{key!r}]", part, values, **bounds)
                for key, part in value.items()
            }
        return value

    def integer(self, name: str, value: Any, low: int | None = None, high: int | None = None) -> int:
        """An integer, within bounds that are allowed themselves."""
        allowed = "an integer" + _bounds(low, high)
        if not _counts(value):
            self.refuse(name, value, allowed)
        number = int(value)
        if (low is not None and number < low) or (high is not None and number > high):
            self.refuse(name, value, allowed)
        return number

    def number(
        self,
        name: str,
        value: Any,
        low: float | None = None,
        high: float | None = None,
        *,
        above: float | None = None,
        below: float | None = None,
    ) -> float:
        """A finite number, within bounds that are allowed themselves, or ``above`` and ``below`` ones that are not."""
        allowed = f"a finite number{_all_bounds(low, high, above, below)}"
        if not _finite(value):
            self.refuse(name, value, allowed)
        number = float(value)
        if (
            (low is not None and number < low)
            or (high is not None and number > high)
            or (above is not None and number <= above)
            or (below is not None and number >= below)
        ):
            self.refuse(name, value, allowed)
        return number

    def learnable(self, name: str, value: Any, low: float | None = None, *, below: float | None = None) -> Any:
        """A number like that of :meth:`number`, or a tensor of any value, such as ``mg.learnable(0.1)``.

        A parameter stays the caller's, who learns it; any other tensor is copied.
        """
        if not isinstance(value, Tensor):
            return self.number(name, value, low, below=below)
        return value if value.requires_grad else value.detach().clone()

    def positive(self, name: str, value: Any) -> float | None:
        """A finite number above zero, or ``None``."""
        if value is None:
            return None
        if not _finite(value) or value <= 0:
            self.refuse(name, value, "a positive, finite number, or None")
        return float(value)

    def flag(self, name: str, value: Any) -> bool:
        """``True`` or ``False``; a string would always count as ``True``."""
        if not isinstance(value, (bool, np.bool_)):
            self.refuse(name, value, "True or False")
        return bool(value)

    def choice(self, name: str, value: Any, allowed: Iterable[str | None], *, function: bool = False) -> Any:
        """One of several words (or ``None``, if that is one of them), or any function where ``function`` says so."""
        words = list(allowed)
        if function and callable(value):
            return value
        if not (value is None or isinstance(value, str)) or value not in words:
            self.refuse(name, value, "one of " + ", ".join(map(repr, words)) + ", or a function" * function)
        return value

    def function(self, name: str, value: Any, example: str) -> Callable[..., Any]:
        """Anything that can be called."""
        if not callable(value):
            self.refuse(name, value, f"a function, such as {example}")
        found: Callable[..., Any] = value
        return found

    def instance(self, name: str, value: Any, kind: type) -> Any:
        """An object of a class, or ``None``."""
        if value is not None and not isinstance(value, kind):
            self.refuse(name, value, f"a {_path(kind)}, or None")
        return value

    def seed(self, name: str, value: Any) -> int:
        """An integer that ``torch.Generator.manual_seed`` takes."""
        if not _counts(value) or not -(2**63) <= int(value) < 2**64:
            self.refuse(name, value, "an integer of at most 64 bits")
        return int(value)

    def sizes(self, name: str, value: Any, count: int) -> tuple[Any, ...]:
        """A sequence (or iterator) of at least so many sizes of units, each as for :meth:`shape`."""
        value = list(value) if isinstance(value, Iterator) else value
        if not _listed(value) or len(value) < count:
            hint = f"; write {name}.tolist()" * (isinstance(value, (Tensor, np.ndarray)) and value.ndim > 0)
            self.refuse(name, value, f"a list of at least {count} sizes, such as {[4, 3, 2][-count:]}{hint}")
        shapes = [self.shape(f"{name}[{i}]", one) for i, one in enumerate(value)]
        return tuple(shape[0] if _counts(one) else shape for one, shape in zip(value, shapes, strict=True))

    def shape(self, name: str, value: Any) -> tuple[int, ...]:
        """One positive integer, or several as a tuple (also a ``torch.Size``)."""
        if _counts(value) and value > 0:
            return (int(value),)
        if not isinstance(value, tuple) or not value or not all(_counts(n) and n > 0 for n in value):
            self.refuse(name, value, "a positive integer, or a tuple of them")
        return tuple(int(n) for n in value)

    def pair(self, name: str, value: Any, low: int) -> tuple[int, int]:
        """One integer for both, or two."""
        one, two = self.integers(name, value, low, 2)
        return one, two

    def integers(self, name: str, value: Any, low: int, count: int) -> tuple[int, ...]:
        """One integer for all, or so many."""
        numbers = (value,) * count if _counts(value) else value
        if not _listed(numbers) or len(numbers) != count or not all(_counts(n) and n >= low for n in numbers):
            many = {1: "an integer", 2: "one or two integers"}.get(count, f"one integer or {count}")
            self.refuse(name, value, f"{many} of at least {low}")
        return tuple(int(n) for n in numbers)

    def dimensions(self, name: str, value: Any, ndim: int | None = None) -> tuple[int, ...]:
        """A sequence of different dimensions, counted from 0, of a shape with ``ndim`` of them."""
        if not _listed(value) or not all(_counts(n) and n >= 0 for n in value) or len(set(value)) < len(value):
            self.refuse(name, value, "a tuple of different dimensions, such as (1, 2)")
        if ndim is not None and any(n >= ndim for n in value):
            self.refuse(name, value, f"a tuple of dimensions below {ndim}, the number of dimensions of the unit")
        return tuple(int(n) for n in value)

    def numbers(self, name: str, value: Any, count: int) -> tuple[float, ...]:
        """A sequence of so many finite numbers."""
        if not _listed(value) or len(value) != count:
            self.refuse(name, value, f"{count} finite numbers, such as {(0.0,) * count}")
        return tuple(self.number(f"{name}[{i}]", one) for i, one in enumerate(value))

    def patterns(self, name: str, value: Any) -> tuple[str, ...]:
        """A sequence of patterns of names; a string by itself would be one pattern for each of its letters."""
        if not _listed(value) or not all(isinstance(one, str) for one in value):
            hint = f"; write ({value!r},)" if isinstance(value, str) else ""
            self.refuse(name, value, f"a sequence of patterns, each a string{hint}")
        return tuple(value)

    def named(self, name: str, value: Any, allowed: Iterable[str], what: str) -> Mapping[str, Any]:
        """A dictionary whose keys are known.

        Args:
            name: of the argument.
            value: of it.
            allowed: the keys.
            what: a key names: ``node``.
        """
        if not isinstance(value, Mapping):
            self.refuse(name, value, f"a dictionary by {what}")
        known = list(allowed)
        for key in value:
            if key not in known:
                raise self.error(f"{self.owner}: {name}: " + unknown(what, key, known))
        return value

    def serving(self, name: str, patterns: Sequence[str], names: Collection[str], what: str) -> None:
        """Refuse patterns that serve none of the names; each name goes to the first pattern that matches it.

        Args:
            name: of the argument.
            patterns: of the shell, as it was given.
            names: what they are held against.
            what: the names are of, in the plural: ``units``.
        """
        first = {first_match(n, patterns) for n in names}
        idle = [p for i, p in enumerate(patterns) if p not in first or p in patterns[:i]]
        late = [p for p in idle if any(fnmatchcase(n, p) for n in names)]
        which = ", ".join(map(repr, late or idle))
        if late:
            raise self.error(
                f"{self.owner}: {name}={tuple(patterns)}: all {what} that match {which} are taken by earlier patterns; "
                "the first match wins, so put the more particular first"
            )
        if idle:
            raise self.error(
                f"{self.owner}: {name}={tuple(patterns)}: {which} matches none of the {what}, which are "
                f"{', '.join(names) or 'none'}"
            )


def first_match(name: str, patterns: Iterable[str]) -> str | None:
    """The first pattern of the shell that matches a name."""
    return next((pattern for pattern in patterns if fnmatchcase(name, pattern)), None)


def takes_tensor(annotation: Any) -> bool:
    """Whether a tensor is named among what is allowed, and so ``mg.learnable`` of a number."""
    return any(isinstance(one, type) and issubclass(Tensor, one) for one in _members(annotation))


def _members(annotation: Any) -> list[Any]:
    """Those of a union, with ``NoneType`` for ``None``; anything else is its only member."""
    members = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    return [NoneType if one is None else one for one in members]


def _items(one: Any) -> list[Any]:
    """What a sequence consists of: one type for all, or for a tuple of a fixed length one for each."""
    if get_origin(one) not in _LISTS:
        return []
    items = list(get_args(one))
    return items[:1] if items[1:] == [...] else items


def _readable(annotation: Any) -> bool:
    """Whether a value can be held against it."""
    for one in _members(annotation):
        origin = get_origin(one)
        if one is Any or Callable in (one, origin) or origin is Literal:
            continue
        if origin in _LISTS or origin in _MAPPINGS:
            if not all(_readable(part) for part in (_items(one) or get_args(one))):
                return False
            continue
        try:
            isinstance(None, one)
        except TypeError:  # a type variable, a typed dictionary, the generic form of another class
            return False
    return True


def _fits(value: Any, one: Any) -> bool:
    """Whether the outer type of a value is that of a member of an annotation."""
    origin = get_origin(one)
    if origin is Literal:
        if isinstance(value, str):
            return value in get_args(one)
        return any(type(value) is type(word) and value == word for word in get_args(one))  # True is not 1
    if Callable in (one, origin):
        return callable(value)
    if origin in _LISTS:
        fixed = origin is tuple and ... not in get_args(one)
        return _listed(value) and (not fixed or len(value) == len(get_args(one)))
    if origin in _MAPPINGS:
        return isinstance(value, Mapping)
    if one is float:
        return isinstance(value, Real) and not isinstance(value, (bool, np.bool_))
    if one is int:
        return _counts(value)
    return isinstance(value, (bool, np.bool_) if one is bool else one)


def _allowed(one: Any, bounds: Mapping[str, float]) -> str:
    """What a member of an annotation allows, in words."""
    origin = get_origin(one)
    if origin is Literal:
        return "one of " + ", ".join(map(repr, get_args(one)))
    if Callable in (one, origin):
        return "a function"
    if one == Sequence[str]:
        return "a sequence of patterns, each a string"
    if origin in _LISTS:
        items = _items(one)
        if origin is tuple and ... not in get_args(one):
            same = items[0] if len(set(items)) == 1 else None
            if same not in (int, float):
                return f"a tuple of {len(items)}: " + ", ".join(_allowed(item, bounds) for item in items)
            low = _integral(bounds)[0] or 0
            example = f", such as {(low,) * len(items)}" if same is int else ""
            return f"{len(items)} {_plural(same, bounds)}{example}"
        return f"{_LISTS[origin]} of {_plural(items[0], bounds)}"
    if origin in _MAPPINGS:
        keys, values = get_args(one)
        return f"a dictionary from {_plural(keys, {})} to {_plural(values, bounds)}"
    if one is int:
        return "an integer" + _bounds(*_integral(bounds))
    plain = {NoneType: "None", bool: "True or False", str: "a string", float: "a finite number"}
    if one in plain:
        return plain[one] + (_all_bounds(**bounds) if one is float else "")
    path = _path(one)
    return f"{'an' if path[0] in 'aeiou' or path.startswith('mg.') else 'a'} {path}"


def _plural(annotation: Any, bounds: Mapping[str, float]) -> str:
    if annotation is int:
        return "integers" + _bounds(*_integral(bounds))
    if annotation is float:
        return "finite numbers" + _all_bounds(**bounds)
    if annotation is str:
        return "strings"
    if annotation is Any:
        return "values"
    return "values, each " + " or ".join(_allowed(one, bounds) for one in _members(annotation))


def _integral(bounds: Mapping[str, float]) -> tuple[Any, Any]:
    """The lowest and highest integers within bounds."""
    low, high = bounds.get("low"), bounds.get("high")
    if "above" in bounds:
        low = max(math.floor(bounds["above"]) + 1, low if low is not None else -math.inf)
    if "below" in bounds:
        high = min(math.ceil(bounds["below"]) - 1, high if high is not None else math.inf)
    return low, high


def _all_bounds(
    low: float | None = None, high: float | None = None, above: float | None = None, below: float | None = None
) -> str:
    parts = [
        f"above {above:g}" if above is not None else "",
        _bounds(low, high).strip(),
        f"below {below:g}" if below is not None else "",
    ]
    return f" {' and '.join(filter(None, parts))}".rstrip()


def _path(kind: type) -> str:
    """A class as people write it."""
    if getattr(sys.modules.get("mpgraph"), kind.__name__, None) is kind:
        return f"mg.{kind.__name__}"
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _listed(value: Any) -> bool:
    if isinstance(value, np.ndarray):
        return value.ndim == 1
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes))


def _counts(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _finite(value: Any) -> bool:
    try:
        return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # an integer beyond all floats
        return False


def _bounds(low: float | None, high: float | None) -> str:
    if low is not None and high is not None:
        return f" from {low:g} to {high:g}"
    return f" of at least {low:g}" if low is not None else f" of at most {high:g}" if high is not None else ""
