"""Base module of rules: records constructor arguments, becomes read-only once compiled, unchanged if that fails."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, get_type_hints

from torch import nn

from mpgraph.arguments import takes_tensor
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
        except TypeError:  # __init__ is about to raise an error about it
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
        if isinstance(value, (nn.Parameter, nn.Module)):
            initialized(self)
        if self._sealed and isinstance(value, (int, float, str)) and name != "training":
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            hint = (
                f", or make the number a parameter from the start: {name}=mg.learnable({value!r})"
                if number and self._takes_learnable(name)
                else ""
            )
            raise ProtocolError(
                f"{type(self).__name__}.{name} = {value!r}: a program was compiled from this rule with "
                f"{name} = {getattr(self, name, None)!r} as a constant of its code. Make a new rule and "
                f"compile it{hint}"
            )
        super().__setattr__(name, value)

    def _takes_learnable(self, name: str) -> bool:
        """Whether the constructor takes ``mg.learnable`` of a number as the argument of this name."""
        try:
            return takes_tensor(get_type_hints(type(self).__init__).get(name))
        except NameError:  # an annotation that cannot be read
            return False


def initialized(module: nn.Module) -> None:
    """Refuse a module whose class forgot to call the constructor of its base.

    Raises:
        ProtocolError: naming the class.
    """
    if "_modules" not in vars(module):
        raise ProtocolError(f"{type(module).__name__}.__init__ must begin with super().__init__()")


@contextmanager
def unchanged_on_error(rule: nn.Module) -> Iterator[None]:
    """Compile within this block: where that fails, the rule is as it was before.

    Rules make parts for the nodes of a network when they first serve it, are moved to a device and dtype, filled from a
    file, and sealed. If anything after the first of these steps fails, all of it is undone: attributes of the rule and
    of its parts (with what lists, dictionaries and sets among them contain), and the numbers in parameters and buffers.
    """
    attributes = [(vars(part), {name: _copied(value) for name, value in vars(part).items()}) for part in rule.modules()]
    tensors = [*rule.parameters(), *rule.buffers()]
    tensors += [tensor.grad for tensor in tensors if tensor.grad is not None]
    numbers = [(tensor, tensor.data, tensor.data.clone()) for tensor in tensors]
    try:
        yield
    except BaseException:
        for own, before in attributes:
            for name in set(own) - set(before):
                del own[name]
            own.update({name: _restored(value) for name, value in before.items()})
        for tensor, data, number in numbers:
            tensor.data = data.copy_(number)
        raise


def _copied(value: Any) -> tuple[Any, Any]:
    """A container and a copy of what it contains, to any depth; any other value as it is."""
    if isinstance(value, dict):
        return value, {key: _copied(part) for key, part in value.items()}
    if isinstance(value, list):
        return value, [_copied(part) for part in value]
    return value, set(value) if isinstance(value, set) else None


def _restored(copied: tuple[Any, Any]) -> Any:
    """The very container, with its former contents."""
    value, before = copied
    if isinstance(value, dict):
        value.clear()
        value.update({key: _restored(part) for key, part in before.items()})
    elif isinstance(value, list):
        value[:] = map(_restored, before)
    elif isinstance(value, set):
        value.clear()
        value.update(before)
    return value
