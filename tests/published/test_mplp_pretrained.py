"""The MPLPs that ship: what their records promise, and that they teach networks that they never met."""

import json
import math

import pytest
import torch

import mpgraph as mg
from mpgraph import cli, data
from mpgraph.architectures import mlp, random_graph
from mpgraph.meta import Sinusoids, Tasks


@pytest.fixture(scope="module")
def digits():
    return data.load("digits").flat()


@torch.no_grad()
def accuracy(network, digits, batch=8, updates=20, priors=3):
    program = mg.compile(network, mg.load_protocol("mplp_mnist"))
    scores = []
    for i in range(priors):
        state, generator = program.init(1000 + i, batch_size=batch), torch.Generator().manual_seed(i)
        for _ in range(updates):
            rows = torch.randint(len(digits.train_x), (batch,), generator=generator)
            state, _ = program.step(state, digits.train_x[rows], digits.train_y[rows])
        scores.append((program.predict(state, digits.test_x).argmax(1) == digits.test_y).double().mean())
    return float(torch.stack(scores).mean())


def test_the_record_says_how_it_is_meant_to_be_used():
    record = mg.load_protocol("mplp_mnist").record
    assert record["network"] == [144, 50, 10]
    assert (record["activation"], record["batch"], record["updates"]) == ("sigmoid", 8, 20)
    assert record["images"]["side"] ** 2 == record["network"][0]
    assert record["settings"]["estimator"]["name"] == "alone"
    assert "held out from the training sets" in record["teacher"]["chosen"]


@pytest.mark.parametrize("batch", [8, 5])
def test_it_teaches_what_the_released_file_reaches_on_other_images_and_batches(digits, batch):
    """50.65 % (Randazzo et al., 2020, their file, on MNIST after twenty updates of 8), here in as many steps."""
    assert accuracy(mlp([64, 50, 10], "sigmoid"), digits, batch) > 0.5065


def test_step_units_use_the_learner_of_sigmoids_and_learn(digits):
    """44.42 % by the released file."""
    with pytest.warns(UserWarning, match="no learner of step_unit; these nodes use that of sigmoid_unit"):
        assert accuracy(mlp([64, 50, 10], "step"), digits) > 0.4442


def test_it_goes_on_learning_after_the_updates_that_it_is_meant_for(digits):
    """A rule that learned until 120 updates and forgot until 200 was no better."""
    network = mlp([64, 20, 10], "sigmoid")
    assert accuracy(network, digits, updates=200, priors=2) > accuracy(network, digits, priors=2)


@pytest.mark.filterwarnings("ignore:MPLP. this rule has no learner")
@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_other_units_learn_above_their_readout_alone(digits, activation):
    network = mlp([64, 32, 10], activation)
    alone = accuracy(network.readout_only(), digits, updates=60, priors=2)
    assert accuracy(network, digits, updates=60, priors=2) > alone


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:MPLP. this rule has no learner")
def test_a_deep_random_graph_of_step_neurons_learns_above_its_readout_alone(digits):
    """Errors that grew from level to level would leave nothing to learn from but noise."""
    network = random_graph(100, activation="step")  # 86 levels
    alone = accuracy(network.readout_only(), digits, updates=100, priors=1)
    assert accuracy(network, digits, updates=100, priors=1) > alone


@torch.no_grad()
def test_the_learned_prior_fits_sinusoids_in_two_steps_and_random_weights_do_not():
    """0.00097 by the released files (Randazzo et al., 2020, section 4.1.2)."""
    program = mg.compile(mlp([1, 20, 20, 1], "relu", "l2"), mg.load_protocol("mplp_sinusoid_prior"))
    family = Sinusoids(amplitude=(0.1, 0.5), fresh=True, steps=2, queries=100)
    batch = Tasks(family, seed=1, count=50, split="test").batch().to(program.device, program.dtype)

    def losses(begin):
        found = []
        for i in range(50):
            state = begin
            for t in range(2):
                state, _ = program.step(state, batch.x[i, t], batch.y[i, t])
            found.append(0.5 * (program.predict(state, batch.query_x[i]) - batch.query_y[i]).square().mean())
        return float(torch.stack(found).mean())

    assert losses(program.load("mplp_sinusoid_prior")) < 0.00097
    assert losses(program.init(0)) > 0.01


def test_the_record_of_the_learned_prior_names_both_of_its_trainings():
    record = mg.load_protocol("mplp_sinusoid_prior").record
    assert (record["network"], record["batch"], record["updates"]) == ([1, 20, 20, 1], 10, 2)
    assert "examples/mplp/prior.toml" in record["command"]
    assert ["examples/mplp/maml.toml" in stage["command"] for stage in record["stages"]] == [True]


def test_the_command_line_evaluates_it_with_its_prior(capsys):
    command = ["evaluate", "mplp_sinusoid_prior", "--tasks", "40", "--baselines", "", "--json"]
    assert cli.main(command) == 0
    loss, _ = json.loads(capsys.readouterr().out)["rules"]["mplp_sinusoid_prior"]["loss"]
    assert loss < 0.00097


@torch.no_grad()
def fitted(tasks):
    """L2 losses ``(tasks, 6)`` before and after each of five steps of ten points of a sinusoid of its own."""
    rule = mg.load_protocol("mplp_sinusoid")
    program = mg.compile(mlp(rule.record["network"], rule.record["activation"], rule.record["loss"]), rule)
    generator, query, rows = torch.Generator().manual_seed(1), torch.linspace(-5.0, 5.0, 100)[:, None], []
    for i in range(tasks):
        a, p, *points = torch.rand(2 + 50, generator=generator)
        x = 10.0 * torch.stack(points).reshape(5, 10, 1) - 5.0
        state, losses = program.init(2000 + i, batch_size=10), []
        for t in range(6):
            wrong = program.predict(state, query) - (0.1 + 0.4 * a) * torch.sin(query + math.pi * p)
            losses.append(0.5 * wrong.square().mean())
            if t < 5:
                state, _ = program.step(state, x[t], (0.1 + 0.4 * a) * torch.sin(x[t] + math.pi * p))
        rows.append(torch.stack(losses))
    return torch.stack(rows)


def test_five_steps_of_ten_points_fit_a_sinusoid_from_random_weights():
    """At most 0.003 on average; predicting zero has 0.026, and no SGD or Adam comes below 0.01."""
    mean = fitted(16).mean(0)
    assert float(mean[0]) > 0.015  # nothing is known before the first step
    assert float(mean[5]) < 0.003
    assert bool((mean[1:] < mean[:-1]).all())


def test_the_record_of_the_rule_for_sinusoids_says_how_it_is_meant_to_be_used():
    record = mg.load_protocol("mplp_sinusoid").record
    assert record["network"] == [1, 20, 20, 1]
    assert (record["activation"], record["loss"], record["batch"], record["updates"]) == ("relu", "l2", 10, 5)
    assert record["settings"]["estimator"]["name"] == "unroll"
    assert "imitated" in record["teacher"]
