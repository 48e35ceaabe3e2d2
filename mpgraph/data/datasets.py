"""Real data: handwritten digits that ship with scikit-learn, and image sets from a folder.

Files are read as they are published: gzip-compressed IDX files ``<root>/<Set>/raw/*-ubyte.gz`` (or unpacked ones, as
torchvision leaves them), and for Omniglot the two zip archives of ``<root>/omniglot-py``.
"""

from __future__ import annotations

import io
import os
import sys
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor
from tqdm.auto import tqdm

from mpgraph.errors import FileError, InputError, unknown

from .idx import read_idx

IDX_SETS = {  # name: (folder, prefix of training files, prefix of test files, classes)
    "mnist": ("MNIST", "train", "t10k", 10),
    "fashion_mnist": ("FashionMNIST", "train", "t10k", 10),
    "emnist47": ("EMNIST", "emnist47-subset-train", "emnist47-subset-test", 47),
}
OMNIGLOT_SIDE = 28  # drawings of 105 x 105 pixels are averaged down to this


@dataclass(frozen=True)
class Dataset:
    """A classification task in memory.

    Attributes:
        name: of the task.
        train_x, test_x: images ``(n, 1, height, width)``, or ``(n, pixels)`` after :meth:`flat`.
        train_y, test_y: class labels ``(n,)``, int64.
        classes: number of classes.
    """

    name: str
    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor
    classes: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one example."""
        return tuple(self.train_x.shape[1:])

    def flat(self) -> Dataset:
        """The same with each image as one row of pixels."""
        return replace(self, train_x=self.train_x.flatten(1), test_x=self.test_x.flatten(1))

    def to(self, *args: Any, **options: Any) -> Dataset:
        """The same with images on another device or of another dtype; labels follow the device."""
        x = [t.to(*args, **options) for t in (self.train_x, self.test_x)]
        y = [t.to(x[0].device) for t in (self.train_y, self.test_y)]
        return replace(self, train_x=x[0], test_x=x[1], train_y=y[0], test_y=y[1])

    def standardised(self) -> Dataset:
        """Pixels shifted and scaled by one mean and one standard deviation, those of all training pixels."""
        mean, std = self.train_x.mean(), self.train_x.std()
        return replace(self, train_x=(self.train_x - mean) / std, test_x=(self.test_x - mean) / std)

    def head(self, n: int) -> Dataset:
        """The first ``n`` training examples; the test set stays whole."""
        return replace(self, train_x=self.train_x[:n], train_y=self.train_y[:n])

    def batches(self, size: int, generator: Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """One epoch of shuffled training batches ``(x, y)``; the last may be smaller."""
        order = torch.randperm(len(self.train_x), generator=generator, device="cpu").to(self.train_x.device)
        for part in order.split(size):
            yield self.train_x[part], self.train_y[part]


def load(
    name: str,
    root: str | Path | None = None,
    *,
    seed: int = 0,
    standardise: bool = True,
    dtype: torch.dtype | None = None,
) -> Dataset:
    """A data set by name.

    Args:
        name: ``digits`` (needs no files), ``mnist``, ``fashion_mnist``, ``emnist47`` (a 47-class subset of EMNIST,
            upright), ``omniglot`` (964 characters of the background set, 16 drawings of each to train on).
        root: folder of the files; the environment variable ``MPGRAPH_DATA`` by default.
        seed: of the split, for sets without a fixed one (digits: stratified 80/20; omniglot: by drawing).
        standardise: shift and scale by the training set's global mean and deviation; else pixels lie in 0..1.
        dtype: of images; torch's default if not given.

    Raises:
        InputError: for an unknown name.
        FileError: if a file is missing or damaged; the message names it.
    """
    if name not in LOADERS:
        raise InputError(unknown("data set", name, LOADERS))
    data = LOADERS[name](root, seed).to(dtype or torch.get_default_dtype())
    return data.standardised() if standardise else data


def _digits(root: Any, seed: int) -> Dataset:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    images = torch.from_numpy(digits.images / 16.0).unsqueeze(1)
    labels = torch.from_numpy(digits.target).long()
    rows = np.arange(len(labels))
    train, test = train_test_split(rows, test_size=0.2, stratify=digits.target, random_state=seed)
    return Dataset("digits", images[train], labels[train], images[test], labels[test], 10)


def _idx_set(name: str) -> Callable[[Any, int], Dataset]:
    folder, train, test, classes = IDX_SETS[name]

    def read(root: Any, seed: int) -> Dataset:
        raw = _root(root, name) / folder / "raw"
        parts = [
            read_idx(raw / f"{prefix}-{kind}-idx{dims}-ubyte")
            for prefix in (train, test)
            for kind, dims in (("images", 3), ("labels", 1))
        ]
        images = [p.unsqueeze(1).double() / 255.0 for p in parts[::2]]
        if name == "emnist47":  # published transposed
            images = [p.transpose(2, 3).contiguous() for p in images]
        labels = [p.long() for p in parts[1::2]]
        return Dataset(name, images[0], labels[0], images[1], labels[1], classes)

    return read


def _omniglot(root: Any, seed: int) -> Dataset:
    from PIL import Image

    path = _root(root, "omniglot") / "omniglot-py" / "images_background.zip"
    if not path.is_file():
        raise FileError(f"omniglot: no file {path}")
    images: list[np.ndarray] = []
    labels: list[int] = []
    characters: dict[str, int] = {}
    with zipfile.ZipFile(path) as archive:
        names = sorted(n for n in archive.namelist() if n.endswith(".png"))
        for name in tqdm(names, desc="omniglot", leave=False, disable=not sys.stderr.isatty()):
            character = name.rpartition("/")[0]
            labels.append(characters.setdefault(character, len(characters)))
            drawing = Image.open(io.BytesIO(archive.read(name))).convert("L")
            drawing = drawing.resize((OMNIGLOT_SIDE, OMNIGLOT_SIDE), Image.Resampling.BOX)
            images.append(1.0 - np.asarray(drawing, dtype=np.float64) / 255.0)  # ink is one
    x, y = torch.from_numpy(np.stack(images)).unsqueeze(1), torch.tensor(labels, device="cpu")
    generator = torch.Generator("cpu").manual_seed(seed)
    test = torch.zeros(len(y), dtype=torch.bool, device="cpu")
    for label in range(len(characters)):
        rows = (y == label).nonzero().flatten()
        test[rows[torch.randperm(len(rows), generator=generator, device="cpu")[: len(rows) // 5]]] = True
    return Dataset("omniglot", x[~test], y[~test], x[test], y[test], len(characters))


LOADERS: dict[str, Callable[[Any, int], Dataset]] = {
    "digits": _digits,
    **{name: _idx_set(name) for name in IDX_SETS},
    "omniglot": _omniglot,
}


def _root(root: str | Path | None, name: str) -> Path:
    given = root or os.environ.get("MPGRAPH_DATA")
    if not given:
        raise FileError(f"{name} needs its files: name their folder with --data (root=) or MPGRAPH_DATA")
    if not Path(given).is_dir():
        raise FileError(f"{name}: no folder {given}")
    return Path(given)
