"""What can be proved of a GPU without one: where tensors are, and how many calls a step makes."""

import networkx as nx
import pytest
import torch
from fake import CUDA, FakeCuda
from graphs import GRAPHS, batch
from torch.utils._python_dispatch import TorchDispatchMode

import mpgraph as mg
from mpgraph.architectures import mlp, recurrent
from mpgraph.lowering import segment
from mpgraph.protocols import Backprop

# A unit whose derivative is not known is differentiated by autograd, which needs a real device.
PLACED = ("convolution", "sparse", "recurrence", "residual", "operations")


@pytest.fixture(params=mg.list_protocols())
def rule(request):
    return mg.make_protocol(request.param)


@pytest.mark.parametrize(("name", "size"), [("dense", 1), *((name, 3) for name in ("dense", *PLACED))])
@pytest.mark.filterwarnings("ignore::mpgraph.FlatUnitWarning")
def test_every_tensor_is_on_the_device(rule, name, size):
    network = mlp([3, 4, 4, 2], "tanh") if name == "dense" else GRAPHS[name]()
    program = mg.compile(network, rule, checks="none", device="cpu")
    program.prepare(size)
    phases = rule.phases or [None]
    shapes = {phase: program._function(single=size == 1, phase=phase).noise for phase in phases}
    fake = FakeCuda()
    fake.program(program)
    x, y = batch(program.graph.network, size)
    x, y = fake.everywhere({n: t.float() for n, t in x.items()}), fake.moved(y)
    with torch.no_grad(), fake:
        state = first = program.init(batch_size=size)
        for phase in phases:
            noise = {
                n: fake.moved(torch.empty([size if i is None else i for i in s])) for n, s in shapes[phase].items()
            }
            with fake.mode:
                state, out = program.step(state, x, y, phase=phase, noise=noise or None)
                prediction = program.predict(state, x)
    tensors = [(f"{n}.{c}", t) for held in (first, state) for n, channels in held.items() for c, t in channels.items()]
    for what, tensor in [*tensors, ("prediction", prediction), ("loss", out.loss), ("out", out.prediction)]:
        assert tensor.device == CUDA, what
    assert prediction.shape == (size, 2)
    assert {n: {c: t.shape for c, t in k.items()} for n, k in state.items()} == {
        n: {c: t.shape for c, t in k.items()} for n, k in first.items()
    }


def test_a_tensor_on_the_wrong_device_is_found():
    network = mg.Network()
    network.input("x", 3), network.unit("y", 2, mg.Function(lambda z: z + torch.ones(2), over="node"))
    network.connect("x", "y"), network.loss("y", "l2")
    program = mg.compile(network, mg.make_protocol("feedback_alignment"), checks="none", device="cpu")
    fake = FakeCuda()
    fake.program(program)
    with torch.no_grad(), fake:
        state = program.init()
        with fake.mode, pytest.raises(RuntimeError, match="device"):
            program.predict(state, fake.moved(torch.zeros(3, 3)))


class Calls(TorchDispatchMode):
    """Counts what reaches a device; views do not."""

    def __init__(self):
        super().__init__()
        self.number = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.number += not any(r.alias_info and not r.alias_info.is_write for r in func._schema.returns)
        return func(*args, **(kwargs or {}))


def calls(program, size, phase=None):
    """How many tensor operations one step makes."""
    state = program.init(batch_size=size)
    inputs = {n: torch.randn(size, *program._batches.shapes[n]) for n in program._batches.inputs}
    targets = {n: torch.randn(size, *program._batches.shapes[n]).softmax(-1) for n in program._batches.targets}
    noise = program.noise(state, size, phase=phase)
    with torch.no_grad(), Calls() as counted:
        program.step(state, inputs, targets, noise=noise or None, phase=phase)
    return counted.number


@pytest.fixture
def one_slice(monkeypatch):
    """Segments run whole: what is cut into slices to fit a cache is called once for each."""
    monkeypatch.setitem(segment.BUDGET, "cpu", 1 << 40)


@pytest.mark.usefixtures("one_slice")
def test_calls_do_not_depend_on_neurons_edges_or_examples(rule):
    phase = rule.phases[0] if rule.phases else None
    # Which product comes first is a matter of what costs less: a larger network may need a few calls less, never more.
    for sizes, examples in (([5, 7, 3], 2), ([11, 7, 3], 2), ([5, 30, 20], 4)):
        small, large = (
            calls(mg.compile(mlp([n * size for size in sizes], "tanh"), rule, checks="none"), n * examples, phase)
            for n in (1, 4)
        )
        assert small - 4 <= large <= small
    assert large > 5
    deeper = [calls(mg.compile(mlp([4] * depth, "tanh"), rule, checks="none"), 2, phase) for depth in (4, 5, 6)]
    assert deeper[2] - deeper[1] == deeper[1] - deeper[0]  # the same for each layer


@pytest.mark.usefixtures("one_slice")
def test_calls_of_recurrent_and_convolutional_networks(rule):
    phase = rule.phases[0] if rule.phases else None

    def images(channels, side):
        network = mg.Network()
        network.input("x", (2, side, side)), network.unit("h", (channels, side, side), "tanh"), network.unit("y", 3)
        network.connect("x", "h", mg.Conv2d(3, padding=1))
        network.operation("flat", "flatten", "h"), network.connect("flat", "y"), network.loss("y", "cross_entropy")
        return network

    sizes = [(5, 4), (8, 4), (5, 7)]
    assert len({calls(mg.compile(images(*s), rule, checks="none"), 3, phase) for s in sizes}) == 1
    sizes = [(3, 4, 2), (3, 9, 2), (6, 4, 5)]
    assert len({calls(mg.compile(recurrent(s, 2), rule, checks="none"), 3, phase) for s in sizes}) == 1


def neurons(levels, width):
    """Single neurons; each receives from two of the level below."""
    graph = nx.DiGraph()
    for level in range(levels):
        kind = "input" if level == 0 else "output" if level == levels - 1 else "unit"
        graph.add_nodes_from(((level, i) for i in range(width)), kind=kind)
        below = ((level - 1, i) for i in range(width))
        graph.add_edges_from((b, (level, (b[1] + shift) % width)) for b in below if level for shift in (0, 1))
    return mg.Network.from_networkx(graph, loss="l2")


def test_calls_of_ten_thousand_single_neurons():
    """As many as levels times a constant."""

    def of(levels, width):
        return calls(mg.compile(neurons(levels, width), Backprop(lr=0.1), checks="none"), 2)

    large = of(10, 1000)
    assert large == of(10, 20)
    each = of(12, 20) - of(11, 20)
    assert of(11, 20) - large == each
    assert large <= 10 * (each + 1)
