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
from refusals import refuses
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
    with pytest.raises(mg.FileError, match="not an IDX"):
        data.load("mnist", folder)
    with pytest.raises(mg.InputError, match="'digits'"):
        data.download("digits", folder)


RAW = "MNIST/raw/"
TRAIN = RAW + "train-images-idx3-ubyte.gz", RAW + "train-labels-idx1-ubyte.gz"
TEST = RAW + "t10k-images-idx3-ubyte.gz", RAW + "t10k-labels-idx1-ubyte.gz"
IMAGES, LABELS = np.arange(6 * 28 * 28).reshape(6, 28, 28) % 256, np.arange(6)


def packed(array, after=b""):
    header = struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    return gzip.compress(header + array.astype(np.uint8).tobytes() + after)


@pytest.mark.parametrize(
    ("contents", "words"),
    [
        ({TRAIN[0]: packed(LABELS), TRAIN[1]: packed(IMAGES)}, [*TRAIN, "swapped"]),
        ({TRAIN[0]: packed(IMAGES[:5])}, [*TRAIN, "5 images", "6 labels"]),
        ({TEST[1]: packed(LABELS[:3])}, [*TEST, "4 images", "3 labels"]),
        ({TRAIN[1]: packed(LABELS + 7)}, [*TRAIN, "up to 12", "0 to 9"]),
        ({TEST[1]: packed(LABELS[:4] + 252)}, [*TEST, "up to 255", "0 to 9"]),
        ({TEST[0]: packed(IMAGES[:4, :20, :20])}, [TRAIN[0], TEST[0], "(28, 28)", "(20, 20)"]),
        (
            {TRAIN[0]: packed(IMAGES[:, :20, :20]), TEST[0]: packed(IMAGES[:4, :20, :20])},
            [TRAIN[0], TEST[0], "(20, 20)", "(28, 28)"],
        ),
        ({TRAIN[0]: packed(0 * IMAGES)}, [*TRAIN, "all pixels are 0"]),
        ({TEST[0]: packed(0 * IMAGES[:4] + 7)}, [*TEST, "all pixels are 7"]),
        ({TRAIN[0]: packed(IMAGES.reshape(6, 784))}, [*TRAIN, "(6, 784)", "(examples, height, width)"]),
        ({TRAIN[0]: packed(IMAGES[:, None])}, [*TRAIN, "(6, 1, 28, 28)"]),
        ({TRAIN[1]: packed(LABELS[:, None])}, [*TRAIN, "(6, 1)", "(examples,)"]),
        ({TRAIN[0]: packed(IMAGES[:0]), TRAIN[1]: packed(LABELS[:0])}, [*TRAIN, "empty"]),
        ({TRAIN[0]: b""}, [TRAIN[0], "empty"]),
        ({TRAIN[0]: gzip.compress(b"")}, [TRAIN[0], "empty"]),
        ({TRAIN[0]: gzip.compress(b"\0\0\x08")}, [TRAIN[0], "not an IDX file"]),
        ({TRAIN[0]: gzip.compress(b"\0\0\x08\x03\0\0")}, [TRAIN[0], "truncated", "3 dimensions"]),
        ({TRAIN[0]: gzip.compress(b"\0\0\x0d\x01\0\0\0\x01\0\0\0\0")}, [TRAIN[0], "IDX file of bytes"]),
        (
            {TRAIN[1]: gzip.compress(b"\0\0\x08\x02" + bytes([0, 0, 0, 6, *range(6)]))},
            [TRAIN[1], "truncated", "(6, 66051)"],
        ),
        ({TRAIN[0]: packed(IMAGES, after=b"12")}, [TRAIN[0], "left over", "4704 bytes", "4706"]),
        ({TRAIN[0]: b"not compressed"}, [TRAIN[0], "not a gzip file"]),
        ({TRAIN[0]: packed(IMAGES) + b"x"}, [TRAIN[0], "gzip"]),
    ],
)
@pytest.mark.parametrize("standardise", [True, False])
def test_idx_files_are_held_against_each_other(folder, contents, words, standardise):
    good = {TRAIN[0]: IMAGES, TRAIN[1]: LABELS, TEST[0]: IMAGES[:4], TEST[1]: LABELS[:4]}
    for path, content in ({path: packed(array) for path, array in good.items()} | contents).items():
        (folder / path).write_bytes(content)
    with refuses(mg.FileError, *words) as caught:
        data.load("mnist", folder, standardise=standardise)
    assert ("truncated" in str(caught.value)) == ("truncated" in words)
    assert len(str(caught.value).splitlines()) == 1


def test_a_good_set_of_the_same_making_loads(folder):
    for path, array in zip((*TRAIN, *TEST), (IMAGES, LABELS, IMAGES[:4], LABELS[:4]), strict=True):
        (folder / path).write_bytes(packed(array))
    found = data.load("mnist", folder, standardise=False, dtype=torch.float64)
    assert torch.equal((255 * found.train_x[:, 0]).round().long(), torch.from_numpy(IMAGES))
    assert found.train_y.tolist() == LABELS.tolist()


def test_files_that_cannot_be_read(folder, monkeypatch):
    def forbidden(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.read_bytes", forbidden)
    with refuses(mg.FileError, TRAIN[0], "cannot be read", "Permission denied"):
        data.load("mnist", folder)
    monkeypatch.undo()
    (folder / TRAIN[1]).unlink()
    idx(folder / RAW / "train-labels-idx1-ubyte", LABELS + 20, pack=False)
    with refuses(mg.FileError, f"{RAW}train-labels-idx1-ubyte, ", "up to 25"):  # the file that was read
        data.load("mnist", folder)


def omniglot(root, drawings):
    (root / "omniglot-py").mkdir()
    path = root / "omniglot-py" / "images_background.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in drawings.items():
            archive.writestr(name, content)
    return path


def png(size=(105, 105), column=0):
    image, content = Image.new("1", size, 1), io.BytesIO()
    image.paste(0, (column, 0, column + 20, size[1]))
    image.save(content, "PNG")
    return content.getvalue()


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"A/one/07.png": png((50, 105))}, ["A/one/07.png", "(50, 105)", "(105, 105)"]),
        ({"A/one/07.png": b"nothing"}, ["A/one/07.png", "cannot be read as an image"]),
        ({"A/one/07.png": png()[:-60]}, ["A/one/07.png", "cannot be read as an image"]),
        ({"A/one/20.png": png()}, ["A/one", "21 drawings", "20"]),
        ({"A/two/00.png": png()}, ["A/two", "1 drawings", "20"]),
        ({f"A/one/{i:02}.png": png(column=200) for i in range(20)}, ["all pixels", "alike"]),
    ],
)
def test_a_wrong_omniglot_archive_is_refused(tmp_path, changed, words):
    path = omniglot(tmp_path, {f"A/one/{i:02}.png": png(column=i) for i in range(20)} | changed)
    with refuses(mg.FileError, str(path), *words):
        data.load("omniglot", tmp_path)


def test_a_damaged_omniglot_archive_is_refused(tmp_path):
    path = omniglot(tmp_path, {"readme.txt": b"no drawing"})
    with refuses(mg.FileError, str(path), "no .png"):
        data.load("omniglot", tmp_path)
    for content in (b"", b"no archive"):
        path.write_bytes(content)
        with refuses(mg.FileError, str(path), "damaged"):
            data.load("omniglot", tmp_path)
    path.unlink()
    path.parent.rmdir()
    path = omniglot(tmp_path, {f"A/one/{i:02}.png": png(column=i) for i in range(20)})
    good, generator = path.read_bytes(), np.random.default_rng(0)
    reference, refused = data.load("omniglot", tmp_path), 0
    for _ in range(40):  # a checksum guards every drawing
        content = bytearray(good)
        content[generator.integers(len(content))] ^= 1 << generator.integers(8)
        path.write_bytes(content)
        try:
            found = data.load("omniglot", tmp_path)
        except mg.FileError:
            refused += 1
        else:
            assert torch.equal(found.train_x, reference.train_x)
    assert refused > 10


X, Y = torch.randn(5, 3), torch.tensor([0, 1, 2, 0, 1])


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"train_y": Y[:4]}, ["train_x holds 5", "train_y 4"]),
        ({"test_x": X[:3]}, ["test_x holds 3", "test_y 5"]),
        ({"test_x": X[:, :2]}, ["train_x", "(3,)", "test_x", "(2,)"]),
        ({"train_y": Y + 1}, ["train_y", "from 1 to 3", "0 to 2"]),
        ({"test_y": Y - 1}, ["test_y", "from -1 to 1", "0 to 2"]),
        ({"train_y": Y.double()}, ["train_y", "integer", "torch.float64"]),
        ({"train_y": Y[:, None]}, ["train_y", "(5, 1)"]),
        ({"train_y": Y.bool()}, ["train_y", "torch.bool"]),
        ({"train_y": Y.tolist()}, ["train_y", "a list"]),
        ({"train_x": X.long()}, ["train_x", "floating-point", "torch.int64"]),
        ({"train_x": X[:, 0]}, ["train_x", "(5,)"]),
        ({"test_x": X.numpy()}, ["test_x", "a ndarray"]),
        ({"train_x": X[:0], "train_y": Y[:0]}, ["train_x is empty", "(0, 3)"]),
        ({"test_x": X[:0], "test_y": Y[:0]}, ["test_x is empty"]),
        ({"train_x": X / 0}, ["train_x", "NaN or infinite"]),
        ({"test_x": X * float("nan")}, ["test_x", "NaN or infinite"]),
        ({"classes": 2}, ["train_y", "from 0 to 2", "2 classes"]),
        ({"classes": 2.5}, ["classes=2.5", "integer"]),
    ],
)
def test_a_data_set_of_the_users_own_is_held_together(changed, words):
    good = {"name": "mine", "train_x": X, "train_y": Y, "test_x": X, "test_y": Y, "classes": 3}
    data.Dataset(**good)
    data.Dataset(**good | {"classes": np.int64(3), "train_y": Y.to(torch.uint8)})
    with refuses(mg.InputError, "'mine'", *words):
        data.Dataset(**good | changed)


@pytest.mark.parametrize("value", [0.0, 0.3, 7.0])
def test_constant_pixels_are_not_standardised(value):
    constant = data.Dataset("flat", torch.full((5, 3), value), Y, X, Y, 3)
    with refuses(mg.InputError, "'flat'", "all pixels of train_x", f"{value:g}"):
        constant.standardised()


@pytest.mark.parametrize("value", [0, -1, 1.5, True, None, "3"])
def test_sizes_and_seeds_are_integers(value):
    digits = data.load("digits")
    with refuses(mg.InputError, "head", f"n={value!r}", "at least 1"):
        digits.head(value)
    with refuses(mg.InputError, "batches", f"size={value!r}", "at least 1"):
        next(digits.batches(value, torch.Generator()))
    if not isinstance(value, int) or value is True:
        with refuses(mg.InputError, "data.load", f"seed={value!r}"):
            data.load("digits", seed=value)


def test_numpy_numbers_serve_as_sizes_and_seeds():
    one, two = (data.load("digits", seed=seed).head(n) for seed, n in ((3, 7), (np.int64(3), np.int32(7))))
    assert torch.equal(one.train_x, two.train_x)
    generators = torch.Generator().manual_seed(0), torch.Generator().manual_seed(0)
    pairs = zip(one.batches(3, generators[0]), two.batches(np.int64(3), generators[1]), strict=True)
    assert all(torch.equal(a[0], b[0]) for a, b in pairs)


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


def test_five_ways_are_classes_of_the_whole_set():
    whole, found = data.load("digits", seed=3, standardise=False), data.load("digits_5way", seed=3, standardise=False)
    assert torch.equal(found.train_y.bincount(), torch.full((5,), 50))
    assert not torch.equal(found.train_y, found.train_y.sort().values)  # mixed, so that a part has all classes
    kept = []
    for label in range(5):
        (image,) = found.train_x[found.train_y == label][:1]
        (own,) = whole.train_y[(whole.train_x == image).flatten(1).all(1)].unique().tolist()
        kept.append(own)
        assert torch.equal(found.test_x[found.test_y == label], whole.test_x[whole.test_y == own])
    assert len(set(kept)) == 5
