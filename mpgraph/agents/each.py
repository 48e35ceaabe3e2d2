"""Messages of one role kept apart by connection: what a role declared ``"each"`` receives."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

from mpgraph.errors import ProtocolError


class Each(Mapping[str, Any]):
    """A value for each neighbor, by the neighbor's name; arithmetic and torch functions act on every part.

    Sent as a message, each neighbor receives its own part.

    Args:
        parts: values of local shape, ``()`` or ``(k,)``, by name of the neighbor.

    Raises:
        ProtocolError: on a look-up, for a name that is no neighbor.
    """

    def __init__(self, parts: Mapping[str, Any]) -> None:
        self._parts = dict(parts)

    def __getitem__(self, name: str) -> Any:
        if name not in self._parts:
            raise ProtocolError(f"no part for neighbor {name!r}; there are {', '.join(self._parts)}")
        return self._parts[name]

    def __iter__(self) -> Any:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)

    def map(self, function: Callable[..., Any], *others: Any) -> Each:
        """Apply a function to every part, together with the same part of other ``Each`` operands."""
        return Each(
            {n: function(p, *(o[n] if isinstance(o, Each) else o for o in others)) for n, p in self._parts.items()}
        )

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Each:
        parts = next(a for a in args if isinstance(a, Each))
        return cls({n: func(*(a[n] if isinstance(a, Each) else a for a in args), **(kwargs or {})) for n in parts})

    def __add__(self, other: Any) -> Each:
        return self.map(operator.add, other)

    def __sub__(self, other: Any) -> Each:
        return self.map(operator.sub, other)

    def __rsub__(self, other: Any) -> Each:
        return self.map(lambda part, o: o - part, other)

    def __mul__(self, other: Any) -> Each:
        return self.map(operator.mul, other)

    def __truediv__(self, other: Any) -> Each:
        return self.map(operator.truediv, other)

    def __neg__(self) -> Each:
        return self.map(operator.neg)

    __radd__, __rmul__ = __add__, __mul__
