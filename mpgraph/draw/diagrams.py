"""Diagrams: boxes joined by lines, and the text of one for Mermaid and Graphviz."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import NamedTuple


class Look(NamedTuple):
    """How boxes of one type look."""

    fill: str
    shape: str  # a key of SHAPES


class Stroke(NamedTuple):
    """How lines of a group look; ``dashes`` are lengths on and off, none for a solid line."""

    color: str
    dashes: tuple[float, ...] = ()


LOOKS = {
    "input": Look("#cfe3f5", "pill"),
    "unit": Look("#fff2c9", "round"),
    "operation": Look("#e4dcf1", "cut"),
    "output": Look("#ffd3a1", "round"),
    "weight": Look("#d5ecd0", "square"),
    "bias": Look("#eef7ec", "square"),
    "delay": Look("#f3e3c3", "pill"),
    "loss": Look("#f7cfd3", "cut"),
    "target": Look("#cdecec", "pill"),
    "constant": Look("#e9e9e9", "pill"),
    "label": Look("#ffffff", "none"),  # the text of a line
}
SHAPES = {  # in Mermaid, and in Graphviz
    "square": ('["{}"]', 'shape=box style="filled"'),
    "round": ('("{}")', 'shape=box style="filled,rounded"'),
    "cut": ('{{{{"{}"}}}}', 'shape=octagon style="filled"'),
    "pill": ('(["{}"])', 'shape=oval style="filled"'),
}


@dataclass(frozen=True)
class Box:
    """A name and what is written below it."""

    name: str
    kind: str  # a key of LOOKS
    lines: tuple[str, ...] = ()


@dataclass(frozen=True)
class Line:
    """From one box to another; ``group`` is a key of the diagram's strokes."""

    source: str
    target: str
    group: str
    label: str = ""
    head: bool = True


@dataclass
class Diagram:
    """Boxes, lines, and what lies before what.

    Attributes:
        boxes: by name.
        lines: between boxes, either along a link or against it, or from a box to itself.
        links: pairs of boxes of which the first lies before the second; one that closes a cycle is turned round.
        strokes: of the groups of lines; groups without lines are named in the legend all the same.
    """

    boxes: dict[str, Box]
    lines: list[Line]
    links: list[tuple[str, str]]
    strokes: dict[str, Stroke]

    def __post_init__(self) -> None:
        self.links = _without_cycles(self.boxes, list(dict.fromkeys(self.links)))
        self._known = set(self.links)

    def link_of(self, line: Line) -> tuple[str, str]:
        """The link along or against which a line runs."""
        here = (line.source, line.target)
        return here if here in self._known else here[::-1]

    def labels_as_boxes(self) -> Diagram:
        """The same with a box for each label in the middle of its line, so that labels have room of their own."""
        boxes, lines = dict(self.boxes), list[Line]()
        labelled = {self.link_of(line) for line in self.lines if line.label}
        labelled -= {self.link_of(line) for line in self.lines if not line.label}
        links = [link for link in self.links if link not in labelled]
        for number, line in enumerate(self.lines):
            if not line.label:
                lines.append(line)
                continue
            name = f"label {number}@"  # no unit can be called so
            boxes[name] = Box(name, "label", tuple(line.label.split("\n")))
            lines.append(replace(line, target=name, label="", head=False))
            lines.append(replace(line, source=name, label=""))
            first, last = self.link_of(line)
            links += [(first, name)] + ([(name, last)] if first != last else [])
        return Diagram(boxes, lines, links, self.strokes)


# -- text ---------------------------------------------------------------------------------------------------------


def mermaid(diagram: Diagram) -> str:
    """The diagram as a Mermaid flowchart."""
    ids = {name: f"n{i}" for i, name in enumerate(diagram.boxes)}
    rows = ["flowchart TD"]
    for box in diagram.boxes.values():
        shape = SHAPES[LOOKS[box.kind].shape][0].format("<br/>".join(map(_html, (box.name, *box.lines))))
        rows.append(f"  {ids[box.name]}{shape}:::{box.kind}")
    for line in diagram.lines:
        label = "<br/>".join(map(_html, line.label.split("\n")))
        text = f'|"{label}"|' if label else ""
        rows.append(f"  {ids[line.source]} -->{text} {ids[line.target]}")
    for kind in dict.fromkeys(box.kind for box in diagram.boxes.values()):
        rows.append(f"  classDef {kind} fill:{LOOKS[kind].fill},stroke:#444,color:#000")
    for group, stroke in diagram.strokes.items():
        numbers = ",".join(str(i) for i, line in enumerate(diagram.lines) if line.group == group)
        dashes = f",stroke-dasharray:{' '.join(map(str, stroke.dashes))}" if stroke.dashes else ""
        if numbers:
            rows.append(f"  linkStyle {numbers} stroke:{stroke.color}{dashes}")
    return "\n".join(rows) + "\n"


def graphviz(diagram: Diagram) -> str:
    """The diagram in the language of Graphviz's dot."""
    rows = ["digraph {", '  node [fontname="sans-serif"]', '  edge [fontname="sans-serif"]']
    for box in diagram.boxes.values():
        look = LOOKS[box.kind]
        text = _quoted("\n".join((box.name, *box.lines)))
        rows.append(f'  {_quoted(box.name)} [label={text} {SHAPES[look.shape][1]} fillcolor="{look.fill}"]')
    for line in diagram.lines:
        stroke = diagram.strokes[line.group]
        style = "solid" if not stroke.dashes else "dotted" if stroke.dashes[0] < 2 else "dashed"
        attributes = [f'color="{stroke.color}"', f"style={style}"]
        attributes += [f"label={_quoted(line.label)}"] if line.label else []
        attributes += ["constraint=false"] if diagram.link_of(line) != (line.source, line.target) else []
        rows.append(f"  {_quoted(line.source)} -> {_quoted(line.target)} [{' '.join(attributes)}]")
    return "\n".join([*rows, "}"]) + "\n"


def _html(text: str) -> str:
    for mark, code in (("#", "#35;"), ("&", "#amp;"), ('"', "#quot;"), ("<", "#lt;"), (">", "#gt;")):
        text = text.replace(mark, code)
    return text


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'


def _without_cycles(boxes: Iterable[str], links: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """The links, those turned round that lead back to where a walk along the others came from."""
    after: dict[str, list[str]] = {name: [] for name in boxes}
    for one, two in links:
        after.setdefault(one, []).append(two)
    entered, left, back = set[str](), set[str](), set[tuple[str, str]]()
    for start in after:
        walk = [(start, iter(after[start]))] if start not in entered else []
        entered.add(start)
        while walk:
            box, others = walk[-1]
            step = next(others, None)
            if step is None:
                left.add(box)
                walk.pop()
            elif step not in entered:
                entered.add(step)
                walk.append((step, iter(after.get(step, ()))))
            elif step not in left:
                back.add((box, step))
    turned = [link[::-1] if link in back else link for link in links]
    return [link for link in dict.fromkeys(turned) if link[0] != link[1]]
