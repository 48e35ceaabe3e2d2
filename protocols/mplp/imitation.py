"""The learners of MPLP, each alone, imitate gradient descent: where meta-training begins.

Gradient descent is one of the rules that MPLP can be. With the error e = dL/dz of a unit, or 1/`BELOW` of it, as the
first number of a message m, and everything else in it of no meaning, the agents would do this:

    agent     first number of its message             change of its parameter, before the trained scale
    loss      dL/dy, for a softmax below it p - t
    link      m
    bias      m                                       -m / 2
    weight    `GAIN` w m, averaged on its way down    -m x
    unit      `BELOW` / `GAIN` `MANY` f'(z) m

The mean over agents above stands in for their sum, as for `MANY` of them. So errors of hidden units come `BELOW` times
as large, which is repaired by the scale of the updates of weights from the input, 1 / `BELOW`. Numbers that an agent
reads are drawn at random, of all sizes that they have in networks; so is its memory.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor

import mpgraph as mg

from .agents import role
from .learned import Learned
from .learners import Recurrent

GAIN, BELOW, MANY = 4.0, 4.0, 10.0
SMALL = 0.02  # an error of this size counts as much as that of the largest examples


class Numbers:
    """Random examples ``(count, 1)`` of what the agents of a rule read.

    Args:
        generator: of all of them.
        count: how many.
        k: numbers in a message.
    """

    def __init__(self, generator: Generator, count: int, k: int) -> None:
        self.generator, self.count, self.k = generator, count, k

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

    def half(self, one: Tensor, other: Tensor) -> Tensor:
        """Each example from one of the two."""
        return torch.where(self.uniform() < 0.5, one, other)

    def message(self, unit: bool = False) -> Tensor:
        """``(count, k)``: an error first; for units, of those that weights send."""
        first = self.normal(0.005, 0.3) if unit else self.half(self.normal(0.02, 0.3), self.normal(0.1, 0.6))
        return torch.cat([first, self.normal(0.01, 0.5, self.k - 1)], 1) if self.k > 1 else first

    def logits(self) -> Tensor:
        """``(count, MANY)``."""
        return self.normal(0.1, 3.0, int(MANY))


class Example:
    """What one kind of agent reads, and what it would do.

    Attributes:
        values: ``(count, ...)``, as its learner's standardiser takes them.
        message: the first number of the message ``(count, 1)``.
        update: of the parameter ``(count, 1)``, for agents that have one.
    """

    def __init__(self, values: list[Tensor], message: Tensor, update: Tensor | None = None) -> None:
        self.values, self.message, self.update = values, message, update


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
        exp = shifted.exp()
        return Example([m, z[:, :1], shifted[:, :1], exp[:, :1], exp.sum(1, keepdim=True)], e)
    if key == "unit":
        z = draw.normal(0.2, 2.0)
        slope = function.vjp(torch.ones_like(z), z, function.apply(z))
        return Example([m, z], BELOW / GAIN * MANY * slope * e)
    if key == "bias":
        return Example([m, draw.normal(0.005, 0.5), draw.normal(0.2, 2.0)], e, -0.5 * e)
    if "input_weight" in node.types:
        w, x = draw.normal(0.05, 0.3), torch.where(draw.uniform() < 0.3, -0.45, draw.normal(0.999, 1.0))
    else:
        w, x = draw.normal(0.05, 1.0), draw.half(torch.sigmoid(draw.normal(0.2, 2.0)), draw.uniform().round())
    return Example([m, w, x], GAIN * w * e, -e * x)


def _loss(loss: Any, draw: Numbers) -> Example:
    if loss.name == "negative_log_likelihood":
        p = torch.softmax(draw.logits(), 1)[:, :1].clamp(1e-7, 1.0 - 1e-7)
        t = (draw.uniform() < draw.half(torch.tensor(1.0 / MANY), torch.tensor(0.5))).to(p.dtype)
        return Example([-t * p.log(), p, t, p.log()], p - t)
    if loss.name == "l2":
        t, y = draw.normal(0.1, 3.0), draw.normal(0.05, 3.0)
        return Example([0.5 * (t - y) ** 2, y, t, t - y], y - t)
    raise mg.ProtocolError(f"MPLP: the loss {loss.name} has no imitation; those that have are cross_entropy and l2")


def relative(ours: Tensor, theirs: Tensor) -> Tensor:
    """Squared error over the square, and a tenth of that in which small ones count as much."""
    square = (ours - theirs).square()
    return square.mean() / theirs.square().mean() + 0.1 * (square / (theirs.square() + SMALL**2)).mean()


def error(agent: Any, given: Example, draw: Numbers) -> tuple[Tensor, Tensor | None]:
    """Relative squared errors of an agent's message and update; other numbers of the message should be small."""
    learner = agent.learner
    if not isinstance(learner, Recurrent) or agent.gradient:
        raise mg.ProtocolError('MPLP: only learner="recurrent" without gradient can imitate gradient descent alone')
    inputs = torch.cat(agent.standardiser(given.values), 1)
    memory = (2.0 * draw.uniform(learner.size) - 1.0) * draw.size(0.05, 1.0)
    made = learner.gru(memory, inputs)
    message = made[:, -learner.k :] if learner.k < learner.size else made
    wrong = relative(message[:, :1], given.message) + 0.1 * message[:, 1:].square().mean() * (learner.k > 1)
    return wrong, None if given.update is None else relative(made[:, :1], given.update)


def step(node: mg.AgentNode) -> float:
    """What updates are multiplied by, for gradient descent at the rate 1."""
    return 1.0 / BELOW if "input_weight" in node.types else 1.0
