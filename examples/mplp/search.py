"""Search the numbers of the rule that MPLP's learners imitate, with that rule written in torch and no learner at all.

MPGRAPH_DATA=FOLDER python examples/mplp/search.py --generations 10
MPGRAPH_DATA=FOLDER python examples/mplp/search.py --generations 0 --at 5 20 60 200

The rule is that of `mpgraph/protocols/mplp/imitation.py`, its numbers are where the search begins; with no generation
they are only judged. `GAIN`, `BOUND` and `MANY` stay as they are: they decide whether errors grow or vanish in deep
graphs, of which there are none here. Many networks learn side by side. Every generation draws rules around the best of
the last one, on new networks and batches. A rule is worth its accuracy after twenty updates of 8 less half its
deviation over networks, and on some tasks a quarter of that after 60, on images held out from the *training* sets; test
images are not read.
"""

import argparse
import math
from itertools import pairwise

import torch
from figures import BATCH, DEVIATION, images

from mpgraph.protocols.mplp import imitation as given

TASKS = {  # data, sizes, activation, networks, weight in the search
    "mnist": ("mnist", (144, 50, 10), "sigmoid", 24, 3),
    "step": ("mnist", (144, 50, 10), "step", 16, 1),
    "fashion": ("fashion_mnist", (144, 50, 10), "sigmoid", 16, 1),
    "big": ("mnist", (784, 100, 10), "sigmoid", 6, 1),
    "tanh": ("digits", (64, 32, 10), "tanh", 8, 1),
    "relu": ("digits", (64, 32, 10), "relu", 8, 1),
    "deep": ("digits", (64, 32, 32, 10), "sigmoid", 8, 1),
}
LONGER = ("mnist", "tanh", "relu", "deep")  # 60 updates count too
NUMBERS = ("SHARP", "KEPT", "FALL", "LAST", "RATE_INPUT", "RATE", "RATE_BIAS")
INPUT, ACTIVITY = (0.17, 1.13), (-0.5, 4.0)  # shifts and factors by which learners standardise what weights read
FUNCTIONS = {"sigmoid": torch.sigmoid, "tanh": torch.tanh, "relu": torch.relu, "step": lambda z: (z > 0).to(z.dtype)}


def forward(w, b, f, x):
    """Activities of all layers, the input first, and the sums of all units."""
    read, sums = [x], []
    for one, bias in zip(w, b, strict=True):
        sums.append(read[-1] @ one + bias)
        read.append(f(sums[-1]))
    return read[:-1], sums


@torch.no_grad()
def taught(rule, found, sizes, activation, networks, at, seed):
    """Accuracies in percent ``(networks,)`` on held-out images after each of the updates ``at``."""
    generator, f = torch.Generator().manual_seed(seed), FUNCTIONS[activation]
    pairs = list(pairwise(sizes))
    w = [DEVIATION * torch.randn(networks, i, o, generator=generator) for i, o in pairs]
    b = [torch.zeros(networks, 1, o) for _, o in pairs]
    moves, scores = [torch.zeros_like(one) for one in w], {}
    for t in range(1, max(at) + 1):
        rows = torch.randint(len(found.train_x), (networks, BATCH), generator=generator)
        target = torch.nn.functional.one_hot(found.train_y[rows], sizes[-1])
        read, sums = forward(w, b, f, found.train_x[rows])
        m = (torch.softmax(sums[-1], -1) - target) * (rule["LAST"] + (1 - rule["LAST"]) * rule["FALL"] ** t)
        changes = []
        for layer in reversed(range(len(w))):
            shift, factor = ACTIVITY if layer else INPUT
            r = torch.tanh(rule["SHARP"] * (read[layer] + shift) * factor).mT
            moves[layer].lerp_(-r @ m / BATCH, 1.0 - rule["KEPT"])
            changes.append(-torch.tanh(m + sums[layer]).mean(1, keepdim=True))
            if layer:  # slopes are those of sigmoids for all units, which use their learner
                slope = torch.sigmoid(sums[layer - 1]) * torch.sigmoid(-sums[layer - 1])
                sent = m @ torch.tanh(given.MANY * w[layer]).mT / m.shape[-1]
                m = given.BOUND * torch.tanh(given.GAIN / given.BOUND * slope * sent)
        for layer, change in enumerate(reversed(changes)):
            w[layer] += rule["RATE" if layer else "RATE_INPUT"] * moves[layer]
            b[layer] += rule["RATE_BIAS"] * change
        if t in at:
            said = forward(w, b, f, found.test_x)[1][-1].argmax(-1)
            scores[t] = 100.0 * (said == found.test_y).float().mean(1)
    return scores


def worth(rule, sets, seed):
    """What a rule is worth: points of accuracy."""
    total = 0.0
    for task, (_, sizes, activation, networks, weight) in TASKS.items():
        at = (20, 60) if task in LONGER else (20,)
        scores = taught(rule, sets[task], sizes, activation, networks, at, seed)
        total += weight * float(scores[20].mean() - 0.5 * scores[20].std())
        total += weight * 0.25 * float(scores[60].mean()) if 60 in at else 0.0
    return total / sum(weight for *_, weight in TASKS.values())


def searched(rule, sets, generations, seed, drawn=20, kept=5):
    """The centre of the last generation; logarithms are drawn, deviations follow those of the best."""
    generator = torch.Generator().manual_seed(seed)
    centre, width = torch.tensor([rule[n] for n in NUMBERS]).log(), torch.full((len(NUMBERS),), 0.25)
    for g in range(generations):
        rows = centre + width * torch.randn(drawn, len(NUMBERS), generator=generator)
        rows[0] = centre
        for name in ("KEPT", "FALL", "LAST"):
            rows[:, NUMBERS.index(name)].clamp_(max=math.log(0.98))
        values = [worth(dict(zip(NUMBERS, row.exp().tolist(), strict=True)), sets, 1000 * seed + g) for row in rows]
        best = rows[torch.tensor(values).nan_to_num(-1.0).argsort(descending=True)[:kept]]
        width = (0.6 * width**2 + 0.4 * (best - centre).square().mean(0)).sqrt()
        centre = best.mean(0)
        print(f"generation {g}: centre {values[0]:.2f}, best {max(values):.2f}", flush=True)
    return dict(zip(NUMBERS, centre.exp().tolist(), strict=True))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--generations", type=int, default=10, help="of 20 rules each (default: 10)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--at", type=int, nargs="+", default=[20, 60], help="updates after which the result is judged")
    options = parser.parse_args()
    torch.set_num_threads(1)
    held = {task: images(name, math.isqrt(sizes[0]), held_out=True) for task, (name, sizes, *_) in TASKS.items()}
    found = searched({n: getattr(given, n) for n in NUMBERS}, held, options.generations, options.seed)
    print("  ".join(f"{name} {value:.3g}" for name, value in found.items()))
    for task, (_, sizes, activation, networks, _) in TASKS.items():
        scores = taught(found, held[task], sizes, activation, 2 * networks, options.at, 10**6 + options.seed)
        line = "  ".join(f"{t}: {s.mean():.1f} +- {s.std(correction=0):.1f}" for t, s in scores.items())
        print(f"{task}, {2 * networks} networks, accuracy in % after updates, held-out images: {line}", flush=True)
