"""Flags of the command line: what their values are, and flags that are read from a file."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from mpgraph.errors import FileError, InputError, unknown
from mpgraph.serialization import toml

from .naming import rules_named
from .tasks import TASKS


class Parser(argparse.ArgumentParser):
    """A parser whose errors are of the family."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and where the arguments are listed."""
        raise InputError(f"{message}; see {self.prog} --help")


def positive(text: str) -> int:
    """A positive integer."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive integer")
    return int(text)


def sizes(text: str) -> list[int]:
    """Positive integers, ``64,32``."""
    return [positive(part) for part in text.split(",")]


def task(text: str) -> str:
    """The name of a task."""
    if text not in TASKS:
        raise argparse.ArgumentTypeError(unknown("task", text, TASKS))
    return text


def tasks(text: str) -> list[str]:
    """Names of tasks, each once."""
    return [task(name) for name in rules_named(text)]


def from_file(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> list[str]:
    """Arguments with those of a file of settings before them, so that what is typed wins.

    The file is TOML; a key is the name of a flag, a list stands for names with commas between them, and ``true`` for a
    flag without a value. Tables are not used, except ``[tune]`` whose keys are arguments to search.

    Args:
        parser: of the command.
        arguments: after the name of the command.

    Raises:
        FileError: for a file that is missing or is not TOML, or holds a key that is no flag or another kind of value.
    """
    place = Parser(add_help=False)
    place.add_argument("--settings", type=Path)
    path = place.parse_known_args(arguments)[0].settings
    if path is None:
        return list(arguments)
    flags = {flag.lstrip("-"): action for action in parser._actions for flag in action.option_strings}
    flags = {name: action for name, action in flags.items() if name not in ("h", "help", "settings")}
    found: list[str] = []
    for key, value in toml.read(path).items():
        name = key.replace("_", "-")
        if name not in flags:
            raise FileError(f"{path}: " + unknown("setting", key, flags))
        if flags[name].nargs == 0:
            if not isinstance(value, bool):
                raise FileError(f"{path}: {key} must be true or false, got {value!r}")
            found += [f"--{name}"] * value
        elif name == "tune" and isinstance(value, dict):
            found.append("--tune=" + ",".join(f"{one}={_text(path, one, range_)}" for one, range_ in value.items()))
        else:
            found.append(f"--{name}={_text(path, key, value)}")
    return [*found, *arguments]


def _text(path: Path, key: str, value: Any) -> str:
    """A value as it would be typed."""
    if isinstance(value, list) and value and all(isinstance(one, (str, int, float)) for one in value):
        return ",".join(map(str, value))
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise FileError(f"{path}: {key} must be a number, words in quotes or a list of such, got {value!r}")
    return str(value)
