"""Segments: wide functions of one agent, in slices and computed again in the backward pass. Oracle: the same inline."""

import pytest
import torch
from reference import distance, randomised
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import mpgraph as mg
from mpgraph.architectures import mlp
from mpgraph.budget import Saved
from mpgraph.interpreter import interpreter
from mpgraph.lowering import segment
from mpgraph.protocols import Backprop
from mpgraph.protocols.backprop import Weight


class Wide(nn.Module):
    """A vector and two numbers to a number and a vector, through 16 hidden ones."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.first = nn.Parameter(torch.randn(4, 16, generator=generator))
        self.last = nn.Parameter(torch.randn(16, 3, generator=generator))

    def forward(self, memory, w, x):
        y = torch.tanh(torch.cat([memory, torch.stack([w, x])]) @ self.first) @ self.last
        return 0.1 * y[0], torch.tanh(y[1:])


class Learner(Weight):
    memory = mg.carry(2)

    def __init__(self, sliced):
        super().__init__()
        self.wide, self.sliced = Wide(), sliced

    def learn_update(self, s):
        given = s.memory, s.w, s.e * s.x
        change, memory = s.segment(self.wide, *given) if self.sliced else self.wide(*given)
        return s.set(memory=memory, w=s.w + change)


class Rule(Backprop):
    def __init__(self, sliced=True):
        super().__init__(weight=Learner(sliced))


@pytest.fixture(params=[1, 700, 1 << 20], ids=["rows of one", "slices", "whole"])
def budget(request, monkeypatch):
    monkeypatch.setitem(segment.BUDGET, "cpu", request.param)


def drawn(program, steps=3):
    generator = torch.Generator().manual_seed(1)
    state = randomised(program.init(batch_size=5), generator)
    x = torch.randn(steps, 5, 3, generator=generator, dtype=torch.float64)
    return state, x, torch.randint(0, 2, (steps, 5), generator=generator)


def episode(program, state, x, y):
    for batch in zip(x, y, strict=True):
        state, out = program.step(state, *batch)
    return state, out.loss


def test_values_and_meta_gradients_are_those_of_the_inline_function(budget):
    found = []
    for sliced in (True, False):
        program = mg.compile(mlp([3, 4, 2]), Rule(sliced), dtype=torch.float64)
        state, loss = episode(program, *drawn(program))
        found.append((state, torch.autograd.grad(loss, list(program.parameters()))))
    assert distance(found[0][0], found[1][0]) < 1e-12
    for one, two in zip(found[0][1], found[1][1], strict=True):
        assert bool(two.any())
        torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-14)


def test_the_interpreter_runs_the_function_itself(budget):
    program = mg.compile(mlp([3, 4, 2]), Rule(), dtype=torch.float64)
    state = randomised(program.init(batch_size=2), torch.Generator().manual_seed(0))
    x, y = torch.randn(2, 3, dtype=torch.float64), torch.tensor([0, 1])
    after, _ = program.step(state, x, y)
    meaning, _ = interpreter.step(program, state, {"x": x}, {"y": torch.eye(2, dtype=torch.float64)[y]})
    assert distance(after, meaning) < 1e-12


def test_transforms_and_second_derivatives(budget):
    programs = [mg.compile(mlp([3, 4, 2]), Rule(sliced), dtype=torch.float64) for sliced in (True, False)]
    parameters = dict(programs[0].named_parameters())

    batches = drawn(programs[0])

    def loss(program, given):
        return torch.func.functional_call(_Episode(program, batches), {f"program.{n}": p for n, p in given.items()}, ())

    population = {n: torch.stack([p, 0.5 * p, -p]).detach() for n, p in parameters.items()}
    mapped = [torch.func.vmap(torch.func.grad(lambda g, p=p: loss(p, g)))(population) for p in programs]
    for name in parameters:
        torch.testing.assert_close(mapped[0][name], mapped[1][name], rtol=1e-11, atol=1e-13)
    second = []
    for program in programs:
        given = list(program.parameters())
        first = torch.autograd.grad(episode(program, *drawn(program, 2))[1], given, create_graph=True)
        second.append(torch.autograd.grad(sum(g.square().sum() for g in first), given))
    for one, two in zip(*second, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-10, atol=1e-12)


class _Episode(nn.Module):
    def __init__(self, program, batches):
        super().__init__()
        self.program, self.batches = program, batches

    def forward(self):
        return episode(self.program, *self.batches)[1]


def test_without_a_budget_autograd_keeps_what_goes_in_and_out_alone():
    kept = {}
    for sliced in (True, False):
        program = mg.compile(mlp([3, 40, 2]), Rule(sliced), dtype=torch.float64, memory=0)
        numbers = {}
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t, numbers=numbers: numbers.setdefault(t.data_ptr(), t) if t.numel() else t, lambda t: t
        ):
            episode(program, *drawn(program, 1))
        kept[sliced] = sum(t.numel() for t in numbers.values())
    assert kept[True] < 0.6 * kept[False], kept


def test_it_is_written_down_once_and_explained():
    program = mg.compile(mlp([3, 4, 2]), Rule(), dtype=torch.float64)
    assert "x__h1_Wide(" in program.code
    assert "\ndef x__h1_Wide(value_0" in program.code
    assert (
        program.code.count("torch.tanh(") == 1 + 2 * 4
    )  # the unit's; of each learner (weights and biases of 2 layers) two
    assert "in slices" in program.explain(5)


def test_it_uses_what_it_is_given_alone():
    class Greedy(Learner):
        def learn_update(self, s):
            return s.set(w=s.segment(lambda x: x * s.w, s.x))

    with pytest.raises(mg.ProtocolError, match="was not given"):
        mg.compile(mlp([3, 4, 2]), Backprop(weight=Greedy(True)))


def test_several_segments_of_an_agent_flat_ones_too(double):
    class Several(Learner):
        def learn_update(self, s):
            change, memory = s.segment(self.wide, s.memory, s.w, s.e * s.x)
            again, _ = s.segment(self.wide, memory, s.w, s.x)
            step = s.segment(lambda w, x: torch.where(w > x, 1.0, -1.0), s.w, s.x)
            return s.set(memory=memory, w=s.w + change + again + 0.1 * step)

    program = mg.compile(mlp([3, 4, 2]), Backprop(weight=Several(True)), dtype=torch.float64)
    assert program.code.count("\ndef x__h1_Wide") == 2
    state, x, y = drawn(program, 2)
    state["x->h1"]["w"].requires_grad_()
    program_loss = episode(program, state, x, y)[1]
    assert bool(torch.autograd.grad(program_loss, state["x->h1"]["w"])[0].any())
    targets = torch.eye(2, dtype=torch.float64)[y[0]]
    meaning, _ = interpreter.step(program, state, {"x": x[0]}, {"y": targets})
    assert distance(program.step(state, x[0], y[0])[0], meaning) < 1e-12


def test_whole_programs_compile_with_torch():
    program = mg.compile(mlp([3, 4, 2]), Rule(), dtype=torch.float64)
    state = program.init(batch_size=2)
    x, y = torch.randn(2, 3, dtype=torch.float64), torch.tensor([0, 1])
    compiled = torch.compile(program.step, fullgraph=True, backend="eager")
    assert distance(compiled(state, x, y)[0], program.step(state, x, y)[0]) < 1e-12


# -- what is kept, and what is computed again ------------------------------------------------------------------------


class Tanhs(TorchDispatchMode):
    """Counts calls of tanh, of which every learner makes two and nothing else in a backward pass makes any."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten.tanh.default
        return func(*args, **(kwargs or {}))


def learned(memory, steps=3, **options):
    """Meta-gradients of an episode, and how many tanh its backward pass computes."""
    program = mg.compile(mlp([3, 4, 2]), Rule(), dtype=torch.float64, memory=memory)
    loss = episode(program, *drawn(program, steps))[1]
    held = program.memory.held
    with Tanhs() as again:
        gradients = torch.autograd.grad(loss, list(program.parameters()), **options)
    return gradients, again.count, held, program, loss


def test_kept_and_computed_again_are_equal_to_the_bit(budget):
    nothing, count, held, *_ = learned(0)
    assert count
    assert not held
    everything, count, held, *_ = learned("1 GiB")
    assert not count
    some, fewer, part, *_ = learned(held // 2)
    assert 0 < part <= held // 2
    assert 0 < fewer < learned(0)[1]
    for one, two, three in zip(nothing, everything, some, strict=True):
        assert torch.equal(one, two)
        assert torch.equal(one, three)


def test_a_graph_that_is_used_twice_gives_the_same_twice():
    first, count, _, program, loss = learned("1 GiB", retain_graph=True)
    assert not count
    assert program.memory.held == 0
    again = torch.autograd.grad(loss, list(program.parameters()))
    assert all(torch.equal(one, two) for one, two in zip(first, again, strict=True))


def test_the_account_is_of_what_autograd_keeps():
    kept = {}
    for memory in (0, "1 GiB"):
        program = mg.compile(mlp([30, 40, 2]), Rule(), dtype=torch.float64, memory=memory)
        generator = torch.Generator().manual_seed(0)
        x, y = torch.randn(5, 30, generator=generator, dtype=torch.float64), torch.zeros(5, dtype=torch.long)
        state, loss = program.init(batch_size=5), 0.0
        with Saved() as saved:
            for _ in range(3):
                state, out = program.step(state, x, y)
                loss = loss + out.loss
        kept[memory] = saved.bytes, program.memory.held
    assert kept[0][1] == 0
    held, more = kept["1 GiB"][1], kept["1 GiB"][0] - kept[0][0]
    assert abs(more - held) < 0.02 * held, (more, held)
    del state, loss, out
    assert program.memory.held == 0  # nobody asked for the gradient


def test_without_a_gradient_nothing_is_prepared_for_one(monkeypatch):
    program = mg.compile(mlp([3, 4, 2]), Rule(), dtype=torch.float64)
    state, x, y = drawn(program)
    wanted = episode(program, state, x, y)[0]
    monkeypatch.setattr(segment._Sliced, "apply", None)
    found, _ = program.run(state, zip(x, y, strict=True))
    assert distance(found, wanted) == 0.0


@pytest.mark.parametrize("memory", [0, "1 GiB"], ids=["again", "kept"])
@pytest.mark.parametrize("own", [False, True], ids=["one rule", "rules of their own"])
def test_many_networks_side_by_side_are_each_by_itself(memory, own, budget):
    program = mg.compile(mlp([3, 4, 2]), Rule(), dtype=torch.float64, memory=memory)
    generator = torch.Generator().manual_seed(2)
    states = mg.stack([randomised(program.init(batch_size=5), generator) for _ in range(3)])
    x = torch.randn(3, 2, 5, 3, generator=generator, dtype=torch.float64)
    y = torch.randint(0, 2, (3, 2, 5), generator=generator)
    scales = 1.0 + torch.arange(3, dtype=torch.float64) * own
    theta = {
        name: (scales.reshape(3, *[1] * p.ndim) * p.detach()).requires_grad_()
        for name, p in program.protocol.named_parameters()
    }

    def one(state, x, y, theta):
        for batch in zip(x, y, strict=True):
            state, out = program.step(state, *batch, parameters=theta)
        return out.loss

    if own:
        together = torch.func.vmap(one)(states, x, y, theta)
    else:
        theta = {name: p.detach()[0].requires_grad_() for name, p in theta.items()}
        together = torch.func.vmap(one, in_dims=(0, 0, 0, None))(states, x, y, theta)
    assert (program.memory.held > 0) == bool(memory)
    rows = [{n: {c: t[i] for c, t in cs.items()} for n, cs in states.items()} for i in range(3)]
    apart = torch.stack(
        [one(rows[i], x[i], y[i], {n: p[i] for n, p in theta.items()} if own else theta) for i in range(3)]
    )
    torch.testing.assert_close(together, apart, rtol=1e-12, atol=1e-14)
    found, wanted = (torch.autograd.grad(losses.sum(), list(theta.values())) for losses in (together, apart))
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-14)


def test_what_is_kept_is_explained():
    program = mg.compile(mlp([3, 4, 2]), Rule(), dtype=torch.float64, memory="64 KiB")
    generator = torch.Generator().manual_seed(0)
    state = randomised(program.init(batch_size=5), generator)
    x, y = torch.randn(5, 3, generator=generator, dtype=torch.float64), torch.zeros(5, dtype=torch.long)
    _, out = program.step(state, x, y)
    assert out.loss is not None
    steps = int((64 << 10) / program.memory.held)
    assert steps > 1
    assert f"the budget of 64 KiB holds {steps} steps" in program.explain(5).splitlines()[-1]
