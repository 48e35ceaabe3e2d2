"""Where boxes and lines of a diagram go: layers along its links, few crossings, long lines around what lies between.

The steps are those of Sugiyama, Tagawa and Toda (1981), "Methods for visual understanding of hierarchical system
structures": layers by longest path, order within layers by barycenters, then positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from graphlib import TopologicalSorter
from itertools import pairwise

from .diagrams import Diagram

Point = tuple[float, float]
Place = str | tuple[str, int]  # a box by name, or the passage of a long line by another layer: (from which box, layer)

TRACK = 0.13  # between the lines of one pair; lengths are in inches
CORNER = 0.1  # of a box that lines keep clear of
APART = 0.22  # between boxes of a layer
GAP, SHORT_GAP = 0.36, 0.2  # between layers, at least; the short one on either side of labels
WIDEST = 12.0  # a diagram that would be wider runs from top to bottom


@dataclass
class Layout:
    """Where everything goes, in inches from the lower left corner.

    Attributes:
        boxes: left, bottom, width and height of each box.
        paths: for each line of the diagram its points: a straight piece to the second, a cubic Bezier curve by the
            third and fourth to the fifth, again a straight piece, and so on to a straight end.
        width, height: of the whole.
        down: whether it runs from top to bottom, and not from left to right.
    """

    boxes: dict[str, tuple[float, float, float, float]]
    paths: list[list[Point]]
    width: float
    height: float
    down: bool


def arrange(diagram: Diagram, sizes: dict[str, Point]) -> Layout:
    """Place the boxes in layers along the links, and lead long lines around what lies between.

    Args:
        diagram: what to place.
        sizes: width and height that each box needs for its text.
    """
    return _Arrangement(diagram, sizes).layout()


class _Arrangement:
    """Positions as (along the links, across them); a box has a layer and a position across."""

    def __init__(self, diagram: Diagram, sizes: dict[str, Point]) -> None:
        self.diagram = diagram
        self.layer = _layers(diagram)
        layers = range(1 + max(self.layer.values()))
        widths = [max(sizes[n][0] for n, k in self.layer.items() if k == i) for i in layers]
        self.down = sum(widths) + GAP * len(widths) > WIDEST
        self.depth = {name: size[self.down] for name, size in sizes.items()}  # along
        self.routes = {link: self._route(*link) for link in diagram.links}
        self.steps = list(dict.fromkeys(step for r in self.routes.values() for step in pairwise(r)))
        self.before: dict[Place, list[Place]] = {place: [] for place in self.layer}
        self.after: dict[Place, list[Place]] = {place: [] for place in self.layer}
        for one, two in self.steps:
            self.after.setdefault(one, []).append(two)
            self.before.setdefault(two, []).append(one)
        self._tracks()
        self.breadth: dict[Place, float] = {  # across
            place: self._breadth(place, sizes[place][not self.down] if isinstance(place, str) else 0.0)
            for place in self.before
        }
        self.rows = self._order([[p for p in self.before if self._layer(p) == i] for i in layers])
        self.across = self._across()
        self.into = {name: self._ports(name, self.before[name], False) for name in self.layer}
        self.out = {name: self._ports(name, self.after[name], True) for name in self.layer}

    def _layer(self, place: Place) -> int:
        return self.layer[place] if isinstance(place, str) else place[1]

    def _route(self, first: str, last: str) -> list[Place]:
        """Long lines from one box share their passages, and look like a trunk with branches."""
        return [first, *((first, i) for i in range(self.layer[first] + 1, self.layer[last])), last]

    # -- lines side by side -------------------------------------------------------------------------------

    def _trunk(self, link: tuple[str, str]) -> Place | tuple[str, str]:
        return link if len(self.routes[link]) == 2 else link[0]

    def _tracks(self) -> None:
        """For each trunk its tracks, and for each line its own."""
        groups, seen = list(self.diagram.strokes), dict[tuple[str, str, str], int]()
        self.track: list[tuple[int, bool, int]] = []
        self.tracks: dict[object, list[tuple[int, bool, int]]] = {}
        for line in self.diagram.lines:
            link, same = self.diagram.link_of(line), (line.source, line.target, line.group)
            seen[same] = seen.get(same, -1) + 1
            self.track.append((groups.index(line.group), link != same[:2], seen[same]))
            self.tracks.setdefault(self._trunk(link), []).append(self.track[-1])
        self.tracks = {trunk: sorted(set(tracks)) for trunk, tracks in self.tracks.items()}

    def _room(self, one: Place, two: Place) -> float:
        """Breadth of the lines between two places that follow each other."""
        trunk = (one, two) if isinstance(one, str) and isinstance(two, str) else one if isinstance(one, str) else one[0]
        return TRACK * (len(self.tracks.get(trunk, ())) - 1) if trunk in self.tracks else 0.0

    def _breadth(self, place: Place, text: float) -> float:
        sides = (
            [self._room(p, place) for p in self.before.get(place, ())],
            [self._room(place, p) for p in self.after.get(place, ())],
        )
        if not isinstance(place, str):
            return max(sides[0])
        return max([text] + [sum(side) + TRACK * (len(side) - 1) + 2 * CORNER for side in sides])

    # -- order within layers ------------------------------------------------------------------------------

    def _order(self, rows: list[list[Place]]) -> list[list[Place]]:
        """Few crossings: each layer is sorted by the mean position of its neighbors, to and fro."""
        best, fewest = rows, self._crossings(rows)
        for sweep in range(12):
            if not fewest:
                break
            rows = [list(row) for row in rows]
            forth = sweep % 2 == 0
            for i in range(1, len(rows)) if forth else range(len(rows) - 2, -1, -1):
                index = {place: k for k, place in enumerate(rows[i - 1 if forth else i + 1])}
                around = self.before if forth else self.after
                means = {
                    place: sum(index[p] for p in near) / len(near) if (near := around.get(place)) else k
                    for k, place in enumerate(rows[i])
                }
                rows[i].sort(key=means.__getitem__)
            crossings = self._crossings(rows)
            if crossings < fewest:
                best, fewest = rows, crossings
        return best

    def _crossings(self, rows: list[list[Place]]) -> int:
        index = {place: k for row in rows for k, place in enumerate(row)}
        count = 0
        for row in rows[:-1]:
            ends = [sorted(index[after] for after in self.after.get(place, ())) for place in row]
            count += sum(b > d for i, two in enumerate(ends) for one in ends[:i] for b in one for d in two)
        return count

    # -- positions across ---------------------------------------------------------------------------------

    def _weight(self, one: Place, two: Place) -> float:
        """How much a line wants to be straight: the main path most, then long lines, then side inputs."""
        passages = (not isinstance(one, str)) + (not isinstance(two, str))
        if passages:
            return 10.0 if passages == 2 else 1.0
        side = {self.diagram.boxes[p].kind for p in (one, two) if isinstance(p, str)} & {"bias", "target", "constant"}
        skip = self.before[one] and not any(isinstance(p, str) for p in self.before[one])  # a long line leads to it
        return 1.0 if side or skip else 1000.0

    def _across(self) -> dict[Place, float]:
        """Every place near the weighted median of its neighbors, none too near the next."""
        across: dict[Place, float] = {}
        gaps = []
        for row in self.rows:
            gaps.append([
                (self.breadth[a] + self.breadth[b]) / 2 + (APART if isinstance(a, str) or isinstance(b, str) else TRACK)
                for a, b in pairwise(row)
            ])  # fmt: skip
            across.update(zip(row, _settle([0.0] * len(row), [1.0] * len(row), gaps[-1]), strict=True))
        for sweep in range(24):
            forth = sweep % 2 == 0
            for i in range(len(self.rows)) if forth else reversed(range(len(self.rows))):
                wanted, weights = [], []
                for place in self.rows[i]:
                    near = [(across[p], self._weight(p, place)) for p in self.before.get(place, ()) if forth]
                    near += [(across[p], self._weight(place, p)) for p in self.after.get(place, ()) if not forth]
                    wanted.append(_median(near) if near else across[place])
                    weights.append(sum(w for _, w in near) or 0.1)
                across.update(zip(self.rows[i], _settle(wanted, weights, gaps[i]), strict=True))
        return across

    # -- points -------------------------------------------------------------------------------------------

    def _bands(self) -> list[Point]:
        """Where each layer starts and ends; steep lines get more room between layers."""
        bands, start = list[Point](), 0.0
        for row, after in zip(self.rows, [*self.rows[1:], []], strict=True):
            end = start + max((self.depth[p] for p in row if isinstance(p, str)), default=0.0)
            bands.append((start, end))
            jumps = [abs(self.across[p] - self.across[q]) for p in row for q in self.after.get(p, ())]
            kinds = [{self.diagram.boxes[p].kind for p in near if isinstance(p, str)} for near in (row, after)]
            start = end + (SHORT_GAP if {"label"} in kinds else GAP) + min(0.1 * max(jumps, default=0.0), 0.8)
        return bands

    def _span(self, place: Place, room: float) -> Point:
        """Where the middle of lines may meet a place."""
        box = self.diagram.boxes[place] if isinstance(place, str) else None
        reach = (self.breadth[place] - room) / 2 - CORNER if box and box.kind != "label" else 0.0
        return self.across[place] - reach, self.across[place] + reach

    def _ports(self, name: str, others: Sequence[Place], out: bool) -> dict[Place, float]:
        """Where lines meet one side of a box: straight across from the other end if possible."""
        others = sorted(others, key=self.across.__getitem__)
        rooms = [self._room(name, p) if out else self._room(p, name) for p in others]
        ports = []
        for place, room in zip(others, rooms, strict=True):
            low, high = self._span(name, room)
            start, end = self._span(place, room)
            ports.append(min(max((max(low, start) + min(high, end)) / 2, low), high))
        between = [(a + b) / 2 + TRACK for a, b in pairwise(rooms)]
        for i, gap in enumerate(between):
            ports[i + 1] = max(ports[i + 1], ports[i] + gap)
        for i in reversed(range(len(ports))):
            limit = self._span(name, rooms[i])[1] if i == len(between) else ports[i + 1] - between[i]
            ports[i] = min(ports[i], limit)
        return dict(zip(others, ports, strict=True))

    def _path(self, link: tuple[str, str], track: tuple[int, bool, int], bands: list[Point]) -> list[Point]:
        """Straight within layers, curved between them."""
        route, tracks = self.routes[link], self.tracks[self._trunk(link)]
        shift = TRACK * (tracks.index(track) - (len(tracks) - 1) / 2)
        ends = self.out[link[0]][route[1]], self.into[link[1]][route[-2]]
        points: list[Point] = []
        for place, across in zip(route, [ends[0], *(self.across[p] for p in route[1:-1]), ends[1]], strict=True):
            low, high = bands[self._layer(place)]
            if place == link[0]:
                low = (low + high + self.depth[link[0]]) / 2
            elif place == link[1]:
                high = (low + high - self.depth[link[1]]) / 2
            across += shift
            if points:
                last, before = points[-1]
                # Of lines side by side, the one on the inside of the bend turns first, so that they stay apart.
                turn = (last + low) / 2 - (shift if across > before else -shift if across < before else 0.0)
                points += [(turn, before), (turn, across)]
            points += [(low, across), (high, across)]
        return points

    def layout(self) -> Layout:
        """All in inches."""
        bands = self._bands()
        start = min(self.across[p] - self.breadth[p] / 2 for p in self.across)
        end = max(self.across[p] + self.breadth[p] / 2 for p in self.across)
        length, breadth = bands[-1][1], end - start

        def point(along: float, across: float) -> Point:
            return (across - start, length - along) if self.down else (along, end - across)

        boxes = {}
        for name, layer in self.layer.items():
            middle, depth, half = sum(bands[layer]) / 2, self.depth[name], self.breadth[name] / 2
            corners = [point(middle + s * depth / 2, self.across[name] + s * half) for s in (-1, 1)]
            (left, right), (bottom, top) = (sorted(values) for values in zip(*corners, strict=True))
            boxes[name] = (left, bottom, right - left, top - bottom)
        paths = []
        for line, own in zip(self.diagram.lines, self.track, strict=True):
            points = [point(*place) for place in self._path(self.diagram.link_of(line), own, bands)]
            paths.append(points[::-1] if own[1] else points)
        size = (breadth, length) if self.down else (length, breadth)
        return Layout(boxes, paths, *size, self.down)


def _layers(diagram: Diagram) -> dict[str, int]:
    """Longest path from the start; what nothing holds back moves to where it is used."""
    before: dict[str, list[str]] = {name: [] for name in diagram.boxes}
    after: dict[str, list[str]] = {name: [] for name in diagram.boxes}
    for one, two in diagram.links:
        before[two].append(one)
        after[one].append(two)
    order = list(TopologicalSorter(before).static_order())
    layer = dict.fromkeys(diagram.boxes, 0)
    for name in order:
        layer[name] = max((layer[p] + 1 for p in before[name]), default=0)
    for name in reversed(order):
        if after[name] and len(after[name]) >= len(before[name]):
            layer[name] = min(layer[p] for p in after[name]) - 1
    return layer


def _median(values: list[tuple[float, float]]) -> float:
    """Weighted median; the middle of two where they weigh the same."""
    values = sorted(values)
    half, total, last = sum(weight for _, weight in values) / 2, 0.0, values[0][0]
    for value, weight in values:
        if total >= half:
            return (last + value) / 2 if total == half else last
        last, total = value, total + weight
    return last


def _settle(wanted: Sequence[float], weights: Sequence[float], gaps: Sequence[float]) -> list[float]:
    """Positions nearest to the wanted ones (weighted squares) that keep the gaps: pooling of adjacent violators."""
    offsets = [0.0]
    for gap in gaps:
        offsets.append(offsets[-1] + gap)
    pools: list[tuple[float, float, int]] = []  # mean, weight, count
    for place, weight, offset in zip(wanted, weights, offsets, strict=True):
        pool = (place - offset, weight, 1)
        while pools and pools[-1][0] > pool[0]:
            mean, other, count = pools.pop()
            total = other + pool[1]
            pool = ((mean * other + pool[0] * pool[1]) / total, total, count + pool[2])
        pools.append(pool)
    means = [mean for mean, _, count in pools for _ in range(count)]
    return [mean + offset for mean, offset in zip(means, offsets, strict=True)]
