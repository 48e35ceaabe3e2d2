"""Budgets of memory as a user writes them: sizes from their definition, shares of what the system says is free."""

import copy
import pickle

import pytest
import torch

import mpgraph as mg
from mpgraph import budget
from mpgraph.architectures import mlp
from mpgraph.protocols import Backprop

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("written", "wanted"),
    [
        (0, 0),
        (12345, 12345),
        ("2 GiB", 2 * 1024**3),
        ("1.5GiB", 3 * 1024**3 // 2),
        (" 10 mb ", 10_000_000),
        ("7 B", 7),
        ("3 KiB", 3072),
        (".5 TiB", 1024**4 // 2),
    ],
)
def test_sizes(written, wanted):
    assert budget.bytes_of("it", written, CPU) == wanted


def test_shares_are_of_what_is_free(monkeypatch):
    monkeypatch.setattr(budget, "free_memory", lambda device: 1000)
    assert budget.bytes_of("it", "25%", CPU) == 250
    assert budget.bytes_of("it", 0.5, CPU) == 500
    assert budget.bytes_of("it", 1.0, CPU) == 1000


def test_what_is_free_is_less_than_what_there_is():
    psutil = pytest.importorskip("psutil")
    assert 0 < budget.free_memory(CPU) <= psutil.virtual_memory().total


@pytest.mark.parametrize("wrong", [-1, 1.5, 0.0, -0.2, True, None, "2", "2 G", "GiB", "120%", "0%", "", [1], "nan GiB"])
def test_what_is_no_budget_is_refused(wrong):
    with pytest.raises(mg.ProtocolError, match=r"mg\.compile: memory=.* must be a number of bytes such as") as caught:
        mg.compile(mlp([2, 2]), Backprop(), memory=wrong)
    assert "'2 GiB'" in str(caught.value)
    assert "'50%'" in str(caught.value)


def test_copies_have_the_same_budget():
    program = mg.compile(mlp([2, 2]), Backprop(), memory="3 MiB")
    for again in (copy.copy(program), copy.deepcopy(program), pickle.loads(pickle.dumps(program))):
        assert again.memory.limit == 3 << 20


def test_sizes_for_people():
    written = [budget.shown(n) for n in (0, 999, 1023, 1536, 3 << 30, 1 << 50)]
    assert written == ["0 bytes", "999 bytes", "0.999 KiB", "1.5 KiB", "3 GiB", "1024 TiB"]
