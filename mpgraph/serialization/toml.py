"""Settings in TOML."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

from mpgraph.errors import FileError


def read(path: Any) -> dict[str, Any]:
    """The settings of a file.

    Raises:
        FileError: for a file that is missing or is not TOML.
    """
    try:
        return tomllib.loads(Path(path).read_text("utf-8"))
    except OSError as error:
        raise FileError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise FileError(f"{path} is not TOML: {error}") from None


def text(value: Any) -> str:
    """A value as TOML has it, on one line."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{json.dumps(key)} = {text(part)}" for key, part in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(text, value)) + "]"
    return json.dumps(value)
