"""Arguments of a rule, each declared once, as a field of its class.

    class SignSymmetry(Backprop):
        magnitudes: Literal["uniform", "fixed"] = option("uniform", "equal for all synapses, or fixed for each")

The annotation defines what is allowed. The declaration makes the argument of the constructor, its entry in the
docstring and in the ``repr``, and the attribute ``self.magnitudes``.
"""

from __future__ import annotations

import inspect
import sys
import textwrap
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from inspect import Parameter, Signature
from typing import Any

from torch import Tensor

from mpgraph.arguments import Arguments, takes_tensor
from mpgraph.errors import ProtocolError

Check = Callable[[Arguments, str, Any], Any]
Number = float | Tensor  # a constant, or mg.learnable of one


@dataclass(frozen=True)
class Option:
    """A declared argument; made by :func:`option`."""

    default: Any
    doc: str = ""
    positional: bool = False
    check: Check | None = None
    bounds: Mapping[str, float] = field(default_factory=dict)
    annotation: Any = Any  # as written, often a string
    module: str = ""  # in which it was written

    def type(self, owner: str, name: str) -> Any:
        """The annotation as an object."""
        if not isinstance(self.annotation, str):
            return self.annotation
        try:
            return eval(self.annotation, dict(vars(sys.modules[self.module])))
        except Exception as error:  # of whatever the author wrote there
            raise ProtocolError(
                f"{owner}: option {name!r}: its annotation {self.annotation!r} cannot be read, {error}; import what it "
                f"names at the top of {self.module}"
            ) from None

    def takes_learnable(self, owner: str, name: str) -> bool:
        """Whether ``mg.learnable`` of a number is allowed."""
        return takes_tensor(self.type(owner, name))

    def checked(self, owner: str, name: str, value: Any) -> Any:
        """The value as plain Python has it, or a refusal."""
        annotation = self.type(owner, name)
        learned = isinstance(value, Tensor) and value.requires_grad and annotation is not Any
        learned = learned and not takes_tensor(annotation)
        hint = f"; an option that can be learned is declared as {name}: mg.Number = option(...)"
        given = Arguments(owner, also=hint if learned else "")
        if self.check is not None:
            return self.check(given, name, value)
        return given.annotated(name, value, annotation, **self.bounds)


def option(
    default: Any,
    doc: str = "",
    *,
    positional: bool = False,
    check: Check | None = None,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    below: float | None = None,
) -> Any:
    """An argument of a rule, declared in the body of its class.

    Args:
        default: the value if none is given.
        doc: what it means, for the docstring.
        positional: whether it may be given without its name; by default only with it.
        check: ``(arguments, name, value) -> value`` for what an annotation cannot express, such as ``Arguments.seed``.
        low: smallest number that is allowed.
        high: largest number that is allowed.
        above: all numbers must be larger than this one.
        below: all numbers must be smaller than this one.

    Raises:
        ProtocolError: when the rule is made, for an annotation that cannot be checked.
    """
    given = {"low": low, "high": high, "above": above, "below": below}
    bounds = {name: bound for name, bound in given.items() if bound is not None}
    return Option(default, doc, positional, check, bounds)


def declare(cls: type, reserved: Collection[str] = ()) -> None:
    """Collect the options of a class and of its bases in ``declared``.

    A plain value for an option of a base is a new default; ``without`` names options of bases that the class does
    not take.

    Args:
        cls: whose body declares them.
        reserved: names that no option may have: those of methods and attributes of every rule.

    Raises:
        ProtocolError: for an option of a reserved name.
    """
    known: dict[str, Option] = {}
    for base in reversed(cls.__mro__[1:]):
        known.update(vars(base).get("declared", {}))
        for name in vars(base).get("without", ()):
            known.pop(name, None)
    annotations = inspect.get_annotations(cls)
    new = {
        name: value for name, value in vars(cls).items() if isinstance(value, Option) or _is_default(value, known, name)
    }
    for name, value in new.items():
        if name in reserved and name not in known:
            raise ProtocolError(
                f"{cls.__name__}: option {name!r} has the name of a method or attribute that every rule has; give it "
                f"another one, such as {name}_option"
            )
        before = known.get(name, Option(None))
        fresh = value if isinstance(value, Option) else replace(before, default=value)
        fresh = replace(fresh, doc=fresh.doc or before.doc, positional=fresh.positional or before.positional)
        if name in annotations:
            fresh = replace(fresh, annotation=annotations[name], module=cls.__module__)
        elif isinstance(value, Option):
            kept = {"annotation": before.annotation, "module": before.module}
            fresh = replace(fresh, check=fresh.check or before.check, bounds=fresh.bounds or before.bounds, **kept)
        known[name] = fresh
        if isinstance(value, Option) or "__init__" not in vars(cls):
            delattr(cls, name)  # an instance has the value
    for name in vars(cls).get("without", ()):
        known.pop(name, None)
    cls.declared = known  # type: ignore[attr-defined]


def _is_default(value: Any, known: Mapping[str, Option], name: str) -> bool:
    return name in known and not callable(value) and not isinstance(value, (property, classmethod, staticmethod))


def signature(options: Mapping[str, Option]) -> Signature:
    """The signature of a constructor that takes these options, and agents by type of node."""
    return Signature(list(_parameters(options)))


def _parameters(options: Mapping[str, Option]) -> Iterable[Parameter]:
    for name, one in options.items():
        if one.positional:
            yield Parameter(name, Parameter.POSITIONAL_OR_KEYWORD, default=one.default, annotation=one.annotation)
    for name, one in options.items():
        if not one.positional:
            yield Parameter(name, Parameter.KEYWORD_ONLY, default=one.default, annotation=one.annotation)
    yield Parameter("agents", Parameter.VAR_KEYWORD, annotation="Agent")


def documented(cls: type, options: Mapping[str, Option]) -> str:
    """The docstring of a class with its arguments, before a section on errors."""
    text = inspect.cleandoc(cls.__doc__ or "")
    if "Args:" in text:
        return text
    lines = [
        textwrap.fill(f"{name}: {one.doc}", 116, initial_indent="    ", subsequent_indent=" " * 8)
        for name, one in options.items()
    ]
    lines.append("    agents: others for types of node, as in :class:`mpgraph.Protocol`.")
    summary, raises, rest = text.partition("\n\nRaises:")
    return f"{summary}\n\nArgs:\n" + "\n".join(lines) + raises + rest


def differs(value: Any, default: Any) -> bool:
    """Whether an argument is not what it is by default."""
    try:
        return value is not default and not bool(value == default)
    except (RuntimeError, ValueError):  # a tensor or an array of several numbers
        return True


def shown(value: Any) -> str:
    """An argument as people write it."""
    if isinstance(value, (bool, str, type(None))):
        return repr(value)
    if isinstance(value, Tensor):
        value = value.detach()
    if hasattr(value, "__float__") and not getattr(value, "ndim", 0):
        return f"{float(value):g}"
    return getattr(value, "__name__", repr(value))
