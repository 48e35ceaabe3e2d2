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
    """The size of every tensor in generated code, found by running it once on ``arguments``."""
    run = _Sizes(module)
    with torch.no_grad():
        run.run(*arguments)
    return run.sizes


class _Sizes(fx.Interpreter):
    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.sizes: dict[fx.Node, Size] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, torch.Tensor):
            given = [self.env[node] for node in n.all_input_nodes if isinstance(self.env.get(node), torch.Tensor)]
            view = any(_memory(result) == _memory(tensor) for tensor in given) or n.target is operator.getitem
            self.sizes[n] = Size(tuple(result.shape), result.numel(), _bytes(result), view)
        elif isinstance(result, tuple):
            self.sizes[n] = Size((), 0, sum(_bytes(part) for part in result if isinstance(part, torch.Tensor)))
        return result


def _memory(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _bytes(tensor: torch.Tensor) -> int:
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())
