"""The command line, run as a user does."""

import io
import json
import struct
import subprocess
import sys

import pytest
import torch

import mpgraph as mg
from mpgraph import cli
from mpgraph.architectures import mlp
from mpgraph.protocols import Backprop
from mpgraph.registry import lookup


def run(*arguments, capsys=None):
    status = cli.main(arguments)
    captured = capsys.readouterr() if capsys else None
    return status, captured


def test_compare_writes_results_and_curves(tmp_path, capsys):
    arguments = [
        "compare",
        "--protocols",
        "backprop,feedback_alignment",
        "--seeds",
        "2",
        "--epochs",
        "2",
        "--limit",
        "200",
    ]
    status, captured = run(*arguments, "--out", str(tmp_path), "--quiet", capsys=capsys)
    assert status == 0
    assert "readout_only" in captured.out
    results = json.loads((tmp_path / "results.json").read_text())
    assert len(results["runs"]) == 6
    for run_ in results["runs"]:
        assert set(run_) >= {"protocol", "task", "network", "seed", "test_accuracy", "seconds"}
        assert 0.0 <= run_["test_accuracy"] <= 1.0
        assert len(run_["curve"]) == 2
    assert results["versions"]["torch"]
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["curves.png", "curves.svg", "report.html", "results.json"]
    assert "feedback_alignment" in (tmp_path / "report.html").read_text()


def test_resume_repeats_nothing_and_gives_the_same(tmp_path, capsys):
    arguments = [
        "compare",
        "--protocols",
        "backprop",
        "--epochs",
        "1",
        "--limit",
        "100",
        "--quiet",
        "--out",
        str(tmp_path),
    ]
    run(*arguments, "--seeds", "1", capsys=capsys)
    first = json.loads((tmp_path / "results.json").read_text())["runs"]
    status, _ = run(*arguments, "--seeds", "2", "--resume", capsys=capsys)
    second = json.loads((tmp_path / "results.json").read_text())["runs"]
    assert status == 0
    assert second[: len(first)] == first  # seconds included: not run again
    assert len(second) == 4
    status, captured = run(*arguments, "--seeds", "1", "--resume", "--lr", "0.2", capsys=capsys)
    assert status == 2
    assert "another lr" in captured.err


def test_same_seed_same_result(tmp_path, capsys):
    arguments = [
        "compare",
        "--protocols",
        "backprop",
        "--seeds",
        "1",
        "--epochs",
        "1",
        "--limit",
        "100",
        "--json",
        "--quiet",
    ]
    one, two = (json.loads(run(*arguments, capsys=capsys)[1].out)["summary"] for _ in range(2))
    assert [row["test_accuracy"] for row in one] == [row["test_accuracy"] for row in two]


def test_divergence_is_said_and_changes_the_exit_status(tmp_path, capsys):
    arguments = [
        "compare",
        "--protocols",
        "backprop",
        "--seeds",
        "1",
        "--epochs",
        "3",
        "--lr",
        "1e6",
        "--loss",
        "l2",
    ]
    status, captured = run(*arguments, "--activation", "identity", "--quiet", "--out", str(tmp_path), capsys=capsys)
    assert status == 1
    assert "1 of 1 diverged" in captured.out
    assert json.loads((tmp_path / "results.json").read_text())["runs"][1]["diverged"]


def test_a_folder_that_cannot_be_written_is_refused_before_training(tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        status, captured = run("compare", "--quiet", "--out", str(out), capsys=capsys)
        assert status == 2
        assert str(out) in captured.err
        assert len(captured.err.strip().splitlines()) == 1


def test_data_that_does_not_fit_together_is_no_score(tmp_path, capsys):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    images = struct.pack(">4B3I", 0, 0, 8, 3, 6, 28, 28) + bytes(range(256)) * 18 + bytes(96)
    labels = struct.pack(">4BI", 0, 0, 8, 1, 6) + bytes(range(6))
    for prefix in ("train", "t10k"):
        (raw / f"{prefix}-images-idx3-ubyte").write_bytes(images)
        (raw / f"{prefix}-labels-idx1-ubyte").write_bytes(labels)
    arguments = ["compare", "--task", "mnist", "--data", str(tmp_path), "--seeds", "1", "--epochs", "1", "--quiet"]
    assert run(*arguments, capsys=capsys)[0] == 0
    (raw / "train-images-idx3-ubyte").write_bytes(labels)
    (raw / "train-labels-idx1-ubyte").write_bytes(images)
    status, captured = run(*arguments, capsys=capsys)
    assert status == 2
    assert "swapped" in captured.err
    assert "train-images-idx3-ubyte" in captured.err
    assert len(captured.err.strip().splitlines()) == 1
    assert not captured.out


SHORT = ["compare", "--protocols", "backprop", "--epochs", "1", "--limit", "64"]


def test_one_seed_has_no_spread(capsys):
    assert "1 seed\n" in (out := run(*SHORT, "--seeds", "1", "--quiet", capsys=capsys)[1].out)
    assert "+-" not in out
    assert "2 seeds\n" in (out := run(*SHORT, "--seeds", "2", "--quiet", capsys=capsys)[1].out)
    assert out.count("+-") == 2
    rows = json.loads(run(*SHORT, "--seeds", "1", "--quiet", "--json", capsys=capsys)[1].out)["summary"]
    assert [row["deviation"] for row in rows] == [None, None]


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_a_bar_only_on_a_terminal(stream, monkeypatch, capsys):
    for quiet in ([], ["--quiet"]):
        monkeypatch.setattr(sys, "stderr", stream())
        assert cli.main([*SHORT, "--seeds", "1", *quiet]) == 0
        assert bool(sys.stderr.getvalue()) == (stream is Terminal and not quiet)
    program = mg.compile(mlp([3, 2]), Backprop())
    batches = [(torch.ones(2, 3), torch.tensor([0, 1]))] * 3
    for progress in (True, False):
        monkeypatch.setattr(sys, "stderr", stream())
        program.run(program.init(), batches, progress=progress)
        assert bool(sys.stderr.getvalue()) == (stream is Terminal and progress)


def test_protocols_and_explain(capsys):
    status, captured = run("protocols", "--json", capsys=capsys)
    assert status == 0
    assert {row["name"] for row in json.loads(captured.out)} >= {"backprop", "feedback_alignment"}
    assert "feedback_alignment" in run("protocols", capsys=capsys)[1].out
    assert "addmm" in run("explain", "--protocol", "feedback_alignment", capsys=capsys)[1].out
    assert "def forward" in run("explain", "--code", capsys=capsys)[1].out


def test_installed_command():
    for command in (["-m", "mpgraph.cli", "--help"], ["-m", "mpgraph", "--version"]):
        result = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=True)
        assert "mpgraph" in result.stdout


def test_a_saved_rule_runs_beside_the_others(tmp_path, capsys):
    Backprop(lr=mg.learnable(0.2)).save(tmp_path / "rule")
    short = ["--epochs", "1", "--limit", "100", "--seeds", "1", "--quiet"]
    saved = f"backprop:{tmp_path / 'rule'}"
    status, captured = run("compare", "--protocols", f"{saved},feedback_alignment", *short, "--json", capsys=capsys)
    assert status == 0
    rows = json.loads(captured.out)["summary"]
    assert {row["protocol"] for row in rows} == {saved, "feedback_alignment", "readout_only"}
    for wrong, words in (
        (f"backprop:{tmp_path}", "there is no file"),
        (f"feedback_alignment:{tmp_path / 'rule'}", "holds a Backprop, which is not feedback_alignment"),
        ("nonsense:there", "unknown protocol 'nonsense'"),
    ):
        status, captured = run("compare", "--protocols", wrong, *short, capsys=capsys)
        assert status == 2
        assert words in captured.err


RANDOM = {name: cls for name in mg.list_protocols() if (cls := lookup("mpgraph.protocols", name)).random_defaults}


@pytest.mark.parametrize("name", RANDOM)
def test_a_random_rule_is_refused_with_the_way_to_a_trained_one(name, capsys, monkeypatch):
    monkeypatch.setattr(RANDOM[name], "shipped", "")  # as if none shipped
    status, captured = run("compare", "--protocols", name, "--quiet", capsys=capsys)
    assert status == 2
    assert f"{name}:FOLDER" in captured.err
    assert "protocol.save" in captured.err


@pytest.mark.parametrize("cls", [cls for cls in RANDOM.values() if cls.shipped])
def test_in_place_of_a_random_rule_the_trained_one_of_its_class_is_compared(cls):
    assert isinstance(mg.load_protocol(cls.shipped), cls)
