"""A teacher for `mplp_sinusoid`: a rule for 1-20-20-1 in plain torch, trained by its own loss, many tasks side by side.

python examples/mplp/sine_teacher.py --steps 1200 --out runs/sine_teacher.safetensors
python examples/mplp/sine_teacher.py --judge examples/mplp/sine_teacher.safetensors

Its agents see what MPLP's agents see, and no more, so learners can imitate each of them (`sine_imitation.py`); but they
are formulas with small corrections, so a training step takes a tenth of the time that it takes the learners. d = t - y:

    agent          message to the agents below it                   change of its parameter
    loss           d
    y.bias         d                                                d
    h2->y          d v, d, id, v                                    d (h2 - a);               first step: v by its sign
    h2             d v f'(z2), d, id, v                             (e from here on)
    h2.bias        the same                                         e;                        first step: by id
    h1->h2         means of e w, d, id, g(x, w, e, id)              e (x - a) + g'(x, w, e, id); first step: tanh of w
    h1             (sum of e w) f'(z1) + mean of g, d, id, z1
    h1.bias        the same                                         e;                        first step: by id
    x->h1          nobody reads one                                 e x;                      first step: tanh of w

This is gradient descent with rates of its own for each layer and step, that in the first step also throws away the
initial weights N(0, 0.05), with which nothing can be fitted. Zero biases are spread by random numbers that travel in
messages: id is tanh of the first v at a unit of the second layer, and the mean of tanh of the first w of its synapses
at one of the first. To every line a net of one hidden layer adds N(...) + d N'(...), from the same numbers.
All numbers are trained by Adam through five steps of ten points, for each step apart. The correction of h1->h2 is what
leaves the plateau of predicting zero: in the first step it reads activities on their own scale, 1/20 of later ones, and
correlates functions of them with targets. Noise on every change keeps what is found imitable.

`sine_teacher.safetensors` is the teacher that was imitated. It was trained in two pieces, 500 steps at 1e-2 and 350 at
5e-3 with noise; in the first one biases of the first layer also read x, and changes had momentum. Taking both away cost
nothing.
"""

import argparse
import math

import torch
from safetensors.torch import load_file, save_file
from torch import nn

SIZE, POINTS, STEPS, DEVIATION = 20, 10, 5, 0.05
MEAN_TANH = 0.63  # deviation of tanh of a normal number
FIRST = {"x": 20.0, "z": 0.0, "w": 20.0, "gate": 20.0}  # scales of what corrections read, in the first step
LATER = {"x": 0.4, "z": 0.5, "w": 4.0, "gate": 1.0}


def tasks(count, generator, queries=100):
    """``count`` sinusoids: x and y of every step ``(count, 5, 10)``, queries ``(count, queries)``."""
    a = 0.1 + 0.4 * torch.rand(count, 1, 1, generator=generator)
    p = math.pi * torch.rand(count, 1, 1, generator=generator)
    x = 10.0 * torch.rand(count, STEPS, POINTS, generator=generator) - 5.0
    query = torch.linspace(-5.0, 5.0, queries).expand(count, queries)
    return x, a * torch.sin(x + p), query, a[:, 0] * torch.sin(query + p[:, 0])


def forward(p, x):
    """All that agents see in the forward pass for x ``(count, points)``; z is without the bias."""
    z1 = x[..., None] * p["w1"][:, None]
    h1 = torch.relu(z1 + p["b1"][:, None])
    z2 = h1 @ p["w2"]
    h2 = torch.relu(z2 + p["b2"][:, None])
    z3 = (h2 @ p["v"][..., None])[..., 0]
    return {"z1": z1, "h1": h1, "z2": z2, "h2": h2, "z3": z3, "y": z3 + p["b3"]}


class Correction(nn.Module):
    """Nets with one hidden layer, one for each step: N(inputs) + d N'(inputs), zero at first."""

    def __init__(self, inputs, hidden=12, outputs=1):
        super().__init__()
        self.read = nn.Parameter(torch.randn(STEPS, inputs, hidden) / inputs**0.5)
        self.shift = nn.Parameter(0.3 * torch.randn(STEPS, hidden))
        self.plain, self.timed = (nn.Parameter(torch.zeros(STEPS, hidden, outputs)) for _ in range(2))
        self.constant = nn.Parameter(torch.zeros(STEPS, outputs))

    def hidden(self, t, *inputs):
        """The hidden layer; inputs of one shape."""
        return torch.tanh(sum(v[..., None] * self.read[t, k] for k, v in enumerate(inputs)) + self.shift[t])

    def end(self, t, d, hidden, k=0):
        """Output k of a hidden layer."""
        return hidden @ self.plain[t, :, k] + self.constant[t, k] + d * (hidden @ self.timed[t, :, k])

    def forward(self, t, d, *inputs):
        """The correction, of the shape of the inputs."""
        return self.end(t, d, self.hidden(t, *inputs))


class Teacher(nn.Module):
    """The rule of the table above."""

    def __init__(self):
        super().__init__()

        def number(value):
            return nn.Parameter(torch.tensor(value))

        def rate(value):
            return nn.Parameter(torch.full((STEPS,), math.log(value)))

        self.signs, self.slope, self.spread, self.middle, self.even = map(number, (3.0, 1.0, 2.0, -0.3, 0.7))
        self.mean2, self.random2, self.bias2, self.spread2 = map(number, (-0.05, 0.15, 0.5, 0.5))
        self.mean3, self.random3, self.ids, self.bias3 = map(number, (0.03, 0.05, 1.0, 0.0))
        self.rate = nn.ParameterDict(
            {k: rate(v) for k, v in {"v": 0.05, "w2": 0.5, "b2": 0.5, "w1": 1.0, "b1": 2.0, "b3": 0.4}.items()}
        )
        self.centre1, self.centre2 = (nn.Parameter(torch.zeros(STEPS)) for _ in range(2))
        self.of_v, self.of_b2, self.of_h2 = Correction(4), Correction(4), Correction(4)
        self.of_w2 = Correction(4, 10, 2)
        self.of_b1, self.of_w1 = Correction(5), Correction(6)

    def begin(self, count, generator):
        """Fresh networks, and the random numbers that their units will be known by."""
        w1, w2, v = (
            DEVIATION * torch.randn(count, *shape, generator=generator) for shape in ((SIZE,), (SIZE, SIZE), (SIZE,))
        )
        zeros = torch.zeros(count, SIZE)
        p = {"w1": w1, "b1": zeros, "w2": w2, "b2": zeros, "v": v, "b3": torch.zeros(count, 1)}
        id1 = torch.tanh(w2 / DEVIATION).mean(2) * SIZE**0.5 / MEAN_TANH
        return p, id1, torch.tanh(self.ids * v / DEVIATION)

    def mixed(self, t, seen, w, e, id2, scale):
        """The hidden layer of the correction at h1->h2: activities, weights, errors and ids of one shape."""
        return self.of_w2.hidden(t, seen * scale["x"], w * (20.0 if t == 0 else 3.0), e * 10.0, id2)

    def step(self, t, p, id1, id2, x, target):
        """Changes of all parameters in step t, and everything that was seen and sent on the way."""
        scale, f = FIRST if t == 0 else LATER, forward(p, x)
        error = target - f["y"]
        count, shape = len(x), (len(x), x.shape[1], SIZE)
        d = error[..., None].expand(shape)
        i1, i2, v, w1 = (n[:, None].expand(shape) for n in (id1, id2, p["v"], p["w1"]))
        z1, z2 = f["z1"] + p["b1"][:, None], f["z2"] + p["b2"][:, None]
        read = (v * scale["w"], 4.0 * d)
        dv = self.rate["v"][t].exp() * d * (f["h2"] - self.centre2[t])
        dv = dv + 0.1 * self.of_v(t, d, f["h2"] * scale["z"], i2, *read)
        e2 = d * v * torch.sigmoid(6.0 * scale["gate"] * z2) + 0.1 * self.of_h2(t, d, z2 * scale["z"], i2, *read)
        db2 = self.rate["b2"][t].exp() * e2 + 0.3 * self.of_b2(t, d, z2 * scale["z"], i2, *read)
        full = (count, x.shape[1], SIZE, SIZE)
        hidden = self.mixed(
            t,
            f["h1"][..., None].expand(full),
            p["w2"][:, None].expand(full),
            e2[:, :, None].expand(full),
            i2[:, :, None].expand(full),
            scale,
        )
        timed = torch.einsum("nbijh,nb->nijh", hidden, error / x.shape[1])  # means first, the last layer is linear
        net = self.of_w2
        mixed = hidden.mean(1) @ net.plain[t, :, 0] + net.constant[t, 0] + timed @ net.timed[t, :, 0]
        dw2 = self.rate["w2"][t].exp() * (f["h1"] - self.centre1[t]).mT @ e2 / x.shape[1] + 0.1 * mixed
        other = net.end(t, d, hidden.mean(3), 1)
        below = e2 @ p["w2"].mT
        e1 = below * torch.sigmoid(6.0 * scale["gate"] * z1) + 0.1 * other
        read = (i1, 5.0 * e1, 4.0 * d)
        z = 0.0 if t == 0 else 0.4
        db1 = self.rate["b1"][t].exp() * e1 + 0.5 * self.of_b1(t, d, z1 * z, f["z1"] * z, *read)
        xs = x[..., None].expand(shape)
        dw1 = self.rate["w1"][t].exp() * e1 * xs
        dw1 = dw1 + 0.2 * self.of_w1(t, d, xs / 3.0, w1 * (20.0 if t == 0 else 1.0), z1 * z, *read)
        change = {"w1": dw1.mean(1), "b1": db1.mean(1), "w2": dw2, "b2": db2.mean(1), "v": dv.mean(1)}
        change["b3"] = self.rate["b3"][t].exp() * error.mean(1, keepdim=True)
        if t == 0:
            fresh = {
                "w1": self.slope * torch.tanh(self.signs * p["w1"] / DEVIATION),
                "b1": self.spread * torch.tanh(self.even * id1) + self.middle,
                "w2": self.mean2 + self.random2 * torch.tanh(p["w2"] / DEVIATION),
                "b2": self.bias2 + self.spread2 * id2,
                "v": self.mean3 + self.random3 * id2,
                "b3": self.bias3,
            }
            change = {k: c + fresh[k] for k, c in change.items()}
        return change, {**f, "d": error, "e2": e2, "below": below, "other": other, "e1": e1}

    def run(self, count, generator, noise=0.0, keep=None):
        """Losses on each step's points after it, and on queries ``(count,)`` before and after every step.

        Args:
            count: of tasks and networks.
            generator: of them.
            noise: relative deviation of the changes.
            keep: a list that receives, for every step, what was seen, sent and changed.
        """
        x, y, query, answer = tasks(count, generator)
        p, id1, id2 = self.begin(count, generator)
        hints, losses = [], [0.5 * answer.square().mean(1)]
        for t in range(STEPS):
            change, seen = self.step(t, p, id1, id2, x[:, t], y[:, t])
            if keep is not None:
                keep.append({**p, **{f"d{k}": c for k, c in change.items()}, **seen, "x": x[:, t], "t": y[:, t]})
                keep[-1] |= {"id1": id1, "id2": id2}
            if noise:
                change = {
                    k: c * (1.0 + noise * torch.randn(c.shape, generator=generator))
                    + 0.5 * noise * c.detach().square().mean().sqrt() * torch.randn(c.shape, generator=generator)
                    for k, c in change.items()
                }
            p = {k: p[k] + c for k, c in change.items()}
            hints.append(0.5 * (forward(p, x[:, t])["y"] - y[:, t]).square().mean())
            losses.append(0.5 * (forward(p, query)["y"] - answer).square().mean(1))
        return hints, losses


def loaded(path):
    """A teacher from a file."""
    teacher = Teacher()
    teacher.load_state_dict(load_file(path))
    return teacher


def trained(steps, count, rate, seed, noise):
    """A teacher, trained."""
    torch.manual_seed(seed)
    generator, teacher = torch.Generator().manual_seed(seed), Teacher()
    optimizer = torch.optim.Adam(teacher.parameters(), rate, betas=(0.9, 0.98))
    schedule, sums = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps), 0.0
    for i in range(1, steps + 1):
        hints, losses = teacher.run(count, generator, noise * (i > steps // 3))
        loss = 0.1 * sum(hints) + 0.2 * sum(one.mean() for one in losses[1:]) + losses[-1].mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(teacher.parameters(), 0.02)
        optimizer.step()
        schedule.step()
        sums = sums + torch.stack([one.mean().detach() for one in losses])
        if i % 50 == 0:
            print(f"{i}: L2 after 0..5 steps:", *(f"{v:.5f}" for v in sums / 50), flush=True)
            sums = 0.0
    return teacher


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--tasks", type=int, default=24, help="in each step (default: 24)")
    parser.add_argument("--rate", type=float, default=1e-2)
    parser.add_argument("--noise", type=float, default=0.03, help="of changes, after a third of the steps")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="runs/sine_teacher.safetensors")
    parser.add_argument("--judge", metavar="FILE", help="a teacher, instead of training one")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.judge:
        made = loaded(given.judge)
    else:
        made = trained(given.steps, given.tasks, given.rate, given.seed, given.noise)
        save_file(made.state_dict(), given.out)
    with torch.no_grad():
        _, found = made.run(500, torch.Generator().manual_seed(10**6 + given.seed))
    print("500 fresh tasks:", *(f"{v.mean():.5f}" for v in found), f"+- {found[-1].std():.5f} at last")
