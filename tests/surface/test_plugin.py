"""The package of ``examples/plugin``, found by its entry points as an installed one is."""

import json
import tomllib

import pytest
import torch
from conftest import ROOT

import mpgraph as mg
from mpgraph import cli, registry
from mpgraph.architectures import mlp

PLUGIN = ROOT / "examples" / "plugin"


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """The package on the path, with the metadata that an installation writes."""
    project = tomllib.loads((PLUGIN / "pyproject.toml").read_text())["project"]
    about = tmp_path / "mpgraph_decay-0.1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    groups = project["entry-points"].items()
    text = "".join(f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in names.items()) for group, names in groups)
    (about / "entry_points.txt").write_text(text)
    monkeypatch.syspath_prepend(str(PLUGIN))
    monkeypatch.syspath_prepend(str(tmp_path))
    registry.registered.cache_clear()
    yield
    registry.registered.cache_clear()


def test_everything_is_known_by_name(installed, capsys):
    short = ["--seeds", "1", "--epochs", "1", "--limit", "64", "--quiet", "--json"]
    assert cli.main(["compare", "--protocols", "decaying_feedback", "--activation", "soft_sign", *short]) == 0
    rows = json.loads(capsys.readouterr().out)["summary"]
    assert [row["protocol"] for row in rows] == ["readout_only", "decaying_feedback"]
    assert cli.main(["protocols"]) == 0
    assert "Feedback alignment with weights that decay." in capsys.readouterr().out


def test_the_rule_is_feedback_alignment_and_decay(installed, tmp_path):
    from mpgraph_decay import DecayingFeedback

    from mpgraph.protocols import FeedbackAlignment

    x, y = torch.randn(5, 4, dtype=torch.float64), torch.tensor([0, 1, 2, 1, 0])
    plain, own = (
        mg.compile(mlp([4, 6, 3]), rule, dtype=torch.float64)
        for rule in (FeedbackAlignment(lr=0.1), DecayingFeedback(lr=0.1, decay=0.5))
    )
    state = plain.init(seed=1)
    one, two = plain.step(state, x, y)[0], own.step(state, x, y)[0]
    for name in ("x->h1", "h1->y"):
        expected = one[name]["w"] - 0.1 * 0.5 * state[name]["w"]
        torch.testing.assert_close(two[name]["w"], expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(two["h1.bias"]["w"], one["h1.bias"]["w"])  # biases do not decay
    DecayingFeedback(decay=0.5).save(tmp_path / "rule")
    assert repr(mg.load_protocol(tmp_path / "rule")) == repr(DecayingFeedback(decay=0.5))


def test_the_unit_has_the_derivative_of_its_function(installed):
    from mpgraph_decay import SoftSign

    z = torch.linspace(-3, 3, 24, dtype=torch.float64, requires_grad=True)
    y = SoftSign().apply(z)
    torch.testing.assert_close(y, torch.nn.functional.softsign(z))
    e = torch.linspace(1, 2, 24, dtype=torch.float64)
    (there,) = torch.autograd.grad(y, z, e)
    torch.testing.assert_close(SoftSign().vjp(e, z.detach(), y.detach()), there)


def test_the_family_is_meta_trained_on(installed, tmp_path, capsys):
    out = tmp_path / "run"
    command = ["meta-train", "--protocol", "backprop", "--family", "stripes", "--steps", "1", "--out", str(out)]
    assert cli.main([*command, "--set", "protocol.learn={ lr = 0.1 }", "--quiet"]) == 0
    assert (out / "rule" / "protocol.safetensors").is_file()
    task = mg.meta.make_family("stripes").draw(torch.Generator().manual_seed(0))
    assert task.x.shape == (10, 32, 2)
    assert set(task.y.flatten().tolist()) == {0, 1}
