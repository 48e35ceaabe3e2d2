"""Rules cannot change under a program that was compiled from them."""

from __future__ import annotations

from typing import Any

from torch import nn

from .errors import ProtocolError


class Sealed(nn.Module):
    """A module whose numbers become constants of generated code: once compiled, setting one is an error."""

    _sealed = False

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
