"""Rules on disk: a folder with ``protocol.safetensors``, its named tensors, and ``protocol.json``, how to make it.

Loading never runs code: a file can only name classes that are registered by entry point, and give them plain values.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as tensor_bytes
from torch import Tensor, nn

from mpgraph.agents.module import RuleModule
from mpgraph.agents.protocol import Protocol
from mpgraph.errors import FileError, MPGraphError, unknown
from mpgraph.registry import lookup, registered

from .atomic import write

VERSION = 1
FORMAT = "mpgraph.protocol"
TENSORS, ABOUT = "protocol.safetensors", "protocol.json"
PRETRAINED = Path(__file__).resolve().parent.parent / "pretrained"  # rules that ship, a folder each
GROUPS = ("protocols", "combinations", "optimizers", "schedules")  # entry points whose classes a file may name


def save_protocol(protocol: Protocol, folder: Any, record: Mapping[str, Any] | None = None) -> None:
    """Write a rule into a folder, which is made if need be. See :meth:`mpgraph.Protocol.save`."""
    folder = _folder(folder)
    owned = {**(protocol.waiting.tensors if protocol.waiting else {}), **protocol.state_dict()}
    tensors = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in owned.items()}
    record = protocol.record if record is None else record
    if not isinstance(record, Mapping):
        raise FileError(f"record must be a dictionary, got {record!r}")
    about = {
        "format": FORMAT,
        "version": VERSION,
        **_described(protocol, ""),
        "tensors_sha256": _digest(tensors),
        "record": dict(record),
    }
    try:
        inside = json.dumps(about, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise FileError(f"record must be what JSON can hold: numbers, strings, lists, dictionaries; {error}") from None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # One entry: safetensors writes several in any order, and one rule is to be one sequence of bytes.
        write(folder / TENSORS, tensor_bytes(tensors, metadata={"about": inside}))
        write(folder / ABOUT, (json.dumps(about, indent=1) + "\n").encode())
    except OSError as error:
        raise FileError(f"cannot write to {folder}: {error.strerror}") from error


def load_protocol(folder: Any) -> Protocol:
    """Read a rule that :meth:`mpgraph.Protocol.save` wrote, with what it learned, on the CPU; or one that ships.

    Parts that a rule makes for each node of a network are filled in when it is compiled for one.

    Args:
        folder: that holds ``protocol.json`` and ``protocol.safetensors``; or the name of a pretrained rule.

    Raises:
        FileError: for missing, damaged or newer files, a class that is not registered, arguments that it does not
            take, tensors that it lacks or that have another shape.
    """
    known = isinstance(folder, str) and folder in pretrained() and not Path(folder).is_dir()
    folder = PRETRAINED / folder if known else _folder(folder)
    about = _about(_read(folder / ABOUT), folder / ABOUT)
    tensors, inside = _tensors(folder / TENSORS)
    digest = _digest(tensors)
    if about.get("tensors_sha256") != digest:  # the write was killed between the two files, or one was changed
        about = _about(inside, folder / TENSORS) if inside else {}
        if about.get("tensors_sha256") != digest:
            raise FileError(f"{folder / TENSORS} is damaged, or not of the same save as {ABOUT}: its checksum differs")
    protocol = _made(about, folder / ABOUT)
    if not isinstance(protocol, Protocol):
        raise FileError(f"{folder / ABOUT} describes {protocol!r}, which is no rule")
    if not isinstance(about.get("record"), dict):
        raise FileError(f"{folder / ABOUT}: 'record' must be a dictionary, got {about.get('record')!r}")
    protocol.record = about["record"]
    kinds = {tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()}
    if len(kinds) == 1:
        protocol.to(kinds.pop())
    protocol.waiting = Waiting(tensors, folder / TENSORS)
    protocol.waiting.fill(protocol)
    return protocol


def pretrained() -> list[str]:
    """Names of the pretrained rules that ship, for :func:`load_protocol`."""
    return sorted(path.parent.name for path in PRETRAINED.glob(f"*/{ABOUT}"))


class Waiting:
    """Tensors of a file, until the rule makes what they belong to: some parts are made for each node of a network.

    Args:
        tensors: by name.
        path: of the file, for errors.
    """

    def __init__(self, tensors: Mapping[str, Tensor], path: Path) -> None:
        self.tensors, self.path, self.filled = tensors, path, set[str]()

    def fill(self, protocol: Protocol) -> None:
        """Copy the tensors into parameters and buffers that are there for the first time.

        Raises:
            FileError: for one that the file lacks or has in another shape.
        """
        own = protocol.state_dict()
        new = {name: tensor for name, tensor in own.items() if name not in self.filled}
        missing = sorted(set(new) - set(self.tensors))
        if missing:
            raise FileError(
                f"{self.path} lacks {', '.join(missing[:4])}, which {protocol.name} needs here; it was saved from "
                "another network or another version of the rule"
            )
        for name, tensor in new.items():
            found = self.tensors[name]
            if found.shape != tensor.shape:
                raise FileError(
                    f"{self.path}: {name} has shape {tuple(found.shape)}, {protocol.name} needs {tuple(tensor.shape)}"
                )
            tensor.copy_(found)  # of state_dict: without gradient, and the rule's own storage
        self.filled |= set(new)


def _tensors(path: Path) -> tuple[dict[str, Tensor], str | None]:
    """The tensors, and the description that travels with them: the two files cannot be replaced in one go."""
    if not path.is_file():
        raise FileError(_unreadable(path, "no such file"))
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dictionary
            return tensors, (file.metadata() or {}).get("about")
    except (SafetensorError, OSError) as error:
        raise FileError(f"{path} is no safetensors file, or is damaged: {error}") from None


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """A checksum of names, types, shapes and numbers."""
    total = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        total.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return total.hexdigest()


def _about(text: bytes | str, path: Path) -> dict[str, Any]:
    try:
        about = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FileError(f"{path} is no JSON, or is damaged: {error}") from None
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise FileError(f"{path} describes no rule of mpgraph: its format is not {FORMAT!r}")
    version = about.get("version")
    if type(version) is not int or version < 1:
        raise FileError(f"{path}: 'version' must be a positive integer, got {version!r}")
    if version > VERSION:
        raise FileError(f"{path} has format version {version}, this mpgraph reads up to {VERSION}: upgrade it")
    return about


def _folder(given: Any) -> Path:
    if not isinstance(given, (str, os.PathLike)) or not str(given):
        raise FileError(f"a rule is kept in a folder; give its path, not {given!r}")
    return Path(given)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise FileError(_unreadable(path, error.strerror)) from None


def _unreadable(path: Path, why: str | None) -> str:
    names = ", ".join(pretrained())
    return f"cannot read {path}: {why}; a rule is a folder with {ABOUT} and {TENSORS}, or one of {names or 'no others'}"


# -- values of arguments --------------------------------------------------------------------------------------


def _described(thing: Any, where: str) -> dict[str, Any]:
    """Class and arguments of a rule, an optimiser or a schedule."""
    cls = type(thing)
    for group in GROUPS:
        for name, point in registered(f"mpgraph.{group}").items():
            if point.attr == cls.__qualname__ and point.load() is cls:
                kind = {} if group == GROUPS[0] else {"group": group}
                given = thing.arguments if isinstance(thing, RuleModule) else dataclasses.asdict(thing)
                return {"class": name, **kind, "arguments": {k: _plain(v, f"{where}{k}") for k, v in given.items()}}
    listed = ", ".join(f"mpgraph.{group}" for group in GROUPS)
    raise FileError(
        f"{where or cls.__name__}: {thing!r} cannot be written to a file: {cls.__name__} is not registered. Give it an "
        f"entry point in the pyproject.toml of its package, in one of the groups {listed}"
    )


def _plain(value: Any, where: str) -> Any:
    """A value as JSON; what JSON has no word for becomes a dictionary with one."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Tensor):
        kind = "learnable" if isinstance(value, nn.Parameter) else "tensor"
        return {kind: value.detach().cpu().tolist(), "dtype": str(value.dtype).removeprefix("torch.")}
    if isinstance(value, torch.Generator):
        return None  # what it drew is among the tensors
    if isinstance(value, (list, tuple)):
        return [_plain(part, f"{where}[{i}]") for i, part in enumerate(value)]
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {"mapping": {key: _plain(part, f"{where}[{key!r}]") for key, part in value.items()}}
    if isinstance(value, RuleModule) or dataclasses.is_dataclass(value):
        return _described(value, where)
    raise FileError(
        f"argument {where} = {value!r} ({type(value).__name__}) cannot be written to a file. A file holds numbers, "
        "strings, tensors, lists and dictionaries of them, objects of registered classes; give a function by its name"
    )


def _value(found: Any, path: Path) -> Any:
    """The value that :func:`_plain` wrote."""
    if isinstance(found, list):
        return [_value(part, path) for part in found]
    if not isinstance(found, dict):
        return found
    if set(found) == {"mapping"} and isinstance(found["mapping"], dict):
        return {key: _value(part, path) for key, part in found["mapping"].items()}
    for kind, make in (("learnable", nn.Parameter), ("tensor", Tensor)):
        if set(found) == {kind, "dtype"}:
            dtype = getattr(torch, str(found["dtype"]), None)
            try:
                tensor = torch.tensor(found[kind], dtype=dtype)
            except (TypeError, ValueError, RuntimeError) as error:
                raise FileError(f"{path}: {str(found)[:80]} is no tensor: {error}") from None
            return make(tensor) if kind == "learnable" else tensor
    return _made(found, path)


def _made(found: Mapping[str, Any], path: Path) -> Any:
    """The rule, optimiser or schedule of a registered class, made with the arguments."""
    group, name, given = found.get("group", GROUPS[0]), found.get("class"), found.get("arguments")
    if not isinstance(name, str) or not isinstance(given, dict) or group not in GROUPS:
        raise FileError(f"{path}: {str(found)[:80]} describes no rule, optimiser or schedule")
    cls = lookup(f"mpgraph.{group}", name)
    if cls is None:
        raise FileError(
            f"{path}: {unknown(group[:-1], name, registered(f'mpgraph.{group}'))}. If it is of another package, "
            "install that"
        )
    arguments = {key: _value(value, path) for key, value in given.items()}
    try:
        return cls(**arguments)
    except (TypeError, ValueError, MPGraphError) as error:
        raise FileError(f"{path}: {cls.__name__} refuses its arguments: {error}") from None
