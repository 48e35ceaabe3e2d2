"""An order in which sources come first, or an error that shows a cycle."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from graphlib import CycleError, TopologicalSorter
from typing import TypeVar

from mpgraph.errors import NetworkError

Node = TypeVar("Node", bound=Hashable)
SHOWN = 8  # nodes of a cycle


def in_order(
    sources: Mapping[Node, Iterable[Node]], problem: str, fix: str, name: Callable[[Node], str] = str
) -> list[Node]:
    """The nodes in an order in which each comes after its sources.

    Args:
        sources: of each node.
        problem: what the error begins with: ``pass 'backward' has a cycle without a delay``.
        fix: what it ends with.
        name: of a node in the error.

    Raises:
        NetworkError: ``PROBLEM: a -> b -> a. FIX``.
    """
    try:
        return list(TopologicalSorter(sources).static_order())
    except CycleError as error:
        cycle = [name(node) for node in error.args[1]]
        more = len(cycle) - SHOWN
        shown = cycle if more <= 1 else [*cycle[: SHOWN - 1], f"({more} more)", cycle[-1]]
        raise NetworkError(f"{problem}: {' -> '.join(shown)}. {fix}") from None
