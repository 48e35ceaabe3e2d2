"""Rules and networks as they are named on the command line.

NAME                    registered, ``mpgraph protocols`` lists the rules; or pretrained
NAME(lr=0.3, k=2)       with arguments, each a Python literal
NAME:FOLDER             a rule that was saved by ``protocol.save``
hub://OWNER/NAME        a rule of the Hugging Face Hub
FILE.py:CLASS           a rule of one's own, with arguments or without; the file is run
FILE.py:FUNCTION        a network of one's own
"""

from __future__ import annotations

import ast
import importlib.util
import inspect
import math
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from mpgraph.agents.protocol import Protocol, list_protocols
from mpgraph.errors import FileError, InputError, MPGraphError, unknown
from mpgraph.network.network import Network
from mpgraph.registry import lookup, registered
from mpgraph.serialization.hub import SCHEME
from mpgraph.serialization.protocol import load_protocol, pretrained

from .results import READOUT_ONLY
from .tasks import Task

Maker = Callable[[], Protocol]


class Named(NamedTuple):
    """How to make a rule, and which of its arguments were left open: those that a search may choose."""

    make: Maker
    free: frozenset[str]


def rules_named(text: str) -> list[str]:
    """The names in a list such as ``"backprop(lr=0.3, surrogate='tanh'),oja"``, each once."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and not depth:
            parts.append("")
        else:
            parts[-1] += letter
    return list(dict.fromkeys(part.strip() for part in parts if part.strip()))


def maker_of(text: str, usual: Mapping[str, Any], *, trained: bool) -> Maker:
    """A function that makes the rule of that name: :func:`named` without what it says about arguments."""
    return named(text, usual, trained=trained).make


def named(text: str, usual: Mapping[str, Any], *, trained: bool) -> Named:
    """The rule of that name.

    Args:
        text: as the header says.
        usual: arguments for the rules that take them and are not given others.
        trained: take what is pretrained in place of a rule that begins with random numbers.

    Raises:
        InputError: for an unknown rule, arguments that it does not take or that are no literals, or (if ``trained``) a
            rule whose random numbers nobody has trained.
        FileError: for a folder or file that is missing, holds another rule, or cannot be run.
    """
    if text in pretrained() or text.startswith(SCHEME):
        return Named(lambda: load_protocol(text), frozenset())
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
        return Named(lambda: load_protocol(place), frozenset())
    if cls.random_defaults and trained:
        if cls.shipped in pretrained() and not given:
            return Named(lambda: load_protocol(cls.shipped), frozenset())
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


def _made(cls: type[Protocol], text: str, given: Mapping[str, Any], usual: Mapping[str, Any]) -> Named:
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
    return Named(lambda: cls(**arguments), frozenset(known) - frozenset(given))


def network_named(text: str, task: Task, usual: Mapping[str, Any]) -> Network:
    """A network for a task: an architecture by name, with arguments or without, or a function of one's own.

    Whatever of ``sizes``, ``inputs``, ``outputs``, ``image``, ``classes``, ``ticks`` and ``loss`` the function takes
    and is not given comes from the task. ``hidden`` may be given where it takes ``sizes``.

    Args:
        text: as the header says.
        task: what the network is for.
        usual: ``hidden``, ``activation`` and ``loss``, for the functions that take them and are given no others.

    Raises:
        InputError: for an unknown architecture, arguments that it does not take, or a network that does not fit.
        FileError: for a file that is missing or cannot be run.
    """
    name, given = _parsed(text)
    name, colon, place = name.partition(":")
    if colon and name.endswith(".py"):
        build = _object_in(Path(name), place, "network", _is_function)
    else:
        build = lookup("mpgraph.architectures", name)
    if build is None:
        raise InputError(unknown("architecture", name, registered("mpgraph.architectures")))
    known = inspect.signature(build).parameters
    sizes = [math.prod(task.shape), *(given.pop("hidden", usual.get("hidden")) or task.hidden), task.outputs]
    usual = {**task.given(), **usual, "sizes": sizes}
    if "ticks" in known:
        usual["sizes"] = [task.row, *sizes[1:]]
    for key in given:
        if key not in known:
            raise InputError(f"{text}: " + unknown(f"argument of {name}", key, known))
    arguments = {**{key: value for key, value in usual.items() if key in known}, **given}
    try:
        with own_code(text):
            network = build(**arguments)
    except (TypeError, MPGraphError) as error:
        raise InputError(f"network {text} for {task.name}: {error}") from error
    if not isinstance(network, Network):
        raise InputError(f"network {text}: {name} returned a {type(network).__name__}, not an mg.Network")
    return network


@contextmanager
def own_code(text: str) -> Iterator[None]:
    """Within, an exception of the file that a rule or network is named by is told by its line, as one of the family.

    Raises:
        FileError: for any exception that is not of the family, if the name is of a file.
    """
    name = text.partition("(")[0].partition(":")[0]
    try:
        yield
    except MPGraphError:
        raise
    except Exception as error:
        if not name.endswith(".py"):
            raise
        where = _line(error, Path(name))
        raise FileError(f"{text}:{where} {type(error).__name__}: {error}; --debug shows how it came there") from error


def _line(error: BaseException, path: Path) -> str:
    """Where in the file an exception was raised: `` line 3,``."""
    frames = traceback.extract_tb(error.__traceback__)[::-1]
    return next((f" line {f.lineno}," for f in frames if Path(f.filename).resolve() == path.resolve()), "")


def _is_function(value: Any, module: str) -> bool:
    return callable(value) and not isinstance(value, type) and getattr(value, "__module__", "") == module


def _class_in(path: Path, name: str) -> type[Protocol]:
    """A rule of a file of Python, which is run."""
    found: type[Protocol] = _object_in(
        path, name, "rule", lambda value, _: isinstance(value, type) and issubclass(value, Protocol)
    )
    return found


def _object_in(path: Path, name: str, what: str, fits: Callable[[Any, str], bool]) -> Any:
    """What a file of Python calls so; the file is run. ``fits`` is told a value and the name of the module."""
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
        raise FileError(f"{path}:{_line(error, path)} {type(error).__name__}: {error}") from error
    found = getattr(module, name, None)
    if not fits(found, module.__name__):
        own = [n for n, value in vars(module).items()
               if fits(value, module.__name__) and value.__module__ == module.__name__]  # fmt: skip
        raise InputError(f"{path}: " + unknown(what, name, own))
    return found
