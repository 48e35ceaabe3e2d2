"""Checkpoints of an outer loop: one file each, replaced whole or not at all, without pickle.

A file holds tensors by name, and in its metadata JSON with everything else; numbers survive both exactly. It has the
format of states and rules, so a damaged checkpoint is refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mpgraph.errors import FileError
from mpgraph.serialization.atomic import write
from mpgraph.serialization.tensors import packed, read

FORMAT = "mpgraph.checkpoint"


def save(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Write a checkpoint atomically.

    Raises:
        FileError: if it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path, packed(FORMAT, tensors, {"about": json.dumps(about, sort_keys=True)}))
    except OSError as error:
        raise FileError(f"cannot write {path}: {error.strerror}") from error


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a checkpoint: its tensors and the rest.

    Raises:
        FileError: for a missing or damaged file, or one of a newer format.
    """
    tensors, metadata = read(path, FORMAT, ("about",))
    try:
        about = json.loads(metadata.get("about", ""))
    except (ValueError, RecursionError) as error:
        raise FileError(f"{path} is damaged: its description is not JSON: {error}") from None
    if not isinstance(about, dict):
        raise FileError(f"{path} is damaged: its description must be a dictionary, got {about!r:.80}")
    return tensors, about


def newest(folder: Path) -> Path | None:
    """The checkpoint of the latest outer step, if there is one."""
    return max(folder.glob("step-*.safetensors"), default=None)


def prune(folder: Path, keep: int) -> None:
    """Remove all but the newest ``keep`` checkpoints."""
    for path in sorted(folder.glob("step-*.safetensors"))[:-keep]:
        path.unlink(missing_ok=True)


def sweep(place: Path) -> None:
    """Remove what writes that were killed left anywhere in the folder of a run: a checkpoint or the rule in part."""
    for path in place.rglob(".*.partial"):
        path.unlink(missing_ok=True)


def optimizer_state(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Of an optimizer of torch: tensors by name, and what else it keeps of each parameter and group."""
    state = optimizer.state_dict()
    tensors = {f"{i}:{k}": v for i, kept in state["state"].items() for k, v in kept.items() if isinstance(v, Tensor)}
    rest = {str(i): {k: v for k, v in kept.items() if not isinstance(v, Tensor)} for i, kept in state["state"].items()}
    return tensors, {"state": rest, "groups": state["param_groups"]}


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Put into an optimizer what :func:`optimizer_state` took out of it."""
    state: dict[int, dict[str, Any]] = {int(i): dict(kept) for i, kept in about["state"].items()}
    for name, tensor in tensors.items():
        index, _, key = name.partition(":")
        state[int(index)][key] = tensor
    now = optimizer.state_dict()["param_groups"]
    # JSON has no tuples: betas come back as lists, so each value takes the type that the optimizer has.
    groups = [
        {k: tuple(v) if isinstance(now_group.get(k), tuple) else v for k, v in group.items()}
        for group, now_group in zip(about["groups"], now, strict=True)
    ]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
