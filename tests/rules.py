"""Small rules that use every feature of the foundation once; tests hold compiler and interpreter against each other."""

import torch
from torch import nn

import mpgraph as mg
from mpgraph import Agent, Protocol, carry, common, fast, slow
from mpgraph.agents.initializers import normal


class States(nn.Module):
    """Matrices shared by all synapses of :class:`TwoStates`."""

    def __init__(self, k):
        super().__init__()
        generator = torch.Generator().manual_seed(7)
        self.up, self.down, self.pre, self.post = (
            nn.Parameter(torch.randn(k, k, generator=generator) / k) for _ in range(4)
        )


class TwoStateSynapse(Agent):
    """k states a unit, one weight a state, forward and backward weights apart."""

    w, v = slow("k", init=normal(0.5)), slow("k", init=normal(0.5))
    a, b = fast("k"), fast("k")

    def __init__(self, genome, k):
        super().__init__()
        self.g, self.k = genome, k

    def forward_update(self, s, pre):
        return s.set(a=pre)

    def forward_message(self, s):
        return s.w * (s.a @ self.g.up)

    def backward_update(self, s, post):
        return s.set(b=post)

    def backward_message(self, s):
        return s.v * (s.b @ self.g.down)

    def learn_update(self, s, pre, post):
        g = self.g
        up, down = (pre @ g.pre) * (post @ g.post), (post @ g.pre) * (pre @ g.post)
        return s.set(w=0.9 * s.w + 0.1 * s.examples(up, "sum"), v=0.9 * s.v + 0.1 * s.examples(down, "sum"))


class TwoStateUnit(Agent):
    """Squashes its states; the backward message multiplies all but the first."""

    y = fast("k")

    def __init__(self, k):
        super().__init__()
        self.k = k

    def forward_update(self, s, pre):
        return s.set(y=torch.tanh(pre))

    def forward_message(self, s):
        return s.y

    learn_message = backward_message = forward_message

    def backward_update(self, s, post=None):
        if post is None:
            return s.set(y=s.y)
        return s.set(y=torch.tanh(torch.cat([s.y[:1], s.y[1:] * post[1:]])))

    def readout(self, s):
        return s.y[0]


class StatesOfInput(Agent):
    """State 0 is the input, the others are zero."""

    value, y = fast(), fast("k")

    def __init__(self, k):
        super().__init__()
        self.k = k

    def forward_message(self, s):
        zero = 0.0 * s.value
        return torch.stack([s.value, *[zero] * (self.k - 1)])

    learn_message = forward_message


class Ones(Agent):
    """One in every state."""

    def __init__(self, k):
        super().__init__()
        self.k = k

    def forward_message(self, s):
        return torch.ones(self.k)

    learn_message = forward_message


class TwoStates(Protocol):
    """A bidirectional rule with k states a unit and no loss."""

    def __init__(self, k=2):
        genome = States(k)
        synapse = TwoStateSynapse(genome, k)
        super().__init__(weight=synapse, unit=TwoStateUnit(k), input=StatesOfInput(k), constant=Ones(k))


class Memory(Agent):
    """Memories of every extent: per example, per example at one end, per node."""

    w = slow(init=mg.xavier_uniform)
    m = carry(2, init=0.1)
    g = carry(end="post")
    mean = common()
    x = fast()

    def __init__(self):
        super().__init__()
        self.mix = nn.Linear(4, 2)
        with torch.no_grad():
            generator = torch.Generator().manual_seed(3)
            for p in self.mix.parameters():
                p.copy_(torch.randn(p.shape, generator=generator) / 2)

    def forward_update(self, s, pre):
        return s.set(x=pre)

    def forward_message(self, s):
        return s.w * s.x

    def backward_update(self, s, post):
        inputs = torch.cat([s.m, torch.stack([post - s.g, s.w * s.x])])
        m = torch.sigmoid(self.mix(inputs))
        return s.set(m=m, g=post, mean=0.5 * s.mean + 0.5 * post * s.x, w=s.w - 0.1 * (m[0] - s.mean) * post)

    def backward_message(self, s):
        return s.w * s.m[1]


class MeanUnit(mg.UnitAgent):
    """Averages what comes from above, and normalizes over its peers and the batch."""

    aggregate = {"post": "mean", "pre": "sum"}  # noqa: RUF012

    def forward_update(self, s, pre):
        centred = pre - s.population(pre, "mean")
        spread = s.population(centred * centred, "mean") + s.all(pre * pre) + 0.1
        top = s.population(pre, "max") + s.examples(pre, "min")
        return s.set(z=centred / torch.sqrt(spread) + 0.1 * top, y=torch.tanh(centred))


class Memories(Protocol):
    """Carries, common channels, a shared linear layer, means, totals over peers and examples."""

    passes = ("forward", "backward")
    bias = "between"

    def __init__(self):
        super().__init__(weight=Memory(), bias=Offset(), unit=MeanUnit())


class Offset(Agent):
    """A bias between the sum and the unit."""

    w = slow()

    def forward_update(self, s, pre):
        return s.set(w=s.w, z=pre)

    z, e = fast(), fast()

    def forward_message(self, s):
        return s.z + s.w

    def backward_update(self, s, post):
        return s.set(e=post, w=s.w - 0.1 * post)

    def backward_message(self, s):
        return s.e


class EachUnit(mg.UnitAgent):
    """Keeps backward messages apart and answers each connection alone."""

    aggregate = {"post": "each"}  # noqa: RUF012

    def backward_update(self, s, post):
        total = sum(post.values())
        return s.set(e=s.vjp(total, s.z, out=s.y), back=post * 2.0 - s.y)

    back = fast()

    def reply_message(self, s):
        return s.back


class EchoWeight(Agent):
    """Learns from what the unit below answered to this connection alone; messages are dictionaries."""

    w = slow(init=mg.xavier_uniform)
    x, e = fast(), fast()

    def forward_update(self, s, pre):
        return s.set(x=pre)

    def forward_message(self, s):
        return s.w * s.x

    def backward_update(self, s, post):
        return s.set(e=post)

    def backward_message(self, s):
        return s.w * s.e

    def reply_update(self, s, pre=None):
        if pre is None:
            return s
        noisy = s.e * (s.x + 0.1 * s.normal())
        return s.descend(w=noisy + 0.01 * pre * torch.where(s.x > 0, s.w, -s.w))


class Echo(Protocol):
    """``each`` roles, noise, conditions, an own pass name."""

    passes = ("forward", "backward", "reply")

    def __init__(self):
        super().__init__(weight=EchoWeight(), unit=EachUnit())
