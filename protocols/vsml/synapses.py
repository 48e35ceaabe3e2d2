"""The recurrent networks that serve as synapses in VS-ML; see :mod:`mpgraph.protocols.vsml.rule` for the paper.

Each gate has matrices of its own, so that tensors of the generated code stay contiguous: W acts on the state, F and G
on the messages from below and above. The cells are those of torch, with offsets at the gates:

    LSTM (Eq. 6)    c <- f c + i u,     h <- o tanh(c)          gates input, candidate, forget, output
    GRU             h <- k h + (1 - k) tanh(received + r (h W))    gates reset, candidate, keep (Cho et al., 2014)
    vanilla         h <- tanh(received + h W)                      Eqs. 1-3 and 14
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Generator, Tensor, nn

import mpgraph as mg
from mpgraph import Agent, carry, fast, slow
from mpgraph.agents.functions import fast_tanh


def truncated(*shape: int, std: float, generator: Generator) -> Tensor:
    """Normal numbers cut off at two deviations; the true deviation is then 0.88 of ``std``."""
    tensor = torch.empty(shape, dtype=torch.float64)
    return nn.init.trunc_normal_(tensor, 0.0, std, -2.0 * std, 2.0 * std, generator=generator)


def places(shape: tuple[int, ...], node: Any, generator: Generator, dtype: torch.dtype) -> Tensor:
    """Where each synapse sits at either end, from -1 to 1: ``(*axes, 2)``, the same for every seed."""

    def along(end: str) -> Tensor:
        sizes = [axis.size if axis in node.ends[end] else 1 for axis in node.kept]
        return torch.linspace(-1.0, 1.0, math.prod(sizes), dtype=dtype).reshape(sizes).expand(shape[:-1])

    return torch.stack([along("pre"), along("post")], -1)


class Gates(nn.Module):
    """What a cell ticks by: the same numbers as ``first``, to be trained apart from them."""

    def __init__(self, first: Synapse) -> None:
        super().__init__()
        for name in ("W", "F", "G", "b", *(("P",) if first.d else ())):
            setattr(self, name, nn.Parameter(getattr(first, name).detach().clone()))


class Synapse(Agent):
    """A vanilla recurrent network between two units: base of all cells.

    The genome is normal matrices of deviation 1/sqrt(fan-in), with offsets zero; see :class:`VSML` for the arguments
    that shape it.

    Args:
        rule: the whole rule.
        generator: of the genome.

    Channels:
        h ``(n,)``: the state, for each slot of the batch. Positions of a convolution tick on their own and average it.
        g ``(m,)``: the last message from above, kept for the next example.
        f ``(m,)``, out ``(n,)``: the message from below, and the state that the outgoing messages are made of.
    """

    gates = 1
    memory: tuple[str, ...] = ("h",)
    h = carry("n", init="start", learned=True)  # with c and g, what the network has learned
    g = carry("m", end="post", per="use", learned=True)
    at = slow("d", init=places, frozen=True)
    f, out = fast("m"), fast("n")

    def __init__(self, rule: Any, generator: Generator) -> None:
        super().__init__()
        n, m = self.n, self.m = rule.state, rule.width
        self.back: Gates | None = None  # of a sweep back, where it has parameters of its own
        self.d = 2 if rule.coordinates else 0
        self.ticks, self.reverse = 1 if rule.exchange else rule.ticks, rule.error == "reverse"
        self.layer_norm, self.clip = rule.layer_norm, rule.clip
        self.keep, self.admit = rule.offsets
        self.common, self.random = int(rule.average * n + 1e-9), int(rule.random * n + 1e-9)

        def matrix(rows: int, *sizes: int) -> nn.Parameter:
            return nn.Parameter(truncated(*sizes, std=rows**-0.5, generator=generator).to(torch.get_default_dtype()))

        inputs = n + 2 * m + self.d
        self.W, self.F, self.G = (matrix(inputs, self.gates, rows, n) for rows in (n, m, m))
        self.b = nn.Parameter(torch.zeros(self.gates, n))
        if self.d:
            self.P = matrix(inputs, self.gates, self.d, n)
        self.C, self.U = matrix(n, n, m), matrix(n, n, m)
        self.C_b, self.U_b = (nn.Parameter(torch.zeros(m)) for _ in range(2))
        if self.layer_norm:
            self.C_scale, self.U_scale = (nn.Parameter(torch.ones(m)) for _ in range(2))
            self.C_offset, self.U_offset = (nn.Parameter(torch.zeros(m)) for _ in range(2))

    def narrow(self) -> None:
        """Read and send nothing but the first number of a message."""
        with torch.no_grad():
            for read, sent, bias in ((self.F, self.C, self.C_b), (self.G, self.U, self.U_b)):
                read[:, 1:], sent[:, 1:], bias[1:] = 0.0, 0.0, 0.0

    def start(self, shape: tuple[int, ...], node: Any, generator: Generator, dtype: torch.dtype) -> Tensor:
        """Initial state: part random, of deviation 1/sqrt(fan-in), the rest zero; the same in every slot."""
        one = truncated(*shape[1:], std=max(1, node.fan_in) ** -0.5, generator=generator)
        one[..., self.random :] = 0.0
        return one.to(dtype).expand(shape).clone()

    def received(self, s: mg.View, gate: int, by: Any) -> Any:
        """b + f F + g G, for one gate."""
        received = s.f @ by.F[gate] + s.g @ by.G[gate] + by.b[gate]
        return received + s.at @ by.P[gate] if self.d else received

    def drive(self, s: mg.View, gate: int, by: Any) -> Any:
        """b + h W + f F + g G, for one gate."""
        return s.h @ by.W[gate] + self.received(s, gate, by)

    def tick(self, s: mg.View, by: Any) -> mg.View:
        """h <- tanh(b + h W + f F + g G)."""
        return s.set(h=(h := fast_tanh(self.drive(s, 0, by))), out=h)

    def visited(self, s: mg.View, by: Any) -> mg.View:
        """As many ticks as one visit of the sweep has, by one set of parameters."""
        for _ in range(self.ticks):
            s = self.tick(s, by)
        return s

    def average_update(self, s: mg.View) -> mg.View:
        """The first entries of the state become their mean over the batch, the others stay private."""
        return s.set(**{name: self.averaged(s, getattr(s, name)) for name in self.memory})

    def averaged(self, s: mg.View, value: Any) -> Any:
        """The mean over examples of the common part, beside the private part."""
        mean = s.examples(value) / s.examples(1.0)
        return mean if self.common == self.n else torch.cat([mean[: self.common], value[self.common :]])

    def forward_update(self, s: mg.View, pre: Any) -> mg.View:
        """Keep the message from below, and tick."""
        return self.visited(s.set(f=pre), self)

    def forward_message(self, s: mg.View) -> Any:
        """h C, merged over a on its way to unit b."""
        return self.normalised(s.out @ self.C + self.C_b, "C")

    def backward_update(self, s: mg.View, post: Any) -> mg.View:
        """Keep the message from above; on a sweep back, tick."""
        s = s.set(g=post)
        return self.visited(s, self if self.back is None else self.back) if self.reverse else s

    def backward_message(self, s: mg.View) -> Any:
        """h U, merged over b on its way to unit a."""
        return self.normalised(s.out @ self.U + self.U_b, "U")

    def clear_update(self, s: mg.View, post: Any) -> mg.View:
        """Keep the message from above once more, now without the error."""
        return s.set(g=post)

    clear_message = backward_message

    def normalised(self, message: Any, matrix: str) -> Any:
        """Layer normalization of one message over its numbers, if there is to be any."""
        if not self.layer_norm:
            return message
        scale, offset = (getattr(self, f"{matrix}_{name}") for name in ("scale", "offset"))
        centred = message - message.mean()
        return centred * torch.rsqrt((centred * centred).mean() + 1e-5) * scale + offset


class GRU(Synapse):
    """A gated recurrent unit, which starts by keeping nearly all of its state."""

    gates = 3

    def tick(self, s: mg.View, by: Any) -> mg.View:
        """h <- k h + (1 - k) tanh(received + r (h W))."""
        r, k = torch.sigmoid(self.drive(s, 0, by)), torch.sigmoid(self.drive(s, 2, by) + self.keep)
        u = fast_tanh(self.received(s, 1, by) + r * (s.h @ by.W[1]))
        return s.set(h=(h := u + k * (s.h - u)), out=h)


class LSTM(Synapse):
    """Long short-term memory; c is the memory, h what it shows."""

    gates = 4
    memory = ("h", "c")
    h, c = carry("n", learned=True), carry("n", init="start", learned=True)

    def tick(self, s: mg.View, by: Any) -> mg.View:
        """c <- f c + i u, h <- o tanh(c) (Eq. 6)."""
        i, f = torch.sigmoid(self.drive(s, 0, by) + self.admit), torch.sigmoid(self.drive(s, 2, by) + self.keep)
        u, o = torch.sigmoid(-2.0 * self.drive(s, 1, by)), torch.sigmoid(self.drive(s, 3, by))
        # tanh(x) is 1 - 2 sigmoid(-2 x); written out, a product with it is one call, and autograd keeps less
        c = f * s.c + i - 2.0 * (i * u)
        c = c if self.clip is None else torch.clamp(c, -self.clip, self.clip)
        h = o - 2.0 * (o * torch.sigmoid(-2.0 * c))
        return s.set(c=c, h=h, out=h)


CELLS: dict[str, type[Synapse]] = {"lstm": LSTM, "gru": GRU, "vanilla": Synapse}
