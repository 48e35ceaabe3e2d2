"""What MPLP may be given: whose learner is one, batches to measure; and what was never measured."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Generator, Tensor

from mpgraph.arguments import Arguments

ROLES = ("weight", "bias", "unit", "link", "loss")
SHARES = ("node", "kind", "all")
BETWEEN = ("tanh", "relu", None)


def shares(share: Any) -> dict[str, str]:
    """Whose learner is one, for each role.

    Raises:
        ProtocolError: for another word or role.
    """
    given = Arguments("MPLP")
    if not isinstance(share, Mapping):
        return dict.fromkeys(ROLES, given.choice("share", share, SHARES))
    given.named("share", share, ROLES, "role")
    own = {role: given.choice(f"share[{role!r}]", how, SHARES) for role, how in share.items()}
    return {**dict.fromkeys(ROLES, "node"), **own}


def seed_from(generator: Any) -> int:
    """Drawn from a generator; 0 without one."""
    given = Arguments("MPLP").instance("generator", generator, Generator)
    return 0 if given is None else int(torch.randint(2**62, (), generator=given, device="cpu"))


def pairs(batches: Any) -> tuple[list[tuple[Any, Any]], int]:
    """Batches as a list, and how many examples the first one has.

    Raises:
        ProtocolError: for what is no sequence of pairs of tensors, for no pair or no example, for NaN and infinity.
    """
    given = Arguments("MPLP.measure")
    plain = isinstance(batches, Iterable) and not isinstance(batches, (Tensor, str, Mapping))
    steps = list(batches) if plain else []
    if not steps:
        given.refuse("batches", batches, "pairs (x, y), one for each step and at least one")
    tensors = {f"batches[{i}]{end}": t for i, step in enumerate(steps) for end, t in _ends(given, i, step)}
    empty = [(name, t) for name, t in tensors.items() if not isinstance(t, Tensor) or t.ndim == 0 or not len(t)]
    _ = [given.refuse(name, t, "a tensor of at least one example") for name, t in empty]
    bad = [name for name, t in tensors.items() if not bool(torch.isfinite(t).all())]
    _ = [given.refuse(name, tensors[name], "finite; it holds NaN or infinity") for name in bad]
    return steps, len(next(iter(tensors.values())))


def _ends(given: Arguments, i: int, step: Any) -> list[tuple[str, Any]]:
    """The tensors of a pair, with where they are found in it."""
    if not isinstance(step, (tuple, list)) or len(step) != 2:
        given.refuse(f"batches[{i}]", step, "a pair (x, y)")
    held = [(end, half) for end, half in enumerate(step) if isinstance(half, Mapping) and half]
    named = [(f"[{end}]", half) for end, half in enumerate(step) if not (isinstance(half, Mapping) and half)]
    return named + [(f"[{end}][{name!r}]", t) for end, half in held for name, t in half.items()]


def warn_of_unrecorded(rule: Any, agents: Any) -> None:
    """Warn of nodes whose inputs are standardised by nothing while those of others are."""
    parts = () if rule.pending else tuple(rule.standardisers.values())  # one from a file is not complete yet
    neutral = [p for p in parts if not bool(p.shift.any()) and bool((p.factor == 1.0).all())]
    bare = [node.name for node, agent in agents.items() if getattr(agent, "standardiser", None) in neutral]
    if bare and len(neutral) < len(parts):
        warnings.warn(
            f"MPLP: nothing was recorded for {', '.join(bare)}, while other nodes have statistics; their learners read "
            "inputs as they are. Record them: rule.measure(network, batches)",
            UserWarning,
            stacklevel=2,
        )
