"""The contract that every registered protocol keeps, whatever it is."""

import inspect

import pytest
import torch
from graphs import GRAPHS, batch
from reference import distance, few, randomised

import mpgraph as mg
from mpgraph.architectures import mlp
from mpgraph.interpreter import interpreter
from mpgraph.registry import lookup


@pytest.fixture(scope="module", params=mg.list_protocols())
def name(request):
    return request.param


@pytest.fixture(scope="module")
def rule(name):
    return lookup("mpgraph.protocols", name)


@pytest.fixture(scope="module", params=["chain", "skip", "two inputs", "one to one", *GRAPHS])
def network(request):
    if request.param in GRAPHS:
        return GRAPHS[request.param]()
    if request.param == "chain":
        return mlp([3, 4, 4, 2], activation="sigmoid")
    network = mg.Network()
    network.input("x", 3)
    network.unit("h", 3, "tanh"), network.unit("y", 2)
    network.connect("x", "h", "one_to_one" if request.param == "one to one" else "dense")
    network.connect("h", "y")
    if request.param == "skip":
        network.connect("x", "y")
    if request.param == "two inputs":
        network.input("v", 2), network.connect("v", "h"), network.connect("v", "y")
    network.loss("y", "cross_entropy")
    return network


@pytest.fixture(scope="module")
def program(rule, network):
    """One for all tests of a rule on a network: a program keeps nothing, all that changes is in states."""
    return mg.compile(network, rule(), dtype=torch.float64)


@pytest.mark.filterwarnings("ignore::mpgraph.FlatUnitWarning")
def test_compiled_means_what_the_interpreter_does(program, network):
    repeat = few(program)
    size = 3 if repeat is None or len(network.units) < 4 else 1  # rounds take long there
    state = randomised(program.init(batch_size=size), torch.Generator().manual_seed(0))
    x, y = batch(program.graph.network, size)
    after, _ = program.step(state, x, y, repeat=repeat)
    targets = {"y": torch.eye(2, dtype=torch.float64)[y]}
    meaning, _ = interpreter.step(program, state, x, targets, program.noise(state, size, repeat=repeat), repeat=repeat)
    assert distance(after, meaning) < 1e-10


@pytest.mark.filterwarnings("ignore::mpgraph.FlatUnitWarning")
def test_pure_seeded_and_mappable(program):
    x, y = batch(program.graph.network, 3)
    states = [program.init(seed, batch_size=3) for seed in (0, 0, 1)]
    assert distance(states[0], states[1]) == 0.0
    noise = program.noise(states[0], 3)
    alone = [program.step(s, x, y, noise=noise)[0] for s in states]
    assert distance(alone[0], alone[1]) == 0.0
    stack = mg.stack(states)
    mapped, _ = torch.func.vmap(lambda s: program.step(s, x, y, noise=noise))(stack)
    for i, state in enumerate(alone):
        assert distance(state, {n: {c: t[i] for c, t in k.items()} for n, k in mapped.items()}) < 1e-10


@pytest.mark.filterwarnings("ignore::mpgraph.FlatUnitWarning")
def test_no_tensor_of_a_state_shares_memory(program):
    x, y = batch(program.graph.network, 3)
    before = program.init(batch_size=3)
    after, out = program.step(before, x, y)
    fed = [*(x.values() if isinstance(x, dict) else [x]), y]
    predictions = out.prediction.values() if isinstance(out.prediction, dict) else [out.prediction]
    others = [*fed, *predictions, *out.losses.values(), *program.protocol.state_dict().values()]
    old = {(n, c): t for n, k in before.items() for c, t in k.items()}
    new = {(n, c): t for n, k in after.items() for c, t in k.items()}
    for key, tensor in new.items():
        rest = [t for both in (old, new) for other, t in both.items() if other != key]
        assert _memory(tensor).isdisjoint(set().union(*map(_memory, [*rest, *others]))), key


def _memory(tensor):
    return {tensor.untyped_storage().data_ptr()} if tensor.numel() else set()


def test_usable_by_its_defaults_and_carries_its_source(name, rule):
    protocol = rule()
    assert mg.make_protocol(name).name == protocol.name
    assert protocol.name.startswith(f"{rule.__name__}(")
    assert mg.cite(protocol).startswith("@")
    assert inspect.getdoc(rule)


def test_names_are_snake_case_of_the_class(name, rule):
    squeezed = name.replace("_", "")
    assert squeezed == rule.__name__.lower()
