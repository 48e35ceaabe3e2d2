"""Units with noise: compiled and one by one, under every rule; their gradients; what a prediction is."""

import pytest
import torch
from reference import distance, few, randomised
from torch.nn.functional import cross_entropy

import mpgraph as mg
from mpgraph.interpreter import interpreter
from mpgraph.protocols import PEPITA, Backprop

X = torch.randn(3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Y = torch.tensor([0, 1, 1])


def network(*kinds):
    network = mg.Network()
    below = network.input("x", 3)
    for i, kind in enumerate(kinds):
        network.connect(below, network.unit(f"h{i}", 3, kind))
        below = f"h{i}"
    network.unit("y", 2), network.connect(below, "y"), network.loss("y", "cross_entropy")
    return network


@pytest.mark.filterwarnings("ignore::mpgraph.FlatUnitWarning")
@pytest.mark.parametrize("name", mg.list_protocols())
def test_compiled_means_what_the_interpreter_does(name):
    kinds = mg.Noisy("tanh", 0.3), mg.Dropout(0.4, "sigmoid")
    program = mg.compile(network(*kinds), mg.make_protocol(name), dtype=torch.float64)
    repeat = few(program)
    state = randomised(program.init(batch_size=3), torch.Generator().manual_seed(0))
    noise = program.noise(state, 3, repeat=repeat)
    assert name == "vsml" or {"h0.own", "h1.own"} <= set(noise)  # which leaves activations to its synapses
    after, _ = program.step(state, X, Y, repeat=repeat)
    targets = {"y": torch.eye(2, dtype=torch.float64)[Y]}
    meaning, _ = interpreter.step(program, state, {"x": X}, targets, noise, repeat=repeat)
    assert distance(after, meaning) < 1e-10


def test_backpropagation_goes_through_the_noise():
    kinds = (mg.Noisy(mg.Softplus(), 0.3), mg.Dropout(0.4, "tanh"), mg.Noisy("softmax", 0.5))
    program = mg.compile(network(*kinds), Backprop(0.1), dtype=torch.float64)
    state = program.init()
    xi = [program.noise(state, 3)[f"h{i}.own"] for i in range(3)]
    w = {n: k["w"].clone().requires_grad_() for n, k in state.items() if "w" in k}

    def linear(x, name, unit):
        return x @ w[name].T + w[f"{unit}.bias"]

    h = torch.nn.functional.softplus(linear(X, "x->h0", "h0") + 0.3 * xi[0])
    kept = (xi[1] > torch.distributions.Normal(0.0, 1.0).icdf(torch.tensor(0.4, dtype=torch.float64))).double()
    h = torch.tanh(linear(h, "h0->h1", "h1")) * kept / 0.6
    h = torch.softmax(linear(h, "h1->h2", "h2") + 0.5 * xi[2], -1)
    loss = cross_entropy(linear(h, "h2->y", "y"), Y)
    after, out = program.step(state, X, Y)
    torch.testing.assert_close(out.loss, loss)
    for (name, _), gradient in zip(w.items(), torch.autograd.grad(loss, list(w.values())), strict=True):
        torch.testing.assert_close(after[name]["w"], state[name]["w"] - 0.1 * gradient)


def test_predictions_are_those_without_noise():
    noisy = mg.compile(network(mg.Noisy("tanh", 0.3), mg.Dropout(0.4, "relu")), Backprop(), dtype=torch.float64)
    plain = mg.compile(network("tanh", "relu"), Backprop(), dtype=torch.float64)
    state = noisy.init()
    torch.testing.assert_close(noisy.predict(state, X), plain.predict(state, X))
    bernoulli = mg.compile(network(mg.Bernoulli()), Backprop(surrogate="sigmoid"), dtype=torch.float64)
    sigmoid = mg.compile(network("sigmoid"), Backprop(), dtype=torch.float64)
    state = sigmoid.init()
    torch.testing.assert_close(bernoulli.predict(state, X), sigmoid.predict(state, X))


@pytest.mark.parametrize(
    ("kind", "mean", "variance"),
    [
        (mg.Noisy("identity", 0.5), 0.3, 0.25),
        (mg.Dropout(0.2), 0.3, 0.3**2 * 0.2 / 0.8),
        (mg.Bernoulli(), 0.5744425, 0.2444583),  # 1 / (1 + exp(-0.3)), p (1 - p)
    ],
)
def test_samples_have_the_right_moments(kind, mean, variance):
    """Within four standard errors of a mean and of a variance."""
    net = mg.Network()
    net.input("x", 1), net.unit("y", 1, kind, bias=False), net.connect("x", "y", weight=0.3, trained=False)
    count = 40000
    net.loss("y", "l2")
    program = mg.compile(net, Backprop(surrogate="tanh"), dtype=torch.float64)
    state, x = program.init(), torch.ones(count, 1, dtype=torch.float64)
    y = program.step(state, x, 0.0 * x)[1].prediction
    assert abs(float(y.mean()) - mean) < 4 * (variance / count) ** 0.5
    spread = (y - y.mean()).square()
    assert abs(float(spread.mean()) - variance) < 4 * float(spread.std()) / count**0.5 + 1e-4
    again = program.step(state, x, 0.0 * x)[1].prediction
    assert torch.equal(again, y)  # a function of seed and step
    later, _ = program.step(state, x, 0.0 * x)
    assert not torch.equal(program.step(later, x, 0.0 * x)[1].prediction, y)


def test_both_runs_of_a_rule_have_the_same_noise():
    """With F = 0 the second run of PEPITA is the first, masks included: hidden units learn nothing."""
    program = mg.compile(network(mg.Dropout(0.5, "tanh")), PEPITA(), dtype=torch.float64)
    state = program.init()
    state["x->loss"] = {"f": torch.zeros_like(state["x->loss"]["f"])}
    after, _ = program.step(state, X, Y)
    assert torch.equal(after["x->h0"]["w"], state["x->h0"]["w"])
    assert not torch.equal(after["h0->y"]["w"], state["h0->y"]["w"])


class Shot(mg.Stochastic):
    """Noise that grows with the signal; the engine differentiates it."""

    def sample(self, z, xi):
        return z + 0.1 * z.square() * xi


def test_noise_of_ones_own():
    program = mg.compile(network(Shot()), Backprop(0.1), dtype=torch.float64)
    state = program.init()
    xi, w = program.noise(state, 3)["h0.own"], state["x->h0"]["w"].clone().requires_grad_()
    z = X @ w.T
    loss = cross_entropy((z + 0.1 * z.square() * xi) @ state["h0->y"]["w"].T, Y)
    after, _ = program.step(state, X, Y)
    torch.testing.assert_close(after["x->h0"]["w"], w.detach() - 0.1 * torch.autograd.grad(loss, w)[0])


def test_what_cannot_be_noisy_is_refused():
    with pytest.raises(mg.NetworkError, match="dropout: p=1.0 must be"):
        mg.Dropout(1.0)
    with pytest.raises(mg.NetworkError, match=r"noisy: .* cannot have noise on top"):
        mg.Noisy(mg.BatchNorm())
    with pytest.raises(mg.NetworkError, match=r"is not a pure function.*mg\.Noisy.*mg\.Dropout"):
        mg.compile(network(lambda z: z + torch.randn_like(z)), Backprop())
