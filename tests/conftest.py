"""Shared fixtures. Two threads on small tensors only spin, so tests use one."""

import gc
import os
from pathlib import Path

import hypothesis
import pytest
import torch

torch.set_num_threads(1)
hypothesis.settings.register_profile(
    "default", deadline=None, max_examples=int(os.environ.get("EXAMPLES", 20)), derandomize=True
)
hypothesis.settings.load_profile("default")

ROOT = Path(__file__).resolve().parent.parent

# Left out by `make test-fast`: whole folders, and files that run agents one by one or train.
SLOW = {
    *("autograd", "published", "meta"),
    *("test_protocols.py", "test_matrix.py", "test_program.py", "test_environment.py", "test_failed_compile.py"),
    *("test_backends.py", "test_devices.py"),
    *("test_vsml_meaning.py", "test_blur_meaning.py", "test_memories.py", "test_regions.py", "test_dry_run.py"),
    *("test_group.py", "test_cost.py"),
    *("test_compare.py", "test_hostile.py", "test_report.py", "test_looks.py", "test_mistakes.py"),
    *("test_examples.py", "test_learning.py", "test_data.py", "test_drawing.py", "test_experiments.py", "test_cli.py"),
}


def pytest_collection_modifyitems(items):
    """Mark what is slow by where it is."""
    for item in items:
        if {item.path.name, item.path.parent.name} & SLOW:
            item.add_marker(pytest.mark.slow)


def pytest_collection_finish():
    """Take what is loaded by now out of the garbage collector, and let it run less often.

    Compiling makes many objects in a process that holds many already, which need not be looked through each time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 10, 10)


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
