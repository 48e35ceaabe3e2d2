"""One learning step of backprop: the program, its generated code, torch written by hand, and autograd with SGD.

python benchmarks/step.py
"""

import itertools
import time

import torch
from common import compare, conditions, report
from torch.nn import functional

import mpgraph as mg
from mpgraph.architectures import mlp
from mpgraph.protocols import Backprop, FeedbackAlignment

AUTOGRAD = "torch autograd + SGD"


def autograd(sizes, activation, x, y):
    """The usual training step of an ``nn.Sequential``."""
    layers = []
    for before, after in itertools.pairwise(sizes):
        layers += [torch.nn.Linear(before, after), activation()]
    model = torch.nn.Sequential(*layers[:-1])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def step():
        optimizer.zero_grad()
        functional.cross_entropy(model(x), y).backward()
        optimizer.step()

    return step


def by_hand(sizes, x, y):
    """What an expert writes: explicit forward, backward and update of a tanh network, nothing else, no checks."""
    weights = [torch.randn(after, before) / before**0.5 for before, after in itertools.pairwise(sizes)]
    state = [weights, [torch.zeros(size) for size in sizes[1:]]]
    one_hot = torch.eye(sizes[-1])
    scale, online = -0.1 / len(x), len(x) == 1

    def step():
        w, b = state
        activities = [x]
        for weight, bias in zip(w[:-1], b[:-1], strict=True):
            activities.append(torch.tanh(functional.linear(activities[-1], weight, bias)))
        z = functional.linear(activities[-1], w[-1], b[-1])
        target = one_hot.index_select(0, y)
        loss = torch.sum(torch.log_softmax(z, -1) * target, -1).neg().mean()
        e = torch.softmax(z, -1) - target
        new_w, new_b = [], []
        for weight, bias, activity in zip(w[::-1], b[::-1], activities[::-1], strict=True):
            if online:
                new_w.append(torch.addcmul(weight, e.t(), activity, value=scale))
                new_b.append(torch.add(bias, e[0], alpha=scale))
            else:
                new_w.append(torch.addmm(weight, e.t(), activity, alpha=scale))
                new_b.append(torch.add(bias, e.sum(0), alpha=scale))
            if activity is not x:
                e = torch.ops.aten.tanh_backward.default(torch.mm(e, weight), activity)
        state[:] = [new_w[::-1], new_b[::-1]]
        return loss

    return step


def program(sizes, rule, x, y):
    """A program's step, state fed back; and its generated code called directly."""
    compiled = mg.compile(mlp(sizes), rule)
    state = [compiled.init(), compiled.init()]
    function = compiled._function(online=len(x) == 1).module.forward
    target = torch.eye(sizes[-1]).index_select(0, y)

    def step():
        state[0], _ = compiled.step(state[0], x, y)

    def code():
        state[1] = function(state[1], [], {}, x, target)[0]

    return step, code


def main():
    """Print all figures."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(conditions())
    for sizes, batch, rounds in (
        ([784, 512, 10], 128, 100),
        ([784, 170, 130, 100, 70, 47], 1, 600),
        ([64, 32, 10], 32, 1000),
    ):
        x, y = torch.randn(batch, sizes[0]), torch.randint(0, sizes[-1], (batch,))
        step, code = program(sizes, Backprop(), x, y)
        alignment, _ = program(sizes, FeedbackAlignment(), x, y)
        medians = compare(
            {
                AUTOGRAD: autograd(sizes, torch.nn.Tanh, x, y),
                "torch by hand": by_hand(sizes, x, y),
                "generated code": code,
                "program.step": step,
                "program.step, feedback alignment": alignment,
            },
            rounds,
        )
        report(f"\n{'-'.join(map(str, sizes))} tanh, batch {batch}: us a step, ratio to autograd", medians, AUTOGRAD)
        overhead = medians["program.step"] - medians["generated code"]
        print(f"  program.step over its code         {1e6 * overhead:10.1f} us")
    floor(128, 784, 512)
    start = time.perf_counter()
    mg.compile(mlp([50] * 21), Backprop())
    print(f"\ncompiling a 20-layer network: {time.perf_counter() - start:.3f} s")


def floor(batch, inputs, outputs):
    """Only the two matrix products of the first layer: no step of that network can take less."""
    x, w, e = torch.randn(batch, inputs), torch.randn(outputs, inputs), torch.randn(batch, outputs)
    medians = compare({"forward": lambda: torch.mm(x, w.t()), "outer": lambda: torch.addmm(w, e.t(), x)}, 100)
    print(f"  the first layer's two products     {1e6 * sum(medians.values()):10.1f} us at batch {batch}")


if __name__ == "__main__":
    main()
