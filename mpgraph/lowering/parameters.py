"""A rule's parameters: where its modules hold them, and putting something else there for a while."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


def parameter_slots(modules: nn.Module) -> list[tuple[dict[str, Any], str, str]]:
    """Every place that holds a parameter or buffer: (dictionary, key, readable name)."""
    slots: list[tuple[dict[str, Any], str, str]] = []
    for prefix, module in modules.named_modules():
        for store in (module._parameters, module._buffers):
            slots += [(store, n, f"{prefix}.{n}") for n, t in store.items() if t is not None]
    return slots


@contextmanager
def replaced(modules: nn.Module, make: Callable[[int, Tensor, str], Any]) -> Iterator[None]:
    """Agents see ``make(index, tensor, name)`` in place of every parameter and buffer; one held twice is made once."""
    slots = parameter_slots(modules)
    known: dict[int, Any] = {}
    before = []
    for index, (store, name, label) in enumerate(slots):
        tensor = store[name]
        if id(tensor) not in known:
            known[id(tensor)] = make(index, tensor, label)
        before.append((store, name, tensor))
    try:
        for store, name, tensor in before:
            store[name] = known[id(tensor)]
        yield
    finally:
        for store, name, tensor in before:
            store[name] = tensor
