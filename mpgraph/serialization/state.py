"""States on disk: a safetensors file whose tensors are named ``node.channel``. Writing replaces the file whole."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mpgraph.errors import FileError

from .atomic import write
from .protocol import PRETRAINED, pretrained
from .tensors import packed, path_of, read

FORMAT = "mpgraph.state"
PRIOR_FILE = "prior.safetensors"  # in the folder of a rule that was trained with its networks' initial weights


def save(state: Mapping[str, Mapping[str, Tensor]], path: Any) -> None:
    """Write ``state[node][channel]`` atomically: a killed write leaves the old file.

    Raises:
        FileError: if this is not a state, or the file cannot be written.
    """
    path = path_of(path, "a state is kept in a file")
    if not isinstance(state, Mapping):
        raise FileError(f"cannot save a {type(state).__name__}: expected a state, as from program.init or program.step")
    tensors: dict[str, Tensor] = {}
    for node, channels in state.items():
        if not isinstance(channels, Mapping):
            raise FileError(f"cannot save the state: node {node!r} holds {type(channels).__name__}, not its channels")
        for channel, tensor in channels.items():
            if not isinstance(tensor, Tensor):
                kind = type(tensor).__name__
                raise FileError(f"cannot save the state: {node}.{channel} is not a tensor but {kind}")
            tensors[f"{node}.{channel}"] = tensor  # channels are identifiers: the last dot separates them
    try:
        write(path, packed(FORMAT, tensors))
    except OSError as error:
        raise FileError(f"cannot write {path}: {error}") from error


def load(
    path: Any, wanted: Mapping[tuple[str, str], tuple[int | None, ...]], device: torch.device
) -> dict[str, dict[str, Tensor]]:
    """Read a state and hold it against the channels and shapes (``None`` fits any) that a program needs.

    Raises:
        FileError: for a missing, damaged or newer file, or the state of another network.
    """
    path = place(path)
    tensors, _ = read(path, FORMAT)
    found = {(name.rpartition(".")[0], name.rpartition(".")[2]): tensor for name, tensor in tensors.items()}
    needed = {**wanted, ("program", "seed"): (), ("program", "step"): ()}
    missing, extra = sorted(set(needed) - set(found)), sorted(set(found) - set(needed))
    if missing or extra:
        parts = [f"lacks {_names(missing)}"] if missing else []
        parts += [f"has {_names(extra)}"] if extra else []
        raise FileError(f"{path} is the state of another network or rule: it {' and '.join(parts)}")
    state: dict[str, dict[str, Tensor]] = {}
    for key, shape in needed.items():
        tensor = found[key]
        fits = len(shape) == tensor.ndim and all(a in (None, b) for a, b in zip(shape, tensor.shape, strict=False))
        if not fits:
            raise FileError(
                f"{path} is the state of another network: {key[0]}.{key[1]} has shape {tuple(tensor.shape)}, this "
                f"program needs {tuple('batch' if n is None else n for n in shape)}"
            )
        state.setdefault(key[0], {})[key[1]] = tensor.to(device)
    return state


def place(path: Any) -> Path:
    """The file of a state; of the folder or the name of a rule that was saved with a prior, that of the prior."""
    found = path_of(path, "a state is kept in a file")
    if not found.exists() and str(found) in pretrained():
        found = PRETRAINED / found
    return found / PRIOR_FILE if found.is_dir() else found


def part(path: Any, wanted: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Some numbers of a state, whatever else the file holds: it may be of another rule.

    Args:
        path: as :func:`place` takes it.
        wanted: shapes by ``node.channel``.

    Raises:
        FileError: for a missing or damaged file, one that lacks such numbers or has them in another shape.
    """
    path = place(path)
    tensors, _ = read(path, FORMAT)
    for name, shape in wanted.items():
        if name not in tensors:
            raise FileError(f"{path} lacks {name}; it holds {', '.join(sorted(tensors))}")
        if tensors[name].shape != shape:
            there = tuple(tensors[name].shape)
            raise FileError(f"{path} is of another network: {name} has shape {there}, this one needs {shape}")
    return {name: tensors[name] for name in wanted}


def _names(keys: list[tuple[str, str]]) -> str:
    shown = ", ".join(f"{node}.{channel}" for node, channel in keys[:4])
    return shown + (f" and {len(keys) - 4} more" if len(keys) > 4 else "")
