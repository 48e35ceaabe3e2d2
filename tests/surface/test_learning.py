"""What a newcomer meets: defaults, on real data. Bars are the project's own; seeds are fixed."""

import pytest
import torch

import mpgraph as mg
from mpgraph import data, experiments
from mpgraph.architectures import mlp
from mpgraph.protocols import Backprop, FeedbackAlignment


def scores(network, rules, epochs=20, task="digits", root=None, seeds=3):
    runs = experiments.compare(
        network,
        rules,
        lambda seed: data.load(task, root, seed=seed),
        seeds=range(seeds),
        epochs=epochs,
        progress=False,
    )
    return {row["protocol"]: row for row in experiments.summary(runs)}


def test_digits_with_defaults():
    found = scores(
        mlp([64, 32, 10]),
        {"readout_only": Backprop, "backprop": Backprop, "feedback_alignment": FeedbackAlignment},
    )
    assert found["backprop"]["test_accuracy"] >= 0.96
    assert found["feedback_alignment"]["test_accuracy"] >= 0.94
    assert found["feedback_alignment"]["above_readout"] >= 0.03
    assert 0.83 <= found["readout_only"]["test_accuracy"] <= 0.93


@pytest.mark.filterwarnings("ignore::mpgraph.FlatUnitWarning")
def test_step_units_learn_through_a_surrogate_only():
    network = mlp([64, 32, 10], activation="step")
    rules = {
        "readout_only": Backprop,
        "backprop": Backprop,
        "fa": lambda: FeedbackAlignment(surrogate="tanh"),
    }
    found = scores(network, rules)
    assert found["fa"]["test_accuracy"] >= 0.92
    assert found["backprop"]["above_readout"] == 0.0  # the first layer never moves: it is the readout alone
    assert found["readout_only"]["test_accuracy"] <= 0.86


def test_mnist_in_two_epochs(data_root):
    found = scores(mlp([784, 128, 10]), {"backprop": Backprop}, epochs=2, task="mnist", root=data_root, seeds=1)
    assert found["backprop"]["test_accuracy"] >= 0.96


def test_training_is_the_same_twice():
    digits = data.load("digits").flat().head(300)
    program = mg.compile(mlp([64, 16, 10]), FeedbackAlignment())
    one, two = (experiments.train(program, digits, epochs=2, seed=4) for _ in range(2))
    assert one[1:] == two[1:]
    assert all(torch.equal(one[0][n][c], two[0][n][c]) for n in one[0] for c in one[0][n])
