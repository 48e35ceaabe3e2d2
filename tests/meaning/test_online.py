"""A step that is one tick: compiled code against the interpreter, online networks against unrolled ones."""

import pickle
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import delayed, distance, few, randomised

import mpgraph as mg
from mpgraph import protocols
from mpgraph.architectures import recurrent
from mpgraph.interpreter import interpreter
from mpgraph.protocols import Backprop, EProp, FeedbackAlignment

DOUBLE = torch.float64
RULES = [
    ("Backprop", {}),
    ("FeedbackAlignment", {}),
    ("DirectFeedbackAlignment", {}),
    ("NodePerturbation", {}),
    ("SignSymmetry", {}),
    ("PredictiveCoding", {}),
    ("EquilibriumPropagation", {}),
    ("EProp", {}),
    ("EProp", {"feedback": "symmetric", "reset": 0.5}),
    ("RFLO", {}),
    ("RFLO", {"feedback": "symmetric"}),
]


def batch(network, size, generator):
    """A tick: inputs, targets as numbers, and which examples have one."""
    x = {n: torch.randn(size, *network.shape(n), generator=generator, dtype=DOUBLE) for n in network.inputs}
    y = {
        n: torch.randn(size, *network.shape(n), generator=generator, dtype=DOUBLE).softmax(-1) for n in network.outputs
    }
    return x, y, {n: (torch.rand(size, generator=generator) < 0.7).to(DOUBLE) for n in network.outputs}


def hidden(y, told):
    """The targets with NaN where there is none."""
    return {n: t.masked_fill(told[n][:, None] == 0, float("nan")) for n, t in y.items()}


@given(network=delayed(), rule=st.sampled_from(RULES), ticks=st.integers(1, 2), seed=st.integers(0, 99))
def test_compiled_ticks_mean_what_the_interpreter_does(network, rule, ticks, seed):
    name, options = rule
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", mg.FlatUnitWarning)
        program = mg.compile(network, getattr(protocols, name)(**options), dtype=DOUBLE, online=True)
    repeat, generator = few(program), torch.Generator().manual_seed(seed)
    state = meaning = randomised(program.init(batch_size=2), generator)
    for _ in range(ticks):
        x, y, told = batch(network, 2, generator)
        noise = program.noise(state, 2, repeat=repeat)
        meaning, said = interpreter.step(program, meaning, x, y, noise, repeat=repeat, told=told)
        state, out = program.step(state, x, hidden(y, told), repeat=repeat)
        assert distance(state, meaning) < 1e-9
        predictions = out.prediction if isinstance(out.prediction, dict) else {network.outputs[0]: out.prediction}
        for output, prediction in said.items():
            torch.testing.assert_close(predictions[output], prediction, rtol=1e-9, atol=1e-9)


@settings(max_examples=10)
@given(network=delayed(), ticks=st.integers(1, 4), seed=st.integers(0, 99))
def test_predictions_are_those_of_the_unrolled_network(network, ticks, seed):
    """Of the last of as many ticks; and of a sequence at every tick those of its beginnings."""
    generator = torch.Generator().manual_seed(seed)
    online = mg.compile(network, FeedbackAlignment(), dtype=DOUBLE, online=True)
    state = online.init(batch_size=2)
    x = {n: torch.randn(2, ticks, *network.shape(n), generator=generator, dtype=DOUBLE) for n in network.inputs}
    found = online.predict(state, x)
    found = found if isinstance(found, dict) else {network.outputs[0]: found}
    longest = max(wire.delay for wire in network.wires.values())
    for last in range(longest, ticks):
        unrolled = network.copy()
        unrolled.ticks = last + 1
        program = mg.compile(unrolled, FeedbackAlignment(), dtype=DOUBLE)
        weights = {n: c for n, c in state.items() if n in program.init()}
        part = {n: t[:, : last + 1] for n, t in x.items()}
        wanted = program.predict(weights, part if last else {n: t[:, 0] for n, t in part.items()})
        wanted = wanted if isinstance(wanted, dict) else {network.outputs[0]: wanted}
        for name, prediction in wanted.items():
            torch.testing.assert_close(found[name][:, last], prediction, rtol=1e-9, atol=1e-9)


def program_of(rule, sizes=(3, 4, 2), **options):
    return mg.compile(recurrent(sizes, 2, **options), rule, dtype=DOUBLE, online=True)


def problem(ticks=5, size=3, inputs=3):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(size, ticks, inputs, generator=generator, dtype=DOUBLE)


@pytest.mark.parametrize("rule", [Backprop, EProp])
def test_a_sequence_is_one_step_for_each_tick(rule):
    program = program_of(rule())
    x, y = problem(), torch.tensor([[0, 1, -100, 1, 0], [1, 1, -100, -100, 0], [0, 0, -100, -100, -100]])
    start = state = program.init(batch_size=3)
    losses, predictions = [], []
    for t in range(5):
        state, out = program.step(state, x[:, t], None if t == 2 else y[:, t], record={"h1": ["y"]})
        losses.append(out.loss)
        predictions.append(out.prediction)
    assert float(losses[2]) == 0.0
    after, out = program.step(start, x, y, record={"h1": ["y"]})
    assert distance(after, state) == 0.0
    assert torch.equal(out.prediction, torch.stack(predictions, 1))
    assert out.recorded["h1"]["y"].shape == (3, 5, 4)
    torch.testing.assert_close(out.loss, torch.stack(losses).mean())


def test_targets_without_ticks_are_those_of_the_last():
    program, x = program_of(EProp()), problem()
    state, label = program.init(batch_size=3), torch.tensor([0, 1, 1])
    everywhere = torch.full((3, 5), -100)
    everywhere[:, -1] = label
    rows = torch.eye(2, dtype=DOUBLE)[label]
    found = [program.step(state, x, y)[0] for y in (label, rows, everywhere)]
    assert distance(found[0], found[1]) == distance(found[0], found[2]) == 0.0


def test_a_loss_says_nothing_of_an_example_without_a_target():
    """So the update of a batch is what its other examples make of it, with the size of the whole batch."""
    program, x = program_of(EProp(1.0), loss="l2"), problem(1, 4)[:, 0]
    state = program.init(batch_size=4)
    y = torch.randn(4, 2, generator=torch.Generator().manual_seed(1), dtype=DOUBLE)
    some, out = program.step(state, x, y.masked_fill(torch.tensor([[True], [False], [False], [True]]), float("nan")))
    part = program.reset(state, 2)
    few, half = program.step(part, x[1:3], y[1:3])
    for name in ("x->h1", "h1->y", "y.bias"):
        torch.testing.assert_close(some[name]["w"] - state[name]["w"], (few[name]["w"] - state[name]["w"]) / 2)
    torch.testing.assert_close(out.loss, half.loss / 2)


def test_a_new_sequence_begins_with_reset():
    program, x = program_of(EProp()), problem()
    fresh = program.init(5, batch_size=3)
    state, _ = program.step(fresh, x)
    again = program.reset(state)
    assert not torch.equal(state["h1"]["h"], fresh["h1"]["h"])
    for node, channels in again.items():
        for channel, tensor in channels.items():
            learned = channel in ("w", "b", "seed", "step")
            assert torch.equal(tensor, (state if learned else fresh)[node][channel]), (node, channel)
    assert program.slots(program.reset(state, 7)) == 7
    stacked = program.reset(mg.stack([state, state]))
    assert torch.equal(stacked["h1"]["h"][1], again["h1"]["h"])
    torch.testing.assert_close(program.predict(state, x, memories="fresh"), program.predict(again, x))
    with pytest.raises(mg.MPGraphError, match="batch_size"):
        program.reset(state, 0)


def test_a_prediction_is_that_of_the_next_tick_and_advance_goes_there():
    program, x = program_of(EProp()), problem()
    state, _ = program.step(program.init(batch_size=3), x[:, :2])
    one = program.predict(state, x[:, 2])
    after, same = program.advance(state, x[:, 2])
    assert torch.equal(one, same)
    assert not torch.equal(program.predict(after, x[:, 2]), one)  # time has gone on
    assert all(torch.equal(after[n]["w"], c["w"]) for n, c in state.items() if "w" in c)
    learned, out = program.step(state, x[:, 2])  # without a target nothing is learned either
    assert torch.equal(out.prediction, one)
    assert distance({**learned, "program": {}}, {**after, "program": {}}) == 0.0
    assert torch.equal(program.predict(state, x[:, 2:])[:, 0], one)


def test_delayed_messages_lie_in_the_state_pass_by_pass():
    network = mg.Network()
    network.input("x", 2), network.unit("y", 2, bias=False)
    network.connect("x", "y", "identity", delay=3), network.loss("y", "l2")
    program = mg.compile(network, Backprop(), dtype=DOUBLE, online=True)
    state, x = program.init(batch_size=1), problem(6, 1, 2)
    assert set(state) == {"x@-1", "x@-2", "x@-3", "program"}
    state, out = program.step(state, x)
    assert torch.equal(out.prediction[:, 3:], x[:, :3])
    assert not out.prediction[:, :3].any()
    assert torch.equal(state["x@-2"]["forward"], x[:, -2])
    shown = program.explain()
    assert "x@-1 => x@-2" in shown
    assert program.graph.to_networkx().nodes["x@-3"]["kind"] == "delay"
    assert "x@-3" in program.graph.draw(format="mermaid")


def test_any_rule_may_be_online_or_not():
    network = recurrent([3, 4, 2], 4)
    for online, shape in ((True, (3,)), (False, (4, 3)), (None, (4, 3))):
        program = mg.compile(network, Backprop(), online=online)
        assert program.online is bool(online)
        assert program.predict(program.init(batch_size=2), torch.zeros(2, *shape)).shape == (2, 2)
    copy = pickle.loads(pickle.dumps(program_of(EProp())))
    assert copy.online
    below = EProp(feedback="symmetric")
    regions = mg.compile(network, {"h1.bias": below, "x->h1": below, "h1->h1": below, "h1": below, "*": Backprop()})
    assert regions.online


def test_steps_map_over_many_networks():
    program, x = program_of(EProp()), problem()
    y = torch.tensor([[0, 1, -100, 1, 0]] * 3)
    states = [program.init(seed, batch_size=3) for seed in range(3)]
    many, out = torch.func.vmap(lambda s: program.step(s, x, y))(mg.stack(states))
    for i, state in enumerate(states):
        after, one = program.step(state, x, y)
        assert distance(after, {n: {c: t[i] for c, t in k.items()} for n, k in many.items()}) < 1e-12
        torch.testing.assert_close(out.loss[i], one.loss)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda p, s: p.step(s, problem(4), torch.zeros(3, 5, dtype=torch.int64)), "as many ticks at every input and"),
        (lambda p, s: p.step(s, problem(0), None), "at least one"),
        (lambda p, s: p.step(s, problem(), None, noise={}), "noise= is that of one step"),
        (lambda p, s: p.step(s, problem()[:, 0], torch.tensor([0, 1, 5])), "labels must lie in 0..1, got 0..5"),
        (lambda p, s: p.step(s, problem()[:, 0], torch.tensor([0, 1])), "expected 3 examples like x"),
        (lambda p, s: p.step(s, problem()[:2, 0], None), "each of 3 examples, but the batch has 2"),
        (lambda p, s: p.predict(s, problem()[..., :2]), "expected shape \\(batch, 5, 3\\), got \\(3, 5, 2\\)"),
        (lambda p, s: p.init(), "call program.init\\(seed, batch_size=...\\)"),
        (lambda p, s: torch.func.vmap(p.reset)(mg.stack([s])), "call it outside of torch.func"),
    ],
)
def test_what_does_not_fit_is_refused(call, text):
    program = program_of(EProp())
    with pytest.raises(mg.MPGraphError, match=text):
        call(program, program.init(batch_size=3))


def test_delays_need_ticks_or_one_a_step():
    network = recurrent([3, 4, 2], 2)
    network.ticks = 1
    with pytest.raises(
        mg.NetworkError, match=r"'h1->h1' \(delay 1\).*mg.Network\(ticks=...\), mg.compile\(.*sequences.*online"
    ):
        mg.compile(network, Backprop())
    mg.compile(network, Backprop(), online=True)


def test_messages_that_are_delayed_are_single_numbers():
    with pytest.raises(mg.ProtocolError, match=r"'h1@-1', pass '\w+': .* is of shape \(2,\); .*online=False"):
        mg.compile(recurrent([3, 4, 2], 2), protocols.BLUR(), online=True)
    with pytest.raises(mg.ProtocolError, match=r"=> h1@-1 .*a message of its own.*online=False"):
        mg.compile(recurrent([3, 4, 2], 2), protocols.Oja(), online=True)
