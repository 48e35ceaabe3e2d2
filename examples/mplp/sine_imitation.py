"""The learners of MPLP, each alone, imitate the agents of a teacher on what those see while it fits sinusoids.

python examples/mplp/sine_imitation.py examples/mplp/sine_teacher.safetensors --steps 2000 --out runs/sine_imitation

No learner meets another: messages and parameters are those of the teacher (`sine_teacher.py`), the memory is its own,
from zero, averaged over the ten points of each of five steps. What comes out is the start of `sinusoid.toml`. A message
has seven numbers:

    0  the error: d, then 10 e2, 100 e2 w at a synapse of h1->h2, 5 e1
    1  1.5 d
    2  the id of a unit, or what units take the mean of
    3  what else is sent: 4 v, 3 g, 0.15 z1
    4..6  a clock, one code for each step, which the loss keeps in its memory
"""

import argparse

import torch
from sine_teacher import DEVIATION, FIRST, LATER, MEAN_TANH, POINTS, SIZE, STEPS, loaded
from torch import nn

import mpgraph as mg
from mpgraph.architectures import mlp
from mpgraph.protocols import MPLP
from mpgraph.protocols.mplp.imitation import kinds

K, MEMORY, HIDDEN = 7, 3, (32, 16)
CLOCK = torch.tensor([[0.8, -0.4, -0.8], [-0.4, 0.8, -0.4], [-0.4, -0.4, 0.0], [-0.4, -0.4, 0.4], [-0.4, -0.4, 0.8]])
WEIGHTS = torch.tensor([1.0, 1.0, 1.0, 1.0, 0.3, 0.3, 0.3]) / 4.0  # of the numbers of a message
SMALL, TINY = 0.02, 0.003  # a change, of the largest step's, and a number of a message, that need not be met exactly


def message(t, *parts):
    """Numbers ``(..., c)`` and the clock as a message ``(..., c, K)`` of numbers that a learner can send."""
    parts = torch.broadcast_tensors(*parts)
    clock = CLOCK[t].expand(*parts[0].shape, 3)
    return torch.cat([torch.stack(parts, -1).clamp(-0.9, 0.9), clock], -1)


def seen(teacher, q, first, t, i, j):
    """Of step t, for each node: what its learner reads, ``(tasks, points, agents, ...)``, what it sends and changes.

    Args:
        teacher: whose step it was.
        q: what it kept of the step.
        first: what it kept of the first.
        t: the step.
        i, j: synapses of h1->h2 ``(tasks, synapses)`` that are looked at.
    """
    count, many = len(i), i.shape[1]
    rows, spread = torch.arange(count)[:, None], (count, POINTS, many)

    def each(v):
        return v[:, None].expand(count, POINTS, v.shape[-1])

    def at(v, units):
        return torch.gather(v, 2, units[:, None].expand(spread))

    d, zero = q["d"][..., None], torch.zeros(count, POINTS, 1)
    id1, id2, v = each(q["id1"]), each(q["id2"]), each(q["v"])
    loss = message(t, 1.5 * d, 1.5 * d, zero, zero)
    of_v = message(t, 10.0 * d * v, 1.5 * d, 0.7 * id2, 4.0 * v)
    of_h2 = message(t, 10.0 * q["e2"], 1.5 * d, 0.7 * id2, 4.0 * v)
    w, e, x = q["w2"][rows, i, j], at(q["e2"], j), at(q["h1"], i)
    w_each = w[:, None].expand(spread)
    hidden = teacher.mixed(t, x, w_each, e, at(id2, j), FIRST if t == 0 else LATER)
    g = teacher.of_w2.end(t, d, hidden, 1)
    mark = torch.tanh(first["w2"][rows, i, j] / DEVIATION)[:, None]
    of_w2 = message(t, 100.0 * e * w_each, 1.5 * d, 0.7 * mark, 3.0 * g)
    to_h1 = message(t, 5.0 * q["below"], 1.5 * d, 0.7 * MEAN_TANH / SIZE**0.5 * id1, 3.0 * q["other"])
    z1, z2 = q["z1"] + q["b1"][:, None], q["z2"] + q["b2"][:, None]
    of_h1 = message(t, 5.0 * q["e1"], 1.5 * d, 0.3 * id1, 0.15 * z1)
    to_w2 = torch.gather(of_h2, 2, j[:, None, :, None].expand(*spread, K))
    numbers = [n[..., None, None] for n in (q["y"], q["t"])]
    read = {
        "loss": [0.5 * d[..., None].square(), *numbers, d[..., None]],
        "y.bias": [loss, each(q["b3"]), q["z3"][..., None]],
        "h2->y": [loss.expand(count, POINTS, SIZE, K), v, q["h2"]],
        "h2": [of_v, z2],
        "h2.bias": [of_h2, each(q["b2"]), q["z2"]],
        "h1->h2": [to_w2, w_each, x],
        "h1": [to_h1, z1],
        "h1.bias": [of_h1, each(q["b1"]), q["z1"]],
        "x->h1": [of_h1, each(q["w1"]), q["x"][..., None].expand(count, POINTS, SIZE)],
    }
    sent = {"loss": loss, "y.bias": loss, "h2->y": of_v, "h2": of_h2, "h2.bias": of_h2, "h1->h2": of_w2}
    sent |= {"h1": of_h1, "h1.bias": of_h1}
    change = {"y.bias": q["db3"], "h2->y": q["dv"], "h2.bias": q["db2"], "h1->h2": q["dw2"][rows, i, j]}
    change |= {"h1.bias": q["db1"], "x->h1": q["dw1"]}
    read = {k: [n if n.ndim == 4 else n[..., None] for n in values] for k, values in read.items()}
    return {k: (values, sent.get(k), change.get(k)) for k, values in read.items()}


@torch.no_grad()
def lives(teacher, count, synapses, generator, noise):
    """What :func:`seen` says, step after step, while a teacher fits sinusoids with noise in its changes."""
    kept = []
    teacher.run(count, generator, noise, kept)
    i, j = torch.randint(SIZE, (2, count, synapses), generator=generator)
    steps = [seen(teacher, q, kept[0], t, i, j) for t, q in enumerate(kept)]
    return {k: [step[k] for step in steps] for k in steps[0]}


def fit(agent, life):
    """Shifts and factors of what a learner reads, and the scale of its changes.

    The first step, of weights N(0, 0.05), and later ones need to be told apart by one factor, so it lies between.
    """
    part = agent.standardiser
    for a, steps in enumerate(zip(*[values for values, _, _ in life], strict=True)):
        later = torch.cat([v.flatten() for v in steps[1:]])
        part.shift[a] = -later.mean()
        least, most = float(steps[0].std().clamp(min=1e-3)), float(later.std().clamp(min=1e-2))
        message_or_loss = steps[0].shape[-1] > 1 or (agent.output is None and part.inputs > 2)
        between = most if message_or_loss else max((least * most) ** 0.5, 0.2 * most)
        part.factor[a] = 1.0 / (DEVIATION if a == 1 and agent.output is not None and least > 0.04 else between)
    if agent.output is not None:
        agent.output.scale.data.fill_(1.15 * max(float(c.abs().flatten().quantile(0.999)) for _, _, c in life))


def errors(agent, life, generator):
    """Relative squared errors of messages and changes, the first step counts thrice."""
    memory, found = 0.0, []
    moved = [c.square().mean() for _, _, c in life if c is not None]
    for t, (values, sent, change) in enumerate(life):
        weight = (3.0 if t == 0 else 1.0) / STEPS
        if agent.output is not None or len(values) == 2:  # all but the loss read messages, which are never exact
            values = [values[0] * (1.0 + 0.04 * torch.randn(values[0].shape, generator=generator)), *values[1:]]
        inputs = torch.cat(agent.standardiser(values), -1)
        memory = memory + torch.zeros(*inputs.shape[:-1], agent.learner.size)
        made = agent.learner.gru(memory, inputs)
        if sent is not None:
            error, size = (made[..., -K:] - sent).square().mean((0, 1, 2)), sent.square().mean((0, 1, 2))
            found.append(weight * (WEIGHTS * error / size.clamp(min=TINY)).sum())
        memory = made.mean(1, keepdim=True)
        if change is not None:
            error = (memory[:, 0, :, 0] * agent.output.scale.detach() - change).square().mean()
            found.append(weight * error / (change.square().mean() + SMALL**2 * max(moved)))
    return torch.stack(found).sum()


def imitated(teacher, steps, rate, seed, tasks, synapses, out):
    """The rule."""
    generator = torch.Generator().manual_seed(seed)
    rule = MPLP(K, MEMORY, share="node", memory="synapse", hidden=HIDDEN, floor=0.01, generator=generator)
    program = mg.compile(mlp([1, SIZE, SIZE, 1], "relu", "l2"), rule)
    agents = {node.name: agent for _, agent, node in kinds(program.graph).values()}
    first = lives(teacher, 64, 200, generator, 0.0)
    for name, agent in agents.items():
        fit(agent, first[name])
    optimizer = torch.optim.Adam(rule.parameters(), rate, betas=(0.9, 0.98))
    schedule, sums = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps), dict.fromkeys(agents, 0.0)
    for i in range(1, steps + 1):
        life = lives(teacher, tasks, synapses, generator, 0.05)
        found = {name: errors(agent, life[name], generator) for name, agent in agents.items()}
        optimizer.zero_grad()
        sum(found.values()).backward()
        for agent in agents.values():
            nn.utils.clip_grad_norm_(agent.learner.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        sums = {name: sums[name] + float(e.detach()) / 100 for name, e in found.items()}
        if i % 100 == 0:
            print(f"{i}:", *(f"{name} {v:.3f}" for name, v in sums.items()), flush=True)
            record = {
                "stage": "examples/mplp/sine_imitation.py",
                "steps": i,
                "rate": rate,
                "seed": seed,
                "errors": sums,
            }
            rule.save(out, record)
            sums = dict.fromkeys(agents, 0.0)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("teacher", help="a file of sine_teacher.py")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--tasks", type=int, default=5, help="that the teacher fits in each step (default: 5)")
    parser.add_argument("--synapses", type=int, default=64, help="of h1->h2 in each task (default: 64)")
    parser.add_argument("--rate", type=float, default=5e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="runs/sine_imitation")
    given = parser.parse_args()
    torch.set_num_threads(1)
    imitated(loaded(given.teacher), given.steps, given.rate, given.seed, given.tasks, given.synapses, given.out)
