"""What an agent keeps for each of its uses, what it holds between passes, means over windows, sums written in turn."""

import pytest
import torch
from graphs import GRAPHS, batch
from reference import distance, randomised
from sheet import Sheet

import mpgraph as mg
from mpgraph import Protocol, carry, fast
from mpgraph.data.datasets import Dataset
from mpgraph.experiments import accuracy, train
from mpgraph.interpreter import interpreter
from mpgraph.network.axes import Axis
from mpgraph.protocols.backprop import Weight as PlainWeight

pytestmark = pytest.mark.filterwarnings("ignore::mpgraph.FlatUnitWarning")


class Delayed(PlainWeight):
    """Sends back today what it heard from above yesterday."""

    held = carry(end="post", per="use")
    empty = carry("nothing")
    start = carry(2, init="count")
    nothing = 0

    def count(self, shape, node, generator, dtype):
        return torch.arange(2, dtype=dtype).expand(shape).clone()

    def forward_message(self, s):
        return s.w * s.x + 0.1 * s.held

    def learn_update(self, s):
        return s.set(held=s.e)


class Yesterday(Protocol):
    def __init__(self, weight=Delayed):
        super().__init__(weight=weight())


@pytest.mark.parametrize("name", ["convolution", "strided, padded", "grouped", "sparse", "recurrence", "tied", "late"])
def test_a_memory_of_each_use_means_what_the_interpreter_does(name):
    network = GRAPHS[name]()
    program = mg.compile(network, Yesterday(), dtype=torch.float64)
    state = randomised(program.init(batch_size=2), torch.Generator().manual_seed(0))
    x, y = batch(network, 2)
    for _ in range(2):
        after, _ = program.step(state, x, y)
        meaning, _ = interpreter.step(program, state, x, {"y": torch.eye(2, dtype=torch.float64)[y]})
        assert distance(after, meaning) < 1e-10
        state = after


def test_each_use_holds_what_its_own_unit_said():
    network = GRAPHS["convolution"]()
    program = mg.compile(network, Yesterday(), dtype=torch.float64)
    x, y = batch(network, 2)
    state, out = program.step(program.init(batch_size=2), x, y, record={"h": ["e"]})
    assert torch.equal(state["x->h"]["held"], out.recorded["h"]["e"])  # one number for each position
    network = GRAPHS["recurrence"]()
    program = mg.compile(network, Yesterday(), dtype=torch.float64)
    x, y = batch(network, 2)
    record = {"h": ["e"], "h@0": ["e"], "h@1": ["e"]}
    state, out = program.step(program.init(batch_size=2), x, y, record=record)
    for tick in ("@0", "@1", ""):
        assert torch.equal(state[f"x->h{tick}"]["held"], out.recorded[f"h{tick}"]["e"])
    assert set(state["x->h@0"]) == {"held"}  # all else belongs to the connection


def test_channels_of_size_zero_are_left_out_and_initialisers_may_be_methods():
    program = mg.compile(GRAPHS["tied"](), Yesterday())
    state = program.init(batch_size=3)
    assert "empty" not in state["x->h"]
    assert torch.equal(state["x->h"]["start"][1, 0, 0], torch.tensor([0.0, 1.0]))


class WindowMean(mg.UnitAgent):
    aggregate = {"post": "window_mean"}  # noqa: RUF012


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("groups", [1, 2])
def test_window_mean_divides_by_the_whole_kernel(stride, groups):
    network = mg.Network()
    network.input("x", (4, 5, 6)), network.unit("c", (4, 5, 6), "identity")
    meeting = mg.Conv2d(3, stride=stride, padding=1, groups=groups)
    network.unit("h", meeting.size((4, 5, 6), 2), "identity")
    network.connect("x", "c", "one_to_one"), network.connect("c", "h", meeting), network.loss("h", "l2")

    class Means(Protocol):
        def __init__(self):
            super().__init__(weight=PlainWeight(), unit=WindowMean(), output=mg.UnitAgent())

    program = mg.compile(network, Means(), dtype=torch.float64)
    state = program.init()
    x = torch.randn(2, 4, 5, 6, dtype=torch.float64)
    y = torch.randn(2, *network.shape("h"), dtype=torch.float64)
    after, out = program.step(state, x, y, record={"c": ["e"], "h": ["e"]})
    error, w = out.recorded["h"]["e"], state["c->h"]["w"]
    options = {"stride": stride, "padding": 1, "groups": groups}
    total = torch.nn.grad.conv2d_input((2, 4, 5, 6), w, error, **options)
    assert (out.recorded["c"]["e"] - total / (9 * 2 / groups)).abs().max() < 1e-12
    meaning, _ = interpreter.step(program, state, {"x": x}, {"h": y})
    assert distance(after, meaning) < 1e-10


def test_window_mean_is_the_mean_where_there_are_no_windows():
    for name in ("sparse", "recurrence", "pieces"):
        network = GRAPHS[name]()
        results = []
        for how in ("mean", "window_mean"):
            unit = type("Unit", (mg.UnitAgent,), {"aggregate": {"post": how, "pre": how}})
            rule = type("Rule", (Protocol,), {})(weight=PlainWeight(), unit=unit())
            program = mg.compile(network, rule, dtype=torch.float64)
            x, y = batch(network, 2)
            results.append(program.step(program.init(), x, y)[0])
        assert distance(*results) < 1e-14


class Settling(mg.UnitAgent):
    """Adds what it heard the last time it was asked."""

    last = fast()

    def forward_update(self, s, pre):
        return s.set(z=pre, y=pre + 1.0, last=pre)

    def again_update(self, s):
        return s.set(y=s.y + s.last)


def test_predictions_follow_a_schedule_of_their_own():
    class Settle(Protocol):
        passes = ("forward", "again", "backward", "learn")
        predict_passes = ("forward", "again")

    network = mg.Network()
    network.input("x", 3), network.unit("y", 2), network.connect("x", "y"), network.loss("y", "l2")
    program = mg.compile(network, Settle(weight=PlainWeight(), unit=Settling()), dtype=torch.float64)
    state, x = program.init(), torch.randn(4, 3, dtype=torch.float64)
    z = x @ state["x->y"]["w"].T + state["y.bias"]["w"]
    assert torch.allclose(program.predict(state, x), 2 * z + 1)
    assert torch.equal(
        program.predict(state, x), program.step(state, x, torch.zeros(4, 2, dtype=z.dtype))[1].prediction
    )


def test_sums_pass_over_the_widest_tensor_once_for_each_term_that_is_as_wide():
    sheet = Sheet()
    terms = [sheet.leaf(names) for names in (("batch", "i", "j"), ("i",), ("batch",), ("batch", "i"), ())]
    value = sum((lazy for lazy, _ in terms), 0.5)
    array, module = sheet.evaluate(value)
    assert (array - sum(full for _, full in terms) - 0.5).abs().max() < 1e-14
    wide = [n for n in module.graph.nodes if n.target is torch.add and len(n.meta["work"][1]) == 3]
    assert len(wide) == 1  # everything narrow is added up first
    product = terms[0][0] * sheet.leaf(("batch", "i", "j"))[0] + terms[0][0]
    assert "addcmul" in sheet.evaluate(product)[1].code


def test_sums_that_hold_the_same_narrow_terms_share_them():
    sheet = Sheet()
    one, two, row, column = (sheet.leaf(n) for n in (("batch", "i", "j"), ("batch", "i", "j"), ("i",), ("batch", "j")))
    narrow = row[0] + column[0]
    value = torch.tanh(one[0] + narrow) * torch.tanh(two[0] + narrow)
    array, module = sheet.evaluate(value)
    wanted = torch.tanh(one[1] + row[1] + column[1]) * torch.tanh(two[1] + row[1] + column[1])
    assert (array - wanted).abs().max() < 1e-14
    wide = [n for n in module.graph.nodes if n.target is torch.add and len(n.meta["work"][1]) == 3]
    assert len(wide) == 3


def test_a_product_with_many_rows_is_added_in_the_same_call():
    sheet = Sheet()
    (one, wide), (two, other) = (sheet.leaf(("batch", "i", "j"), 9) for _ in range(2))
    matrix = torch.randn(9, 9, dtype=torch.float64)
    array, module = sheet.evaluate(one + 0.5 * (two @ matrix))
    assert (array - wide - 0.5 * other @ matrix).abs().max() < 1e-14
    assert "addmm" in module.code
    assert "torch.add(" not in module.code


def test_few_channels_that_a_matrix_mixes_come_first_in_memory():
    sheet = Sheet()
    (one, wide), (two, other) = (sheet.leaf(("batch", "i", "j"), 3) for _ in range(2))
    matrix = torch.randn(3, 3, dtype=torch.float64)
    array, _ = sheet.evaluate(one + 0.5 * (two @ matrix))
    assert (array - wide - 0.5 * other @ matrix).abs().max() < 1e-14
    mixed, _ = sheet.evaluate(two @ matrix)
    assert (mixed - other @ matrix).abs().max() < 1e-14
    assert mixed.stride(-1) == mixed.numel() // 3  # so that products over agents need no copy
    assert mixed.movedim(-1, 0).is_contiguous()


def test_a_mean_of_equal_numbers_is_that_number():
    sheet = Sheet()
    leaf, full = sheet.leaf(("batch",))
    array, _ = sheet.evaluate(leaf.total([Axis_49], "sum") / 49)
    assert torch.equal(array, full)


Axis_49 = Axis("many", 49)  # 49 * (1 / 49) is not 1


def test_a_schedule_of_predictions_names_passes_that_there_are():
    class Misspelt(Protocol):
        predict_passes = ("forward", "bakward")

    with pytest.raises(mg.ProtocolError, match=r"predict_passes: unknown pass 'bakward'"):
        mg.compile(GRAPHS["step"](), Misspelt(weight=PlainWeight()))


def test_training_a_rule_that_remembers_examples_keeps_batches_whole():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(20, 3, generator=generator), torch.randint(0, 2, (20,), generator=generator)
    data = Dataset("toy", x[:11], y[:11], x[11:], y[11:], 2)
    program = mg.compile(GRAPHS["step"](), Yesterday())
    state, curve, losses = train(program, data, epochs=2, batch=4)
    assert int(state["program"]["step"]) == 4  # two batches of four an epoch, the third would hold three
    assert program.slots(state) == 4
    assert len(curve) == len(losses) == 2
    wanted = [program.predict(state, torch.cat([part, x[11:14]])[:4]) for part in x[11:].split(4)]
    hits = torch.cat(wanted)[:9].argmax(-1) == y[11:]
    assert accuracy(program, state, x[11:], y[11:]) == pytest.approx(float(hits.float().mean()))
    plain = mg.compile(GRAPHS["step"](), Protocol(weight=PlainWeight()))
    state, _, _ = train(plain, data, epochs=1, batch=4)
    assert int(state["program"]["step"]) == 3
    assert plain.slots(state) is None


class Leaky(mg.UnitAgent):
    """Half of what it was for the last example in its slot, and what it receives."""

    level = carry(init=0.25)

    def forward_update(self, s, pre):
        return s.set(z=pre, level=(y := 0.5 * s.level + pre), y=y)


class Learner(mg.UnitAgent):
    level = carry(init=0.25, learned=True)
    forward_update = Leaky.forward_update


def leaky(unit):
    network = mg.Network()
    network.input("x", 3), network.unit("y", 2, "identity", bias=False), network.connect("x", "y")
    network.loss("y", "l2")
    return mg.compile(network, Protocol(weight=PlainWeight(), unit=unit), dtype=torch.float64)


def test_predictions_start_from_fresh_memories():
    program = leaky(Leaky())
    x, t = torch.randn(4, 3, dtype=torch.float64), torch.zeros(4, 2, dtype=torch.float64)
    state, _ = program.step(program.init(batch_size=4), x, t)
    z = x @ state["y"]["level"].new_tensor(state["x->y"]["w"].tolist()).T
    fresh = program.predict(state, x)
    torch.testing.assert_close(fresh, 0.125 + z)
    torch.testing.assert_close(program.predict(state, x[:3]), fresh[:3])  # at any size
    torch.testing.assert_close(program.predict(state, x.flip(0)), fresh.flip(0))  # whatever slot
    torch.testing.assert_close(program.predict(state, x, memories="state"), 0.5 * state["y"]["level"] + z)
    with pytest.raises(mg.StateError, match=r"each of 4 examples, but the batch has 3"):
        program.predict(state, x[:3], memories="state")
    with pytest.raises(mg.InputError, match="unknown memories 'stale': allowed are fresh, state"):
        program.predict(state, x, memories="stale")
    states = mg.stack([state, program.init(1, batch_size=4)])
    many = torch.func.vmap(program.predict, (0, None))(states, x)
    torch.testing.assert_close(many[0], fresh)
    torch.compiler.reset()
    compiled = torch.compile(program.predict, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(state, x), fresh)


def test_predictions_start_from_what_was_learned_in_memories():
    program = leaky(Learner())
    x, t = torch.randn(4, 3, dtype=torch.float64), torch.zeros(4, 2, dtype=torch.float64)
    state, _ = program.step(program.init(batch_size=4), x, t)
    wanted = 0.5 * state["y"]["level"] + x @ state["x->y"]["w"].T
    torch.testing.assert_close(program.predict(state, x), wanted)
    torch.testing.assert_close(program.predict(state, x, memories="state"), wanted)
    with pytest.raises(mg.StateError, match=r"each of 4 examples, but the batch has 3"):
        program.predict(state, x[:3])


class Target(mg.UnitAgent):
    def again_update(self, s, post):
        return s.set(y=s.y + post)


class Nudge(mg.LossAgent):
    def again_message(self, s):
        return s.e + s.t


def test_predictions_that_need_a_target_name_pass_and_loss():
    class Nudged(Protocol):
        passes = ("forward", "backward", "learn")
        predict_passes = ("forward", "backward")

    class Again(Protocol):
        passes = ("forward", "backward", "again")
        predict_passes = ("forward", "again")

    words = r"predict_passes=.*in pass '{0}', 'y' receives .* from 'loss', which needs the target.*Leave '{0}' out"
    with pytest.raises(mg.ProtocolError, match=words.format("backward")):
        mg.compile(GRAPHS["step"](), Nudged(weight=PlainWeight()))
    network = mg.Network()
    network.input("x", 3), network.unit("y", 2), network.connect("x", "y"), network.loss("y", "l2")
    with pytest.raises(mg.ProtocolError, match=words.format("again")):
        mg.compile(network, Again(weight=PlainWeight(), unit=Target(), loss=Nudge()))


class Brief(PlainWeight):
    """A synapse that remembers, within a step, all that it has heard at earlier ticks."""

    total = carry(init=0.5, life="step")

    def forward_update(self, s, pre):
        return s.set(x=pre, total=s.total + pre)


def test_a_memory_may_live_for_one_step():
    network = mg.Network(ticks=3)
    network.input("x", 2), network.unit("y", 1, bias=False), network.connect("x", "y", "dense")
    network.connect("y", "y", delay=1), network.loss("y", "l2")
    program = mg.compile(network, Protocol(weight=Brief()), dtype=torch.float64)
    state, y = program.init(batch_size=2), torch.zeros(2, 1, dtype=torch.float64)
    for seed in range(2):
        x = torch.randn(2, 3, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        meaning, _ = interpreter.step(program, state, {"x": x}, {"y": y})
        state, _ = program.step(state, x, y)
        torch.testing.assert_close(state["x->y"]["total"], 0.5 + x.sum(1)[:, None, :])
        assert distance(state, meaning) < 1e-12
    with pytest.raises(mg.ProtocolError, match="unknown life 'tick': allowed are state, step"):
        carry(life="tick")
    with pytest.raises(mg.ProtocolError, match="what was learned would be lost"):
        carry(learned=True, life="step")
