"""The same numbers by cheaper calls, where nobody differentiates them: tanh by the sigmoid.

torch computes a sigmoid of numbers of 32 bits in a third of the time of a tanh, and tanh(x) is 2 sigmoid(2 x) - 1.
That is exact but for rounding: within 2e-7, where values near one have a spacing of 1.2e-7. What it loses is the
*relative* precision of values below 1e-4. So numbers of 64 bits, which are there for precision, keep ``torch.tanh``. So
do small tensors, where a call costs more than its numbers.
"""

from __future__ import annotations

import torch
from torch import Tensor, fx

ENOUGH = 16384  # numbers from which on it is faster


def tanh(x: Tensor) -> Tensor:
    """tanh, without a derivative."""
    if x.dtype != torch.float32 or x.numel() < ENOUGH or x.device.type != "cpu":
        return torch.tanh(x)
    return torch.mul(x, 2.0).sigmoid_().mul_(2.0).sub_(1.0)


def slow(node: fx.Node) -> bool:
    """Whether a cheaper call may take its place."""
    return node.target is torch.tanh or node.target == "tanh"


def quick(graph: fx.Graph) -> None:
    """Put the cheaper calls into a graph."""
    for node in filter(slow, graph.nodes):
        node.op, node.target = "call_function", tanh
