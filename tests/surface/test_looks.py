"""``mpgraph explain`` and ``mpgraph draw``: the oracle is the agent graph, and the width of the terminal."""

import re

import pytest

import mpgraph as mg
from mpgraph import cli
from mpgraph.architectures import convnet, mlp
from mpgraph.draw.text import agents_text, graph_text, network_text
from mpgraph.protocols import Backprop, FeedbackAlignment


def printed(capsys, *arguments, status=0):
    assert cli.main(list(arguments)) == status
    captured = capsys.readouterr()
    return captured.err if status else captured.out


@pytest.mark.parametrize("network", ["mlp", "random_graph(neurons=30)"])
@pytest.mark.parametrize("command", ["explain", "draw"])
@pytest.mark.parametrize("columns", [80, 120])
def test_lines_fit_the_terminal(network, command, columns, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    out = printed(capsys, command, "--network", network)
    assert max(map(len, out.splitlines())) <= columns
    assert len(out.splitlines()) > 10


def test_a_narrow_table_has_the_numbers_of_the_wide_one():
    program = mg.compile(mlp([5, 6, 3]), Backprop())
    wide, narrow = program.explain(16), program.explain(16, width=80)
    assert max(map(len, narrow.splitlines())) <= 80 < max(map(len, wide.splitlines()))
    idle = [line for line in wide.splitlines() if " - " in line or line.endswith("-")]
    assert narrow.splitlines()[-1] == f"{len(idle)} arrows cost nothing"
    totals = [next(line.split() for line in text.splitlines() if line.startswith("total")) for text in (wide, narrow)]
    assert totals[0] == totals[1]
    with pytest.raises(mg.MPGraphError, match="width=3"):
        program.explain(16, width=3)


def test_comments_of_the_code_name_the_arrows_and_change_nothing_else():
    program = mg.compile(mlp([5, 6, 3]), FeedbackAlignment())
    code = program.code_of(comments=True)
    plain = [line for line in code.splitlines() if not line.lstrip().startswith("#")]
    assert plain == program.code.splitlines()
    lines = code.splitlines()
    above = next(i for i, line in enumerate(lines) if "torch.tanh(" in line) - 1
    assert lines[above] == "    # forward: h1 update"
    arrows = {f"{a.pass_name}: {a.source.name} => {a.target.name} ({a.role})" for a in program.graph.all_arrows()}
    named = [line.strip(" #") for line in lines if "=>" in line and line.lstrip().startswith("#")]
    assert named
    assert set(named) <= arrows


@pytest.mark.parametrize("network", [mlp([5, 6, 3]), convnet((1, 8, 8), (2,), (4,), 3, kernel=3)])
def test_text_holds_every_unit_connection_and_arrow(network):
    graph = mg.compile(network, FeedbackAlignment()).graph
    text = network_text(network, 10**6)
    for unit in network.units:
        assert re.search(rf"^{re.escape(unit)}: ", text, re.MULTILINE)
    for wire in network.wires.values():
        assert f"from {wire.pre} by {wire.name}: " in text
    text = graph_text(graph, 10**6)
    found = set()
    for block in text.split("\n\n"):
        name = block.splitlines()[0].removeprefix("pass ")
        for line in block.splitlines()[1:]:
            target, mark, senders = line.strip().partition(" <= ")
            for sender in senders.split(", ") if mark else ():
                source, _, role = sender.rpartition(" (")
                found.add((name, source, target, role.rstrip(")")))
    assert found == {(a.pass_name, a.source.name, a.target.name, a.role) for a in graph.all_arrows()}
    assert graph_text(graph, 80, ["backward"]).startswith("pass backward")


def test_agents_are_shown_by_their_methods():
    graph = mg.compile(mlp([5, 6, 3]), FeedbackAlignment()).graph
    text = agents_text(graph)
    assert "return s.b * s.e" in text
    for cls in {type(agent) for agent in graph.agents.values()}:
        assert f"# {cls.__name__} serves " in text


def test_pages_and_pictures_are_written(tmp_path, capsys):
    page = tmp_path / "page.html"
    assert printed(capsys, "explain", "--html", str(page)) == f"wrote {page}\n"
    text = page.read_text()
    assert text.count("<img alt=") == 4  # the network, and the passes forward, backward and learn
    assert "default-src" in text
    assert "torch.addmm" in text
    for name, start in (("a.svg", "<?xml"), ("a.md", "```mermaid"), ("a.dot", "digraph"), ("a.html", "<!doctype")):
        printed(capsys, "draw", "--out", str(tmp_path / name), "--passes", "backward")
        assert (tmp_path / name).read_text().startswith(start)
    printed(capsys, "draw", "--out", str(tmp_path / "b.dot"), "--network-only")
    assert "x->h1" not in (tmp_path / "b.dot").read_text()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["draw", "--out", "a.jpeg"], ["'.jpeg'", ".png"]),
        (["draw", "--passes", "forwards"], ["'forwards'", "did you mean 'forward'"]),
        (["draw", "--out", "nowhere/a.svg"], ["nowhere/a.svg", "cannot be written"]),
        (["explain", "--network", "mpl"], ["'mpl'", "did you mean 'mlp'"]),
        (["explain", "--code", "--agents"], ["--agents", "--code"]),
        (["explain", "--html", "nowhere/a.html"], ["nowhere/a.html", "cannot be written"]),
    ],
)
def test_mistakes_are_refused(arguments, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    error = printed(capsys, *arguments, status=2)
    assert all(word in error for word in words), error
