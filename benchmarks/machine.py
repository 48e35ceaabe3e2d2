"""What this machine can do, and under which conditions: the yardsticks that figures of other machines are scaled by."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from typing import Any

import torch

# The machine on which published code was measured, one thread: GFLOP/s of ``mm``, nanoseconds an element.
REFERENCE = {"mm": 95.0, "tanh": 2.5, "sigmoid": 0.41, "product": 0.22}


def conditions() -> dict[str, Any]:
    """Versions, threads and load."""
    return {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "card": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 2),
    }


def line(found: dict[str, Any] | None = None) -> str:
    """Conditions in a line; those of now by default."""
    return ", ".join(f"{key} {value}" for key, value in (found or conditions()).items() if value is not None)


def settle(device: str) -> None:
    """Wait until a CUDA device has done what it was told."""
    if device != "cpu":
        torch.cuda.synchronize()


def yardsticks(device: str = "cpu", quick: bool = False) -> dict[str, float]:
    """``mm`` in GFLOP/s; ``tanh``, ``sigmoid`` and ``product`` in nanoseconds an element; ``copy`` in GB/s.

    Each is the best of several calls: the figure is to say what the machine can do, not how busy it is.
    """
    side, rounds = (1024, 5) if quick else (2048, 10)
    a, b = torch.randn(side, side, device=device), torch.randn(side, side, device=device)
    small, large = torch.randn(2**16, device=device), torch.randn(2**23, device=device)
    out, target = torch.empty_like(small), torch.empty_like(large)

    def best(function: Callable[[], Any], calls: int = 1) -> float:
        function()
        times = []
        for _ in range(rounds):
            settle(device)
            start = time.perf_counter()
            for _ in range(calls):
                function()
            settle(device)
            times.append((time.perf_counter() - start) / calls)
        return min(times)

    def element(function: Callable[..., Any]) -> float:
        return 1e9 * best(lambda: function(small, out=out), 50) / small.numel()

    return {
        "mm": 2e-9 * side**3 / best(lambda: torch.mm(a, b)),
        "tanh": element(torch.tanh),
        "sigmoid": element(torch.sigmoid),
        "product": element(lambda x, out: torch.mul(x, x, out=out)),
        "copy": 2e-9 * large.numel() * large.element_size() / best(lambda: target.copy_(large)),
    }


def slower(found: dict[str, float]) -> float:
    """How many times slower this machine is than the one of the published figures: mean over products and functions."""
    products = REFERENCE["mm"] / found["mm"]
    functions = (found["tanh"] / REFERENCE["tanh"]) * (found["sigmoid"] / REFERENCE["sigmoid"])
    return float((products * functions**0.5) ** 0.5)
