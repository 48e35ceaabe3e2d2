"""For the site only: the gallery, a page for each rule, from the rule itself and from measured pages."""

from __future__ import annotations

import inspect
import io
import re
import sys
import textwrap
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_origin

from site_markdown import cell, markdown, summary, value

import mpgraph as mg
from mpgraph.agents.options import Option
from mpgraph.agents.protocol import list_protocols
from mpgraph.agents.repeat import Repeat
from mpgraph.architectures import mlp
from mpgraph.draw.text import agents_text
from mpgraph.experiments import plots
from mpgraph.lowering.explain import short
from mpgraph.protocols import Backprop
from mpgraph.registry import lookup, registered
from mpgraph.serialization.protocol import pretrained

DOCS = Path(__file__).resolve().parent
SIZES, BATCH = (64, 32, 10), 32
NETWORK = f"{'-'.join(map(str, SIZES))} tanh"
Tables = dict[str, dict[str, dict[str, str]]]


class Page(NamedTuple):
    """A rule's page, its picture, and its row of the index."""

    text: str
    picture: str
    row: str


def pages() -> dict[str, str]:
    """The text of every page, and the pictures, by address within the documents."""
    made = {name: page(name) for name in shipped()}
    written = {"gallery/index.md": _index([one.row for one in made.values()])}
    for name, one in made.items():
        written |= {f"gallery/{name}.md": one.text, f"gallery/{name}.svg": one.picture}
    return written


def page(name: str) -> Page:
    """What the site shows of a registered rule."""
    rule = lookup("mpgraph.protocols", name)()
    program = mg.compile(mlp(SIZES), rule)
    cost, bench = program.cost(BATCH), tables("bench.md")
    (matrix,) = tables("matrix.md").values()
    ratio, where = cost.flops / _usual(), matrix[name]
    parts = [_head(name, rule), _equations(rule), _passes(name, rule), _options(rule)]
    parts += [_cost(cost, ratio, bench.get("digits: " + NETWORK, {}), name), _where(where), _measured(name, bench)]
    parts += [_agents(program), _more(rule)]
    runs = sum(not text.startswith("no") for text in where.values())
    row = f"| [`{name}`]({name}.md) | {summary(type(rule))} | {ratio:.2f} | {runs} of {len(where)} |"
    return Page("\n\n".join(filter(None, parts)) + "\n", _picture(program), row)


@cache
def _usual() -> float:
    """Operations of a step of backpropagation."""
    return mg.compile(mlp(SIZES), Backprop()).cost(BATCH).flops


def shipped() -> list[str]:
    """The rules of this project, whatever other packages add."""
    return [n for n in list_protocols() if registered("mpgraph.protocols")[n].value.startswith("mpgraph.")]


@cache
def tables(page: str) -> Tables:
    """The tables of a page that have a rule in each row: by heading, rule and column."""
    found: Tables = {}
    heading, head = "", list[str]()
    for line in (DOCS / page).read_text().splitlines():
        if line.startswith("#"):
            heading, head = line.lstrip("# "), []
        elif line.startswith("|"):
            cells = [text.strip() for text in line.strip("|").split("|")]
            if not head:
                head = cells
            elif cells[0].startswith("`"):
                found.setdefault(heading, {})[cells[0].strip("`")] = dict(zip(head[1:], cells[1:], strict=True))
    return found


def _index(rows: list[str]) -> str:
    return "\n".join(
        [
            "# The gallery of rules",
            "",
            "A page for each rule, written from its code: equations and source, passes, options, cost, where it runs, "
            f"and what it reached on the [bench](../bench.md). Operations are those of one step on {NETWORK} with "
            f"{BATCH} examples, by those of backpropagation, as `program.cost({BATCH}).flops` counts them in the "
            "generated code; architectures are those on which the rule runs at all, see [the matrix](../matrix.md).",
            "",
            "| rule | | operations, in backpropagation's | architectures |",
            "| --- | --- | ---: | --- |",
            *rows,
            "",
        ]
    )


def _head(name: str, rule: mg.Protocol) -> str:
    cls = type(rule)
    about = (inspect.getdoc(cls) or "").partition("\n\nArgs:")[0]
    own = [one for one in pretrained() if type(mg.load_protocol(one)) is cls]
    learned = f"\n\nLearned here, by name: {', '.join(f'`{one}`' for one in own)}." if own else ""
    use = f"from mpgraph.protocols import {cls.__name__}\n\nprogram = mg.compile(network, {cls.__name__}())"
    title = (inspect.getdoc(inspect.getmodule(cls)) or "").partition("\n")[0].rstrip(".")
    known = len(title) > 60 or cls.__name__.lower() in title.lower()  # a header of several rules, or the same again
    named = "" if known else f"*{title.partition(':')[0]}.* "
    on_command_line = f"On the command line it is `{name}`: `mpgraph compare --protocols {name}`."
    if rule.random_defaults and not own:
        on_command_line = "Without what was learned its numbers are random, so it cannot be compared by name alone."
    return f"# `{name}`\n\n{named}{markdown(about)}{learned}\n\n```python\n{use}\n```\n\n{on_command_line}"


def _equations(rule: mg.Protocol) -> str:
    """The header of the module, and those of modules of bases that are no rules by themselves."""
    registered_rules = {lookup("mpgraph.protocols", name): name for name in shipped()}
    parts, seen = ["## Equations and source"], set[Any]()
    for cls in type(rule).__mro__:
        module = inspect.getmodule(cls)
        if cls is mg.Protocol:
            break
        if module in seen or module is None:
            continue
        seen.add(module)
        if cls is not type(rule) and cls in registered_rules:
            parts.append(f"It builds on [`{registered_rules[cls]}`]({registered_rules[cls]}.md).")
            continue
        parts += [] if cls is type(rule) else [f"### {cls.__name__}, of which it is a case"]
        parts.append(markdown(inspect.getdoc(module) or ""))
    source = mg.cite(rule)
    parts += [f"```text\n{source}\n```"] if source else []
    return "\n\n".join(parts)


def _passes(name: str, rule: mg.Protocol) -> str:
    schedules = dict(rule.phases) or {"": rule.passes}
    lines = [f"- {f'phase `{phase}`: ' if phase else ''}{_schedule(passes)}" for phase, passes in schedules.items()]
    lines.append(f"- prediction: {_schedule(rule.predict_passes)}")
    tick = " Each step is one tick." if rule.online else ""
    alternative = f"Nodes of a network with one hidden unit, and arrows in a color for each pass of {name}"
    return "\n".join(["## Passes", "", *lines, "", f"![{alternative}]({name}.svg)", "", f"On {NETWORK}.{tick}"])


def _schedule(passes: tuple[str | Repeat, ...]) -> str:
    return ", ".join(
        f"({_schedule(one.passes)}) {one.times} times" if isinstance(one, Repeat) else f"`{one}`" for one in passes
    )


def _options(rule: mg.Protocol) -> str:
    lines = ["## Options", "", "| option | default | may be | |", "| --- | --- | --- | --- |"]
    words = {"low": "at least {}", "above": "above {}", "high": "at most {}", "below": "below {}"}
    for name, one in type(rule).declared.items():
        allowed = _allowed(one)
        bounds = ", ".join(words[key].format(f"{bound:g}") for key, bound in one.bounds.items())
        row = (f"`{name}`", f"`{value(one.default)}`", f"`{allowed}`" + f", {bounds}" * bool(bounds), one.doc)
        lines.append("| " + " | ".join(cell(markdown(text).strip()) for text in row) + " |")
    return "\n".join(lines)


def _allowed(one: Option) -> str:
    """The annotation; of a name for several words, the words."""
    found = getattr(sys.modules.get(one.module), str(one.annotation), None)
    return str(found).removeprefix("typing.") if get_origin(found) is Literal else str(one.annotation)


def _cost(cost: Any, ratio: float, digits: dict[str, dict[str, str]], name: str) -> str:
    text = (
        f"One step on {NETWORK} with {BATCH} examples: {short(cost.flops)} operations, {ratio:.2f} times those of "
        f"backpropagation; {cost.calls} calls of torch; {short(cost.state)} bytes of state "
        f"(`program.cost({BATCH})`)."
    )
    times = {rule: float(row["ms a step"]) for rule, row in digits.items() if rule in (name, "backprop")}
    if name != "backprop" and len(times) == 2:
        text += (
            f" On the [bench](../bench.md) a step there took {times[name] / times['backprop']:.1f} times as long as "
            "one of backpropagation; a network as small as that spends most of its time between calls."
        )
    return f"## Cost\n\n{text}"


def _where(row: dict[str, str]) -> str:
    notes = dict(re.findall(r"^(\d+)\. (.*)$", (DOCS / "matrix.md").read_text(), re.MULTILINE))
    lines = ["## Where it runs", "", "From [the matrix](../matrix.md), which a test holds to the code.", ""]
    lines += ["| architecture | learns | |", "| --- | --- | --- |"]
    for architecture, text in row.items():
        number = re.search(r" \((\d+)\)", text)
        note = notes[number[1]] if number else ""
        lines.append(f"| `{architecture}` | {text.partition(' (')[0]} | {cell(note)} |")
    return "\n".join(lines)


def _measured(name: str, bench: Tables) -> str:
    problems = {heading: rows for heading, rows in bench.items() if name in rows and len(rows[name]) > 4}
    page = (DOCS / "bench.md").read_text()
    refused = re.findall(rf"^- `{name}`(?: on (.*?))?: (.*)$", page, re.MULTILINE)
    lines = ["## Measured", "", "By the same search for every rule, see [the bench](../bench.md) for its command.", ""]
    if not problems:
        return "\n".join(["## Measured", "", "It is not on [the bench](../bench.md)."])
    lines += ["| problem | | this rule | backprop | readout only |", "| --- | --- | ---: | ---: | ---: |"]
    for heading, rows in problems.items():
        score = next(iter(rows[name]))
        shown = [rows[one][score] if one in rows else "" for one in (name, "backprop", "readout_only")]
        lines.append("| " + " | ".join([cell(heading), score, *shown]) + " |")
    lines += ["", "What it cannot do there:", ""] if refused else []
    lines += [f"- {where or 'by its name alone'}: {markdown(why).strip()}" for where, why in refused]
    return "\n".join(lines)


def _agents(program: mg.Program) -> str:
    code = textwrap.dedent(agents_text(program.graph)).rstrip()
    return f"## What each agent does\n\nThe methods that run in the passes above.\n\n```python\n{code}\n```"


def _more(rule: mg.Protocol) -> str:
    """Where the page of rules tells of this one."""
    text, name = (DOCS / "protocols.md").read_text(), type(rule).__name__
    place = text.find(f"`{name}`")
    found = re.findall(r"^#+ (.*)$", text[:place], re.MULTILINE)[1:] if place >= 0 else []
    anchor = "#" + re.sub(r"[^\w\s-]", "", found[-1]).strip().lower().replace(" ", "-") if found else ""
    return (
        f"## More\n\n[What was measured with it]({'../protocols.md' + anchor}) and "
        f"[its class](../api/protocols.md#{name}) in the reference."
    )


def _picture(program: mg.Program) -> str:
    target = io.BytesIO()
    plots.save(program.graph.draw(), target)
    return target.getvalue().decode()
