"""What a network is given stays the caller's, and what it computes is a pure function."""

import copy
import functools
import math
import pickle
import random
import threading

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import mpgraph as mg
from mpgraph.agents import schedules
from mpgraph.architectures import autoencoder, convnet, layered_sparse, mlp, random_graph, recurrent, resnet
from mpgraph.protocols import Backprop

pytestmark = pytest.mark.filterwarnings("ignore::mpgraph.FlatUnitWarning")

# -- tensors ----------------------------------------------------------------------------------------------------


def network(weight=None, bias=True, activation="tanh", connection="dense", values=None, loss="l2"):
    net = mg.Network()
    net.input("x", 3), net.unit("h", 3, activation, bias=bias, values=values), net.unit("y", 2)
    net.connect("x", "h", connection, weight=weight), net.connect("h", "y"), net.loss("y", loss)
    return net


def numbers(dtype=torch.float32):
    return torch.linspace(-1.0, 1.0, 9, dtype=dtype).reshape(3, 3)


class Scaled(mg.Activation):
    """An activation that holds a tensor."""

    def __init__(self, scale):
        self.scale = scale

    def apply(self, z):
        return torch.as_tensor(self.scale, dtype=z.dtype) * z


class Weighted(mg.Loss):
    """A loss that holds a tensor."""

    def __init__(self, weight):
        self.weight = weight

    def apply(self, z, t):
        return (torch.as_tensor(self.weight, dtype=z.dtype) * (z - t) ** 2).sum(1)


class Gate(mg.Operation):
    """An operation that holds a tensor."""

    def __init__(self, gate):
        self.gate = gate

    def shape(self, *operands):
        return operands[0]

    def apply(self, *z):
        return z[0] * torch.as_tensor(self.gate, dtype=z[0].dtype)


def gated(gate):
    net = mg.Network()
    net.input("x", 3), net.operation("g", Gate(gate), "x"), net.unit("y", 2)
    net.connect("g", "y"), net.loss("y", "l2")
    return net


class Kept(mg.UnitAgent):
    gain = mg.slow()

    def forward_update(self, s, pre):
        return super().forward_update(s, pre * s.gain)


GIVEN = {
    "weight": (numbers, lambda t: network(weight=t)),
    "double weight": (lambda: numbers(torch.float64), lambda t: network(weight=t)),
    "parameter": (lambda: torch.nn.Parameter(numbers()), lambda t: network(weight=t)),
    "array": (lambda: numbers().numpy(), lambda t: network(weight=t)),
    "double array": (lambda: numbers(torch.float64).numpy(), lambda t: network(weight=t)),
    "view": (lambda: numbers().t(), lambda t: network(weight=t)),
    "scalar": (lambda: torch.tensor(0.5), lambda t: network(weight=t)),
    "bias": (lambda: numbers()[0], lambda t: network(bias=t)),
    "array of biases": (lambda: numbers()[0].numpy(), lambda t: network(bias=t)),
    "values": (lambda: numbers()[0], lambda t: network(values={"gain": t})),
    "edges": (lambda: torch.tensor([[0, 1, 2], [2, 1, 0]]), lambda t: network(connection=mg.Sparse(t))),
    "int32 edges": (
        lambda: torch.tensor([[0, 1, 2], [2, 1, 0]], dtype=torch.int32),
        lambda t: network(connection=mg.Sparse(t)),
    ),
    "array of edges": (lambda: np.array([[0, 1, 2], [2, 1, 0]]), lambda t: network(connection=mg.Sparse(t))),
    "activation": (lambda: numbers()[0], lambda t: network(activation=Scaled(t))),
    "array of an activation": (lambda: numbers()[0].numpy(), lambda t: network(activation=Scaled(t))),
    "loss": (lambda: numbers()[0, :2], lambda t: network(loss=Weighted(t))),
    "operation": (lambda: numbers()[0], gated),
}


def bits(program):
    x, t = torch.linspace(0, 1, 12).reshape(4, 3), torch.linspace(1, 0, 8).reshape(4, 2)
    state = program.init(seed=2)
    after, out = program.step(state, x, t)
    predicted = program.predict(state, x)
    kept = {f"{n}.{c}": v.tolist() for n, cs in {**state, "|": {}}.items() for c, v in cs.items()}
    return (
        kept,
        {f"{n}.{c}": v.tolist() for n, cs in after.items() for c, v in cs.items()},
        predicted.tolist(),
        out.loss,
    )


@pytest.mark.parametrize("name", GIVEN)
def test_changing_what_was_given_changes_nothing(name):
    make, build = GIVEN[name]
    given = make()
    net = build(given)
    rule = {"unit": Kept()} if name == "values" else {}
    program = mg.compile(net, Backprop(**rule))
    before = bits(program)
    if isinstance(given, torch.Tensor):
        given.data.zero_()
    else:
        given[...] = 0
    assert bits(program) == before
    assert bits(mg.compile(net, Backprop(**rule))) == before  # nor the network
    assert bits(mg.compile(build(given), Backprop(**rule))) != before  # while what is given does count


def test_a_connection_an_activation_or_a_loss_may_be_used_again():
    """Changing one after it was given changes no network."""
    activation, edges = Scaled(numbers()[0]), mg.Sparse([[0, 1, 2], [2, 1, 0]])
    net = network(activation=activation, connection=edges)
    before = bits(mg.compile(net, Backprop()))
    activation.scale.zero_(), edges.edge_index.zero_()
    assert bits(mg.compile(net, Backprop())) == before


def test_a_tensor_to_be_learned_stays_the_callers():
    scale = torch.nn.Parameter(torch.tensor(0.5))
    program = mg.compile(network(activation=Scaled(scale)), Backprop())
    program.predict(program.init(), torch.ones(1, 3)).sum().backward()
    assert scale.grad.abs() > 0


class Nested(mg.Activation):
    """An activation that holds what it computes with in containers."""

    def __init__(self, thing, of):
        self.things, self._of = {"a": [thing]}, of

    def apply(self, z):
        return self._of(self.things["a"][0], z)


class Scale(torch.nn.Module):
    """A module with a parameter, a buffer or both."""

    def __init__(self, factor, learned):
        super().__init__()
        self.factor = torch.nn.Parameter(torch.tensor(factor), requires_grad=learned)
        self.register_buffer("shift", torch.tensor(0.25))

    def forward(self, z):
        return self.factor * z + self.shift


CONTAINERS = {
    "tensor in containers": lambda: (t := torch.tensor(0.5), Nested(t, lambda a, z: a * z)),
    "array in containers": lambda: (t := np.array(0.5), Nested(t, lambda a, z: float(a) * z)),
    "parameter that is fixed": lambda: ((m := Scale(0.5, False)).factor, m),
    "buffer": lambda: ((m := Scale(0.5, True)).shift, m),
    "module in a module": lambda: ((m := Scale(0.5, False)).factor, torch.nn.Sequential(torch.nn.Tanh(), m)),
    "module in containers": lambda: ((m := Scale(0.5, False)).factor, Nested(m, lambda a, z: a(z))),
    "method": lambda: ((m := Scale(0.5, False)).factor, m.forward),
    "partial": lambda: (t := torch.tensor(0.5), functools.partial(torch.mul, t)),
}


@pytest.mark.parametrize("name", CONTAINERS)
def test_modules_and_containers_are_copied(name):
    given, activation = CONTAINERS[name]()
    program = mg.compile(network(activation=activation), Backprop())
    before = bits(program)
    given[...] = 7.0
    assert bits(program) == before


@pytest.mark.parametrize("wrap", [lambda m: m, lambda m: m.forward, lambda m: Nested(m, lambda a, z: a(z))])
def test_parameters_of_a_module_stay_the_callers_while_they_are_learned(wrap):
    """As other tensors that require a gradient: what the module's own optimizer does to them counts."""
    module = Scale(0.5, True)
    program = mg.compile(network(activation=wrap(module), bias=False), Backprop())
    state, x = program.init(), torch.ones(1, 3)
    program.predict(state, x).sum().backward()
    h = state["x->h"]["w"] @ x[0]
    assert module.factor.grad == pytest.approx(float((state["h->y"]["w"] @ h).sum()))
    module.factor.data.fill_(2.0)
    expected = state["h->y"]["w"] @ (2.0 * h + 0.25) + state["y.bias"]["w"]
    torch.testing.assert_close(program.predict(state, x)[0], expected)


def test_what_cannot_be_copied_stays_as_it_is():
    activation = Scaled(torch.tensor(0.5))
    activation.lock = threading.Lock()
    assert mg.compile(network(activation=activation), Backprop()).graph.nodes["h"].function.lock is activation.lock


def test_numbers_of_python_keep_their_precision():
    state = mg.compile(network(weight=0.1, bias=0.2), Backprop(), dtype=torch.float64).init()
    assert set(state["x->h"]["w"].flatten().tolist()) == {0.1}
    assert set(state["h.bias"]["w"].tolist()) == {0.2}


@pytest.mark.parametrize(
    ("weight", "words"),
    [
        (True, "bool"),
        ("a", "must be a tensor, an array or a number"),
        ([[1.0], [1.0, 2.0]], "must be a tensor"),
        (torch.zeros(3, 3, dtype=torch.complex64), "real numbers, got torch.complex64"),
        (torch.zeros(3, 3, device="meta"), "on meta"),
        (object(), "must be a tensor"),
        (torch.zeros(2, 3), r"weight has shape \(2, 3\)"),
        (math.nan, "must hold finite numbers, got nan"),
        (-np.inf, "must hold finite numbers, got -inf"),
        (torch.eye(3).log(), r"must hold finite numbers, got -inf at \[0, 1\]"),
        (torch.tensor(torch.inf, dtype=torch.bfloat16), "must hold finite numbers, got inf"),
        (np.array([[0, 0, 0], [0, np.nan, 0], [0, 0, 0]]), r"must hold finite numbers, got nan at \[1, 1\]"),
    ],
)
def test_what_are_no_weights(weight, words):
    with pytest.raises(mg.NetworkError, match=f"'x->h'.*{words}"):
        network(weight=weight)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"bias": np.array([math.nan, 0, 0])}, r"unit 'h': bias must hold finite numbers, got nan at \[0\]"),
        ({"bias": torch.zeros(4)}, r"unit 'h': bias has shape \(4,\), the unit needs \(3,\)"),
        ({"values": {"var": math.nan}}, r"unit 'h': values\['var'\] must hold finite numbers, got nan"),
        ({"values": {"var": -torch.ones(3)}}, r"unit 'h': values\['var'\]: must not be below zero, got -1"),
    ],
)
def test_what_are_no_values_of_a_unit(options, words):
    with pytest.raises(mg.NetworkError, match=words):
        network(activation=mg.BatchNorm(), **options)


@pytest.mark.parametrize(
    ("eps", "mean", "var", "words"),
    [
        (0.1, None, None, "frozen needs the statistics of each channel, and mean is missing"),
        (0.1, [0.0], None, "var is missing"),
        (0.1, 0.0, 1.0, r"got \(\) and \(\); give one number for each channel"),
        (0.1, [0.0], [-1.0], "var must not be below zero, got -1"),
        (0.0, [0.0], [0.0], "var must be above zero where eps is zero"),
        (0.1, [math.inf], [1.0], "mean must hold finite numbers"),
        (0.1, "a", [1.0], "mean must be a tensor"),
    ],
)
def test_what_are_no_statistics(eps, mean, var, words):
    with pytest.raises(mg.NetworkError, match=words):
        mg.BatchNorm(eps=eps).frozen(mean, var)


def test_a_variance_of_zero_is_one_where_eps_is_above():
    """As in torch: a channel that never varied."""
    z = torch.tensor([[0.5]])
    expected = F.batch_norm(z, torch.zeros(1), torch.zeros(1), eps=0.25)
    torch.testing.assert_close(mg.BatchNorm(eps=0.25).frozen([0.0], [0.0]).apply(z), expected)


@pytest.mark.parametrize(
    ("options", "node", "channel"),
    [
        ({"weight": 1e300}, "x->h", "w"),
        ({"weight": -1e39 * np.ones((3, 3))}, "x->h", "w"),
        ({"bias": [0.0, 1e40, 0.0]}, "h.bias", "w"),
        ({"activation": mg.BatchNorm(), "values": {"mean": 1e300}}, "h", "mean"),
    ],
)
def test_numbers_too_large_for_the_dtype(options, node, channel):
    net = network(**options)
    with pytest.raises(mg.StateError, match=rf"node '{node}': given {channel} .*too large .*float32.*dtype"):
        mg.compile(net, Backprop()).init()
    state = mg.compile(net, Backprop(), dtype=torch.float64).init()
    assert float(state[node][channel].abs().max()) > 1e38


@pytest.mark.parametrize(
    ("activation", "channel", "words"),
    [
        (mg.BatchNorm(), "men", "allowed are mean, var; did you mean 'mean'"),
        ("tanh", "foo", "allowed are none"),
        ("tanh", "mean", "allowed are none"),
    ],
)
def test_values_of_channels_that_nothing_keeps(activation, channel, words):
    net = network(activation=activation, values={channel: 1.0})
    with pytest.raises(mg.ProtocolError, match=f"unit 'h': values: unknown channel '{channel}': {words}"):
        mg.compile(net, Backprop())


def test_statistics_are_allowed_under_a_rule_that_ignores_them():
    net = network(activation=mg.BatchNorm(), values={"mean": 0.5, "var": 2.0})
    assert mg.compile(net, mg.make_protocol("vsml")).init(batch_size=2)


@pytest.mark.parametrize(
    ("add", "words"),
    [
        (lambda n: n.unit("k", 3, "relu6"), "unit 'k': unknown activation 'relu6'"),
        (lambda n: n.unit("k", 3, mg.BatchNorm), "unit 'k': the activation is the class BatchNorm"),
        (lambda n: n.loss("h", "l3"), "loss 'h.loss' on 'h': unknown loss 'l3'"),
        (lambda n: n.connect("x", "h", "convv"), r"connect\('x', 'h'\): unknown connection 'convv'"),
        (lambda n: n.connect("x", "h", mg.Conv2d), r"connect\('x', 'h'\): "),
        (lambda n: n.connect("x", "h", delay=True), r"connect\('x', 'h'\): delay=True"),
        (lambda n: n.connect("y", "loss"), r"connect\('y', 'loss'\): a loss receives.*pathway='feedback'"),
    ],
)
def test_errors_begin_with_what_was_being_added(add, words):
    with pytest.raises(mg.NetworkError, match=f"^{words}"):
        add(network())


# -- functions --------------------------------------------------------------------------------------------------


class Counter:
    """A function with a memory."""

    def __init__(self):
        self.calls = 0

    def __call__(self, z):
        self.calls += 1
        return z * self.calls


class RandomDerivative(mg.Activation):
    def apply(self, z):
        return torch.tanh(z)

    def vjp(self, e, z, y):
        return e * torch.rand_like(e)


class RandomGradient(mg.Loss):
    def apply(self, z, t):
        return ((z - t) ** 2).sum(1)

    def gradient(self, z, t):
        return (z - t) * torch.rand_like(z)


class RandomOperation(Gate):
    def apply(self, *z):
        return z[0] + torch.randn_like(z[0])


class RandomLoss(mg.Loss):
    def apply(self, z, t):
        return ((z - t) ** 2).sum(1) * torch.rand(())


own = torch.Generator().manual_seed(0)
IMPURE = {
    "noise": ("h", lambda: network(activation=lambda z: z + torch.randn_like(z))),
    "dropout": ("h", lambda: network(activation=lambda z: F.dropout(z, 0.5))),
    "rare dropout": ("h", lambda: network(activation=lambda z: F.dropout(z, 1e-6))),
    "module": ("h", lambda: network(activation=torch.nn.Sequential(torch.nn.ReLU(), torch.nn.Dropout(0.1)))),
    "rrelu": ("h", lambda: network(activation=torch.nn.RReLU())),
    "own generator": ("h", lambda: network(activation=lambda z: z + torch.randn(z.shape, generator=own))),
    "numpy": ("h", lambda: network(activation=lambda z: z * np.random.rand())),  # noqa: NPY002
    "python": ("h", lambda: network(activation=lambda z: z * random.random())),
    "hidden": ("h", lambda: network(activation=lambda z: z + 0 * torch.rand(()))),
    "counter": ("h", lambda: network(activation=Counter())),
    "derivative": ("h.*vjp", lambda: network(activation=RandomDerivative())),
    "operation": ("g", lambda: gated_by(RandomOperation(torch.ones(3)))),
    "loss": ("loss", lambda: network(loss=RandomLoss())),
    "gradient": ("loss.*gradient", lambda: network(loss=RandomGradient())),
}


def gated_by(operation):
    net = mg.Network()
    net.input("x", 3), net.operation("g", operation, "x"), net.unit("y", 2)
    net.connect("g", "y"), net.loss("y", "l2")
    return net


def generators():
    return torch.get_rng_state().tolist(), str(np.random.get_state()), random.getstate()  # noqa: NPY002


@pytest.mark.parametrize("name", IMPURE)
def test_a_function_that_is_not_pure_is_refused(name):
    unit, make = IMPURE[name]
    before = generators()
    with pytest.raises(mg.NetworkError, match=f"'{unit}.*is not a pure function.*s.normal") as caught:
        mg.compile(make(), Backprop())
    assert "eval()" in str(caught.value)
    assert generators() == before


PURE = {
    "not a number": lambda z: torch.log(z),
    "module in eval mode": torch.nn.Sequential(torch.nn.Tanh(), torch.nn.Dropout(0.5)).eval(),
    "seeded": lambda z: z + torch.randn(z.shape, generator=torch.Generator().manual_seed(1)),
    "no derivative": lambda z: torch.from_numpy(np.tanh(z.numpy())),
}


@pytest.mark.parametrize("name", PURE)
def test_a_pure_function_is_not_refused(name):
    before = generators()
    mg.compile(network(activation=PURE[name]), Backprop())
    assert generators() == before


@pytest.mark.parametrize("name", mg.list_protocols())
def test_compiling_leaves_the_global_generators_alone(name):
    before = generators()
    mg.compile(mlp([3, 4, 2], "sigmoid"), mg.make_protocol(name)).init(batch_size=2)
    assert generators() == before


# -- numbers ----------------------------------------------------------------------------------------------------

THREE, TWO = np.int64(3), np.int32(2)


@pytest.mark.parametrize(
    ("one", "two"),
    [
        (lambda: mlp([THREE, np.int64(4), TWO]), lambda: mlp([3, 4, 2])),
        (lambda: mlp(np.array([3, 4, 2])), lambda: mlp([3, 4, 2])),
        (lambda: mlp((torch.Size([3]), 4, 2)), lambda: mlp([(3,), 4, 2])),
        (lambda: autoencoder(np.array([6, 4, 2])), lambda: autoencoder([6, 4, 2])),
        (lambda: recurrent(np.array([3, 4, 2]), TWO), lambda: recurrent([3, 4, 2], 2)),
        (lambda: layered_sparse(np.array([3, 4, 2]), 2), lambda: layered_sparse([3, 4, 2], 2)),
        (lambda: layered_sparse([THREE, np.int64(4), TWO], TWO), lambda: layered_sparse([3, 4, 2], 2)),
        (
            lambda: convnet((np.int64(1), 12, 12), [TWO], [THREE], THREE, kernel=THREE),
            lambda: convnet((1, 12, 12), [2], [3], 3, kernel=3),
        ),
        (lambda: resnet(np.int64(8), (3, 8, 8), THREE, width=TWO), lambda: resnet(8, (3, 8, 8), 3, width=2)),
        (
            lambda: random_graph(np.int64(12), inputs=THREE, outputs=TWO, degree=np.int64(4), seed=np.int64(1)),
            lambda: random_graph(12, inputs=3, outputs=2, degree=4, seed=1),
        ),
        (lambda: mg.Network(ticks=TWO), lambda: mg.Network(ticks=2)),
    ],
)
def test_numbers_of_numpy_are_numbers(one, two):
    assert repr(one()) == repr(two())


def test_numbers_of_numpy_in_a_network():
    def build(n, m, of):
        net = mg.Network(ticks=of(2))
        net.input("x", (n, m, m)), net.unit("c", (of(2), m, m), mg.Softplus(of(2)), bias_shared=(of(1), of(2)))
        net.unit("p", (of(2), of(2), of(2)), mg.Quantizer(of(4)))
        net.connect("x", "c", mg.Conv2d(of(3), (of(1), of(1)), of(1), of(1), of(1)), delay=of(1))
        net.connect(net.operation("m", mg.MaxPool(of(2), of(2), of(0)), "c"), "p", mg.OneToOne(shared=(of(1), of(2))))
        net.operation("r", mg.Reshape(of(4), of(2)), "p")
        return net

    assert repr(build(THREE, np.int64(4), np.int64)) == repr(build(3, 4, int))
    assert all(type(n) is int for unit in build(THREE, np.int64(4), np.int64).units.values() for n in unit.shape)


REFUSED = {
    "mlp": (lambda: mlp(4), r"mlp: sizes=4 must be a list of at least 2 sizes, such as \[3, 2\]"),
    "mlp tensor": (lambda: mlp(torch.tensor([4, 3])), r"mlp: sizes=tensor.*write sizes.tolist\(\)"),
    "mlp word": (lambda: mlp("34"), "mlp: sizes='34' must be a list"),
    "mlp size": (lambda: mlp([3, 0]), r"mlp: sizes\[1\]=0 must be a positive integer"),
    "mlp float": (lambda: mlp([3, 2.5, 2]), r"sizes\[1\]=2.5"),
    "autoencoder": (lambda: autoencoder(4), "autoencoder: sizes=4"),
    "recurrent": (lambda: recurrent(4, 3), "recurrent: sizes=4"),
    "ticks": (lambda: recurrent([3, 4, 2], 1), "recurrent: ticks=1 must be an integer of at least 2"),
    "sparse": (lambda: layered_sparse(4), "layered_sparse: sizes=4"),
    "fan-in": (lambda: layered_sparse([3, 2], "2"), "layered_sparse: fan_in='2'"),
    "convnet": (lambda: convnet(28), "convnet: image=28 must be .*height"),
    "channels": (lambda: convnet(channels=6), "convnet: channels=6"),
    "pool": (lambda: convnet(pool="mean"), "convnet: pool='mean' must be one of"),
    "resnet": (lambda: resnet("20"), "resnet: depth='20' must be an integer"),
    "graph": (lambda: random_graph(2.5), "random_graph: neurons=2.5"),
    "tensor": (lambda: mlp([torch.tensor(3), 2]), r"sizes\[0\]=tensor\(3\) must be a positive integer.*item\(\)"),
    "flag as size": (lambda: mg.Network().input("x", True), "input 'x': size=True must be a positive integer"),
    "flag as ticks": (lambda: mg.Network(ticks=True), "ticks=True"),
    "kernel": (lambda: mg.Conv2d(True), "kernel=True must be one or two integers of at least 1"),
    "kernel of three": (lambda: mg.Conv2d((3, 3, 3)), "kernel="),
    "groups": (lambda: mg.Conv2d(3, groups=0), "groups=0 must be an integer of at least 1"),
    "shared": (lambda: mg.OneToOne(shared=1), r"shared=1 must be a tuple of different dimensions"),
    "shared twice": (lambda: mg.OneToOne(shared=(1, 1)), "different dimensions"),
    "pool size": (lambda: mg.MaxPool(0), "size=0"),
    "pool padding": (lambda: mg.AvgPool(2, padding=2), "padding=2 must be at most half the size"),
    "reshape": (lambda: mg.Reshape(-1), r"reshape: shape=\(-1,\)"),
    "beta": (lambda: mg.Softplus("a"), "beta='a' must be a finite number above 0"),
    "levels": (lambda: mg.Quantizer(1), "levels=1"),
    "order": (lambda: mg.Quantizer(3, 1.0, 1.0), "high=1.0 must be a finite number above 1"),
    "eps": (lambda: mg.LayerNorm(-1), "eps=-1"),
    "momentum": (lambda: mg.BatchNorm(momentum=2), "momentum=2 must be a finite number from 0 to 1"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_numbers_that_do_not_fit_are_refused(name):
    make, words = REFUSED[name]
    with pytest.raises(mg.NetworkError, match=words) as caught:
        make()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("number", [np.float32(0.25), np.float64(0.25), 0.25])
def test_rates_of_numpy(number):
    for optimizer in (mg.SGD(number, momentum=number), mg.Adam(number, betas=(number, number))):
        assert type(optimizer.lr) is float
        assert optimizer.lr == 0.25
    assert Backprop(lr=number).name == "Backprop(lr=0.25)"


@pytest.mark.parametrize("of", [np.float32, np.float64, np.float16])
def test_schedules_of_numpy(of):
    linear = schedules.Linear(of(0.5), of(0.25), np.int64(4), np.int32(1))
    assert linear == schedules.Linear(0.5, 0.25, 4, 1)
    cycle = schedules.Cycle(of(0.5), of(1.0), np.int64(4))
    assert all(type(number) in (float, int) for one in (linear, cycle) for number in vars(one).values())


def test_a_rate_that_is_a_tensor_is_copied():
    rate = torch.tensor(0.25)
    program = mg.compile(network(), Backprop(lr=rate))
    before = bits(program)
    rate.zero_()
    assert bits(program) == before
    learned = torch.nn.Parameter(torch.tensor(0.25))
    assert Backprop(lr=learned).optimizer.lr is learned


# -- names ------------------------------------------------------------------------------------------------------


NAMES = {
    "loss as source": (lambda n: n.connect("loss", "h"), r"'loss' is a loss, which sends no forward messages.*'y'"),
    "operation on a loss": (lambda n: n.operation("f", "flatten", "loss"), "operation 'f': 'loss' is a loss"),
    "loss on a loss": (lambda n: n.loss("loss", "l2"), "loss on 'loss': 'loss' is a loss"),
    "loss on an input": (lambda n: n.loss("x", "l2"), "loss on 'x': 'x' is an input"),
    "connection as unit": (lambda n: n.connect("x->h", "y"), "'x->h' is a connection; give the name of a unit"),
    "list": (lambda n: n.connect(["x"], "h"), r"unknown unit \['x'\]"),
    "number": (lambda n: n.connect(3, "h"), "unknown unit 3"),
    "none": (lambda n: n.connect("x", None), "unknown unit None"),
    "operand list": (lambda n: n.operation("f", "product", ["x", "h"]), "operation 'f': unknown unit"),
    "operation class": (lambda n: n.operation("f", mg.MaxPool, "x"), r"pass an instance, MaxPool\(\.\.\.\)"),
    "connection class": (lambda n: n.connect("x", "h", mg.Conv2d), r"pass an instance, Conv2d\(\.\.\.\)"),
    "connection number": (lambda n: n.connect("x", "h", 3), "a connection is a name or an mg.Connection, got 3"),
    "loss class": (lambda n: n.loss("h", mg.Loss), "pass an instance"),
    "loss number": (lambda n: n.loss("h", 3), "a loss is a name or an mg.Loss, got 3"),
    "trained": (lambda n: n.connect("x", "h", trained="no"), "trained='no' must be True or False"),
    "delay": (lambda n: n.connect("x", "h", delay=0.5), "delay=0.5 must be an integer of at least 0"),
    "tied": (lambda n: n.connect("x", "h", tied=3), "unknown connection 3"),
    "pathway": (lambda n: n.connect("x", "h", pathway=3), "pathway=3 must be a name"),
    "values": (lambda n: n.unit("z", 3, values=[1.0]), "unit 'z': values=.* must be a dictionary"),
    "shared": (lambda n: n.unit("z", 3, bias_shared=(1,)), "bias_shared=.*dimensions below 1"),
    "bias": (lambda n: n.unit("z", 3, bias="yes"), "unit 'z': bias must be a tensor"),
    "pattern": (lambda n: n.frozen(3), "a pattern is a string such as 'x->\\*', got 3"),
    "no pattern": (lambda n: n.frozen(), "at least one pattern"),
    "empty name": (lambda n: n.unit("", 3), "'' cannot name a node"),
    "space": (lambda n: n.unit(" z", 3), "' z' cannot name a node"),
    "line": (lambda n: n.unit("z\n", 3), "cannot name a node"),
    "numbered constant": (lambda n: n.unit("one#1", 3), "'one#1' cannot name a node"),
    "name of a number": (lambda n: n.unit(3, 3), "3 cannot name a node"),
    "name of a loss": (lambda n: n.loss("h", "l2", name=""), "'' cannot name a node"),
}


@pytest.mark.parametrize("name", NAMES)
def test_names_and_types_that_do_not_fit(name):
    act, words = NAMES[name]
    net = network()
    before = repr(net)
    with pytest.raises(mg.NetworkError, match=words):
        act(net)
    assert repr(net) == before


def test_freezing_a_tied_connection_names_its_owner():
    net = autoencoder([4, 2], tied=True)
    tied = next(name for name, wire in net.wires.items() if wire.tied)
    with pytest.raises(mg.NetworkError, match=f"uses the weights of '{net.wires[tied].tied}', so freeze that"):
        net.frozen(tied)


@pytest.mark.parametrize("name", ["hidden layer", "größe", "層", "a/b", "h.1", "x y->".rstrip("->"), "#", "h'", '"'])
def test_any_printable_name_works(name, tmp_path):
    net = mg.Network()
    net.input("x", 3), net.unit(name, 4, "tanh"), net.unit("y", 2)
    net.connect("x", name), net.connect(name, "y"), net.loss("y", "l2")
    plain = mlp([3, 4, 2], loss="l2")
    one, two = mg.compile(net, Backprop()), mg.compile(plain, Backprop())
    state, like = one.init(), two.init()
    renamed = {n.replace("h1", name): c for n, c in like.items()}
    assert state.keys() == renamed.keys()
    x, t = torch.ones(2, 3), torch.zeros(2, 2)
    assert torch.equal(one.step(renamed, x, t)[1].loss, two.step(like, x, t)[1].loss)
    one.save(state, tmp_path / "state")
    assert all(torch.equal(t, state[n][c]) for n, cs in one.load(tmp_path / "state").items() for c, t in cs.items())


def test_names_of_connections_never_collide():
    net = mg.Network()
    net.input("x", 3), net.unit("h", 3), net.unit("h#1", 3)
    made = [net.connect("x", "h#1"), net.connect("x", "h"), net.connect("x", "h"), net.connect("x", "h#1")]
    assert len({*made, *net.wires}) == len(net.wires) == 4


@pytest.mark.parametrize("back", ["h", "y"])
def test_a_loss_cannot_be_a_source_of_a_cycle(back):
    """What somebody means who writes y -> loss -> y."""
    net = network()
    with pytest.raises(mg.NetworkError, match="sends no forward messages; use the unit that it is put on, 'y'"):
        net.connect("loss", back)


# -- orders -----------------------------------------------------------------------------------------------------


class FromAbove(mg.UnitAgent):
    """A unit that receives messages from below and above in one pass."""

    def forward_update(self, s, pre, post):
        return super().forward_update(s, pre + post)


class Sends(mg.LossAgent):
    def forward_message(self, s):
        return s.e


@pytest.mark.parametrize(
    ("agents", "words"),
    [
        ({"output": FromAbove(), "loss": Sends()}, "y -> loss -> y: .*'loss' waits for 'pre' messages of 'y'"),
        ({"unit": FromAbove(), "output": mg.UnitAgent()}, "'h' waits for 'post' messages of 'h->y'"),
    ],
)
def test_agents_that_wait_for_each_other_in_one_pass(agents, words):
    """No connection is to blame, so none is to be removed: the rule's schedule is."""
    with pytest.raises(mg.ProtocolError, match=f"pass 'forward'.*{words}.*in a later pass") as caught:
        mg.compile(network(), Backprop(**agents))
    assert "Remove" not in str(caught.value)


@pytest.mark.parametrize("make", [lambda t: t, lambda t: t.numpy(), torch.nn.Parameter])
def test_a_learnable_number_is_a_copy(make):
    given = torch.tensor([0.5, 0.25])
    parameter = mg.learnable(make(given))
    with torch.no_grad():
        given.mul_(2.0)
    assert parameter.tolist() == [0.5, 0.25]


def test_regions_can_be_copied_and_pickled():
    rule = mg.Regions({"h": Backprop(0.5), "*": Backprop(0.25)})
    for other in (copy.deepcopy(rule), pickle.loads(pickle.dumps(rule))):
        assert repr(other) == repr(rule)
