"""Ten thousand damaged files of every kind that is read: each is refused in the family, or says what it said before.

Nothing is run, nothing crashes, and no file makes its reader take memory out of proportion to it. Where a format has no
checksum (TOML), what still parses is other settings, so there only the refusal is checked.
"""

import gzip
import io
import itertools
import json
import pickle
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from refusals import refuses

import mpgraph as mg
from mpgraph import data, experiments
from mpgraph.architectures import mlp
from mpgraph.experiments import Run
from mpgraph.meta import checkpoint
from mpgraph.protocols import FeedbackAlignment
from mpgraph.serialization import tensors, toml

LOOSE = 8  # times the size of a file, beside a constant, that reading it may take
CONSTANT = 2**20


def damaged(content, count, seed):
    """Files with flipped bits, cut off, with parts left out, doubled or replaced, and grown."""
    generator = np.random.default_rng(seed)
    for turn in range(count):
        new, at = bytearray(content), int(generator.integers(len(content)))
        length = int(generator.integers(1, 40))
        match turn % 6:
            case 0:
                new[at] ^= 1 << int(generator.integers(8))
            case 1:
                del new[at:]
            case 2:
                del new[at : at + length]
            case 3:
                new[at:at] = new[at : at + length]
            case 4:
                new[at : at + length] = generator.bytes(length)
            case 5:
                new += generator.bytes(length * 50)
        yield bytes(new)


class State:
    count = 3000

    def __init__(self, folder):
        self.program, self.path = mg.compile(mlp([3, 2]), FeedbackAlignment()), folder / "state"
        self.program.save(self.program.init(), self.path)

    def read(self):
        loaded = self.program.load(self.path)
        return {name: {key: t.tolist() for key, t in channels.items()} for name, channels in loaded.items()}


class Rule:
    count = 1500

    def __init__(self, folder):
        self.folder, self.path = folder, folder / "protocol.safetensors"
        FeedbackAlignment(lr=mg.learnable(0.3)).save(folder, record={"steps": 3})

    def read(self):
        rule = mg.load_protocol(self.folder)
        return repr(rule), rule.record, {name: t.tolist() for name, t in rule.state_dict().items()}


class Checkpoint:
    count = 1500

    def __init__(self, folder):
        self.path = folder / "step-1.safetensors"
        checkpoint.save(self.path, {"a": torch.arange(6.0)}, {"step": 1, "losses": [0.5]})

    def read(self):
        found, about = checkpoint.load(self.path)
        return {name: t.tolist() for name, t in found.items()}, about


class Results:
    count = 1500

    def __init__(self, folder):
        self.path = folder / "results.json"
        run = Run("backprop", "toy", "3-2", 0, 0.5, 0.25, 1, 4, curve=[0.5], losses=[1.0], steps=[3], times=[0.25])
        experiments.write(self.path, [run], {"lr": 0.1}, command="mpgraph compare", contrasts=[])

    def read(self):
        return experiments.read(self.path, {"lr": 0.1})


class Settings:
    count = 1500
    checked = False

    def __init__(self, folder):
        self.path = folder / "settings.toml"
        self.path.write_text(
            'tasks = ["xor"]\nepochs = 3\nraw = true\n[tune]\nlr = "0.1..1"\n[a.b]\nc = [[1, 2.5], []]\n'
        )

    def read(self):
        return toml.read(self.path)


class Idx:
    count = 1000

    def __init__(self, folder):
        self.path = folder / "a-ubyte.gz"
        content = struct.pack(">4B3I", 0, 0, 8, 3, 4, 5, 5) + bytes(range(100))
        self.path.write_bytes(gzip.compress(content, mtime=0))

    def read(self):
        return data.read_idx(self.path.with_suffix("")).tolist()


class Archive:
    count = 150

    def __init__(self, folder):
        self.root, self.path = folder, folder / "omniglot-py" / "images_background.zip"
        self.path.parent.mkdir()
        with zipfile.ZipFile(self.path, "w") as archive:
            image, content = Image.new("1", (105, 105), 1), io.BytesIO()
            image.paste(0, (10, 0, 40, 105))
            image.save(content, "PNG")
            for drawing in range(20):
                archive.writestr(f"images_background/A/character01/{drawing:04}.png", content.getvalue())

    def read(self):
        found = data.load("omniglot", self.root, standardise=False, progress=False)
        return found.train_x.sum().item(), found.test_x.sum().item(), found.train_y.tolist(), found.classes


KINDS = (State, Rule, Checkpoint, Results, Settings, Idx, Archive)


def test_they_are_ten_thousand():
    assert sum(kind.count for kind in KINDS) >= 10_000


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_damaged_file_is_refused_or_the_same(kind, tmp_path):
    made = kind(tmp_path)
    good, said, refused = made.path.read_bytes(), made.read(), 0
    named = 0
    for content in damaged(good, kind.count, seed=KINDS.index(kind)):
        if content == good:
            continue
        made.path.write_bytes(content)
        try:
            found = made.read()
        except mg.MPGraphError as error:
            refused += 1
            named += made.path.name in str(error)
        else:
            assert not getattr(kind, "checked", True) or found == said
    assert named == refused  # every message names the file
    assert refused > kind.count // 3


class Bomb:
    """Leaves a mark where it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return open, (self.mark, "w")


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_pickled_code_is_never_run(kind, tmp_path):
    made, mark = kind(tmp_path), tmp_path / "mark"
    torch.save(Bomb(str(mark)), tmp_path / "torch.pt")
    for content in (pickle.dumps(Bomb(str(mark))), (tmp_path / "torch.pt").read_bytes()):
        made.path.write_bytes(content)
        with refuses(mg.MPGraphError):
            made.read()
    assert not mark.exists()


def oversized():
    """Small files that announce, or unpack to, much more: a name, the kind of file, its content."""
    yield "shape of an IDX file", Idx, gzip.compress(struct.pack(">4B3I", 0, 0, 8, 3, 2**31, 2**20, 2**20) + bytes(9))
    yield "dimensions of an IDX file", Idx, gzip.compress(b"\0\0\x08\xff" + bytes(9))
    yield "an IDX file that unpacks", Idx, gzip.compress(struct.pack(">4BI", 0, 0, 8, 1, 2**26) + bytes(2**26))
    header = json.dumps({"a.b": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}).encode()
    for kind in (State, Rule, Checkpoint):
        yield "a tensor", kind, struct.pack("<Q", len(header)) + header + bytes(16)
        yield "a header", kind, struct.pack("<Q", 2**60) + header
    yield "nested JSON", Results, b"[" * 10**5
    yield "a long number in JSON", Results, b"9" * 10**5
    yield "nested TOML", Settings, b"a = " + b"[" * 10**5
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("images_background/A/character01/0001.png", bytes(2**26))
    yield "an entry that unpacks", Archive, target.getvalue()
    image, target = io.BytesIO(), io.BytesIO()
    Image.new("1", (9000, 9000)).save(image, "PNG")
    with zipfile.ZipFile(target, "w") as archive:
        archive.writestr("images_background/A/character01/0001.png", image.getvalue())
    yield "a large picture", Archive, target.getvalue()


@pytest.mark.parametrize(
    ("kind", "content"), [pytest.param(*rest, id=f"{rest[0].__name__}: {n}") for n, *rest in oversized()]
)
def test_memory_is_in_proportion_to_the_file(kind, content, tmp_path):
    made = kind(tmp_path)
    made.path.write_bytes(content)
    tracemalloc.start()
    try:
        with refuses(mg.MPGraphError):
            made.read()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    factor = 400 if kind is Idx else LOOSE  # packed images may unpack to a hundred times their size, in a few copies
    assert peak < factor * len(content) + CONSTANT


def test_versions_to_come_are_refused_with_what_to_do(tmp_path, monkeypatch):
    for kind, folder in zip((State, Rule, Checkpoint), itertools.count(), strict=False):
        (tmp_path / str(folder)).mkdir()
        monkeypatch.setattr(tensors, "VERSION", tensors.VERSION + 1)
        made = kind(tmp_path / str(folder))
        monkeypatch.undo()
        with refuses(mg.FileError, "format version", "upgrade it"):
            made.read()
