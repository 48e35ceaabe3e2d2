"""The VS-ML that ships: networks learn by unrolling it, as well as by gradient descent from the same weights."""

import pytest
import torch
from torch.nn import functional

import mpgraph as mg
from mpgraph import data, experiments
from mpgraph.architectures import mlp
from mpgraph.protocols.vsml.imitation import RATE, weight


@pytest.fixture(scope="module")
def digits():
    return data.load("digits").flat()


def weights(state, known):
    return {name: weight(channels["c"].mean(0), known) for name, channels in state.items() if "c" in channels}


def descent(w, x, y, updates):
    """Gradient descent by autograd, on the same batches; tanh before each layer, biases from tanh(1)."""

    def predict(x):
        for pre, post in [("x", "h1"), ("h1", "y")] if "h1.bias" in w else [("x", "y")]:
            x = torch.tanh(x) @ w[f"{pre}->{post}"].T + torch.tanh(torch.ones(())) * w[f"{post}.bias"]
        return x

    for rows in updates:
        w = {name: tensor.detach().requires_grad_() for name, tensor in w.items()}
        loss = functional.cross_entropy(predict(x[rows]), y[rows])
        w = {n: t - RATE * g for (n, t), g in zip(w.items(), torch.autograd.grad(loss, list(w.values())), strict=True)}
    return predict


@pytest.mark.parametrize(("sizes", "batch"), [([64, 10], 64), ([64, 32, 10], 24)], ids=["shallow", "deep"])
def test_the_clone_learns_as_gradient_descent_does(digits, sizes, batch):
    rule = mg.load_protocol("vsml_clone")
    program, known = mg.compile(mlp(sizes, "tanh"), rule), rule.cells[0].random
    state, generator = program.init(0, batch_size=batch), torch.Generator().manual_seed(0)
    updates = [torch.randint(len(digits.train_x), (batch,), generator=generator) for _ in range(60)]
    predict = descent(weights(state, known), digits.train_x, digits.train_y, updates)
    with torch.no_grad():
        for rows in updates:
            state, _ = program.step(state, digits.train_x[rows], digits.train_y[rows])
    cloned = experiments.accuracy(program, state, digits.test_x, digits.test_y)
    wanted = float((predict(digits.test_x).argmax(1) == digits.test_y).double().mean())
    assert wanted > 0.8  # it is a teacher
    assert cloned > wanted - 0.04


@torch.no_grad()
def test_the_online_learner_learns_from_the_first_image_and_goes_on_from_a_file(digits, tmp_path):
    program = mg.compile(mlp([64, 10], bias=False), mg.load_protocol("vsml_online"))
    right = []
    for seed in range(3):
        rows = torch.randperm(len(digits.test_x), generator=torch.Generator().manual_seed(seed))[:150]
        state = program.init(seed, batch_size=1)
        for i, row in enumerate(rows):
            if i == 20:
                program.save(state, tmp_path / "learner.safetensors")
                state = program.load(tmp_path / "learner.safetensors")
            state, out = program.step(state, digits.test_x[row, None], digits.test_y[row, None])
            right.append(out.prediction.argmax() == digits.test_y[row])
    assert torch.stack(right).double().mean() > 0.3  # chance is 0.1; other images, another size


def test_the_records_say_how_they_are_meant_to_be_used():
    record = mg.load_protocol("vsml_clone").record
    assert (record["network"], record["batch"], record["rate"]) == ([784, 32, 10], 64, RATE)
    assert record["images"]["side"] ** 2 == record["network"][0]
    assert record["settings"]["estimator"]["name"] == "alone"
    record = mg.load_protocol("vsml_online").record
    assert (record["network"], record["batch"], record["updates"]) == ([49, 10], 1, 200)
    assert record["images"]["side"] ** 2 == record["network"][0]
    assert [stage["settings"]["estimator"]["name"] for stage in record["stages"]] == ["unroll"] * 2
    assert record["stages"][0]["settings"]["protocol"]["name"] == "vsml"  # no other rule before
