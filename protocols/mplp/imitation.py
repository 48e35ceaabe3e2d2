"""The learners of MPLP, each alone, imitate a rule that learns in few steps: where meta-training begins.

Gradient descent with momentum is one of the rules that MPLP can be; what the learners imitate is close to it. With m
the first number of a message, c that of the memory of a parameter, and T a clock, the second number of the messages of
the loss, the agents would do this:

    agent     first number of its message            what it remembers
    loss      dL/dy, for a softmax below p - t       T <- `FALL` T + (1 - `FALL`) `TOP`, from 0
    link      m (1 - (1 - `LAST`) T / `TOP`)
    bias      m                                      c <- -tanh(m + z + b)
    weight    m tanh(`MANY` w)                       c <- `KEPT` c - (1 - `KEPT`) m tanh(`SHARP` x)
    unit      B tanh(`GAIN` f'(z) m / B)             with B = `BOUND`

Everything else in messages and memory has no meaning, and is to be zero: where it grew, it disturbed late updates. The
update of a parameter is c times the trained scale, so what was there before is momentum. x is standardized: activities
of hidden units differ little between examples, and what they have in common teaches nothing. A bias keeps its unit in
the middle of its range, which does the same. The link below the loss shrinks all errors, at last to `LAST` of what they
were, so the first steps are large and later ones average. Units receive the mean of messages.

A weight sends its error down times little more than its own sign (sign symmetry), so errors do not grow with the
weights; if they did, nothing but their signs would be left at the bottom of a deep graph. Errors of hidden units are
smaller than those of outputs, so all weights learn at about one rate, and it matters little which weight reads what.

Numbers that an agent reads are drawn at random, of all sizes that they have in networks, fresh or not, activities as
those of sigmoid, step, tanh and relu units and of inputs; so is its memory. Small errors are drawn as often as large
ones: they are most of what there is after some updates, and where an update is wrong by a thousandth each time, a
weight has moved by 0.2 after two hundred. The constants were found by examples/mplp/search.py, `GAIN`, `BOUND` and
`MANY` by hand, on images held out from the training sets of MNIST and Fashion-MNIST, and of digits.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor

import mpgraph as mg

from .agents import role
from .learned import Learned
from .learners import Recurrent

GAIN, BOUND, MANY = 14.0, 0.5, 10.0
KEPT, SHARP = 0.63, 2.2
FALL, LAST, TOP = 0.9, 0.18, 0.8
RATE_INPUT, RATE, RATE_BIAS = 1.0, 1.2, 0.4  # of weights from the input, other weights and biases
CLASSES = 10  # of the outputs that are drawn
REACH = 4.0  # learners must do the same where networks have learned for long, or have other units
IDLE = 0.2  # what numbers without a meaning count, where they are not zero
SMALL = 0.005  # an error of this size counts as much as that of the largest examples


class Numbers:
    """Random examples ``(count, 1)`` of what the agents of a rule read.

    Args:
        generator: of all of them.
        count: how many.
        k: numbers in a message.
        reach: how many times larger weights, sums and activities may be than those by which learners are
            standardized; beyond 1 activities are also those of tanh and relu units.
    """

    def __init__(self, generator: Generator, count: int, k: int, reach: float = 1.0) -> None:
        self.generator, self.count, self.k, self.reach = generator, count, k, reach

    def uniform(self, columns: int = 1) -> Tensor:
        """Between 0 and 1."""
        return torch.rand(self.count, columns, generator=self.generator)

    def size(self, low: float, high: float) -> Tensor:
        """Log-uniform."""
        return low * (high / low) ** self.uniform()

    def normal(self, low: float, high: float, columns: int = 1) -> Tensor:
        """Gaussian, of a log-uniform size of its own for each example."""
        drawn = torch.randn(self.count, columns, generator=self.generator)
        return drawn * self.size(low, high)

    def far(self, low: float, high: float, columns: int = 1) -> Tensor:
        """Gaussian, of sizes that reach further."""
        return self.normal(low, high * self.reach, columns)

    def weights(self, low: float, high: float) -> Tensor:
        """Gaussian; in half of the examples of sizes that reach further, as where networks have learned for long."""
        return self.half(self.normal(low, high), self.far(low, high))

    def memory(self, columns: int) -> Tensor:
        """Numbers in -1..1, mostly all of one size in an example, else each of its own."""
        drawn = 2.0 * self.uniform(columns) - 1.0
        return drawn * torch.where(self.uniform() < 0.3, self.uniform(columns), self.size(0.002, 0.5))

    def half(self, one: Tensor, other: Tensor) -> Tensor:
        """Each example from one of the two."""
        return torch.where(self.uniform() < 0.5, one, other)

    def message(self, unit: bool = False) -> Tensor:
        """``(count, k)``: an error first, of an output or a hidden unit; for units, one that weights send."""
        if unit:
            first = self.normal(0.002, 0.4)
        else:
            output = torch.softmax(self.logits(), 1)[:, :1] - self.target()
            first = self.half(output * self.size(LAST, 1.0), BOUND * self.normal(0.0005, 2.0).tanh())
        return torch.cat([first, self.normal(0.001, 0.5, self.k - 1)], 1) if self.k > 1 else first

    def target(self) -> Tensor:
        """Of one class: mostly 0, in half of the examples 0 or 1."""
        rate = self.half(torch.tensor(1.0 / CLASSES), torch.tensor(0.5))
        return (self.uniform() < rate).to(rate.dtype)

    def logits(self) -> Tensor:
        """``(count, CLASSES)``."""
        return self.far(0.1, 3.0, CLASSES)


class Example(NamedTuple):
    """What one kind of agent reads, and what it would do.

    Attributes:
        values: ``(count, ...)``, as its learner's standardiser takes them.
        message: the first number of the message ``(count, 1)``; ``None`` if nobody reads it.
        ungated: what it would be if no slope were zero, by which errors are judged where the message itself is zero.
    """

    values: list[Tensor]
    message: Tensor | None
    ungated: Tensor | None = None


def kinds(graph: Any) -> dict[str, tuple[str, Any, mg.AgentNode]]:
    """What a node is, its agent and itself, of one node for each learner, standardiser and scale in a graph."""
    found: dict[tuple[Any, ...], tuple[str, tuple[str, Any, mg.AgentNode]]] = {}
    for name, agent in graph.agents.items():
        if isinstance(agent, Learned):
            what, _ = role(graph.nodes[name])
            found.setdefault(
                (agent.learner, agent.standardiser, agent.output), (name, (what, agent, graph.nodes[name]))
            )
    return dict(found.values())


def example(key: str, node: mg.AgentNode, draw: Numbers) -> Example:
    """Random examples for the agents of a node.

    Args:
        key: ``weight``, ``bias``, ``unit``, ``link`` or ``loss``.
        node: of the network for which the rule was compiled.
        draw: the numbers.

    Raises:
        ProtocolError: for a loss or link without imitation.
    """
    function: Any = node.function
    if key == "loss":
        return _loss(function, draw)
    m = draw.message(unit=key == "unit")
    e = m[:, :1]
    if key == "link":
        if function.name != "softmax":
            raise mg.ProtocolError(f"MPLP: {node.name} is a {function.name}; only a softmax imitates gradient descent")
        z = draw.logits()
        shifted = z - z.amax(1, keepdim=True)
        exp, shrunk = shifted.exp(), torch.ones_like(e)
        if draw.k > 1:
            clock = TOP * (1.0 - draw.size(0.02, 1.0))  # most of its life it is near the end
            m, shrunk = torch.cat([e, clock, m[:, 2:]], 1), 1.0 - (1.0 - LAST) * clock / TOP
        return Example([m, z[:, :1], shifted[:, :1], exp[:, :1], exp.sum(1, keepdim=True)], e * shrunk)
    if key == "unit":
        z = draw.far(0.2, 5.0)
        slope = function.vjp(torch.ones_like(z), z, function.apply(z))
        ungated = torch.where(slope == 0, torch.ones_like(slope), slope)
        return Example([m, z], _limited(slope * e), _limited(ungated * e))
    if key == "bias":
        b, total = draw.normal(0.01, 10.0), draw.far(0.2, 3.0)
        return Example([m, b, total - b], e)
    if "input_weight" in node.types:
        return Example([m, draw.weights(0.05, 0.3), _inputs(draw)], None)
    w = draw.weights(0.02, 0.6)
    return Example([m, w, _activities(draw)], e * torch.tanh(MANY * w))


def _limited(error: Tensor) -> Tensor:
    """What a unit sends."""
    return BOUND * torch.tanh(GAIN / BOUND * error)


def _inputs(draw: Numbers) -> Tensor:
    """Of images: many are the same, below the mean."""
    return torch.where(draw.uniform() < 0.3, -draw.size(0.3, 1.0), draw.normal(0.999, 1.0))


def _activities(draw: Numbers) -> Tensor:
    """Of sigmoids, and every sixth of a step; where they reach further, half are of tanh and relu units and inputs."""
    bounded = torch.where(draw.uniform() < 1 / 6, draw.uniform().round(), torch.sigmoid(draw.normal(0.2, 1.5)))
    if draw.reach == 1.0:
        return bounded
    z = draw.far(0.1, 3.0)
    return draw.half(bounded, torch.where(draw.uniform() < 0.4, _inputs(draw), draw.half(z.tanh(), z.relu())))


def _loss(loss: Any, draw: Numbers) -> Example:
    if loss.name == "negative_log_likelihood":
        p, t = torch.softmax(draw.logits(), 1)[:, :1].clamp(1e-7, 1.0 - 1e-7), draw.target()
        return Example([-t * p.log(), p, t, p.log()], p - t)
    if loss.name == "l2":
        t, y = draw.normal(0.1, 3.0), draw.normal(0.05, 3.0)
        return Example([0.5 * (t - y) ** 2, y, t, t - y], (y - t).tanh())
    raise mg.ProtocolError(f"MPLP: the loss {loss.name} has no imitation; those that have are cross_entropy and l2")


def relative(ours: Tensor, theirs: Tensor, kept: Tensor | float = 0.0, size: Tensor | None = None) -> Tensor:
    """Squared error over the square of what is new, and a tenth of that in which small ones count as much.

    Without ``size``, that of what is new, zeros would count 2500-fold: a gate that opens for half of the examples
    would then never open.
    """
    square, new = (ours - theirs).square(), (theirs - kept).square()
    small = new if size is None else size.square()
    return square.mean() / new.mean() + 0.1 * (square / (small + SMALL**2)).mean()


def error(agent: Any, node: mg.AgentNode, given: Example, draw: Numbers) -> tuple[Tensor | None, ...]:
    """Relative squared errors of an agent's message and update, and `IDLE` of the mean square of its other numbers.

    These, in messages and memory, mean nothing and should be zero: what grows there disturbs everything else. A loss
    has its clock in place of an update.

    Raises:
        ProtocolError: for another than the recurrent learner, or one that reads the gradient.
    """
    learner = agent.learner
    if not isinstance(learner, Recurrent) or agent.gradient:
        raise mg.ProtocolError('MPLP: only learner="recurrent" without gradient can imitate gradient descent alone')
    inputs = torch.cat(agent.standardiser(given.values), 1)
    memory = draw.memory(learner.size)
    ticks = node.type == "loss" and learner.k > 1
    if ticks:
        before, _, after = memory.split((learner.size - learner.k + 1, 1, learner.k - 2), 1)
        memory = torch.cat([before, TOP * draw.uniform(), after], 1)
    made = learner.gru(memory, inputs)
    sent, message, update = made[:, -learner.k :], None, None
    if given.message is not None:
        message = relative(sent[:, :1], given.message, size=given.ungated)
    if ticks:
        kept = FALL * memory[:, 1 - learner.k, None]
        update = relative(sent[:, 1:2], kept + (1.0 - FALL) * TOP, kept)
    elif "bias" in node.types:
        update = relative(made[:, :1], -torch.tanh(sum(given.values[1:], given.values[0][:, :1])))
    elif agent.output is not None:
        kept = KEPT * memory[:, :1]
        new = given.values[0][:, :1] * torch.tanh(SHARP * inputs[:, -1:])
        update = relative(made[:, :1], kept - (1.0 - KEPT) * new, kept)
    idle = torch.cat([made[:, learner.updates : -learner.k], sent[:, 1 + ticks :]], 1)
    return message, update, IDLE * idle.square().mean() if idle.numel() else None


def step(node: mg.AgentNode) -> float:
    """What updates are multiplied by, to learn something in twenty steps from weights N(0, 0.05)."""
    if "bias" in node.types:
        return RATE_BIAS
    return RATE_INPUT if "input_weight" in node.types else RATE
