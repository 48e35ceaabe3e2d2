"""Functions for learned rules that torch computes faster in another form."""

from __future__ import annotations

from typing import Any

import torch


def fast_tanh(x: Any) -> Any:
    """tanh(x) = 2 sigmoid(2x) - 1; MEASURED

    In float32 it is exact to 1e-7 of one, not of x: near zero it has fewer correct digits than ``torch.tanh``.
    """
    return 2.0 * torch.sigmoid(2.0 * x) - 1.0
