"""A synapse of VS-ML, alone, imitates one of gradient descent: learning algorithm cloning (section 3.2).

With x and e the first numbers of the messages from below and from above, one tick of a synapse should

    send      tanh(x) w                up                    Eq. 13
    send      e (1 - tanh(x)^2) w      down                  its derivative times the error
    keep      w - `RATE` tanh(x) e                           gradient descent

The weight is read from the memory c: w is the sum of its first K numbers over sqrt(K), the K that start at random. It
is never written there, so what a synapse does to it is its own work. A forward tick is one with e = 0.

Nothing is taken from a network. What is drawn is units, each with `INPUTS` synapses, to which random activities and
errors come. Half of the units are outputs, whose errors are p - t of a softmax: mostly small and of one sign, sometimes
large and of the other, so that what a synapse does wrong does not cancel in a batch. Each unit runs on from its own
states, averaged over `BATCH` examples, so that it meets what its errors make of them. Merged messages are compared
beside single ones: what single ones have in common grows with their number.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor
from torch.nn import functional

import mpgraph as mg

RATE = 0.1
BATCH, INPUTS, CLASSES = 16, 32, 10
STEPS = 3  # in which messages and updates are compared
BEFORE = 60  # most steps before those, without a gradient
WEIGHTS = 0.02, 1.0  # deviations, from those of 784 inputs on
ERRORS = 0.003, 0.7  # deviations at hidden units: late in training nearly all are small
SMALL = 0.01  # weights and errors of this size count as much as larger ones
MERGED = 2.0  # weight of merged messages
GAIN, SLOPE, OPEN = 0.3, 0.25, 10.0  # of the solution that is written down
EXACT = 1e-4  # a relative squared error at which there is little left to learn


def solution(cell: Any) -> None:
    """Write into an LSTM, to first order, gradient descent; numbers of its state are named m, m', s, s', r and r'.

        m, m'    i = sigma(+-2 x), u = -+tanh(sqrt(2) `RATE` e)     the weight is (m + m') / sqrt(2)
        s, s'    i = sigma(+-2 x), u = tanh(`GAIN` (m + m'))        s - s' is tanh(x) w, scaled
        r, r'    i = sigma(2 x +- 2 `SLOPE` e), u as of s           r - r' is e (1 - tanh(x)^2) w, scaled

    for sigma(2 x) - sigma(-2 x) = tanh(x), whose derivative is what r and r' differ by. The first two never forget, the
    others forget at once. What m and m' have in opposite grows with the errors of the unit and cancels in all messages.

    Raises:
        ProtocolError: for another number of numbers in the state than six, of which two start at random.
    """
    if (cell.n, cell.random, cell.gates) != (6, 2, 4):
        raise mg.ProtocolError(
            'VSML: genome="backprop" is for cell="lstm", state=6 and random=0.34, two numbers that start at random; '
            f"got state={cell.n}, of which {cell.random} start at random, with {cell.gates} gates"
        )
    x = torch.tensor([2.0, -2.0, 2.0, -2.0, 2.0, 2.0])
    with torch.no_grad():
        for p in cell.parameters():
            p.zero_()
        cell.F[0, 0], cell.G[0, 0, 4:] = x, 2.0 * SLOPE * torch.tensor([1.0, -1.0])
        cell.G[1, 0, :2] = 2.0**0.5 * RATE * torch.tensor([-1.0, 1.0])
        cell.W[1, :2, 2:] = GAIN
        cell.b[0], cell.b[2], cell.b[3] = -cell.admit, OPEN * torch.tensor([1.0, 1, -1, -1, -1, -1]) - cell.keep, OPEN
        scale = 1.0 / (2.0**0.5 * GAIN)
        cell.C[2:4, 0] = scale * torch.tensor([1.0, -1.0])
        cell.U[4:6, 0] = scale / SLOPE * torch.tensor([1.0, -1.0])


class Numbers:
    """What comes to random units: activities and errors, of a size that belongs to the unit.

    Args:
        generator: of all of them.
        units: how many.
    """

    def __init__(self, generator: Generator, units: int) -> None:
        self.generator, self.units = generator, units
        self.images = self.uniform(units, 1, 1) < 0.5  # units that see images, mostly dark
        self.dark, self.spread = 0.8 * self.uniform(units, 1, 1), self.size(0.2, 2.0)
        self.outputs, self.wrong = self.uniform(units, 1, 1) < 0.5, self.size(*ERRORS)
        self.logits, self.skill = self.size(0.1, 8.0), 4.0 * self.uniform(units, 1, 1)

    def uniform(self, *shape: int) -> Tensor:
        """Between 0 and 1."""
        return torch.rand(shape, generator=self.generator)

    def normal(self, *shape: int) -> Tensor:
        """Gaussian."""
        return torch.randn(shape, generator=self.generator)

    def size(self, low: float, high: float) -> Tensor:
        """Log-uniform, one for each unit."""
        return low * (high / low) ** self.uniform(self.units, 1, 1)

    def step(self) -> tuple[Tensor, Tensor]:
        """Activities ``(units, batch, inputs)`` and errors ``(units, batch, 1)``."""
        shape = (self.units, BATCH, INPUTS)
        bright = (1.0 + self.normal(*shape)).clamp(-0.42, 2.9)
        images = torch.where(self.uniform(*shape) < self.dark, -0.42, bright)
        x = torch.where(self.images, images, self.spread * self.normal(*shape))
        x[..., 0] = torch.where(self.uniform(self.units, 1) < 0.5, 1.0, x[..., 0])  # as a bias has it
        hidden = (self.wrong * self.normal(self.units, BATCH, 1)).clamp(-1.0, 1.0)
        return x, torch.where(self.outputs, self.of_a_softmax(), hidden)

    def of_a_softmax(self) -> Tensor:
        """p - t at one of `CLASSES` outputs ``(units, batch, 1)``, of a network with some skill."""
        shape = (self.units, BATCH)
        target = functional.one_hot(torch.randint(CLASSES, shape, generator=self.generator), CLASSES)
        z = self.normal(*shape, CLASSES) + self.skill * target
        return (torch.softmax(self.logits * z, 2) - target)[..., :1]


def weight(c: Tensor, known: int) -> Tensor:
    """The weight in a memory ``(..., n)``, of which ``known`` numbers hold it."""
    return c[..., :known].sum(-1) / known**0.5


class Synapses:
    """The synapses of units, in one tensor; the cell's gates in one product, which is faster than one each.

    Args:
        cell: the shared synapse, an LSTM.
        w: the numbers that hold the weights at first ``(units, 1 or batch, inputs, K)``.
    """

    def __init__(self, cell: Any, w: Tensor) -> None:
        n, self.cell, self.known = cell.n, cell, cell.random
        gates = torch.cat([cell.W, cell.F[:, :1], cell.G[:, :1]], 1)
        self.gates = gates.transpose(0, 1).reshape(n + 2, 4 * n)
        offsets = torch.tensor([cell.admit, 0.0, cell.keep, 0.0], dtype=cell.b.dtype)
        self.offsets = (cell.b + offsets[:, None]).reshape(-1)
        self.c = functional.pad(w, (0, n - self.known))
        self.h = torch.zeros_like(self.c)

    @property
    def w(self) -> Tensor:
        """The weights ``(units, 1, inputs)``, averaged over examples."""
        return weight(self.c, self.known).mean(1, keepdim=True)

    def tick(self, x: Tensor, e: Tensor) -> None:
        """Eq. 6."""
        i, u, f, o = (torch.cat([self.h, x[..., None], e[..., None]], -1) @ self.gates + self.offsets).chunk(4, -1)
        self.c = torch.sigmoid(f) * self.c + torch.sigmoid(i) * torch.tanh(u)
        if self.cell.clip is not None:
            self.c = self.c.clamp(-self.cell.clip, self.cell.clip)
        self.h = torch.sigmoid(o) * torch.tanh(self.c)

    def step(self, x: Tensor, e: Tensor) -> tuple[Tensor, Tensor]:
        """The messages ``(units, batch, inputs)`` up and down, of one example for each slot of the batch."""
        self.c, self.h = (part.mean(1, keepdim=True).expand_as(part) for part in (self.c, self.h))
        self.tick(x, torch.zeros_like(x))
        up = self.h @ self.cell.C[:, 0] + self.cell.C_b[0]
        self.tick(x, e.expand_as(x))
        return up, self.h @ self.cell.U[:, 0] + self.cell.U_b[0]


def differences(rule: Any, generator: Generator, examples: int) -> dict[str, Tensor]:
    """Logarithms of the relative squared errors of messages and updates, averaged over units and steps.

    Args:
        rule: whose shared synapse imitates.
        generator: of all that is random.
        examples: synapses, times the examples that each sees in a step.

    Raises:
        ProtocolError: for another cell, or arguments under which no synapse can do what is asked of it.
    """
    cell, needed = rule.cells[0], {"cell": "lstm", "error": "reverse", "ticks": 1, "quiet": True, "layer_norm": False}
    for name, value in needed.items():
        if getattr(rule, name) != value:
            given = getattr(rule, name)
            raise mg.ProtocolError(f"VSML: {name}={given!r} must be {value!r} to imitate gradient descent")
    if not 0 < cell.random <= cell.common or rule.coordinates or rule.output:
        raise mg.ProtocolError(
            "VSML: to imitate gradient descent, part of the state must start at random (random > 0) and be averaged "
            f"(average >= random), coordinates=False and output=0; got random={rule.random:g}, "
            f"average={rule.average:g}, coordinates={rule.coordinates}, output={rule.output}"
        )
    draw = Numbers(generator, max(1, examples // (BATCH * INPUTS)))
    w = draw.size(*WEIGHTS)[..., None] * draw.normal(draw.units, 1, INPUTS, cell.random)
    synapses = Synapses(cell, w.expand(-1, BATCH, -1, -1))
    with torch.no_grad():
        for _ in range(int((BEFORE + 1) ** float(draw.uniform(1))) - 1):  # none for some: the first step counts
            synapses.step(*draw.step())
    found: dict[str, list[Tensor]] = {"forward": [], "backward": [], "update": []}
    for _ in range(STEPS):
        (x, e), w = draw.step(), synapses.w
        up, down = synapses.step(x, e)
        x = torch.tanh(x)
        slope = e * (1.0 - x * x)
        change = -RATE * (x * e).mean(1, keepdim=True)
        found["forward"].append(relative(up, x * w, SMALL * x))
        found["backward"].append(relative(down, slope * w, SMALL * slope))
        found["update"].append(relative(synapses.w - w, change, torch.full_like(w, SMALL * RATE)))
    return {name: logarithm(torch.stack(parts)) for name, parts in found.items()}


def logarithm(errors: Tensor) -> Tensor:
    """Halfway between the geometric mean of errors, to which small ones still matter, and their mean, to which the
    largest do."""
    return 0.5 * torch.log(errors + EXACT).mean() + 0.5 * torch.log(errors.mean() + EXACT)


def relative(ours: Tensor, theirs: Tensor, small: Tensor) -> Tensor:
    """Squared error of each unit over the mean square of what is wanted, of single numbers and of their sums."""
    wrong, size = ours - theirs, theirs.square().mean((1, 2)) + small.square().mean((1, 2))
    merged = wrong.sum(2).square().mean(1) / wrong.shape[2]
    return (wrong.square().mean((1, 2)) + MERGED * merged) / size
