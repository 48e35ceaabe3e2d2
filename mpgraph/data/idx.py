"""IDX files, the format in which MNIST and its relatives are published."""

from __future__ import annotations

import gzip
import io
import math
import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mpgraph.errors import FileError

MOST = 100  # times its size, and a kilobyte, that a packed file may unpack to; published sets take less than 10
MAGIC = b"\x00\x00\x08"  # two zeros, then the code of unsigned bytes; the number of dimensions follows


def find_idx(path: Path) -> Path:
    """``path.gz`` if that file exists, otherwise ``path``.

    Raises:
        FileError: if neither exists.
    """
    packed = path.with_name(path.name + ".gz")
    for found in (packed, path):
        if found.is_file():
            return found
    raise FileError(
        f"no file {packed}; --data (or MPGRAPH_DATA) must name the folder that holds "
        f"{'/'.join(packed.parts[-3:])}, or fetch it with mpgraph.data.download"
    )


def read_idx(path: Path) -> Tensor:
    """Bytes of an IDX file, compressed (``path.gz``) or not, as a uint8 tensor of the shape in its header.

    Raises:
        FileError: if neither file exists, or its content is not what its header says.
    """
    found = find_idx(Path(path))
    try:
        content = found.read_bytes()
    except OSError as error:
        raise FileError(f"{found} cannot be read: {error.strerror or error}") from None
    if found.suffix == ".gz":
        try:
            most = MOST * len(content) + 1024
            content = gzip.GzipFile(fileobj=io.BytesIO(content)).read(most + 1)
        except (OSError, EOFError, zlib.error, struct.error) as error:
            raise FileError(f"{found} is damaged or not a gzip file: {error}") from None
        if len(content) > most:
            raise FileError(f"{found} unpacks to more than {MOST} times its size: it is no set of images or labels")
    if not content:
        raise FileError(f"{found} is empty; expected an IDX file")
    if content[:3] != MAGIC or len(content) < 4:
        raise FileError(f"{found} is not an IDX file of bytes: it must begin with {MAGIC!r}, got {content[:3]!r}")
    dimensions = content[3]
    start = 4 + 4 * dimensions
    if len(content) < start:
        raise FileError(f"{found} is truncated: it ends within the header, which announces {dimensions} dimensions")
    shape = struct.unpack(f">{dimensions}I", content[4:start])
    expected, received = math.prod(shape), len(content) - start
    if received != expected:
        what = "is truncated" if received < expected else "has bytes left over"
        raise FileError(
            f"{found} {what}, or its header is damaged: it says {shape}, {expected} bytes, and {received} follow"
        )
    return torch.from_numpy(np.frombuffer(content, np.uint8)[start:].reshape(shape).copy())
