"""``mpgraph reproduce``: what a script printed stands beside what a paper says, and what was not run is said."""

import json
import re

import pytest
from conftest import ROOT
from refusals import refuses

import mpgraph as mg
from mpgraph import cli
from mpgraph.experiments.reproduce import BUDGETS, command, entries, measured, page

EXAMPLES, PAGE = ROOT / "examples", ROOT / "docs" / "reproductions.md"
KNOWN = entries(EXAMPLES)


def test_every_entry_names_a_script_that_takes_its_arguments(tmp_path):
    for name, entry in KNOWN.items():
        script = EXAMPLES / entry["script"]
        assert script.is_file(), name
        text = script.read_text()
        for budget in BUDGETS:
            words = command(name, entry, EXAMPLES, budget, tmp_path)[1:]
            assert all(f'"{word}"' in text for word in words if word.startswith("--")), (name, words)
            assert "--budget" not in words or f'"{budget}":' in text
        assert all(f'"{word}"' in text for word in entry["arguments"]), name


@pytest.fixture
def examples(tmp_path):
    folder = tmp_path / "examples"
    folder.mkdir()
    (folder / "published.toml").write_text(
        '[good]\nsource = "A (2001)"\nscript = "good.py"\narguments = ["x"]\npublished = "42 %"\n'
        '[bad]\nsource = "B"\nscript = "bad.py"\narguments = []\npublished = "1"\nbudgets = { small = ["--k", "3"] }\n'
    )
    (folder / "good.py").write_text(
        "import json, sys\nprint('measured', *sys.argv[1:4])\n"
        "open(sys.argv[-1] + '/fig.json', 'w').write(json.dumps({'ours': 41.5}))\n"
    )
    (folder / "bad.py").write_text("import sys\nprint(sys.argv[1:])\nraise SystemExit('lost')\n")
    return folder


def test_published_and_ours_side_by_side(examples, tmp_path, capsys):
    common = ["reproduce", "--examples", str(examples), "--out", str(tmp_path / "runs")]
    made = tmp_path / "page.md"
    assert cli.main([*common, "good", "--page", str(made)]) == 0
    content = json.loads((tmp_path / "runs" / "good.json").read_text())
    assert content["output"] == ["measured x --budget small"]
    assert content["ours"] == {"fig": 41.5}
    assert content["command"] == "mpgraph reproduce good --budget small"
    text = made.read_text()
    assert "| 42 % | See below. |" in text
    assert "measured x --budget small" in text
    assert "| 1 | Not run. |\n\n`mpgraph reproduce bad` runs it." in text
    assert cli.main([*common, "bad", "--page", str(made)]) == 1
    text = made.read_text()
    assert "ended with status 1" in text
    assert "['--k', '3']" in text
    assert "lost" in text
    capsys.readouterr()
    assert cli.main(common) == 0
    assert capsys.readouterr().out.splitlines() == ["good  A (2001)", "bad   B"]


def test_the_page_is_what_both_tables_say():
    text = page(KNOWN, measured(EXAMPLES, KNOWN), {})
    assert PAGE.read_text() == text, "out of date: mpgraph reproduce --page docs/reproductions.md --out NO_RUNS"


def test_every_number_of_ours_stands_in_the_document_that_it_is_from():
    number = re.compile(r"\d+(?:\.\d+)?(?:e-?\d+)?")
    for name, entry in measured(EXAMPLES, KNOWN).items():
        there = set(number.findall((ROOT / entry["page"]).read_text()))
        assert set(number.findall(entry["ours"])) <= there, name
        assert entry["state"] == "reached" or "missing" in entry, f"{name}: what was not reached?"


def test_what_was_measured_must_be_whole_and_known(examples):
    path = examples / "measured.toml"
    whole = dict.fromkeys(("ours", "command", "budget", "spread", "commit", "page"), "x") | {"state": "reached"}
    for name, entry, words in (
        ("god", whole, "did you mean 'good'"),
        ("good", {**whole, "state": "done"}, "unknown state 'done'"),
        ("good", {"state": "reached"}, "good must be a table with budget"),
    ):
        path.write_text(f"[{name}]\n" + "".join(f'{key} = "{value}"\n' for key, value in entry.items()))
        with refuses(mg.FileError, "measured.toml", words):
            measured(examples, entries(examples))


def test_mistakes_are_refused(examples, tmp_path, capsys):
    for arguments, words in (
        (["god", "--examples", str(examples)], "did you mean 'good'"),
        (["--examples", str(tmp_path)], "needs a checkout"),
        (["--page", "nowhere/p.md", "--examples", str(examples)], "cannot be written"),
    ):
        assert cli.main(["reproduce", *arguments, "--out", str(tmp_path)]) == 2
        assert words in capsys.readouterr().err
    (tmp_path / "good.json").write_text("[]")
    assert (
        cli.main(["reproduce", "--page", str(tmp_path / "p"), "--examples", str(examples), "--out", str(tmp_path)]) == 2
    )
    assert "was not written by" in capsys.readouterr().err
