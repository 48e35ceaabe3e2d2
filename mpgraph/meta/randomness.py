"""Random numbers of an outer loop: a function of named integers, never of a rank, a process or a global generator."""

from __future__ import annotations

import hashlib
from typing import Any

import torch


def seed_of(*parts: Any) -> int:
    """A seed of 63 bits from whatever names the numbers: run seed, purpose, outer step, index of the task."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator_of(*parts: Any) -> torch.Generator:
    """A CPU generator seeded by :func:`seed_of`."""
    return torch.Generator().manual_seed(seed_of(*parts))
