"""Inner optimizers: torch.optim is the oracle, the interpreter the meaning; state only where it is needed."""

import pytest
import torch
from graphs import batch, convolution, recurrence, tied
from reference import distance, randomised
from torch.nn import functional as F

import mpgraph as mg
from mpgraph import common, slow
from mpgraph.architectures import mlp
from mpgraph.interpreter import interpreter
from mpgraph.protocols import Backprop, FeedbackAlignment
from mpgraph.protocols.backprop import Weight
from mpgraph.protocols.feedback_alignment import FeedbackWeight


def layered(w, x):
    return F.linear(torch.tanh(F.linear(x, w["x->h1"], w["h1.bias"])), w["h1->y"], w["y.bias"])


def unrolled(w, x):
    h = [torch.zeros(len(x), 3, dtype=x.dtype)] * 2  # of two and of one tick ago
    for t in range(3):
        z = F.linear(x[:, t], w["x->h"], w["h.bias"])
        late = w["h->h#1"] * h[-2] if t > 1 else 0.0
        h.append(torch.tanh(z + (F.linear(h[-1], w["h->h"]) if t else 0.0) + late))
    return F.linear(h[-1], w["h->y"], w["y.bias"])


def convolved(w, x):
    h = torch.tanh(F.conv2d(x, w["x->h"], w["h.bias"]))
    return F.linear(h.flatten(1), w["flat->y"], w["y.bias"])


NETWORKS = {
    "mlp": (lambda: mlp([3, 4, 2]), layered),
    "recurrent": (recurrence, unrolled),
    "conv": (convolution, convolved),
}
OPTIMIZERS = {
    "plain": (mg.SGD(0.1), lambda p: torch.optim.SGD(p, 0.1)),
    "momentum": (mg.SGD(0.1, momentum=0.9), lambda p: torch.optim.SGD(p, 0.1, momentum=0.9)),
    "nesterov": (
        mg.SGD(0.1, momentum=0.8, nesterov=True, weight_decay=0.03),
        lambda p: torch.optim.SGD(p, 0.1, momentum=0.8, nesterov=True, weight_decay=0.03),
    ),
    "decay": (mg.SGD(0.1, weight_decay=0.2), lambda p: torch.optim.SGD(p, 0.1, weight_decay=0.2)),
    "adam": (mg.Adam(0.01), lambda p: torch.optim.Adam(p, 0.01)),
    "adam, all": (
        mg.Adam(0.02, betas=(0.7, 0.95), eps=1e-3, weight_decay=0.1),
        lambda p: torch.optim.Adam(p, 0.02, betas=(0.7, 0.95), eps=1e-3, weight_decay=0.1),
    ),
    "adamw": (
        mg.Adam(0.02, weight_decay=0.3, decoupled=True),
        lambda p: torch.optim.AdamW(p, 0.02, weight_decay=0.3),
    ),
}
KEPT = {
    "plain": set(), "momentum": {"momentum"}, "nesterov": {"momentum"}, "decay": set(),
    "adam": {"mean", "square", "mean_of_one", "square_of_one"},
}  # fmt: skip


def chain(sizes, fixed=None):
    """As ``mlp``, with one connection that is never trained."""
    network = mg.Network()
    network.input("x", sizes[0])
    names = ["x", *(f"h{i}" for i in range(1, len(sizes) - 1)), "y"]
    for below, name, size in zip(names, names[1:], sizes[1:], strict=False):
        network.unit(name, size, "identity" if name == "y" else "tanh")
        network.connect(below, name, trained=f"{below}->{name}" != fixed)
    network.loss("y", "cross_entropy")
    return network


@pytest.mark.parametrize("named", OPTIMIZERS)
@pytest.mark.parametrize("network", NETWORKS)
def test_backprop_with_it_is_torch_optim(named, network):
    build, function = NETWORKS[network]
    own, make = OPTIMIZERS[named]
    program = mg.compile(build(), Backprop(optimizer=own), dtype=torch.float64)
    state = program.init(seed=1)
    weights = {n: c["w"].clone().requires_grad_() for n, c in state.items() if "w" in c}
    optimizer = make(weights.values())
    for step in range(5):
        x, y = batch(program.graph.network, 4, seed=step)
        optimizer.zero_grad()
        F.cross_entropy(function(weights, x["x"]), y).backward()
        optimizer.step()
        state, _ = program.step(state, x, y)
    for name, weight in weights.items():
        torch.testing.assert_close(state[name]["w"], weight.detach(), rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("named", "build"),
    [
        ("nesterov", recurrence),
        ("adam, all", recurrence),
        ("decay", tied),
        ("adamw", tied),
        ("adam", convolution),
    ],
)
def test_means_what_the_interpreter_does(named, build):
    network = build()
    program = mg.compile(network, Backprop(optimizer=OPTIMIZERS[named][0]), dtype=torch.float64)
    x, y = batch(network, 2)
    state, _ = program.step(program.init(seed=2), x, y)
    one, _ = program.step(state, x, y)
    two, _ = interpreter.step(program, state, x, {"y": torch.eye(2, dtype=torch.float64)[y]})
    assert distance(one, two) < 1e-12


@pytest.mark.parametrize("name", KEPT)
def test_state_is_where_it_is_needed_and_nowhere_else(name):
    network = chain([3, 4, 4, 2], fixed="h1->h2")
    program = mg.compile(network, FeedbackAlignment(optimizer=OPTIMIZERS[name][0]))
    state = program.init()
    added = {f"w_{kept}" for kept in KEPT[name]}
    assert set(state["x->h1"]) == {"w", "b"} | added
    assert set(state["h1.bias"]) == {"w"} | added
    assert set(state["h1->h2"]) == {"w", "b"}  # not trained
    assert set(state) == {n for n, node in program.graph.nodes.items() if node.type in ("weight", "bias")} | {"program"}
    for channel in added:
        shape = () if channel.endswith("of_one") else (4, 3)
        assert state["x->h1"][channel].shape == shape
        assert not state["x->h1"][channel].any()


def test_plain_code_has_no_trace_of_optimisers():
    code = mg.compile(mlp([3, 4, 2]), Backprop()).code
    assert code.count("addmm") == 2  # w - lr/n e'x: one call for each weight
    assert "momentum" not in code
    nesterov = mg.compile(mlp([3, 4, 2]), Backprop(optimizer=mg.SGD(0.1, 0.9, nesterov=True))).code
    assert nesterov.count("mm(") == 1 + 2  # one error, and one product for each weight although it is used twice


@pytest.mark.parametrize("name", ["nesterov", "adam"])
def test_saved_and_loaded_it_goes_on_to_the_bit(name, tmp_path):
    program = mg.compile(mlp([3, 4, 2]), Backprop(optimizer=OPTIMIZERS[name][0]))
    x, y = torch.randn(5, 3), torch.randint(0, 2, (5,))
    state, _ = program.run(program.init(), [(x, y)] * 2)
    program.save(state, tmp_path / "state")
    one, _ = program.step(state, x, y)
    two, _ = program.step(program.load(tmp_path / "state"), x, y)
    assert distance(one, two) == 0.0
    with pytest.raises(mg.FileError, match="another network or rule"):
        mg.compile(mlp([3, 4, 2]), Backprop()).load(tmp_path / "state")


@pytest.mark.parametrize("name", ["nesterov", "adam"])
def test_maps_over_states_of_different_ages(name):
    program = mg.compile(mlp([3, 4, 2]), Backprop(optimizer=OPTIMIZERS[name][0]), dtype=torch.float64)
    x, y = torch.randn(5, 3, dtype=torch.float64), torch.randint(0, 2, (5,))
    states = [program.run(program.init(seed), [(x, y)] * seed)[0] for seed in range(3)]
    stack = mg.stack(states)
    mapped, _ = torch.func.vmap(lambda s: program.step(s, x, y))(stack)
    for i, state in enumerate(states):
        alone, _ = program.step(state, x, y)
        assert distance(alone, {n: {c: t[i] for c, t in k.items()} for n, k in mapped.items()}) < 1e-12


def test_compiles_without_a_break():
    program = mg.compile(mlp([3, 4, 2]), Backprop(optimizer=mg.Adam()))
    state, x, y = program.init(), torch.randn(5, 3), torch.randint(0, 2, (5,))
    compiled = torch.compile(program.step, fullgraph=True, backend="aot_eager")
    assert distance(compiled(state, x, y)[0], program.step(state, x, y)[0]) < 1e-6


def test_hyper_parameters_are_meta_learned(double):
    rates = {"lr": 0.02, "beta1": 0.8, "beta2": 0.9, "eps": 1e-3, "weight_decay": 0.1}
    own = {n: mg.learnable(v) for n, v in rates.items() if not n.startswith("beta")}
    rule = Backprop(optimizer=mg.Adam(betas=(mg.learnable(0.8), mg.learnable(0.9)), **own))
    program = mg.compile(mlp([3, 4, 2]), rule)
    start, x, y = program.init(), torch.randn(5, 3), torch.randint(0, 2, (5,))

    def loss(parameters):
        state = start
        for _ in range(3):
            state, out = program.step(state, x, y, parameters=parameters)
        return out.loss

    given = {f"optimizer.{n}": torch.tensor(v) for n, v in rates.items()}
    slopes = torch.func.grad(loss)(given)
    for name, value in given.items():
        up, down = ({**given, name: value + change} for change in (1e-6, -1e-6))
        torch.testing.assert_close(slopes[name], (loss(up) - loss(down)) / 2e-6, rtol=1e-4, atol=1e-8)
        assert slopes[name] != 0.0


def test_differentiates_where_a_synapse_never_heard_anything(double):
    program = mg.compile(mlp([3, 4, 2]), Backprop(optimizer=mg.Adam(mg.learnable(0.1))))
    x, y = torch.randn(5, 3), torch.randint(0, 2, (5,))
    x[:, 1] = 0.0
    state = program.init()
    for _ in range(3):
        state, out = program.step(state, x, y)
    out.loss.backward()
    assert torch.isfinite(program.protocol.optimizer.lr.grad)


def test_each_node_counts_its_own_steps(double):
    """A node that rests for a phase goes on as if the phase had not been."""
    whole = mg.compile(chain([3, 4, 2]), Backprop(optimizer=mg.Adam(0.1)))
    part = mg.compile(chain([3, 4, 2], fixed="x->h1"), Backprop(optimizer=mg.Adam(0.1)))
    x, y = torch.randn(5, 3), torch.randint(0, 2, (5,))
    state, _ = whole.step(whole.init(), x, y)
    rested = {n: {c: t for c, t in k.items() if n != "x->h1" or c == "w"} for n, k in state.items()}
    after, _ = part.step(rested, x, y)
    later, _ = whole.step({**after, "x->h1": state["x->h1"]}, x, y)
    assert torch.equal(after["x->h1"]["w"], state["x->h1"]["w"])
    torch.testing.assert_close(later["x->h1"]["w_mean_of_one"], torch.tensor(1 - 0.9**2))
    torch.testing.assert_close(later["h1->y"]["w_mean_of_one"], torch.tensor(1 - 0.9**3))


class TwoNumbers(FeedbackWeight):
    """Both kinds of synapse learn, each through an optimizer of its own; ``v`` holds two numbers."""

    b, v = slow(init=mg.xavier_uniform), slow(2, init=0.5)

    def learn_update(self, s):
        s = s.descend(w=s.examples(s.e * s.x), b=s.examples(s.e * s.x))
        return s.descend(v=torch.stack([s.e, s.x]))


def test_an_optimiser_for_each_channel_of_any_size(double):
    rule = Backprop(weight=TwoNumbers(), bias=mg.Agent(), optimizer=mg.SGD(0.1))
    rule.optimizers = torch.nn.ModuleDict({"b": mg.SGD(0.1, momentum=0.5), "v": mg.Adam(0.1)})
    network = mg.Network()
    network.input("x", 3), network.unit("h", 2, "tanh", bias=False), network.unit("y", 2, bias=False)
    network.connect("x", "h"), network.connect("h", "y"), network.loss("y", "cross_entropy")
    program = mg.compile(network, rule)
    state = randomised(program.init(), torch.Generator().manual_seed(0))
    state["x->h"]["v_square"], state["h->y"]["v_square"] = torch.ones(2, 3, 2), torch.ones(2, 2, 2)
    for node in ("x->h", "h->y"):
        state[node] |= {"v_mean_of_one": torch.tensor(0.3), "v_square_of_one": torch.tensor(0.4)}
    shapes = {c: tuple(t.shape) for c, t in state["x->h"].items()}
    assert shapes == {
        "w": (2, 3), "b": (2, 3), "v": (2, 3, 2), "b_momentum": (2, 3), "v_mean": (2, 3, 2), "v_square": (2, 3, 2),
        "v_mean_of_one": (), "v_square_of_one": (),
    }  # fmt: skip
    x, y = torch.randn(3, 3), torch.tensor([0, 1, 1])
    one, _ = program.step(state, x, y)
    two, _ = interpreter.step(program, state, {"x": x}, {"y": torch.eye(2)[y]})
    assert distance(one, two) < 1e-12
    gradient = (state["x->h"]["w"] - one["x->h"]["w"]) / 0.1
    torch.testing.assert_close(one["x->h"]["b_momentum"], 0.5 * state["x->h"]["b_momentum"] + gradient)


@pytest.mark.filterwarnings("ignore::mpgraph.FlatUnitWarning")
def test_tied_weights_of_which_one_use_hears_nothing():
    """A use behind a unit without derivative still counts: its share of the gradient is zero."""
    network = mg.Network()
    network.input("x", 3), network.unit("h", 3, "step"), network.unit("y", 3)
    wire = network.connect("x", "h")
    network.connect("h", "y", tied=wire), network.loss("y", "l2")
    program = mg.compile(network, Backprop(lr=0.1), dtype=torch.float64)
    state = randomised(program.init(), torch.Generator().manual_seed(0))
    x, t = torch.randn(4, 3, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)
    w, hidden, bias = (state[n]["w"] for n in ("x->h", "h.bias", "y.bias"))
    h = (x @ w.T + hidden > 0).double()
    gradient = (h @ w.T + bias - t).T @ h / 4
    after, _ = program.step(state, x, t)
    torch.testing.assert_close(after["x->h"]["w"], w - 0.1 * gradient)


@pytest.mark.filterwarnings("ignore::mpgraph.FlatUnitWarning")
def test_decay_goes_on_where_no_signal_comes(double):
    network = mlp([3, 4, 2], activation="step")
    program = mg.compile(network, Backprop(optimizer=mg.SGD(0.1, weight_decay=0.5)))
    state, x, y = program.init(), torch.randn(3, 3), torch.tensor([0, 1, 1])
    one, _ = program.step(state, x, y)
    two, _ = interpreter.step(program, state, {"x": x}, {"y": torch.eye(2)[y]})
    assert distance(one, two) < 1e-12
    torch.testing.assert_close(one["x->h1"]["w"], 0.95 * state["x->h1"]["w"])


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: mg.SGD(nesterov=True), "needs a momentum"),
        (lambda: mg.SGD(momentum=1.0), "momentum=1.0 must be a finite number of at least 0 and below 1"),
        (lambda: mg.SGD(weight_decay=-0.1), "weight_decay=-0.1 must be a finite number of at least 0"),
        (lambda: mg.Adam(betas=(0.9, 1.5)), "beta2=1.5"),
        (lambda: mg.Adam(eps=-1e-8), "eps=-1e-08"),
    ],
)
def test_impossible_numbers(make, words):
    with pytest.raises(mg.ProtocolError, match=words):
        make()


def test_names_of_rules_tell_their_optimiser():
    assert Backprop(lr=0.2).name == "Backprop(lr=0.2)"
    assert Backprop(optimizer=mg.SGD(0.2, 0.9, True)).name == "Backprop(lr=0.2, momentum=0.9, nesterov=True)"
    assert Backprop(optimizer=mg.Adam(0.2, betas=(0.9, 0.9))).name == "Backprop(optimizer=Adam(lr=0.2, beta2=0.9))"


def test_a_channel_of_the_agents_own_is_not_overwritten():
    class Named(FeedbackWeight):
        w_momentum = common()

    with pytest.raises(mg.ProtocolError, match=r"'w_momentum'.*rename"):
        mg.compile(mlp([2, 2]), Backprop(weight=Named(), optimizer=mg.SGD(0.1, momentum=0.9)))


def test_an_optimiser_of_an_unknown_channel_is_refused():
    rule = mg.Protocol(weight=Weight(), optimizers={"v": mg.SGD()})
    with pytest.raises(mg.ProtocolError, match=r"Protocol\.optimizers: unknown channel 'v'.*, w"):
        mg.compile(mlp([2, 2]), rule)
