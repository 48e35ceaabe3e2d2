"""The examples do what they say, in a shortened form where that suffices."""

import importlib.util
import json
import runpy
import statistics
import sys
from pathlib import Path

import pytest
from conftest import ROOT


def example(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_own_rule_beats_the_readout(capsys):
    found = example("own_rule").main(seeds=1)
    assert found["quiet"] > found["readout_only"] + 0.03
    assert "torch.where" in capsys.readouterr().out


def test_step_units_need_the_surrogate(capsys):
    found = example("step_units").main()
    plain, aligned = found.values()
    assert aligned > plain + 0.1
    assert "zero derivative" in capsys.readouterr().out


def test_meta_learning_finds_a_better_rate(capsys):
    losses = example("meta_learning_rate").main(meta_steps=15)
    assert losses[-1] < 0.7 * losses[0]


def test_a_cue_is_remembered():
    found = example("delayed_cue").main(batches=40, seeds=1)
    for rule in ("EProp", "RFLO"):
        assert found[rule, "all"] == 1.0
        assert found[rule, "readout only"] < 0.95


def test_a_pattern_is_generated():
    found = example("pattern_generation").main(trials=100, seeds=1)
    for rule in ("EProp", "RFLO"):
        assert found[rule, "all"] < 0.8 * found[rule, "readout only"]


def test_learning_to_learn_lowers_the_loss_after_learning(tmp_path):
    losses, curves = example("learning_to_learn").main(meta_steps=60, figure=tmp_path / "curves.png")
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10])
    assert {len(curve) for curve in curves.values()} == {6}
    assert curves["or"][-1] > curves["or"][0] + 0.1  # the first that genomes learn to learn
    assert (tmp_path / "curves.png").stat().st_size > 10_000


@pytest.mark.filterwarnings("ignore::mpgraph.FlatUnitWarning")
@pytest.mark.parametrize("unit", ["step", "sign", "quantizer", "winner_take_all", "numpy function"])
def test_rules_train_through_nodes_without_a_derivative(unit):
    module = example("non_differentiable")
    found = module.accuracies(*module.UNITS[unit], epochs=50)
    assert found["direct_feedback_alignment"] > found["readout_only"] + 0.03
    assert found["node_perturbation"] > found["readout_only"] + 0.03


@pytest.mark.filterwarnings("ignore::mpgraph.FlatUnitWarning")
def test_a_random_graph_of_step_neurons_learns():
    points = example("step_graph").differences("erdos_renyi", 20, epochs=8, seeds=3)
    error = statistics.stdev(points) / len(points) ** 0.5
    assert statistics.mean(points) - 3 > 5 * error


def test_figures_of_the_plasticity_paper_are_one_command_each(tmp_path, monkeypatch, capsys):
    module = example("plasticity/figures")
    monkeypatch.setattr(module, "BUDGETS", {"small": 2})
    monkeypatch.setattr(module, "ROWS", ["W01 W23"])
    monkeypatch.setitem(module.FIGURES, "fig9", ("ehebb", "backprop"))
    tasks = [f"family.{key}" for key in ("data=digits", "ways=3", "shots=2", "queries=2")]
    common = ["figures.py", "--budget", "small", "--episodes", "1", "--out", str(tmp_path)]
    common += [part for setting in (*tasks, "network.sizes=[64,8,6,10]") for part in ("--set", setting)]
    monkeypatch.setattr(sys, "argv", [*common, "fig6", "fig9", "table1"])
    module.main()
    assert {path.name for path in tmp_path.iterdir()} == {
        "backprop", "ehebb", "table1_W01_W23", "fig6.png", "fig9.png"
    }  # fmt: skip
    printed = capsys.readouterr().out
    for rule in ("backprop", "ehebb"):
        assert f"{tmp_path / rule / 'rule'}: accuracy" in printed
        reached = json.loads((tmp_path / rule / "log.jsonl").read_text().splitlines()[-1])
        assert reached["step"] == 1
    rows = (tmp_path / "table1_W01_W23" / "log.jsonl").read_text().splitlines()
    assert sum("ehebb" in name for name in json.loads(rows[-1])["parameters"]) == 2


@pytest.mark.filterwarnings("ignore")
def test_examples_run_from_any_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["non_differentiable.py", "--epochs", "1"])
    runpy.run_path(str(ROOT / "examples" / "non_differentiable.py"), run_name="__main__")
    assert [line.split("  ")[0].strip() for line in capsys.readouterr().out.splitlines()] == [
        "step", "sign", "quantizer", "winner_take_all", "numpy function"
    ]  # fmt: skip


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.py")), ids=lambda p: p.stem)
def test_examples_are_short_and_have_a_test(path):
    first = path.read_text().splitlines()[0]
    assert first.startswith('"""')
    assert first.endswith(".")  # what it does, in one sentence
    assert f"python examples/{path.name}" in path.read_text()
    assert len(path.read_text().splitlines()) <= 80
    assert f'example("{path.stem}")' in Path(__file__).read_text()
