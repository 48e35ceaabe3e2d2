"""Rules on disk: a folder whose ``protocol.safetensors`` holds the rule's tensors and, as metadata, how to make it.

Tensors and description are one file, so they are replaced at once and share one checksum. ``protocol.json`` is a copy
of the description for people; it is never read. Loading never runs code: a file can only name classes that are
registered by entry point, and give them plain values.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mpgraph.agents.module import RuleModule
from mpgraph.agents.protocol import Protocol
from mpgraph.errors import FileError, unknown
from mpgraph.registry import lookup, registered

from . import hub
from .atomic import write
from .card import card
from .tensors import digest, packed, path_of, read

FORMAT = "mpgraph.protocol"
TENSORS, COPY = "protocol.safetensors", "protocol.json"
HUB_TENSORS, HUB_COPY, HUB_CARD = "model.safetensors", "config.json", "README.md"  # the same in a repository
PRETRAINED = Path(__file__).resolve().parent.parent / "pretrained"  # rules that ship, a folder each
GROUPS = ("protocols", "combinations", "optimizers", "schedules")  # entry points whose classes a file may name


def save_protocol(protocol: Protocol, folder: Any, record: Mapping[str, Any] | None = None) -> None:
    """Write a rule into a folder, which is made if need be. See :meth:`mpgraph.Protocol.save`."""
    folder = path_of(folder, "a rule is kept in a folder")
    tensors, about = _written(protocol, protocol.record if record is None else record)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write(folder / TENSORS, tensors)
        write(folder / COPY, about)
    except OSError as error:
        raise FileError(f"cannot write to {folder}: {error.strerror}") from error


def push_protocol(
    protocol: Protocol,
    repo: str,
    record: Mapping[str, Any] | None = None,
    *,
    private: bool | None = None,
    license: str | None = None,
) -> str:
    """Write a rule into a repository of the Hub, with a card. See :meth:`mpgraph.Protocol.push`."""
    address = hub.parsed(repo)
    record = protocol.record if record is None else record
    tensors, about = _written(protocol, record)
    page = card(protocol, f"{hub.SCHEME}{address.repo}", record, license)
    files = {HUB_TENSORS: tensors, HUB_COPY: about, HUB_CARD: page.encode()}
    return hub.upload(repo, files, message=f"{protocol.name}, written by mpgraph", private=private)


def _written(protocol: Protocol, record: Mapping[str, Any]) -> tuple[bytes, bytes]:
    """The file of a rule and the copy of its description."""
    tensors = {**(protocol.pending.tensors if protocol.pending else {}), **protocol.state_dict()}
    if not isinstance(record, Mapping):
        raise FileError(f"record must be a dictionary, got {record!r}")
    try:
        json.dumps(dict(record), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise FileError(f"record must be what JSON can hold: numbers, strings, lists, dictionaries; {error}") from None
    about = {**_described(protocol, ""), "record": dict(record)}
    copy = (json.dumps(about, indent=1) + "\n").encode()
    return packed(FORMAT, tensors, {"about": json.dumps(about)}), copy


def load_protocol(folder: Any) -> Protocol:
    """Read a rule that :meth:`mpgraph.Protocol.save` or ``push`` wrote, with what it learned, on the CPU.

    No code of the file's is run, wherever it comes from: it names registered classes and holds numbers.

    Parts that a rule makes for each node of a network are filled in when it is compiled for one.

    Args:
        folder: that holds ``protocol.safetensors``, or is a copy of a repository of the Hub; the name of a pretrained
            rule that ships; or ``hub://OWNER/NAME``, ``hub://OWNER/NAME@REVISION`` (``pip install 'mpgraph[hub]'``),
            a repository that is downloaded once.

    Raises:
        FileError: for a missing, damaged or newer file, a class that is not registered, arguments that it does not
            take, tensors that it lacks or that have another shape, a repository that is not there.
    """
    path = _place(folder)
    tensors, metadata = read(path, FORMAT, ("about",))
    about = _about(metadata.get("about", ""), path)
    if "version" not in metadata and about.get("tensors_sha256") != digest(tensors):  # version 1: of the tensors only
        raise FileError(f"{path} is damaged: its content differs from its checksum")
    protocol = _made(about, path)
    if not isinstance(protocol, Protocol):
        raise FileError(f"{path} contains {protocol!r}; expected a learning rule (mg.Protocol)")
    if not isinstance(about.get("record"), dict):
        raise FileError(f"{path}: 'record' must be a dictionary, got {about.get('record')!r}")
    protocol.record = about["record"]
    dtypes = {tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()}
    if len(dtypes) == 1:
        protocol.to(dtypes.pop())
    PendingTensors(tensors, path).fill(protocol)
    return protocol


def _place(folder: Any) -> Path:
    """The file that holds a rule."""
    if isinstance(folder, str) and folder.startswith(hub.SCHEME):
        return hub.fetch(folder, HUB_TENSORS)
    known = isinstance(folder, str) and folder in pretrained() and not Path(folder).is_dir()
    place = PRETRAINED / folder if known else path_of(folder, "a rule is kept in a folder")
    path = place / TENSORS
    if not path.is_file() and (place / HUB_TENSORS).is_file():
        return place / HUB_TENSORS
    if not path.is_file():
        names = ", ".join(pretrained()) or "none"
        raise FileError(
            f"there is no file {path}; a rule is a folder that holds it, a repository hub://OWNER/NAME, or a "
            f"pretrained one: {names}"
        )
    return path


def pretrained() -> list[str]:
    """Names of the pretrained rules that ship, for :func:`load_protocol`."""
    return sorted(path.parent.name for path in PRETRAINED.glob(f"*/{TENSORS}"))


@dataclasses.dataclass(frozen=True)
class PendingTensors:
    """Tensors of a file, until the rule makes what they belong to: some parts are made for each node of a network.

    Attributes:
        tensors: by name.
        path: of the file, for errors.
        filled: names of those that the rule has taken.
    """

    tensors: Mapping[str, Tensor]
    path: Path
    filled: frozenset[str] = frozenset()

    def fill(self, protocol: Protocol) -> None:
        """Copy the tensors into parameters and buffers that are there for the first time, and note that they are.

        Raises:
            FileError: for one that the file lacks or has in another shape; then nothing is copied.
        """
        new = {name: tensor for name, tensor in protocol.state_dict().items() if name not in self.filled}
        missing = sorted(set(new) - set(self.tensors))
        if missing:
            raise FileError(
                f"{self.path} lacks {', '.join(missing[:4])}, which {protocol.name} needs here; it was saved from "
                "another network or another version of the rule"
            )
        for name, tensor in new.items():
            if self.tensors[name].shape != tensor.shape:
                raise FileError(
                    f"{self.path}: {name} has shape {tuple(self.tensors[name].shape)}, {protocol.name} needs "
                    f"{tuple(tensor.shape)}"
                )
        for name, tensor in new.items():
            tensor.copy_(self.tensors[name])  # of state_dict: without gradient, and the rule's own storage
        protocol.pending = dataclasses.replace(self, filled=self.filled | set(new))


def _about(text: str, path: Path) -> dict[str, Any]:
    """The description of a rule."""
    try:
        about = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FileError(f"{path} is damaged: its description is not JSON: {error}") from None
    if not isinstance(about, dict):
        raise FileError(f"{path} does not describe a rule: {str(about)[:80]}")
    return about


# -- values of arguments --------------------------------------------------------------------------------------


def _described(thing: Any, where: str) -> dict[str, Any]:
    """Class and arguments of a rule, an optimizer or a schedule."""
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
    if isinstance(value, (np.generic, np.ndarray)):
        value = value.tolist()
    if isinstance(value, (float, Tensor)) and not bool(torch.isfinite(torch.as_tensor(value, device="cpu")).all()):
        raise FileError(f"argument {where} = {value!r} cannot be written to a file: it must be finite")
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
                tensor = torch.tensor(found[kind], dtype=dtype, device="cpu")
            except (TypeError, ValueError, OverflowError, RuntimeError) as error:
                raise FileError(f"{path}: {str(found)[:80]} is not a tensor: {error}") from None
            return make(tensor) if kind == "learnable" else tensor
    return _made(found, path)


def _made(found: Mapping[str, Any], path: Path) -> Any:
    """The rule, optimizer or schedule of a registered class, made with the arguments."""
    group, name, given = found.get("group", GROUPS[0]), found.get("class"), found.get("arguments")
    if not isinstance(name, str) or not isinstance(given, dict) or group not in GROUPS:
        raise FileError(f"{path}: {str(found)[:80]} does not describe a rule, optimizer or schedule")
    cls = lookup(f"mpgraph.{group}", name)
    if cls is None:
        raise FileError(
            f"{path}: {unknown(group[:-1], name, registered(f'mpgraph.{group}'))}. If it is of another package, "
            "install that"
        )
    arguments = {key: _value(value, path) for key, value in given.items()}
    try:
        return cls(**arguments)
    except Exception as error:  # whatever a constructor makes of it
        raise FileError(f"{path}: {cls.__name__} refuses its arguments: {error}") from None
