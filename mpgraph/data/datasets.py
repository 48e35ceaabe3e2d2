"""Data sets by name: digits that ship with scikit-learn, tasks without files, and image sets from a folder.

Files are read as they are published: gzip-compressed IDX files ``<root>/<Set>/raw/*-ubyte.gz`` (or uncompressed, as
torchvision leaves them), and for Omniglot the archive ``<root>/omniglot-py/images_background.zip``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Generator, Tensor
from torch.nn import functional

from mpgraph.arguments import Arguments
from mpgraph.errors import FileError, InputError, unknown

from . import synthetic
from .idx import find_idx, read_idx
from .omniglot import read_omniglot

IDX_SETS = {  # name: (folder, prefix of training files, prefix of test files, classes)
    "mnist": ("MNIST", "train", "t10k", 10),
    "fashion_mnist": ("FashionMNIST", "train", "t10k", 10),
    "emnist47": ("EMNIST", "emnist47-subset-train", "emnist47-subset-test", 47),
}
WAYS, SHOTS = 5, 50  # of the sets of few classes, as Shervani-Tabar and Rosenbaum (2023) have them
SIZE = (28, 28)  # pixels of an image in all of them
LABELS = frozenset((torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8))


class Targets(NamedTuple):
    """What one output of a network is to say: class labels ``(n,)``, or numbers ``(n, outputs)`` with 0 classes."""

    train: Tensor
    test: Tensor
    classes: int


@dataclass(frozen=True)
class Dataset:
    """A task in memory: to name classes, or to predict numbers; for networks with several outputs, several of these.

    Attributes:
        name: of the task.
        train_x, test_x: floating-point images ``(n, 1, height, width)``, or ``(n, pixels)`` after :meth:`flat`; any
            other shape ``(n, ...)`` of examples will do.
        train_y, test_y: integer class labels ``(n,)``, from 0 to ``classes - 1``; numbers ``(n, outputs)`` (or of the
            shape of the output) without.
        classes: number of classes; 0 for targets that are numbers.
        output: of the network to which these targets belong, where there are several.
        others: the targets of its other outputs, by their names.

    Raises:
        InputError: if these do not fit together: no examples, other numbers of images and labels, test images of
            another shape, labels that are not integers or outside the classes, NaN or infinite pixels or targets, two
            targets for one output.
    """

    name: str
    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor
    classes: int
    output: str = "y"
    others: Mapping[str, Targets] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Compare images, labels and classes with each other."""
        check = Arguments(f"data set {self.name!r}", InputError)
        classes = check.integer("classes", self.classes, 0)
        self._check("train_x", self.train_x, "train_y", self.train_y, classes)
        self._check("test_x", self.test_x, "test_y", self.test_y, classes)
        for name, found in check.instance("others", self.others, Mapping).items():
            train, test, classes = check.instance(f"others[{name!r}]", found, Targets)
            classes = check.integer(f"others[{name!r}].classes", classes, 0)
            self._check("train_x", self.train_x, f"others[{name!r}].train", train, classes)
            self._check("test_x", self.test_x, f"others[{name!r}].test", test, classes)
        if self.output in self.others:
            check.refuse("others", list(self.others), f"targets of other outputs than {self.output!r}")
        if self.train_x.shape[1:] != self.test_x.shape[1:]:
            raise InputError(
                f"data set {self.name!r}: an example of train_x has shape {tuple(self.train_x.shape[1:])}, one of "
                f"test_x {tuple(self.test_x.shape[1:])}; they must be equal"
            )

    def _check(self, name: str, x: Any, label_name: str, y: Any, classes: int) -> None:
        this = f"data set {self.name!r}: {name}"
        labels = f"data set {self.name!r}: {label_name}"
        if not isinstance(x, Tensor) or not x.is_floating_point() or x.ndim < 2:
            raise InputError(f"{this} must be a floating-point tensor (examples, ...), got {_described(x)}")
        if classes and (not isinstance(y, Tensor) or y.dtype not in LABELS or y.ndim != 1):
            raise InputError(f"{labels} must be a tensor (examples,) of integer class labels, got {_described(y)}")
        if not classes and (not isinstance(y, Tensor) or not y.is_floating_point() or y.ndim < 2):
            raise InputError(f"{labels} must be a floating-point tensor (examples, outputs), got {_described(y)}")
        if len(x) != len(y):
            raise InputError(f"{this} holds {len(x)} examples, {label_name} {len(y)} labels; they must be equal")
        if not x.numel():
            raise InputError(f"{this} is empty: its shape is {tuple(x.shape)}")
        low, high = (int(y.min()), int(y.max())) if classes else (0, -1)
        if low < 0 or high >= classes:
            raise InputError(f"{labels} holds labels from {low} to {high}; {classes} classes allow 0 to {classes - 1}")
        for part, values in ((this, x), (labels, y)):
            if values.is_floating_point() and not torch.stack(values.aminmax()).isfinite().all():
                raise InputError(f"{part} holds NaN or infinite numbers")

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one example."""
        return tuple(self.train_x.shape[1:])

    @property
    def targets(self) -> dict[str, Targets]:
        """All targets, by the output that they belong to; its own first."""
        return {self.output: Targets(self.train_y, self.test_y, self.classes), **self.others}

    def _with_targets(self, change: Callable[[Targets], Targets], **parts: Any) -> Dataset:
        """The same with every target changed, and these parts replaced."""
        own, *others = map(change, self.targets.values())
        return replace(
            self, train_y=own.train, test_y=own.test, others=dict(zip(self.others, others, strict=True)), **parts
        )

    def flat(self) -> Dataset:
        """The same with each image as one row of pixels."""
        return replace(self, train_x=self.train_x.flatten(1), test_x=self.test_x.flatten(1))

    def pooled(self, size: int) -> Dataset:
        """The same with images that are ``size`` times smaller on each side: means over squares of pixels.

        Raises:
            InputError: for examples that are not images, or a size that does not divide their sides.
        """
        size = Arguments("pooled", InputError).integer("size", size, 1)
        if len(self.shape) != 3 or any(side % size for side in self.shape[1:]):
            raise InputError(
                f"data set {self.name!r}: pooled({size}) needs images (channels, height, width) whose sides are "
                f"multiples of {size}; an example has shape {self.shape}"
            )
        return replace(
            self, train_x=functional.avg_pool2d(self.train_x, size), test_x=functional.avg_pool2d(self.test_x, size)
        )

    def to(self, *args: Any, **options: Any) -> Dataset:
        """The same with images and numbers on another device or of another dtype; labels follow the device."""
        x = [t.to(*args, **options) for t in (self.train_x, self.test_x)]

        def moved(one: Targets) -> Targets:
            train, test = (t.to(x[0].device) if one.classes else t.to(*args, **options) for t in one[:2])
            return Targets(train, test, one.classes)

        return self._with_targets(moved, train_x=x[0], test_x=x[1])

    def standardised(self) -> Dataset:
        """Pixels shifted and scaled by one mean and one standard deviation, those of all training pixels.

        Raises:
            InputError: if all training pixels are the same number, which have no deviation to scale by.
        """
        low, high = self.train_x.aminmax()
        if low == high:
            raise InputError(f"data set {self.name!r}: all pixels of train_x are {float(low):g}")
        mean, std = self.train_x.mean(), self.train_x.std()
        return replace(self, train_x=(self.train_x - mean) / std, test_x=(self.test_x - mean) / std)

    def resized(self, side: int) -> Dataset:
        """Images ``(n, channels, side, side)``, bilinear without smoothing, as MPLP's authors shrink theirs.

        Raises:
            InputError: if ``side`` is not a positive integer, or examples are not images ``(channels, height, width)``.
        """
        side = Arguments("resized", InputError).integer("side", side, 1)
        if self.train_x.ndim != 4:
            raise InputError(
                f"data set {self.name!r}: resized needs images (n, channels, height, width), its examples have shape "
                f"{self.shape}"
            )
        train, test = (functional.interpolate(x, (side, side), mode="bilinear") for x in (self.train_x, self.test_x))
        return replace(self, train_x=train, test_x=test)

    def head(self, n: int) -> Dataset:
        """The first ``n`` training examples (all, if there are fewer); the test set stays whole.

        Raises:
            InputError: if ``n`` is not a positive integer.
        """
        n = Arguments("head", InputError).integer("n", n, 1)
        return self._with_targets(lambda one: one._replace(train=one.train[:n]), train_x=self.train_x[:n])

    def validation(self, share: float, seed: int) -> Dataset:
        """The same with a random part of the training set in the place of the test set, which is left out.

        Args:
            share: of the training examples, between 0 and 1; at least one example goes to each side.
            seed: of the choice.

        Raises:
            InputError: for a share outside these bounds, or fewer than two training examples.
        """
        check = Arguments("validation", InputError)
        share, seed = check.number("share", share, above=0, below=1), check.seed("seed", seed)
        n = len(self.train_x)
        if n < 2:
            raise InputError(f"data set {self.name!r}: validation needs at least two training examples, there is {n}")
        order = torch.randperm(n, generator=Generator(device="cpu").manual_seed(seed), device="cpu")
        order = order.to(self.train_x.device)
        held = min(n - 1, max(1, round(share * n)))
        rest, out = order[held:], order[:held]
        return self._with_targets(
            lambda one: Targets(one.train[rest], one.train[out], one.classes),
            train_x=self.train_x[rest],
            test_x=self.train_x[out],
        )

    def batches(self, size: int, generator: Generator) -> Iterator[tuple[Tensor, Any]]:
        """One epoch of shuffled training batches ``(x, y)``; the last may be smaller.

        Of several targets ``y`` is a dictionary by output.

        Raises:
            InputError: if ``size`` is not a positive integer.
        """
        size = Arguments("batches", InputError).integer("size", size, 1)
        order = torch.randperm(len(self.train_x), generator=generator, device="cpu").to(self.train_x.device)
        for part in order.split(size):
            y = {name: one.train[part] for name, one in self.targets.items()}
            yield self.train_x[part], y if self.others else y[self.output]


def load(
    name: str,
    root: str | Path | None = None,
    *,
    seed: int = 0,
    standardise: bool = True,
    dtype: torch.dtype | None = None,
    progress: bool = True,
) -> Dataset:
    """A data set by name.

    Args:
        name: ``digits`` and ``digits_redrawn`` (need no files; the latter has the pixels as targets of an output
            ``image`` beside the classes), ``mnist``, ``fashion_mnist``, ``emnist47`` (a 47-class subset of EMNIST,
            upright), ``digits_5way`` and ``emnist47_5way`` (five classes of these, drawn by the seed, with 50 training
            images of each), ``omniglot`` (964 characters of the background set, 16 drawings of each to train on), and
            those of :mod:`mpgraph.data.synthetic`.
        root: folder of the files; the environment variable ``MPGRAPH_DATA`` by default.
        seed: of the split, for sets without a fixed one (digits: stratified 80/20; omniglot: by drawing), or of the
            whole task.
        standardise: shift and scale by the training set's global mean and deviation; otherwise pixels lie in 0..1.
        dtype: of images; torch's default if not given.
        progress: show a bar while omniglot is read, if stderr is a terminal.

    Raises:
        InputError: for an unknown name, or a seed that is not an integer.
        FileError: if a file is missing or damaged, or does not fit the others; the message names the files.
    """
    if name not in LOADERS:
        raise InputError(unknown("data set", name, LOADERS))
    seed = Arguments("data.load", InputError).seed("seed", seed)
    data = LOADERS[name](root, seed, progress).to(dtype or torch.get_default_dtype())
    return data.standardised() if standardise else data


def _digits(root: Any, seed: int, progress: bool) -> Dataset:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    images = torch.from_numpy(digits.images / 16.0).unsqueeze(1)
    labels = torch.from_numpy(digits.target).long()
    rows = np.arange(len(labels))
    train, test = train_test_split(rows, test_size=0.2, stratify=digits.target, random_state=seed % 2**32)
    return Dataset("digits", images[train], labels[train], images[test], labels[test], 10)


def _digits_redrawn(root: Any, seed: int, progress: bool) -> Dataset:
    """Digits of which the network names the class and draws the image again, pixels from 0 to 1."""
    found = _digits(root, seed, progress)
    image = Targets(found.train_x.flatten(1), found.test_x.flatten(1), 0)
    return replace(found, name="digits_redrawn", others={"image": image})


def _five(name: str) -> Callable[[Any, int, bool], Dataset]:
    """Five classes of a set, drawn by the seed and numbered anew: 50 training images of each, mixed, and all tests."""

    def draw(root: Any, seed: int, progress: bool) -> Dataset:
        found = LOADERS[name](root, seed, progress)
        generator = torch.Generator().manual_seed(seed)
        train, test = [], []
        for label in torch.randperm(found.classes, generator=generator)[:WAYS].tolist():
            rows = (found.train_y == label).nonzero().flatten()
            train.append(rows[torch.randperm(len(rows), generator=generator)[:SHOTS]])
            test.append((found.test_y == label).nonzero().flatten())
        order = torch.randperm(sum(map(len, train)), generator=generator)
        labels = [torch.arange(WAYS).repeat_interleave(torch.tensor([*map(len, rows)])) for rows in (train, test)]
        picked = torch.cat(train)[order]
        kept = torch.cat(test)
        return Dataset(f"{name}_5way", found.train_x[picked], labels[0][order], found.test_x[kept], labels[1], WAYS)

    return draw


def _idx_set(name: str) -> Callable[[Any, int, bool], Dataset]:
    folder, *prefixes, classes = IDX_SETS[name]

    def read(root: Any, seed: int, progress: bool) -> Dataset:
        raw = _root(root, name) / folder / "raw"
        train_x, train_y, test_x, test_y = (
            part
            for prefix in prefixes
            for part in _pair(raw / f"{prefix}-images-idx3-ubyte", raw / f"{prefix}-labels-idx1-ubyte", classes)
        )
        sizes = [tuple(x.shape[1:]) for x in (train_x, test_x)]
        if sizes != [SIZE, SIZE]:
            files = [find_idx(raw / f"{prefix}-images-idx3-ubyte") for prefix in prefixes]
            raise FileError(
                f"{files[0]} holds images of {sizes[0]} pixels, {files[1]} of {sizes[1]}; expected {SIZE} in both"
            )
        images = [x.unsqueeze(1).double() / 255.0 for x in (train_x, test_x)]
        if name == "emnist47":  # published transposed
            images = [x.transpose(2, 3).contiguous() for x in images]
        return Dataset(name, images[0], train_y.long(), images[1], test_y.long(), classes)

    return read


def _pair(images: Path, labels: Path, classes: int) -> tuple[Tensor, Tensor]:
    """An images file and its labels file, held against each other."""
    x, y = read_idx(images), read_idx(labels)
    images, labels = find_idx(images), find_idx(labels)
    if x.ndim == 1 and y.ndim == 3:
        raise FileError(f"{images} holds labels and {labels} holds images: the two files are swapped")
    for path, part, wanted, what, other in (
        (images, x, 3, "images (examples, height, width)", labels),
        (labels, y, 1, "labels (examples,)", images),
    ):
        if part.ndim != wanted:
            raise FileError(f"{path} has shape {tuple(part.shape)}, expected {what} to go with {other}")
        if not part.numel():
            raise FileError(f"{path} has shape {tuple(part.shape)}: it is empty, expected {what} to go with {other}")
    if len(x) != len(y):
        raise FileError(f"{images} holds {len(x)} images, {labels} holds {len(y)} labels; expected as many")
    if int(y.max()) >= classes:
        raise FileError(
            f"{labels}, the labels of {images}, go up to {int(y.max())}; {classes} classes allow 0 to {classes - 1}"
        )
    if x.min() == x.max():
        raise FileError(f"{images}, the images of {labels}: all pixels are {int(x.max())}, expected drawings")
    return x, y


def _omniglot(root: Any, seed: int, progress: bool) -> Dataset:
    path = _root(root, "omniglot") / "omniglot-py" / "images_background.zip"
    x, y, classes = read_omniglot(path, progress)
    generator = torch.Generator().manual_seed(seed)
    test = torch.zeros(len(y), dtype=torch.bool, device="cpu")
    for label in range(classes):
        rows = (y == label).nonzero().flatten()
        test[rows[torch.randperm(len(rows), generator=generator, device="cpu")[: len(rows) // 5]]] = True
    return Dataset("omniglot", x[~test], y[~test], x[test], y[test], classes)


def _drawn(name: str, draw: Callable[[int], synthetic.Parts], classes: int) -> Callable[[Any, int, bool], Dataset]:
    return lambda root, seed, progress: Dataset(name, *draw(seed), classes)


LOADERS: dict[str, Callable[[Any, int, bool], Dataset]] = {
    "digits": _digits,
    "digits_redrawn": _digits_redrawn,
    "xor": _drawn("xor", synthetic.xor, 2),
    "delayed_cue": _drawn("delayed_cue", synthetic.delayed_cue, 2),
    "teacher": _drawn("teacher", synthetic.teacher, 0),
    "mackey_glass": _drawn("mackey_glass", synthetic.mackey_glass, 0),
    **{name: _idx_set(name) for name in IDX_SETS},
    "omniglot": _omniglot,
}
LOADERS |= {f"{name}_5way": _five(name) for name in ("digits", "emnist47")}


def _root(root: str | Path | None, name: str) -> Path:
    given = root or os.environ.get("MPGRAPH_DATA")
    if not given:
        raise FileError(f"{name} needs its files: name their folder with --data (root=) or MPGRAPH_DATA")
    if not Path(given).is_dir():
        raise FileError(f"{name}: no folder {given}")
    return Path(given)


def _described(value: Any) -> str:
    return f"{tuple(value.shape)} of {value.dtype}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
