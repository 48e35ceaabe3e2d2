"""A rule on disk is the rule: same steps, same numbers; and a wrong file is one clear error."""

import hashlib
import json
import random

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import mpgraph as mg
from mpgraph.agents import schedules
from mpgraph.architectures import mlp
from mpgraph.protocols import Alignment, Backprop, FeedbackAlignment, NoisyUpdates
from mpgraph.serialization import protocol as saved
from mpgraph.serialization.tensors import packed


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


def about(folder):
    """The description in the file of a rule."""
    with safe_open(folder / saved.TENSORS, framework="pt") as file:
        return json.loads(json.loads(file.metadata()["mpgraph"])["about"])


def changed(folder, tensors=None, **new):
    """The file of a rule with another description or other tensors, and the right checksum."""
    path = folder / saved.TENSORS
    text = json.dumps({**about(folder), **new})
    path.write_bytes(packed(saved.FORMAT, load_file(path) if tensors is None else tensors, {"about": text}))


@pytest.mark.parametrize(
    ("new", "words"),
    [
        ({"class": "nonsense"}, "unknown protocol 'nonsense': allowed are"),
        ({"class": "os:system", "arguments": {"command": "true"}}, "unknown protocol 'os:system'"),
        ({"class": "backprop", "group": "console_scripts"}, "does not describe a rule"),
        ({"class": "sgd", "group": "optimizers"}, "expected a learning rule"),
        ({"arguments": {"speed": 3}}, "Backprop refuses its arguments.*speed"),
        ({"arguments": {"lr": {"learnable": "x", "dtype": "float32"}}}, "is not a tensor"),
        ({"arguments": {"lr": {"class": "linear"}}}, "does not describe a rule, optimizer or schedule"),
        ({"arguments": 3}, "does not describe a rule"),
        ({"record": 3}, "'record' must be a dictionary"),
    ],
)
def test_a_wrong_description_is_refused(new, words, tmp_path):
    Backprop().save(tmp_path)
    changed(tmp_path, **new)
    with pytest.raises(mg.FileError, match=f"(?s){words}"):
        mg.load_protocol(tmp_path)


@pytest.mark.parametrize(
    ("new", "words"),
    [
        ({"version": "3"}, "version 3, this mpgraph reads up to 2: upgrade"),
        ({"version": "one"}, "must be a positive integer, got .one."),
        ({"format": "other"}, "contains no mpgraph protocol: its format is .other."),
        ({"sha256": "0" * 64}, "its content differs from its checksum"),
        ({"sha256": None}, "its checksum is missing"),
        ({"sha256": None, "version": "1", "extra": ""}, "unknown metadata .extra."),
    ],
)
def test_wrong_metadata_are_refused(new, words, tmp_path):
    Backprop(lr=mg.learnable(0.1)).save(tmp_path)
    path = tmp_path / saved.TENSORS
    with safe_open(path, framework="pt") as file:
        metadata = {**json.loads(file.metadata()["mpgraph"]), **new}
    kept = {k: v for k, v in metadata.items() if v is not None}
    save_file(load_file(path), path, metadata={"mpgraph": json.dumps(kept)})
    with pytest.raises(mg.FileError, match=words):
        mg.load_protocol(tmp_path)


def test_damaged_and_missing_files(tmp_path):
    with pytest.raises(mg.FileError, match=r"there is no file .*protocol\.safetensors"):
        mg.load_protocol(tmp_path / "nowhere")
    Backprop(lr=mg.learnable(0.1)).save(tmp_path)
    path = tmp_path / saved.TENSORS
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(mg.FileError, match="is not a safetensors file, or is damaged"):
        mg.load_protocol(tmp_path)
    path.unlink()
    with pytest.raises(mg.FileError, match="there is no file"):
        mg.load_protocol(tmp_path)
    path.write_bytes(whole)
    assert mg.load_protocol(tmp_path).optimizer.lr.item() == pytest.approx(0.1)


def test_the_copy_for_people_is_what_is_loaded_and_is_never_read(tmp_path):
    Backprop(lr=mg.learnable(0.1)).save(tmp_path)
    assert json.loads((tmp_path / saved.COPY).read_text()) == about(tmp_path)
    (tmp_path / saved.COPY).write_text("{")
    assert mg.load_protocol(tmp_path).optimizer.lr.item() == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"optimizer.lr": torch.zeros(2)}, r"optimizer\.lr has shape \(2,\).*needs \(\)"),
        ({"lr": torch.zeros(())}, r"lacks optimizer\.lr"),
    ],
)
def test_tensors_that_do_not_fit(tensors, words, tmp_path):
    Backprop(lr=mg.learnable(0.1)).save(tmp_path)
    changed(tmp_path, tensors)
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
    assert sorted(path.name for path in tmp_path.iterdir()) == [saved.COPY, saved.TENSORS]


def test_a_write_killed_between_the_files_is_whole(tmp_path):
    FeedbackAlignment(lr=mg.learnable(0.1)).save(tmp_path)
    old = (tmp_path / saved.COPY).read_bytes()
    Backprop(lr=mg.learnable(0.5)).save(tmp_path, record={"n": 1})
    (tmp_path / saved.COPY).write_bytes(old)
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
    with pytest.raises(mg.FileError, match="differs from its checksum"):
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


# -- damage -----------------------------------------------------------------------------------------------------


def mutations(whole, count, seed):
    """Bit flips, cuts, insertions, overwritten and doubled bytes."""
    source = random.Random(seed)
    for _ in range(count):
        data, at = bytearray(whole), source.randrange(len(whole))
        how = source.randrange(6)
        if how <= 1:
            data[at] ^= 1 << source.randrange(8)
        elif how == 2:
            del data[at : at + source.randrange(1, 9)]
        elif how == 3:
            data[at:at] = source.randbytes(source.randrange(1, 9))
        elif how == 4:
            data[at] = source.choice(b'0123456789",:{}[]. ')
        else:
            data[at : at + 4] = data[at : at + 4] * 2
        if data != whole:
            yield bytes(data)


def equal(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[n][c], two[n][c]) for n in one for c in one[n])


def test_a_damaged_state_is_refused_or_the_same(tmp_path):
    """Of what no bit of the content depends on (spaces of the header) a file may differ."""
    program = mg.compile(mlp([3, 4, 2]), Backprop())
    state, path = program.init(), tmp_path / "state"
    program.save(state, path)
    refused = 0
    for data in mutations(path.read_bytes(), 400, seed=0):
        path.write_bytes(data)
        try:
            assert equal(program.load(path), state)
        except mg.FileError:
            refused += 1
    assert refused > 350


def test_a_damaged_rule_is_refused_or_the_same(tmp_path):
    rule = FeedbackAlignment(lr=mg.learnable(0.3), optimizers={"b": mg.SGD(0.25, momentum=0.5)})
    rule.save(tmp_path, record={"steps": 300})
    path, numbers = tmp_path / saved.TENSORS, {k: v.tolist() for k, v in rule.state_dict().items()}
    refused = 0
    for data in mutations(path.read_bytes(), 400, seed=1):
        path.write_bytes(data)
        try:
            loaded = mg.load_protocol(tmp_path)
        except mg.FileError:
            refused += 1
            continue
        assert (repr(loaded), loaded.record) == (repr(rule), {"steps": 300})
        assert {k: v.tolist() for k, v in loaded.state_dict().items()} == numbers
    assert refused > 350


def test_every_bit_of_the_numbers_is_covered(tmp_path):
    program = mg.compile(mlp([2, 2]), Backprop())
    path = tmp_path / "state"
    program.save(program.init(), path)
    whole = path.read_bytes()
    start = 8 + int.from_bytes(whole[:8], "little")
    for at in range(start, len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(mg.FileError, match="damaged"):
            program.load(path)


def test_files_of_version_1_are_read(tmp_path):
    """As that version wrote them: a state without a checksum, a rule with one of its tensors."""
    program = mg.compile(mlp([3, 4, 2]), Backprop())
    state = program.init(seed=3)
    tensors = {f"{n}.{c}": t for n, channels in state.items() for c, t in channels.items()}
    save_file(tensors, tmp_path / "state", metadata={"format": "mpgraph.state", "version": "1"})
    assert equal(program.load(tmp_path / "state"), state)
    rate = torch.tensor(0.7)
    old = {
        "format": "mpgraph.protocol",
        "version": 1,
        "class": "backprop",
        "arguments": {"lr": {"learnable": 0.3, "dtype": "float32"}},
        "tensors_sha256": hashlib.sha256(b"optimizer.lr torch.float32 () " + rate.numpy().tobytes()).hexdigest(),
        "record": {"steps": 3},
    }
    metadata = {"format": "mpgraph.protocol", "about": json.dumps(old)}
    save_file({"optimizer.lr": rate}, tmp_path / saved.TENSORS, metadata=metadata)
    (tmp_path / saved.COPY).write_text(json.dumps(old))
    loaded = mg.load_protocol(tmp_path)
    assert (type(loaded), loaded.record, loaded.optimizer.lr.item()) == (Backprop, {"steps": 3}, rate.item())
    save_file({"optimizer.lr": rate + 1}, tmp_path / saved.TENSORS, metadata=metadata)
    with pytest.raises(mg.FileError, match="differs from its checksum"):
        mg.load_protocol(tmp_path)


@pytest.mark.parametrize("value", [np.float32(0.5), np.int64(2), np.float64(0.25)])
def test_numbers_of_numpy_are_saved_as_numbers(value, tmp_path):
    mg.Regions({"*": Alignment(decay=value, self=0.4)}).save(tmp_path)
    (rule,) = mg.load_protocol(tmp_path).parts
    assert rule.arguments["decay"] == float(value)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), torch.tensor(float("nan"))])
def test_a_number_that_is_not_finite_is_named(number, tmp_path):
    rule = Backprop(lr=mg.learnable(0.1))
    rule.arguments["lr"] = number
    with pytest.raises(mg.FileError, match=r"argument lr = .*must be finite"):
        rule.save(tmp_path)
    with pytest.raises(mg.FileError, match="record must be what JSON can hold"):
        Backprop().save(tmp_path, record={"loss": float("nan")})


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({"x->y": {"w": np.zeros(2)}}, r"x->y\.w is not a tensor but ndarray"),
        ({"x->y": torch.zeros(2)}, "node 'x->y' holds Tensor"),
        ({"x->y": {"w": torch.eye(2).to_sparse()}}, r"cannot save x->y\.w: .*torch.sparse_coo; use .to_dense\(\)"),
        ({"x->y": {"w": torch.eye(2, device="meta")}}, r"cannot save x->y\.w: it is on the device 'meta'"),
        (None, "cannot save a NoneType"),
    ],
)
def test_what_is_not_a_state_is_not_saved(state, words, tmp_path):
    program = mg.compile(mlp([2, 2]), Backprop())
    with pytest.raises(mg.FileError, match=words):
        program.save(state, tmp_path / "state")
    with pytest.raises(mg.FileError, match="a state is kept in a file; give its path, not None"):
        program.save(program.init(), None)
    assert not list(tmp_path.iterdir())
