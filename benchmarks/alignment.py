"""Rules whose feedback weights learn: accuracy, alignment and cost.

python -m benchmarks.alignment {digits,emnist,noise,mnist,cost} [--seeds 3] [--rules SA,KP] [--data FOLDER]

Prints a table in markdown. ``emnist``, ``noise`` and ``mnist`` need the data folder (or MPGRAPH_DATA).
"""

import argparse
import functools
import statistics

import torch
from tqdm import tqdm

import mpgraph as mg
from mpgraph import data, experiments
from mpgraph.agents.initializers import normal
from mpgraph.architectures import mlp
from mpgraph.protocols import (
    ActivationAlignment,
    Backprop,
    FeedbackAlignment,
    InformationAlignment,
    KolenPollack,
    NoisyUpdates,
    SignSymmetry,
    SymmetricAlignment,
    WeightMirror,
)

from .harness import Case, timed
from .machine import line

DEFAULTS = {
    "BP": Backprop,
    "FA": FeedbackAlignment,
    "sign (uniform)": SignSymmetry,
    "sign (fixed)": lambda: SignSymmetry(magnitudes="fixed"),
    "KP": KolenPollack,
    "WM": WeightMirror,
    "IA": InformationAlignment,
    "SA": SymmetricAlignment,
    "AA": ActivationAlignment,
}


def angle(w, b):
    """Between two weight tensors as vectors, in degrees."""
    cosine = (w.double() * b.double()).sum() / (w.double().norm() * b.double().norm())
    return float(torch.rad2deg(torch.acos(cosine.clamp(-1.0, 1.0))))


def learn(rules, network, load, *, seeds, epochs, batch, dress=lambda state, seed: state):
    """Mean accuracy after the last epoch, and of each feedback weight its angle to w and its norm in that of w."""
    bar = tqdm(total=len(rules) * seeds * epochs, unit="epoch", leave=False, disable=None)  # on a terminal only
    print("| rule | accuracy by seed, % | mean | angle of W and B', degrees | norm of B in W |\n|---|---|---|---|---|")
    for name, make in rules.items():
        scores, angles, norms = [], [], []
        for seed in range(seeds):
            bar.set_description(f"{name}, seed {seed}")
            readout = name == experiments.READOUT_ONLY
            program = mg.compile(network.readout_only() if readout else network, make())
            examples = load(seed)
            state = dress(program.init(seed=seed), seed)
            generator = torch.Generator().manual_seed(seed)
            for _ in range(epochs):
                state, _ = program.run(state, examples.batches(batch, generator))
                bar.update()
            scores.append(100.0 * experiments.accuracy(program, state, examples.test_x, examples.test_y))
            pairs = [(c["w"], c["b"]) for c in state.values() if "b" in c]
            angles.append([angle(w, b) for w, b in pairs])
            norms.append([float(b.norm() / w.norm()) for w, b in pairs])
        by_seed = ", ".join(f"{score:.1f}" for score in scores)
        between = ", ".join(f"{statistics.mean(column):.1f}" for column in zip(*angles, strict=True)) or "-"
        ratio = ", ".join(f"{statistics.mean(column):.2f}" for column in zip(*norms, strict=True)) or "-"
        tqdm.write(f"| {name} | {by_seed} | {statistics.mean(scores):.1f} | {between} | {ratio} |")
    bar.close()


def digits(rules, options):
    """Whether B' finds W with the defaults: 64-32-10 tanh, batch 32, 20 epochs."""
    print("64-32-10 tanh, batch 32, 20 epochs, defaults\n")
    load = lambda seed: data.load("digits", seed=seed).flat()  # noqa: E731
    learn(rules, mlp([64, 32, 10]), load, seeds=options.seeds, epochs=20, batch=32)


def emnist(rules, options):
    """Whether it helps: 784-256-256-47 relu, 8000 training images, batch 64, 12 epochs, lr 0.1."""
    print("EMNIST, 47 classes, 8000 training images, 784-256-256-47 relu, batch 64, 12 epochs, lr 0.1, defaults\n")
    whole = data.load("emnist47", options.data).flat()

    def load(seed):
        order = torch.randperm(len(whole.train_x), generator=torch.Generator().manual_seed(seed))[:8000]
        return data.Dataset("emnist47", whole.train_x[order], whole.train_y[order], whole.test_x, whole.test_y, 47)

    network = mlp([784, 256, 256, 47], activation="relu")
    rules = rules if rules.keys() <= NOISY.keys() else {experiments.READOUT_ONLY: Backprop, **rules}
    learn(rules, network, load, seeds=options.seeds, epochs=12, batch=64)


SLOW = {  # feedback weights that follow at 2 % of the way in a step
    "WM (slow)": lambda: WeightMirror(amp=0.02, decay=0.02),
    "SA (slow)": lambda: SymmetricAlignment(decay=0.02, self=0.02),
}


def noisy(name, sigma):
    """All weights descend noisily at rate 0.1, or with SA only the feedback weights do."""
    if name == "BP":
        return Backprop(optimizer=NoisyUpdates(mg.SGD(0.1), sigma))
    return SymmetricAlignment(decay=5.0, self=5.0, feedback_optimizer=NoisyUpdates(mg.SGD(0.1), sigma))


NOISY = {
    f"{name} (sigma {sigma:g})": functools.partial(noisy, name, sigma)
    for name in ("BP", "SA")
    for sigma in (0.0, 0.03, 0.1, 0.3)
}


PUBLISHED = {  # Akrout et al. (2019): learning rates; feedback weights follow at the rates of the text
    "BP": lambda: Backprop(0.2),
    "FA": lambda: FeedbackAlignment(0.2),
    "WM": lambda: WeightMirror(0.05),
    "KP": lambda: KolenPollack(0.3, decay=0.0),
}


def mnist(rules, options):
    """Akrout et al.'s MNIST: 784-500-10 sigmoid, pixels 0..1, sigmoid cross-entropy, batch 128, 10 epochs."""
    print("MNIST, pixels 0..1, 784-500-10 sigmoid, sigmoid cross-entropy, batch 128, 10 epochs\n")
    whole = data.load("mnist", options.data, standardise=False).flat()
    network = mlp([784, 500, 10], activation="sigmoid", loss="sigmoid_cross_entropy")

    def dress(state, seed):
        """W and B ~ N(0, 1 / (n_in + n_out))."""

        def sampled(name, channel, tensor):
            if channel not in ("w", "b") or tensor.ndim < 2:
                return tensor
            shift = sum(map(ord, f"{name}.{channel}"))
            generator = torch.Generator().manual_seed(1000 * seed + shift)
            return normal(sum(tensor.shape) ** -0.5)(tensor.shape, None, generator, tensor.dtype)

        return {n: {c: sampled(n, c, t) for c, t in channels.items()} for n, channels in state.items()}

    learn(rules, network, lambda _: whole, seeds=options.seeds, epochs=10, batch=128, dress=dress)


def cost(rules, options):
    """One step of each rule at 784-512-10 tanh, batch 128, beside one compiled backprop step."""
    print(f"784-512-10 tanh, batch 128, {line()}\n\n| rule | us a step | in backprop's |\n|---|---|---|")
    x, y = torch.randn(128, 784), torch.randint(0, 10, (128,))
    every = {name: (make, {}) for name, make in rules.items()}
    for name in ("KP", "SA", "AA", "WM", "IA"):
        if name in rules:
            every[f"{name} (inputs=True)"] = (type(rules[name]()), {"inputs": True})
            every[f"{name} (inputs=True, alternate=1)"] = (type(rules[name]()), {"inputs": True, "alternate": 1})

    def contestant(make, given):
        program = mg.compile(mlp([784, 512, 10]), make(**given))
        state = [program.init()]

        def step():
            with torch.no_grad():
                state[0], _ = program.step(state[0], x, y)

        return step

    times = timed(Case({name: contestant(*how) for name, how in every.items()}, "BP"), seconds=60.0)
    for name, found in times.items():
        print(f"| {name} | {1e6 * found['seconds']:.0f} | {found['seconds'] / times['BP']['seconds']:.2f} |")


def main():
    """Print one table."""
    tables = {
        "digits": (digits, DEFAULTS),
        "emnist": (emnist, {**DEFAULTS, **SLOW}),
        "noise": (emnist, NOISY),
        "mnist": (mnist, PUBLISHED),
        "cost": (cost, DEFAULTS),
    }
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("table", choices=tables)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rules", help="names separated by commas; all by default")
    parser.add_argument("--data", help="folder of the data sets")
    options = parser.parse_args()
    torch.set_num_threads(1)
    table, rules = tables[options.table]
    chosen = options.rules.split(",") if options.rules else list(rules)
    unknown = [name for name in chosen if name not in rules]
    if unknown:
        parser.error(f"unknown rule {unknown[0]!r}; there are {', '.join(rules)}")
    table({name: rules[name] for name in chosen}, options)


if __name__ == "__main__":
    main()
