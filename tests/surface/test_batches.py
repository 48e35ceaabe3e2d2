"""What is passed to a program: advice that works when it is followed, and refusals of everything else."""

import re

import numpy as np
import pytest
import torch
from refusals import refuses

import mpgraph as mg
from mpgraph.architectures import mlp
from mpgraph.protocols import Backprop, Hebb
from mpgraph.protocols.backprop import Weight

X, Y = torch.randn(6, 4), torch.tensor([0, 1, 2, 0, 1, 2])


@pytest.fixture
def program():
    return mg.compile(mlp([4, 5, 3]), Backprop())


def reader(shape, ticks=1):
    """A network that reads inputs of a shape."""
    network = mg.Network(ticks=ticks)
    network.input("x", shape), network.unit("y", 2), network.connect("x", "y")
    if ticks > 1:
        network.connect("y", "y", delay=1)
    network.loss("y", "l2")
    return network


# -- advice -------------------------------------------------------------------------------------------------

IMAGE, GREY = (3, 4, 5), (1, 4, 5)


@pytest.mark.parametrize(
    ("wanted", "got", "same"),  # and, where one can say it, what the advice must amount to
    [
        ((20,), (7, 4, 5), lambda x: x.reshape(7, 20)),
        ((20,), (7, 1, 4, 5), lambda x: x.reshape(7, 20)),
        ((20,), (20,), lambda x: x.reshape(1, 20)),
        ((20,), (4, 5), lambda x: x.reshape(1, 20)),
        ((1,), (7,), lambda x: x.reshape(7, 1)),
        (IMAGE, (7, 60), lambda x: x.reshape(7, 3, 4, 5)),
        (IMAGE, (60,), lambda x: x.reshape(1, 3, 4, 5)),
        (IMAGE, (7, 4, 5, 3), lambda x: torch.einsum("bhwc->bchw", x)),
        (IMAGE, (4, 5, 3), lambda x: torch.einsum("hwc->chw", x)[None]),
        (IMAGE, IMAGE, lambda x: x[None]),
        ((4, 4, 4), (4, 4, 4), lambda x: x[None]),
        (GREY, (7, 4, 5), lambda x: x.reshape(7, 1, 4, 5)),
        (GREY, (4, 5), lambda x: x.reshape(1, 1, 4, 5)),
        (GREY, (7, 4, 5, 1), lambda x: x.reshape(7, 1, 4, 5)),
        (GREY, (7, 20), lambda x: x.reshape(7, 1, 4, 5)),
        ((6, 4), (7, 24), lambda x: x.reshape(7, 6, 4)),
        ((6, 4), (6, 4), lambda x: x[None]),
        ((2, 3), (7, 3, 2), lambda x: torch.einsum("bij->bji", x)),
        ((2, 3), (3, 2), lambda x: torch.einsum("ij->ji", x)[None]),
        ((1, 6, 8), (7, 1, 8, 6), lambda x: torch.einsum("bcwh->bchw", x)),
        ((2, 3, 4), (7, 4, 2, 3), lambda x: torch.einsum("bkij->bijk", x)),
        ((6, 4), (7, 2, 3, 4), lambda x: x.reshape(7, 6, 4)),
    ],
)
@pytest.mark.parametrize("call", ["step", "predict"])
def test_advice_on_shapes_works_when_followed(wanted, got, same, call):
    program = mg.compile(reader(wanted), Backprop())
    follow(program, torch.randn(got), same, call)


def follow(program, x, same, call="step"):
    """Do what the error says, and what is then passed is as wanted."""
    state = program.init()

    def run(x):
        return program.predict(state, x) if call == "predict" else program.step(state, x, torch.zeros(len(x), 2))

    with pytest.raises(mg.InputError) as caught:
        run(x)
    advised = re.search(r"use (x.*?)(?: to show.*|: [a-z].*)?$", str(caught.value))
    assert advised, str(caught.value)
    followed = eval(advised.group(1), {"x": x})
    run(followed)
    assert torch.equal(followed, same(x))


@pytest.mark.parametrize(
    ("got", "same"),
    [
        ((7, 4), lambda x: torch.stack([x, x, x], 1)),
        ((3, 7, 4), lambda x: torch.einsum("tbi->bti", x)),
        ((3, 4), lambda x: x[None]),
        ((7, 12), lambda x: x.reshape(7, 3, 4)),
    ],
)
def test_advice_on_ticks_works_when_followed(got, same):
    follow(mg.compile(reader(4, ticks=3), Backprop()), torch.randn(got), same)


@pytest.mark.parametrize(
    ("wanted", "got"),
    [
        ((20,), (7, 21)),
        (IMAGE, (7, 3, 5, 5)),
        ((20,), ()),
        (IMAGE, (7, 0)),
        ((8, 3), (7, 4, 6)),
        ((2, 2, 3), (7, 3, 2, 2)),
    ],
)
def test_no_advice_where_nothing_fits(wanted, got):
    program = mg.compile(reader(wanted), Backprop())
    with pytest.raises(mg.InputError, match=r"expected shape \(batch, .*, got \([0-9, ]*\)$"):
        program.predict(program.init(), torch.randn(got))


def test_advice_names_one_of_several_inputs():
    network = reader(4)
    network.input("image", IMAGE), network.connect("image", "y")
    program = mg.compile(network, Backprop())
    x = {"x": torch.randn(7, 4), "image": torch.randn(7, 4, 5, 3)}
    with refuses(mg.InputError, "input 'image'", "use x['image'].permute(0, 3, 1, 2)"):
        program.predict(program.init(), x)


@pytest.mark.parametrize(
    ("y", "advice"),
    [
        (torch.tensor([[0], [1], [2], [0], [1], [2]]), "y.flatten()"),
        (torch.zeros(6, 3, 1), "y.flatten(1)"),
        (torch.zeros(6, 3).to_sparse(), "y.to_dense()"),
        (Y.numpy(), "torch.as_tensor(y)"),
    ],
)
def test_advice_on_targets(program, y, advice):
    with refuses(mg.InputError, "'y'", advice):
        program.step(program.init(), X, y)
    with_l2 = mg.compile(mlp([4, 3], loss="l2"), Backprop())
    with_l2.step(with_l2.init(), X, eval(advice, {"y": y, "torch": torch}))


# -- kinds of tensors ---------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")
@pytest.mark.parametrize("call", ["step", "predict"])
def test_what_is_no_dense_tensor(program, call):
    def run(x, state=None):
        state = state or program.init()
        return program.predict(state, x) if call == "predict" else program.step(state, x, Y)

    with refuses(mg.InputError, "input 'x'", "torch.sparse_coo", "x.to_dense()"):
        run(X.to_sparse())
    with refuses(mg.InputError, "input 'x'", "torch.sparse_csr", "x.to_dense()"):
        run(X.to_sparse_csr())
    with refuses(mg.InputError, "input 'x'", "numpy.ndarray", "torch.as_tensor(x)"):
        run(X.numpy())
    state = program.init()
    for odd, word in ((state["x->h1"]["w"].numpy(), "numpy.ndarray"), ([1.0], "list"), (None, "None")):
        with refuses(mg.StateError, "state['x->h1']['w']", word, "torch.as_tensor"):
            run(X, {**state, "x->h1": {"w": odd}})
    with refuses(mg.StateError, "got a tuple", "state, out = program.step"):
        run(X, program.step(state, X, Y))
    with refuses(mg.StateError, "program.init", "list"):
        run(X, [state])
    with refuses(mg.StateError, "'seed'", "'program'"):
        run(X, {**state, "program": {"step": torch.tensor(0)}})


@pytest.mark.parametrize(
    ("record", "words"),
    [
        (["h1"], ["expected a dictionary", "['h1']"]),
        ("h1", ["expected a dictionary"]),
        ({"h1": "e"}, ["record['h1']", "list of channels", "['e']"]),
        ({"h1": None}, ["record['h1']", "list of channels", "None"]),
        ({"h1": [3]}, ["record['h1']", "names of channels", "3"]),
    ],
)
def test_records_that_are_no_lists_of_channels(program, record, words):
    with refuses(mg.InputError, *words):
        program.step(program.init(), X, Y, record=record)


def test_a_new_record_under_compile_says_what_to_do(program):
    torch.compiler.reset()
    step = torch.compile(program.step, backend="eager", fullgraph=True)
    with pytest.raises(Exception, match="once eagerly first"):
        step(program.init(), X, Y, record={"h1": ["e"]})
    wanted = program.step(program.init(), X, Y, record={"h1": ["e"]})[1].recorded["h1"]["e"]
    torch.testing.assert_close(step(program.init(), X, Y, record={"h1": ["e"]})[1].recorded["h1"]["e"], wanted)


def test_numpy_scalars_are_numbers(program):
    state = program.init(seed=np.int64(3), batch_size=np.int32(2))
    assert torch.equal(state["x->h1"]["w"], program.init(3)["x->h1"]["w"])
    assert program.explain(np.int64(8)) == program.explain(8)
    assert program.noise(state, np.int64(2)) == {}
    for call in (
        lambda: program.explain(0),
        lambda: program.noise(state, 2.5),
        lambda: program.init(0, batch_size="2"),
    ):
        with pytest.raises(mg.ProtocolError, match=r"batch_size=.* must be an integer of at least 1"):
            call()
    with refuses(mg.InputError, "checks", "labels"):
        mg.compile(mlp([4, 3]), Backprop(), checks=["labels"])
    with refuses(mg.InputError, "torch.float64"):
        mg.compile(mlp([4, 3]), Backprop(), dtype=np.float64)


# -- batches of run -----------------------------------------------------------------------------------------


def test_batches_that_run_takes(program):
    state = program.init()
    wanted, losses = program.run(state, [(X, Y)])
    for batch in ([X, Y], (X, {"y": Y}), ({"x": X}, Y)):
        after, found = program.run(state, iter([batch]))
        assert found == losses
        assert all(torch.equal(after[n][c], t) for n, k in wanted.items() for c, t in k.items())
    quiet = mg.compile(mlp([4, 3], loss=None), type("Rule", (mg.Protocol,), {"passes": ("forward",)})(weight=Weight()))
    for batch in (X, (X,), (X, None), {"x": X}):
        after, found = quiet.run(quiet.init(), [batch])
        assert int(after["program"]["step"]) == 1
        assert found == []


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        ((X, Y, 3), ["batch 1", "tuple of 3", "(x, y)", "for x, y, *_ in batches"]),
        ((), ["batch 1", "tuple of 0"]),
        ({"x": X, "y": Y}, ["batch 1", "dictionary", "'x', 'y'", "(batch['x'], batch['y'])"]),
        ({"image": X, "label": Y}, ["batch 1", "(batch['image'], batch['label'])"]),
        ("ab", ["batch 1", "str", "(x, y)"]),
        (None, ["batch 1", "None", "(x, y)"]),
        (3, ["batch 1", "int"]),
        (X.numpy(), ["batch 1", "numpy.ndarray"]),
        (X, ["batch 1", "tensor by itself", "[(x, y)]"]),
        ((X,), ["batch 1", "y is missing"]),
        ((X[:, :2], Y), ["batch 1", "input 'x'", "(6, 2)"]),
        ((X, Y + 3), ["batch 1", "labels must lie in 0..2"]),
    ],
)
def test_batches_that_run_refuses(program, batch, words):
    with refuses(mg.InputError, *words):
        program.run(program.init(), [(X, Y), batch])


@pytest.mark.parametrize("batches", [X, "abc", {"x": X}, None, 3])
def test_run_takes_batches_one_after_the_other(program, batches):
    with refuses(mg.InputError, "program.run takes batches", "[(x, y)]"):
        program.run(program.init(), batches)


# -- batch normalization ------------------------------------------------------------------------------------


def normalized(shape):
    network = mg.Network()
    network.input("x", shape), network.unit("h", shape, mg.BatchNorm()), network.unit("y", 2)
    network.connect("x", "h", "one_to_one"), network.connect("h", "y"), network.loss("y", "l2")
    return mg.compile(network, Backprop())


@pytest.mark.parametrize("name", mg.list_protocols())
@pytest.mark.filterwarnings("ignore::mpgraph.FlatUnitWarning")
def test_one_value_is_refused_only_where_the_code_normalizes_it(name):
    """VS-ML leaves normalization out, so it learns from single examples all the same."""
    network = mg.Network()
    network.input("x", 3), network.unit("h", 4, mg.BatchNorm()), network.unit("y", 2)
    network.connect("x", "h"), network.connect("h", "y"), network.loss("y", "cross_entropy")
    program = mg.compile(network, mg.make_protocol(name))
    state, x, t = program.init(batch_size=1), torch.ones(1, 3), torch.zeros(1, dtype=torch.long)
    if "native_batch_norm" in program.code:
        with refuses(mg.InputError, "'h'", "a batch of one example"):
            program.step(state, x, t)
    else:
        _, out = program.step(state, x, t)
        assert name == "vsml"
        assert torch.isfinite(out.prediction).all()


@pytest.mark.parametrize("shape", [(4,), (4, 1), (4, 1, 1)])
def test_one_value_cannot_be_normalized(shape):
    program = normalized(shape)
    state, x, y = program.init(), torch.randn(1, *shape), torch.zeros(1, 2)
    words = "'h'", "one value for each channel", "larger batches", "fix the statistics"
    with refuses(mg.InputError, *words):
        program.step(state, x, y)
    with refuses(mg.InputError, *words):
        torch.func.vmap(lambda x: program.step(state, x, y))(x[None])
    torch.compiler.reset()
    with pytest.raises(Exception, match="one value for each channel"):
        torch.compile(program.step, backend="eager", fullgraph=True)(state, x, y)
    with refuses(mg.InputError, "batch 0", *words):
        program.run(state, [(x, y)])
    assert program.predict(state, x).shape == (1, 2)
    program.step(state, torch.randn(2, *shape), torch.zeros(2, 2))


def test_an_image_of_several_pixels_can():
    program = normalized((4, 1, 2))
    program.step(program.init(), torch.randn(1, 4, 1, 2), torch.zeros(1, 2))


def test_run_leaves_out_a_rest_of_one_example():
    program = normalized((4,))
    x, y = torch.randn(7, 4), torch.randn(7, 2)
    batches = [(a, b) for _ in range(2) for a, b in zip(x.split(3), y.split(3), strict=True)]
    state, losses = program.run(program.init(), batches)
    wanted, kept = program.run(program.init(), [b for b in batches if len(b[0]) == 3])
    assert losses == kept
    assert len(losses) == 4
    assert all(torch.equal(state[n][c], t) for n, k in wanted.items() for c, t in k.items())
    plain = mg.compile(mlp([4, 2], loss="l2"), Backprop())
    assert len(plain.run(plain.init(), batches)[1]) == 6


# -- labels -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [10, 600])
def test_labels_of_many_classes_are_one_hot_rows(classes):
    program = mg.compile(mlp([4, classes], loss="l2"), Backprop(), dtype=torch.float64)
    x, y = X.double(), torch.tensor([0, 3, classes - 1, 5, 3, 9])
    state = program.init()
    rows = torch.nn.functional.one_hot(y, classes).double()
    wanted = program.step(state, x, rows)[0]
    for labels in (y, y.to(torch.int32)):
        found = program.step(state, x, labels)[0]
        assert all(torch.equal(found[n][c], t) for n, k in wanted.items() for c, t in k.items())
    mapped = torch.func.vmap(lambda y: program.step(state, x, y)[0]["x->y"]["w"])(torch.stack([y, y]))
    torch.testing.assert_close(mapped[1], wanted["x->y"]["w"])
    torch.compiler.reset()
    compiled = torch.compile(program.step, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(state, x, y)[0]["x->y"]["w"], wanted["x->y"]["w"])
    for bad in (classes, -1):
        wrong = torch.where(y == 9, bad, y) if bad > 0 else torch.where(y == 0, bad, y)
        with refuses(mg.InputError, "'y'", f"0..{classes - 1}", f"{int(wrong.min())}..{int(wrong.max())}"):
            program.step(state, x, wrong)


def test_outputs_take_no_memory_of_the_square_of_their_number():
    network = mg.Network()
    network.input("x", 20000), network.unit("y", 20000), network.connect("x", "y", "one_to_one")
    network.loss("y", "l2")
    program = mg.compile(network, Backprop())
    held = [t for t in vars(program._batches).values() if isinstance(t, torch.Tensor)]
    tables = list(program._batches._tables.values())
    assert sum(t.numel() for t in [*held, *tables]) <= 20000
    _, out = program.step(program.init(), torch.zeros(2, 20000), torch.tensor([1, 19999]))
    torch.testing.assert_close(out.prediction, torch.zeros(2, 20000))


# -- rules --------------------------------------------------------------------------------------------------


def test_a_derivative_without_the_functions_value_names_the_node():
    class Unit(mg.UnitAgent):
        def backward_update(self, s, post):
            return s.set(e=s.vjp(post, s.z))

    class Old(mg.UnitAgent):
        def backward_update(self, s, post):
            return s.set(e=s.pull(post, s.z))

    for unit in (Unit(), Old()):
        with refuses(mg.ProtocolError, "'h1'", "s.vjp", "out=s.y"):
            mg.compile(mlp([4, 5, 3]), mg.Protocol(weight=Weight(), unit=unit, output=mg.UnitAgent()))


@pytest.mark.parametrize("batch", [(X, Y, 3), {"images": X, "labels": Y}])
def test_advice_of_run_without_a_loss_works_when_followed(batch):
    program = mg.compile(mlp([4, 3], loss=None), Hebb())
    with pytest.raises(mg.InputError) as caught:
        program.run(program.init(), [batch])
    advised = re.search(r"Pass (\(.*\))$", str(caught.value)).group(1)
    program.run(program.init(), eval(advised, {"batches": [batch]}))


def test_a_batch_without_anything_gets_no_advice(program):
    with pytest.raises(mg.InputError, match=r"keys none; expected \(x, y\)$"):
        program.run(program.init(), [{}])
