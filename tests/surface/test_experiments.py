"""Training and comparing from Python: arguments, batches that are left out, and results on disk."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from refusals import refuses

import mpgraph as mg
from mpgraph import experiments
from mpgraph.architectures import mlp
from mpgraph.data import Dataset
from mpgraph.experiments import Run
from mpgraph.protocols import Backprop

GENERATOR = torch.Generator().manual_seed(0)
X, Y = torch.randn(9, 3, generator=GENERATOR), torch.tensor([0, 1, 2] * 3)
DATA = Dataset("toy", X, Y, X, Y, 3)
NETWORK = mlp([3, 4, 3])
SETTINGS = {"task": "toy", "epochs": 2}


def normalized():
    """A network whose hidden units are normalized over the batch."""
    return mlp([3, 4, 3], activation=mg.BatchNorm())


def compare(**changed):
    arguments = {"seeds": [0], "epochs": 1, "batch": 4, "progress": False} | changed
    rules = arguments.pop("rules", {"backprop": Backprop})
    return experiments.compare(NETWORK, rules, lambda seed: DATA, **arguments)


# -- arguments --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [0, -1, 1.5, True, None, "3", torch.tensor(2)])
@pytest.mark.parametrize("name", ["epochs", "batch"])
def test_numbers_of_epochs_and_examples_are_positive_integers(name, value):
    with refuses(mg.InputError, "compare", f"{name}=", "integer of at least 1"):
        compare(**{name: value})
    with refuses(mg.InputError, "train", f"{name}=", "integer of at least 1"):
        experiments.train(mg.compile(NETWORK, Backprop()), DATA, **({"epochs": 1} | {name: value}))


@pytest.mark.parametrize(
    ("seeds", "words"),
    [
        ([], ["seeds=[]"]),
        (3, ["seeds=3", "range(3)"]),
        ("012", ["seeds='012'"]),
        ([0, 1.5], ["seeds[1]=1.5", "integer"]),
        ([0, True], ["seeds[1]=True"]),
        ([2, 2], ["seeds=[2, 2]", "each once"]),
    ],
)
def test_seeds_are_different_integers(seeds, words):
    with refuses(mg.InputError, "compare", *words):
        compare(seeds=seeds)


def test_no_rules():
    with refuses(mg.InputError, "compare", "rules={}"):
        compare(rules={})


def test_numpy_numbers_are_integers():
    plain = compare(seeds=[0, 1], epochs=2, batch=4)
    for kind in (np.int64, np.int8, np.uint8):
        found = compare(seeds=np.arange(2).astype(kind), epochs=kind(2), batch=kind(4))
        one, two = ([replace(run, seconds=0.0, times=[]) for run in runs] for runs in (found, plain))
        assert one == two
        json.dumps([run.seed for run in found])
    program = mg.compile(NETWORK, Backprop())
    one, two = (
        experiments.train(program, DATA, epochs=e, batch=b, seed=s)
        for e, b, s in ((2, 4, 1), (np.int64(2), np.int64(4), np.int64(1)))
    )
    assert one[1:] == two[1:]


def test_all_rules_are_compiled_before_the_first_is_trained():
    trained = []
    with pytest.raises(mg.ProtocolError):
        compare(rules={"backprop": Backprop, "bad": lambda: Backprop(lr=-1.0)}, on_run=trained.append)
    assert not trained


def test_accuracy_counts_what_is_right():
    program = mg.compile(mlp([3, 3]), Backprop())
    state = program.init()
    state["x->y"]["w"], state["y.bias"]["w"] = torch.eye(3), torch.zeros(3)
    x, y = torch.eye(3)[[0, 1, 2, 0]], torch.tensor([0, 1, 2, 1])
    assert experiments.accuracy(program, state, x, y) == 0.75
    assert experiments.accuracy(program, state, x, y, chunk=3) == 0.75
    for labels in (y[:3], y[:0]):
        with refuses(mg.InputError, "4 examples", f"{len(labels)} labels"):
            experiments.accuracy(program, state, x, labels)
    with refuses(mg.InputError, "0 examples"):
        experiments.accuracy(program, state, x[:0], y[:0])


# -- batches that are left out ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("network", "batch", "steps"),
    [
        (NETWORK, 4, 3),  # 4 + 4 + 1
        (normalized(), 4, 2),  # the rest of one example is left out
        (normalized(), 7, 2),  # a rest of two is not
        (normalized(), 3, 3),  # no rest
        (normalized(), 20, 1),  # all nine at once
    ],
)
def test_a_rest_of_one_example_is_left_out_where_the_batch_is_normalized(network, batch, steps):
    state, curve, losses = experiments.train(mg.compile(network, Backprop()), DATA, epochs=2, batch=batch)
    assert int(state["program"]["step"]) == 2 * steps
    assert len(curve) == len(losses) == 2
    assert all(np.isfinite(losses))


def test_positions_of_an_image_are_examples_enough():
    network = mg.Network()
    network.input("x", (1, 4, 4)), network.unit("c", (2, 4, 4), mg.BatchNorm()), network.unit("y", 3)
    network.connect("x", "c", mg.Conv2d(3, padding=1)), network.connect("c", "y"), network.loss("y", "cross_entropy")
    x = torch.randn(9, 1, 4, 4, generator=GENERATOR)
    state, *_ = experiments.train(mg.compile(network, Backprop()), Dataset("images", x, Y, x, Y, 3), epochs=1, batch=4)
    assert int(state["program"]["step"]) == 3


def test_too_few_examples_for_a_step():
    with refuses(mg.InputError, "a step needs 2 examples", "has 1"):
        experiments.train(mg.compile(normalized(), Backprop()), DATA.head(1), epochs=1)


# -- results ----------------------------------------------------------------------------------------------------


def results(path):
    runs = [
        Run("backprop", "toy", "3-4-3 tanh", seed, 0.5 + seed / 7, 0.25, 2, 4, "Backprop(lr=0.1)", False, [0.3, 0.4],
            [1.1, float("inf")])
        for seed in range(3)
    ]  # fmt: skip
    experiments.write(path, runs, SETTINGS)
    return runs


def test_results_are_read_as_they_were_written(tmp_path):
    path = tmp_path / "results.json"
    assert results(path) == experiments.read(path, SETTINGS)
    content = json.loads(path.read_text())
    assert list(content) == ["runs", "settings", "versions", "sha256"]
    path.write_text(json.dumps(content, indent=4, sort_keys=True))  # layout is not content
    assert len(experiments.read(path, SETTINGS)) == 3
    del content["sha256"]  # as earlier versions wrote it
    path.write_text(json.dumps(content))
    assert len(experiments.read(path, SETTINGS)) == 3
    with refuses(mg.FileError, str(path), "another epochs (2 there, 3 here)"):
        experiments.read(path, SETTINGS | {"epochs": 3})


@pytest.mark.parametrize("seed", range(3))
def test_damaged_results_never_load_with_other_numbers(tmp_path, seed):
    path = tmp_path / "results.json"
    runs, good, generator = results(path), path.read_bytes(), np.random.default_rng(seed)
    refused = 0
    for turn in range(300):
        at, length = int(generator.integers(len(good))), int(generator.integers(1, 40))
        content = bytearray(good)
        if turn % 3 == 0:
            content[at] ^= 1 << int(generator.integers(8))
        elif turn % 3 == 1:
            del content[at : at + length]
        else:
            content[at:at] = generator.bytes(length) if turn % 2 else good[length : 2 * length]
        path.write_bytes(content)
        try:
            found = experiments.read(path, SETTINGS)
        except mg.FileError:
            refused += 1
        else:
            assert found == runs
    assert refused > 200


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "expected an object"),
        ("{}", "expected an object"),
        ('{"runs": {}, "settings": {}, "versions": {}}', "a list of runs"),
        ('{"runs": [], "settings": [], "versions": {}}', "an object of settings"),
        ('{"runs": [3], "settings": {}, "versions": {}}', "cannot be resumed"),
        ('{"runs": [{"protocol": "backprop"}], "settings": {}, "versions": {}}', "missing"),
        ('{"runs": [], "settings": {}, "versions": {}, "sha256": "0"}', "does not match its sha256"),
        ('{"runs": [], "settings": {}, "versions": {}, "sha257": "0"}', "expected an object"),
    ],
)
def test_files_that_are_not_results(tmp_path, content, words):
    path = tmp_path / "results.json"
    path.write_text(content)
    with refuses(mg.FileError, str(path), words):
        experiments.read(path, {})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("test_accuracy", "high"), ("test_accuracy", float("nan")), ("seed", 1.0), ("seed", True), ("seconds", None),
        ("curve", []), ("curve", ["a"]), ("curve", 3), ("losses", {}), ("diverged", 1), ("protocol", 1), ("other", 1),
    ],
)  # fmt: skip
def test_values_of_other_types_in_results_without_a_digest(tmp_path, name, value):
    path = tmp_path / "results.json"
    results(path)
    content = json.loads(path.read_text())
    del content["sha256"]
    content["runs"][1][name] = value
    path.write_text(json.dumps(content))
    with refuses(mg.FileError, str(path), "cannot be resumed"):
        experiments.read(path, SETTINGS)


def test_a_place_that_cannot_be_written(tmp_path):
    with refuses(mg.FileError, "nowhere/results.json", "cannot be written"):
        experiments.write(tmp_path / "nowhere" / "results.json", [], {})


def test_the_summary_is_arithmetic():
    def row(protocol, seed, score):
        return Run(protocol, "toy", "", seed, score, 2.0 * seed, 1, 4)

    runs = [row("readout_only", 1, 0.5), row("readout_only", 2, 0.7), row("backprop", 1, 0.8), row("backprop", 2, 0.9)]
    floor, backprop = experiments.summary(runs)
    assert floor["above_readout"] is None
    assert backprop["test_accuracy"] == pytest.approx(0.85)
    assert backprop["deviation"] == pytest.approx(0.05 * 2**0.5)  # of two numbers: their difference over root two
    assert backprop["above_readout"] == pytest.approx(0.25)
    assert (backprop["seeds"], backprop["seconds"], backprop["diverged"]) == (2, 3.0, 0)
    (alone,) = experiments.summary(runs[2:3])
    assert (alone["seeds"], alone["deviation"], alone["above_readout"]) == (1, None, None)
