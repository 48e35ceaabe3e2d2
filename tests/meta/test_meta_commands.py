"""`mpgraph meta-train` and `mpgraph evaluate` from settings and flags; pretrained rules by name."""

import json
import shlex

import pytest
import torch
from conftest import ROOT

import mpgraph as mg
from mpgraph import cli
from mpgraph.meta import Tasks, evaluate
from mpgraph.meta import settings as files
from mpgraph.serialization.protocol import pretrained

TOML = """
[protocol]
name = "backprop"
learn = { lr = 0.01 }

[network]
hidden = [8]

[family]
name = "few_shot"
data = "digits"
ways = 3
shots = 4
queries = 4

[estimator]
name = "recomputed"
steps = { log_uniform = [2, 5] }

[terms]
query = 0.3
hint = 0.7

[trainer]
tasks = 2
lr = 0.01
schedule = "cosine"
"""


@pytest.fixture
def settings(tmp_path):
    path = tmp_path / "settings.toml"
    path.write_text(TOML)
    return path


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_run_from_settings_in_two_parts_leaves_the_rule_of_a_run_in_one(settings, tmp_path, capsys):
    common = ["meta-train", "--settings", str(settings), "--quiet", "--lr", "0.02", "--steps", "6"]
    assert cli.main([*common, "--out", str(tmp_path / "whole")]) == 0
    # the same run, as if it had been killed after its checkpoint at the third step
    assert cli.main([*common, "--out", str(tmp_path / "parts"), "--every", "3"]) == 0
    (tmp_path / "parts" / "checkpoints" / "step-00000006.safetensors").unlink()
    assert cli.main([*common, "--out", str(tmp_path / "parts"), "--every", "3", "--resume"]) == 0
    whole, parts = (files_of(tmp_path / name / "rule") for name in ("whole", "parts"))
    assert whole == parts
    rule = mg.load_protocol(tmp_path / "whole" / "rule")
    assert rule.optimizer.lr.item() != pytest.approx(0.01)
    assert rule.record["settings"]["trainer"]["lr"] == 0.02
    assert rule.record["settings"]["terms"] == {"query": 0.3, "hint": 0.7}
    assert rule.record["family"]["data_sha256"]
    assert (tmp_path / "whole" / "curves.png").stat().st_size > 1000
    capsys.readouterr()
    evaluated = ["evaluate", str(tmp_path / "whole" / "rule"), "--tasks", "3", "--json"]
    assert cli.main([*evaluated, "--baselines", "nearest_class_mean"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found["rules"]) == {"rule", "nearest_class_mean"}
    assert 0.0 <= found["rules"]["rule"]["accuracy"][0] <= 1.0


def test_the_command_of_the_record_makes_the_same_rule(settings, tmp_path):
    run = ["meta-train", "--settings", str(settings), "--quiet", "--lr", "1e-2", "--steps", "2"]
    for change in ('trainer.rates={ "*.lr" = 0.5 }', "network.hidden=[4, 3]", "network.activation=relu"):
        run += ["--set", change]
    assert cli.main([*run, "--out", str(tmp_path / "one")]) == 0
    command = shlex.split(mg.load_protocol(tmp_path / "one" / "rule").record["command"])
    assert command[0] == "mpgraph"
    assert cli.main([*command[1:], "--quiet", "--out", str(tmp_path / "two")]) == 0
    for name in ("log.jsonl", "rule/protocol.safetensors"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_a_gradient_free_search_from_the_command_line(tmp_path, capsys):
    command = ["meta-train", "--protocol", "backprop", "--family", "sinusoids", "--estimator", "cma_es", "--quiet"]
    command += ["--set", "protocol.learn={ lr = 0.01 }", "--set", "network.loss=l2", "--set", "network.hidden=[4]"]
    command += ["--set", "estimator.population=4", "--steps", "2", "--out", str(tmp_path / "run")]
    assert cli.main(command) == 0
    assert mg.load_protocol(tmp_path / "run" / "rule").record["estimator"]["population"] == 4


def test_a_prior_from_the_command_line_is_saved_with_the_rule(settings, tmp_path, capsys):
    command = ["meta-train", "--settings", str(settings), "--quiet", "--steps", "3", "--out", str(tmp_path / "run")]
    assert cli.main([*command, "--set", "network.prior=*.w", "--set", "network.pool=4", "--set", "guard.factor=9"]) == 0
    given = files.complete(mg.load_protocol(tmp_path / "run" / "rule").record["settings"])
    trainer = files.trainer_of(given, steps=3)
    trainer.run(3)
    state = trainer.episode.program.load(tmp_path / "run" / "rule" / "prior.safetensors")
    for node in ("x->h1", "h1.bias", "h1->y", "y.bias"):
        assert torch.equal(state[node]["w"], trainer.rule()[f"prior.{node}.w"])
    capsys.readouterr()
    told = ["evaluate", str(tmp_path / "run" / "rule"), "--tasks", "2", "--json", "--baselines", ""]
    assert cli.main(told) == 0
    found = json.loads(capsys.readouterr().out)["rules"]["rule"]["loss"][0]
    wanted = evaluate(trainer.episode, trainer.rule(), Tasks(trainer.family, 0, 2, 0, "test"))["loss"].mean()
    assert found == pytest.approx(float(wanted), rel=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"protocol.name": "backpro"}, "unknown protocol 'backpro'.*did you mean 'backprop'"),
        ({"family.name": "few_shots"}, "unknown task family 'few_shots'"),
        ({"family.shot": 4}, "task family few_shot: .*unexpected keyword argument 'shot'"),
        ({"estimator.name": "unrol"}, "unknown estimator 'unrol'"),
        ({"trainer.optimizer": "adamm"}, "unknown optimizer 'adamm'"),
        ({"trainer.task": 3}, "unexpected keyword argument 'task'"),
        ({"terms.hints": 0.1}, "unknown term of the meta-loss 'hints'"),
        ({"network.prior": "*.v"}, r"prior='\*.v' matches none of x->h1.w, "),
        ({"estimator": {"name": "unroll", "steps": {"never_ending": []}}}, "as Unroll needs them; use Truncated"),
        ({"network.activation": "tahn"}, "unknown activation 'tahn'"),
        ({"teims.query": 1.0}, "settings: unknown table 'teims'.*did you mean 'terms'"),
        ({"protocol.learn": {}}, "has no meta-parameters"),
        ({"guard.policy": "jump"}, "policy='jump' must be one of"),
    ],
)
def test_settings_that_are_refused(settings, changes, message):
    with pytest.raises(mg.MPGraphError, match=message):
        files.trainer_of(files.changed(files.read(settings), changes))


def test_the_command_line_refuses_in_one_line(settings, tmp_path, capsys):
    run = ["meta-train", "--settings", str(settings), "--steps", "1", "--out", str(tmp_path / "run")]
    assert cli.main([*run, "--set", "lr=3"]) == 2
    assert "--set 'lr=3' must be TABLE.KEY=VALUE" in capsys.readouterr().err
    assert cli.main([*run, "--set", "family.filter=8"]) == 2
    assert "filter=8 must be a table, such as { channels = 8 }" in capsys.readouterr().err
    assert cli.main([*run, "--set", "family.filter={ channel = 8 }"]) == 2
    assert "filter: RandomFilter.__init__() got an unexpected keyword argument 'channel'" in capsys.readouterr().err
    assert cli.main([*run, "--set", 'trainer.rates={"*": 1.0}']) == 2
    assert '--set: {"*": 1.0} is not a value as TOML has it' in capsys.readouterr().err
    assert cli.main(["meta-train", "--settings", str(tmp_path / "no.toml"), "--steps", "1", "--out", "x"]) == 2
    assert "no.toml: No such file" in capsys.readouterr().err
    assert cli.main(["evaluate", str(tmp_path)]) == 2
    assert "a rule is a folder that holds it" in capsys.readouterr().err


def test_the_settings_of_the_examples_are_complete():
    examples = ROOT / "examples"
    for path in (*(examples / "plasticity").glob("*.toml"), *(examples / "blur").glob("*.toml")):
        given = files.complete(files.read(path))
        rule = files.protocol_of(given["protocol"])
        assert given["family"]["name"] == "online_stream" or path.parent.name != "plasticity"
        assert isinstance(rule, dict) or dict(rule.named_parameters())


@pytest.mark.parametrize("name", pretrained())
def test_pretrained_rules_say_where_they_come_from(name, capsys):
    rule = mg.load_protocol(name)
    assert {"command", "settings", "seed", "budget", "reached", "commit"} <= rule.record.keys()
    described = rule.record["family"]
    for family in described.get("families", [described]):
        while "family" in family:  # whose inputs or labels are changed
            family = family["family"]
        assert family.get("data_sha256") or family["class"] == "Sinusoids"
    assert cli.main(["protocols"]) == 0
    assert name in capsys.readouterr().out


@pytest.mark.parametrize("name", [name for name in pretrained() if name.startswith("plasticity")])
def test_pretrained_rules_of_plasticity_learn(name):
    rule = mg.load_protocol(name)
    from mpgraph.architectures import mlp

    program = mg.compile(mlp([64, 32, 10], mg.Softplus(10.0), bias=False), rule)
    from mpgraph import data

    digits, state = data.load("digits", standardise=False).flat(), program.init()
    with torch.no_grad():
        for i in range(600):
            state, _ = program.step(state, digits.train_x[i : i + 1], digits.train_y[i : i + 1])
        right = program.predict(state, digits.test_x).argmax(-1) == digits.test_y
    assert right.double().mean() > 0.6  # chance is 0.1: another network, other images


def test_a_rule_for_each_connection_has_coefficients_of_its_own(tmp_path):
    changes = {
        "network": {"sizes": [64, 8, 6, 10], "activation": {"softplus": 10.0}, "bias": False},
        "family": {"name": "online_stream", "data": "digits", "ways": 3, "shots": 4, "queries": 3},
        "estimator": {"name": "truncated", "window": 4},
    }
    given = files.changed(files.read(ROOT / "examples" / "plasticity" / "per_layer.toml"), changes)
    trainer = files.trainer_of(given)
    assert len(trainer.parameters) == 5
    trainer.run(2, tmp_path)
    loaded = mg.load_protocol(tmp_path / "rule")
    mg.compile(trainer.episode.program.graph.network, loaded)
    found = {name: p.item() for name, p in loaded.named_parameters()}
    assert found == {name: p.item() for name, p in trainer.parameters.items()}
