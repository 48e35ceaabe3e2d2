"""Files on the Hugging Face Hub, or on a server that speaks as it does (``HF_ENDPOINT``).

``hub://OWNER/NAME`` is a repository, ``hub://OWNER/NAME@REVISION`` a branch, tag or commit of it. Needs the extra
``mpgraph[hub]``. Files are read from its cache when the server cannot be reached. Who may write is a matter of
``huggingface_hub``: ``hf auth login``, or ``HF_TOKEN``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from mpgraph.errors import FileError

SCHEME = "hub://"
WORD = r"[A-Za-z0-9][A-Za-z0-9._-]*"
ADDRESS = re.compile(rf"({WORD}/{WORD})(?:@([^\s@]+))?")


class Address(NamedTuple):
    """A repository, and a branch, tag or commit of it."""

    repo: str
    revision: str | None


def parsed(text: str) -> Address:
    """The repository of ``OWNER/NAME`` or ``OWNER/NAME@REVISION``, with ``hub://`` before it or not.

    Raises:
        FileError: for anything else.
    """
    found = ADDRESS.fullmatch(text.removeprefix(SCHEME)) if isinstance(text, str) else None
    if found is None:
        raise FileError(f"{text!r} is no repository of the Hub; write hub://OWNER/NAME, or hub://OWNER/NAME@REVISION")
    return Address(found[1], found[2])


def fetch(text: str, name: str) -> Path:
    """Where a file of a repository lies on this machine, downloaded unless the cache has it.

    Args:
        text: the repository, as the header says.
        name: of the file.

    Raises:
        FileError: for a repository, revision or file that is not there, or a server that cannot be reached.
    """
    address = parsed(text)
    hub = _library(text)
    with _told(text, "cannot be read"):
        return Path(hub.hf_hub_download(address.repo, name, revision=address.revision, endpoint=_endpoint()))


def upload(text: str, files: Mapping[str, bytes], *, message: str, private: bool | None = None) -> str:
    """Write files into a repository, which is made if need be, as one commit.

    Args:
        text: the repository; with a revision, the branch that is written to.
        files: contents by name.
        message: of the commit.
        private: whether a new repository can be seen by its owner only; by default as the owner has chosen.

    Returns:
        The address of that commit, ``hub://OWNER/NAME@COMMIT``, which always means these files.

    Raises:
        FileError: for a repository that cannot be made or written to.
    """
    address = parsed(text)
    hub = _library(text)
    with _told(text, "cannot be written"):
        server = hub.HfApi(endpoint=_endpoint())
        server.create_repo(address.repo, private=private, exist_ok=True)
        adds = [hub.CommitOperationAdd(name, content) for name, content in files.items()]
        made = server.create_commit(address.repo, adds, commit_message=message, revision=address.revision)
    return f"{SCHEME}{address.repo}@{made.oid}"


def _endpoint() -> str | None:
    """The server, as the environment has it now rather than when the library was imported."""
    return os.environ.get("HF_ENDPOINT") or None


def _library(text: str) -> Any:
    try:
        import huggingface_hub
    except ImportError:
        raise FileError(f"{text}: the Hub needs huggingface_hub: pip install 'mpgraph[hub]'") from None
    return huggingface_hub


@contextmanager
def _told(text: str, what: str) -> Iterator[None]:
    """Within, an error of the library is told as one of the family: which ones there are depends on its version."""
    try:
        yield
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        raise FileError(
            f"{text} {what}: {type(error).__name__}: {lines[0]} Check the name and the connection; for a private "
            "repository, or to write, log in first: hf auth login"
        ) from error
