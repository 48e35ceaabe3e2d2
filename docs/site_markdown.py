"""For the site only: docstrings and signatures as Markdown."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from inspect import Parameter
from typing import Any

SECTIONS = ("Args", "Attributes", "Class attributes", "Raises", "Returns", "Warns", "Yields", "Channels")
HEADINGS = {"Args": "Arguments"}
ROLE = re.compile(r":\w+:`~?([^`]+)`")
CODE = re.compile(r"(`[^`]*`)")
ITEM = re.compile(r"(\*{0,2}[\w, ]+): (.*)", re.DOTALL)
WIDEST = 100  # letters of a signature in one line


def markdown(text: str, links: Mapping[str, str] | None = None) -> str:
    """A docstring in Markdown: sections become lists, names in double backticks code, known names links.

    Args:
        text: a docstring as ``inspect.getdoc`` returns it.
        links: addresses by the names that ``:class:`` and its kind may mention.
    """
    parts: list[str] = []
    for title, body in _sections(text):
        if title:
            parts += [f"**{HEADINGS.get(title, title)}**", "\n".join(_item(one, links or {}) for one in _items(body))]
        else:
            parts.append(_prose(body, links or {}))
    return "\n\n".join(part for part in parts if part.strip()) + "\n"


def summary(thing: Any) -> str:
    """The first sentence of a docstring, for a table."""
    first = (inspect.getdoc(thing) or "").partition("\n\n")[0].replace("\n", " ")
    return cell(_inline(re.split(r"(?<=\w[.:]) ", first, maxsplit=1)[0].rstrip(":"), {}))


def cell(text: str) -> str:
    """Text that may stand in a table; in code a bar needs no mark."""
    parts = CODE.split(text.replace("\n", " "))
    return "".join(part if i % 2 else part.replace("|", "\\|") for i, part in enumerate(parts))


def signature(name: str, thing: Any) -> str:
    """``name(arguments) -> result`` as people write it, an argument a line where it would be long."""
    found = inspect.signature(thing)
    if isinstance(thing, type):
        name, found = f"class {name}", found.replace(return_annotation=found.empty)
        if {one.kind for one in found.parameters.values()} <= {Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD}:
            return name
    parts, keyword_only = [], False
    for one in found.parameters.values():
        if one.name in ("self", "cls") or (one.kind is one.POSITIONAL_ONLY and one.name.startswith("_")):
            continue
        if one.kind is one.KEYWORD_ONLY and not keyword_only:
            keyword_only = True
            parts.append("*")
        if one.kind is one.VAR_POSITIONAL:
            keyword_only = True
        stars = {one.VAR_POSITIONAL: "*", one.VAR_KEYWORD: "**"}.get(one.kind, "")
        annotation = "" if one.annotation is one.empty else f": {_type(one.annotation)}"
        gap = " = " if annotation else "="
        parts.append(stars + one.name + annotation + ("" if one.default is one.empty else gap + value(one.default)))
    result = "" if found.return_annotation is found.empty else f" -> {_type(found.return_annotation)}"
    line = f"{name}({', '.join(parts)}){result}"
    if len(line) <= WIDEST:
        return line
    return f"{name}(\n" + "".join(f"    {part},\n" for part in parts) + f"){result}"


def value(default: Any) -> str:
    """A default as people write it."""
    if callable(default) or isinstance(default, type):
        return str(getattr(default, "__name__", default))
    return repr(dict(default)) if isinstance(default, Mapping) else repr(default)


def _type(annotation: Any) -> str:
    return annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)


def _sections(text: str) -> list[tuple[str, str]]:
    """Titles and bodies, in their order; prose has no title."""
    found: list[tuple[str, list[str]]] = [("", [])]
    for line in text.splitlines():
        title = line[:-1] if line.endswith(":") and not line.startswith(" ") else ""
        if title in SECTIONS:
            found.append((title, []))
        elif found[-1][0] and line and not line.startswith(" "):  # prose after a section
            found.append(("", [line]))
        else:
            found[-1][1].append(line)
    return [(title, "\n".join(lines)) for title, lines in found]


def _items(body: str) -> list[str]:
    """The entries of a section, each in one line."""
    items: list[list[str]] = []
    for line in filter(str.strip, body.splitlines()):
        if len(line) - len(line.lstrip()) <= 4 or not items:
            items.append([])
        items[-1].append(line.strip())
    return [" ".join(lines) for lines in items]


def _item(text: str, links: Mapping[str, str]) -> str:
    found = ITEM.fullmatch(text)
    if found is None:
        return f"- {_inline(text, links)}"
    return f"- `{found[1]}`: {_inline(found[2], links)}"


def _prose(body: str, links: Mapping[str, str]) -> str:
    """Paragraphs; indented lines are code."""
    lines = []
    for line in body.splitlines():
        if line.startswith("    "):
            lines.append(line)
        else:
            lines.append(_inline(line.removesuffix(":") if line.endswith("::") else line, links))
    return "\n".join(lines).strip("\n")


def _inline(text: str, links: Mapping[str, str]) -> str:
    def linked(match: re.Match[str]) -> str:
        name = match[1].removeprefix("mpgraph.")
        return f"[`{name}`]({links[name]})" if name in links else f"`{name}`"

    parts = CODE.split(ROLE.sub(linked, text).replace("``", "`"))
    return "".join(part if i % 2 else part.replace("<", "&lt;") for i, part in enumerate(parts))
