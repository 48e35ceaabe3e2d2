"""docs/matrix.md says what a run says."""

import pytest
from matrix import PAGE, SIZES, own, page, run

import mpgraph as mg
from mpgraph.registry import lookup


def test_every_architecture_has_a_small_size():
    assert set(own("mpgraph.architectures")) == set(SIZES)


def test_the_page_is_what_the_rules_do():
    assert PAGE.read_text() == page(), "docs/matrix.md is out of date: run `make matrix` (python tests/matrix.py)"


class Diverging(mg.Agent):
    """A weight that becomes infinite."""

    w = mg.slow()

    def forward_update(self, s, pre):
        return s.set(w=s.w + float("inf"))

    def forward_message(self, s):
        return s.w


class Broken(mg.Protocol):
    passes = ("forward",)

    def __init__(self):
        super().__init__(weight=Diverging())


class Refused(Broken):
    def check(self, graph):
        raise mg.ProtocolError("it cannot be")


def test_a_rule_that_breaks_is_noticed(monkeypatch):
    found = {"broken": Broken, "refused": Refused}
    monkeypatch.setattr("matrix.lookup", lambda group, name: found.get(name) or lookup(group, name))
    with pytest.raises(AssertionError, match=r"broken on mlp: .* not finite"):
        run("broken", "mlp")
    assert run("refused", "mlp") == ("no", "it cannot be")
