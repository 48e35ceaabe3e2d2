"""Learning at every tick beside the loop that one would write by hand: python -m benchmarks.ticks.

A recurrent network 10-100-10 (tanh, cross-entropy), batches of 20, one thread, e-prop with symmetric feedback.
Sequences of any length run in the code of one tick, which is compiled once.
"""

import time

import torch

import mpgraph as mg
from mpgraph.architectures import recurrent
from mpgraph.protocols import EProp

SIZES, BATCH, DECAY, LR = (10, 100, 10), 20, 0.9, 0.1


def by_hand(weights, x, y):
    """The weights after a sequence, as one would write it in torch."""
    win, wrec, b, wout, c = weights
    h = z = p_rec = x.new_zeros(BATCH, SIZES[1])
    p_in, p_b, targets = x.new_zeros(BATCH, SIZES[0]), x.new_zeros(BATCH), torch.eye(SIZES[2])[y]
    for t in range(x.shape[1]):
        heard = x[:, t]
        drive = torch.addmm(torch.addmm(b, heard, win.t()), z, wrec.t())
        h = DECAY * h + (1 - DECAY) * drive
        p_in, p_rec, p_b = (
            DECAY * p + (1 - DECAY) * v for p, v in ((p_in, heard), (p_rec, z), (p_b, torch.ones_like(p_b)))
        )
        z = torch.tanh(h)
        error = torch.softmax(torch.addmm(c, z, wout.t()), -1) - targets[:, t]
        e = (error @ wout) * (1 - z * z)
        win, wrec = (torch.addmm(w, e.t(), p, alpha=-LR / BATCH) for w, p in ((win, p_in), (wrec, p_rec)))
        b = torch.addmv(b, e.t(), p_b, alpha=-LR / BATCH)
        wout, c = torch.addmm(wout, error.t(), z, alpha=-LR / BATCH), c - LR * error.mean(0)
    return win, wrec, b, wout, c


def seconds(call, times=5):
    """The fastest of several calls, in CPU time of this process."""
    found = []
    for _ in range(times):
        start = time.process_time()
        call()
        found.append(time.process_time() - start)
    return min(found)


def main(lengths=(30, 300)):
    """A row for each length of a sequence."""
    print("ticks  compile s  lines  mpgraph ms  by hand ms  ratio")
    rows = []
    for ticks in lengths:
        start = time.process_time()
        program = mg.compile(recurrent(SIZES, ticks), EProp(LR, decay=DECAY, feedback="symmetric"))
        compiling = time.process_time() - start
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(BATCH, ticks, SIZES[0], generator=generator)
        y = torch.randint(0, SIZES[2], (BATCH, ticks), generator=generator)
        state = program.init(batch_size=BATCH)
        names = ("x->h1", "h1->h1", "h1.bias", "h1->y", "y.bias")
        weights = [state[name]["w"] for name in names]
        with torch.no_grad():
            after, expected = program.step(state, x, y)[0], by_hand(weights, x, y)
            wrong = max(float((after[n]["w"] - w).abs().max()) for n, w in zip(names, expected, strict=True))
            assert wrong < 1e-4, wrong
            ours = seconds(lambda p=program, s=state, x=x, y=y: p.step(s, x, y))
            theirs = seconds(lambda w=weights, x=x, y=y: by_hand(w, x, y))
        lines = program.code.count("\n")
        print(f"{ticks:5}  {compiling:9.2f}  {lines:5}  {1e3 * ours:10.1f}  {1e3 * theirs:10.1f}  {ours / theirs:5.2f}")
        rows.append((ticks, compiling, lines, ours, theirs))
    return rows


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
