"""A rule on disk is the rule: same steps, same numbers; and a wrong file is one clear error."""

import json

import pytest
import torch
from safetensors.torch import save_file

import mpgraph as mg
from mpgraph.agents import schedules
from mpgraph.architectures import mlp
from mpgraph.protocols import Alignment, Backprop, FeedbackAlignment, NoisyUpdates
from mpgraph.serialization import protocol as saved


def steps(rule, count=2):
    torch.manual_seed(0)
    x, y = torch.randn(4, 3), torch.tensor([0, 1, 1, 0])
    program = mg.compile(mlp([3, 4, 2]), rule)
    state = program.init(seed=1, batch_size=4)
    for _ in range(count):
        state, _ = program.step(state, x, y)
    return state


def same(one, two):
    assert one.keys() == two.keys()
    assert all(torch.equal(one[n][c], two[n][c]) for n in one for c in one[n])


@pytest.mark.parametrize("name", mg.list_protocols())
def test_a_saved_rule_takes_the_same_steps(name, tmp_path):
    rule = mg.make_protocol(name)
    mg.compile(mlp([3, 4, 2]), rule)  # what it makes for each node is saved as well
    with torch.no_grad():
        for parameter in rule.parameters():
            parameter.mul_(0.9)
    rule.save(tmp_path)
    loaded = mg.load_protocol(tmp_path)
    assert type(loaded) is type(rule)
    same(steps(rule), steps(loaded))
    assert {k: v.tolist() for k, v in loaded.state_dict().items()} == {
        k: v.tolist() for k, v in rule.state_dict().items()
    }


def test_arguments_of_every_sort_survive(tmp_path):
    rule = FeedbackAlignment(
        lr=mg.learnable(0.3),
        surrogate="tanh",
        optimizers={"w": mg.Adam(1e-3, betas=(0.8, 0.99))},
    )
    with torch.no_grad():
        rule.optimizer.lr.fill_(0.7)  # as learned, not as given
    rule.save(tmp_path, record={"trained on": ["digits"], "steps": 3})
    loaded = mg.load_protocol(tmp_path)
    assert repr(loaded) == repr(rule)
    assert loaded.optimizer.lr.requires_grad
    assert loaded.optimizer.lr.item() == rule.optimizer.lr.item()
    assert loaded.record == {"trained on": ["digits"], "steps": 3}
    loaded.save(tmp_path / "again")
    assert mg.load_protocol(tmp_path / "again").record == loaded.record
    same(steps(rule), steps(loaded))


def test_a_choice_by_region_is_saved_whole(tmp_path):
    rule = mg.Regions({"h1*": FeedbackAlignment(lr=0.2), "*": Backprop(lr=mg.learnable(0.1))})
    rule.save(tmp_path)
    same(steps(rule), steps(mg.load_protocol(tmp_path)))


@pytest.mark.parametrize(
    "schedule",
    [schedules.Linear(1.0, 0.0, 10, delay=2), schedules.Exponential(1.0, 0.1, 5), schedules.Cycle(0.0, 1.0, 4)],
)
def test_schedules_are_written_as_values(schedule, tmp_path):
    text = json.dumps(saved._plain(schedule, "lr"))
    assert saved._value(json.loads(text), tmp_path) == schedule


def test_double_precision_survives(tmp_path):
    rule = Backprop(lr=mg.learnable(0.1)).double()
    with torch.no_grad():
        rule.optimizer.lr.fill_(0.1)
    rule.save(tmp_path)
    assert mg.load_protocol(tmp_path).optimizer.lr.item() == 0.1


def test_what_a_file_cannot_hold_is_refused(tmp_path):
    class Mine(Backprop):
        pass

    with pytest.raises(mg.FileError, match=r"Mine is not registered.*entry point.*mpgraph\.protocols"):
        Mine().save(tmp_path)
    with pytest.raises(mg.FileError, match=r"argument surrogate = sin .*Function.*by its name"):
        FeedbackAlignment(surrogate=mg.Function(torch.sin)).save(tmp_path)
    with pytest.raises(mg.FileError, match="record must be"):
        Backprop().save(tmp_path, record={"net": object()})
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").write_text("")
    with pytest.raises(mg.FileError, match="cannot write"):
        Backprop().save(tmp_path / "file")


def changed(folder, **new):
    about = json.loads((folder / saved.ABOUT).read_text())
    (folder / saved.ABOUT).write_text(json.dumps({**about, **new}))


@pytest.mark.parametrize(
    ("new", "words"),
    [
        ({"class": "nonsense"}, "unknown protocol 'nonsense': allowed are"),
        ({"class": "os:system", "arguments": {"command": "true"}}, "unknown protocol 'os:system'"),
        ({"class": "backprop", "group": "console_scripts"}, "describes no rule"),
        ({"class": "sgd", "group": "optimizers"}, "which is no rule"),
        ({"version": 2}, "version 2.*reads up to 1.*upgrade"),
        ({"version": "one"}, "must be a positive integer, got .one."),
        ({"format": "other"}, "describes no rule of mpgraph"),
        ({"arguments": {"speed": 3}}, "Backprop refuses its arguments.*speed"),
        ({"arguments": {"lr": {"learnable": "x", "dtype": "float32"}}}, "is no tensor"),
        ({"arguments": {"lr": {"class": "linear"}}}, "describes no rule, optimiser or schedule"),
        ({"arguments": 3}, "describes no rule"),
        ({"record": 3}, "'record' must be a dictionary"),
    ],
)
def test_a_wrong_description_is_refused(new, words, tmp_path):
    Backprop().save(tmp_path)
    changed(tmp_path, **new)
    with pytest.raises(mg.FileError, match=f"(?s){words}"):
        mg.load_protocol(tmp_path)


def test_damaged_and_missing_files(tmp_path):
    with pytest.raises(mg.FileError, match=r"cannot read .*protocol\.json"):
        mg.load_protocol(tmp_path / "nowhere")
    Backprop(lr=mg.learnable(0.1)).save(tmp_path)
    for name in (saved.TENSORS, saved.ABOUT):
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[: len(whole) // 2])
        with pytest.raises(mg.FileError, match=f"{name} is .*damaged"):
            mg.load_protocol(tmp_path)
        (tmp_path / name).unlink()
        with pytest.raises(mg.FileError, match=f"cannot read .*{name}"):
            mg.load_protocol(tmp_path)
        (tmp_path / name).write_bytes(whole)
    mg.load_protocol(tmp_path)


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"optimizer.lr": torch.zeros(2)}, r"optimizer\.lr has shape \(2,\).*needs \(\)"),
        ({"lr": torch.zeros(())}, r"lacks optimizer\.lr"),
    ],
)
def test_tensors_that_do_not_fit(tensors, words, tmp_path):
    Backprop(lr=mg.learnable(0.1)).save(tmp_path)
    save_file(tensors, tmp_path / saved.TENSORS)
    with pytest.raises(mg.FileError, match="not of the same save"):
        mg.load_protocol(tmp_path)
    changed(tmp_path, tensors_sha256=saved._digest(tensors))
    with pytest.raises(mg.FileError, match=words):
        mg.load_protocol(tmp_path)


def test_a_killed_write_leaves_the_old_rule(tmp_path, monkeypatch):
    Backprop(lr=mg.learnable(0.1)).save(tmp_path)

    def killed(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mpgraph.serialization.atomic.os.replace", killed)
    with pytest.raises(mg.FileError, match="No space left"):
        Backprop(lr=mg.learnable(0.5)).save(tmp_path)
    assert mg.load_protocol(tmp_path).optimizer.lr.item() == pytest.approx(0.1)
    assert sorted(path.name for path in tmp_path.iterdir()) == [saved.ABOUT, saved.TENSORS]


def test_a_write_killed_between_the_files_is_whole(tmp_path, monkeypatch):
    FeedbackAlignment(lr=mg.learnable(0.1)).save(tmp_path)
    old = (tmp_path / saved.ABOUT).read_bytes()
    Backprop(lr=mg.learnable(0.5)).save(tmp_path, record={"n": 1})
    (tmp_path / saved.ABOUT).write_bytes(old)
    loaded = mg.load_protocol(tmp_path)
    assert (type(loaded), loaded.record, loaded.optimizer.lr.item()) == (Backprop, {"n": 1}, 0.5)


def test_a_loaded_rule_is_saved_whole_before_any_network_needs_it(tmp_path):
    rule = mg.make_protocol("mplp")
    mg.compile(mlp([3, 4, 2]), rule)
    rule.save(tmp_path / "one")
    mg.load_protocol(tmp_path / "one").save(tmp_path / "two", record={"copied": True})
    same(steps(rule), steps(mg.load_protocol(tmp_path / "two")))


def test_a_changed_number_is_noticed(tmp_path):
    Backprop(lr=mg.learnable(0.1)).save(tmp_path)
    data = bytearray((tmp_path / saved.TENSORS).read_bytes())
    data[-1] ^= 1
    (tmp_path / saved.TENSORS).write_bytes(data)
    with pytest.raises(mg.FileError, match="checksum differs"):
        mg.load_protocol(tmp_path)


@pytest.mark.parametrize("folder", [None, 3, ""])
def test_a_folder_is_a_path(folder):
    with pytest.raises(mg.FileError, match="give its path"):
        mg.load_protocol(folder)
    with pytest.raises(mg.FileError, match="give its path"):
        Backprop().save(folder)


def test_combinations_are_registered_too(tmp_path):
    rule = Alignment(decay=0.3, self=0.4, optimizer=NoisyUpdates(mg.SGD(0.1), sigma=0.0))
    rule.save(tmp_path)
    same(steps(rule), steps(mg.load_protocol(tmp_path)))
