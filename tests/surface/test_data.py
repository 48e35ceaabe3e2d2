"""Data sets: synthetic files in the published formats, and the real ones where they are."""

import gzip
import io
import shutil
import struct
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

import mpgraph as mg
from mpgraph import data


def idx(path, array, pack=True):
    path.parent.mkdir(parents=True, exist_ok=True)
    content = struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()
    path = path.with_name(path.name + ".gz") if pack else path
    path.write_bytes(gzip.compress(content) if pack else content)


@pytest.fixture
def folder(tmp_path):
    generator = np.random.default_rng(0)
    for name, prefixes in (
        ("MNIST", ("train", "t10k")),
        ("EMNIST", ("emnist47-subset-train", "emnist47-subset-test")),
    ):
        for prefix, n in zip(prefixes, (6, 4), strict=True):
            idx(
                tmp_path / name / "raw" / f"{prefix}-images-idx3-ubyte",
                generator.integers(0, 256, (n, 28, 28)),
            )
            idx(
                tmp_path / name / "raw" / f"{prefix}-labels-idx1-ubyte",
                generator.integers(0, 10, n),
                pack=name == "MNIST",
            )
    return tmp_path


def test_digits_are_split_by_seed_and_stratified():
    one, two = (data.load("digits", seed=seed, standardise=False) for seed in (0, 1))
    again = data.load("digits", seed=0, standardise=False)
    assert torch.equal(one.train_x, again.train_x)
    assert not torch.equal(one.train_x, two.train_x)
    assert one.shape == (1, 8, 8)
    assert (len(one.train_y), len(one.test_y)) == (1437, 360)
    counts, all_counts = torch.bincount(one.test_y), np.bincount(load_digits().target)
    assert all(abs(int(c) - 0.2 * a) < 1 for c, a in zip(counts, all_counts, strict=True))
    assert float(one.train_x.min()) == 0.0
    assert float(one.train_x.max()) == 1.0
    rows = {row.numpy().tobytes() for row in one.train_x}
    assert len(rows) == len(one.train_x)
    assert not any(row.numpy().tobytes() in rows for row in one.test_x)


def test_standardisation_is_global_and_of_the_training_set(folder):
    found = data.load("mnist", folder)
    assert abs(float(found.train_x.mean())) < 1e-6
    assert abs(float(found.train_x.std()) - 1) < 1e-6
    raw = data.load("mnist", folder, standardise=False)
    torch.testing.assert_close(found.test_x, (raw.test_x - raw.train_x.mean()) / raw.train_x.std())


def test_idx_files_packed_and_unpacked(folder):
    raw = data.load("mnist", folder, standardise=False, dtype=torch.float64)
    pixels = data.read_idx(folder / "MNIST" / "raw" / "train-images-idx3-ubyte")
    torch.testing.assert_close(raw.train_x[:, 0], pixels.double() / 255)
    emnist = data.load("emnist47", folder, standardise=False, dtype=torch.float64)
    pixels = data.read_idx(folder / "EMNIST" / "raw" / "emnist47-subset-train-images-idx3-ubyte")
    torch.testing.assert_close(emnist.train_x[:, 0], pixels.double().transpose(1, 2) / 255)  # turned upright
    assert emnist.classes == 47


def test_omniglot_from_its_archive(tmp_path):
    (tmp_path / "omniglot-py").mkdir()
    with zipfile.ZipFile(tmp_path / "omniglot-py" / "images_background.zip", "w") as archive:
        for character in range(3):
            for drawing in range(20):
                image, content = Image.new("1", (105, 105), 1), io.BytesIO()
                image.paste(0, (10 * character, 0, 10 * character + 30, 105))
                image.save(content, "PNG")
                archive.writestr(f"images_background/A/character{character:02}/{drawing:04}.png", content.getvalue())
    found = data.load("omniglot", tmp_path, standardise=False)
    assert found.shape == (1, 28, 28)
    assert found.classes == 3
    assert torch.bincount(found.train_y).tolist() == [16] * 3
    assert torch.bincount(found.test_y).tolist() == [4] * 3
    ink = found.train_x[found.train_y == 0][0].mean()
    assert abs(float(ink) - 30 / 105) < 0.01


def test_errors_name_the_file(folder, monkeypatch):
    monkeypatch.delenv("MPGRAPH_DATA", raising=False)
    with pytest.raises(mg.InputError, match="'mnits'.*did you mean 'mnist'"):
        data.load("mnits")
    with pytest.raises(mg.FileError, match="--data"):
        data.load("mnist")
    with pytest.raises(mg.FileError, match="no folder"):
        data.load("mnist", folder / "none")
    with pytest.raises(mg.FileError, match="FashionMNIST/raw/train-images-idx3-ubyte.gz"):
        data.load("fashion_mnist", folder)
    with pytest.raises(mg.FileError, match="images_background.zip"):
        data.load("omniglot", folder)
    path = folder / "MNIST" / "raw" / "train-images-idx3-ubyte.gz"
    content = path.read_bytes()
    path.write_bytes(content[:100])
    with pytest.raises(mg.FileError, match="damaged"):
        data.load("mnist", folder)
    path.write_bytes(gzip.compress(gzip.decompress(content)[:-1]))
    with pytest.raises(mg.FileError, match="truncated"):
        data.load("mnist", folder)
    path.write_bytes(gzip.compress(b"some text"))
    with pytest.raises(mg.FileError, match="no IDX"):
        data.load("mnist", folder)
    with pytest.raises(mg.InputError, match="'digits'"):
        data.download("digits", folder)


def test_the_environment_names_the_folder(folder, monkeypatch):
    monkeypatch.setenv("MPGRAPH_DATA", str(folder))
    assert len(data.load("mnist").train_y) == 6


def test_batches_are_a_seeded_permutation():
    digits = data.load("digits").head(10)
    one = list(digits.batches(4, torch.Generator().manual_seed(0)))
    two = list(digits.batches(4, torch.Generator().manual_seed(0)))
    assert [len(y) for _, y in one] == [4, 4, 2]
    assert all(torch.equal(a[0], b[0]) for a, b in zip(one, two, strict=True))
    assert sorted(torch.cat([y for _, y in one]).tolist()) == sorted(digits.train_y.tolist())


@pytest.mark.parametrize(
    ("name", "train", "test", "classes", "mean", "deviation"),
    [
        ("mnist", 60000, 10000, 10, 0.1307, 0.3081),
        ("fashion_mnist", 60000, 10000, 10, 0.2860, 0.3530),
        ("emnist47", 28200, 5640, 47, 0.1747, 0.3329),
    ],
)
def test_the_real_sets_have_their_published_statistics(data_root, name, train, test, classes, mean, deviation):
    found = data.load(name, data_root, standardise=False)
    assert (len(found.train_y), len(found.test_y)) == (train, test)
    assert torch.unique(found.train_y).tolist() == list(range(classes))
    assert abs(float(found.train_x.mean()) - mean) < 1e-4
    assert abs(float(found.train_x.std()) - deviation) < 1e-4


def test_the_real_omniglot(data_root):
    found = data.load("omniglot", data_root, standardise=False)
    assert (len(found.train_y), len(found.test_y), found.classes) == (964 * 16, 964 * 4, 964)
    assert 0.02 < float(found.train_x.mean()) < 0.15  # thin strokes on paper


@pytest.mark.filterwarnings("ignore")
def test_torchvision_loads_and_finds_files_that_are_there(data_root, tmp_path):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for path in (data_root / "MNIST" / "raw").iterdir():
        shutil.copy(path, raw / path.name)
    data.download("mnist", tmp_path)
    for path in raw.glob("*.gz"):
        path.unlink()
    assert len(data.load("mnist", tmp_path).train_y) == 60000  # from the unpacked files
