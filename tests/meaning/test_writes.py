"""What an agent may write: both executors refuse the same with the same words, and take the same in the same sense."""

import pytest
import torch
from reference import distance

import mpgraph as mg
from mpgraph.architectures import mlp
from mpgraph.interpreter import interpreter
from mpgraph.protocols import Backprop
from mpgraph.protocols.backprop import Weight


class Writer(Weight):
    """Backpropagation's weight, which then does one thing more."""

    a, given = mg.fast(2), mg.slow(init=0.5)
    v, u, fixed = mg.slow(2, init=0.5), mg.slow(), mg.slow(frozen=True)
    then = staticmethod(lambda s: s)

    def learn_update(self, s):
        return type(self).then(super().learn_update(s))


def steps(then, network=None):
    """A program, and states after one step of either executor; ``then`` is a rule's line."""

    class Own(Writer):
        pass

    network = network or mlp([3, 2])
    program = mg.compile(network, Backprop(weight=Own()), dtype=torch.float64)
    Own.then = staticmethod(then)
    x = torch.randn(2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = torch.tensor([0, 1])
    state = program.init()

    def lowered():
        return mg.compile(network, Backprop(weight=Own()), dtype=torch.float64).step(state, x, y)[0]

    def interpreted():
        return interpreter.step(program, state, {"x": x}, {"y": torch.eye(2, dtype=torch.float64)[y]})[0]

    return lowered, interpreted


@pytest.mark.parametrize(
    ("then", "words"),
    [
        (lambda s: s.set(ww=s.w), "unknown channel 'ww'"),
        (lambda s: s.set(w=s.ww), "unknown channel 'ww'"),
        (lambda s: s.descend(ww=s.w), "unknown channel 'ww'"),
        (lambda s: s.set(w=s.a[0]), "'a' is read before it is written"),
        (lambda s: s.set(fixed=s.w), "'fixed' is frozen"),
        (lambda s: s.descend(fixed=s.w), "'fixed' is frozen"),
        (lambda s: s.set(w=s.v), r"'w' has shape \(\) but was set to a value of shape \(2,\)"),
        (lambda s: s.set(v=torch.ones(3)), r"'v' has shape \(2,\) but was set to a value of shape \(3,\)"),
        (lambda s: s.set(a=torch.ones(3)), r"'a' has shape \(2,\) but was set to a value of shape \(3,\)"),
        (lambda s: s.descend(w=s.v), r"'w' has shape \(\) but was handed as its signal a value of shape \(2,\)"),
        (lambda s: s.set(w="text"), "'w' was set to str"),
        (lambda s: s.set(w=None), "'w' was set to NoneType"),
        (lambda s: s.set(a={"x": s.w}), "'a' was set to dict"),
        (lambda s: s.set(w=mg.Each({"h": s.w})), "'w' is kept, so it cannot hold a value for each neighbor"),
    ],
)
def test_both_executors_refuse_with_the_same_words(then, words):
    found = []
    for run in steps(then):
        with pytest.raises(mg.ProtocolError, match=f"node 'x->y', pass 'learn': .*{words}") as error:
            run()
        found.append(str(error.value))
    assert found[0] == found[1]


@pytest.mark.parametrize(
    "then",
    [
        lambda s: s.set(v=2.0),
        lambda s: s.set(a=1.5).set(v=torch.tensor([1.0, 2.0])),
        lambda s: (lambda t: t.set(u=t.a[0] + t.a[1]))(s.set(a=s.w)),
        lambda s: s.set(u=s.w > 0),
        lambda s: s.set(u=3),
        lambda s: s.set(u=((s.w * s.v) > 0.1).sum() + (s.v * s.w > 0)[0]),
        lambda s: s.set(u=torch.where((s.w * s.v > 0)[1], s.w, 2.0 * s.w)),
        lambda s: s.set(u=torch.div(s.w, 3) + s.w // 2 + 2 // (s.w + 5) + s.w % 2 + 2 % (s.w + 5) + abs(s.w)),
    ],
    ids=range(8),
)
def test_both_executors_take_the_same(then):
    lowered, interpreted = (run() for run in steps(then))
    assert distance(lowered, interpreted) < 1e-12


def test_a_number_fills_a_vector():
    for run in steps(lambda s: s.set(v=2.0)):
        torch.testing.assert_close(run()["x->y"]["v"], torch.full((2, 3, 2), 2.0, dtype=torch.float64))


def test_untrained_weights_drop_writes_but_not_mistakes():
    network = mg.Network()
    network.input("x", 3), network.unit("y", 2, bias=False)
    network.connect("x", "y", trained=False)
    network.loss("y", "cross_entropy")
    before = mg.compile(network, Backprop(), dtype=torch.float64).init()["x->y"]["w"]
    for run in steps(lambda s: s.set(w=s.w + 1.0).descend(w=s.w), network):
        assert torch.equal(run()["x->y"]["w"], before)
    for run in steps(lambda s: s.set(w=s.v), network):
        with pytest.raises(mg.ProtocolError, match=r"'w' has shape \(\)"):
            run()
