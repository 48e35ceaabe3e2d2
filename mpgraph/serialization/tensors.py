"""Named tensors in a safetensors file, with a checksum of everything that is in it.

States and rules share this format. The metadata of a file hold its format, its version, what else its writer says,
and a SHA-256 digest of all of that and of the names, types, shapes and numbers of the tensors. So a file whose content
has changed is refused, instead of being loaded with other numbers. Reading never runs code.

Files of version 1 are still read. Their digest covers the tensors of a rule only, and a state has none.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from mpgraph.errors import FileError

VERSION = 2


def path_of(given: Any, what: str) -> Path:
    """A path.

    Raises:
        FileError: for what is not one.
    """
    if not isinstance(given, (str, os.PathLike)) or not str(given):
        raise FileError(f"{what}; give its path, not {given!r}")
    return Path(given)


def packed(file_format: str, tensors: Mapping[str, Tensor], about: Mapping[str, str] | None = None) -> bytes:
    """The content of a file.

    Args:
        file_format: says what is in it, ``mpgraph.state``.
        tensors: by name.
        about: further metadata.

    Raises:
        FileError: for a tensor that is sparse, or has no numbers.
    """
    for name, tensor in tensors.items():
        if tensor.layout is not torch.strided:
            raise FileError(f"cannot save {name}: it is of layout {tensor.layout}; use .to_dense()")
        if tensor.is_meta:
            raise FileError(f"cannot save {name}: it is on the device 'meta', where tensors have no numbers")
    own = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
    metadata = {**(about or {}), "format": file_format, "version": str(VERSION)}
    inside = json.dumps({**metadata, "sha256": digest(own, metadata)}, sort_keys=True)
    # One entry, as safetensors writes several in any order: the same content is always the same bytes.
    return save(own, metadata={"mpgraph": inside})


def read(path: Path, file_format: str, extra: tuple[str, ...] = ()) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a file.

    Args:
        path: of the file.
        file_format: that it must have.
        extra: the metadata that its writer added.

    Raises:
        FileError: for a missing or damaged file, another format or a newer version.
    """
    if not path.is_file():
        raise FileError(f"there is no file {path}")
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            metadata: dict[str, str] = _unpacked(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dictionary
    except (SafetensorError, OSError, ValueError, TypeError, RuntimeError, RecursionError) as error:
        raise FileError(f"{path} is not a safetensors file, or is damaged: {error}") from None
    found, version = metadata.get("format"), metadata.get("version", "1")
    if found != file_format:
        raise FileError(f"{path} contains no {file_format.replace('.', ' ')}: its format is {found!r}")
    if not version.isascii() or not version.isdecimal() or int(version) < 1:
        raise FileError(f"{path} is damaged: its version must be a positive integer, got {version!r}")
    if int(version) > VERSION:
        raise FileError(f"{path} has format version {version}, this mpgraph reads up to {VERSION}: upgrade it")
    stored = metadata.pop("sha256", None)
    if stored is None and int(version) > 1:
        raise FileError(f"{path} is damaged: its checksum is missing")
    if stored is not None and stored != digest(tensors, metadata):
        raise FileError(f"{path} is damaged: its content differs from its checksum")
    unknown = set(metadata) - {"format", "version", *extra}
    if unknown:
        raise FileError(f"{path} is damaged: it has the unknown metadata {', '.join(map(repr, sorted(unknown)))}")
    return tensors, metadata


def _unpacked(metadata: dict[str, str]) -> dict[str, str]:
    """What is said of a file: of version 1 as entries, from 2 on in one."""
    if "mpgraph" not in metadata:
        return metadata
    inside = json.loads(metadata["mpgraph"])
    if not isinstance(inside, dict) or not all(isinstance(value, str) for value in inside.values()):
        raise ValueError("its description is not a dictionary of strings")
    return inside


def digest(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> str:
    """A checksum of metadata, and of names, types, shapes and numbers; without metadata that of version 1."""
    total = hashlib.sha256()
    if metadata is not None:
        total.update(json.dumps(dict(metadata), sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        total.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return total.hexdigest()
