"""States on disk: safetensors with named tensors. Loading never runs code; writing is atomic."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as tensor_bytes
from torch import Tensor

from mpgraph.errors import FileError

from .atomic import write

VERSION = 1


def save(state: Mapping[str, Mapping[str, Tensor]], path: Any) -> None:
    """Write ``state[node][channel]`` atomically: a killed write leaves the old file.

    Raises:
        FileError: if the file cannot be written.
    """
    path = Path(path)
    # Channel names are identifiers, so the last dot of "x->h1.w" parts node and channel.
    if not isinstance(state, Mapping):
        raise FileError(f"cannot save a {type(state).__name__}: expected a state, as from program.init or program.step")
    tensors = {f"{n}.{c}": t.detach().cpu().clone().contiguous() for n, cs in state.items() for c, t in cs.items()}
    try:
        write(path, tensor_bytes(tensors, metadata={"format": "mpgraph.state", "version": str(VERSION)}))
    except (OSError, SafetensorError) as error:
        raise FileError(f"cannot write {path}: {error}") from error


def load(
    path: Any, wanted: Mapping[tuple[str, str], tuple[int | None, ...]], device: torch.device
) -> dict[str, dict[str, Tensor]]:
    """Read a state and hold it against the channels and shapes (``None`` fits any) that a program needs.

    Raises:
        FileError: for a missing, damaged or newer file, or the state of another network.
    """
    path = Path(path)
    if not path.is_file():
        raise FileError(f"no file {path}")
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dictionary
    except (SafetensorError, OSError) as error:
        raise FileError(f"{path} is no safetensors file, or is damaged: {error}") from None
    if metadata.get("format") != "mpgraph.state":
        raise FileError(f"{path} holds no mpgraph state (its format is {metadata.get('format')!r})")
    if not metadata.get("version", "").isdecimal() or int(metadata["version"]) > VERSION:
        raise FileError(
            f"{path} has format version {metadata.get('version')}, this mpgraph reads up to {VERSION}: upgrade it"
        )
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


def _names(keys: list[tuple[str, str]]) -> str:
    shown = ", ".join(f"{node}.{channel}" for node, channel in keys[:4])
    return shown + (f" and {len(keys) - 4} more" if len(keys) > 4 else "")
