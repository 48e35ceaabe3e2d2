"""Which function gives each torch function its meaning on lazy values: a table that ``torch_functions`` fills.

Values call torch functions and torch functions make values. With the table between them neither file imports the
other: ``value.py`` looks up here, ``torch_functions.py`` registers here when the package is imported.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Handler = Callable[..., Any]
HANDLERS: dict[str, Handler] = {}
OTHERS = ""  # under this name, the handler of every function that has none of its own


def handles(*names: str) -> Callable[[Handler], Handler]:
    """Register the meaning of torch functions of these names: a function ``(emitter, *args, **kwargs)``.

    That of ``OTHERS`` is called as ``(emitter, name, func, args, kwargs)``.
    """

    def register(function: Handler) -> Handler:
        HANDLERS.update(dict.fromkeys(names, function))
        return function

    return register


def dispatch(emitter: Any, name: str, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Apply a torch function of which at least one argument is a lazy value."""
    if name in HANDLERS:
        return HANDLERS[name](emitter, *args, **kwargs)
    return HANDLERS[OTHERS](emitter, name, func, args, kwargs)
