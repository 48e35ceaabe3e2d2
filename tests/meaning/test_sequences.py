"""A step that is a sequence of any length: compiled loops against the interpreter, autograd and unrolled networks."""

import time
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import LOSSES, delayed, distance, randomised
from torch.nn import functional

import mpgraph as mg
from mpgraph import protocols
from mpgraph.architectures import mlp, recurrent
from mpgraph.interpreter import interpreter
from mpgraph.protocols import Backprop, EProp, EquilibriumPropagation, FeedbackAlignment, NodePerturbation

DOUBLE = torch.float64
RULES = ["Backprop", "FeedbackAlignment", "WeightMirror", "KolenPollack", "NodePerturbation", "PEPITA", "ThreeFactor"]


def batch(network, size, ticks, generator):
    """Inputs, targets as numbers, and which examples have one at which tick."""

    def random(name):
        return torch.randn(size, ticks, *network.shape(name), generator=generator, dtype=DOUBLE)

    x, y = {n: random(n) for n in network.inputs}, {n: random(n).softmax(-1) for n in network.outputs}
    return x, y, {n: (torch.rand(size, ticks, generator=generator) < 0.7).to(DOUBLE) for n in network.outputs}


@settings(max_examples=12)
@given(network=delayed(), rule=st.sampled_from(RULES), ticks=st.integers(1, 4), seed=st.integers(0, 99))
def test_loops_over_ticks_mean_what_the_interpreter_does(network, rule, ticks, seed):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", mg.FlatUnitWarning)
        program = mg.compile(network, getattr(protocols, rule)(), dtype=DOUBLE, sequences=True)
    generator = torch.Generator().manual_seed(seed)
    state = randomised(program.init(batch_size=2), generator)
    x, y, told = batch(network, 2, ticks, generator)
    noise = program.noise(state, 2, ticks=ticks)
    meaning, said = interpreter.step(program, state, x, y, noise, told=told)
    hidden = {n: t.masked_fill(told[n][..., None] == 0, float("nan")) for n, t in y.items()}
    after, out = program.step(state, x, hidden)
    assert distance(after, meaning) < 1e-9
    predictions = out.prediction if isinstance(out.prediction, dict) else {network.outputs[0]: out.prediction}
    for output, prediction in said.items():
        torch.testing.assert_close(predictions[output], prediction, rtol=1e-9, atol=1e-9)


def convolutional():
    """A convolution that hears itself, and a unit that hears itself two ticks later."""
    network = mg.Network()
    network.input("x", (1, 2, 2)), network.unit("c", (1, 2, 2), "tanh"), network.unit("y", 2)
    network.connect("x", "c", mg.Conv2d(3, padding=1)), network.connect("c", "c", mg.Conv2d(3, padding=1), delay=1)
    network.connect("c", "y"), network.connect("y", "y", "identity", delay=2), network.loss("y", "l2")
    return network


def noisy():
    """Units that normalize over the batch and draw noise, and tied weights."""
    network = mg.Network()
    network.input("x", 2), network.unit("b", 2, mg.BatchNorm()), network.unit("h", 2, mg.Noisy("tanh"))
    network.unit("y", 2)
    network.connect("x", "b"), network.connect("b", "h"), network.connect("h", "b", delay=1)
    network.connect("h", "y"), network.connect("h", "h", tied="h->y", delay=1), network.loss("y", "cross_entropy")
    return network


@pytest.mark.parametrize("network", [convolutional, noisy])
def test_further_connections_and_units_mean_what_the_interpreter_does(network):
    program = mg.compile(network(), Backprop(), dtype=DOUBLE, sequences=True)
    generator = torch.Generator().manual_seed(0)
    state = randomised(program.init(), generator)
    x, y, told = batch(program.graph.network, 2, 3, generator)
    noise = program.noise(state, 2, ticks=3)
    meaning, said = interpreter.step(program, state, x, y, noise, told=dict.fromkeys(told, torch.ones(2, 3)))
    after, out = program.step(state, x, y, noise=noise)
    assert distance(after, meaning) < 1e-12
    torch.testing.assert_close(out.prediction, said["y"])


def problem(ticks=5, size=6, sizes=(3, 2)):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(size, ticks, sizes[0], generator=generator, dtype=DOUBLE)
    return x, torch.randint(0, sizes[1], (size, ticks), generator=generator)


def program_of(rule=None, ticks=5, **options):
    return mg.compile(recurrent([3, 4, 2], ticks, **options), rule or Backprop(lr=0.1), dtype=DOUBLE, sequences=True)


def by_autograd(state, x, y, loss="cross_entropy"):
    """Predictions, the loss of each tick, and the gradient of their sum by each weight."""
    w = {name: channels["w"].clone().requires_grad_() for name, channels in state.items() if "w" in channels}
    h, predictions, losses = x.new_zeros(len(x), 4), [], []
    for tick in range(x.shape[1]):
        h = torch.tanh(x[:, tick] @ w["x->h1"].T + h @ w["h1->h1"].T + w["h1.bias"])
        predictions.append(h @ w["h1->y"].T + w["y.bias"])
        if loss == "cross_entropy":
            each = functional.cross_entropy(predictions[-1], y[:, tick], ignore_index=-100, reduction="sum")
            losses.append(each / len(x))
        else:
            losses.append(LOSSES[loss](predictions[-1], y[:, tick]))
    gradients = torch.autograd.grad(sum(losses), list(w.values()))
    return torch.stack(predictions, 1), losses, dict(zip(w, gradients, strict=True))


@pytest.mark.parametrize(("loss", "ticks"), [("cross_entropy", 5), ("cross_entropy", 1), ("l2", 7)])
def test_backprop_is_backpropagation_through_time(loss, ticks):
    """Of the loss at every tick, masked where there is no target; the program was compiled for five ticks."""
    program, (x, y) = program_of(loss=loss), problem(ticks)
    state = program.init(1)
    if loss == "cross_entropy":
        y[::2, :-1] = -100
    else:
        y = torch.randn(6, ticks, 2, generator=torch.Generator().manual_seed(1), dtype=DOUBLE)
    predictions, losses, gradients = by_autograd(state, x, y, loss)
    after, out = program.step(state, x, y)
    torch.testing.assert_close(out.prediction, predictions.detach())
    torch.testing.assert_close(program.predict(state, x), predictions.detach())
    torch.testing.assert_close(out.loss, sum(losses).detach())
    for name, gradient in gradients.items():
        torch.testing.assert_close(after[name]["w"], state[name]["w"] - 0.1 * gradient, rtol=0, atol=1e-12)


def test_targets_without_ticks_are_those_of_the_last_as_in_an_unrolled_network():
    program, (x, y) = program_of(FeedbackAlignment(optimizer=mg.Adam(0.01))), problem()
    unrolled = mg.compile(recurrent([3, 4, 2], 5), FeedbackAlignment(optimizer=mg.Adam(0.01)), dtype=DOUBLE)
    state, rows = program.init(), torch.eye(2, dtype=DOUBLE)[y[:, -1]]
    wanted, said = unrolled.step(state, x, y[:, -1])
    for target in (y[:, -1], rows, y[:, -1].to(torch.uint8)):
        after, out = program.step(state, x, target)
        assert distance(after, wanted) < 1e-12
        torch.testing.assert_close(out.prediction[:, -1], said.prediction)
        torch.testing.assert_close(out.loss, said.loss)
    nothing, out = program.step(state, x)
    assert float(out.loss) == 0.0
    assert torch.equal(nothing["h1->y"]["w"], state["h1->y"]["w"])


def test_code_and_the_time_to_write_it_do_not_grow_with_the_ticks():
    lines = []
    for ticks in (3, 300):
        start = time.process_time()
        program = mg.compile(recurrent([10, 100, 10], ticks), Backprop(), sequences=True)
        taken = time.process_time() - start
        lines.append(program.code.count("\n"))
    assert taken < 0.5
    assert lines[0] == lines[1] < 120
    assert "for number in reversed(range(times)):" in program.code
    shown = program.explain(batch_size=4)
    assert "300 times" in shown
    assert "h1 => h1->h1 (pre, +1 tick)" in shown
    assert program.cost(4).flops > 300 * 2 * 4 * (10 * 100 + 100 * 100)


def test_channels_are_recorded_at_every_tick_and_steps_map_over_networks():
    program, (x, y) = program_of(), problem()
    states = [program.init(seed) for seed in range(2)]
    many, out = torch.func.vmap(lambda s: program.step(s, x, y, record={"h1": ["y"]}))(mg.stack(states))
    for i, state in enumerate(states):
        after, one = program.step(state, x, y, record={"h1": ["y"]})
        assert one.recorded["h1"]["y"].shape == (6, 5, 4)
        assert distance(after, {n: {c: t[i] for c, t in k.items()} for n, k in many.items()}) < 1e-12
        torch.testing.assert_close(out.recorded["h1"]["y"][i], one.recorded["h1"]["y"])


def test_gradients_go_through_sequences():
    """By the weights, of the loss after one step: as autograd has it for the step by autograd."""
    program, (x, y) = program_of(), problem(3)
    state = program.init(2)

    def later(w, step):
        return step({**state, "h1->h1": {"w": w}})

    def ours(given):
        return program.step(program.step(given, x, y)[0], x, y)[1].loss

    def theirs(given):
        w = given["h1->h1"]["w"]
        names = [name for name in given if name != "program"]
        leaves = [w if n == "h1->h1" else given[n]["w"].clone().requires_grad_() for n in names]
        at = dict(zip(names, leaves, strict=True))

        def loss(weights):
            h, total = x.new_zeros(6, 4), 0.0
            for tick in range(3):
                drive = x[:, tick] @ weights["x->h1"].T + h @ weights["h1->h1"].T
                h = torch.tanh(drive + weights["h1.bias"])
                said = h @ weights["h1->y"].T + weights["y.bias"]
                total = total + functional.cross_entropy(said, y[:, tick])
            return total

        gradients = torch.autograd.grad(loss(at), leaves, create_graph=True)
        return loss({n: v - 0.1 * g for n, v, g in zip(names, leaves, gradients, strict=True)})

    found = []
    for step in (ours, theirs):
        w = state["h1->h1"]["w"].clone().requires_grad_()
        found.append(torch.autograd.grad(later(w, step), w)[0])
    torch.testing.assert_close(*found)


def test_noise_is_drawn_for_every_tick():
    program, (x, y) = program_of(NodePerturbation()), problem()
    state = program.init()
    noise = program.noise(state, 6, ticks=5)
    assert noise
    assert all(t.shape[:2] == (5, 6) for t in noise.values())
    assert distance(program.step(state, x, y)[0], program.step(state, x, y, noise=noise)[0]) == 0.0
    shorter, _ = program.step(state, x[:, :2], y[:, :2])
    assert not torch.equal(shorter["h1->h1"]["w"], state["h1->h1"]["w"])


def test_a_network_without_delays_sees_every_tick_alike():
    """So a sequence is so many examples, whose updates are added up."""
    program = mg.compile(mlp([3, 4, 2]), Backprop(lr=0.1), dtype=DOUBLE, sequences=True)
    alone = mg.compile(mlp([3, 4, 2]), Backprop(lr=0.5), dtype=DOUBLE)
    (x, y), state = problem(), program.init()
    after, out = program.step(state, x, y)
    wanted, flat = alone.step(state, x.flatten(0, 1), y.flatten())
    assert distance(after, wanted) < 1e-12
    torch.testing.assert_close(out.loss, 5 * flat.loss)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda p, s: p.step(s, problem(4)[0], problem()[1]), "target of 'y' has 5 ticks, where the input has 4"),
        (lambda p, s: p.step(s, problem(0)[0]), "at least one tick"),
        (
            lambda p, s: p.step(s, problem()[0][:, 0]),
            r"the shape \(batch, ticks, 3\), got \(6, 3\); .* use x\[:, None\]",
        ),
        (lambda p, s: p.predict(s, problem()[0][..., :2]), r"expected shape \(batch, 5, 3\), got \(6, 5, 2\)"),
        (
            lambda p, s: p.step(s, problem()[0], problem()[1][:4]),
            r"or those of the last tick alone, \(6,\) or \(6, 2\)",
        ),
        (lambda p, s: p.step(s, problem()[0], problem()[1] + 1), "labels must lie in 0..1, got 1..2"),
        (lambda p, s: p.step(s, problem()[0], repeat=3), "the rule repeats nothing"),
    ],
)
def test_what_does_not_fit_is_refused(call, text):
    program = program_of()
    with pytest.raises(mg.InputError, match=text):
        call(program, program.init())


def test_an_unrolled_network_and_probes_say_what_they_lack():
    x, y = problem()
    unrolled = mg.compile(recurrent([3, 4, 2], 5), Backprop(), dtype=DOUBLE)
    with pytest.raises(mg.InputError, match=r"targets at every tick take mg.compile\(..., sequences=True\)"):
        unrolled.step(unrolled.init(), x, y)
    program = program_of()
    with pytest.raises(mg.ProtocolError, match=r"sequences of any length.*Measure an unrolled network"):
        mg.probes.gradients(program, program.init(), x, y)


@pytest.mark.parametrize(
    ("rule", "options", "text"),
    [
        (EProp(), {}, "learns at every tick"),
        (Backprop(), {"online": True}, "choose one"),
        (EquilibriumPropagation(), {}, "repeats passes, which go through whole sequences; unroll"),
        (protocols.BLUR(), {}, r"is of shape \(2,\); .*Unroll the network instead: mg.compile\(..., sequences=False"),
        (protocols.Oja(), {}, "a message of its own, .*sequences=False"),
    ],
)
def test_rules_that_a_loop_over_ticks_has_no_place_for(rule, options, text):
    with pytest.raises(mg.MPGraphError, match=text):
        mg.compile(recurrent([3, 4, 2], 3), rule, sequences=True, **options)
