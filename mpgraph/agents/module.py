"""Base module for rules: records constructor arguments and becomes read-only once compiled."""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn

from mpgraph.errors import ProtocolError


class RuleModule(nn.Module):
    """A module whose numbers become constants of generated code: once compiled, setting one is an error."""

    _sealed = False
    arguments: dict[str, Any]

    def __new__(cls, *args: Any, **kwargs: Any) -> RuleModule:
        """Note the arguments, by name: they and the tensors are what a file of the rule holds."""
        made = super().__new__(cls)
        signature = getattr(cls, "__signature__", None)
        if signature is None:
            _, *others = inspect.signature(cls.__init__).parameters.values()  # self
            signature = inspect.Signature(others)
        try:
            given = dict(signature.bind_partial(*args, **kwargs).arguments)
        except TypeError:  # __init__ is about to say what is wrong
            given = {}
        for parameter in signature.parameters.values():
            if parameter.kind is parameter.VAR_KEYWORD:
                given |= given.pop(parameter.name, {})
        made.__dict__["arguments"] = given
        return made

    def seal(self) -> None:
        """From now on refuse new values for attributes that are numbers."""
        self.__dict__["_sealed"] = True

    def __setattr__(self, name: str, value: Any) -> None:
        if self._sealed and isinstance(value, (int, float, str)) and name != "training":
            raise ProtocolError(
                f"{type(self).__name__}.{name} = {value!r}: a program was compiled from this rule with "
                f"{name} = {getattr(self, name, None)!r} as a constant of its code. Make a new rule and compile it, or "
                f"make the number a parameter from the start: {name}=mg.learnable({value!r})"
            )
        super().__setattr__(name, value)
