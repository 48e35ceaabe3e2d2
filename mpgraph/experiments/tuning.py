"""A search for the arguments of a rule that has a stated budget and never sees the test set.

The space is given once for all rules, ``lr=0.01..1`` or ``lr=0.01..1,surrogate=tanh|relu``; a rule is searched in those
of its dimensions that it takes and was not given. One dimension of numbers is a grid with both ends, even in the
logarithm where both ends are positive. Several are points of the sequence of Halton (1960), which fill a box evenly.
Every trial trains anew, on what is left of the training set, and is scored on the rest of it.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from mpgraph.errors import InputError

PRIMES = (2, 3, 5, 7, 11, 13)  # bases of the sequence: one for each dimension
SHARE = 0.2  # of the training set is held out to choose


@dataclass(frozen=True)
class Dimension:
    """One argument: a range of numbers, or a list of choices."""

    name: str
    low: float = 0.0
    high: float = 0.0
    choices: tuple[Any, ...] = ()

    def at(self, place: float) -> Any:
        """The value at a place from 0 to 1."""
        if self.choices:
            return self.choices[min(int(place * len(self.choices)), len(self.choices) - 1)]
        if self.low > 0.0:
            value = math.exp(math.log(self.low) + place * (math.log(self.high) - math.log(self.low)))
        else:
            value = self.low + place * (self.high - self.low)
        return min(max(float(f"{value:.4g}"), self.low), self.high)  # a number that a paper can print

    def edge(self, value: Any) -> bool:
        """Whether a value is one of the ends, beyond which there may be a better one."""
        return not self.choices and value in (self.low, self.high)


@dataclass(frozen=True)
class Space:
    """What is searched, and with how many trials for each rule."""

    text: str
    dimensions: tuple[Dimension, ...]
    trials: int

    def of(self, free: Collection[str]) -> Space:
        """Only the dimensions that a rule takes and was not given."""
        return Space(self.text, tuple(one for one in self.dimensions if one.name in free), self.trials)

    def candidates(self) -> list[dict[str, Any]]:
        """Arguments to try; none for a space without dimensions."""
        if not self.dimensions:
            return []
        if len(self.dimensions) == 1:
            (one,) = self.dimensions
            if one.choices:
                return [{one.name: value} for value in one.choices[: self.trials]]
            places = [i / (self.trials - 1) for i in range(self.trials)] if self.trials > 1 else [0.5]
            return [{one.name: one.at(place)} for place in places]
        return [
            {one.name: one.at(halton(i, base)) for one, base in zip(self.dimensions, PRIMES, strict=False)}
            for i in range(1, self.trials + 1)
        ]


def halton(index: int, base: int) -> float:
    """Number ``index`` of Van der Corput's sequence: its digits in the base, mirrored behind the point."""
    place, scale = 0.0, 1.0
    while index:
        scale /= base
        place += scale * (index % base)
        index //= base
    return place


def space_of(text: str, trials: int) -> Space:
    """Read ``lr=0.01..1,momentum=0|0.9``.

    Raises:
        InputError: for anything else, or more dimensions than there are bases.
    """
    dimensions = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        low, dots, high = value.partition("..")
        try:
            if not name.isidentifier() or not equals or not value:
                raise ValueError
            if dots:
                one = Dimension(name, float(low), float(high))
                if not (math.isfinite(one.low) and math.isfinite(one.high) and one.low < one.high):
                    raise ValueError
            else:
                one = Dimension(name, choices=tuple(map(_literal, value.split("|"))))
        except ValueError:
            raise InputError(
                f"--tune {part!r} must be NAME=LOW..HIGH with numbers that grow, or NAME=A|B|C, for example "
                "lr=0.01..1,surrogate=tanh|relu"
            ) from None
        dimensions.append(one)
    names = [one.name for one in dimensions]
    if not names or len(set(names)) < len(names) or len(names) > len(PRIMES):
        raise InputError(f"--tune {text!r} must name from 1 to {len(PRIMES)} different arguments")
    return Space(text, tuple(dimensions), trials)


def searched(space: Space, trial: Callable[[dict[str, Any]], tuple[float, bool]]) -> dict[str, Any]:
    """Try all candidates and choose.

    Args:
        space: of this rule.
        trial: trains with these arguments; returns the score on validation data, of which more is better, and whether
            training diverged.

    Returns:
        ``space``, ``trials`` (each with ``arguments``, ``validation`` and ``diverged``), ``chosen``, the arguments of
        the best trial (of equals the first) that did not diverge, if any did not, and ``at_edge``, the names of those
        that lie at an end of their range. A validation score that is not finite is ``None``.
    """
    tried: list[dict[str, Any]] = []
    for arguments in space.candidates():
        score, diverged = trial(arguments)
        tried.append({
            "arguments": arguments, "validation": score if math.isfinite(score) else None, "diverged": diverged,
        })  # fmt: skip
    if not tried:
        return {"space": space.text, "trials": [], "chosen": {}, "at_edge": []}

    def worth(one: dict[str, Any]) -> tuple[bool, float]:
        return not one["diverged"], -math.inf if one["validation"] is None else one["validation"]

    chosen = max(tried, key=worth)["arguments"]
    edges = [one.name for one in space.dimensions if one.edge(chosen[one.name])]
    return {"space": space.text, "trials": tried, "chosen": chosen, "at_edge": edges}


def _literal(text: str) -> Any:
    """A number, True, False or None; any other word is a string."""
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError):
        return text.strip()
