"""Totals in the interpreter: what happens to the values that all agents of a node have handed in.

Each class maps ``{(agent, example): value}`` to what each of them is answered.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mpgraph.network.connections import indices

Key = tuple[tuple[int, ...], int]  # agent (its index), example


class Group:
    """Aggregate over all keys of one group."""

    def __init__(self, group: Any, how: str) -> None:
        self.group, self.how = group, how

    def __call__(self, values: Mapping[Key, Any]) -> dict[Key, Any]:  # noqa: D102
        groups: dict[Any, list[Any]] = {}
        for key, value in values.items():
            groups.setdefault(self.group(key), []).append(value)
        totals = {group: total(members, self.how) for group, members in groups.items()}
        return {key: totals[self.group(key)] for key in values}


class Batch(Group):
    """Aggregate over examples what the uses of an agent already agree on: each example counts once."""

    def __call__(self, values: Mapping[Key, Any]) -> dict[Key, Any]:  # noqa: D102
        once: dict[Any, dict[int, Any]] = {}
        for key, value in values.items():
            once.setdefault(self.group(key), {})[key[1]] = value
        totals = {group: total(list(members.values()), self.how) for group, members in once.items()}
        return {key: totals[self.group(key)] for key in values}


class Cumulative:
    """Sum over the agents that differ only in the given dimensions and do not come after."""

    def __init__(self, dims: Sequence[int]) -> None:
        self.dims = dims

    def __call__(self, values: Mapping[Key, Any]) -> dict[Key, Any]:  # noqa: D102
        def split(key: Key) -> tuple[Any, Any]:
            place = tuple(key[0][i] for i in self.dims)
            return place, (tuple(n for i, n in enumerate(key[0]) if i not in self.dims), key[1])

        groups: dict[Any, list[tuple[Any, Any]]] = {}
        for key, value in values.items():
            place, rest = split(key)
            groups.setdefault(rest, []).append((place, value))
        found = {}
        for key in values:
            place, rest = split(key)
            found[key] = total([value for other, value in groups[rest] if other <= place], "sum")
        return found


class Population:
    """A function of the whole node and batch."""

    def __init__(self, func: Any, shape: tuple[int, ...]) -> None:
        self.func, self.shape = func, shape

    def stacked(self, values: Mapping[Key, Any], position: int) -> Tensor:
        """What every agent handed in at a position, ``(batch, *shape)``."""
        examples = sorted({key[1] for key in values})
        rows = [torch.stack([torch.as_tensor(values[i, b][position]) for i in indices(self.shape)]) for b in examples]
        return torch.stack(rows).unflatten(1, self.shape) if self.shape else torch.stack(rows)[:, 0]

    def __call__(self, values: Mapping[Key, Any]) -> dict[Key, Any]:  # noqa: D102
        count = len(next(iter(values.values())))
        whole = _by_channel(self.func, [self.stacked(values, i) for i in range(count)], len(self.shape))
        return {key: whole[(key[1], *key[0])] for key in values}


class Measured(Population):
    """What an activation measures on the whole node and batch, for each agent along the given dimensions."""

    def __init__(self, func: Any, shape: tuple[int, ...], kept: Sequence[int]) -> None:
        super().__init__(func, shape)
        self.kept = kept

    def __call__(self, values: Mapping[Key, Any]) -> dict[Key, Any]:  # noqa: D102
        parts = self.func(self.stacked(values, 0))
        return {key: tuple(part[tuple(key[0][i] for i in self.kept)] for part in parts) for key in values}


class Operands(Population):
    """An operation on whole operands, which all agents of an example hold; messages of size k channel by channel.

    Args:
        func: the operation.
        shape: of the node.
        dims: number of dimensions of each operand, without batch and channels.
    """

    def __init__(self, func: Any, shape: tuple[int, ...], dims: Sequence[int]) -> None:
        super().__init__(func, shape)
        self.dims = tuple(dims)

    def by_channel(self, call: Any, tensors: Sequence[Tensor], dims: Sequence[int]) -> Any:
        """``call`` on tensors of numbers; once for each channel where some are tensors of messages."""
        wide = [t.ndim > d + 1 for t, d in zip(tensors, dims, strict=True)]
        if not any(wide):
            return call(*tensors)
        size = tensors[wide.index(True)].shape[-1]
        results = [
            call(*(t[..., i] if is_wide else t for t, is_wide in zip(tensors, wide, strict=True))) for i in range(size)
        ]
        if isinstance(results[0], Tensor):
            return torch.stack(results, -1)
        return tuple(torch.stack(parts, -1) for parts in zip(*results, strict=True))

    def operands(self, values: Mapping[Key, Any], start: int) -> list[Tensor]:
        """Each operand, ``(batch, *its shape)``."""
        by_example = {key[1]: given for key, given in values.items()}
        count = len(next(iter(by_example.values())))
        return [torch.stack([by_example[b][i] for b in sorted(by_example)]) for i in range(start, count)]

    def __call__(self, values: Mapping[Key, Any]) -> dict[Key, Any]:  # noqa: D102
        whole = self.by_channel(self.func, self.operands(values, 0), self.dims)
        return {key: whole[(key[1], *key[0])] for key in values}


class Pulled(Operands):
    """The way back through an operation: to all agents of an example what each operand is to receive."""

    def __call__(self, values: Mapping[Key, Any]) -> dict[Key, Any]:  # noqa: D102
        given = [self.stacked(values, 0), self.stacked(values, 1), *self.operands(values, 2)]
        dims = [len(self.shape), len(self.shape), *self.dims]
        parts = self.by_channel(lambda e, y, *z: self.func(e, z, y), given, dims)
        return {key: tuple(part[key[1]] for part in parts) for key in values}


def _by_channel(func: Any, tensors: Sequence[Tensor], dims: int) -> Tensor:
    """A function of populations, for each entry of a local dimension if there is one."""
    if all(t.ndim == dims + 1 for t in tensors):
        return func(*tensors)
    size = max(t.shape[-1] for t in tensors if t.ndim == dims + 2)
    given = [t if t.ndim == dims + 2 else t.unsqueeze(-1).expand(*t.shape, size) for t in tensors]
    return torch.stack([func(*(t[..., i] for t in given)) for i in range(size)], -1)


def answer(asked: Mapping[Key, tuple[Any, Any]]) -> dict[Key, Any]:
    """What everyone who handed in a value receives."""
    how = next(iter(asked.values()))[1]
    return how({key: value for key, (value, _) in asked.items()})


def total(values: Sequence[Any], how: Any) -> Any:
    """Several messages as one: by name or by a module; dictionaries key by key."""
    if isinstance(values[0], dict):
        return {k: total([v[k] for v in values], how) for k in values[0]}
    tensors = [torch.as_tensor(v, dtype=torch.float64 if isinstance(v, float) else None) for v in values]
    stacked = torch.stack(torch.broadcast_tensors(*tensors))  # one number may stand for each of a vector
    if callable(how):
        rows = stacked.reshape(len(values), -1)
        return how(rows, torch.zeros(len(values), dtype=torch.long), dim_size=1, dim=-2).reshape(stacked.shape[1:])
    return {"sum": stacked.sum(0), "mean": stacked.mean(0), "max": stacked.amax(0), "min": stacked.amin(0)}[how]
