"""Learning from sequences beside the loops that one would write by hand: python -m benchmarks.ticks.

A recurrent network 10-100-10 (tanh, cross-entropy at every tick), batches of 20, one thread: e-prop with symmetric
feedback, which learns at every tick, beside a loop in torch; and one step of backpropagation through time
(``sequences=True``) beside a loop and autograd.
"""

import itertools
import statistics
import time

import torch

import mpgraph as mg
from mpgraph.architectures import recurrent
from mpgraph.protocols import Backprop, EProp

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


def through_time(weights, x, y):
    """The weights after one step of backpropagation through time by autograd, of the loss at every tick."""
    with torch.enable_grad():
        leaves = [w.detach().requires_grad_() for w in weights]
        win, wrec, b, wout, c = leaves
        h, said = x.new_zeros(len(x), SIZES[1]), []
        for t in range(x.shape[1]):
            h = torch.tanh(torch.addmm(torch.addmm(b, x[:, t], win.t()), h, wrec.t()))
            said.append(torch.addmm(c, h, wout.t()))
        flat = torch.stack(said, 1).flatten(0, 1)
        loss = torch.nn.functional.cross_entropy(flat, y.flatten(), reduction="sum") / len(x)
        gradients = torch.autograd.grad(loss, leaves)
    return [w - LR * g for w, g in zip(weights, gradients, strict=True)]


def side_by_side(*calls, times=9):
    """Median CPU seconds of several calls of each, which take turns."""
    found = [[] for _ in calls]
    for _ in range(times):
        for call, seconds in zip(calls, found, strict=True):
            start = time.process_time()
            call()
            seconds.append(time.process_time() - start)
    return [statistics.median(seconds) for seconds in found]


WAYS = {
    "e-prop": (lambda: EProp(LR, decay=DECAY, feedback="symmetric"), {}, by_hand),
    "through time": (lambda: Backprop(LR), {"sequences": True}, through_time),
}


def main(lengths=(30, 300)):
    """A row for each way to learn and length of a sequence."""
    print("learning      ticks  compile s  lines  mpgraph ms  by hand ms  ratio")
    rows = []
    for (name, (rule, options, hand)), ticks in itertools.product(WAYS.items(), lengths):
        start = time.process_time()
        program = mg.compile(recurrent(SIZES, ticks), rule(), **options)
        compiling = time.process_time() - start
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(BATCH, ticks, SIZES[0], generator=generator)
        y = torch.randint(0, SIZES[2], (BATCH, ticks), generator=generator)
        state = program.init(batch_size=BATCH)
        names = ("x->h1", "h1->h1", "h1.bias", "h1->y", "y.bias")
        weights = [state[name]["w"] for name in names]
        with torch.no_grad():
            after, expected = program.step(state, x, y)[0], hand(weights, x, y)
            wrong = max(float((after[n]["w"] - w).abs().max()) for n, w in zip(names, expected, strict=True))
            assert wrong < 1e-4, wrong
            ours, theirs = side_by_side(
                lambda p=program, s=state, x=x, y=y: p.step(s, x, y), lambda f=hand, w=weights, x=x, y=y: f(w, x, y)
            )
        lines = program.code.count("\n")
        print(
            f"{name:12}  {ticks:5}  {compiling:9.2f}  {lines:5}  {1e3 * ours:10.1f}  {1e3 * theirs:10.1f}  "
            f"{ours / theirs:5.2f}",
            flush=True,
        )
        rows.append((name, ticks, compiling, lines, ours, theirs))
    return rows


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
