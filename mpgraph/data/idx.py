"""IDX files, the form in which MNIST and its relatives are published."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mpgraph.errors import FileError


def read_idx(path: Path) -> Tensor:
    """Bytes of an IDX file, packed (``path.gz``) or not, as a uint8 tensor of the shape in its header.

    Raises:
        FileError: if neither file is there, or the content is not what the header says.
    """
    packed = path.with_name(path.name + ".gz")
    if not packed.is_file() and not path.is_file():
        raise FileError(
            f"no file {packed}; --data (or MPGRAPH_DATA) must name the folder that holds "
            f"{'/'.join(packed.parts[-3:])}, or fetch it with mpgraph.data.download"
        )
    try:
        content = gzip.decompress(packed.read_bytes()) if packed.is_file() else path.read_bytes()
    except (OSError, EOFError, gzip.zlib.error) as error:  # type: ignore[attr-defined]
        raise FileError(f"{packed} is damaged: {error}") from None
    header = 4 + 4 * content[3] if len(content) > 3 else 4
    if len(content) < header or content[:3] != b"\x00\x00\x08":
        raise FileError(f"{path.name} in {path.parent} is no IDX file of bytes")
    shape = tuple(np.frombuffer(content, ">u4", content[3], 4).tolist())
    if len(content) != header + int(np.prod(shape)):
        raise FileError(f"{path.name} in {path.parent} is truncated: header says {shape}")
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=header).reshape(shape).copy())
