"""Work done side by side, each piece in a thread of its own.

Torch gives its threads to one operation after the other, and short operations leave them waiting for each other. Here a
thread runs the whole chain of operations of its piece; torch lets go of Python's lock inside each of them.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TypeVar

import torch
from torch import Tensor

from .environment import calls_watched, inside_transform

Piece = TypeVar("Piece")
Result = TypeVar("Result")
_worker = threading.local()


def threads_for(threads: int | None, given: Sequence[Tensor]) -> int:
    """How many pieces of work on these tensors may run at once: so many, or as many threads as torch has.

    One where calls are watched or changed by something that belongs to the calling thread (a transform, a dispatch or
    function mode, hooks for saved tensors, autocast), and for tensors that are not on the CPU.
    """
    if (
        any(tensor.device.type != "cpu" for tensor in given)
        or getattr(_worker, "is_one", False)
        or inside_transform()
        or calls_watched()
        or torch._C._len_torch_function_stack()
        or torch._C._autograd._top_saved_tensors_default_hooks(True) is not None
        or torch.is_autocast_enabled("cpu")
        or torch.is_anomaly_enabled()
    ):
        return 1
    return torch.get_num_threads() if threads is None else threads


def side_by_side(work: Callable[[Piece], Result], pieces: Sequence[Piece], threads: int) -> list[Result]:
    """``[work(piece) for piece in pieces]`` on so many threads, with gradients on or off as for the caller.

    Each piece has one of torch's threads. The first error is raised when all pieces have ended.
    """
    if threads == 1 or len(pieces) == 1:
        return [work(piece) for piece in pieces]
    learning, inference = torch.is_grad_enabled(), torch.is_inference_mode_enabled()

    def run(piece: Piece) -> Result:
        with torch.inference_mode(inference), torch.set_grad_enabled(learning):
            return work(piece)

    futures = [_pool(threads).submit(run, piece) for piece in pieces]
    errors = [future.exception() for future in futures]  # waits for all: nobody writes where the caller goes on
    for error in errors:
        if error is not None:
            raise error
    return [future.result() for future in futures]


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    """So many threads that wait for work."""
    mine = torch.get_num_threads()
    ready = threading.Barrier(threads + 1)

    def begin() -> None:
        torch.set_num_threads(1)
        _worker.is_one = True

    pool = ThreadPoolExecutor(threads, "mpgraph", begin)
    for _ in range(threads):
        pool.submit(ready.wait)
    ready.wait()
    torch.set_num_threads(mine)  # torch notes the last number that any thread set, for threads to come
    return pool


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # threads do not go along
