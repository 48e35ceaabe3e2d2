"""Rules in time against autograd through a hand-written recurrent network: e-prop and RFLO, and their formulas."""

import pytest
import torch
from reference import largest

import mpgraph as mg
from mpgraph.architectures import recurrent
from mpgraph.protocols import RFLO, Backprop, EProp

DOUBLE = torch.float64
SIZES, BATCH, TICKS = (3, 5, 2), 4, 6
KEEP, TAU, RESET = 0.8, 4.0, 0.3


def problem(ticks=TICKS, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(BATCH, ticks, SIZES[0], generator=generator, dtype=DOUBLE)
    return x, torch.randn(BATCH, ticks, SIZES[-1], generator=generator, dtype=DOUBLE)


def start(rule, still=False):
    """A program and a state with random biases; ``still`` without recurrent weights."""
    program = mg.compile(recurrent(SIZES, 2, loss="l2"), rule, dtype=DOUBLE)
    state = program.init(1, batch_size=BATCH)
    generator = torch.Generator().manual_seed(2)
    for name in ("h1.bias", "y.bias"):
        state[name]["w"] = torch.randn(state[name]["w"].shape, generator=generator, dtype=DOUBLE)
    if still:
        state["h1->h1"]["w"] = torch.zeros_like(state["h1->h1"]["w"])
    return program, state


def weights(state):
    return {name: channels["w"] for name, channels in state.items() if "w" in channels}


def summed(program, state, x, y):
    """What the ticks of a sequence change, added up, when each begins with the first weights."""
    first, total = weights(state), {}
    for t in range(x.shape[1]):
        after, _ = program.step(state, x[:, t], y[:, t])
        total = {n: total.get(n, 0.0) + (w - after[n]["w"]) for n, w in first.items()}
        state = {n: {**channels, **({"w": first[n]} if n in first else {})} for n, channels in after.items()}
    return total


def network(rule, w, x, detached, reset=0.0):
    """Predictions of every tick, with or without a gradient through the recurrent weights."""
    z = h = torch.zeros(BATCH, SIZES[1], dtype=DOUBLE)
    for t in range(x.shape[1]):
        back = z.detach() if detached else z
        drive = x[:, t] @ w["x->h1"].T + back @ w["h1->h1"].T + w["h1.bias"]
        if rule is EProp:
            h = KEEP * h + (1 - KEEP) * drive - reset * back
            z = torch.tanh(h)
        else:
            z = (1 - 1 / TAU) * z + torch.tanh(drive) / TAU
        yield z @ w["h1->y"].T + w["y.bias"]


def gradients(rule, state, x, y, detached, reset=0.0):
    leaves = {n: w.clone().requires_grad_() for n, w in weights(state).items()}
    found = network(rule, leaves, x, detached, reset)
    loss = sum((0.5 * (out - y[:, t]) ** 2).sum(1).mean() for t, out in enumerate(found))
    return dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))


def made(rule, **options):
    return EProp(1.0, decay=KEEP, **options) if rule is EProp else RFLO(1.0, tau=TAU, **options)


def apart(one, two):
    return largest(one[n] - two[n] for n in one)


@pytest.mark.parametrize("rule", [EProp, RFLO])
def test_it_is_the_gradient_without_the_path_through_recurrent_weights(rule):
    program, state = start(made(rule, feedback="symmetric"))
    x, y = problem()
    exact = gradients(rule, state, x, y, detached=True)
    assert apart(summed(program, state, x, y), exact) < 1e-12
    assert apart(gradients(rule, state, x, y, detached=False), exact) > 1e-3


def test_the_reset_of_a_unit_is_left_out_of_the_gradient():
    program, state = start(EProp(1.0, decay=KEEP, feedback="symmetric", reset=RESET))
    x, y = problem()
    assert apart(summed(program, state, x, y), gradients(EProp, state, x, y, True, RESET)) < 1e-12


@pytest.mark.parametrize("rule", [EProp, RFLO])
@pytest.mark.parametrize("case", ["no recurrent weights", "one tick"])
def test_it_is_backpropagation_through_time(rule, case):
    program, state = start(made(rule, feedback="symmetric"), still=case == "no recurrent weights")
    x, y = problem(TICKS if case == "no recurrent weights" else 1)
    assert apart(summed(program, state, x, y), gradients(rule, state, x, y, detached=False)) < 1e-12


def by_formula(rule, state, x, y):
    """The sums of the updates with random feedback, by loops over ticks and einsum."""
    w, b = weights(state), state["h1->loss"]["b"]
    n_in, n, _ = SIZES
    z = h = torch.zeros(BATCH, n, dtype=DOUBLE)
    p = {
        name: torch.zeros(BATCH, n, size, dtype=DOUBLE)
        for name, size in (("x->h1", n_in), ("h1->h1", n), ("h1.bias", 1))
    }
    total = {name: torch.zeros_like(one) for name, one in w.items()}
    for t in range(x.shape[1]):
        drive = x[:, t] @ w["x->h1"].T + z @ w["h1->h1"].T + w["h1.bias"]
        heard = {"x->h1": x[:, t], "h1->h1": z, "h1.bias": torch.ones(BATCH, 1, dtype=DOUBLE)}
        if rule is EProp:
            h = KEEP * h + (1 - KEEP) * drive
            z = torch.tanh(h)
            p = {name: KEEP * p[name] + (1 - KEEP) * heard[name][:, None] for name in p}
            traces = {name: (1 - z**2)[..., None] * p[name] for name in p}
        else:
            slope = (1 - torch.tanh(drive) ** 2) / TAU
            z = (1 - 1 / TAU) * z + torch.tanh(drive) / TAU
            traces = p = {name: (1 - 1 / TAU) * p[name] + slope[..., None] * heard[name][:, None] for name in p}
        error = z @ w["h1->y"].T + w["y.bias"] - y[:, t]
        for name, trace in traces.items():
            total[name] += torch.einsum("bi,bij->ij", error @ b, trace).reshape(total[name].shape) / BATCH
        total["h1->y"] += error.T @ z / BATCH
        total["y.bias"] += error.mean(0)
    return total


@pytest.mark.parametrize("rule", [EProp, RFLO])
def test_it_is_its_formula_with_random_feedback(rule):
    program, state = start(made(rule))
    x, y = problem()
    assert apart(summed(program, state, x, y), by_formula(rule, state, x, y)) < 1e-12


def test_backpropagation_online_goes_back_within_a_tick():
    """Its gradient is that of the tick, of everything said before as it was."""
    program = mg.compile(recurrent(SIZES, 2, loss="l2"), Backprop(1.0), dtype=DOUBLE, online=True)
    state = program.init(1, batch_size=BATCH)
    x, y = problem(3)
    state, _ = program.step(state, x[:, :2], y[:, :2])
    leaves = {n: w.clone().requires_grad_() for n, w in weights(state).items()}
    past = state["h1@-1"]["forward"]
    h = torch.tanh(x[:, 2] @ leaves["x->h1"].T + past @ leaves["h1->h1"].T + leaves["h1.bias"])
    loss = (0.5 * (h @ leaves["h1->y"].T + leaves["y.bias"] - y[:, 2]) ** 2).sum(1).mean()
    exact = dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))
    after, out = program.step(state, x[:, 2], y[:, 2])
    assert apart({n: w - after[n]["w"] for n, w in weights(state).items()}, exact) < 1e-12
    torch.testing.assert_close(out.loss, loss.detach())
    torch.testing.assert_close(after["h1@-1"]["forward"], h.detach())


@pytest.mark.parametrize("rule", [EProp, RFLO])
def test_spiking_units_need_a_surrogate(rule):
    network = recurrent(SIZES, 2, activation="step", loss="l2")
    with pytest.warns(mg.FlatUnitWarning, match=r"'h1'.*surrogate='tanh'"):
        mg.compile(network, rule())
    program = mg.compile(network, rule(surrogate="tanh"), dtype=DOUBLE)
    state = program.init(batch_size=BATCH)
    after, _ = program.step(state, *problem())
    assert all(not torch.equal(w, after[n]["w"]) for n, w in weights(state).items())


def test_they_cannot_learn_from_a_whole_sequence_at_once():
    with pytest.raises(mg.ProtocolError, match=r"online=False\): EProp\(lr=0.1\) learns at every tick"):
        mg.compile(recurrent(SIZES, 2), EProp(), online=False)
