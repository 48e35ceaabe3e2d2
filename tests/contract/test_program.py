"""Programs are pure functions: transforms, devices, files, seeds."""

import copy
import pickle

import numpy as np
import pytest
import torch
from reference import distance
from rules import Echo, Memories, TwoStates
from safetensors.torch import save_file

import mpgraph as mg
from mpgraph.architectures import mlp
from mpgraph.protocols import VSML, Alignment, Backprop, FeedbackAlignment, Plasticity, WeightMirror
from mpgraph.protocols.backprop import Weight as PlainWeight


def make(rule=None, dtype=torch.float64, activation="tanh"):
    return mg.compile(mlp([5, 6, 4, 3], activation), rule or Backprop(lr=0.2), dtype=dtype)


def data(size=7, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(size, 5, generator=generator, dtype=dtype)
    return x, torch.randint(0, 3, (size,), generator=generator)


# -- torch transforms ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", ["tanh", "sigmoid", "relu", "softplus", "step", torch.sin])
@pytest.mark.parametrize("rule", [Backprop, FeedbackAlignment])
def test_vmap_over_states(rule, activation):
    program = make(rule(lr=0.2, surrogate="tanh"), activation=activation)
    states = [program.init(seed) for seed in range(8)]
    x, y = data()
    together, out = torch.func.vmap(lambda state: program.step(state, x, y))(mg.stack(states))
    for i, state in enumerate(states):
        alone, single = program.step(state, x, y)
        picked = {n: {c: t[i] for c, t in channels.items()} for n, channels in together.items()}
        assert distance(alone, picked) < 1e-12
        torch.testing.assert_close(out.loss[i], single.loss)
        torch.testing.assert_close(out.prediction[i], single.prediction)


def test_vmap_over_batches_with_labels():
    program = make()
    x, y = torch.randn(4, 7, 5, dtype=torch.float64), torch.randint(0, 3, (4, 7))
    state = program.init()
    _, out = torch.func.vmap(lambda x, y: program.step(state, x, y))(x, y)
    torch.testing.assert_close(
        out.loss, torch.stack([program.step(state, a, b)[1].loss for a, b in zip(x, y, strict=True)])
    )


def unrolled(program, lr, state, x, y, steps=5):
    """Loss after some steps, as a function of the learning rate."""
    for _ in range(steps):
        state, _ = program.step(state, x, y, parameters={"optimizer.lr": lr})
    return program.step(state, x, y)[1].loss


def test_meta_gradient_through_five_steps():
    program = make(Backprop(lr=mg.learnable(0.2)))
    state, (x, y) = program.init(), data()
    lr = torch.tensor(0.2, dtype=torch.float64)
    gradient = torch.func.grad(lambda lr: unrolled(program, lr, state, x, y))(lr)
    h = 1e-5
    difference = unrolled(program, lr + h, state, x, y) - unrolled(program, lr - h, state, x, y)
    torch.testing.assert_close(gradient, difference.detach() / (2 * h), rtol=1e-7, atol=1e-9)
    step = state
    for _ in range(5):
        step, _ = program.step(step, x, y)
    program.step(step, x, y)[1].loss.backward()
    torch.testing.assert_close(program.protocol.optimizer.lr.grad, gradient)
    many = torch.func.vmap(torch.func.grad(lambda lr: unrolled(program, lr, state, x, y)))(torch.stack([lr, lr / 2]))
    torch.testing.assert_close(many[0], gradient)


@pytest.mark.parametrize("rule", [Backprop(), Backprop(lr=mg.learnable(0.1)), FeedbackAlignment()])
def test_torch_compile_of_the_whole_step(rule):
    torch.compiler.reset()
    program = make(rule)
    state, (x, y) = program.init(), data()
    step = torch.compile(program.step, fullgraph=True, backend="aot_eager")
    fast, out = step(state, x, y)
    plain, expected = program.step(state, x, y)
    assert distance(fast, plain) < 1e-12
    torch.testing.assert_close(out.loss, expected.loss)


@pytest.mark.parametrize(
    "rule",
    [Backprop(), Alignment(amp=0.3, sparse=0.7, null=0.2), Plasticity(pseudo=0.1, ehebb=-0.3, oja=-0.2, crossed=0.1)],
    ids=lambda rule: type(rule).__name__,
)
def test_torch_compile_with_the_default_backend(rule):
    torch.compiler.reset()
    program = mg.compile(mlp([5, 6, 4, 3]), rule, dtype=torch.float64)
    state, (x, y) = program.init(), data()
    fast, _ = torch.compile(program.step, fullgraph=True)(state, x, y)
    assert distance(fast, program.step(state, x, y)[0]) < 1e-12


def test_torch_compile_of_two_programs_with_memories():
    torch.compiler.reset()  # sizes that differ from program to program become symbols
    x, y = torch.randn(3, 5), torch.randint(0, 3, (3,))
    for n in (4, 6):
        program = mg.compile(mlp([5, 4, 3]), VSML(n, 3))
        state = program.init(batch_size=3)
        fast, _ = torch.compile(program.step, fullgraph=True, backend="eager")(state, x, y)
        assert distance(fast, program.step(state, x, y)[0]) < 1e-6


@pytest.mark.parametrize("rule", [Backprop, FeedbackAlignment, Memories, Echo, TwoStates])
def test_nothing_that_is_passed_in_changes(rule):
    network = mlp([5, 4, 3], loss="l2" if rule is not TwoStates else None)
    program = mg.compile(network, rule(), dtype=torch.float64)
    state = program.init(batch_size=7)
    x, _ = data()
    t = torch.randn(7, 3, dtype=torch.float64) if network.losses else None
    before = copy.deepcopy((state, x, t))
    after, _ = program.step(state, x, t)
    assert distance(state, before[0]) == 0.0
    assert torch.equal(x, before[1])
    assert t is None or torch.equal(t, before[2])
    changed = [n for n in state for c in state[n] if not torch.equal(after[n][c], state[n][c])]
    assert changed


def test_two_steps_from_one_state_are_the_same():
    program, (x, y) = make(), data()
    state = program.init()
    assert distance(program.step(state, x, y)[0], program.step(state, x, y)[0]) == 0.0


def test_call_is_step_and_run_is_steps():
    program, (x, y) = make(), data()
    state = program.init()
    one, out = program(state, x, y)
    two, losses = program.run(state, [(x, y)])
    assert distance(one, two) == 0.0
    assert losses == [float(out.loss)]


# -- parameters for one call --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", mg.list_protocols())
def test_parameters_given_are_those_of_a_rule_that_holds_them(name):
    torch.manual_seed(0)
    program = mg.compile(mlp([5, 4, 3]), mg.make_protocol(name), dtype=torch.float64)
    state, (x, y) = program.init(batch_size=7), data()
    twin = copy.deepcopy(program)
    own = dict([*twin.protocol.named_parameters(), *twin.protocol.named_buffers()])
    other = {n: t.detach() + 0.1 if t.is_floating_point() else t for n, t in own.items()}
    before = program.step(state, x, y)[0]
    found, out = program.step(state, x, y, parameters=other)
    with torch.no_grad():
        for n, tensor in own.items():
            tensor.copy_(other[n])
    wanted, expected = twin.step(state, x, y)
    assert distance(found, wanted) == 0.0
    assert torch.equal(out.prediction, expected.prediction)
    assert torch.equal(program.predict(state, x, parameters=other), twin.predict(state, x))
    assert distance(program.step(state, x, y)[0], before) == 0.0


def test_parameters_given_are_differentiable_mappable_and_compile():
    torch.compiler.reset()
    program = make(Backprop(lr=mg.learnable(0.2)))
    state, (x, y) = program.init(), data()
    rates = torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64)

    def learned(lr):
        state_after, _ = program.step(state, x, y, parameters={"optimizer.lr": lr})
        return state_after["x->h1"]["w"]

    many = torch.func.vmap(learned)(rates)
    by_rate = {float(lr): make(Backprop(lr=float(lr))).step(state, x, y)[0]["x->h1"]["w"] for lr in rates}
    torch.testing.assert_close(many, torch.stack(list(by_rate.values())), rtol=1e-13, atol=1e-15)
    slope = torch.func.jacrev(learned)(rates[0])
    torch.testing.assert_close(slope, (many[0] - state["x->h1"]["w"]) / 0.1)  # a step is linear in its rate
    fast = torch.compile(learned, fullgraph=True, backend="aot_eager")(rates[1])
    torch.testing.assert_close(fast, many[1], rtol=1e-13, atol=1e-15)
    torch.testing.assert_close(
        program.forward(state, x, y, parameters={"optimizer.lr": rates[2]})[0]["x->h1"]["w"], many[2]
    )


def test_a_tied_parameter_is_replaced_everywhere():
    rate = mg.learnable(0.2)
    program = make(Backprop(optimizer=mg.SGD(rate), optimizers={"w": mg.SGD(rate)}))
    state, (x, y) = program.init(), data()
    found, _ = program.step(state, x, y, parameters={"optimizer.lr": torch.tensor(0.5, dtype=torch.float64)})
    assert distance(found, make(Backprop(lr=0.5)).step(state, x, y)[0]) < 1e-15


class Gain(mg.UnitAgent):
    def __init__(self):
        super().__init__()
        self.gain = mg.learnable(2.0)

    def forward_update(self, s, pre):
        return super().forward_update(s, self.gain * pre)


def test_predictions_take_parameters():
    network = mlp([5, 3])
    program = mg.compile(network, Backprop(unit=Gain()), dtype=torch.float64)
    plain = mg.compile(network, Backprop(), dtype=torch.float64)
    state, (x, _) = program.init(), data()
    given = {"agents.unit.gain": torch.tensor(3.0, dtype=torch.float64)}
    torch.testing.assert_close(program.predict(state, x, parameters=given), 3.0 * plain.predict(state, x))
    torch.testing.assert_close(program.predict(state, x), 2.0 * plain.predict(state, x))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"optimizer.rl": torch.tensor(0.1)}, "unknown parameter 'optimizer.rl'.*did you mean 'optimizer.lr'"),
        ({"protocol.optimizer.lr": torch.tensor(0.1)}, "names start at the rule: 'optimizer.lr'"),
        ({"optimizer.lr": 0.1}, "expected a tensor, got float; use torch.as_tensor"),
        ({"optimizer.lr": torch.tensor([0.1, 0.2]).double()}, r"expected shape \(\), got \(2,\).*vmap"),
        ({"optimizer.lr": torch.tensor(0.1)}, r"expected torch.float64.*use .to\(torch.float64\)"),
        ({"optimizer.lr": torch.tensor(0.1).double().to("meta")}, "is on meta, the program on cpu"),
        ([torch.tensor(0.1)], "expected a dictionary of tensors by name, got list"),
    ],
)
def test_parameters_that_do_not_fit(given, words):
    program, (x, y) = make(Backprop(lr=mg.learnable(0.1))), data()
    with pytest.raises(mg.InputError, match=words):
        program.step(program.init(), x, y, parameters=given)
    with pytest.raises(mg.InputError, match=words):
        program.predict(program.init(), x, parameters=given)


def test_a_rule_without_parameters_says_how_to_make_one():
    program, (x, y) = make(), data()
    with pytest.raises(mg.InputError, match=r"Backprop\(lr=0.2\) has no parameters.*mg.learnable"):
        program.step(program.init(), x, y, parameters={"optimizer.lr": torch.tensor(0.1)})


# -- stacks of states ---------------------------------------------------------------------------------------


def picked(states, i):
    return {n: {c: t[i] for c, t in channels.items()} for n, channels in states.items()}


@pytest.mark.parametrize("seeds", [range(3), [4, 0, -7], (5,), torch.tensor([1, 2]), np.arange(2)], ids=str)
def test_many_seeds_are_the_stack_of_single_states(seeds):
    program = mg.compile(mlp([5, 4, 3], loss="l2"), Memories())
    together = program.init(seeds, batch_size=2)
    for i, seed in enumerate(seeds):
        alone = program.init(int(seed), batch_size=2)
        assert {n: set(c) for n, c in together.items()} == {n: set(c) for n, c in alone.items()}
        assert all(torch.equal(together[n][c][i], t) for n, k in alone.items() for c, t in k.items())
    assert distance(together, mg.stack([program.init(int(seed), batch_size=2) for seed in seeds])) == 0.0


def test_noise_of_a_stack_is_that_of_each():
    program, (x, y) = make(WeightMirror()), data()
    states = program.init(range(3))
    noise = program.noise(states, 7)
    assert noise
    together, _ = torch.func.vmap(lambda s, n: program.step(s, x, y, noise=n))(states, noise)
    for i in range(3):
        assert distance(program.step(program.init(i), x, y)[0], picked(together, i)) < 1e-12


def test_stacks_that_cannot_be():
    program = make()
    one = program.init()
    other = {**one, "x->h1": {"w": one["x->h1"]["w"].float()}}
    for states, words in (
        ([], "no states"),
        (one, "a list of states"),
        ([one, 3], "a list of states"),
        (None, "a list of states"),
        (
            [one, make(FeedbackAlignment()).init()],
            "state 1 differs from state 0: at node .* has channel 'b'",
        ),
        ([one, one, mg.compile(mlp([5, 6, 3]), Backprop()).init()], "state 2 .* node .*'h2->y'"),
        ([one, mg.compile(mlp([5, 6, 5, 3]), Backprop(), dtype=torch.float64).init()], r"\(5, 6\).*not \(4, 6\)"),
        ([one, other], "state 1 .*'x->h1'.*torch.float32.*torch.float64"),
        ([one, {**one, "x->h1": {"w": None}}], "'x->h1'.*must be a tensor"),
    ):
        with pytest.raises(mg.StateError, match=words):
            mg.stack(states)
    with pytest.raises(mg.InputError, match="empty sequence of seeds"):
        program.init([])
    with pytest.raises(mg.ProtocolError, match=r"program.init: seed=0.5 must be an integer"):
        program.init([1, 0.5])
    with pytest.raises(mg.StateError, match=r"stack of states goes through torch.func.vmap"):
        program.step(program.init(range(2)), *data())


# -- states -------------------------------------------------------------------------------------------------


def test_init_is_a_function_of_the_seed_and_shared_by_rules():
    one, two = make().init(3), make(FeedbackAlignment()).init(3)
    assert all(torch.equal(channels["w"], two[n]["w"]) for n, channels in one.items() if "w" in channels)
    assert not torch.equal(one["x->h1"]["w"], make().init(4)["x->h1"]["w"])
    assert torch.equal(one["x->h1"]["w"].float(), make(dtype=torch.float32).init(3)["x->h1"]["w"])
    before = torch.random.get_rng_state()
    make().init(5)
    assert torch.equal(before, torch.random.get_rng_state())


def test_initial_weights_are_xavier_and_biases_zero():
    program = mg.compile(mlp([300, 200, 10]), Backprop())
    state = program.init()
    bound = (6 / 500) ** 0.5
    w = state["x->h1"]["w"]
    assert w.shape == (200, 300)
    assert w.abs().max() <= bound
    assert abs(float(w.std()) - bound / 3**0.5) < 0.01 * bound
    assert not state["h1.bias"]["w"].any()


def test_memories_need_a_batch_size_and_keep_it():
    program = mg.compile(mlp([5, 4, 3], loss="l2"), Memories())
    with pytest.raises(mg.StateError, match="batch_size"):
        program.init()
    state = program.init(batch_size=4)
    with pytest.raises(mg.StateError, match=r"4 examples.*has 6.*batch_size=6"):
        program.step(state, torch.zeros(6, 5), torch.zeros(6, 3))
    program.predict(state, torch.zeros(6, 5))  # predictions work at any size


@pytest.mark.parametrize("rule", [Backprop, FeedbackAlignment, Memories])
def test_save_and_load_round_trip_to_the_bit(rule, tmp_path):
    program = mg.compile(mlp([5, 4, 3], loss="l2"), rule())
    state, _ = program.step(program.init(7, batch_size=2), torch.randn(2, 5), torch.randn(2, 3))
    program.save(state, tmp_path / "state.safetensors")
    again = program.load(tmp_path / "state.safetensors")
    assert {n: set(c) for n, c in again.items()} == {n: set(c) for n, c in state.items()}
    assert all(
        torch.equal(again[n][c], state[n][c]) and again[n][c].dtype == state[n][c].dtype
        for n in state
        for c in state[n]
    )
    assert [p.name for p in tmp_path.iterdir()] == ["state.safetensors"]


def test_training_continues_to_the_bit_after_loading(tmp_path):
    program, (x, y) = make(), data()
    half, _ = program.run(program.init(), [(x, y)] * 3)
    program.save(half, tmp_path / "half")
    through, _ = program.run(half, [(x, y)] * 3)
    resumed, _ = program.run(program.load(tmp_path / "half"), [(x, y)] * 3)
    assert distance(through, resumed) == 0.0


def test_files_of_others_are_refused(tmp_path):
    program, path = make(), tmp_path / "state"
    with pytest.raises(mg.FileError, match="no file"):
        program.load(path)
    program.save(program.init(), path)
    for other, word in ((mlp([5, 6, 3]), "h2"), (mlp([5, 6, 5, 3]), r"\(6,|\(5,|shape")):
        with pytest.raises(mg.FileError, match=f"another network.*({word})"):
            mg.compile(other, Backprop()).load(path)
    with pytest.raises(mg.FileError, match=r"lacks .*x->h1\.b"):
        make(FeedbackAlignment()).load(path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(mg.FileError, match="damaged"):
        program.load(path)
    path.write_bytes(b"not a file of tensors")
    with pytest.raises(mg.FileError, match="damaged"):
        program.load(path)
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(mg.FileError, match="contains no mpgraph state"):
        program.load(path)
    save_file({"a": torch.zeros(1)}, path, metadata={"format": "mpgraph.state", "version": "99"})
    with pytest.raises(mg.FileError, match="version 99"):
        program.load(path)
    with pytest.raises(mg.FileError, match="cannot write"):
        program.save(program.init(), tmp_path / "none" / "state")


# -- modules ------------------------------------------------------------------------------------------------


def test_program_holds_the_rules_parameters_alone():
    assert list(make().parameters()) == []
    program = make(Backprop(lr=mg.learnable(0.2)))
    assert list(program.state_dict()) == ["protocol.optimizer.lr"]
    with torch.no_grad():
        program.protocol.optimizer.lr.zero_()
    state, (x, y) = program.init(), data()
    assert (
        distance(program.step(state, x, y)[0], {**state, "program": {**state["program"], "step": torch.tensor(1)}})
        == 0.0
    )


def test_programs_copy_and_rules_pickle():
    program, (x, y) = make(Backprop(lr=mg.learnable(0.2))), data()
    state = program.init()
    twin = copy.deepcopy(program)
    assert distance(twin.step(state, x, y)[0], program.step(state, x, y)[0]) == 0.0
    rule = pickle.loads(pickle.dumps(FeedbackAlignment(lr=0.3)))
    assert distance(make(rule).step(*problem(rule))[0], make(FeedbackAlignment(lr=0.3)).step(*problem(rule))[0]) == 0.0


def problem(rule):
    return make(rule).init(), *data()


def test_repr_names_sizes_and_the_rule():
    text = repr(make())
    assert "Backprop(lr=0.2)" in text
    assert "torch.float64" in text
    assert str(5 * 6 + 6 + 6 * 4 + 4 + 4 * 3 + 3) in text  # numbers of state
    assert "x: input 5" in repr(make().graph.network)
    assert "x->h1 => h1" in repr(make().graph)


def test_graph_as_networkx():
    graph = make().graph.to_networkx()
    assert graph.nodes["x->h1"]["kind"] == "weight"
    assert graph.nodes["x->h1"]["shape"] == "6x5"
    assert set(graph["x->h1"]["h1"]) == {"forward:pre"}
    assert set(graph["h1"]["x->h1"]) == {"backward:post"}
    assert not graph.has_edge("x->h1", "x")  # the input has no backward update, so nothing is sent there


def test_code_and_explain():
    program = make()
    assert program.code.startswith("def forward(")
    assert "torch.addmm" in program.code
    assert "= None" not in program.code
    lines = program.explain(batch_size=16).splitlines()
    forward = next(line for line in lines if "x->h1 => h1" in line and line.startswith("forward"))
    assert "linear" in forward
    assert "16x5 6x5 6 -> 16x6" in forward
    assert f"{2 * 16 * 5 * 6}" in forward
    update = next(line for line in lines if line.startswith("learn") and "x->h1" in line)
    assert "addmm" in update
    assert not any("x->h1 => x " in line for line in lines)
    assert "addcmul" in program.explain(batch_size=1)


def test_the_network_given_keeps_its_weights_out_of_the_program():
    network = mlp([5, 6, 3])
    text = repr(network)
    mg.compile(network, Backprop())
    assert repr(network) == text


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("rule", [Backprop, FeedbackAlignment, Memories])
def test_cuda_equals_cpu(rule, tmp_path):
    network = mlp([5, 6, 3], loss="l2")
    cpu = mg.compile(network, rule(), dtype=torch.float64)
    one = cpu.init(1, batch_size=4)
    x, t = torch.randn(4, 5, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)
    after, _ = cpu.step(one, x, t)
    cuda = mg.compile(network, rule(), device="cuda", dtype=torch.float64)
    two = cuda.init(1, batch_size=4)
    assert all(torch.equal(one[n][c], two[n][c].cpu()) for n in one for c in one[n])
    moved, _ = cuda.step(two, x.cuda(), t.cuda())
    assert distance(after, {n: {c: v.cpu() for c, v in k.items()} for n, k in moved.items()}) < 1e-10
    cuda.save(moved, tmp_path / "state")
    assert distance(mg.compile(network, rule(), dtype=torch.float64).load(tmp_path / "state"), after) < 1e-10
    with pytest.raises(mg.InputError, match="cuda"):
        cuda.step(two, x, t)


def test_networkx_keeps_every_arrow_of_a_pair():
    network = mg.Network()
    network.input("x", 3), network.unit("h", 3, "tanh")
    network.connect("x", "h", "identity"), network.connect("x", "h", "identity")
    network.unit("y", 2), network.connect("h", "y"), network.loss("y", "l2")
    graph = mg.compile(network, Backprop()).graph
    drawn = graph.to_networkx()
    assert drawn.number_of_edges() == len(graph.all_arrows())
    assert {"forward:pre", "forward:pre#1"} <= {key for *_, key in drawn.edges(keys=True)}


@pytest.mark.parametrize("name", mg.list_protocols())
def test_other_parameters_for_one_call(name):
    torch.manual_seed(0)
    program = mg.compile(mlp([5, 4, 3]), mg.make_protocol(name))
    x, y = torch.randn(2, 5), torch.tensor([0, 2])
    state, before = program.init(batch_size=2), dict(program.named_parameters())
    expected, _ = program.step(state, x, y)
    other = {key: parameter.detach() + 0.1 for key, parameter in before.items()}
    torch.func.functional_call(program, other, (state, x, y))
    after = dict(program.named_parameters())
    assert before.keys() == after.keys()
    assert all(before[key] is after[key] for key in before)
    assert distance(program.step(state, x, y)[0], expected) == 0.0


class Sharing(PlainWeight):
    """Writes one value to several channels, its input, a parameter, another channel, and a part of a tensor."""

    one, two, three, before = mg.carry(per="use"), mg.carry(per="use"), mg.carry(per="use"), mg.slow(init=1.0)
    part, number = mg.carry(end="pre"), mg.slow("k")

    def __init__(self):
        super().__init__()
        self.k = 2
        self.own = torch.nn.Parameter(torch.tensor([1.0, 2.0]))

    def learn_update(self, s):
        e = s.e * s.x
        return s.set(one=e, two=e, three=e, before=s.w, part=s.x, number=self.own)


def test_channels_that_are_written_alike_do_not_share_memory():
    program = mg.compile(mlp([5, 4, 3], "identity"), mg.Protocol(weight=Sharing()), dtype=torch.float64)
    x, y = data()
    before = program.init(batch_size=7)
    for record in (None, {"x->h1": ["one", "w", "before", "number"], "y": ["y", "e"]}):
        with torch.no_grad():
            state, out = program.step(before, x, y, record=record)
        assert torch.equal(state["x->h1"]["one"], state["x->h1"]["two"])
        assert torch.equal(state["x->h1"]["before"], before["x->h1"]["w"])
        assert torch.equal(state["x->h1"]["part"], x)
        wanted = copy.deepcopy((before, x, out, dict(program.state_dict())))
        for name, channels in state.items():
            for channel, tensor in channels.items():
                after = {n: {c: t.clone() for c, t in k.items()} for n, k in state.items()}
                kept = tensor is before[name].get(channel)
                with torch.no_grad():
                    tensor.add_(1)
                for n, k in after.items():
                    for c, t in k.items():
                        assert torch.equal(state[n][c], t) == ((n, c) != (name, channel)), (name, channel, n, c)
                if kept:  # left alone by the step: the very tensor that was passed in
                    tensor.copy_(after[name][channel])
        assert distance(before, wanted[0]) == 0.0
        assert torch.equal(x, wanted[1])
        assert torch.equal(out.prediction, wanted[2].prediction)
        assert all(torch.equal(t, wanted[2].recorded[n][c]) for n, k in out.recorded.items() for c, t in k.items())
        assert all(torch.equal(t, wanted[3][n]) for n, t in program.state_dict().items())


def test_noise_is_new_in_every_step():
    program = mg.compile(mlp([4, 3, 2]), mg.make_protocol("node_perturbation"))
    before = program.init()
    after, _ = program.step(before, torch.randn(5, 4), torch.zeros(5, dtype=torch.long))
    one, two = program.noise(before, 5), program.noise(after, 5)
    assert one
    assert all(not torch.equal(one[name], two[name]) for name in one)
