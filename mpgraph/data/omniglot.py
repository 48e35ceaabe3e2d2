"""Omniglot's archive of drawings, as its authors published it."""

from __future__ import annotations

import io
import zipfile
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from mpgraph.errors import FileError

PUBLISHED = (105, 105)  # pixels of a drawing
SIDE = 28  # they are averaged down to this many
LARGEST = 100_000  # bytes of a drawing's file; published ones have some hundreds
DRAWINGS = 20  # of each character


def read_omniglot(path: Path, progress: bool) -> tuple[Tensor, Tensor, int]:
    """Images ``(n, 1, 28, 28)`` with ink 1 and paper 0, labels ``(n,)`` and the number of characters.

    Raises:
        FileError: if the archive is missing, damaged or holds something else.
    """
    if not path.is_file():
        raise FileError(f"omniglot: no file {path}")
    images: list[np.ndarray] = []
    labels: list[int] = []
    characters: dict[str, int] = {}  # the folder of each, and its label
    entry = "its table of contents"
    try:
        with zipfile.ZipFile(path) as archive:
            names = sorted(name for name in archive.namelist() if name.endswith(".png"))
            # A bar only on a terminal: that is what tqdm makes of None.
            for entry in tqdm(names, desc="omniglot", leave=False, disable=None if progress else True):
                if archive.getinfo(entry).file_size > LARGEST:
                    raise FileError(f"{path}: {entry} unpacks to more than {LARGEST} bytes: it is no drawing")
                images.append(_image(path, entry, archive.read(entry)))
                labels.append(characters.setdefault(entry.rpartition("/")[0], len(characters)))
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, RuntimeError, NotImplementedError) as error:
        raise FileError(f"{path} is damaged or not a zip archive, at {entry}: {error}") from None
    if not images:
        raise FileError(f"{path} holds no .png drawings; expected Omniglot's images_background.zip")
    folders = list(characters)
    for label, count in Counter(labels).items():
        if count != DRAWINGS:
            raise FileError(f"{path}: {folders[label]} holds {count} drawings, expected {DRAWINGS}")
    x = torch.from_numpy(np.stack(images)).unsqueeze(1)
    if x.min() == x.max():
        raise FileError(f"{path}: all pixels of all drawings are alike")
    return x, torch.tensor(labels, device="cpu"), len(characters)


def _image(path: Path, entry: str, content: bytes) -> np.ndarray:
    from PIL import Image

    try:
        opened = Image.open(io.BytesIO(content))
        size = opened.size  # before anything is unpacked
        drawing = opened.convert("L") if size == PUBLISHED else None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise FileError(f"{path}: {entry} cannot be read as an image: {error}") from None
    if drawing is None:
        raise FileError(f"{path}: {entry} has {size} pixels, expected {PUBLISHED}")
    drawing = drawing.resize((SIDE, SIDE), Image.Resampling.BOX)
    return 1.0 - np.asarray(drawing, dtype=np.float64) / 255.0
