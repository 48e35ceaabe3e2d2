"""One family of errors: every message names the node, what was received, what is allowed and the likely fix."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches


class MPGraphError(Exception):
    """Whatever mpgraph refuses. Catch this to catch all of them."""


class NetworkError(MPGraphError, ValueError):
    """A network cannot exist as it was defined: a wrong name, size or cycle."""


class ProtocolError(MPGraphError, ValueError):
    """A learning rule does not fit the network, or reads what it has not written."""


class InputError(MPGraphError, ValueError):
    """A batch does not fit the program: shape, dtype, label range, NaN."""


class StateError(MPGraphError, ValueError):
    """A state belongs to another program, or lacks a tensor."""


class FileError(MPGraphError, ValueError):
    """A file is missing, damaged, or was written for something else."""


class GroupError(MPGraphError, RuntimeError):
    """Processes that share a batch cannot work together: one has ended, or something does not work over several."""


class BackendError(MPGraphError, RuntimeError):
    """A backend cannot run here, cannot compile some code, or was told to compile nothing more."""


class FlatUnitWarning(UserWarning):
    """A unit has zero derivative everywhere, so nodes below it receive no learning signal."""


@contextmanager
def adding(where: str) -> Iterator[None]:
    """What a network refuses within begins with the part that was being added."""
    try:
        yield
    except NetworkError as error:
        raise NetworkError(f"{where}: {error}") from None


def unknown(what: str, received: object, allowed: Iterable[str]) -> str:
    """Message for a name that is not in a list, with the nearest allowed name."""
    names = sorted(allowed)
    near = get_close_matches(str(received), names, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"unknown {what} {received!r}: allowed are {', '.join(names) or 'none'}{hint}"
