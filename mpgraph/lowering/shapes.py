"""What size the tensors are that generated code computes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import fx


class Size(NamedTuple):
    """Of one tensor."""

    shape: tuple[int, ...]
    numel: int
    bytes: int


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
            self.sizes[n] = Size(tuple(result.shape), result.numel(), result.numel() * result.element_size())
        return result
