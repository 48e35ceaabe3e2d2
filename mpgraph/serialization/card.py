"""The card of a rule: what a repository of the Hub says about it, made from the rule and its training record."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Mapping
from typing import Any

from mpgraph.agents.protocol import Protocol, cite
from mpgraph.errors import FileError

FIRST = ("command", "commit", "versions", "network", "family", "estimator", "optimizer", "budget", "reached")
LONGEST = 200  # letters of an entry in the table; all of the record stands below it


def card(protocol: Protocol, address: str, record: Mapping[str, Any], license: str | None = None) -> str:
    """Markdown with the head that the Hub reads.

    Args:
        protocol: the rule.
        address: where it will be found, ``hub://OWNER/NAME``.
        record: of its training.
        license: an identifier of the Hub, such as ``apache-2.0``; none is claimed without it.

    Raises:
        FileError: for a license that is no such identifier.
    """
    if license is not None and not (isinstance(license, str) and re.fullmatch(r"[a-z0-9][a-z0-9.-]*", license)):
        raise FileError(f"license={license!r} must be an identifier of the Hub, such as 'apache-2.0' or 'mit'")
    cls = type(protocol)
    about = (inspect.getdoc(cls) or "").partition("\n\n")[0]
    head = ["---", "library_name: mpgraph", *([f"license: {license}"] if license else []), "tags:"]
    head += ["- mpgraph", "- learning-rule", "---"]
    parts = ["\n".join(head), f"# {address.rpartition('/')[2]}", f"A learning rule, `{cls.__name__}`: {about}"]
    use = f'import mpgraph as mg\n\nrule = mg.load_protocol("{address}")\nprogram = mg.compile(network, rule)'
    parts.append(
        f"## Use\n\n```python\n{use}\n```\n\nIt needs `pip install 'mpgraph[hub]'`. Loading never runs code of this "
        "repository; `model.safetensors` is all that is read."
    )
    if record:
        entries = [name for name in FIRST if name in record] + [name for name in record if name not in FIRST]
        rows = [f"| {name} | `{_short(record[name])}` |" for name in entries]
        whole = json.dumps(dict(record), indent=1)
        parts.append("\n".join(["## How it was made", "", "| | |", "| --- | --- |", *rows]))
        parts.append(f"The whole record:\n\n```json\n{whole}\n```")
    else:
        parts.append("## How it was made\n\nThere is no record of its training.")
    source = cite(protocol)
    parts += [f"## Source\n\n```bibtex\n{source}\n```"] if source else []
    return "\n\n".join(parts) + "\n"


def _short(value: Any) -> str:
    """An entry in one line, without what would end a cell or its code."""
    text = value if isinstance(value, str) else json.dumps(value)
    text = " ".join(text.split()).replace("`", "'").replace("|", "\\|")
    return text if len(text) <= LONGEST else text[: LONGEST - 3] + "..."
