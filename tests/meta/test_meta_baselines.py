"""Baselines of learned rules: an LSTM of torch and a layer with fast weights, run by hand."""

import json

import pytest
import torch
from torch.nn import functional

import mpgraph as mg
from mpgraph import cli
from mpgraph.meta import (
    Evolution,
    FastWeights,
    MetaRNN,
    MetaTrainer,
    Recomputed,
    Sinusoids,
    Tasks,
    Truncated,
    Unroll,
    make_family,
)

TERMS = {"query": 1.0, "stream": 0.4, "hint": 0.3, "final": 0.2}


def by_hand(weights, tasks, loss, told, classes):
    """Mean meta-loss of torch's own cell, which is told the error or the target of each example before the next."""
    cell = torch.nn.LSTMCell(weights["input"].shape[1], weights["recurrent"].shape[1], dtype=torch.float64)
    total = 0.0
    parameters = {
        "weight_ih": weights["input"], "weight_hh": weights["recurrent"],
        "bias_ih": weights["bias"], "bias_hh": torch.zeros_like(weights["bias"]),
    }  # fmt: skip

    def step(x, before, h, c):
        h, c = torch.func.functional_call(cell, parameters, (torch.cat([x, before], 1), (h, c)))
        return h, c, functional.linear(h, weights["output"], weights["output_bias"])

    def losses(predictions, y):
        if loss == "l2":
            return 0.5 * (predictions - y).square().sum(1)
        return functional.cross_entropy(predictions, y, reduction="none")

    def asked(x, y, before, h, c):
        many = [step(one[None], before, h, c)[2] for one in x]
        return losses(torch.cat(many), y).mean()

    for task in tasks:
        h = c = torch.zeros(1, cell.hidden_size, dtype=torch.float64)
        before = torch.zeros(1, classes, dtype=torch.float64)
        for x, y in zip(task.x.double(), task.y, strict=True):
            seen = []
            y = y if loss == "cross_entropy" else y.double()
            for i in range(len(x)):
                h, c, p = step(x[i : i + 1], before, h, c)
                target = functional.one_hot(y[i : i + 1], classes) if loss == "cross_entropy" else y[i : i + 1]
                link = p.softmax(1) if loss == "cross_entropy" else p
                before = link - target if told == "error" else target.double()
                seen.append(losses(p, y[i : i + 1]))
            total = total + TERMS["stream"] * torch.cat(seen).mean() / len(task.x)
            total = total + TERMS["hint"] * asked(x, y, before, h, c) / len(task.x)
        query_y = task.query_y if loss == "cross_entropy" else task.query_y.double()
        total = total + TERMS["query"] * asked(task.query_x.double(), query_y, before, h, c)
        total = total + TERMS["final"] * asked(x, y, before, h, c)
    return total / len(tasks)


@pytest.mark.parametrize("told", ["error", "label"])
@pytest.mark.parametrize("loss", ["l2", "cross_entropy"])
@pytest.mark.parametrize("estimator", [Unroll, lambda: Recomputed(segment=2), lambda: Truncated(3)])
def test_the_recurrent_baseline_is_an_lstm_of_torch(told, loss, estimator):
    family = Sinusoids(shots=2, queries=3, steps=3)
    if loss == "cross_entropy":
        family = make_family("few_shot", data="digits", ways=3, shots=2, queries=1, batch=2)
    learner = MetaRNN(family.inputs, family.outputs, 4, loss, TERMS, told=told, dtype=torch.float64)
    tasks = Tasks(family, 4, 2)
    found = estimator().estimate(learner, learner.parameters(), tasks, torch.Generator())
    weights = {name: p.clone().requires_grad_() for name, p in learner.parameters().items()}
    wanted = by_hand(weights, tasks, loss, told, family.outputs)
    assert abs(found.loss - wanted) < 1e-12
    slopes = dict(zip(weights, torch.autograd.grad(wanted, list(weights.values())), strict=True))
    for name, slope in slopes.items():
        assert (found.gradient[name] - slope).abs().max() < 1e-11


def fast_by_hand(weights, task, rule, loss, classes):
    """Predictions of a stream, and of its query at the end, synapse by synapse."""
    slow, coefficient, bias = weights["slow"], weights["coefficient"], weights["bias"]
    eta = 1.0 / (1.0 + torch.exp(-weights["rate"]))
    many = slow.shape[1]
    fast = [[torch.zeros((), dtype=torch.float64) for _ in range(many)] for _ in range(classes)]

    def run(x):
        return torch.stack([
            bias[j] + sum((slow[j, i] + coefficient[j, i] * fast[j][i]) * x[i] for i in range(many))
            for j in range(classes)
        ])  # fmt: skip

    found, nothing = [], torch.zeros(2 * classes, dtype=torch.float64)
    for image, y in zip(task.x.double().flatten(0, 1), task.y.flatten(0, 1), strict=True):
        prediction = run(torch.cat([image, nothing]))
        found.append(prediction)
        target = functional.one_hot(y, classes).double() if loss == "cross_entropy" else y.double()
        error = prediction.softmax(0) - target if loss == "cross_entropy" else prediction - target
        x = torch.cat([image, error, target])
        post = run(x).softmax(0) if loss == "cross_entropy" else run(x)
        for j in range(classes):
            for i in range(many):
                decay = fast[j][i] if rule == "hebb" else post[j] ** 2 * fast[j][i]
                fast[j][i] = fast[j][i] - eta * decay + eta * x[i] * post[j]
    asked = torch.stack([run(torch.cat([image, nothing])) for image in task.query_x.double()])
    return torch.stack(found), asked


@pytest.mark.parametrize("rule", ["hebb", "oja"])
@pytest.mark.parametrize("loss", ["l2", "cross_entropy"])
def test_fast_weights_are_those_of_a_loop_over_synapses(rule, loss):
    family = Sinusoids(shots=2, queries=3, steps=2)
    if loss == "cross_entropy":
        family = make_family("few_shot", data="digits", ways=3, shots=1, queries=1, batch=1)
    learner = FastWeights(family.inputs, family.outputs, rule, loss, {"query": 1.0, "stream": 0.4}, dtype=torch.float64)
    begin = {name: p + 0.3 if name == "coefficient" else p for name, p in learner.parameters().items()}
    begin["rate"] = begin["rate"] + 3.0  # fast enough to be seen in two steps
    tasks = Tasks(family, 4, 2)
    found = Unroll().estimate(learner, begin, tasks, torch.Generator())
    weights = {name: p.clone().requires_grad_() for name, p in begin.items()}

    def mean_loss(predictions, y):
        if loss == "l2":
            return 0.5 * (predictions - y.double().reshape(predictions.shape)).square().sum(1).mean()
        return functional.cross_entropy(predictions, y.flatten())

    wanted = 0.0
    for task in tasks:
        stream, asked = fast_by_hand(weights, task, rule, loss, family.outputs)
        wanted = wanted + 0.4 * mean_loss(stream, task.y) + mean_loss(asked, task.query_y)
        shown = learner.predictions(begin, task.x.double().flatten(0, 1), task.y.flatten(0, 1))
        assert (shown - stream).abs().max() < 1e-12
    wanted = wanted / len(tasks)
    assert abs(found.loss - wanted) < 1e-12
    slopes = torch.autograd.grad(wanted, list(weights.values()))
    for name, slope in zip(weights, slopes, strict=True):
        assert slope.abs().max() > 1e-9  # every meta-parameter has a part in it
        assert (found.gradient[name] - slope).abs().max() < 1e-11


@pytest.mark.parametrize("told", ["error", "label"])
def test_what_the_recurrent_baseline_predicts_is_what_its_loss_is_of(told):
    family = make_family("few_shot", data="digits", ways=3, shots=3, queries=1, batch=1)
    learner = MetaRNN(family.inputs, 3, 4, terms={"stream": 1.0}, told=told, dtype=torch.float64)
    batch = learner.prepared(Tasks(family, 4, 1).batch())
    wanted = learner.run(learner.parameters(), batch).loss
    y = batch.y[0, :, 0]
    found = learner.predictions(learner.parameters(), batch.x[0, :, 0], y)
    assert abs(torch.nn.functional.cross_entropy(found, y) - wanted) < 1e-12


def test_the_recurrent_baseline_is_trained_and_resumed_like_a_rule(tmp_path):
    def trainer():
        return MetaTrainer(MetaRNN(1, 1, 4, "l2"), Sinusoids(shots=2, steps=3), Evolution(0.01, 1), tasks=2)

    trainer().run(6, tmp_path / "whole", every=2)
    trainer().run(4, tmp_path / "parts", every=2)
    trainer().run(6, tmp_path / "parts", every=2, resume=True)
    for name in ("log.jsonl", "rule/meta_rnn.safetensors"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "parts" / name).read_bytes()
    with pytest.raises(mg.InputError, match="there is no rule"):
        trainer().protocol()
    with pytest.raises(mg.InputError, match="unknown term of the meta-loss 'size'"):
        MetaRNN(1, 1, terms={"size": 1.0})
    with pytest.raises(mg.InputError, match="rule='hebbian' must be one of 'hebb', 'oja'"):
        FastWeights(1, 1, "hebbian")
    with pytest.raises(mg.InputError, match="FastWeights has 1 inputs, the tasks 2"):
        FastWeights(1, 1).begin(Tasks(make_family("boolean"), 0, 1).batch())


@pytest.mark.parametrize("name", ["meta_rnn", "fast_weights"])
def test_a_baseline_from_the_command_line_beside_a_rule(tmp_path, capsys, name):
    tasks = ["--family", "sinusoids", "--set", "network.loss=l2", "--quiet", "--steps", "2"]
    rnn, rule = str(tmp_path / "rnn"), str(tmp_path / "rate")
    option = {"meta_rnn": "protocol.hidden=4", "fast_weights": "protocol.rule=hebb"}[name]
    assert cli.main(["meta-train", "--protocol", name, "--set", option, *tasks, "--out", rnn]) == 0
    learn = ["--protocol", "backprop", "--set", "protocol.learn={ lr = 0.01 }", "--set", "network.hidden=[4]"]
    assert cli.main(["meta-train", *learn, *tasks, "--out", rule]) == 0
    capsys.readouterr()
    told = ["--tasks", "3", "--json", "--baselines"]
    assert cli.main(["evaluate", rule + "/rule", *told, rnn + "/rule"]) == 0
    beside = json.loads(capsys.readouterr().out)["rules"]
    assert cli.main(["evaluate", rnn + "/rule", *told, ""]) == 0
    alone = json.loads(capsys.readouterr().out)["rules"]
    assert beside[rnn + "/rule"] == alone["rule"]
    assert beside["rule"] != alone["rule"]
    assert cli.main(["evaluate", rule + "/rule", *told, "nonsense"]) == 2
    assert "--baselines 'nonsense'" in capsys.readouterr().err
