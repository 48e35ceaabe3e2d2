"""Rules as they are named on the command line.

NAME                    registered, ``mpgraph protocols`` lists them; or pretrained
NAME(lr=0.3, k=2)       with arguments, each a Python literal
NAME:FOLDER             saved by ``protocol.save``
FILE.py:CLASS           of one's own, with arguments or without; the file is run
"""

from __future__ import annotations

import ast
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mpgraph.agents.protocol import Protocol, list_protocols
from mpgraph.errors import FileError, InputError, unknown
from mpgraph.registry import lookup
from mpgraph.serialization.protocol import load_protocol, pretrained

from .results import READOUT_ONLY

Maker = Callable[[], Protocol]


def rules_named(text: str) -> list[str]:
    """The rules of a list such as ``"backprop(lr=0.3, surrogate='tanh'),oja"``, each once."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and not depth:
            parts.append("")
        else:
            parts[-1] += letter
    return list(dict.fromkeys(part.strip() for part in parts if part.strip()))


def maker_of(text: str, usual: Mapping[str, Any], *, trained: bool) -> Maker:
    """A function that makes the rule of that name.

    Args:
        text: as the header says.
        usual: arguments for the rules that take them and are not given others.
        trained: take what is pretrained in place of a rule that begins with random numbers.

    Raises:
        InputError: for an unknown rule, arguments that it does not take or that are no literals, or (if ``trained``) a
            rule whose random numbers nobody has trained.
        FileError: for a folder or file that is missing, holds another rule, or cannot be run.
    """
    if text in pretrained():
        return lambda: load_protocol(text)
    if text == READOUT_ONLY:
        return _made(lookup("mpgraph.protocols", "backprop"), text, {}, usual)
    name, given = _parsed(text)
    name, colon, place = name.partition(":")
    if colon and name.endswith(".py"):
        return _made(_class_in(Path(name), place), text, given, usual)
    cls = lookup("mpgraph.protocols", name)
    if cls is None:
        hint = "; a rule of your own is FILE.py:CLASS" if name.endswith(".py") else ""
        raise InputError(unknown("protocol", name, [*list_protocols(), *pretrained()]) + hint)
    if colon:
        if given:
            raise InputError(f"{text}: a saved rule brings its arguments; write {name}:{place}")
        found = load_protocol(place)
        if type(found) is not cls:
            raise FileError(f"{place} holds a {type(found).__name__}, which is not {name}")
        return lambda: load_protocol(place)
    if cls.random_defaults and trained:
        if cls.shipped in pretrained() and not given:
            return lambda: load_protocol(cls.shipped)
        raise InputError(
            f"{text} without a folder has random numbers and learns nothing. Meta-train a "
            f'{cls.__name__}, write it with protocol.save("FOLDER"), and compare {name}:FOLDER'
        )
    return _made(cls, text, given, usual)


def _parsed(text: str) -> tuple[str, dict[str, Any]]:
    """Name and arguments."""
    name, bracket, rest = text.partition("(")
    if not bracket:
        return text, {}
    example = f"{name}(lr=0.3, surrogate='tanh')"
    refusal = InputError(f"{text}: arguments are names with numbers, words in quotes or lists, as in {example}")
    try:
        call = ast.parse(f"f({rest}", mode="eval").body
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.args:
            raise refusal
        given = {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}
    except (SyntaxError, ValueError):
        raise refusal from None
    if None in given:  # **something
        raise refusal
    return name, {str(key): value for key, value in given.items()}


def _made(cls: type[Protocol], text: str, given: Mapping[str, Any], usual: Mapping[str, Any]) -> Maker:
    signature = inspect.signature(cls)
    known = signature.parameters
    several = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in known.values())
    for key in given:
        if key not in known and not several:
            raise InputError(f"{text}: " + unknown(f"argument of {cls.__name__}", key, known))
    arguments = {**{key: value for key, value in usual.items() if key in known}, **given}
    try:
        signature.bind(**arguments)
    except TypeError as error:
        raise InputError(f"{text}: {cls.__name__}: {error}; write {cls.__name__}(NAME=VALUE)") from None
    return lambda: cls(**arguments)


def _class_in(path: Path, name: str) -> type[Protocol]:
    """A rule of a file of Python, which is run."""
    if not path.is_file():
        raise FileError(f"{path}:{name}: there is no file {path}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    ours = sys.modules.setdefault(path.stem, module) is module  # so that what it defines can be pickled
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        if ours:  # and no module of that name that was there before
            del sys.modules[path.stem]
        where = next((f" line {f.lineno}," for f in traceback.extract_tb(error.__traceback__)[::-1]
                      if f.filename == str(path)), "")  # fmt: skip
        raise FileError(f"{path}:{where} {type(error).__name__}: {error}") from error
    found = getattr(module, name, None)
    if not (isinstance(found, type) and issubclass(found, Protocol)):
        rules = [n for n, c in vars(module).items() if isinstance(c, type) and issubclass(c, Protocol)
                 and c.__module__ == module.__name__]  # fmt: skip
        raise InputError(f"{path}: " + unknown("rule", name, rules))
    return found
