"""Repetition in a schedule: passes that run again and again, as a loop of the generated code."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mpgraph.arguments import Arguments
from mpgraph.errors import InputError, ProtocolError, unknown


@dataclass(frozen=True)
class Repeat:
    """Passes that run several times; made by :func:`repeat`.

    Attributes:
        passes: the schedule of one round; it may hold further repetitions.
        times: how many rounds, or at most how many with ``until``.
        until: a channel; rounds end when it changes nowhere by more than ``tolerance``.
        tolerance: of ``until``.
        name: by which a step is told another number of rounds.
        recompute: whether a backward pass runs each round again in place of keeping what is inside it.
    """

    passes: tuple[Any, ...]
    times: int
    until: str | None = None
    tolerance: float = 0.0
    name: str = ""
    recompute: bool = False

    def __repr__(self) -> str:
        until = f", until={self.until!r}, tolerance={self.tolerance:g}" if self.until else ""
        return f"repeat({self.passes!r}, {self.times}{until})"


def repeat(
    passes: Iterable[str | Repeat],
    times: int,
    *,
    until: str | None = None,
    tolerance: float | None = None,
    name: str | None = None,
    recompute: bool = False,
) -> Repeat:
    """Passes of a schedule that run several times: ``passes = ("forward", mg.repeat(("up", "down"), 20), "learn")``.

    The generated code holds them once, in a loop. Channels go from round to round.

    Args:
        passes: the schedule of one round, which may hold further repetitions.
        times: how many rounds, at least one. ``program.step(..., repeat={name: 5})`` takes another number.
        until: a channel: rounds end early when its value has changed by at most ``tolerance`` in a whole round, for
            every agent that has it and every example. ``times`` is then the most.
        tolerance: of ``until``, at least 0.
        name: of this repetition in ``repeat=``; by default its first pass.
        recompute: keep only the channels between rounds for a backward pass, which then runs each round again.

    Raises:
        ProtocolError: for what is no schedule, less than one round, or a tolerance without ``until``.
    """
    given = Arguments("mg.repeat")
    if isinstance(passes, str):
        given.refuse("passes", passes, f"a tuple of names of passes; write ({passes!r},)")
    passes = given.annotated("passes", passes, tuple[str | Repeat, ...])
    if not passes:
        raise ProtocolError("mg.repeat: passes=() must name at least one pass")
    times = given.integer("times", times, 1)
    if (until is None) != (tolerance is None):
        raise ProtocolError(
            "mg.repeat: until= (a channel) and tolerance= (a number) belong together; give both or none"
        )
    limit = 0.0 if tolerance is None else given.number("tolerance", tolerance, low=0)
    first = next(names_of(passes))
    return Repeat(tuple(passes), times, until, float(limit), name or first, bool(recompute))


def names_of(schedule: Iterable[str | Repeat]) -> Iterator[str]:
    """The passes of a schedule in their order, those of a repetition once."""
    for element in schedule:
        if isinstance(element, Repeat):
            yield from names_of(element.passes)
        else:
            yield element


def repeats_of(schedule: Iterable[str | Repeat]) -> Iterator[Repeat]:
    """The repetitions of a schedule, outer ones first."""
    for element in schedule:
        if isinstance(element, Repeat):
            yield element
            yield from repeats_of(element.passes)


def counts_of(schedule: Iterable[str | Repeat], given: Mapping[str, int] | int | None) -> dict[str, int]:
    """Other numbers of rounds by name, as a step is given them; of a schedule with one repetition a number will do.

    Raises:
        InputError: for an unknown name, or what is no number of rounds.
    """
    if given is None:
        return {}
    names = list(dict.fromkeys(one.name for one in repeats_of(schedule)))
    if not names:
        raise InputError(f"repeat={given!r}: the rule repeats nothing; write mg.repeat(...) into its passes")
    if not isinstance(given, Mapping):
        if len(names) > 1:
            raise InputError(f"repeat={given!r}: the rule repeats {', '.join(names)}; give a number for each by name")
        given = {names[0]: given}
    for name in given:
        if name not in names:
            raise InputError("repeat: " + unknown("repetition", name, names))
    check = Arguments("repeat", InputError)
    return {name: check.integer(name, number, 1) for name, number in given.items()}
