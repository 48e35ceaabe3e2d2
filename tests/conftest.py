"""Shared fixtures. Two threads on small tensors only spin, so tests use one."""

import os
from pathlib import Path

import hypothesis
import pytest
import torch

torch.set_num_threads(1)
hypothesis.settings.register_profile(
    "default", deadline=None, max_examples=int(os.environ.get("EXAMPLES", 25)), derandomize=True
)
hypothesis.settings.load_profile("default")

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def double():
    """Torch's default dtype is float64 within the test."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="session")
def data_root():
    """Folder with the real data sets, or skip."""
    for candidate in (os.environ.get("MPGRAPH_DATA"), ROOT.parent / "shared" / "data"):
        if candidate and Path(candidate).is_dir():
            return Path(candidate)
    pytest.skip("no data folder: set MPGRAPH_DATA to a folder with MNIST/raw/*.gz")
