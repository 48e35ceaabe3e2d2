"""Pictures show what was drawn: the oracle is the network or agent graph itself."""

import html
import itertools
import json
import re
from collections import Counter

import hypothesis
import hypothesis.strategies as st
import matplotlib.colors
import networkx
import numpy as np
import pytest
import torch
import torch_geometric
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.path import Path as Outline
from refusals import refuses

import mpgraph as mg
from mpgraph.architectures import mlp
from mpgraph.cli import main
from mpgraph.draw.diagrams import Box, Diagram, Line, Stroke
from mpgraph.draw.layout import arrange
from mpgraph.draw.neurons import synapses
from mpgraph.graph.wiring import AgentGraph
from mpgraph.protocols import Backprop


def residual():
    network = mg.Network()
    network.input("x", (3, 8, 8))
    below = network.unit("stem", (4, 8, 8), "relu")
    network.connect("x", "stem", mg.Conv2d(3, padding=1))
    for i in (1, 2):
        one = network.unit(f"norm{i}", (4, 8, 8), mg.BatchNorm(), bias=False)
        two = network.unit(f"sum{i}", (4, 8, 8), "relu")
        network.connect(below, one, mg.Conv2d(3, padding=1))
        network.connect(one, two, mg.Conv2d(3, padding=1))
        network.connect(below, two, "identity")
        below = two
    network.operation("pool", mg.MaxPool(2), below)
    network.operation("flat", "flatten", "pool")
    network.unit("y", 5)
    network.connect("flat", "y")
    network.loss("y", "cross_entropy")
    return network


def recurrent():
    network = mg.Network(ticks=3)
    network.input("x", 4), network.unit("h", 5, "tanh"), network.unit("y", 2)
    network.connect("x", "h"), network.connect("h", "y")
    network.connect("h", "h", delay=1), network.connect("y", "h", delay=2)
    network.loss("y", "l2")
    return network


def mixed():
    """Two inputs and losses, a gate, tied, fixed and doubled connections, and a name with signs in it."""
    network = mg.Network()
    network.input("x", 6), network.input('the "context" $^$', 3)
    network.unit("a", 4, "tanh"), network.unit("b", 4, "relu"), network.unit("y", 2), network.unit("z", 6)
    network.connect("x", "a"), network.connect('the "context" $^$', "b")
    network.connect("a", "b", "one_to_one", trained=False), network.connect("a", "b", "identity")
    network.connect("a", "z", tied="x->a", transposed=True)
    network.operation("gate", "product", "a", "b")
    network.connect("gate", "y"), network.connect("x", "y")
    network.loss("y", "cross_entropy"), network.loss("z", "l2")
    return network


NETWORKS = {"chain": lambda: mlp([6, 5, 4]), "residual": residual, "recurrent": recurrent, "mixed": mixed}


@pytest.fixture(scope="module", params=NETWORKS)
def network(request):
    return NETWORKS[request.param]()


@pytest.fixture(scope="module", params=["network", "graph"])
def drawn(request, network):
    """A network or its agent graph."""
    return network if request.param == "network" else AgentGraph(network, Backprop())


@pytest.fixture(scope="module")
def figure(drawn):
    return drawn.draw()


def text(shape):
    return "x".join(map(str, shape)) or "single"


def nodes(drawn):
    """Names, and the size that is written with each; nodes of earlier ticks are not drawn."""
    if isinstance(drawn, AgentGraph):
        found = {n: v.kept if "weight" in v.types else v.axes for n, v in drawn.nodes.items() if "@" not in n}
        return {name: text(axis.size for axis in axes) for name, axes in found.items()}
    return {name: text(drawn.shape(name)) for name in (*drawn.units, *drawn.losses)}


def folded(graph, passes=("forward", "backward", "learn")):
    """Ends of the arrows of an agent graph, those of all ticks once."""
    found = {}
    for number, arrow in enumerate(graph.all_arrows()):
        ends = [name.partition("@")[0] for name in (arrow.source.name, arrow.target.name)]
        late = arrow.target.tick - arrow.source.tick if "loss" not in ends and "y.target" not in ends else 0
        several = graph.network.ticks > 1
        if arrow.pass_name in passes:
            found[arrow.pass_name, *ends, arrow.role, several or number, late if {"h", "y"} & {*ends} else 0] = ends
    return Counter(map(tuple, found.values()))


def pairs(drawn):
    """Ends of all lines."""
    if isinstance(drawn, AgentGraph):
        return folded(drawn)
    found = [(wire.pre, wire.post) for wire in drawn.wires.values()]
    found += [(operand, unit.name) for unit in drawn.units.values() for operand in unit.operands]
    return Counter(found + [(loss.pre, loss.name) for loss in drawn.losses.values()])


# -- networkx -----------------------------------------------------------------------------------------------------


def test_networkx_has_every_node_and_edge(network):
    graph = network.to_networkx()
    assert isinstance(graph, networkx.MultiDiGraph)
    assert {name: data["shape"] for name, data in graph.nodes(data=True)} == {
        name: text(network.shape(name)) for name in (*network.units, *network.losses)
    }
    assert Counter(graph.edges()) == pairs(network)
    wires = {key: (u, v) for u, v, key, kind in graph.edges(keys=True, data="kind") if kind == "connection"}
    assert wires == {wire.name: (wire.pre, wire.post) for wire in network.wires.values()}


def test_networkx_tells_what_is_drawn():
    graph = mixed().to_networkx()
    kinds = {name: data["kind"] for name, data in graph.nodes(data=True)}
    assert kinds == {
        "x": "input", 'the "context" $^$': "input", "a": "unit", "b": "unit", "gate": "operation", "y": "output",
        "z": "output", "loss": "loss", "z.loss": "loss",
    }  # fmt: skip
    assert graph.nodes["a"]["function"] == "tanh"
    assert graph.nodes["gate"]["function"] == "product"
    assert graph.edges["a", "b", "a->b"]["connection"] == "one_to_one"
    trained = {key: data["trained"] for *_, key, data in graph.edges(keys=True, data=True) if "trained" in data}
    assert [name for name, value in trained.items() if not value] == ["a->b", "a->b#1"]
    assert (graph.edges["a", "z", "a->z"]["tied"], graph.edges["a", "z", "a->z"]["transposed"]) == ("x->a", True)
    assert [graph.edges[pre, "gate", "operand"]["position"] for pre in ("a", "b")] == [0, 1]
    assert recurrent().to_networkx().edges["y", "h", "y->h"]["delay"] == 2


@pytest.mark.parametrize("kind", ["graphml", "gexf"])
def test_graphs_are_written_and_read_back(drawn, kind, tmp_path):
    graph, path = drawn.to_networkx(), tmp_path / f"graph.{kind}"
    getattr(networkx, f"write_{kind}")(graph, path)
    back = getattr(networkx, f"read_{kind}")(path)
    assert back.nodes.keys() == graph.nodes.keys()
    for name, data in graph.nodes(data=True):
        assert own(back.nodes[name]) == data
    assert Counter((u, v, *sorted(own(data).items())) for u, v, data in back.edges(data=True)) == Counter(
        (u, v, *sorted(data.items())) for u, v, data in graph.edges(data=True)
    )


def own(attributes):
    """Without what the formats add."""
    return {name: value for name, value in attributes.items() if name not in ("id", "label", "networkx_key")}


def test_functions_that_aggregate_are_written_by_name(tmp_path):
    class Largest(mg.Agent):
        aggregate = {"pre": torch_geometric.nn.aggr.MaxAggregation()}  # noqa: RUF012
        y = mg.fast()

        def forward_update(self, s, pre):
            return s.set(y=pre)

        def forward_message(self, s):
            return s.y

    network = mlp([3, 2]).copy()
    graph = AgentGraph(network, ForwardOnly(output=Largest())).to_networkx()
    assert graph.edges["x->y", "y", "forward:pre"]["how"] == "MaxAggregation"
    networkx.write_graphml(graph, tmp_path / "graph.graphml")


class ForwardOnly(Backprop):
    passes = ("forward",)


def test_fixed_weights_stay_fixed_where_they_are_tied():
    network = mlp([3, 3, 3]).copy()
    network.connect("x", "y", tied="x->h1")
    assert network.to_networkx().edges["x", "y", "x->y"]["trained"]
    assert not network.frozen("x->h1").to_networkx().edges["x", "y", "x->y"]["trained"]


# -- texts --------------------------------------------------------------------------------------------------------


def read_mermaid(code):
    """Rows of text by name, and lines as (source, target, label, color)."""
    plain = lambda t: html.unescape(t.replace("#", "&"))  # noqa: E731
    boxes = {n: plain(t).split("<br/>") for n, t in re.findall(r'^  (n\d+)\W+"(.*)"\W+:::\w+$', code, re.M)}
    found = re.findall(r'^  (n\d+) -->(?:\|"(.*)"\|)? (n\d+)$', code, re.M)
    colors = {}
    for numbers, color in re.findall(r"^  linkStyle ([\d,]+) stroke:(#\w+)", code, re.M):
        colors.update((int(n), color) for n in numbers.split(","))
    lines = [(boxes[a][0], boxes[b][0], plain(t).split("<br/>"), colors[i]) for i, (a, t, b) in enumerate(found)]
    return {rows[0]: rows[1:] for rows in boxes.values()}, lines


def read_graphviz(code):
    string = r'("(?:[^"\\]|\\.)*")'
    boxes = {json.loads(n): json.loads(t) for n, t in re.findall(rf"^  {string} \[label={string} ", code, re.M)}
    found = re.findall(rf"^  {string} -> {string} \[(.*)\]$", code, re.M)
    lines = []
    for one, two, rest in found:
        label = re.search(rf"label={string}", rest)
        color = re.search(r'color="(#\w+)"', rest)[1]
        lines.append((*map(json.loads, (one, two)), json.loads(label[1]).split("\n") if label else [""], color))
    assert all(rows.split("\n")[0] == name for name, rows in boxes.items())
    return {name: rows.split("\n")[1:] for name, rows in boxes.items()}, lines


READ = {"mermaid": read_mermaid, "graphviz": read_graphviz}


@pytest.mark.parametrize("format", READ)
def test_texts_have_every_node_and_line(drawn, format):
    boxes, lines = READ[format](drawn.draw(format=format))
    sizes = nodes(drawn)
    assert boxes.keys() == sizes.keys()
    assert all(any(row.endswith(sizes[name]) for row in rows) for name, rows in boxes.items())
    assert Counter((one, two) for one, two, *_ in lines) == pairs(drawn)


@pytest.mark.parametrize("format", READ)
def test_texts_name_the_connections(format):
    _, lines = READ[format](mixed().draw(format=format))
    labels = {(one, two): " ".join(label) for one, two, label, _ in lines if one != "a" or two != "b"}
    assert labels["x", "y"] == "dense"
    assert labels["a", "z"] == "dense weights of x->a transposed"
    assert labels["a", "gate"] == labels["z", "z.loss"] == ""
    assert {" ".join(label) for one, two, label, _ in lines if (one, two) == ("a", "b")} == {
        "identity",
        "one_to_one fixed",
    }
    _, lines = READ[format](recurrent().draw(format=format))
    assert {" ".join(label) for one, two, label, _ in lines if (one, two) == ("y", "h")} == {"dense delay 2"}


@pytest.mark.parametrize("format", READ)
def test_texts_tell_passes_apart(format):
    graph = AgentGraph(residual(), Backprop())
    _, lines = READ[format](graph.draw(format=format))
    colors = {}
    for (*_, color), arrow in zip(lines, graph.all_arrows(), strict=True):
        colors.setdefault(arrow.pass_name, set()).add(color)
    assert len(colors["forward"]) == len(colors["backward"]) == 1
    assert colors["forward"] != colors["backward"]


# -- figures ------------------------------------------------------------------------------------------------------


def parts(figure):
    """Extents of the boxes by name, and lines as (group, source, target, patch)."""
    boxes, lines = {}, []
    for patch in figure.axes[0].patches:
        name = patch.get_gid()
        if " => " in name:
            group, ends = name.split(": ", 1)
            lines.append((group, *ends.split(" => "), patch))
        elif ": head at " not in name:
            boxes[name] = patch.get_path().get_extents()
    return boxes, lines


def joined(lines):
    """Ends of lines, those to and from a label as one."""
    start = {two: one for _, one, two, _ in lines if two.startswith("label ")}
    return Counter((start.get(one, one), two) for _, one, two, _ in lines if not two.startswith("label "))


def test_figure_has_every_node_and_line(drawn, figure):
    boxes, lines = parts(figure)
    sizes = nodes(drawn)
    assert boxes.keys() == sizes.keys()
    assert joined(lines) == pairs(drawn)
    texts = {name: [] for name in boxes}
    for item in figure.axes[0].texts:
        x, y = item.get_position()
        inside = [name for name, box in boxes.items() if box.contains(x, y)]
        if inside:
            texts[inside[0]].append(item.get_text())
    for name, rows in texts.items():
        assert rows[0] == name
        assert any(row.endswith(sizes[name]) for row in rows[1:])


def test_figure_is_legible(figure):
    """Boxes apart from each other, text within its box or apart from all, lines outside boxes and from edge to edge."""
    renderer, transform = FigureCanvasAgg(figure).get_renderer(), figure.axes[0].transData
    names, lines = parts(figure)
    boxes = {name: box.transformed(transform) for name, box in names.items()}
    for one, two in itertools.combinations(boxes.values(), 2):
        assert not one.overlaps(two)
    texts = [item.get_window_extent(renderer) for item in figure.axes[0].texts]
    for item in texts:
        over = [box for box in boxes.values() if box.overlaps(item)]
        assert all(box.containsx(x) and box.containsy(y) for box in over for x, y in item.corners())
        assert len(over) <= 1
    for one, two in itertools.combinations(texts, 2):
        assert min(one.x1, two.x1) <= max(one.x0, two.x0) or min(one.y1, two.y1) - max(one.y0, two.y0) < 1
    legend = figure.legends[0].get_window_extent(renderer)
    assert not any(legend.overlaps(item) for item in (*boxes.values(), *texts))
    assert all(figure.bbox.padded(1).contains(x, y) for x, y in legend.corners())
    inner = [box.padded(-1) for box in boxes.values()]
    for _, source, target, patch in lines:
        points = along(patch.get_path().transformed(transform))
        for box in inner:
            low, high = box.min, box.max
            assert not ((points > low) & (points < high)).all(1).any(), (source, target)
        if source in boxes:
            assert boxes[source].padded(1).contains(*points[0])
    for patch in figure.axes[0].patches:
        if ": head at " in patch.get_gid():
            box = boxes[patch.get_gid().split(": head at ")[1]]
            tip = patch.get_path().transformed(transform).vertices[0]
            assert box.padded(1).contains(*tip)
            assert not box.padded(-1).contains(*tip)


def along(path):
    """Points on a path of curves, close together."""
    corners = Outline(path.vertices, path.codes).to_polygons(closed_only=False)[0]
    return np.concatenate([np.linspace(a, b, 20) for a, b in itertools.pairwise(corners)])


def test_passes_differ_in_color_and_style():
    graph = AgentGraph(residual(), Backprop())
    _, lines = parts(graph.draw())
    looks = {}
    for group, *_, patch in lines:
        color = matplotlib.colors.to_hex(patch.get_edgecolor())
        looks.setdefault(group, set()).add((color, str(patch.get_linestyle())))
    assert len(looks["forward"]) == len(looks["backward"]) == 1
    ((color, style),), ((other, style_of_other),) = looks["forward"], looks["backward"]
    assert color != other
    assert style != style_of_other


def test_lines_of_a_pair_lie_apart():
    _, lines = parts(AgentGraph(mlp([4, 3, 2]), Backprop()).draw())
    paths = {(one, two): along(patch.get_path()) for _, one, two, patch in lines}
    for one, two in (("h1", "h1->y"), ("h1.bias", "h1")):
        distance = np.linalg.norm(paths[one, two][:, None] - paths[two, one][None], axis=-1)
        assert distance.min() > 0.04  # inches


def test_legend_names_kinds_and_passes():
    graph = AgentGraph(residual(), Backprop())
    entries = {item.get_text() for item in graph.draw().legends[0].get_texts()}
    assert entries == {node.type for node in graph.nodes.values()} - {"batchnorm"} | {
        "forward",
        "backward",
        "learn (no messages)",
    }


def test_some_passes_alone():
    graph = AgentGraph(recurrent(), Backprop())
    whole, part = graph.draw(), graph.draw(passes=("backward",))
    boxes, lines = parts(part)
    assert joined(lines) == folded(graph, ("backward",))
    assert boxes.keys() == nodes(graph).keys()
    colors = [{patch.get_edgecolor() for g, *_, patch in parts(f)[1] if g == "backward"} for f in (whole, part)]
    assert colors[0] == colors[1]
    assert parts(graph.draw(passes="learn"))[1] == []


def test_kind_of_a_users_own_unit():
    class Cube(mg.Activation):
        def apply(self, z):
            return z**3

    network = mg.Network()
    network.input("x", 2), network.unit("h", 2, Cube()), network.unit("y", 1)
    network.connect("x", "h"), network.connect("h", "y"), network.loss("y", "l2")
    figure = AgentGraph(network, Backprop()).draw()
    assert "cube 2" in {item.get_text() for item in figure.axes[0].texts}


def test_long_networks_run_down_and_weights_lie_between():
    figure = AgentGraph(mlp([4] * 32), Backprop()).draw()
    width, height = figure.get_size_inches()
    assert height > 3 * width
    boxes, _ = parts(figure)
    order = ["x", *(name for i in range(1, 31) for name in (f"h{i}",)), "y"]
    for pre, post in itertools.pairwise(order):
        assert boxes[pre].y0 > boxes[f"{pre}->{post}"].y1
        assert boxes[f"{pre}->{post}"].y0 > boxes[post].y1


@hypothesis.given(st.integers(2, 9), st.data())
def test_layout_of_any_graph(count, data):
    """Links lead onwards, boxes keep apart, and no line passes through a box."""
    every = [(f"{i}", f"{j}") for j in range(count) for i in range(j)]
    links = data.draw(st.lists(st.sampled_from(every), min_size=1, max_size=14, unique=True))
    lines = [Line(*link, "g") for link in links] + [Line(*link[::-1], "g") for link in links[::2]]
    names = [str(i) for i in range(count)]
    diagram = Diagram({name: Box(name, "unit") for name in names}, lines, links, {"g": Stroke("#000000")})
    wide = data.draw(st.sampled_from([0.6, 4.0]))
    layout = arrange(diagram, {name: (wide, 0.3 + 0.1 * int(name)) for name in names})
    boxes = {name: np.array(box) for name, box in layout.boxes.items()}
    for (one, a), (two, b) in itertools.combinations(boxes.items(), 2):
        assert (a[:2] >= b[:2] + b[2:]).any() or (b[:2] >= a[:2] + a[2:]).any(), (one, two)
    for one, two in links:
        assert layout.boxes[one][1] > layout.boxes[two][1] if layout.down else boxes[one][0] < boxes[two][0]
    for path in layout.paths:
        codes = [Outline.MOVETO] + [Outline.LINETO, *[Outline.CURVE4] * 3] * (len(path) // 4) + [Outline.LINETO]
        points = along(Outline(100 * np.array(path), codes)) / 100
        for box in boxes.values():
            assert not ((points > box[:2] + 0.01) & (points < box[:2] + box[2:] - 0.01)).all(1).any()


# -- files and mistakes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("suffix", "start"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")])
def test_figures_are_written(tmp_path, suffix, start):
    path = tmp_path / f"picture.{suffix}"
    mlp([4, 3, 2]).draw(path)
    assert path.read_bytes().startswith(start)
    AgentGraph(mlp([4, 3, 2]), Backprop()).draw(str(path))
    assert path.read_bytes().startswith(start)


@pytest.mark.parametrize("format", READ)
def test_texts_are_written(tmp_path, drawn, format):
    path = tmp_path / "picture.txt"
    assert drawn.draw(path, format) == path.read_text(encoding="utf-8")


def test_mistakes_are_refused(tmp_path):
    network = mlp([4, 3, 2])
    graph = AgentGraph(network, Backprop())
    for drawn in (network, graph):
        with pytest.raises(mg.NetworkError, match="'mermaids'.*did you mean 'mermaid'"):
            drawn.draw(format="mermaids")
        with pytest.raises(mg.NetworkError, match=r"'.jpeg': allowed are .pdf, .png, .svg"):
            drawn.draw(tmp_path / "picture.jpeg")
    with pytest.raises(mg.ProtocolError, match="unknown pass 'forwards'.*did you mean 'forward'"):
        graph.draw(passes=("forwards",))
    with pytest.raises(mg.NetworkError, match="add an input"):
        mg.Network().draw()
    assert list(tmp_path.iterdir()) == []


def test_ticks_of_a_large_graph_are_drawn_once():
    """Three hundred neurons over twelve ticks take about as much room as over two."""
    edges = [(i, (7 * i + k) % 300) for i in range(300) for k in (1, 2)]
    graph = networkx.DiGraph([("in", 0), *edges, (299, "out")])
    sizes = []
    for ticks in (2, 12):
        network = mg.Network.from_networkx(graph, loss="l2", ticks=ticks, cycles="synchronous")
        sizes.append(AgentGraph(network, Backprop()).draw().get_size_inches() * 150)
    assert max(sizes[1]) < 4000
    assert abs(sizes[1] - sizes[0]).max() < 0.2 * sizes[0].max()


def test_messages_between_ticks_are_labelled():
    for graph in (AgentGraph(recurrent(), Backprop()), AgentGraph(recurrent(), Backprop(), sequences=True)):
        _, lines = read_mermaid(graph.draw(format="mermaid"))
        late = {(one, two, *label) for one, two, label, _ in lines if label[0]}
        assert late == {
            ("h", "h->h", "1 tick later"), ("y", "y->h", "2 ticks later"),
            ("h->h", "h", "1 tick earlier"), ("y->h", "y", "2 ticks earlier"),
        }  # fmt: skip
        assert ("at 3 ticks" in graph.draw(format="mermaid")) is not graph.sequences


# -- single neurons -----------------------------------------------------------------------------------------------


def found(figure, name, kind):
    """The dots of a unit, or the lines of a connection."""
    (one,) = [c for c in figure.axes[0].collections if c.get_gid() == name and isinstance(c, kind)]
    return one


def test_neurons_have_the_colors_of_their_activity_and_lines_the_weights():
    """Every line of a dense and a sparse connection, found again by its ends."""
    network = mg.Network()
    network.input("x", 3), network.unit("h", 4, "tanh"), network.unit("y", 2)
    network.connect("x", "h"), network.connect("h", "y", mg.Sparse([[0, 3, 1], [1, 0, 1]])), network.loss("y", "l2")
    program = mg.compile(network, Backprop())
    generator = torch.Generator().manual_seed(0)
    x, state = torch.randn(5, 3, generator=generator), program.init(seed=0)
    _, out = program.step(state, x, torch.zeros(5, 2), record={"h": ["y"]})
    figure = program.graph.draw(state=state, activity={"x": x, **out.recorded, "y": out.prediction[2]})
    shown = {"x": x[0], "h": torch.tanh(x[0] @ state["x->h"]["w"].T + state["h.bias"]["w"]), "y": out.prediction[2]}
    dots = {name: found(figure, name, PathCollection) for name in network.units}
    limit = max(float(numbers.abs().max()) for numbers in shown.values())
    for name, numbers in shown.items():
        np.testing.assert_allclose(dots[name].get_array(), numbers.numpy(), rtol=1e-5)
        np.testing.assert_allclose(dots[name].get_clim(), (-limit, limit), rtol=1e-5)  # white is zero, everywhere
    weights = {(h, x): w for h, row in enumerate(state["x->h"]["w"].tolist()) for x, w in enumerate(row)}
    sparse = dict(zip(((1, 0), (0, 3), (1, 1)), state["h->y"]["w"].tolist(), strict=True))
    for wire, wanted in (("x->h", weights), ("h->y", sparse)):
        lines, (pre, post) = found(figure, wire, LineCollection), wire.split("->")
        at = {end: [tuple(p) for p in np.round(dots[end].get_offsets(), 6)] for end in (pre, post)}
        drawn = {}
        for path, width, color in zip(lines.get_segments(), lines.get_linewidths(), lines.get_colors(), strict=True):
            first, last = (tuple(np.round(path[i], 6)) for i in (0, -1))
            drawn[at[post].index(last), at[pre].index(first)] = (1 if color[0] > color[2] else -1) * (width - 0.2)
        assert drawn.keys() == wanted.keys()
        scale = 1.8 / max(abs(w) for w in wanted.values())
        for pair, weight in wanted.items():
            assert drawn[pair] == pytest.approx(scale * weight, rel=1e-4), (wire, pair)


def test_lines_of_a_convolution_join_what_it_joins():
    """Their weights add up, at each neuron, to what the convolution makes of ones."""
    network, convolution = mg.Network(ticks=2), mg.Conv2d((2, 1), stride=(1, 2), padding=(1, 0))
    (
        network.input("x", (2, 3, 3)),
        network.unit("c", convolution.size((2, 3, 3), 2)),
        network.connect("x", "c", convolution),
    )
    network.connect("c", "c", delay=1), network.loss("c", "l2")
    program = mg.compile(network, Backprop())
    state = program.init(seed=1)
    lines = synapses(program.graph, "x->c", state)
    total = np.bincount(lines.target, lines.weight, minlength=2 * 4 * 2)
    wanted = torch.conv2d(torch.ones(1, 2, 3, 3), state["x->c"]["w"], stride=(1, 2), padding=(1, 0))
    np.testing.assert_allclose(total, wanted.flatten().numpy(), rtol=1e-5)
    assert len(found(program.graph.draw(state=state), "c->c", LineCollection).get_segments()) == 16 * 16


def test_refused_pictures_of_neurons():
    program = mg.compile(mlp([3, 4, 2]), Backprop())
    state, draw = program.init(), program.graph.draw
    with refuses(mg.InputError, "activity", "state=..."):
        draw(activity={})
    with refuses(mg.InputError, "unknown unit", "'h2'", "h1"):
        draw(state=state, activity={"h2": torch.zeros(4)})
    with refuses(mg.InputError, "'h1'", "(4,)", "(5,)"):
        draw(state=state, activity={"h1": torch.zeros(5)})
    with refuses(mg.InputError, "'h1'", "one channel", "y, e"):
        draw(state=state, activity={"h1": {"y": torch.zeros(4), "e": torch.zeros(4)}})
    with refuses(mg.StateError, "'x->h1'", "'w'"):
        draw(state={})
    with refuses(mg.NetworkError, "matplotlib", "format"):
        draw(state=state, format="mermaid")
    large = mg.compile(mlp([1500, 600, 2]), Backprop())
    with refuses(mg.InputError, "2102 neurons", "2000"):
        large.graph.draw(state=large.init())


def test_neurons_on_the_command_line(tmp_path, capsys):
    target = tmp_path / "neurons.png"
    assert main(["draw", "--task", "xor", "--hidden", "3", "--neurons", "--out", str(target)]) == 0
    assert target.read_bytes().startswith(b"\x89PNG")
    assert main(["draw", "--neurons"]) == 2
    assert "--out FILE" in capsys.readouterr().err
