"""For the site only: the API reference, written from docstrings."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from functools import cache
from types import ModuleType
from typing import Any, NamedTuple

from site_markdown import cell, markdown, signature, summary

import mpgraph as mg
import mpgraph.architectures
import mpgraph.meta
import mpgraph.probes
import mpgraph.protocols
from mpgraph.agents.protocol import Protocol

PAGES = {  # file, title and what stands above the names
    "networks": ("Networks", "What a network is made of: units, connections, losses and operations."),
    "rules": ("Rules", "What a learning rule is written with."),
    "agents": ("Agents, channels and the view", "What an agent keeps, what it may ask for, and what it does."),
    "programs": ("Programs", "A network with a rule, compiled; its states and what a step returns."),
    "errors": ("Errors", "Everything that mpgraph refuses is an `MPGraphError`."),
    "protocols": ("mpgraph.protocols", "The rules that ship. [The gallery](../gallery/index.md) has a page for each."),
    "architectures": ("mpgraph.architectures", "Builders of networks."),
    "meta": ("mpgraph.meta", "Learning to learn."),
    "probes": ("mpgraph.probes", "Measurements of a rule from outside."),
}
FOLDERS = {"network": "networks", "serialization": "rules", "program": "programs", "errors": "errors"}
ON_AGENTS = {"agent", "builtin", "channel", "each", "node", "initializers"}  # modules of mpgraph.agents
MODULES = {"protocols": mpgraph.protocols, "architectures": mpgraph.architectures}
MODULES |= {"meta": mpgraph.meta, "probes": mpgraph.probes}


class Name(NamedTuple):
    """A public name: what it stands for, the module that people import it from, and the page that tells of it."""

    name: str
    thing: Any
    module: str
    page: str


def names_of(module: ModuleType) -> Iterator[tuple[str, Any]]:
    """Public classes and functions of a module, a name of an older version left out."""
    for name, thing in vars(module).items():
        ours = getattr(thing, "__module__", "").startswith("mpgraph") and not isinstance(thing, ModuleType)
        older = isinstance(thing, type) and thing.__name__ != name
        if ours and not older and not name.startswith("_"):
            yield name, thing


@cache
def public() -> list[Name]:
    """Every public name, in the order in which it is exported."""
    found = []
    for name, thing in names_of(mg):
        folder, _, module = thing.__module__.removeprefix("mpgraph.").partition(".")
        page = FOLDERS.get(folder) or ("agents" if module in ON_AGENTS else "rules")
        found.append(Name(name, thing, "mpgraph", page))
    for page, module in MODULES.items():
        found += [Name(name, thing, module.__name__, page) for name, thing in names_of(module)]
    return found


def members(cls: type) -> Iterator[tuple[str, Any]]:
    """Public methods and properties that a class adds to those of its public bases."""
    shown = {id(one.thing) for one in public()}
    for base in cls.__mro__:
        if base is not cls and (id(base) in shown or not base.__module__.startswith("mpgraph")):
            continue
        for name, member in vars(base).items():
            function = function_of(member)
            if name.startswith("_") or function is None or getattr(cls, name, None) is None:
                continue
            if re.fullmatch(r":meth:`\w+`\.", function.__doc__ or ""):  # a name of an older version
                continue
            if function.__qualname__.startswith(f"{base.__qualname__}."):  # no function that is a default
                yield name, member


def function_of(member: Any) -> Any:
    """The function behind a method or property, or nothing."""
    if isinstance(member, property):
        return member.fget
    member = getattr(member, "__func__", member)
    return member if inspect.isfunction(member) else None


def documented(member: Any) -> str:
    """The docstring of a method or property, or of what it overrides."""
    return inspect.getdoc(member if isinstance(member, property) else function_of(member)) or ""


def pages() -> dict[str, str]:
    """The text of every page by its address within the documents."""
    found = public()
    links = _links(found)
    written = {}
    for page, (title, about) in PAGES.items():
        parts = [f"# {title}", about]
        parts += [_agents()] if page == "agents" else []
        parts += [_described(one, links) for one in found if one.page == page]
        written[f"api/{page}.md"] = "\n\n".join(parts) + "\n"
    return {"api/index.md": _index(found, links), **written}


def _links(found: list[Name]) -> dict[str, str]:
    """Addresses from one of these pages, by public name and by ``Class.member``."""
    links = {one.name: f"{one.page}.md#{one.name}" for one in found}
    for one in found:
        if isinstance(one.thing, type):
            links |= {f"{one.name}.{name}": f"{one.page}.md#{one.name}.{name}" for name, _ in members(one.thing)}
    return links


def _index(found: list[Name], links: Mapping[str, str]) -> str:
    lines = ["# API reference", "", "Every public name. Import those of `mpgraph` as `import mpgraph as mg`.", ""]
    for page, (title, _) in PAGES.items():
        lines += [f"## {title}", "", "| name | |", "| --- | --- |"]
        lines += [f"| [`{n.name}`]({links[n.name]}) | {summary(n.thing)} |" for n in found if n.page == page]
        lines.append("")
    return "\n".join(lines)


def _described(one: Name, links: Mapping[str, str]) -> str:
    """A name with its signature and docstring, and below it the members of a class."""
    thing = one.thing
    parts = [f"## {one.name} {{#{one.name}}}"]
    is_class = isinstance(thing, type) and not issubclass(thing, BaseException)
    if is_class or inspect.isfunction(thing):
        parts.append(_code(signature(f"{one.module}.{one.name}", thing)))
    if is_class:
        own = [name for name, _ in members(thing)]
        links = {**links, **{name: links[f"{one.name}.{name}"] for name in own}}
        bases = [base.__name__ for base in thing.__mro__[1:] if base.__name__ in links]
        parts += [f"Has also what [`{bases[0]}`]({links[bases[0]]}) has."] if bases else []
    parts.append(markdown(inspect.getdoc(thing) or "", links))
    if is_class:
        parts += [_member(f"{one.name}.{name}", member, links) for name, member in members(thing)]
    return "\n\n".join(parts)


def _member(name: str, member: Any, links: Mapping[str, str]) -> str:
    function = function_of(member)
    text = markdown(documented(member), links)
    if isinstance(member, property):
        return f"### {name} {{#{name}}}\n\n{text}"
    return f"### {name} {{#{name}}}\n\n{_code(signature(name.rpartition('.')[2], function))}\n\n{text}"


def _code(text: str) -> str:
    return f"```python\n{text}\n```"


def _agents() -> str:
    """The engine's own agents: what they keep, and what they do in which pass."""
    lines = [
        "## The engine's agents",
        "",
        "A rule that does not mention a type of node leaves it to these. `e` of a unit or loss is its error, in units "
        "of the loss by those of `z`; of each example, not divided by the batch. All values are of shape `()` for one "
        "agent and example; tensors in `state` and `out.recorded` have the axes of the node, and fast ones the batch "
        "before them.",
        "",
        "| type of node | agent | channels | methods |",
        "| --- | --- | --- | --- |",
    ]
    for kind, made in Protocol.agents.items():
        agent = made() if callable(made) and isinstance(made, type) else made
        channels = [f"`{name}` ({channel.extent})" for name, channel in agent.channels().items()]
        methods = [f"`{n}`" for base in type(agent).__mro__ for n in vars(base) if n.endswith(("_update", "_message"))]
        row = (f"`{kind}`", f"`{type(agent).__name__}`", ", ".join(channels), ", ".join(methods))
        lines.append("| " + " | ".join(map(cell, row)) + " |")
    lines += [
        "",
        "Synapses belong to rules; that of backpropagation, `mpgraph.protocols.backprop.Weight`, keeps `w` (slow) and "
        "`x`, `e` (fast). Units that normalize over the batch keep `mean` and `var` as well (slow).",
        "",
        "### What a step records",
        "",
        'Fast channels are gone after a step. `program.step(state, x, y, record={"h1": ["y", "e"]})` returns them in '
        "`out.recorded[node][channel]`, of shape `(batch, *agents)`, or `(batch, ticks, *agents)` for a sequence of a "
        "program whose step is a tick; a channel of size `k` has one more axis of that length at the end. Kept "
        "channels are in the state and may be recorded as well.",
        "",
        "### What is predicted",
        "",
        "`out.prediction` and `program.predict` return the `readout` of the agents of the outputs: by default their "
        "message of the pass that predicts. An agent whose messages are something else says what it predicts by a "
        "method of its own, `def readout(self, s): return s.y`.",
    ]
    return "\n".join(lines)
