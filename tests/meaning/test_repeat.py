"""Schedules that repeat passes: a loop of the generated code means the passes written out, one after the other."""

import pytest
import torch
from reference import distance

import mpgraph as mg
from mpgraph import Agent, Protocol, carry, fast, slow
from mpgraph.architectures import mlp
from mpgraph.draw.drawing import _graph_diagram
from mpgraph.interpreter import interpreter
from mpgraph.protocols import Backprop
from mpgraph.protocols.backprop import Weight


class Synapse(Agent):
    """Sends the activity of either end to the other one; Hebb's rule at the end of each round."""

    w = slow(init=mg.xavier_uniform)
    x, y = fast(), fast()
    seen = slow()

    def hear_update(self, s, pre, post):
        return s.set(x=pre, y=post, seen=s.seen + s.examples(pre * post))

    def move_message_to_post(self, s):
        return s.w * s.x

    def move_message_to_pre(self, s):
        return s.w * s.y

    def grow_update(self, s):
        return s.set(w=0.9 * s.w + 0.1 * s.x * s.y)

    def learn_update(self, s):
        return s.descend(w=s.examples(s.x * s.y))


class Unit(Agent):
    """A leaky unit with a noisy drive and a memory of examples."""

    v, drive = fast(), fast()
    trace = carry()

    def __init__(self, rule):
        super().__init__()
        self.rate, self.noise = rule.rate, rule.noise

    def begin_update(self, s):
        return s.set(v=0.0)

    def hear_message(self, s):
        return torch.tanh(s.v)

    def move_update(self, s, pre, post=None):
        total = pre if post is None else pre + post
        if self.noise:
            total = total + self.noise * s.normal()
        return s.set(v=s.v + self.rate * (total - s.v), trace=0.5 * s.trace + s.v)

    def readout(self, s):
        return s.v


class Loss(Agent):
    z = fast()

    def hear_update(self, s, pre, target):
        return s.set(z=pre - target)

    def nudge_message(self, s):
        return -s.z


class Settles(Protocol):
    """Units that drive each other in a loop, then once more with the target."""

    rate: mg.Number = mg.option(0.5, "of a round.")
    noise: float = mg.option(0.0, "of the drive.")
    agents = {"weight": Synapse, "unit": Unit, "loss": Loss}  # noqa: RUF012
    passes = ("begin", mg.repeat(("hear", "move"), 4), "hear", "learn")
    predict_passes = ("begin", mg.repeat(("hear", "move"), 4))


def derived(*passes, predict=None):
    rounds = {"passes": passes, "predict_passes": predict or Settles.predict_passes}
    return type("Settles", (Settles,), rounds)


WRITTEN_OUT = ("begin", *("hear", "move") * 4, "hear", "learn")


def chain():
    return mlp([3, 4, 2], loss="l2")


def tangle():
    """Units that drive themselves, each other and those before them."""
    network = mg.Network()
    network.input("x", 3)
    for name in ("a", "b"):
        network.unit(name, 2, "tanh")
    network.unit("y", 2)
    for pre, post in (("x", "a"), ("a", "b"), ("b", "a"), ("b", "b"), ("b", "y"), ("y", "a"), ("a", "y")):
        network.connect(pre, post)
    network.connect("a", "a", "one_to_one")
    network.loss("y", "l2")
    return network


def problem(seed=0, size=3):
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.randn(size, 5, generator=generator, dtype=torch.float64)
    return numbers[:, :3], numbers[:, 3:]


def compiled(network, rule):
    return mg.compile(network, rule, dtype=torch.float64)


@pytest.mark.parametrize("build", [chain, tangle])
@pytest.mark.parametrize(
    ("passes", "noise", "given"),
    [
        (Settles.passes, 0.0, None),
        (Settles.passes, 0.3, None),
        (Settles.passes, 0.3, 2),
        (("begin", mg.repeat(("hear", mg.repeat(("move",), 2, name="inner")), 3), "learn"), 0.2, {"inner": 3}),
        (("begin", mg.repeat(("hear", "move", "grow"), 3), "learn"), 0.0, 1),
        (("begin", mg.repeat(("hear", "move", "learn"), 3)), 0.1, None),
        (("begin", mg.repeat(("hear", "move"), 9, until="v", tolerance=0.4), "learn"), 0.0, None),
    ],
)
def test_compiled_equals_interpreter(build, passes, noise, given):
    program = compiled(build(), derived(*passes, predict=passes[:2])(noise=noise))
    x, y = problem(size=2)
    state = program.init(batch_size=2)
    noises = program.noise(state, 2, repeat=given)
    after, out = program.step(state, x, y, repeat=given)
    meaning, predictions = interpreter.step(program, state, {"x": x}, {"y": y}, noises, repeat=given)
    assert distance(after, meaning) < 1e-12
    assert (out.prediction - predictions["y"]).abs().max() < 1e-12


def test_a_loop_is_its_rounds_written_out():
    x, y = problem()
    loop, plain = compiled(tangle(), Settles()), compiled(tangle(), derived(*WRITTEN_OUT, predict=WRITTEN_OUT[:-2])())
    state = loop.init(batch_size=3)
    one, two = loop.step(state, x, y), plain.step(state, x, y)
    assert distance(one[0], two[0]) < 1e-12
    assert torch.allclose(one[1].prediction, two[1].prediction, atol=1e-12)
    assert torch.allclose(loop.predict(state, x), two[1].prediction, atol=1e-12)


def test_the_code_holds_a_loop_whatever_the_number_of_rounds():
    few, many = (compiled(chain(), derived("begin", mg.repeat(("hear", "move"), n), "learn")()) for n in (20, 300))
    assert few.code.replace("int(20)", "int(300)") == many.code
    assert "for number in range(times):" in many.code
    table = many.explain()
    assert table.count("h1->y => y (pre)") == 1
    assert "300 times" in table
    assert many.cost(3).flops > 14 * few.cost(3).flops


def test_what_no_round_changes_is_computed_once():
    program = compiled(chain(), Settles())
    before, loop = program.code.split("\ndef hear")
    assert "w_x_h1" in before
    assert "x.t()" not in loop
    moves = [line for line in loop.splitlines() if "addmm(" in line and "seen" not in line]
    assert len(moves) == 2  # h1 -> y and back; x -> h1 is outside


@pytest.mark.parametrize("recompute", [False, True])
def test_gradients_go_through_rounds(recompute):
    x, y = problem()
    found = []
    for passes in (Settles.passes, WRITTEN_OUT):
        if recompute and passes is Settles.passes:
            passes = ("begin", mg.repeat(("hear", "move"), 4, recompute=True), "hear", "learn")
        rule = derived(*passes, predict=passes[:2] if len(passes) < 6 else passes[:-2])(rate=mg.learnable(0.4))
        program = compiled(tangle(), rule)
        state = program.init(batch_size=3)
        leaves = [t.requires_grad_() for n, k in state.items() for c, t in k.items() if c == "w"]
        after, out = program.step(state, x, y)
        after, out = program.step(after, x, y)
        found.append(torch.autograd.grad(out.loss, [*rule.parameters(), *leaves]))
    assert all(torch.allclose(a, b, atol=1e-10) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("until", [{}, {"until": "v", "tolerance": 0.05}])
def test_loops_under_vmap(until):
    program = compiled(tangle(), derived("begin", mg.repeat(("hear", "move"), 12, **until), "learn")(noise=0.01))
    x, y = problem()
    states = [program.init(seed, batch_size=3) for seed in range(3)]
    noise = program.noise(states[0], 3, repeat=9)
    alone = [program.step(s, x, y, noise=noise, repeat=9)[0] for s in states]
    mapped, _ = torch.func.vmap(lambda s: program.step(s, x, y, noise=noise, repeat=9))(mg.stack(states))
    for i, state in enumerate(alone):
        assert distance(state, {n: {c: t[i] for c, t in k.items()} for n, k in mapped.items()}) < 1e-12


def test_rounds_end_when_nothing_changes():
    x, y = problem()
    program = compiled(
        chain(), derived("begin", mg.repeat(("hear", "move"), 1000, until="v", tolerance=1e-9), "learn")()
    )
    program.protocol.check_schedules()
    state = program.init(batch_size=3)
    _, out = program.step(state, x, y)
    exact = compiled(chain(), derived("begin", mg.repeat(("hear", "move"), 400), "learn")()).step(state, x, y)[1]
    assert 0 < (out.prediction - exact.prediction).abs().max() < 1e-7


class Together(Synapse):
    def move_update(self, s, pre, post):
        return s.set(x=pre, y=post)


class First(Unit):
    sends_first = ("move",)

    def move_message(self, s):
        return torch.tanh(s.v)


def test_who_sends_first_needs_no_pass_of_its_own():
    """All send and receive in one pass: the same as sending in one pass and receiving in the next."""
    first = type("First", (derived("begin", mg.repeat(("move",), 4), predict=("begin", mg.repeat(("move",), 4))),), {})
    one = compiled(tangle(), first(weight=Together(), unit=First(first())))
    two = compiled(tangle(), derived("begin", mg.repeat(("hear", "move"), 4))())
    x, y = problem()
    state = one.init(batch_size=3)
    after, out = one.step(state, x, y)
    assert torch.allclose(out.prediction, two.step(state, x, y)[1].prediction, atol=1e-12)
    meaning, _ = interpreter.step(one, state, {"x": x}, {"y": y})
    assert distance(after, meaning) < 1e-12


def test_a_prediction_is_that_of_its_moment():
    """A step reports what predict says, though the target moves the output afterwards; ``predicts`` names a pass."""
    nudged = type("Nudged", (Unit,), {"same_as": {"nudge": "move"}})
    synapse = type("Both", (Synapse,), {"same_as": {"nudge": "move"}})
    passes = (*Settles.passes[:2], mg.repeat(("hear", "nudge"), 3), "hear", "learn")
    agents = {"unit": nudged, "weight": synapse}
    usual = type("Usual", (Settles,), {"passes": passes, "agents": agents})
    late = type("Late", (Settles,), {"passes": passes, "agents": agents, "predicts": "nudge"})
    x, y = problem()
    program = compiled(chain(), usual())
    state = program.init(batch_size=3)
    _, out = program.step(state, x, y)
    assert torch.equal(out.prediction, program.predict(state, x))
    assert torch.allclose(out.loss, (0.5 * (out.prediction - y) ** 2).sum(1).mean())
    assert compiled(chain(), late()).step(state, x, y)[1].loss < 0.9 * out.loss


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: mg.repeat("hear", 3), r"mg.repeat: passes='hear' .*write \('hear',\)"),
        (lambda: mg.repeat((), 3), "mg.repeat: .*at least one pass"),
        (lambda: mg.repeat(("hear",), 0), "mg.repeat: times=0 must be an integer of at least 1"),
        (lambda: mg.repeat(("hear",), 3, until="v"), "until= .* and tolerance= .* belong together"),
        (
            lambda: compiled(chain(), derived("begin", mg.repeat(("hear", "move"), 3, until="u", tolerance=0.1))()),
            "unknown channel 'u'",
        ),
        (
            lambda: compiled(chain(), derived("begin", mg.repeat(("hear", "mov"), 3), predict=("begin",))()),
            "no agent has a mov_update",
        ),
        (lambda: compiled(chain(), derived("hear", "move", "begin")()), "lacks .*'begin', repeat.*, which predicts"),
    ],
)
def test_mistakes(make, text):
    with pytest.raises(mg.ProtocolError, match=text):
        make()


@pytest.mark.parametrize(
    ("rule", "given", "text"),
    [
        (Settles, {"move": 3}, "repeat: unknown repetition 'move'.*hear"),
        (Settles, {"hear": 0}, "repeat: hear=0 must be an integer of at least 1"),
        (
            derived("begin", mg.repeat(("hear",), 2), mg.repeat(("move",), 2), predict=("begin",)),
            3,
            "give a number for each",
        ),
        (derived(*WRITTEN_OUT, predict=WRITTEN_OUT[:-2]), 3, "the rule repeats nothing"),
    ],
)
def test_other_numbers_of_rounds_are_checked(rule, given, text):
    program = compiled(chain(), rule())
    with pytest.raises(mg.InputError, match=text):
        program.step(program.init(batch_size=3), *problem(), repeat=given)


class Knot(Protocol):
    passes = ("forward", "backward")

    class Output(mg.UnitAgent):
        def backward_message(self, s):
            return s.e

    class Loss(mg.LossAgent):
        def backward_update(self, s, pre):
            return s.set(e=pre)


def test_a_cycle_names_the_pass_and_the_cure():
    x = mg.Network()
    x.input("x", 2), x.unit("h", 2, "tanh"), x.unit("y", 2)
    x.connect("x", "h"), x.connect("h", "h"), x.connect("h", "y"), x.loss("y", "l2")
    with pytest.raises(mg.NetworkError, match=r"pass 'forward': cycle .*h -> h->h -> h.*later pass.*delay=1"):
        mg.compile(x, Backprop())
    with pytest.raises(
        mg.ProtocolError, match=r"pass 'backward': cycle .*: (y -> loss -> y|loss -> y -> loss)"
    ) as error:
        mg.compile(chain(), Knot(weight=Weight(), output=Knot.Output(), loss=Knot.Loss(), unit=mg.UnitAgent()))
    assert "later pass" in str(error.value)
    assert "sends_first = ('backward',)" in str(error.value)
    assert "delay" not in str(error.value)


def test_pictures_of_cycles_and_rounds(tmp_path):
    program = compiled(tangle(), Settles())
    assert "move (4 times)" in _graph_diagram(program.graph, program.protocol.all_passes).strokes
    for picture in (program.graph, tangle()):
        picture.draw(str(tmp_path / "picture.svg"))
        assert (tmp_path / "picture.svg").stat().st_size > 1000
