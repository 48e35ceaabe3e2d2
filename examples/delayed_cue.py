"""Remember a cue over a delay: recurrent networks that learn at every tick by e-prop and RFLO, from noisy inputs.

python examples/delayed_cue.py
"""

import torch

import mpgraph as mg
from mpgraph.architectures import recurrent
from mpgraph.protocols import RFLO, EProp

TICKS, UNITS, BATCH = 20, 40, 50


def trials(size, generator):
    """Inputs (size, ticks, 3): which of two cues at the first tick, a signal to answer at the last; the answers."""
    cue = torch.randint(0, 2, (size,), generator=generator)
    x = 0.1 * torch.randn(size, TICKS, 3, generator=generator)
    x[torch.arange(size), 0, cue] += 1.0
    x[:, -1, 2] += 1.0
    y = torch.full((size, TICKS), -100)  # no target
    y[:, -1] = cue
    return x, y


def accuracy(network, rule, batches, seed=0):
    """Share of 1000 new trials that are answered as they should be, after learning."""
    program, generator = mg.compile(network, rule), torch.Generator().manual_seed(seed)
    state = program.init(seed, batch_size=BATCH)
    for _ in range(batches):
        state = program.reset(state)  # a new sequence begins
        state, _ = program.step(state, *trials(BATCH, generator))
    x, y = trials(1000, generator)
    answers = program.predict(state, x, memories="fresh")[:, -1].argmax(-1)
    return float((answers == y[:, -1]).float().mean())


def main(batches=150, seeds=3):
    """Each rule, and the same with only the connection to the output trained."""
    network, found = recurrent([3, UNITS, 2], TICKS), {}
    for make in (EProp, RFLO):
        for trained in ("all", "readout only"):
            drawn = network if trained == "all" else network.readout_only()
            rows = [accuracy(drawn, make(optimizer=mg.Adam(0.01)), batches, seed) for seed in range(seeds)]
            found[make.__name__, trained] = sum(rows) / seeds
            print(f"{make.__name__:5}  {trained:12}  {', '.join(f'{100 * row:.1f}' for row in rows)} %")
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    with torch.no_grad():
        main()
