"""Generate a pattern in time: e-prop and RFLO turn noise that is the same in every trial into a sum of sines.

python examples/pattern_generation.py
"""

import torch

import mpgraph as mg
from mpgraph.architectures import recurrent
from mpgraph.protocols import RFLO, EProp

TICKS, UNITS, INPUTS = 40, 20, 5


def pattern(generator):
    """Inputs (1, ticks, inputs) and targets (1, ticks, 1)."""
    x = torch.randn(1, TICKS, INPUTS, generator=generator)
    t = 2 * torch.pi * torch.arange(TICKS) / TICKS
    phases = 2 * torch.pi * torch.rand(3, generator=generator)
    return x, sum(torch.sin((k + 1) * t + phase) for k, phase in enumerate(phases))[None, :, None]


def error(network, rule, trials, seed=0):
    """Squared error after learning, in the variance of the pattern: 1 is that of the best constant."""
    program, (x, y) = mg.compile(network, rule), pattern(torch.Generator().manual_seed(seed))
    state = program.init(seed, batch_size=1)
    for _ in range(trials):
        state, _ = program.step(program.reset(state), x, y)
    return float((program.predict(state, x, memories="fresh") - y).square().mean() / y.var(unbiased=False))


def main(trials=200, seeds=3):
    """Each rule, and the same with only the connection to the output trained."""
    network, found = recurrent([INPUTS, UNITS, 1], TICKS, loss="l2"), {}
    for make in (EProp, RFLO):
        for trained in ("all", "readout only"):
            drawn = network if trained == "all" else network.readout_only()
            rows = [error(drawn, make(0.03), trials, seed) for seed in range(seeds)]
            found[make.__name__, trained] = sum(rows) / seeds
            print(f"{make.__name__:5}  {trained:12}  {', '.join(f'{row:.3f}' for row in rows)}", flush=True)
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    with torch.no_grad():
        main()
