"""What a meta-step of a learned rule costs: unroll, meta-gradient, Adam; medians of CPU and wall time, peak memory.

python benchmarks/learned.py --rule blur
python benchmarks/learned.py --rule mplp
python benchmarks/learned.py --rule vsml
"""

import argparse
import resource
import statistics
import time

import torch
from common import conditions

import mpgraph as mg
from mpgraph.architectures import mlp
from mpgraph.protocols import BLUR, MPLP, VSML


def blur():
    """784-512-10, batch 128, k 2, synapses of two channels both ways, ten updates, then a loss on a fresh batch."""
    rule = BLUR.published(feedback="sign", eta_tilde=-1e-4)
    program = mg.compile(mlp([784, 512, 10], activation="tanh"), rule)
    adam, start = torch.optim.Adam(rule.parameters(), lr=5e-4), program.init()
    xs, ys = torch.randn(11, 128, 784), torch.randint(0, 10, (11, 128))

    def meta_step():
        state = start
        for x, y in zip(xs[:10], ys, strict=False):
            state, _ = program.step(state, x, y)
        loss = torch.nn.functional.cross_entropy(program.predict(state, xs[10]), ys[10])
        adam.zero_grad()
        loss.backward()
        adam.step()

    return {"meta-step": meta_step}


def vsml():
    """784-10, 16 + 16 numbers a synapse, messages of 8, two micro ticks, batch 1: learning online, and through it."""
    rule = VSML()
    program = mg.compile(mlp([784, 10]), rule)
    start, compiled = program.init(batch_size=1), torch.compile(program.step)
    xs, ys = torch.randn(50, 1, 784), torch.randint(0, 10, (50, 1))

    def learn(step):
        state, losses = start, []
        for x, y in zip(xs, ys, strict=True):
            state, out = step(state, x, y)
            losses.append(out.loss)
        return torch.stack(losses).mean()

    def meta_gradient():
        torch.autograd.grad(learn(program.step), list(rule.parameters()), allow_unused=True)

    def fifty(step):
        with torch.no_grad():
            learn(step)

    state, matrix = torch.randn(7840, 16), torch.randn(16, 16)

    def least():
        """The matrix products and sigmoids of 50 examples, and nothing else; a tanh is a sigmoid."""
        for _ in range(100):
            gates = [torch.sigmoid(torch.mm(state, matrix)) for _ in range(4)]
            torch.sigmoid(gates[0])

    return {
        "50 examples": lambda: fifty(program.step),
        "50, least possible": least,
        "50, torch.compile": lambda: fifty(compiled),
        "meta-gradient of 50": meta_gradient,
    }


def mplp():
    """144-50-10, batch 8, k 4, twenty updates with a hint loss after each, then a loss on a fresh batch."""
    rule = MPLP(k=4, n=7)
    program = mg.compile(mlp([144, 50, 10], activation="sigmoid"), rule)
    adam, start = torch.optim.Adam(rule.parameters(), lr=5e-4), program.init(batch_size=8)
    xs, ys = torch.randn(21, 8, 144), torch.randint(0, 10, (21, 8))

    def meta_step():
        state, hint = start, 0.0
        for x, y in zip(xs[:20], ys, strict=False):
            state, _ = program.step(state, x, y)
            hint = hint + torch.nn.functional.cross_entropy(program.predict(state, x), y)
        loss = 0.7 * hint / 20 + 0.3 * torch.nn.functional.cross_entropy(program.predict(state, xs[20]), ys[20])
        adam.zero_grad()
        loss.backward()
        adam.step()

    return {"meta-step": meta_step}


RULES = {"blur": blur, "mplp": mplp, "vsml": vsml}


def measured(function, rounds):
    """Median CPU and wall seconds of a call, after one to warm up."""
    function()
    cpu, wall = [], []
    for _ in range(rounds):
        before = time.process_time(), time.perf_counter()
        function()
        cpu.append(time.process_time() - before[0])
        wall.append(time.perf_counter() - before[1])
    return statistics.median(cpu), statistics.median(wall)


def main():
    """Print a line for each thing that a rule has to show."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rule", choices=RULES, required=True)
    parser.add_argument("--rounds", type=int, default=9, help="calls of which the median is taken (default: 9)")
    parser.add_argument("--threads", type=int, default=1, help="of torch (default: 1)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    print(conditions())
    make = RULES[options.rule]
    print(f"{options.rule}: {make.__doc__}")
    for name, function in make().items():
        cpu, wall = measured(function, options.rounds)
        print(f"  {name:20} {cpu:8.4f} CPU s   {wall:8.4f} s")
    print(f"  peak memory of the process {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")


if __name__ == "__main__":
    main()
