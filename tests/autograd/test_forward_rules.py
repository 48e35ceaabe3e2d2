"""Rules without a backward pass, beside their formulas in plain torch."""

import pytest
import torch
from torch.nn.functional import cross_entropy, one_hot, softplus

import mpgraph as mg
from mpgraph.architectures import mlp
from mpgraph.data import load
from mpgraph.experiments import train
from mpgraph.protocols import (
    PEPITA,
    DifferenceTargetPropagation,
    DirectRandomTargetProjection,
    EquilibriumPropagation,
    ForwardForward,
    LocalLosses,
    PredictiveCoding,
    ThreeFactor,
)

LAYERS = (("x->h1", "h1"), ("h1->h2", "h2"), ("h2->y", "y"))


@pytest.fixture
def problem():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(7, 5, generator=generator, dtype=torch.float64), torch.randint(0, 3, (7,), generator=generator)


def stepped(rule, problem):
    program = mg.compile(mlp([5, 6, 4, 3], "tanh"), rule, dtype=torch.float64)
    state = program.init()
    after, out = program.step(state, *problem)
    change = {n: after[n]["w"] - state[n]["w"] for n in after if "w" in after[n]}
    return state, change, out


def forward(state, x):
    """Activities of all layers, the output's logits last."""
    values = [x]
    for connection, unit in LAYERS:
        z = values[-1] @ state[connection]["w"].T + state[f"{unit}.bias"]["w"]
        values.append(z if unit == "y" else torch.tanh(z))
    return values


def same(change, signals, below):
    """Whether weights moved by ``-0.3 <signal below'>``, and biases by the signal."""
    for (connection, unit), e, x in zip(LAYERS, signals, below, strict=True):
        torch.testing.assert_close(change[connection], -0.3 * e.T @ x / len(x))
        torch.testing.assert_close(change[f"{unit}.bias"], -0.3 * e.mean(0))


def test_direct_random_target_projection(problem):
    state, change, _ = stepped(DirectRandomTargetProjection(0.3), problem)
    x, h1, h2, z = forward(state, problem[0])
    t = one_hot(problem[1], 3).double()
    b1, b2 = (next(k["b"] for n, k in state.items() if n.startswith(f"{unit}->loss")) for unit in ("h1", "h2"))
    hidden = [t @ b * (1 - h**2) for b, h in ((b1, h1), (b2, h2))]
    same(change, [*hidden, torch.softmax(z, -1) - t], [x, h1, h2])


def test_local_losses_are_gradients_of_each_layer_by_itself(problem):
    state, change, _ = stepped(LocalLosses(0.3), problem)
    w = {n: k["w"].clone().requires_grad_() for n, k in state.items() if n != "program"}
    below, total = problem[0], 0.0
    for connection, unit in LAYERS:
        z = below.detach() @ w[connection].T + w[f"{unit}.bias"]
        below = z if unit == "y" else torch.tanh(z)
        guess = z if unit == "y" else below @ next(t for n, t in w.items() if n.startswith(f"{unit}->loss")).T
        total = total + cross_entropy(guess, problem[1])
    for (name, _), gradient in zip(w.items(), torch.autograd.grad(total, list(w.values())), strict=True):
        torch.testing.assert_close(change[name], -0.3 * gradient)


def test_pepita(problem):
    state, change, out = stepped(PEPITA(0.3, scale=0.7), problem)
    first = forward(state, problem[0])
    e = torch.softmax(first[-1], -1) - one_hot(problem[1], 3)
    second = forward(state, problem[0] + e @ state["x->loss"]["f"])
    same(change, [first[1] - second[1], first[2] - second[2], e], second[:3])
    torch.testing.assert_close(out.prediction, first[-1])


def direction(y):
    return y / torch.sqrt(y.pow(2).sum(1, keepdim=True) + 1e-8)


def wrong_labels(program, state, y):
    """Those that the rule samples: the largest of normal numbers but for that of the true label."""
    (xi,) = program.noise(state, len(y)).values()
    return xi.masked_fill(one_hot(y, 3).bool(), -torch.inf).argmax(1)


def test_forward_forward_is_the_gradient_of_each_layer_by_itself(problem):
    program = mg.compile(mlp([5, 6, 4, 3], "tanh"), ForwardForward(0.3, threshold=0.4), dtype=torch.float64)
    state = program.init()
    after, out = program.step(state, *problem)
    w = {n: k["w"].clone().requires_grad_() for n, k in state.items() if "w" in k}
    wrong = wrong_labels(program, state, problem[1])

    def goodness(labels):
        x, found = 4.0 * direction(problem[0]), {}
        for connection, unit in LAYERS:
            z = x.detach() @ w[connection].T + w[f"{unit}.bias"]
            z = z + one_hot(labels, 3).double() @ w["h1->loss"] if unit == "h1" else z
            y = z if unit == "y" else torch.tanh(z)
            found[unit], x = y.pow(2).sum(1), direction(y)
        return found

    sizes, total = {"h1": 6, "h2": 4, "y": 3}, 0.0
    good, bad = goodness(problem[1]), goodness(wrong)
    for unit, size in sizes.items():
        total = total + softplus(0.4 * size - good[unit]) + softplus(bad[unit] - 0.4 * size)
    assert set(w) == {"x->h1", "h1->h2", "h2->y", "h1.bias", "h2.bias", "y.bias", "h1->loss"}
    for (name, _), gradient in zip(w.items(), torch.autograd.grad(total.mean(), list(w.values())), strict=True):
        torch.testing.assert_close(after[name]["w"] - state[name]["w"], -0.3 * gradient)
    scores = torch.stack([sum(goodness(torch.full((7,), c)).values()) for c in range(3)], 1).detach()
    torch.testing.assert_close(out.prediction, scores)
    torch.testing.assert_close(program.predict(state, problem[0]), out.prediction)
    torch.testing.assert_close(out.loss, cross_entropy(scores, problem[1]))


def test_wrong_labels_are_wrong_and_even():
    network = mlp([2, 3])
    program = mg.compile(network, ForwardForward(), dtype=torch.float64)
    x, y = torch.zeros(6000, 2, dtype=torch.float64), torch.arange(6000) % 3
    _, out = program.step(program.init(), x, y, record={"loss": ["wrong"]})
    wrong = out.recorded["loss"]["wrong"]
    assert bool((wrong.sum(1) == 1).all())
    assert not bool((wrong.argmax(1) == y).any())
    for label in range(3):  # each of the other two half of the time, within four standard deviations
        counts = torch.bincount(wrong[y == label].argmax(1), minlength=3)
        assert abs(int(counts[(label + 1) % 3]) - 1000) < 4 * 500**0.5


def test_forward_forward_refuses_what_has_no_labels():
    for loss in ("l2", "sigmoid_cross_entropy"):
        with pytest.raises(mg.ProtocolError, match="ForwardForward tries one label after the other"):
            mg.compile(mlp([3, 4, 2], loss=loss), ForwardForward())


def test_difference_target_propagation(problem):
    rule = DifferenceTargetPropagation(0.3, step=0.5, noise=0.2, inverse=0.4)
    program = mg.compile(mlp([5, 6, 4, 3], "tanh"), rule, dtype=torch.float64)
    state = program.init()
    xi = {n.split(".")[0]: 0.2 * t for n, t in program.noise(state, 7).items()}
    after, _ = program.step(state, *problem)
    x, h1, h2, z = forward(state, problem[0])
    w = {n: k["w"] for n, k in state.items() if "w" in k}
    t3 = z - 0.5 * (torch.softmax(z, -1) - one_hot(problem[1], 3))
    v = {n: k["v"].clone().requires_grad_() for n, k in state.items() if "v" in k}
    c = {n: state[n]["c"].clone().requires_grad_() for n in ("h1", "h2")}

    def inverse(unit, above, h):
        return torch.tanh(h @ v[f"{unit}->{above}"] + c[unit])

    t2 = h2 - inverse("h2", "y", z) + inverse("h2", "y", t3)
    t1 = h1 - inverse("h1", "h2", h2) + inverse("h1", "h2", t2)
    change = {n: after[n]["w"] - w[n] for n in w}
    signals = [(h1 - t1) * (1 - h1**2), (h2 - t2) * (1 - h2**2), z - t3]
    same(change, [e.detach() for e in signals], [x, h1, h2])
    total = 0.0
    for unit, above, h, f in (("h1", "h2", h1, torch.tanh), ("h2", "y", h2, lambda z: z)):
        noisy = h + xi[unit]
        p = f(noisy @ w[f"{unit}->{above}"].T + w[f"{above}.bias"])
        total = total + 0.5 * (inverse(unit, above, p) - noisy).pow(2).sum(1).mean()
    for name, kept in (("v", v), ("c", c)):
        for node, gradient in zip(
            kept, torch.autograd.grad(total, list(kept.values()), retain_graph=True), strict=True
        ):
            torch.testing.assert_close(after[node][name], state[node][name] - 0.3 * 0.4 * gradient)


def explored(state, xi, x, sigma=0.2):
    """Activities of a run with noise, the output's last."""
    values = [x]
    for connection, unit in LAYERS:
        z = values[-1] @ state[connection]["w"].T + state[f"{unit}.bias"]["w"] + sigma * xi[unit]
        values.append(z if unit == "y" else torch.tanh(z))
    return values


@pytest.mark.parametrize("options", [{}, {"form": "bcm"}, {"expected": "running"}], ids=str)
def test_three_factor(problem, options):
    program = mg.compile(mlp([5, 6, 4, 3], "tanh"), ThreeFactor(0.3, sigma=0.2, **options), dtype=torch.float64)
    state, usual, theta = program.init(), 0.0, {"h1": 0.0, "h2": 0.0}
    for number in (1, 2):
        xi = {n.split(".")[0]: t for n, t in program.noise(state, 7).items()}
        after, out = program.step(state, *problem)
        values = explored(state, xi, problem[0])
        clean = cross_entropy(forward(state, problem[0])[-1], problem[1], reduction="none")
        reward = -cross_entropy(values[-1], problem[1], reduction="none")
        m = reward - (usual if options.get("expected") else -clean)
        usual = usual + (reward.mean() - usual) / number  # a mean of all steps as long as there are few
        h = {unit: xi[unit] / 0.2 for _, unit in LAYERS}
        for unit, y in (("h1", values[1]), ("h2", values[2])) if options.get("form") else ():
            theta[unit] = theta[unit] + (y.pow(2).mean(0) - theta[unit]) / number
            h[unit] = y * (y - theta[unit])
        change = {n: after[n]["w"] - k["w"] for n, k in state.items() if "w" in k}
        same(change, [-m[:, None] * h[unit] for _, unit in LAYERS], values[:3])
        torch.testing.assert_close(out.loss, clean.mean())
        state = after


def test_an_eligibility_lasts(problem):
    """With a decay, what a synapse did in the last step is rewarded by this one as well."""
    program = mg.compile(mlp([5, 3]), ThreeFactor(0.3, sigma=0.2, decay=0.5), dtype=torch.float64)
    state, e = program.init(batch_size=7), 0.0
    for _ in range(3):
        xi = program.noise(state, 7)["y.explore.0"]
        after, _ = program.step(state, *problem)
        w, b = state["x->y"]["w"], state["y.bias"]["w"]
        z = problem[0] @ w.T + b
        m = cross_entropy(z, problem[1], reduction="none") - cross_entropy(z + 0.2 * xi, problem[1], reduction="none")
        e = 0.5 * e + (xi / 0.2)[:, :, None] * problem[0][:, None]
        torch.testing.assert_close(after["x->y"]["w"], w + 0.3 * (m[:, None, None] * e).mean(0))
        state = after


@pytest.mark.parametrize("expected", ["stimulus", "running"])
def test_three_factors_follow_the_gradient_of_the_expected_reward(expected):
    """Its mean over many samples is the exact gradient, within four standard errors.

    Of linear units, with the loss |z - t|^2 / 2 and noise xi at h and y, the expected loss is that without noise, and
    sigma^2 (|W2|^2 + n) / 2.
    """
    network = mg.Network()
    network.input("x", 2), network.unit("h", 3, bias=False), network.unit("y", 2, bias=False), network.loss("y", "l2")
    network.connect("x", "h"), network.connect("h", "y")
    program = mg.compile(network, ThreeFactor(1.0, sigma=0.3, expected=expected), dtype=torch.float64)
    state, count, groups = program.init(), 4000, 25
    x, t = torch.tensor([[1.0, -0.5]]).double(), torch.tensor([[0.5, 1.0]]).double()
    w1, w2 = (state[n]["w"].clone().requires_grad_() for n in ("x->h", "h->y"))
    loss = 0.5 * (x @ w1.T @ w2.T - t).pow(2).sum() + 0.5 * 0.3**2 * (w2.pow(2).sum() + 2)
    exact = torch.autograd.grad(loss, (w1, w2))
    found = []
    for group in range(groups):
        fresh = {**state, "program": {**state["program"], "step": torch.tensor(group)}}  # other noise
        after, _ = program.step(fresh, x.expand(count, -1), t.expand(count, -1))
        found.append([state[n]["w"] - after[n]["w"] for n in ("x->h", "h->y")])
    for gradient, samples in zip(exact, zip(*found, strict=True), strict=True):
        samples = torch.stack(samples)
        error = samples.std(0) / groups**0.5
        assert bool(((samples.mean(0) - gradient).abs() < 4 * error).all())
        assert float(gradient.abs().max()) > 20 * float(error.min())


@pytest.mark.parametrize(
    "rule",
    [
        DifferenceTargetPropagation,
        DirectRandomTargetProjection,
        EquilibriumPropagation,
        ForwardForward,
        LocalLosses,
        PEPITA,
        PredictiveCoding,
        ThreeFactor,
    ],
)
def test_above_the_readout_by_defaults(rule):
    """On digits, 64-32-10, a readout alone reaches 87 %."""
    data = load("digits", seed=0).flat()
    program = mg.compile(mlp([64, 32, 10], "tanh"), rule())
    state, *_ = train(program, data, epochs=8)
    assert (program.predict(state, data.test_x).argmax(1) == data.test_y).double().mean() > 0.89
