"""Whatever fails leaves the rule as it was: the same rule then serves the same networks, with the same numbers."""

import warnings

import pytest
import torch

import mpgraph as mg
from mpgraph.architectures import mlp
from mpgraph.protocols import MPLP, Backprop, FeedbackAlignment

NET = mlp([3, 4, 2], "sigmoid")


def mplp():
    return MPLP(k=2, n=1, hidden=(4, 3))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A rule that was saved after it had served one network."""
    rule, folder = mplp(), tmp_path_factory.mktemp("rule")
    mg.compile(NET, rule)
    rule.save(folder)
    return folder


RULES = {
    "backprop": lambda _: Backprop(lr=mg.learnable(0.1)),
    "mplp": mg.load_protocol,
    "regions": lambda _: mg.Regions({"h1*": FeedbackAlignment(lr=mg.learnable(0.2)), "*": Backprop()}),
}


def chain(activation="sigmoid", cycle=False):
    network = mg.Network()
    network.input("x", 3), network.unit("h", 4, activation), network.unit("y", 2)
    network.connect("x", "h"), network.connect("h", "y"), network.loss("y", "cross_entropy")
    if cycle:
        network.connect("y", "h")
    return network


def broken(z):
    raise ZeroDivisionError("no")


FAILURES = {
    "network": lambda rule: mg.compile(chain(cycle=True), rule, dtype=torch.float64),
    "function": lambda rule: mg.compile(chain(broken), rule, dtype=torch.float64),
    "no loss": lambda rule: mg.compile(mlp([3, 4, 2], loss=None), rule, dtype=torch.float64),
    "warning": lambda rule: mg.compile(chain("step"), rule, dtype=torch.float64),
    "interrupted": lambda rule: mg.compile(chain(interrupt()), rule, dtype=torch.float64),
}


def interrupt():
    """Ctrl-C, at the last of many calls of the function: while code is written."""

    class Stop(mg.Activation):
        def apply(self, z):
            if not isinstance(z, torch.Tensor) or type(z) is not torch.Tensor:
                raise KeyboardInterrupt
            return torch.tanh(z)

        inline = True

    return Stop()


def look(rule):
    """All that a failed compilation might leave behind."""
    return (
        repr(rule),
        {k: (v.dtype, v.tolist()) for k, v in rule.state_dict().items()},
        [(name, type(part).__name__, part.__dict__.get("_sealed")) for name, part in rule.named_modules()],
        rule.pending and rule.pending.filled,
    )


def run(rule):
    program = mg.compile(NET, rule)
    state = program.init(seed=1, batch_size=4)
    x, y = torch.linspace(-1, 1, 12).reshape(4, 3), torch.tensor([0, 1, 1, 0])
    after, out = program.step(state, x, y)
    return program.code, {f"{n}.{c}": t.tolist() for n, cs in after.items() for c, t in cs.items()}, out.loss.item()


@pytest.fixture(scope="module")
def runs():
    return {}


@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize("name", RULES)
def test_a_failed_compilation_changes_nothing(name, failure, folder, runs):
    rule = RULES[name](folder)
    before = look(rule)
    with warnings.catch_warnings():
        warnings.simplefilter("error", mg.FlatUnitWarning)
        try:
            FAILURES[failure](rule)
        except (mg.MPGraphError, Warning, KeyboardInterrupt):
            assert look(rule) == before
        else:  # this rule serves that network: a rule without derivatives has nothing to warn of
            assert (name, failure) == ("mplp", "no loss")
            return
    if name not in runs:
        runs[name] = run(RULES[name](folder))  # of a rule that never failed
    assert run(rule) == runs[name]


def test_a_rule_of_a_file_serves_what_it_did_before_it_refused(folder):
    rule = mg.load_protocol(folder)
    expected = run(rule)
    with pytest.raises(mg.FileError, match="lacks .*h1->h2"):
        mg.compile(mlp([3, 4, 4, 2], "sigmoid"), rule)
    assert run(rule) == expected


def test_a_missing_agent_and_a_border_between_rules():
    class Bare(mg.Protocol):
        passes = ("forward",)

    rule = Bare(optimizer=mg.SGD(0.5))
    before = look(rule)
    with pytest.raises(mg.ProtocolError, match="no agent for node"):
        mg.compile(NET, rule)
    assert look(rule) == before
    rule.optimizer.lr = 0.25  # not sealed
    rule = mg.Regions({"h1*": mplp(), "*": Backprop()})
    before = look(rule)
    with pytest.raises(mg.ProtocolError):
        mg.compile(chain(), rule)
    assert look(rule) == before
    with pytest.raises(mg.ProtocolError):
        mg.compile(NET, rule)
    assert look(rule) == before


def test_containers_of_a_rule_are_restored():
    class Counting(Backprop):
        def __init__(self):
            super().__init__()
            self.seen, self.log, self.by = set(), [[]], {"a": {}}

        def agent(self, node):
            self.seen.add(node.name), self.log[0].append(node.name), self.by["a"].update({node.name: 1})
            self.count = len(self.seen)
            return super().agent(node)

    rule = Counting()
    log = rule.log[0]
    with pytest.raises(mg.NetworkError):
        mg.compile(chain(cycle=True), rule)
    with pytest.raises(mg.ProtocolError):
        mg.compile(mlp([3, 4, 2], loss=None), rule)
    assert (rule.seen, rule.log, rule.by, hasattr(rule, "count")) == (set(), [[]], {"a": {}}, False)
    assert rule.log[0] is log
    mg.compile(NET, rule)
    assert rule.seen
