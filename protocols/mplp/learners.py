"""The networks inside MPLP's agents: f computes the change of a parameter, g the message that is sent back.

Randazzo, Niklasson and Mordvintsev (2020), "MPLP: Learning a Message Passing Learning Protocol", arXiv 2007.00970.
Sizes, initial values and activations are those of the authors' code where it differs from the paper:

    Recurrent   one GRU (Eq. 6-8) is f and g at once: its carry c is [update, private memory, message]. Hidden layers
                are tanh (paper: ReLU), both gates start at bias -1, the last layer of either inner MLP has no bias.
    Separate    f and g are GRUs with carries of their own, as in Figure 2; the authors' code has no such form.
    Stateless   f and g are MLPs (Experiment 4.1.2), ReLU, tanh at the end. In the authors' code g is never trained, by
                a misspelt attribute: it stays random. ``train_g=False`` is that, True is as in the paper.

Every network reads numbers of one agent, so each is a segment (see ``mpgraph.View.segment``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Generator, nn

import mpgraph as mg
from mpgraph import carry, slow
from mpgraph.agents.functions import fast_tanh

MEMORIES: dict[str, Callable[[int], Any]] = {
    "slot": carry,  # for each synapse and slot of the batch, as published
    "use": lambda size: carry(size, per="use"),  # and for each position and tick at which a synapse is used
    "synapse": slow,  # averaged over the batch
}


def kernel(inputs: int, outputs: int, generator: Generator) -> nn.Parameter:
    """Uniform in +-sqrt(6 / (inputs + outputs)), ``(inputs, outputs)``: applied as ``v @ K``."""
    unit = 2.0 * torch.rand(inputs, outputs, generator=generator, dtype=torch.float64) - 1.0
    return nn.Parameter((unit * math.sqrt(6.0 / (inputs + outputs))).to(torch.get_default_dtype()))


def twice(p: Any) -> Any:
    """2 p as a tensor; a number before a product would be multiplied in again for every row of the backward pass."""
    return p + p


def vector(size: int, value: float = 0.0) -> nn.Parameter:
    """The same number everywhere."""
    return nn.Parameter(torch.full((size,), value))


def joined(inputs: Sequence[Any]) -> Any:
    """Numbers and vectors of one agent as one vector."""
    return torch.cat([torch.stack([v]) if v.ndim == 0 else v for v in inputs])


class MLP(nn.Module):
    """Two hidden layers: ``inputs`` numbers to ``outputs``, with ``end`` after the last layer or, without, no bias."""

    def __init__(
        self, inputs: int, outputs: int, hidden: Sequence[int], between: str, generator: Generator, end: bool = False
    ) -> None:
        super().__init__()
        first, second = hidden
        self.K1, self.b1 = kernel(inputs, first, generator), vector(first)
        self.K2, self.b2 = kernel(first, second, generator), vector(second)
        self.K3, self.b3 = kernel(second, outputs, generator), vector(outputs) if end else None
        self.between = between

    def forward(self, *inputs: Any) -> Any:
        """``(outputs,)`` for numbers and vectors that are ``inputs`` numbers together."""
        v = joined(inputs)
        if self.between == "relu":
            h = torch.relu(torch.relu(v @ self.K1 + self.b1) @ self.K2 + self.b2)
            h = h @ self.K3
        else:  # h is half of what it stands for: tanh(a) / 2 = sigmoid(2a) - 1 / 2
            h = torch.sigmoid(v @ twice(self.K1) + twice(self.b1)) - 0.5
            h = torch.sigmoid(h @ twice(twice(self.K2)) + twice(self.b2)) - 0.5
            h = h @ twice(self.K3)
        return h if self.b3 is None else fast_tanh(h + self.b3)


class GRU(nn.Module):
    """Eq. 6-8: a gated recurrent unit whose new state is computed by two MLPs."""

    def __init__(
        self, inputs: int, size: int, hidden: Sequence[int], between: str, generator: Generator, gate_bias: float
    ) -> None:
        super().__init__()
        self.Wux, self.Wuc, self.bu = *self._gate(inputs, size, generator), vector(size, gate_bias)
        self.Wrx, self.Wrc, self.br = *self._gate(inputs, size, generator), vector(size, gate_bias)
        self.bn = vector(size)
        self.x, self.c = (MLP(n, size, hidden, between, generator) for n in (inputs, size))

    @staticmethod
    def _gate(inputs: int, size: int, generator: Generator) -> tuple[nn.Parameter, nn.Parameter]:
        return kernel(inputs, size, generator), kernel(size, size, generator)

    def forward(self, c: Any, *inputs: Any) -> Any:
        """The new carry ``(size,)``."""
        x = joined(inputs)
        u = torch.sigmoid(x @ self.Wux + c @ self.Wuc + self.bu)
        r = torch.sigmoid(x @ self.Wrx + c @ self.Wrc + self.br)
        return u * c + (1.0 - u) * fast_tanh(self.x(x) + self.c(c * r) + self.bn)


class Learner(nn.Module):
    """Base: f, which changes a parameter, and g, which makes messages.

    Args:
        inputs: how many numbers it reads.
        updates: whether there is a parameter to update, so an f at all.
        rule: the sizes and choices of the whole rule, see :class:`MPLP`.
        generator: of the initial values.
    """

    def channels(self) -> dict[str, mg.Channel]:
        """Memories, for the agent to keep."""
        return {}

    def run(self, s: mg.View, *inputs: Any) -> tuple[mg.View, Any, Any]:
        """The view with its new memories; the update (None without f) and the message ``(k,)``."""
        raise NotImplementedError


class Recurrent(Learner):
    """One GRU: the first number of its carry is the update, the last k are the message."""

    def __init__(self, inputs: int, updates: bool, rule: Any, generator: Generator) -> None:
        super().__init__()
        self.updates, self.k, self.memory, self.size = updates, rule.k, rule.memory, updates + rule.n + rule.k
        self.gru = GRU(inputs, self.size, rule.hidden, rule.between or "tanh", generator, rule.gate_bias)

    @property
    def f(self) -> nn.Module | None:  # noqa: D102
        return self.gru if self.updates else None

    @property
    def g(self) -> nn.Module:  # noqa: D102
        return self.gru

    def channels(self) -> dict[str, mg.Channel]:  # noqa: D102
        return {"c": MEMORIES[self.memory](self.size)}

    def run(self, s: mg.View, *inputs: Any) -> tuple[mg.View, Any, Any]:  # noqa: D102
        c = s.segment(self.gru, s.c, *inputs)
        return s.set(c=c), c[0] if self.updates else None, c[-self.k :]


class Separate(Learner):
    """Two GRUs: the first number of f's carry is the update, the last k of g's are the message."""

    def __init__(self, inputs: int, updates: bool, rule: Any, generator: Generator) -> None:
        super().__init__()
        self.k, self.n, self.memory = rule.k, rule.n, rule.memory
        given = rule.hidden, rule.between or "tanh", generator, rule.gate_bias
        self.f = GRU(inputs, 1 + rule.n, *given) if updates else None
        self.g = frozen(GRU(inputs, rule.n + rule.k, *given), rule.train_g)

    def channels(self) -> dict[str, mg.Channel]:  # noqa: D102
        of_f = {"c_f": MEMORIES[self.memory](1 + self.n)} if self.f is not None else {}
        return {**of_f, "c_g": MEMORIES[self.memory](self.n + self.k)}

    def run(self, s: mg.View, *inputs: Any) -> tuple[mg.View, Any, Any]:  # noqa: D102
        update = None
        if self.f is not None:
            c_f = s.segment(self.f, s.c_f, *inputs)
            s, update = s.set(c_f=c_f), c_f[0]
        c_g = s.segment(self.g, s.c_g, *inputs)
        return s.set(c_g=c_g), update, c_g[-self.k :]


class Stateless(Learner):
    """Two MLPs."""

    def __init__(self, inputs: int, updates: bool, rule: Any, generator: Generator) -> None:
        super().__init__()
        given = rule.hidden, rule.between or "relu", generator, True
        self.f = MLP(inputs, 1, *given) if updates else None
        self.g = frozen(MLP(inputs, rule.k, *given), rule.train_g)

    def run(self, s: mg.View, *inputs: Any) -> tuple[mg.View, Any, Any]:  # noqa: D102
        update = None if self.f is None else s.segment(self.f, *inputs)[0]
        return s, update, s.segment(self.g, *inputs)


LEARNERS: dict[str, type[Learner]] = {"recurrent": Recurrent, "separate": Separate, "stateless": Stateless}


def frozen(module: nn.Module, trained: bool) -> nn.Module:
    """The module; unless it is trained, its parameters become buffers: saved, but no meta-parameters."""
    return module if trained else module.apply(_keep)


def _keep(module: nn.Module) -> None:
    module._buffers.update({name: p.detach() for name, p in module._parameters.items() if p is not None})
    module._parameters.clear()
