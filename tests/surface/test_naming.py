"""Rules named with arguments, and rules of one's own from a file."""

import json
import sys

import pytest

import mpgraph as mg
from mpgraph import cli, experiments

OWN = '''"""A rule of one's own."""
from mpgraph.protocols import Backprop


class Half(Backprop):
    """Backpropagation by another name."""
'''


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("backprop, oja,backprop", ["backprop", "oja"]),
        ("backprop(lr=0.3, surrogate='tanh'),oja", ["backprop(lr=0.3, surrogate='tanh')", "oja"]),
        ("blur(layers=('a', 'b'), k=2),,hebb", ["blur(layers=('a', 'b'), k=2)", "hebb"]),
        (" , ", []),
    ],
)
def test_commas_in_brackets_belong_to_a_rule(text, expected):
    assert experiments.rules_named(text) == expected


def made(text, trained=False, **usual):
    return experiments.maker_of(text, usual, trained=trained)()


def test_arguments_of_a_rule_come_before_the_common_ones():
    assert made("backprop", lr=0.1).optimizer.lr == 0.1
    assert made("backprop(lr=0.3)", lr=0.1).optimizer.lr == 0.3
    assert made("backprop(surrogate='tanh')", lr=0.1).optimizer.lr == 0.1
    assert made("plasticity_bio", trained=True).record


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("backprop(0.3)", "as in backprop(lr=0.3, surrogate='tanh')"),
        ("backprop(lr=)", "as in backprop(lr=0.3"),
        ("backprop(lr=open('x'))", "as in backprop(lr=0.3"),
        ("backprop(lr=0.3", "as in backprop(lr=0.3"),
        ("backprop(lr=0.3)(k=2)", "as in backprop(lr=0.3"),
        ("backprop(**{'lr': 1})", "as in backprop(lr=0.3"),
        ("backprop(rl=0.3)", "its arguments are lr"),
        ("bakprop(lr=0.3)", "did you mean 'backprop'"),
        ("mine.py", "FILE.py:CLASS"),
        ("mine.py:Rule", "there is no file mine.py"),
    ],
)
def test_what_is_wrong_is_said(text, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(mg.MPGraphError) as caught:
        made(text)
    assert words in str(caught.value)


def test_a_value_that_a_rule_refuses_ends_with_exit_code_2(capsys):
    assert cli.main(["compare", "--protocols", "backprop(lr='fast')", "--quiet"]) == 2
    assert "lr" in capsys.readouterr().err


def test_a_rule_of_ones_own_runs_beside_the_others(tmp_path, capsys):
    (tmp_path / "mine.py").write_text(OWN)
    own = f"{tmp_path / 'mine.py'}:Half"
    short = ["--epochs", "1", "--limit", "64", "--seeds", "1", "--quiet", "--json"]
    assert cli.main(["compare", "--protocols", f"{own}(lr=0.05),backprop(lr=0.05)", *short]) == 0
    rows = {row["protocol"]: row for row in json.loads(capsys.readouterr().out)["summary"]}
    assert rows[f"{own}(lr=0.05)"]["test_accuracy"] == rows["backprop(lr=0.05)"]["test_accuracy"]  # the same rule
    assert cli.main(["explain", "--protocol", own]) == 0


def test_faults_of_a_file_name_its_line(tmp_path):
    path = tmp_path / "broken.py"
    for text, words in (
        ("x = 1\ny = z\n", "broken.py: line 2, NameError"),
        ("def f(:\n", "SyntaxError"),
        (OWN, "unknown rule 'Rule': allowed are Half"),
    ):
        path.write_text(text)
        with pytest.raises(mg.MPGraphError) as caught:
            made(f"{path}:Rule")
        assert words in str(caught.value)


def test_a_file_that_fails_leaves_modules_of_its_name_alone(tmp_path):
    path = tmp_path / "json.py"
    path.write_text("x = y\n")
    with pytest.raises(mg.MPGraphError, match=r"json.py: line 1, NameError"):
        made(f"{path}:Rule")
    assert sys.modules["json"] is json


def test_arguments_that_a_rule_requires_are_asked_for(tmp_path):
    path = tmp_path / "needy.py"
    path.write_text(OWN + "\n    def __init__(self, rate):\n        super().__init__(rate)\n")
    with pytest.raises(mg.InputError, match="missing a required argument: 'rate'"):
        made(f"{path}:Half")
    assert made(f"{path}:Half(rate=0.2)").optimizer.lr == 0.2
