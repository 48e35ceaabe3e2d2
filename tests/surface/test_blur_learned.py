"""The pretrained genome of BLUR: past tuned gradient descent on MNIST, and on Fashion-MNIST, which it never met."""

import json

import torch

import mpgraph as mg
from mpgraph import cli, data, experiments, probes
from mpgraph.architectures import mlp
from mpgraph.protocols import BLUR

SGD = {"mnist": 0.839, "fashion_mnist": 0.715}  # tuned, after 15 updates, means over ten networks


def test_fifteen_updates_beat_tuned_gradient_descent(data_root):
    rule = mg.load_protocol("blur_mnist")
    record = rule.record
    assert (record["network"], record["batch"], record["updates"]) == ([784, 512, 10], 128, 15)
    assert "fashion_mnist" not in [family["data"] for family in record["family"]["families"]]
    program = mg.compile(mlp(record["network"], record["activation"]), rule)
    rows = torch.randperm(60000, generator=torch.Generator().manual_seed(100)).split(record["batch"])
    for name, tuned in SGD.items():
        found, state = data.load(name, data_root).flat(), program.init(seed=100)
        with torch.no_grad():
            for part in rows[: record["updates"]]:
                state, _ = program.step(state, found.train_x[part], found.train_y[part])
        right = experiments.accuracy(program, state, found.test_x, found.test_y)
        assert right > tuned + 0.03


def test_it_learns_the_digits_of_compare(capsys):
    command = [
        "compare",
        "--task",
        "digits",
        "--protocols",
        "blur,blur_mnist",
        "--seeds",
        "1",
        "--epochs",
        "5",
        "--json",
    ]
    assert cli.main(command) == 0
    rows = {row["protocol"]: row["above_readout"] for row in json.loads(capsys.readouterr().out)["summary"]}
    assert rows["blur"] > 0.0
    assert rows["blur_mnist"] > 0.05


def test_its_update_is_no_gradient():
    """Section 3.5: the Jacobian of an update that is one is symmetric."""
    generator = torch.Generator().manual_seed(0)
    x, found = torch.randn(32, 2, generator=generator, dtype=torch.float64), {}
    for name, rule in (("backprop", BLUR()), ("learned", mg.load_protocol("blur_mnist"))):
        program = mg.compile(mlp([2, 6, 2], "tanh"), rule, dtype=torch.float64)
        found[name] = probes.asymmetry(program, program.init(0), x, (x.prod(1) > 0).long()).share
    assert found["backprop"] < 1e-10
    assert found["learned"] > 1e-2
