"""Typical mistakes on the command line: exit code 2, one message with the likely fix, no traceback without --debug."""

import json
import struct

import pytest

from mpgraph import cli

OWN = '''import mpgraph as mg
from mpgraph.protocols.backprop import Backprop, Weight


def rule(update):
    """A rule whose weights learn so."""
    agent = type("W", (Weight,), {"learn_update": update})
    return type("Rule", (Backprop,), {"agents": {"weight": agent}, "__module__": __name__})


Missing = rule(lambda self, s: s.descend(w=s.examples(s.e * s.missing)))
Nothing = rule(lambda self, s: None)
Zero = rule(lambda self, s: s.descend(w=1 / 0))
Branch = rule(lambda self, s: s if s.e > 0 else s.descend(w=s.examples(s.e * s.x)))


class Refusing(Backprop):
    def __init__(self):
        raise ValueError("not today")


def broken(inputs, outputs):
    return {}["nothing"]


def number(inputs, outputs):
    return 3
'''

MISTAKES = [
    # names
    (["compare", "--protocols", "backprob"], ["'backprob'", "did you mean 'backprop'"]),
    (["compare", "--protocols", ","], ["--protocols", "allowed are", "backprop"]),
    (["compare", "--activation", "tahn"], ["'tahn'", "tanh"]),
    (["compare", "--loss", "l3"], ["'l3'", "l2"]),
    (["compare", "--surrogate", "tahn"], ["'tahn'", "tanh"]),
    (["compare", "--surrogate", "step"], ["surrogate='step'", "zero derivative", "choose tanh"]),
    (["compare", "--device", "abacus"], ["'abacus'"]),
    (["compare", "--task", "minst"], ["--task", "'minst'", "did you mean 'mnist'"]),
    (["compare", "--networks", "mpl"], ["'mpl'", "did you mean 'mlp'"]),
    (["compare", "--colour", "red"], ["--colour", "--help"]),
    (["explain", "--protocol", "q"], ["'q'", "allowed are"]),
    (["draw", "--passes", "forwards"], ["'forwards'", "did you mean 'forward'"]),
    (["nothing"], ["'nothing'", "compare"]),
    ([], ["command"]),
    # numbers
    (["compare", "--seeds", "0"], ["--seeds", "'0'", "positive integer"]),
    (["compare", "--epochs", "1.5"], ["--epochs", "'1.5'", "positive integer"]),
    (["compare", "--batch", "-1"], ["--batch", "'-1'", "positive integer"]),
    (["compare", "--limit", "0"], ["--limit", "'0'", "positive integer"]),
    (["compare", "--jobs", "0"], ["--jobs", "'0'", "positive integer"]),
    (["compare", "--hidden", "0"], ["--hidden", "'0'", "positive integer"]),
    (["compare", "--hidden", "8,,8"], ["--hidden", "''", "positive integer"]),
    (["compare", "--hidden", "999999999999"], ["out of memory", "smaller --hidden"]),
    (["compare", "--lr", "fast"], ["--lr", "'fast'"]),
    (["compare", "--lr", "nan"], ["--lr", "nan", "finite number"]),
    (["compare", "--lr", "-1"], ["lr=-1", "at least 0"]),
    (["explain", "--batch", "0"], ["--batch", "'0'", "positive integer"]),
    # arguments of rules and networks
    (["compare", "--protocols", "backprop(0.3)"], ["backprop(lr=0.3"]),
    (["compare", "--protocols", "backprop(rl=0.3)"], ["rl=0.3", "its arguments are lr"]),
    (["compare", "--protocols", "backprop(optimizer='adam')"], ["optimizer='adam'", "mg.Optimizer"]),
    (["compare", "--networks", "mlp(hiden=(3,))"], ["'hiden'"]),
    (["compare", "--networks", "convnet(kernel=99)"], ["convnet(kernel=99)", "too small"]),
    (["compare", "--networks", "autoencoder"], ["needs 10 outputs"]),
    # files of one's own
    (["compare", "--protocols", "own.py"], ["FILE.py:CLASS"]),
    (["compare", "--protocols", "nowhere.py:Rule"], ["there is no file nowhere.py"]),
    (["compare", "--protocols", "own.py:Mising"], ["unknown rule 'Mising'", "did you mean 'Missing'"]),
    (["compare", "--protocols", "own.py:Missing"], ["'x->h1'", "learn", "'missing'", "allowed are e, w, x"]),
    (["compare", "--protocols", "own.py:Nothing"], ["learn_update must return a view", "NoneType"]),
    (["compare", "--protocols", "own.py:Zero"], ["own.py:Zero: line 13", "division by zero", "--debug"]),
    (["compare", "--protocols", "own.py:Branch"], ["torch.where"]),
    (["compare", "--protocols", "own.py:Refusing"], ["own.py:Refusing: line 19", "not today"]),
    (["compare", "--networks", "own.py:broken"], ["own.py:broken: line 23", "KeyError"]),
    (["compare", "--networks", "own.py:number"], ["returned a int", "mg.Network"]),
    (["compare", "--protocols", "hub://nobody"], ["'hub://nobody'", "hub://OWNER/NAME"]),
    (["compare", "--protocols", "backprop:nowhere"], ["there is no file nowhere/protocol.safetensors"]),
    # a search, contrasts, settings
    (["compare", "--tune", "lr"], ["--tune", "NAME=LOW..HIGH"]),
    (["compare", "--tune", "rl=0.1..1"], ["none of the rules takes rl"]),
    (["compare", "--against", "oja"], ["--against 'oja'", "one of --protocols"]),
    (["compare", "--settings", "nowhere.toml"], ["nowhere.toml"]),
    (["compare", "--settings", "bad.toml"], ["bad.toml", "'epoch'", "did you mean 'epochs'"]),
    # data and places
    (["compare", "--task", "mnist"], ["mnist", "--data", "MPGRAPH_DATA"]),
    (["compare", "--task", "mnist", "--data", "nowhere"], ["no folder nowhere"]),
    (["compare", "--task", "mnist", "--data", "swapped"], ["swapped", "train-images-idx3-ubyte"]),
    (["compare", "--data"], ["--data", "expected one argument"]),
    (["compare", "--resume"], ["--out"]),
    (["compare", "--resume", "--out", "nowhere"], ["nowhere/results.json", "No such file"]),
    (["compare", "--resume", "--out", "edited"], ["edited/results.json", "sha256"]),
    (["compare", "--out", "own.py"], ["own.py", "cannot be written"]),
    (["draw", "--out", "a.jpeg"], ["'.jpeg'", ".png"]),
    (["bench"], ["--out DIR"]),
    (["reproduce", "blur_fig99"], ["'blur_fig99'", "blur_fig"]),
    (["evaluate", "nowhere"], ["nowhere"]),
]  # fmt: skip


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a file of rules, wrong settings, results that were edited, and images for labels."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MPGRAPH_DATA", raising=False)
    (tmp_path / "own.py").write_text(OWN)
    (tmp_path / "bad.toml").write_text("epoch = 3\n")
    (tmp_path / "edited").mkdir()
    edited = {"runs": [], "settings": {}, "versions": {}, "sha256": "0" * 64}
    (tmp_path / "edited" / "results.json").write_text(json.dumps(edited))
    raw = tmp_path / "swapped" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    images = struct.pack(">4B3I", 0, 0, 8, 3, 6, 28, 28) + bytes(range(256)) * 18 + bytes(96)
    labels = struct.pack(">4BI", 0, 0, 8, 1, 6) + bytes(range(6))
    for prefix in ("train", "t10k"):
        (raw / f"{prefix}-images-idx3-ubyte").write_bytes(labels)
        (raw / f"{prefix}-labels-idx1-ubyte").write_bytes(images)
    return tmp_path


def test_they_are_more_than_forty():
    assert len({tuple(arguments) for arguments, _ in MISTAKES}) == len(MISTAKES) > 40


@pytest.mark.parametrize(("arguments", "words"), MISTAKES, ids=lambda part: " ".join(part) if "-" in str(part) else "")
def test_a_mistake_is_told_in_one_line_with_the_fix(arguments, words, place, capsys):
    assert cli.main(arguments) == 2
    captured = capsys.readouterr()
    lines = captured.err.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("mpgraph: ")
    assert all(word in lines[0] for word in words), lines[0]
    assert not captured.out


def test_debug_shows_where_the_error_was_raised(place, capsys):
    for arguments in (["--debug", "compare", "--protocols", "own.py:Zero"], ["compare", "--debug", "--lr", "nan"]):
        assert cli.main(arguments) == 2
        error = capsys.readouterr().err
        assert "Traceback (most recent call last)" in error
        assert error.splitlines()[-1].startswith("mpgraph: ")
