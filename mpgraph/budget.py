"""Budgets of memory: how they are written, and an account of what is kept.

A budget is always of one thing: bytes that are kept for the backward pass, beside states and batches. It is written as
a number of bytes, as a size (``"2 GiB"``), or as a share of what is free (``0.5``, ``"50%"``).
"""

from __future__ import annotations

import os
import re
import threading
import weakref
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .arguments import Arguments

Memory = int | float | str
DEFAULT = "1 GiB"
ALLOWED = (
    "a number of bytes such as 2147483648, a size such as '2 GiB' or '500 MB', or a share of the free memory such as "
    "0.5 or '50%'"
)
UNITS = {
    "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12,
    "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30, "tib": 1 << 40,
}  # fmt: skip
_WRITTEN = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*(%|[a-z]+)\s*", re.IGNORECASE)


def bytes_of(owner: str, memory: Memory, device: torch.device) -> int:
    """A budget in bytes; a share is one of what is free on the device now.

    Args:
        owner: what a refusal begins with.
        memory: as it is written.
        device: whose memory a share is of.

    Raises:
        ProtocolError: for what is no budget.
    """
    check = Arguments(owner)
    if isinstance(memory, str):
        found = _WRITTEN.fullmatch(memory)
        number, unit = (float(found[1]), found[2].lower()) if found else (0.0, "")
        if unit in UNITS:
            return int(number * UNITS[unit])
        if unit != "%" or not 0 < number <= 100:
            check.refuse("memory", memory, ALLOWED)
        return int(number / 100 * free_memory(device))
    if isinstance(memory, float):
        if not 0.0 < memory <= 1.0:
            check.refuse("memory", memory, ALLOWED)
        return int(memory * free_memory(device))
    if isinstance(memory, bool) or not isinstance(memory, int) or memory < 0:
        check.refuse("memory", memory, ALLOWED)
    return memory


def free_memory(device: torch.device) -> int:
    """Bytes that could be taken on a device now, without swapping."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return min(_of_the_machine(), _of_the_container())


def _of_the_machine() -> int:
    try:
        found = re.search(r"MemAvailable:\s*(\d+) kB", Path("/proc/meminfo").read_text())
    except OSError:
        found = None
    if found:
        return int(found[1]) << 10
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2  # no such file: half of what is built in


def _of_the_container() -> int:
    """What the process's control group still allows, a very large number where it allows everything."""
    group = Path("/sys/fs/cgroup")
    try:
        return int((group / "memory.max").read_text()) - int((group / "memory.current").read_text())
    except (OSError, ValueError):  # no control group, or the word "max"
        return 1 << 62


def shown(number: float) -> str:
    """Bytes for people: ``1.5 GiB``."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if number < 999.5:
            return f"{number:.3g} {unit}"
        number /= 1024
    return f"{number:.4g} TiB"


class Account:
    """Bytes that are kept for backward passes that have not run yet, and how many there may be.

    Args:
        limit: bytes.

    Attributes:
        held: bytes that are kept now.
    """

    def __init__(self, limit: int) -> None:
        self.limit, self.held = limit, 0
        self._lock = threading.Lock()  # a device's backward pass runs in a thread of its own

    def take(self, number: int) -> Share | None:
        """Room for so many bytes, until the share is released or forgotten; ``None`` where there is none."""
        with self._lock:
            if self.held + number > self.limit:
                return None
            self.held += number
        return Share(self, number)

    def give_back(self, number: int) -> None:
        """Bytes that are no longer kept."""
        with self._lock:
            self.held -= number


class Share:
    """A part of an account."""

    def __init__(self, account: Account, number: int) -> None:
        self._account, self._number = account, number

    def release(self) -> None:
        """Give it back; once is enough."""
        number, self._number = self._number, 0
        self._account.give_back(number)

    def __del__(self) -> None:
        self.release()


class Saved:
    """Inside ``with``, counts what autograd saves for a backward pass; ``torch.func.grad`` has no hooks for that.

    Args:
        but: tensors that do not count: what is there anyway.

    Attributes:
        bytes: saved so far; several views of one memory count once.
    """

    def __init__(self, but: Iterable[Tensor] = ()) -> None:
        self._seen = {(storage := tensor.untyped_storage())._cdata: storage for tensor in but}
        self._hooks = saved_tensors_hooks(self._note, lambda tensor: tensor)
        self.bytes = 0

    def __enter__(self) -> Saved:
        self._hooks.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._hooks.__exit__(*error)
        self._seen.clear()

    def _note(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._seen:
            self._seen[storage._cdata] = storage  # held, so that no other one gets its address
            self.bytes += storage.nbytes()
        return tensor.detach()  # the tensor itself would hold the graph that holds it


class Live(TorchDispatchMode):
    """Inside ``with``, measures the memory of the tensors that are made there.

    Attributes:
        now: bytes of those that are alive.
        peak: the most there were at once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._noted: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run a call and note what it made."""
        given = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in given and storage._cdata not in self._noted:
                    self._noted.add(storage._cdata)
                    self.now += storage.nbytes()
                    weakref.finalize(storage, self._gone, storage._cdata, storage.nbytes())
        self.peak = max(self.peak, self.now)
        return result

    def _gone(self, key: int, number: int) -> None:
        self._noted.discard(key)
        self.now -= number
