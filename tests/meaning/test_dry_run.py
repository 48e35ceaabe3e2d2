"""Dry runs: channels of optimizers by the definition of Adam, borders of regions, rules that serve a part."""

import pytest
import torch
from reference import distance

import mpgraph as mg
from mpgraph.architectures import mlp
from mpgraph.graph.wiring import AgentGraph
from mpgraph.lowering.dry_run import optimizer_channels
from mpgraph.protocols import Backprop
from mpgraph.protocols.backprop import Weight

ADAM = {"w_mean", "w_square", "w_mean_of_one", "w_square_of_one"}


def test_optimizers_keep_their_numbers_where_weights_learn():
    network = mlp([3, 4, 2])
    network.unit("still", 2, bias=False)
    network.connect("x", "still", trained=False)
    network.loss("still", "l2")
    graph = AgentGraph(network, Backprop(optimizer=mg.Adam()))
    before = {name: dict(channels) for name, channels in graph.channels.items()}
    added = optimizer_channels(graph, torch.float32)
    assert {name: set(channels) for name, channels in added.items()} == dict.fromkeys(
        ["x->h1", "h1.bias", "h1->y", "y.bias"], ADAM
    )
    assert graph.channels == before  # a graph that exists is left as it is
    full = graph.with_channels(added)
    assert full.channels == {name: {**channels, **added.get(name, {})} for name, channels in before.items()}
    assert full.nodes is graph.nodes


def test_plain_descent_keeps_nothing():
    assert optimizer_channels(AgentGraph(mlp([3, 4, 2]), Backprop()), torch.float32) == {}


class Part(Weight):
    """Backpropagation's weight for one connection; anywhere else it fails as a rule's own code may."""

    pair = mg.fast(2)

    def __init__(self, serves):
        super().__init__()
        self.serves = serves

    def forward_update(self, s, pre):
        if s.node.name != self.serves:
            raise ValueError("no business here")
        return super().forward_update(s, pre)


class Pair(Part):
    """Sends two numbers."""

    def forward_message(self, s):
        return torch.stack([s.w * s.x, s.w * s.x])


def test_a_border_is_found_out_though_the_rule_fails_elsewhere():
    rules = {"x->h1": Backprop(weight=Pair("x->h1")), "*": Backprop()}
    with pytest.raises(mg.ProtocolError, match=r"border forward: x->h1 => h1 .*local shape \(2,\).*expects \(\)"):
        mg.compile(mlp([3, 4, 2]), rules)


def test_a_graph_of_misfits_is_built_and_refused_when_compiled():
    rules = mg.Regions({"x->h1": Backprop(weight=Pair("x->h1")), "*": Backprop()})
    graph = AgentGraph(mlp([3, 4, 2]), rules)
    assert isinstance(graph.agents["x->h1"], Pair)


def test_a_border_that_cannot_be_checked_is_reported():
    """Alone, the rule of the second connection fails before any message reaches it."""
    network = mlp([3, 4, 2])
    with pytest.warns(UserWarning, match="x->h1.*no business here.*not checked.*h1 => h1->y"):
        mixed = mg.compile(network, {"h1->y": Backprop(weight=Part("h1->y")), "*": Backprop()}, dtype=torch.float64)
    plain = mg.compile(network, Backprop(), dtype=torch.float64)
    x, y = torch.randn(2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64), torch.tensor([0, 1])
    assert distance(mixed.step(mixed.init(), x, y)[0], plain.step(plain.init(), x, y)[0]) < 1e-12
