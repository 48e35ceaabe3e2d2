"""Equilibrium propagation beside the loop that one would write by hand: python -m benchmarks.settling.

784-500-10, batches of 20, one thread; a step is a free phase, two nudged ones and the update. The loop by hand computes
what the input drives once, as generated code does; ``plain`` computes it in every round, as published scripts do.
"""

import time

import torch

import mpgraph as mg
from mpgraph.architectures import mlp
from mpgraph.protocols import EquilibriumPropagation

RATE, BETA, LR = 0.5, 0.2, 0.1


def by_hand(weights, x, target, free, nudged, once=True):
    """One step of equilibrium propagation on ``x -> h (tanh) -> y (linear, squared error)``, symmetric nudges."""
    w1, b1, w2, b2 = weights

    def settle(h, y, rounds, beta):
        drive = torch.nn.functional.linear(x, w1, b1)
        for _ in range(rounds):
            if not once:
                drive = torch.nn.functional.linear(x, w1, b1)
            a = torch.tanh(h)
            new_h = h + RATE * (torch.addmm(drive, y, w2) - h)
            pull = torch.nn.functional.linear(a, w2, b2)
            if beta:
                pull = pull - beta * (y - target)
            h, y = new_h, y + RATE * (pull - y)
        return h, y

    h, y = settle(x.new_zeros(len(x), len(b1)), x.new_zeros(len(x), len(b2)), free, 0.0)
    (h1, y1), (h2, y2) = settle(h, y, nudged, BETA), settle(h, y, nudged, -BETA)
    a1, a2, scale = torch.tanh(h1), torch.tanh(h2), LR / (2 * BETA * len(x))
    return (
        torch.addmm(w1, (a1 - a2).t(), x, alpha=scale),
        b1 + scale * (a1 - a2).sum(0),
        torch.addmm(torch.addmm(w2, y1.t(), a1, alpha=scale), y2.t(), a2, alpha=-scale),
        b2 + scale * (y1 - y2).sum(0),
    )


def seconds(step, budget=1.0):
    """The fastest of many."""
    step()
    best, end = float("inf"), time.perf_counter() + budget
    while time.perf_counter() < end:
        start = time.perf_counter()
        step()
        best = min(best, time.perf_counter() - start)
    return best


def row(free):
    """Seconds of compilation, lines of code, and seconds of a step: of mpgraph, by hand, and by hand without care."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.rand(20, 784, generator=generator), torch.rand(20, 10, generator=generator)
    rule = EquilibriumPropagation(free=free, nudged=free // 5, beta=BETA, lr=LR)
    start = time.process_time()
    program = mg.compile(mlp([784, 500, 10], "tanh", "l2"), rule)
    compiling = time.process_time() - start
    state, names = program.init(), ("x->h1", "h1.bias", "h1->y", "y.bias")
    w = [state[name]["w"] for name in names]
    steps = (
        lambda: program.step(state, x, y),
        lambda: by_hand(w, x, y, free, free // 5),
        lambda: by_hand(w, x, y, free, free // 5, once=False),
    )
    after, hand = steps[0]()[0], steps[1]()
    for name, tensor in zip(names, hand, strict=True):
        assert torch.allclose(after[name]["w"], tensor, atol=1e-5), name
    times = [[seconds(step) for step in steps] for _ in range(3)]
    return compiling, len(program.code.splitlines()), *(min(column) for column in zip(*times, strict=True))


def main():
    """The table."""
    torch.set_num_threads(1)
    print("sweeps  compile s  lines  mpgraph ms  by hand ms  plain ms  ratio")
    for free in (20, 100, 300):
        with torch.no_grad():
            compiling, lines, ours, theirs, plain = row(free)
        print(
            f"{free:6}  {compiling:9.2f}  {lines:5}  {1e3 * ours:10.2f}  {1e3 * theirs:10.2f}  {1e3 * plain:8.2f}  "
            f"{ours / theirs:5.2f}"
        )


if __name__ == "__main__":
    main()
