"""Everything a rule may use - channels of each extent, totals, roles, noise, functions - means the same compiled."""

import pytest
import torch
from reference import batch, distance, randomised
from rules import Echo, Memories, TwoStates
from torch import nn

import mpgraph as mg
from mpgraph import Agent, fast, slow
from mpgraph.architectures import mlp
from mpgraph.interpreter import interpreter
from mpgraph.protocols import Backprop


def skip_network(loss="l2"):
    network = mg.Network()
    network.input("x", 3)
    network.unit("h", 2, "tanh"), network.unit("y", 2)
    (
        network.connect("x", "h"),
        network.connect("h", "y"),
        network.connect("x", "y"),
        network.connect("h", "y", "one_to_one"),
    )
    if loss:
        network.loss("y", loss)
    return network


def agree(program, steps=3, size=3):
    """Compiled and interpreted states after some steps from random ones."""
    generator = torch.Generator().manual_seed(5)
    network = program.graph.network
    one = two = randomised(program.init(batch_size=size), generator)
    for _ in range(steps):
        x, targets = batch(network, size, generator)
        noise = program.noise(one, size)
        one, out = program.step(one, x["x"], targets if network.losses else None, noise=noise)
        two, predictions = interpreter.step(program, two, x, targets, noise)
        size_of_numbers = max(1.0, *(float(t.detach().abs().max()) for c in two.values() for t in c.values()))
        assert distance(one, two) < 1e-12 * size_of_numbers
        torch.testing.assert_close(out.prediction, predictions["y"], rtol=1e-10, atol=1e-10)
    return one


@pytest.mark.parametrize("k", [2, 3])
def test_several_states_a_unit(double, k):
    network = skip_network(None).copy()
    program = mg.compile(network, TwoStates(k))
    state = agree(program)
    assert state["x->h"]["w"].shape == (2, 3, k)
    assert "materialised" not in "".join(row for row in program.explain().splitlines() if row.startswith("learn"))


def test_carries_common_channels_means_and_totals(double):
    program = mg.compile(skip_network(), Memories())
    state = agree(program)
    assert state["x->h"]["m"].shape == (3, 2, 3, 2)  # batch, post, pre, k
    assert state["x->h"]["g"].shape == (3, 2)
    assert state["x->h"]["mean"].shape == ()


def test_each_noise_and_own_passes(double):
    program = mg.compile(skip_network(), Echo())
    state = agree(program)
    again = program.noise(state, 3)
    assert all(torch.equal(a, b) for a, b in zip(again.values(), program.noise(state, 3).values(), strict=True))
    assert {t.shape for t in again.values()} == {
        (3, 2, 2),
        (3, 2),
    }  # for h->y and h->y#1; inputs do not reply


def test_noise_follows_seed_and_step(double):
    program = mg.compile(skip_network(), Echo())
    x, t = torch.ones(2, 3), torch.zeros(2, 2)
    state = program.init(seed=1)
    one, _ = program.step(state, x, t)
    two, _ = program.step(state, x, t)
    assert distance(one, two) == 0.0
    later = {**state, "program": {**state["program"], "step": torch.tensor(1)}}
    assert distance(program.step(later, x, t)[0], two) > 0.0


class Rule(Backprop):
    """Backprop whose hidden units apply a function of the test's choosing."""

    def __init__(self, function, **arguments):
        class Unit(mg.UnitAgent):
            def forward_update(self, s, pre):
                return s.set(z=pre, y=function(s, pre))

        super().__init__(unit=Unit(), **arguments)


@pytest.mark.parametrize(
    "function",
    [
        lambda s, z: torch.exp(-z) / (1.0 + torch.exp(-z)),
        lambda s, z: z**2 - z**3 + 2 ** (0.1 * z),
        lambda s, z: torch.where(z > 0.1, z, 0.1 * z) + (z <= 0.3) * 2.0,
        lambda s, z: torch.maximum(z, 0.5 * z).clamp(-1.0, 1.0),
        lambda s, z: torch.special.expit(z) + z.abs().sqrt(),
        lambda s, z: torch.softmax(torch.stack([z, 2 * z, z * z]), -1)[1],
        lambda s, z: torch.stack([z, z * z]) @ torch.tensor([[1.0, 2.0], [3.0, 4.0]])[0],
        lambda s, z: torch.cat([torch.stack([z, -z]), torch.stack([z * z])]).sum() + torch.stack([z, -z]).amax(),
        lambda s, z: nn.functional.layer_norm(torch.stack([z, -z, z * z]), (3,))[0],
        lambda s, z: z / s.population(torch.exp(z)) + s.examples(z) - 1 / (2 + z * z),
        lambda s, z: (z - s.all(z, "max")) * s.population(z, "min") - torch.sub(1, z, alpha=2) - torch.rsub(z, 3.0),
        lambda s, z: s.population(1.0) * z + s.examples(2.0, "sum") - s.all(z * 0.0 + 1.0, "sum"),
    ],
)
def test_functions_of_local_values(double, function):
    program = mg.compile(mlp([3, 4, 2], loss="l2"), Rule(function))
    agree(program, steps=1)


def test_mixed_axes_fall_back_and_explain_says_so(double):
    class Weight(Agent):
        w, x = slow(init=mg.xavier_uniform), fast()

        def forward_update(self, s, pre):
            return s.set(x=pre)

        def forward_message(self, s):
            return torch.tanh(s.w * s.x)  # no contraction: every product is needed

    class Rule(mg.Protocol):
        passes = ("forward",)

    program = mg.compile(mlp([3, 4, 2], loss="l2"), Rule(weight=Weight()))
    agree(program, steps=1)
    assert "product materialised" in program.explain()
    assert "materialised" not in mg.compile(mlp([3, 4, 2]), Backprop()).explain()


def test_per_node_agents_are_modules_of_the_program(double):
    class Gain(mg.UnitAgent):
        def __init__(self):
            super().__init__()
            self.gain = mg.learnable(1.5)

        def forward_message(self, s):
            return self.gain * s.y

    class Rule(Backprop):
        def agent(self, node):
            return Gain() if node.name == "h1" else super().agent(node)

    program = mg.compile(mlp([3, 4, 2]), Rule())
    assert [name for name, _ in program.named_parameters()] == ["agents.0.gain"]
    state, x = program.init(), torch.randn(2, 3)
    before = program.predict(state, x)
    with torch.no_grad():
        program.agents[0].gain.zero_()
    assert not torch.equal(program.predict(state, x), before)
    assert torch.equal(program.predict(state, x), torch.zeros(2, 2))


def test_own_kind_with_own_agent_and_with_the_default_one(double):
    class Square(mg.Activation):
        def apply(self, z):
            return z * z

    network = mlp([3, 4, 2], Square(), "l2")
    agree(mg.compile(network, Backprop()))
    used = []

    class SquareAgent(mg.UnitAgent):
        def forward_update(self, s, pre):
            used.append(s.node.name)
            return s.set(z=pre, y=s.apply(pre))

    agree(mg.compile(network, Backprop(square=SquareAgent())))
    assert "h1" in used


def test_kind_over_the_whole_node(double):
    softmax = mg.Function(lambda z: torch.softmax(z, -1), over="node", name="softmax")
    program = mg.compile(mlp([3, 4, 2], softmax, "l2"), Backprop(lr=0.3))
    agree(program)
    generator = torch.Generator().manual_seed(0)
    state, x, t = randomised(program.init(), generator), torch.randn(5, 3), torch.randn(5, 2)
    w = {n: c["w"].clone().requires_grad_() for n, c in state.items() if "w" in c}
    y = torch.softmax(x @ w["x->h1"].T + w["h1.bias"], -1) @ w["h1->y"].T + w["y.bias"]
    (0.5 * (y - t).pow(2).sum(-1).mean()).backward()
    after, _ = program.step(state, x, t)
    assert all((after[n]["w"] - (v - 0.3 * v.grad)).abs().max() < 1e-12 for n, v in w.items())


def test_own_loss_by_vjp(double):
    class Quartic(mg.Loss):
        def apply(self, z, t):
            return (z - t).pow(4).sum(-1)

    network = mlp([3, 4, 2], loss=Quartic())
    program = mg.compile(network, Backprop())
    agree(program, steps=1)
    assert "quartic_gradient" in program.code


def test_frozen_connections_stay_under_every_rule(double):
    network = skip_network().frozen("x->*", "h.bias")
    program = mg.compile(network, Memories())
    x, t = torch.randn(3, 3), torch.randn(3, 2)
    state = program.init(batch_size=3)
    after, _ = program.step(state, x, t)
    for name in ("x->h", "x->y", "h.bias"):
        assert torch.equal(after[name]["w"], state[name]["w"])
    assert not torch.equal(after["h->y"]["w"], state["h->y"]["w"])


def test_given_weights_override_the_rules_initialiser():
    network, weight = mg.Network(), torch.arange(6.0).reshape(2, 3)
    network.input("x", 3), network.unit("y", 2, bias=torch.tensor([1.0, -1.0]))
    network.connect("x", "y", weight=weight), network.loss("y", "l2")
    state = mg.compile(network, Backprop()).init()
    assert torch.equal(state["x->y"]["w"], weight)
    assert torch.equal(state["y.bias"]["w"], torch.tensor([1.0, -1.0]))


def test_recorded_channels(double):
    program = mg.compile(mlp([3, 4, 2], loss="l2"), Backprop())
    state, x, t = program.init(), torch.randn(5, 3), torch.randn(5, 2)
    _, out = program.step(state, x, t, record={"h1": ["e", "y"], "x->h1": ["x"], "y": ["z"]})
    y = torch.tanh(x @ state["x->h1"]["w"].T)
    torch.testing.assert_close(out.recorded["h1"]["y"], y)
    error = (out.prediction - t) @ state["h1->y"]["w"] * (1 - y * y)
    torch.testing.assert_close(out.recorded["h1"]["e"], error)
    torch.testing.assert_close(out.recorded["x->h1"]["x"], x[:, None, :].expand(5, 4, 3))
    torch.testing.assert_close(out.recorded["y"]["z"], out.prediction)
