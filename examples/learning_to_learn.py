"""Learn to learn: genomes trained to learn xor and or, by no gradient of the network, learn nxor, never met before.

Eight random BLUR genomes of 20 numbers at once; each makes five updates of fresh 2-20-1 networks, and the gradient of
the L2 loss on the next batch goes back to it through all five. Two CPU-minutes; new networks then learn in five steps.

python examples/learning_to_learn.py --seed 0 --figure learning_to_learn.png
"""

import argparse
import time

import matplotlib.pyplot as plt
import torch

import mpgraph as mg
from mpgraph.protocols import BLUR

UPDATES, BATCH, GENOMES = 5, 64, 8
XOR, OR, NXOR = lambda x: x.prod(-1) > 0, lambda x: (x > 0).any(-1), lambda x: x.prod(-1) < 0  # of two numbers, -1 to 1


def uniform(generator, *shape):
    return 2.0 * torch.rand(shape, generator=generator) - 1.0


def episode(program, genomes, tasks, generator):
    """Loss and accuracy of new networks before each update and after the last, ``(2, updates + 1, genomes, tasks)``."""
    many, start, measured = GENOMES * len(tasks), program.init(), []
    state = {n: {c: uniform(generator, many, *t.shape) for c, t in k.items()} for n, k in start.items()}
    state["program"] = {c: t.expand(many) for c, t in start["program"].items()}
    each = {name: p.repeat_interleave(len(tasks), 0) for name, p in genomes.items()}
    step = torch.func.vmap(lambda g, s, x, y: program.step(s, x, y, parameters=g))
    for _ in range(UPDATES + 1):
        x = uniform(generator, GENOMES, len(tasks), BATCH, 2)
        y = 2.0 * torch.stack([task(x[:, i]) for i, task in enumerate(tasks)], 1)[..., None] - 1.0
        state, out = step(each, state, x.flatten(0, 1), y.flatten(0, 1))
        z = out.prediction.unflatten(0, (GENOMES, len(tasks)))
        measured.append(torch.stack([(z - y).square().mean((2, 3)), (z * y > 0).float().mean((2, 3))]))
    return torch.stack(measured, 1)


def main(meta_steps=5000, seconds=110.0, seed=0, figure=None):
    """Mean loss at each meta-step, and for each task the accuracies of the genome that is best at xor and or."""
    network = mg.Network()
    network.input("x", 2), network.unit("h", 20, lambda z: torch.relu(torch.tanh(z))), network.unit("y", 1, "tanh")
    network.connect("x", "h"), network.connect("h", "y"), network.loss("y", "l2")
    rules = [BLUR.published(seed=GENOMES * seed + i) for i in range(GENOMES)]
    program, genomes = mg.compile(network, rules[0]), torch.func.stack_module_state(rules)[0]
    adam, generator = torch.optim.Adam(genomes.values(), lr=3e-3), torch.Generator().manual_seed(seed)
    losses, begin = [], time.process_time()
    while len(losses) < meta_steps and time.process_time() - begin < seconds:
        loss = episode(program, genomes, (XOR, OR), generator)[0, -1]
        adam.zero_grad()
        loss.sum().backward()
        norms = sum(p.grad.reshape(GENOMES, -1).square().sum(1) for p in genomes.values()).sqrt()
        for p in genomes.values():  # clipped at 10, each genome by itself
            p.grad.mul_((10.0 / norms.clamp(min=10.0)).reshape(-1, *[1] * (p.ndim - 1)))
        adam.step()
        losses.append(loss.mean().item())
    with torch.no_grad():
        found = sum(episode(program, genomes, (XOR, OR, NXOR), generator)[1] for _ in range(50)) / 50
    best = found[-1, :, :2].mean(1).argmax()
    curves = {task: found[:, best, i].tolist() for i, task in enumerate(("xor", "or", "nxor"))}
    print(f"seed {seed}: {len(losses)} meta-steps, {time.process_time() - begin:.0f} CPU s; accuracy by updates")
    print("\n".join(f"{task:5} " + " ".join(f"{value:.2f}" for value in curve) for task, curve in curves.items()))
    if figure:
        drawing, (left, right) = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")
        left.plot(losses), left.set(xlabel="meta-step", ylabel="L2 loss after five updates")
        right.plot(torch.tensor(list(curves.values())).T, marker="o", label=list(curves))
        right.set(xlabel="updates of a new network", ylabel="accuracy"), right.legend(), drawing.savefig(figure)
    return losses, curves


if __name__ == "__main__":
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=110.0, help="CPU time to train for")
    parser.add_argument("--figure", help="where to save a picture")
    main(**vars(parser.parse_args()))
