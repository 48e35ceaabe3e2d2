"""Names to classes by entry point, so that a package of one's own adds rules, activations, connections and losses.

Groups: ``mpgraph.protocols``, ``mpgraph.activations``, ``mpgraph.connections``, ``mpgraph.losses``. In a
``pyproject.toml``::

    [project.entry-points."mpgraph.protocols"]
    my_rule = "my_package:MyRule"
"""

from __future__ import annotations

from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any


@cache
def registered(group: str) -> dict[str, EntryPoint]:
    """Entry points of a group by name, sorted; nothing is imported."""
    return {point.name: point for point in sorted(entry_points(group=group), key=lambda point: point.name)}


def lookup(group: str, name: str) -> Any:
    """The registered object, imported now, or ``None``."""
    point = registered(group).get(name)
    return None if point is None else point.load()
