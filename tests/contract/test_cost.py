"""What ``program.cost`` counts, beside torch's own counter of products and a count of every tensor that is touched."""

import pytest
import torch
from graphs import GRAPHS, batch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import mpgraph as mg
from mpgraph.architectures import convnet, mlp, recurrent
from mpgraph.protocols import Backprop, FeedbackAlignment, Hebb, KolenPollack, NodePerturbation
from mpgraph.registry import lookup

NETWORKS = {
    "dense": lambda: mlp([60, 50, 40]),
    "convolutional": lambda: convnet((3, 12, 12), channels=(8, 9), hidden=(20,), classes=5),
    "recurrent": lambda: recurrent([30, 40, 20], ticks=3),
}


def problem(network, size):
    ticks = (network.ticks,) if network.ticks > 1 else ()
    return torch.randn(size, *ticks, *network.shape("x")), torch.arange(size) % network.shape("y")[0]


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("rule", [Backprop, FeedbackAlignment, Hebb, KolenPollack, NodePerturbation])
def test_products_are_those_that_torch_counts(rule, kind):
    program = mg.compile(NETWORKS[kind](), rule())
    x, y = problem(program.graph.network, 16)
    with FlopCounterMode(display=False) as counter:
        program.step(program.init(), x, y)
    products = counter.get_total_flops()
    flops = program.cost(16).flops
    numbers = sum(t.numel() for channels in program.init().values() for t in channels.values())
    assert products <= flops <= products + 60 * (numbers + 16 * 3000)  # functions of single numbers come on top


class Touched(TorchDispatchMode):
    """Bytes of every tensor that an operation of torch reads or writes; views touch nothing."""

    def __init__(self):
        super().__init__()
        self.bytes = self.calls = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if not func.is_view:
            tensors = [t for t in (*args, *(kwargs or {}).values(), result) if isinstance(t, torch.Tensor)]
            self.bytes += sum(t.numel() * t.element_size() for t in tensors)
            self.calls += 1
        return result


@pytest.mark.parametrize("rule", [Backprop, FeedbackAlignment])
def test_bytes_are_those_of_the_tensors_that_are_read_and_written(rule):
    program = mg.compile(mlp([30, 20, 10], loss="l2"), rule())
    x, y, state = torch.randn(8, 30), torch.randn(8, 10), program.init()
    program.step(state, x, y)
    with torch.no_grad(), Touched() as touched:
        program.step(state, x, y)
    cost = program.cost(8)
    counter = 2 * 8  # of the state's number of steps, which the table leaves out
    assert (cost.bytes, cost.calls) == (touched.bytes - counter, touched.calls - 1)
    assert (cost.sent, cost.rounds) == (0, 0)
    assert cost.state == sum(4 * t.numel() for name, k in state.items() if name != "program" for t in k.values())


def test_multiply_adds_at_synapses_are_those_of_a_count_by_hand():
    """Backprop: a message through every weight there and, but for the first layer, back; and every weight learns."""
    for size in (1, 8):
        program = mg.compile(mlp([64, 32, 10]), Backprop())
        assert program.cost(size).synaptic == size * (2 * (64 * 32) + 3 * (32 * 10))
    lenet = mg.compile(convnet(), Backprop(), device="meta")
    maps = [28 * 28 * 6 * 25, 10 * 10 * 16 * 6 * 25]  # positions, features above and below, kernel
    dense = [400 * 120, 120 * 84, 84 * 10]
    assert lenet.cost(4).synaptic == 4 * (2 * maps[0] + 3 * (maps[1] + sum(dense)))


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_multiply_adds_of_convolutions_are_those_of_a_hand_count(dims):
    """Two convolutions of 6 places a side, windows of 3: from 2 features to 4, and from 4 to 5."""
    convolution = (mg.Conv1d, mg.Conv2d, mg.Conv3d)[dims - 1](3)
    network = mg.Network()
    network.input("x", (2, *[6] * dims)), network.unit("h", (4, *[4] * dims), "tanh")
    network.unit("y", (5, *[2] * dims)), network.loss("y", "l2")
    network.connect("x", "h", convolution), network.connect("h", "y", convolution)
    first, second = 4**dims * 4 * 2 * 3**dims, 2**dims * 5 * 4 * 3**dims
    assert mg.compile(network, Backprop()).cost(8).synaptic == 8 * (2 * first + 3 * second)


def test_the_table_adds_up_to_the_cost():
    for build in NETWORKS.values():
        program = mg.compile(build(), Backprop())
        total = program.explain(8).splitlines()[-1].split()
        cost = program.cost(8)
        for text, number in zip(total[-2:], (cost.flops, cost.bytes), strict=True):
            unit = {"k": 1e3, "M": 1e6, "G": 1e9}.get(text[-1], 1.0)
            assert float(text.rstrip("kMG")) * unit == pytest.approx(number, rel=0.01)


@pytest.mark.parametrize(
    ("name", "network"), [*((name, "convolution") for name in mg.list_protocols()), ("backprop", "sparse")]
)
def test_counted_without_memory_on_the_meta_device(name, network):
    def made(device):
        return mg.compile(GRAPHS[network](), lookup("mpgraph.protocols", name)(), device=device)

    here, there = made("cpu").cost(4), made("meta").cost(4)
    assert here == there
    assert min(here) >= 0
    assert here.flops > 0
    assert here.bytes > 0


def test_a_batch_of_one_has_code_of_its_own():
    program = mg.compile(mlp([5, 4, 3]), Backprop())
    assert program.cost(1).flops < program.cost(2).flops
    with pytest.raises(mg.ProtocolError, match="program.cost: batch_size=0"):
        program.cost(0)
    with pytest.raises(mg.MPGraphError, match="none"):
        program.cost(2, phase="none")


def test_a_step_of_the_batch_that_was_counted_still_runs():
    network = GRAPHS["recurrence"]()
    program = mg.compile(network, Backprop(), dtype=torch.float64)
    before = program.cost(3)
    x, y = batch(network, 3)
    program.step(program.init(), x, y)
    assert program.cost(3) == before
