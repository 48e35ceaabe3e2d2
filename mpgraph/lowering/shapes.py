"""What size the tensors are that generated code computes."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import fx


class Size(NamedTuple):
    """Of one tensor, or of the tuple that a call returns.

    Attributes:
        shape: of it; ``()`` for a tuple.
        numel: how many numbers; 0 for a tuple, whose parts are tensors of their own.
        bytes: how much memory they take. Numbers that a broadcast tensor repeats are there once.
        view: whether it lies in the memory of an argument of the call, so that nothing was computed or moved.
    """

    shape: tuple[int, ...]
    numel: int
    bytes: int
    view: bool = False


def tensors_of(module: fx.GraphModule, arguments: Sequence[Any]) -> dict[fx.Node, Size]:
    """The size of every tensor in generated code, found by running it once on ``arguments``.

    Other processes are not called: what would come from them is not looked at.
    """
    run = _Sizes(module)
    with torch.no_grad():
        run.run(*arguments)
    return run.sizes


class _Sizes(fx.Interpreter):
    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.sizes: dict[fx.Node, Size] = {}

    def run_node(self, n: fx.Node) -> Any:
        if "loop" in n.meta:
            times, *arguments = self.map_nodes_to_values(n.args, n)  # type: ignore[misc]
            loop: Any = n.meta["loop"]
            inside = _Sizes(loop.module)
            result: Any = inside.run(0, *arguments)
            result = loop.stacked(result, [[result[index]] * times for index in loop.every])  # type: ignore[operator]
            self.sizes.update(inside.sizes)
        elif "joins" in n.meta:
            tensors: Any = self.map_nodes_to_values(n.args, n)
            result = tuple(torch.empty_like(tensor) for tensor in tensors[-n.meta["joins"] :])
        else:
            result = super().run_node(n)
        if isinstance(result, torch.Tensor):
            given: list[Any] = [self.env[node] for node in n.all_input_nodes]
            shared = any(isinstance(one, torch.Tensor) and _memory(one) == _memory(result) for one in given)
            view = shared or n.target is operator.getitem
            self.sizes[n] = Size(tuple(result.shape), result.numel(), _bytes(result), view)
        elif isinstance(result, tuple):
            self.sizes[n] = Size((), 0, sum(_bytes(part) for part in result if isinstance(part, torch.Tensor)))
        return result


def _memory(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _bytes(tensor: torch.Tensor) -> int:
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())
