"""A diagram as a matplotlib figure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .diagrams import LOOKS, Box, Diagram, Line, Stroke
from .layout import Point, arrange

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TITLE, SMALL, LABEL = 8.0, 7.0, 6.5  # points
LEADING = 1.35  # height of a row of text, in sizes of its font
PADDING = 0.09  # lengths are in inches
HEAD = (0.1, 0.04)  # length and half the width of an arrow's head
MARGIN = 0.15
ENTRY = (1.75, 0.21)  # of the legend


def _fonts(box: Box) -> list[tuple[str, float, str]]:
    """Rows of a box with the size and weight of their fonts."""
    if box.kind == "label":
        return [(row, LABEL, "normal") for row in box.lines]
    return [(box.name, TITLE, "bold"), *((row, SMALL, "normal") for row in box.lines)]


def _size(box: Box) -> Point:
    """Width and height that a box needs for its text."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextPath

    rows = _fonts(box)
    paths = [
        TextPath((0, 0), text.replace("$", "S") or " ", size=size, prop=FontProperties(weight=weight))
        for text, size, weight in rows
    ]
    width = max(float(path.get_extents().x1) for path in paths) / 72
    height = sum(size for _, size, _ in rows) * LEADING / 72
    padding = (0.06, 0.04) if box.kind == "label" else (PADDING, 0.06)
    return width + 2 * padding[0], height + 2 * padding[1]


def figure(diagram: Diagram) -> Figure:
    """Boxes, lines and a legend, as large as the text needs; labels must be boxes."""
    from matplotlib.figure import Figure  # no display, no global state

    layout = arrange(diagram, {name: _size(box) for name, box in diagram.boxes.items()})
    handles = _legend(diagram)
    width, height = layout.width + 2 * MARGIN, layout.height + 2 * MARGIN
    if layout.down:  # the legend stands on the right, else below
        columns, right, below = 1, ENTRY[0] + MARGIN, 0.0
        total = (width + right, max(height, ENTRY[1] * (len(handles) + 1)))
    else:
        columns = min(len(handles), max(1, int(width / ENTRY[0])))
        below = ENTRY[1] * -(-len(handles) // columns)
        total = (max(width, columns * ENTRY[0] + MARGIN), height + below)
    result = Figure(figsize=total)
    left, bottom = (0.0, total[1] - height) if layout.down else ((total[0] - width) / 2, below)
    axes = result.add_axes((left / total[0], bottom / total[1], width / total[0], height / total[1]))
    axes.set(xlim=(-MARGIN, layout.width + MARGIN), ylim=(-MARGIN, layout.height + MARGIN))
    axes.set_axis_off()
    for line, points in zip(diagram.lines, layout.paths, strict=True):
        _draw_line(axes, line, diagram.strokes[line.group], points, layout.down)
    for name, box in diagram.boxes.items():
        _draw_box(axes, box, layout.boxes[name])
    where: Any = "upper right" if layout.down else "lower center"
    result.legend(handles=handles, loc=where, ncols=columns, fontsize=SMALL, frameon=False, handlelength=3.2)
    return result


def _draw_box(axes: Axes, box: Box, place: tuple[float, float, float, float]) -> None:
    from matplotlib.patches import PathPatch

    left, bottom, width, height = place
    if box.kind != "label":
        look = LOOKS[box.kind]
        edge = 1.4 if box.kind in ("output", "loss") else 0.8
        outline = PathPatch(_outline(place, look.shape), facecolor=look.fill, edgecolor="#444444", linewidth=edge)
        outline.set_gid(box.name)
        axes.add_patch(outline)
    rows = _fonts(box)
    y = bottom + height / 2 + sum(size for _, size, _ in rows) * LEADING / 144
    for text, size, weight in rows:
        y -= size * LEADING / 72
        color = "#444444" if box.kind == "label" else "black"
        baseline = y + size * (LEADING - 0.75) / 144
        axes.text(
            left + width / 2, baseline, text, size=size, weight=weight, color=color, ha="center", parse_math=False
        )


def _outline(place: tuple[float, float, float, float], shape: str) -> Any:
    """A rectangle with plain, cut or rounded corners."""
    from matplotlib.path import Path

    left, bottom, width, height = place
    corner = {"square": 0.0, "cut": 0.09, "round": 0.09, "pill": min(0.17, height / 2, width / 2)}[shape]
    right, top = left + width, bottom + height
    points, codes = [], []
    for (x, y), (dx, dy), (ex, ey) in (
        ((left, bottom), (0, 1), (1, 0)),
        ((right, bottom), (-1, 0), (0, 1)),
        ((right, top), (0, -1), (-1, 0)),
        ((left, top), (1, 0), (0, -1)),
    ):
        points += [(x + corner * dx, y + corner * dy), (x, y), (x + corner * ex, y + corner * ey)]
        codes += [Path.LINETO, Path.CURVE3, Path.CURVE3]
    if shape == "cut":
        points, codes = [p for i, p in enumerate(points) if i % 3 != 1], [Path.LINETO] * 8
    codes[0] = Path.MOVETO
    return Path([*points, points[0]], [*codes, Path.CLOSEPOLY])


def _draw_line(axes: Axes, line: Line, stroke: Stroke, points: list[Point], down: bool) -> None:
    """Straight within layers, curved between them, with a head whose tip is the last point."""
    from matplotlib.patches import PathPatch, Polygon
    from matplotlib.path import Path

    axis = int(down)
    along = HEAD[0] if points[-1][axis] > points[0][axis] else -HEAD[0]
    tip, points = points[-1], list(points)
    if line.head:
        base = tip[axis] - along
        wings = [(base, tip[1 - axis] - HEAD[1]), (base, tip[1 - axis] + HEAD[1])]
        head = Polygon([tip, *(wing[:: 1 - 2 * axis] for wing in wings)], color=stroke.color, linewidth=0)
        head.set_gid(f"{line.group}: head at {line.target}")
        axes.add_patch(head)
        for i in (-3, -2, -1):  # the line ends where the head begins
            short = min(points[i][axis] * along, base * along) / along
            points[i] = (short, points[i][1]) if axis == 0 else (points[i][0], short)
    codes = [Path.MOVETO] + [Path.LINETO, *[Path.CURVE4] * 3] * (len(points) // 4) + [Path.LINETO]
    patch = PathPatch(Path(points, codes), fill=False, edgecolor=stroke.color, linewidth=1.2, linestyle=_style(stroke))
    patch.set_gid(f"{line.group}: {line.source} => {line.target}")
    axes.add_patch(patch)


def _style(stroke: Stroke) -> Any:
    return (0, stroke.dashes) if stroke.dashes else "solid"


def _legend(diagram: Diagram) -> list[Any]:
    """A patch for each kind of box and a line for each group of lines."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    kinds = {box.kind for box in diagram.boxes.values()} - {"label"}
    handles: list[Any] = [
        Patch(facecolor=look.fill, edgecolor="#444444", label=kind) for kind, look in LOOKS.items() if kind in kinds
    ]
    used = {line.group for line in diagram.lines}
    for group, stroke in diagram.strokes.items():
        if group in used:
            handles.append(Line2D([], [], color=stroke.color, linestyle=_style(stroke), linewidth=1.2, label=group))
        else:
            handles.append(Line2D([], [], linestyle="none", label=f"{group} (no messages)"))
    return handles
