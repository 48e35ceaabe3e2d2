"""Fetching data sets with torchvision, also where its compiled operators cannot load."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import torch

from mpgraph.errors import FileError, InputError, unknown

FETCHABLE = {"mnist": "MNIST", "fashion_mnist": "FashionMNIST"}


def download(name: str, root: str | Path) -> Path:
    """Fetch MNIST or Fashion-MNIST with torchvision into ``root``; nothing is fetched if the files are there.

    Raises:
        InputError: for a set that torchvision cannot fetch in this form.
        FileError: if it cannot be fetched or written.
    """
    if name not in FETCHABLE:
        raise InputError(unknown("data set for download", name, FETCHABLE))
    datasets = _datasets()
    try:
        getattr(datasets, FETCHABLE[name])(str(root), download=True)
    except (OSError, RuntimeError, ValueError) as error:
        raise FileError(f"{name} cannot be fetched into {root}: {error}") from None
    return Path(root)


def _datasets() -> Any:
    """``torchvision.datasets``.

    A torchvision built for CUDA beside a torch built for the CPU cannot be imported: it describes two operators that
    are missing. Declaring them is enough, as data sets do not use them.
    """
    try:
        return importlib.import_module("torchvision.datasets")
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
    for operator in ("nms", "qnms"):
        torch.library.define(f"torchvision::{operator}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return importlib.import_module("torchvision.datasets")
