"""Networks read from torch modules compute and learn what the modules do; the oracle is autograd on a copy."""

import re
from copy import deepcopy
from functools import partial

import pytest
import torch
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from refusals import refuses
from torch import nn
from torch.nn import functional as F

import mpgraph as mg
from mpgraph.architectures import mlp as drawn_mlp
from mpgraph.convert import torch_functions, torch_layers, torch_written_out
from mpgraph.protocols import Backprop, DirectFeedbackAlignment, FeedbackAlignment, NodePerturbation

LR = 0.05


class Net(nn.Module):
    """A module with given layers and a function of (self, *inputs) as forward."""

    def __init__(self, call, **layers):
        super().__init__()
        self.call = call
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x):
        return self.call(self, x)


class Block(nn.Module):
    """The residual block of small ResNets, written as people do."""

    def __init__(self, inside, outside, stride=1):
        super().__init__()
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outside)
        self.conv2 = nn.Conv2d(outside, outside, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outside)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut = nn.Identity()
        if stride > 1 or inside != outside:
            self.shortcut = nn.Sequential(nn.Conv2d(inside, outside, 1, stride), nn.BatchNorm2d(outside))

    def forward(self, x):
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += self.shortcut(x)
        return self.relu(out)


def lenet():
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1),
        nn.Tanh(),
        nn.AvgPool2d(2),
        nn.Conv2d(3, 4, 2, bias=False),
        nn.ReLU(),
        nn.MaxPool2d(2, stride=1),
        nn.Flatten(),
        nn.Linear(16, 6),
        nn.Sigmoid(),
        nn.Linear(6, 3),
    )


def resnet():
    return nn.Sequential(
        nn.Conv2d(1, 2, 3, padding="same"), Block(2, 2), Block(2, 3, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(3, 3),
    )  # fmt: skip


def functional():
    """Everything by functions and methods."""

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.conv1(x), True), 2, ceil_mode=True)
        x = F.avg_pool2d(torch.tanh(self.conv2(x)), 2, stride=1)
        x = F.adaptive_avg_pool2d(x, (2, 1)).clamp_(-0.5, 0.5)
        x = x.view(x.size(0), -1)
        x = F.softplus(self.fc1(F.dropout(x, training=False)), beta=2.0).sigmoid()
        return self.fc2(F.gelu(x, approximate="tanh") * 0.5 + 1)

    return Net(
        forward, conv1=nn.Conv2d(1, 2, 3, padding=1), conv2=nn.Conv2d(2, 3, 2), fc1=nn.Linear(6, 5),
        fc2=nn.Linear(5, 3),
    )  # fmt: skip


def branches():
    """Concatenation, sums, differences, products, a global mean by method, repeated operands."""

    def forward(self, x):
        x = self.stem(x)
        x = torch.cat([self.one(x), self.two(x).relu(), x], dim=1)
        gate = self.gate(x).sigmoid()
        x = x * gate + sum([self.deep(x), self.wide(x)]) - gate
        pooled = x.mean((2, 3))
        squared = pooled * pooled + (pooled + pooled)
        return self.fc(torch.cat((squared, pooled, pooled), 1))

    return Net(
        forward, stem=nn.Conv2d(1, 2, 3, 2), one=nn.Conv2d(2, 1, 1), two=nn.Conv2d(2, 2, 1, bias=False),
        gate=nn.Conv2d(5, 5, 1), deep=nn.Conv2d(5, 5, 3, padding=1), wide=nn.Conv2d(5, 5, 1), fc=nn.Linear(15, 3),
    )  # fmt: skip


def grouped():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=(1, 2), padding=(2, 0), dilation=(2, 1)),
        nn.ELU(inplace=True),
        nn.Conv2d(4, 6, (1, 3), padding="valid", groups=2),
        nn.SiLU(),
        nn.Flatten(1),
        nn.Linear(48, 3, bias=False),
    )


def normalised():
    """LayerNorm over vectors and images, with and without affine, before and after weights."""
    return nn.Sequential(
        nn.Conv2d(1, 2, 3, bias=False), nn.LayerNorm((2, 6, 6)), nn.LeakyReLU(0.2), nn.Flatten(),
        nn.LayerNorm(72, elementwise_affine=False), nn.Linear(72, 5), nn.LayerNorm(5, bias=False), nn.Tanh(),
        nn.Linear(5, 3),
    )  # fmt: skip


def batch_normalised():
    return nn.Sequential(
        nn.BatchNorm2d(1), nn.Conv2d(1, 2, 3, 2), nn.BatchNorm2d(2, affine=False, momentum=0.3), nn.Flatten(),
        nn.Linear(18, 5), nn.BatchNorm1d(5, eps=1e-3), nn.Softplus(), nn.Linear(5, 3), nn.BatchNorm1d(3),
    )  # fmt: skip


def sequences():
    """BatchNorm1d over positions, and a shape in between."""
    positions = Net(lambda self, x: self.bn(x.reshape(-1, 4, 16)).squeeze(), bn=nn.BatchNorm1d(4))
    return nn.Sequential(positions, nn.Tanh(), nn.Flatten(), nn.Linear(64, 3))


def shared():
    """A layer with a bias used twice, and a weight that belongs to two layers."""
    first, second = nn.Linear(6, 6, bias=False), nn.Linear(6, 6)
    second.weight = first.weight
    twice = nn.Linear(6, 6)
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 6), twice, nn.Tanh(), twice, nn.Hardtanh(), first, nn.GELU(), second,
        nn.Linear(6, 3),
    )  # fmt: skip


def shared_convolution():
    first, conv = nn.Conv2d(1, 2, (3, 5), padding="same"), nn.Conv2d(2, 2, 3, padding=1)
    return nn.Sequential(first, conv, nn.ReLU(), nn.MaxPool2d(2), conv, nn.Flatten(), nn.Linear(32, 3))


def skips():
    """Values that several calls use, through layers without effect or not."""

    def forward(self, x):
        h = self.one(x.flatten(1))
        h = torch.relu(h) + h
        g = self.two(h)
        same = self.dropout(g)
        return self.three((torch.tanh(same) - g).view(-1, 2, 3).flatten(1))

    layers = {"one": nn.Linear(64, 6), "two": nn.Linear(6, 6), "three": nn.Linear(6, 3)}
    return Net(forward, dropout=nn.Dropout(0.0), **layers)


def mlp(activation=None):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 6), activation or nn.Tanh(), nn.Linear(6, 3))


MODULES = {
    f.__name__: f
    for f in (
        mlp, lenet, resnet, functional, branches, grouped, normalised, batch_normalised, sequences, shared,
        shared_convolution, skips,
    )
}  # fmt: skip
ACTIVATIONS = [
    nn.Tanh(), nn.Sigmoid(), nn.ReLU(), nn.Softplus(), nn.Softplus(3.0, 5.0), nn.Identity(), nn.GELU(), nn.ELU(0.5),
    nn.LeakyReLU(0.3, inplace=True), nn.SiLU(), nn.Hardtanh(-0.2, 0.4), nn.CELU(), nn.SELU(), nn.Mish(), nn.ReLU6(),
    nn.Hardswish(), nn.Softsign(), nn.Tanhshrink(), nn.Softshrink(0.1), nn.Dropout(0.0), nn.Dropout(0.5).eval(),
]  # fmt: skip


def made(make, dtype=torch.float64, seed=0):
    torch.manual_seed(seed)
    module = make().to(dtype)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.3 * torch.randn_like(p))  # gains and biases away from one and zero
    return module


def batches(dtype, loss, steps=3, size=6, shape=(1, 8, 8), classes=3):
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        x = torch.randn(size, *shape, generator=generator, dtype=torch.float64).to(dtype)
        labels = torch.randint(0, classes, (size,), generator=generator)
        target = torch.randn(size, classes, generator=generator, dtype=torch.float64).to(dtype)
        yield x, labels if loss == "cross_entropy" else target


def by_autograd(module, data, loss):
    """A copy of the module after steps of gradient descent, in torch."""
    module = deepcopy(module)
    optimizer = torch.optim.SGD(module.parameters(), lr=LR)
    for x, y in data:
        z = module(x.clone())
        value = F.cross_entropy(z, y) if loss == "cross_entropy" else 0.5 * (z - y).square().sum(1).mean()
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    return module


def assert_close(one, two, tolerance):
    one, two = one.state_dict(), two.state_dict()
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(one[name], two[name], atol=tolerance, rtol=tolerance, msg=lambda m, n=name: n + m)


def check_learning(module, loss, dtype, shape=(1, 8, 8)):
    before = deepcopy(module.state_dict())
    data = list(batches(dtype, loss, shape=shape))
    network = mg.Network.from_torch(module, shape, loss=loss)
    program = mg.compile(network, Backprop(LR), dtype=dtype)
    state = program.init()
    for x, y in data:
        state, _ = program.step(state, x, y)
    tolerance = 1e-10 if dtype == torch.float64 else 1e-6
    trained = program.to_torch(state)
    assert_close(trained, by_autograd(module, data, loss), tolerance)
    x = data[0][0]
    with torch.no_grad():
        expected = trained.eval()(x.clone())
    torch.testing.assert_close(program.predict(state, x), expected, atol=tolerance, rtol=tolerance)
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    return network


@pytest.mark.parametrize("loss", ["cross_entropy", "l2"])
@pytest.mark.parametrize("name", MODULES)
def test_learns_as_by_autograd(name, loss):
    check_learning(made(MODULES[name]), loss, torch.float64)


@pytest.mark.parametrize("name", ["mlp", "resnet", "branches", "shared"])
def test_learns_as_by_autograd_in_single_precision(name):
    check_learning(made(MODULES[name], torch.float32), "cross_entropy", torch.float32)


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=repr)
def test_every_activation(activation):
    network = check_learning(made(lambda: mlp(activation)), "l2", torch.float64)
    assert [u for u in network.units if u != "x"] == ["flatten_0", "linear_1", "linear_3"]  # none of its own


@pytest.mark.parametrize("name", MODULES)
def test_round_trip_changes_no_bit(name):
    module = made(MODULES[name], torch.float32).eval()
    program = mg.compile(mg.Network.from_torch(module, (1, 8, 8)).copy(), ForwardOnly())
    state = program.init(seed=3)
    back = program.to_torch(state)
    assert back is not module
    assert not back.training
    assert type(back) is type(module)
    for key, tensor in module.state_dict().items():
        assert torch.equal(back.state_dict()[key], tensor), key
    x = torch.randn(4, 1, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(program.predict(state, x), module(x.clone()))


class ForwardOnly(Backprop):
    passes = ("forward",)


@pytest.mark.parametrize("name", MODULES)
def test_other_rules_run_on_it(name):
    module = made(MODULES[name])
    network = mg.Network.from_torch(module, (1, 8, 8), loss="cross_entropy")
    program = mg.compile(network, FeedbackAlignment(LR), dtype=torch.float64)
    before = program.init()
    ((x, y),) = batches(torch.float64, "cross_entropy", steps=1)
    after, out = program.step(before, x, y)
    assert torch.isfinite(out.loss)
    assert all(torch.isfinite(t).all() for channels in after.values() for t in channels.values())
    trained = program.to_torch(after)
    for (key, new), old in zip(trained.named_parameters(), module.parameters(), strict=True):
        assert new.ndim == 1 or not torch.equal(new, old), key  # a bias before a normalization has no effect


def test_units_are_named_after_submodules():
    network = mg.Network.from_torch(made(resnet), (1, 8, 8), loss="cross_entropy")
    assert list(network.units) == [
        "x", "conv2d_0", "block_1_conv1_bn1", "block_1_bn1", "block_1_conv2_bn2", "block_1_bn2", "block_2_conv1_bn1",
        "block_2_bn1", "block_2_conv2_bn2", "block_2_shortcut_0_1", "block_2_shortcut_1", "block_2_bn2",
        "adaptiveavgpool2d_3", "linear_5",
    ]  # fmt: skip
    assert "block_1_conv1_bn1->block_1_bn1" in network.wires
    assert network.outputs == ("linear_5",)
    assert network.units["block_1_bn2"].activation.name == "relu"  # sum, gain, bias and activation in one unit


def test_names_in_use_get_a_number():
    forward = lambda self, x: self.loss(self.x(x).relu()).relu() + self.x(x).relu()  # noqa: E731
    network = mg.Network.from_torch(Net(forward, x=nn.Linear(2, 2), loss=nn.Linear(2, 2)), 2, loss="l2")
    assert list(network.units) == ["x", "ones", "x_2", "loss_2", "x_3", "add"]


def test_several_inputs():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.left, self.right = nn.Linear(3, 2), nn.Linear(4, 2)

        def forward(self, image, word=None, scale=2.0, *, flip=False):
            out = self.left(image) if word is None else self.left(image) + self.right(word)
            return out * (-scale if flip else scale)

    module = Two()
    shapes = {"image": (3,), "word": 4}
    program = mg.compile(mg.Network.from_torch(module, shapes, loss="l2"), Backprop())
    x = {"image": torch.randn(5, 3), "word": torch.randn(5, 4)}
    torch.testing.assert_close(program.predict(program.init(), x), module(**x))
    alone = mg.compile(mg.Network.from_torch(module, 3, loss="l2"), Backprop())
    torch.testing.assert_close(alone.predict(alone.init(), x["image"]), module(x["image"]))
    assert torch.equal(alone.to_torch(alone.init()).right.weight, module.right.weight)
    with refuses(mg.NetworkError, "unknown argument", "'picture'", "image"):
        mg.Network.from_torch(module, {"picture": 3})
    with refuses(mg.NetworkError, "image, word", "by its name"):
        mg.Network.from_torch(Net2(), 3)


class Net2(nn.Module):
    def forward(self, image, word):
        return image + word


def test_an_input_that_is_not_used_is_still_an_input():
    network = mg.Network.from_torch(Net3(), {"image": 3, "word": 2}, loss="l2")
    program = mg.compile(network, ForwardOnly())
    x = {"image": torch.randn(2, 3), "word": torch.randn(2, 2)}
    assert torch.equal(program.predict(program.init(), x), x["image"].tanh())


class Net3(nn.Module):
    def forward(self, image, word):
        return image.tanh()


def test_a_single_layer_is_a_module_too():
    module = nn.Linear(4, 3)
    program = mg.compile(mg.Network.from_torch(module, 4, loss="cross_entropy"), Backprop())
    state = program.init()
    assert torch.equal(state["x->y"]["w"], module.weight)
    assert isinstance(program.to_torch(state), nn.Linear)


def test_fixed_parameters_stay_fixed_and_variants_lead_back():
    module = made(mlp)
    module[1].requires_grad_(False)
    network = mg.Network.from_torch(module, (1, 8, 8), loss="cross_entropy").frozen("linear_3.bias")
    program = mg.compile(network, Backprop(), dtype=torch.float64)
    ((x, y),) = batches(torch.float64, "cross_entropy", steps=1)
    trained = program.to_torch(program.step(program.init(), x, y)[0])
    same = {n for n, p in trained.named_parameters() if torch.equal(p, module.get_parameter(n))}
    assert same == {"1.weight", "1.bias", "3.bias"}
    assert not trained[1].weight.requires_grad


def test_network_does_not_follow_the_module_nor_the_module_the_network():
    module = made(mlp)
    network = mg.Network.from_torch(module, (1, 8, 8))
    before = module[1].weight.detach().clone()
    with torch.no_grad():
        module[1].weight.zero_()
        module[1].bias.zero_()
    program = mg.compile(network, ForwardOnly(), dtype=torch.float64)
    state = program.init()
    assert torch.equal(program.to_torch(state)[1].weight, before)
    with torch.no_grad():
        program.to_torch(state)[1].weight.zero_()
    assert torch.equal(program.to_torch(state)[1].weight, before)


def test_dtype_of_the_module_is_kept():
    module = made(mlp, torch.bfloat16)
    program = mg.compile(mg.Network.from_torch(module, (1, 8, 8)), ForwardOnly())
    back = program.to_torch(program.init())
    for one, two in zip(back.parameters(), module.parameters(), strict=True):
        assert one.dtype == torch.bfloat16
        assert torch.equal(one, two)


def test_counted_batches_go_on():
    module = made(batch_normalised)
    for x, _ in batches(torch.float64, "l2", steps=2):
        module(x)
    network = check_learning(module, "l2", torch.float64)
    assert network.units["batchnorm2d_0_norm"].values["mean"].item() == module[0].running_mean.item()


def test_values_of_channels_and_biases_along_dimensions():
    network = mg.Network()
    values = {"mean": torch.tensor([1.0, 2.0]), "var": 4}
    network.unit("y", (2, 3), mg.BatchNorm(), bias=torch.arange(3.0), bias_shared=(0,), values=values)
    network.connect(network.input("x", (2, 3)), "y", "identity")
    state = mg.compile(network, ForwardOnly()).init()
    assert {c: t.tolist() for c, t in state["y"].items()} == {"mean": [1.0, 2.0], "var": [4.0, 4.0]}
    assert state["y.bias"]["w"].tolist() == [0.0, 1.0, 2.0]
    with refuses(mg.NetworkError, "'z'", "bias_shared=(2,)", "below 2"):
        network.unit("z", (2, 3), bias_shared=(2,))
    wrong = mg.Network()
    wrong.connect(wrong.input("x", 2), wrong.unit("y", 2, mg.BatchNorm(), values={"mean": torch.zeros(3)}), "identity")
    with refuses(mg.StateError, "'y'", "mean", "(3,)", "(2,)"):
        mg.compile(wrong, ForwardOnly()).init()


# -- modes ------------------------------------------------------------------------------------------------


def seen(make, seed=0):
    """A module whose running statistics are those of some batches, away from zero and one."""
    module = made(make, seed=seed)
    for x, _ in batches(torch.float64, "l2", steps=2):
        module(3 * x + 1)
    return module


@pytest.mark.parametrize("loss", ["cross_entropy", "l2"])
@pytest.mark.parametrize("make", [batch_normalised, resnet, sequences])
def test_batch_normalization_in_eval_mode_keeps_its_statistics(make, loss):
    module = seen(make).eval()
    network = check_learning(module, loss, torch.float64)  # by_autograd steps in eval mode too
    assert not any(unit.values for unit in network.units.values())
    program = mg.compile(network, Backprop(LR), dtype=torch.float64)
    x, y = next(batches(torch.float64, loss, size=2 if make is sequences else 1))  # its squeeze needs two, in torch
    trained = program.to_torch(program.step(program.init(), x, y)[0])
    assert_close(trained, by_autograd(module, [(x, y)], loss), 1e-9)
    for name, buffer in trained.named_buffers():
        assert torch.equal(buffer, module.get_buffer(name)), name


def test_some_layers_in_eval_mode_and_some_not():
    module = seen(batch_normalised)
    module[2].eval()
    data = list(batches(torch.float64, "l2"))
    program = mg.compile(mg.Network.from_torch(module, (1, 8, 8), loss="l2"), Backprop(LR), dtype=torch.float64)
    state = program.init()
    for x, y in data:
        state, _ = program.step(state, x, y)
    trained = program.to_torch(state)
    assert_close(trained, by_autograd(module, data, "l2"), 1e-9)
    assert torch.equal(trained[2].running_mean, module[2].running_mean)
    assert not torch.equal(trained[0].running_mean, module[0].running_mean)


def test_cumulative_statistics_serve_in_eval_mode():
    make = lambda: nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64, momentum=None), nn.Linear(64, 3))  # noqa: E731
    check_learning(seen(make).eval(), "l2", torch.float64)


@pytest.mark.parametrize("rule", [FeedbackAlignment(LR), DirectFeedbackAlignment(LR), NodePerturbation(LR)], ids=repr)
def test_statistics_of_ones_own_network_can_be_frozen(rule):
    """Equal to the same network with what the normalization computes written as a function."""
    mean, var = torch.tensor([0.5, -1.0, 2.0]).double(), torch.tensor([0.25, 4.0, 1.0]).double()

    def network(norm):
        network = mg.Network()
        network.input("x", 4), network.unit("h", 3, norm), network.unit("y", 2)
        network.connect("x", "h"), network.connect("h", "y"), network.loss("y", "l2")
        return network

    function = mg.Function(lambda z: (z - mean) / (var + 1e-3).sqrt(), over="node")
    programs = [
        mg.compile(network(norm), rule, dtype=torch.float64)
        for norm in (mg.BatchNorm(eps=1e-3).frozen(mean, var), function)
    ]
    x, y = torch.randn(5, 4).double(), torch.randn(5, 2).double()
    (one, first), (two, second) = (p.step(p.init(seed=1), x, y) for p in programs)
    torch.testing.assert_close(first.prediction, second.prediction)
    for node, channels in two.items():
        for channel, tensor in channels.items():
            torch.testing.assert_close(one[node][channel], tensor)
    torch.testing.assert_close(*(p.predict(s, x) for p, s in zip(programs, (one, two), strict=True)))


def test_frozen_statistics_are_checked_and_copied():
    mean = torch.zeros(2)
    frozen = mg.BatchNorm().frozen(mean, torch.ones(2))
    mean += 5
    z = torch.randn(3, 2)
    torch.testing.assert_close(frozen.apply(z), z / (1 + 1e-5) ** 0.5)
    for bad, words in (
        ((torch.zeros(2), torch.ones(3)), ["(2,)", "(3,)"]),
        ((torch.zeros(2), -torch.ones(2)), ["var must not be below zero"]),
        (("a", torch.ones(2)), ["mean must be a tensor, an array or a number"]),
        (([float("nan")], [1.0]), ["finite"]),
    ):
        with refuses(mg.NetworkError, *words):
            mg.BatchNorm().frozen(*bad)
    network = mg.Network()
    network.input("x", 3), network.unit("h", 3, frozen), network.connect("x", "h"), network.loss("h", "l2")
    with refuses(mg.NetworkError, "'h'", "2 channels", "3 channels"):
        mg.compile(network, Backprop())


# -- wrappers ---------------------------------------------------------------------------------------------


@pytest.fixture
def distributed(tmp_path):
    """A process group of one process."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


WRAPPED = {
    "compiled": torch.compile,
    "parallel": nn.DataParallel,
    "both": lambda module: torch.compile(nn.DataParallel(module)),
    "distributed": nn.parallel.DistributedDataParallel,
    "averaged": torch.optim.swa_utils.AveragedModel,
    "inside": lambda module: nn.Sequential(module[0], torch.compile(module[1]), nn.DataParallel(module[2:])),
    "in place": lambda module: module.compile() or module,
}


@pytest.mark.parametrize("kind", WRAPPED)
def test_wrapped_modules_are_read_as_what_is_inside(kind, distributed):
    module = made(mlp)
    plain = deepcopy(module)
    network = mg.Network.from_torch(WRAPPED[kind](module), (1, 8, 8), loss="l2")
    program = mg.compile(network, Backprop(LR), dtype=torch.float64)
    data = list(batches(torch.float64, "l2"))
    state = program.init()
    for x, y in data:
        state, _ = program.step(state, x, y)
    trained = program.to_torch(state)
    assert type(trained) is nn.Sequential
    for one, two in zip(trained.parameters(), by_autograd(plain, data, "l2").parameters(), strict=True):
        torch.testing.assert_close(one, two)


def test_a_wrapped_layer_leads_back_to_the_layer():
    program = mg.compile(mg.Network.from_torch(torch.compile(nn.Linear(4, 3)), 4), ForwardOnly())
    assert type(program.to_torch(program.init())) is nn.Linear


class Absolute(nn.Linear):
    """A layer that computes something else than its class says."""

    def forward(self, x):
        return super().forward(x).abs()


class Scaled(nn.Module):
    """A gain and a bias that no layer holds."""

    def __init__(self):
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.ones(6)), nn.Parameter(torch.ones(1))

    def forward(self, x):
        return self.shift + x * self.scale


def test_parameters_that_are_used_without_a_layer():
    network = check_learning(
        made(lambda: nn.Sequential(nn.Flatten(), Absolute(64, 6), Scaled(), nn.Linear(6, 3))), "l2", torch.float64
    )
    assert list(network.units) == ["x", "flatten_0", "absolute_1", "scaled_2_scale_shift", "linear_3"]


# -- errors -----------------------------------------------------------------------------------------------


class Values(nn.Module):
    """Control flow that depends on values."""

    def forward(self, x):
        return x if x.sum() > 0 else -x


def hooked():
    layer = nn.Linear(4, 4)
    layer.register_forward_hook(lambda module, x, y: y)
    return layer


class Quiet(nn.Module):
    def forward(self, x):
        with torch.no_grad():
            return x.relu()


def stale(self, x):
    h = self.fc(x)
    return h.relu_() + h.flatten(1)


def functions(forward):
    return Net(forward, fc=nn.Linear(4, 4))


def untracked():
    layer = nn.BatchNorm1d(4)
    layer.track_running_stats = False
    return nn.Sequential(layer)


def functions_of_weights():
    net = functions(lambda s, x: s.fc(x))
    net.doubled = 2 * net.fc.weight
    return net


REFUSED = {
    "control flow": (nn.Sequential(nn.Linear(4, 4), Values()), ["1 (Values)", "torch.fx", "control flow"]),
    "own control flow": (Values(), ["the module itself (Values)", "control flow"]),
    "tensor": (functions(lambda s, x: s.fc(x) + torch.ones(4)), ["directly"]),
    "two outputs": (functions(lambda s, x: (s.fc(x), x)), ["tuple", "one tensor"]),
    "no tensor": (functions(lambda s, x: x.size(1)), ["int", "one tensor"]),
    "nothing": (nn.Sequential(nn.Identity()), ["returns its input"]),
    "shape": (nn.Sequential(nn.Linear(5, 3)), ["0 (nn.Linear)", "(batch, 4)", "5 numbers (in_features), not 4"]),
    "channels": (nn.Sequential(nn.Unflatten(1, (1, 2, 2)), nn.Conv2d(3, 2, 1)), ["1 (nn.Conv2d)", "3 channels"]),
    "later shape": (nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(2, 3)), ["2 (nn.Linear)", "(batch, 3)"]),
    "dropout": (nn.Sequential(nn.Linear(4, 4), nn.AlphaDropout(0.1)), ["1 (nn.AlphaDropout)", "p=0.1", ".eval()"]),
    "all dropped": (functions(lambda s, x: F.dropout(s.fc(x), 1.0)), ["dropout()", "p=1"]),
    "batch": (functions(lambda s, x: s.fc(x) / x.size(0)), ["truediv()", "size of the batch"]),
    "batch moved": (functions(lambda s, x: s.fc(x).flatten()), ["flatten()", "batch"]),
    "hard batch": (functions(lambda s, x: s.fc(x).reshape(2, 2, 2)), ["reshape()", "(batch, 4)"]),
    "concat": (functions(lambda s, x: torch.cat([s.fc(x), x])), ["cat()", "batch"]),
    "in place": (functions(stale), ["relu()", "in place", "again"]),
    "hook": (nn.Sequential(hooked()), ["0 (nn.Linear)", "hooks"]),
    "lazy": (nn.Sequential(nn.LazyLinear(3)), ["0 (nn.LazyLinear)", "no weights yet"]),
    "no_grad": (nn.Sequential(nn.Linear(4, 4), Quiet()), ["1 (Quiet)", "no_grad"]),
    "cumulative": (nn.Sequential(nn.BatchNorm1d(4, momentum=None)), ["0 (nn.BatchNorm1d)", "momentum"]),
    "no statistics": (nn.Sequential(nn.BatchNorm1d(4, track_running_stats=False)), ["0 (nn.BatchNorm1d)", "track_run"]),
    "stale statistics": (untracked(), ["0 (nn.BatchNorm1d)", "track_running_stats=True"]),
    "scripted": (torch.jit.script(nn.Linear(4, 3)), ["the module itself", "torch.jit.script"]),
    "scripted inside": (nn.Sequential(torch.jit.script(nn.Linear(4, 3))), ["0 (RecursiveScriptModule)", "jit.script"]),
    "traced": (torch.jit.trace(nn.Linear(4, 3), torch.ones(1, 4)), ["the module itself", "torch.jit.trace"]),
    "meta": (nn.Sequential(nn.Linear(4, 3, device="meta")), ["0 (nn.Linear)", "weight", "meta", "to_empty"]),
    "computed": (functions_of_weights(), ["itself (Net)", "cannot be copied"]),
    "class": (nn.Linear, ["the class Linear", "Linear(...)"]),
    "partial of a function": (partial(F.linear, weight=torch.ones(3, 4)), ["class partial", "forward of an nn.Module"]),
    "lambda": (lambda x: x, ["the function <lambda>", "forward of an nn.Module"]),
    "weights": ({"0.weight": torch.ones(3, 4)}, ["torch.nn.Module", "class dict"]),
    "nothing at all": (None, ["torch.nn.Module", "NoneType"]),
    "no module": (torch.tanh, ["torch.nn.Module", "the function tanh"]),
    "no arguments": (Net2.__base__(), ["name its arguments"]),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case):
    module, words = REFUSED[case]
    with refuses(mg.NetworkError, *words):
        mg.Network.from_torch(module, (4,), loss="l2")


def conv_nets(**options):
    return nn.Sequential(nn.Conv2d(1, 2, **options))


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (conv_nets(kernel_size=2, padding="same"), ["0 (nn.Conv2d)", "even kernel"]),
        (conv_nets(kernel_size=3, padding=1, padding_mode="circular"), ["0 (nn.Conv2d)", "circular"]),
        (nn.Sequential(nn.MaxPool2d(3, ceil_mode=True)), ["0 (nn.MaxPool2d)", "ceil_mode=True"]),
        (nn.Sequential(nn.MaxPool2d(3, dilation=2)), ["0 (nn.MaxPool2d)", "dilation=2"]),
        (nn.Sequential(nn.MaxPool2d(2, return_indices=True)), ["tuple", "one tensor"]),
        (nn.Sequential(nn.AvgPool2d(3, padding=1, count_include_pad=False)), ["count_include_pad"]),
        (Net(lambda s, x: s.bn(s.bn(x)), bn=nn.BatchNorm2d(1)), ["bn (nn.BatchNorm2d)", "more than once"]),
    ],
)
def test_refused_for_images(module, words):
    with refuses(mg.NetworkError, *words):
        mg.Network.from_torch(module, (1, 8, 8), loss="l2")


@pytest.mark.parametrize("shape", [(), (0, 4), (4.0,), "4", (True, 4), None])
def test_bad_input_shapes(shape):
    with refuses(mg.NetworkError, "'input'", "shape of one example", "(1, 8, 8)"):
        mg.Network.from_torch(nn.Sequential(nn.Linear(4, 3)), shape)


def test_to_torch_needs_a_module_and_its_state():
    program = mg.compile(drawn_mlp([4, 3]), Backprop())
    with refuses(mg.NetworkError, "from_torch"):
        program.to_torch(program.init())
    own = mg.compile(mg.Network.from_torch(nn.Sequential(nn.Linear(4, 3)), 4, loss="l2"), Backprop())
    with refuses(mg.StateError, "x->linear_0"):
        own.to_torch(program.init())

    class Nothing(mg.Agent):
        def forward_update(self, s, pre):
            return s

        def forward_message(self, s):
            return 1.0

    module = nn.Sequential(nn.Linear(4, 3, bias=False))
    none = mg.compile(mg.Network.from_torch(module, 4), ForwardOnly(weight=Nothing()))
    with refuses(mg.StateError, "ForwardOnly", "'w'", "0.weight"):
        none.to_torch(none.init())


# -- random modules ---------------------------------------------------------------------------------------


@st.composite
def sequentials(draw):
    """Convolutions, pooling, normalization and linear layers that fit (1, 8, 8)."""
    channels, size, layers = 1, 8, []
    activations = (nn.Tanh, nn.ReLU, nn.Sigmoid, nn.SiLU, nn.Identity)
    for _ in range(draw(st.integers(0, 3))):
        kernel, padding = draw(st.integers(1, 3)), draw(st.integers(0, 1))
        if size + 2 * padding - kernel < 2:
            break
        out = draw(st.integers(1, 3))
        layers.append(nn.Conv2d(channels, out, kernel, padding=padding, bias=draw(st.booleans())))
        channels, size = out, size + 2 * padding - kernel + 1
        if draw(st.booleans()):
            layers.append(draw(st.sampled_from([nn.BatchNorm2d(channels), nn.LayerNorm((channels, size, size))])))
        layers.append(draw(st.sampled_from(activations))())
        if size >= 4 and draw(st.booleans()):
            layers.append(draw(st.sampled_from((nn.MaxPool2d, nn.AvgPool2d)))(2))
            size //= 2
    layers += [nn.Flatten(), nn.Linear(channels * size * size, 4, bias=draw(st.booleans()))]
    layers += [draw(st.sampled_from((nn.BatchNorm1d, nn.LayerNorm)))(4)] * draw(st.booleans())
    return nn.Sequential(*layers, draw(st.sampled_from(activations))(), nn.Linear(4, 3))


@settings(max_examples=10)
@given(sequentials(), st.sampled_from(["cross_entropy", "l2"]))
def test_random_modules_learn_as_by_autograd(module, loss):
    check_learning(made(lambda: module), loss, torch.float64)


# -- noise, groups, and what the page says ------------------------------------------------------------------------


def test_dropout_in_training_mode_is_noise():
    """By its own numbers, in steps and not in predictions, under the mask that the program samples."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Dropout(0.3), nn.Linear(6, 3)).double()
    program = mg.compile(mg.Network.from_torch(module, 4, loss="l2"), Backprop(LR), dtype=torch.float64)
    state = program.init()
    x, y = torch.randn(5, 4, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64)
    torch.testing.assert_close(program.predict(state, x), module.eval()(x))
    (xi,) = program.noise(state, 5).values()
    kept = (xi > torch.distributions.Normal(0.0, 1.0).icdf(torch.tensor(0.3, dtype=torch.float64))).double()
    after, out = program.step(state, x, y)
    prediction = module[3](torch.relu(module[0](x)) * kept / 0.7)
    torch.testing.assert_close(out.prediction, prediction)
    (0.5 * (prediction - y).pow(2).sum(1).mean()).backward()
    learned = program.to_torch(after)
    for old, new in zip(module.parameters(), learned.parameters(), strict=True):
        torch.testing.assert_close(new, old - LR * old.grad)


@pytest.mark.parametrize("affine", [True, False])
def test_group_normalization(affine):
    def build():
        layers = [nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4, affine=affine), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)]
        return nn.Sequential(*layers)

    module = made(build)
    program = mg.compile(mg.Network.from_torch(module, (1, 8, 8), loss="l2"), Backprop(LR), dtype=torch.float64)
    state, data = program.init(), list(batches(torch.float64, "l2"))
    torch.testing.assert_close(program.predict(state, data[0][0]), module(data[0][0]))
    for x, y in data:
        state, _ = program.step(state, x, y)
    for found, wanted in zip(
        program.to_torch(state).parameters(), by_autograd(module, data, "l2").parameters(), strict=True
    ):
        torch.testing.assert_close(found, wanted)


def test_the_page_lists_what_is_supported():
    text = (ROOT / "docs" / "networks.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith(("| torch.nn |", "| functions |"))]
    layers, calls = (set(re.findall(r"`(\w+)`", row)) for row in rows)
    assert layers == {kind.__name__ for kind in (*torch_layers.LAYERS, *torch_written_out.WRITTEN_OUT)}
    assert calls == set(torch_functions.FUNCTIONS) - {"getitem", "getattr"}
