"""Files that are replaced whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path


def write(path: Path, data: bytes) -> None:
    """Replace a file at once, so that a killed write leaves the old one."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(data)
        os.replace(partial, path)
    finally:
        if path.parent.is_dir():
            partial.unlink(missing_ok=True)
