"""Fetching data sets with torchvision, also where its compiled operators cannot load."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from mpgraph.errors import InputError, unknown


def download(name: str, root: str | Path) -> Path:
    """Fetch MNIST or Fashion-MNIST with torchvision into ``root``; nothing is fetched if the files are there.

    Raises:
        InputError: for a set that torchvision cannot fetch in this form.
    """
    fetchable = {"mnist": "MNIST", "fashion_mnist": "FashionMNIST"}
    if name not in fetchable:
        raise InputError(unknown("data set for download", name, fetchable))
    datasets = importlib.import_module(f"{torchvision().__name__}.datasets")
    getattr(datasets, fetchable[name])(str(root), download=True)
    return Path(root)


_schemas: Any = None  # operator declarations live as long as this object


def torchvision() -> ModuleType:
    """The torchvision package, also where its compiled operators cannot load.

    A torchvision built for CUDA beside a torch built for the CPU fails on import with a RuntimeError about
    ``torchvision::nms``; declaring the operators' signatures first is enough for everything but those operators.
    """
    global _schemas
    try:
        return importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
    for module in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[module]
    _schemas = torch.library.Library("torchvision", "FRAGMENT")
    for operator in ("nms", "qnms"):
        _schemas.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return importlib.import_module("torchvision")
