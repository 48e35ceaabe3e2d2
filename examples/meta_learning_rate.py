"""Learn a learning rate: the gradient of the loss after ten steps with respect to a number inside the rule.

python examples/meta_learning_rate.py
"""

from functools import partial

import torch

import mpgraph as mg
from mpgraph import data
from mpgraph.architectures import mlp
from mpgraph.protocols import Backprop


def main(meta_steps=30, inner_steps=10, seeds=8):
    """Adam on the logarithm of the rate; eight networks at once by ``vmap``."""
    digits = data.load("digits").flat()
    rule = Backprop(lr=mg.learnable(0.01))
    program = mg.compile(mlp([64, 16, 10]), rule)
    start = program.init(range(seeds))
    generator = torch.Generator().manual_seed(0)

    def episode(rate, batches):
        """Loss on the last batch after learning on the others, averaged over networks."""
        state = start
        step = torch.func.vmap(partial(program.step, parameters={"optimizer.lr": rate}), (0, None, None))
        for x, y in batches:
            state, out = step(state, x, y)
        return out.loss.mean()

    log_rate = torch.tensor(0.01).log().requires_grad_()
    optimizer = torch.optim.Adam([log_rate], lr=0.2)
    losses = []
    for _ in range(meta_steps):
        batches = [b for _, b in zip(range(inner_steps + 1), digits.batches(32, generator), strict=False)]
        loss = episode(log_rate.exp(), batches)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    print(f"learning rate 0.01 -> {log_rate.exp().item():.3f}, loss after {inner_steps} steps ", end="")
    print(f"{losses[0]:.3f} -> {losses[-1]:.3f}")
    return losses


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
