"""Estimators: autograd on a hand-written unroll, finite differences, published vectors, few-line PES and NRES, cma."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import ROOT
from torch import Tensor

import mpgraph as mg
from mpgraph.architectures import mlp
from mpgraph.meta import (
    CMAES,
    Boolean,
    Cloning,
    Episode,
    Evolution,
    LogUniform,
    NeverEnding,
    Recomputed,
    Sinusoids,
    Task,
    TaskFamily,
    Tasks,
    Truncated,
    Unroll,
)
from mpgraph.meta.episode import Window
from mpgraph.protocols import VSML, Backprop, NodePerturbation, Plasticity

GOLDEN = ROOT.parent / "shared" / "reference" / "golden"
TERMS = {"query": 1.0, "final": 0.3, "hint": 0.5, "stream": 0.2, "l1": 0.1, "size": 0.7}


def seeded(number=0):
    return torch.Generator().manual_seed(number)


def program(rule=None, loss="l2"):
    return mg.compile(mlp([1, 4, 1], "tanh", loss), rule or Backprop(lr=mg.learnable(0.05)), dtype=torch.float64)


def close(one, two, tolerance):
    assert one.keys() == two.keys()
    for name in one:
        assert (one[name] - two[name]).abs().max() <= tolerance * max(1.0, float(two[name].abs().max())), name


# -- gradients -------------------------------------------------------------------------------------------------------


WEIGHTS = ("x->h1", "h1.bias", "h1->y", "y.bias")


def by_hand(tasks, rate, momentum, terms, prior=None):
    """A 1-4-1 tanh network trained by momentum on each task, in torch with autograd inside: the mean meta-loss."""
    made, total = program(), 0.0
    for i, task in enumerate(tasks):
        state = made.init(tasks.network_seed(i))
        weights = [state[n]["w"].requires_grad_() for n in WEIGHTS] if prior is None else prior
        moving = [torch.zeros_like(w) for w in weights]

        def loss(weights, x, y):
            a, b, c, d = weights
            z = torch.tanh(x @ a.T + b) @ c.T + d
            return 0.5 * (z - y).square().sum(1).mean()

        steps = len(task.x)
        for x, y in zip(task.x, task.y, strict=True):
            before = loss(weights, x, y)
            gradients = torch.autograd.grad(before, weights, create_graph=True)
            moving = [momentum * m + g for m, g in zip(moving, gradients, strict=True)]
            new = [w - rate * m for w, m in zip(weights, moving, strict=True)]
            change = sum((n - w).square().sum() for n, w in zip(new, weights, strict=True))
            numbers = sum(w.numel() for w in weights)
            weights = new
            total = total + terms["stream"] * before / steps + terms["hint"] * loss(weights, x, y) / steps
            total = total + terms["size"] * change / numbers / steps
        total = (
            total + terms["query"] * loss(weights, task.query_x, task.query_y) + terms["final"] * loss(weights, x, y)
        )
        total = total + terms["l1"] * (rate.abs() + momentum.abs())
    return total / len(tasks)


def test_every_term_and_its_gradient_equal_a_hand_written_unroll():
    rule = Backprop(optimizer=mg.SGD(mg.learnable(0.05), momentum=mg.learnable(0.6)))
    episode = Episode(program(rule), TERMS)
    tasks = Tasks(Sinusoids(shots=3, queries=5, steps=3), seed=1, count=3)
    found = Unroll().estimate(episode, episode.parameters(), tasks, seeded())
    theta = [p.detach().clone().requires_grad_() for p in episode.parameters().values()]
    names = list(episode.parameters())
    values = dict(zip(names, theta, strict=True))
    wanted = by_hand(tasks, values["optimizer.lr"], values["optimizer.momentum"], TERMS)
    assert abs(found.loss - wanted) < 1e-12
    close(found.gradient, dict(zip(names, torch.autograd.grad(wanted, theta), strict=True)), 1e-9)


@pytest.mark.parametrize("rule", ["given", "learned"])
@pytest.mark.parametrize(
    "estimator", [Unroll, lambda: Recomputed(segment=2), lambda: Truncated(3), lambda: Unroll(chunk=1)]
)
def test_a_prior_has_the_gradient_of_a_hand_written_unroll(rule, estimator):
    """Alone (MAML), and with a rule whose numbers are learned beside it."""
    values = (0.0625, 0.5)  # which float32 has exactly
    lr, momentum = map(mg.learnable, values) if rule == "learned" else values
    terms = {k: v for k, v in TERMS.items() if k != "l1"}
    episode = Episode(program(Backprop(optimizer=mg.SGD(lr, momentum=momentum))), terms, prior="*.w")
    tasks = Tasks(Sinusoids(shots=3, queries=5, steps=3), seed=1, count=3)
    found = estimator().estimate(episode, episode.parameters(), tasks, seeded())
    fresh = episode.program.init(0)  # the prior begins as some network
    prior = [fresh[n]["w"].clone().requires_grad_() for n in WEIGHTS]
    numbers = [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in values]
    wanted = by_hand(tasks, *numbers, {**terms, "l1": 0.0}, prior)
    assert abs(found.loss - wanted) < 1e-12
    names = ["optimizer.lr", "optimizer.momentum", *(f"prior.{n}.w" for n in WEIGHTS)]
    slopes = dict(zip(names, torch.autograd.grad(wanted, [*numbers, *prior]), strict=True))
    close(found.gradient, {n: slopes[n] for n in found.gradient}, 1e-9)
    assert len(found.gradient) == (6 if rule == "learned" else 4)


def test_a_search_and_evolution_try_priors_of_their_own():
    episode = Episode(program(Backprop(0.05)), prior=("*->y.w", "y.bias.w"))
    tasks = Tasks(Sinusoids(steps=4), seed=2, count=2)
    theta = {name: p + 0.1 for name, p in episode.parameters().items()}

    def loss(shift):
        return episode.run({name: p + shift[name] for name, p in theta.items()}, tasks.batch()).loss

    import cma

    start = torch.cat([p.flatten() for p in theta.values()])
    options = {"popsize": 4, "verbose": -9, "seed": np.nan, "randn": np.random.RandomState(0).randn}
    asked = torch.tensor(np.stack(cma.CMAEvolutionStrategy(start.tolist(), 0.1, options).ask())) - start
    wanted = [loss({"prior.h1->y.w": row[None, :4], "prior.y.bias.w": row[4:]}).mean() for row in asked]
    _, estimate = CMAES(0.1, 4).improve(episode, theta, tasks, seeded())
    assert (estimate.metrics["loss"] - torch.stack(wanted)).abs().max() < 1e-12
    evolution = Evolution(0.1)
    got = evolution.estimate(episode, theta, tasks, seeded())
    wanted = {name: torch.zeros_like(p) for name, p in theta.items()}
    for i in range(2):
        xi = {name: tensor[i] for name, tensor in evolution._sum.items()}
        gap = (loss(xi)[i] - loss({n: -t for n, t in xi.items()})[i]) / (2 * 0.1**2)
        wanted = {name: w + gap * xi[name] / 2 for name, w in wanted.items()}
    close(got.gradient, wanted, 1e-9)


def test_the_networks_of_a_pool_come_again():
    episode = Episode(program(), pool=3)
    tasks = Tasks(Sinusoids(), seed=2, count=30)
    begun = episode.begin(tasks.batch())["x->h1"]["w"].flatten(1)
    assert len(begun.unique(dim=0)) == 3
    assert len(Episode(program()).begin(tasks.batch())["x->h1"]["w"].flatten(1).unique(dim=0)) == 30
    later = episode.begin(tasks.at(7).batch())["x->h1"]["w"].flatten(1)
    assert len(torch.cat([begun, later]).unique(dim=0)) == 3


def test_a_life_without_end_goes_on_with_the_same_network():
    episode, windowed = Episode(program(), {"hint": 1.0, "query": 0.5}), Truncated(2, NeverEnding(4))
    state = None
    for step in range(6):
        tasks = Tasks(Sinusoids(shots=3), seed=6, count=1, step=step)
        if step == 3:  # as from a checkpoint
            saved, windowed = windowed.state(), Truncated(2, NeverEnding(4))
            windowed.load(saved)
        found = windowed.estimate(episode, episode.parameters(), tasks, seeded(step))
        begun = tasks.at(step - step % 2)
        task = begun.draw(0, 4)
        theta = {name: p.detach().clone().requires_grad_() for name, p in episode.parameters().items()}
        run = episode.program
        state = run.init(begun.network_seed(0)) if state is None else state
        wanted = 0.0
        for t in range(2 * (step % 2), 2 * (step % 2) + 2):
            x, y = task.x[t].double(), task.y[t].double()
            state, _ = run.step(state, x, y, parameters=theta)
            wanted = wanted + 0.5 * (run.predict(state, x) - y).square().sum(1).mean() / 2
        if step % 2:
            x, y = task.query_x.double(), task.query_y.double()
            wanted = wanted + 0.5 * 2 * 0.5 * (run.predict(state, x) - y).square().sum(1).mean()
        assert abs(found.loss - wanted) < 1e-12
        close(found.gradient, dict(zip(theta, torch.autograd.grad(wanted, list(theta.values())), strict=True)), 1e-9)
        state = {n: {c: t.detach() for c, t in channels.items()} for n, channels in state.items()}
    with pytest.raises(mg.InputError, match="as Evolution needs them; use Truncated"):
        Evolution(0.1, 2, steps=NeverEnding())


def test_the_gradient_equals_finite_differences():
    episode = Episode(program(), TERMS)
    tasks = Tasks(Sinusoids(steps=5), seed=2, count=2)
    gradient = Unroll().estimate(episode, episode.parameters(), tasks, seeded()).gradient["optimizer.lr"]

    def loss(rate):
        return float(episode.run({"optimizer.lr": torch.tensor(rate, dtype=torch.float64)}, tasks.batch()).loss.mean())

    assert math.isclose(float(gradient), (loss(0.05 + 1e-6) - loss(0.05 - 1e-6)) / 2e-6, rel_tol=1e-6)


def rules():
    ten = {name: mg.learnable(0.01) for name in ("pseudo", "ehebb", "oja", "crossed_ywe")}
    noisy = NodePerturbation(lr=mg.learnable(0.01))
    return {"plasticity": Plasticity(**ten), "noisy": noisy, "sgd": Backprop(lr=mg.learnable(0.05))}


@pytest.mark.parametrize("name", ["plasticity", "noisy", "sgd"])
@pytest.mark.parametrize("segment", [None, 1, 3, 7])
def test_recomputed_equals_the_plain_unroll(name, segment):
    episode = Episode(program(rules()[name]), TERMS)
    tasks = Tasks(Sinusoids(steps=7), seed=3, count=2)
    plain = Unroll().estimate(episode, episode.parameters(), tasks, seeded())
    again = Recomputed(segment=segment).estimate(episode, episode.parameters(), tasks, seeded())
    assert abs(plain.loss - again.loss) < 1e-12
    close(again.gradient, plain.gradient, 1e-12)
    close(again.metrics, plain.metrics, 1e-12)


def test_a_window_that_covers_the_episode_is_the_plain_unroll():
    episode = Episode(program(), TERMS)
    windowed = Truncated(4)
    for step in range(3):
        tasks = Tasks(Sinusoids(steps=4), seed=4, count=3, step=step)
        plain = Unroll().estimate(episode, episode.parameters(), tasks, seeded(step))
        found = windowed.estimate(episode, episode.parameters(), tasks, seeded(step))
        assert abs(plain.loss - found.loss) < 1e-12
        close(found.gradient, plain.gradient, 1e-12)


def test_windows_of_one_episode_add_up_to_its_loss():
    episode = Episode(program(), TERMS)
    windowed, family = Truncated(2), Sinusoids(steps=6)
    whole = episode.run(episode.parameters(), Tasks(family, 5, 3).batch()).loss
    parts = [
        windowed.estimate(episode, episode.parameters(), Tasks(family, 5, 3, step), seeded(step)).metrics["loss"]
        for step in range(3)
    ]
    assert (torch.stack(parts).mean(0) - whole).abs().max() < 1e-12


def test_tasks_in_pieces_give_the_same_gradient():
    episode = Episode(program(), TERMS)
    tasks = Tasks(Sinusoids(), seed=6, count=5)
    whole, pieces = (e.estimate(episode, episode.parameters(), tasks, seeded()) for e in (Unroll(), Unroll(chunk=2)))
    close(pieces.gradient, whole.gradient, 1e-12)
    assert (whole.metrics["loss"] - pieces.metrics["loss"]).abs().max() < 1e-12


def test_no_task_counts_for_more_than_its_limit():
    """The mean of the single tasks' gradients, those that are larger than the limit scaled down to it."""
    episode, tasks = Episode(program(), TERMS), Tasks(Sinusoids(), seed=6, count=4)
    single = [
        Unroll().estimate(episode, episode.parameters(), part, seeded()).gradient
        for part in (replace(tasks, count=1, first=i) for i in range(4))
    ]
    norms = [float(torch.stack([g.square().sum() for g in one.values()]).sum().sqrt()) for one in single]
    limit = sorted(norms)[2] * 0.99  # two are larger
    found = Unroll(chunk=1, limit=limit).estimate(episode, episode.parameters(), tasks, seeded())
    wanted = {
        name: sum(min(1.0, limit / norm) * one[name] for one, norm in zip(single, norms, strict=True)) / 4
        for name in single[0]
    }
    close(found.gradient, wanted, 1e-12)
    with pytest.raises(mg.ProtocolError, match="limit=0"):
        Unroll(limit=0.0)


def test_one_task_and_the_same_task_among_others():
    episode, tasks = Episode(program(), TERMS), Tasks(Sinusoids(), seed=7, count=3)
    many = episode.run(episode.parameters(), tasks.batch()).loss
    single = [episode.run(episode.parameters(), tasks.batch([i])).loss for i in range(3)]
    assert (many - torch.cat(single)).abs().max() < 1e-12


def test_published_meta_gradients_and_the_step_of_adam():
    if not (GOLDEN / "plasticity_small.npz").exists():
        pytest.skip("no reference vectors here")
    with np.load(GOLDEN / "plasticity_small.npz") as file:
        golden = {name: torch.as_tensor(file[name]) for name in file.files}
    code = golden["bio_theta_refcode"]
    theta = [torch.nn.Parameter(value.clone()) for value in (code[0], code[1], -code[2])]
    rule = Plasticity(**dict(zip(("pseudo", "ehebb", "oja"), theta, strict=True)), input_slope=10.0)
    made = mg.compile(mlp([6, 5, 4, 3], mg.Softplus(10.0), bias=False), rule, dtype=torch.float64)

    class Published(Episode):
        def begin(self, batch):
            state = super().begin(batch)
            for layer, wire in enumerate(("x->h1", "h1->h2", "h2->y"), 1):
                state[wire] = {"w": golden[f"W{layer}"][None], "b": golden[f"B{layer}"][None]}
            return state

    class Given(TaskFamily):
        def draw(self, generator, steps=None, split="train"):
            support = golden["seq_x"][:, None], golden["seq_label"][:, None]
            return Task(*support, golden["query_x"], golden["query_label"])

    from mpgraph.meta import MetaTrainer

    trainer = MetaTrainer(Published(made), Given(), Recomputed(), optimizer=lambda p: torch.optim.Adam(p, lr=1e-3))
    found = Recomputed().estimate(trainer.episode, trainer.parameters, Tasks(Given()), seeded())
    names = [f"agents.weight.theta.{name}" for name in ("pseudo", "ehebb", "oja")]
    signs = torch.tensor([1.0, 1.0, -1.0], dtype=torch.float64)
    gradient = torch.stack([found.gradient[name] for name in names]) * signs
    torch.testing.assert_close(gradient, golden["bio_meta_grad"], rtol=1e-7, atol=0)
    assert abs(found.loss - golden["bio_query_loss"]) < 1e-10
    trainer.update()
    after = torch.stack([trainer.parameters[name].detach() for name in names]) * signs
    torch.testing.assert_close(after, golden["bio_theta_after_adam"], rtol=0, atol=1e-10)


def test_random_lengths_lie_within_their_bounds_and_are_spread():
    lengths = [LogUniform(10, 60)(0, seeded(i)) for i in range(500)]
    assert min(lengths) >= 10
    assert max(lengths) <= 60
    below = sum(length < math.sqrt(600.0) for length in lengths) / 500  # half of them, by the definition
    assert abs(below - 0.5) < 4 * 0.5 / math.sqrt(500)


# -- evolution strategies --------------------------------------------------------------------------------------------


class Quadratic:
    """A stand-in for an episode: the state follows ``s <- a s + theta``, the loss of a step is ``|s - goal|^2 / T``."""

    def __init__(self, steps, size=2, decay=0.7):
        self.steps, self.size, self.decay = steps, size, decay

    def prepared(self, batch):
        return batch

    def begin(self, batch):
        return {"net": {"s": torch.zeros(len(batch.seeds), self.size, dtype=torch.float64)}}

    def window(self, parameters, state, batch, start, length, *, each=False):
        s, total = state["net"]["s"], 0.0
        for t in range(length):
            s = self.decay * s + parameters["theta"]
            at = torch.as_tensor(start) + t
            goal = batch.x[torch.arange(len(batch.seeds)), at.expand(len(batch.seeds)), 0]
            total = total + (s - goal).square().sum(-1) / self.steps
        return Window({"net": {"s": s}}, total, {})

    def loss(self, theta, x):
        """Of one task, by itself."""
        s, total = torch.zeros(self.size, dtype=torch.float64), 0.0
        for goal in x[:, 0]:
            s = self.decay * s + theta
            total = total + (s - goal).square().sum() / self.steps
        return total


class Goals(TaskFamily):
    def __init__(self, steps, size=2):
        self.steps, self.size = steps, size

    def draw(self, generator, steps=None, split="train"):
        x = torch.randn(steps or self.steps, 1, self.size, generator=generator, dtype=torch.float64)
        return Task(x, x, x[0], x[0])


class Known(Evolution):
    """With noise that a test can draw again."""

    drawn: list

    def noise(self, parameters, index, generator):
        unit = super().noise(parameters, index, generator)
        self.drawn.append((index, unit["theta"]))
        return unit


@pytest.mark.parametrize(("resample", "accumulate"), [(1, True), (None, True), (2, True), (1, False)])
def test_evolution_equals_a_few_lines_of_pes_and_nres(resample, accumulate):
    steps, window, sigma, pairs = 6, 2, 0.1, 3
    estimator = Known(sigma, window, resample, accumulate=accumulate, unlocked=False)
    problem, family = Quadratic(steps), Goals(steps)
    theta = {"theta": torch.tensor([0.3, -0.2], dtype=torch.float64)}
    state = {}
    for outer in range(6):
        tasks = Tasks(family, 0, pairs, outer)
        estimator.drawn = []
        found = estimator.estimate(problem, theta, tasks, seeded(outer)).gradient["theta"]
        drawn = dict(estimator.drawn)
        total = torch.zeros(2, dtype=torch.float64)
        for i in range(pairs):
            k = outer % 3  # window of the episode, which began at the last multiple of 3
            x = Tasks(family, 0, pairs, outer - k).draw(i).x[:, 0]
            if k == 0:
                state[i] = {name: torch.zeros(2, dtype=torch.float64) for name in ("plus", "minus", "xi", "e")}
            own = state[i]
            if k == 0 or (resample and k % resample == 0):
                own["e"] = sigma * drawn[i]
                own["xi"] = own["xi"] + own["e"] if accumulate else own["e"]
            losses = {}
            for sign, name in ((1, "plus"), (-1, "minus")):
                losses[name] = 0.0
                for t in range(window):
                    own[name] = 0.7 * own[name] + theta["theta"] + sign * own["e"]
                    losses[name] += (own[name] - x[k * window + t]).square().sum() / window  # mean over the window
            total += own["xi"] * (losses["plus"] - losses["minus"])
        assert (found - total / (2 * sigma**2 * pairs)).abs().max() < 1e-12
        assert set(drawn) == (set(range(pairs)) if k == 0 or (resample and k % resample == 0) else set())


@pytest.mark.parametrize("resample", [1, None])
def test_the_mean_of_many_estimates_is_the_gradient(resample):
    """Linear dynamics and a quadratic loss: smoothing changes no gradient, so PES and NRES are exact in the mean."""
    steps, window, outer, pairs = 6, 2, 30, 350
    problem, family = Quadratic(steps), Goals(steps)
    theta = torch.tensor([0.3, -0.2], dtype=torch.float64)
    estimator = Evolution(0.1, window, resample)
    found = []
    at = theta.clone().requires_grad_()
    # E |s - goal|^2 over standard normal goals is |s|^2 + 2: the gradient is that of goals at zero.
    (wanted,) = torch.autograd.grad(problem.loss(at, torch.zeros(steps, 1, 2, dtype=torch.float64)), at)
    for step in range(outer):
        tasks = Tasks(family, 1, pairs, step)
        found.append(estimator.estimate(problem, {"theta": theta}, tasks, seeded(step)).gradient["theta"])
    groups = torch.stack(found).reshape(-1, 3, 2).mean(1)  # three windows make an episode: groups are independent
    error = groups.std(0) / math.sqrt(len(groups))
    assert ((groups.mean(0) - wanted).abs() < 3 * error).all()
    assert (error < 0.2 * wanted.abs()).all()


def test_episodes_begin_at_all_phases():
    estimator = Evolution(0.1, 2)
    tasks = Tasks(Goals(6), 0, 300, 0)
    theta = {"theta": torch.zeros(2, dtype=torch.float64)}
    estimator.estimate(Quadratic(6), theta, tasks, seeded())
    counts = torch.bincount(estimator.state()["age"] // 2, minlength=4)[1:]
    assert (counts - 100).abs().max() < 4 * math.sqrt(300 * (1 / 3) * (2 / 3))


def test_the_published_estimate_given_its_noise():
    if not (GOLDEN / "vsml_es_estimate.npz").exists():
        pytest.skip("no reference vectors here")
    d = dict(np.load(GOLDEN / "vsml_es_estimate.npz"))

    def genome(prefix=""):
        n, m = d["fwd_w"].shape
        a = {k: torch.as_tensor(d[prefix + k]) for k in ("lstm_w", "lstm_b", "fwd_w", "fwd_b", "bwd_w", "bwd_b")}
        rows = a["lstm_w"].unflatten(1, (4, n)).transpose(0, 1)
        found = {
            "F": rows[:, :m],
            "G": rows[:, m : 2 * m],
            "W": rows[:, 2 * m :],
            "b": a["lstm_b"].unflatten(0, (4, n)),
        }
        found |= {"C": a["fwd_w"], "C_b": a["fwd_b"], "U": a["bwd_w"], "U_b": a["bwd_b"]}
        return {f"agents.weight.{name}": tensor for name, tensor in found.items()}

    made = mg.compile(mlp([6, 3]), VSML(*d["fwd_w"].shape), dtype=torch.float64)

    class Published(Episode):
        def begin(self, batch):
            state = super().begin(batch)
            for c in ("h", "c"):
                given = torch.as_tensor(d[f"{c}0_0"]).transpose(0, 1)
                state["x->y"][c] = given.expand(len(batch.seeds), 1, -1, -1, -1)
            return state

    class Given(TaskFamily):
        def draw(self, generator, steps=None, split="train"):
            x, y = torch.as_tensor(d["x"]), torch.as_tensor(d["y"])
            return Task(x, y, x[-1], y[-1])

    class Noise(Evolution):
        def noise(self, parameters, index, generator):
            return genome(f"eps{index}_")

    estimator = Noise(float(d["sigma"]))
    tasks = Tasks(Given(), count=int(d["population"]))
    found = estimator.estimate(Published(made, {"stream": 1.0}), genome(), tasks, seeded())
    assert abs(found.loss - float(d["mean_loss"])) < 1e-12
    wanted = torch.as_tensor((d["loss_plus"] + d["loss_minus"]) / 2)
    assert (found.metrics["loss"] - wanted).abs().max() < 1e-12
    close(found.gradient, genome("es_grad_"), 1e-12)


def test_a_pair_that_is_not_finite_is_left_out():
    class Poisoned(Goals):
        def draw(self, generator, steps=None, split="train"):
            task = super().draw(generator, steps, split)
            bad = float(task.x[0, 0, 0]) > 0.8
            return task._replace(x=task.x * (torch.inf if bad else 1.0))

    theta = {"theta": torch.zeros(2, dtype=torch.float64)}
    tasks = Tasks(Poisoned(4), 3, 8, 0)
    bad = [i for i in range(8) if not bool(torch.isfinite(tasks[i].x).all())]
    assert 0 < len(bad) < 8
    found = Known(0.1)
    found.drawn = []
    estimate = found.estimate(Quadratic(4), theta, tasks, seeded())
    total, noise = torch.zeros(2, dtype=torch.float64), dict(found.drawn)
    for i in set(range(8)) - set(bad):
        plus, minus = (Quadratic(4).loss(sign * 0.1 * noise[i], tasks[i].x) for sign in (1, -1))
        total += 0.1 * noise[i] * (plus - minus) / (2 * 0.1**2)
    assert (estimate.gradient["theta"] - total / (8 - len(bad))).abs().max() < 1e-12


# -- CMA-ES ----------------------------------------------------------------------------------------------------------


class Bowl(Quadratic):
    def window(self, parameters, state, batch, start, length, *, each=False):
        total = sum((p.flatten() - 1.5).square().sum() for p in parameters.values())
        return Window(state, total.expand(len(batch.seeds)), {})


def test_cma_es_equals_plain_cma_step_for_step_and_after_a_resume():
    import cma

    theta: dict[str, Tensor] = {"a": torch.zeros(2, dtype=torch.float64), "b": torch.ones((), dtype=torch.float64)}
    options = {"popsize": 6, "verbose": -9, "seed": np.nan, "randn": np.random.RandomState(7).randn}
    plain, ours = cma.CMAEvolutionStrategy([0.0, 0.0, 1.0], 0.3, options), CMAES(0.3, 6, seed=7)
    for step in range(25):
        asked = plain.ask()
        losses = [float(((c - 1.5) ** 2).sum()) for c in asked]
        plain.tell(asked, losses)
        if step == 11:  # as from a checkpoint
            state, ours = ours.state(), CMAES(0.3, 6, seed=7)
            ours.load(state)
        found, estimate = ours.improve(Bowl(1), theta, Tasks(Goals(1), count=2, step=step), seeded(step))
        assert estimate.metrics["loss"].tolist() == pytest.approx(losses, abs=1e-14)
        vector = torch.cat([p.flatten() for p in found.values()])
        assert vector.tolist() == plain.result.xfavorite.tolist()


@pytest.mark.parametrize("restarts", ["ipop", "bipop"])
def test_restarts_double_the_population_and_share_the_candidates_with_small_ones(restarts):
    """The rules of Hansen (2009), read off the number of candidates in each generation."""
    theta = {"a": torch.zeros(1, dtype=torch.float64)}
    search, sizes = CMAES(0.5, 3, restarts=restarts, seed=2), []
    for step in range(400):
        if len(search._searches) > 6 or [s.small for s in search._searches].count(False) > 3:
            break
        _, estimate = search.improve(Bowl(1), theta, Tasks(Goals(1), step=step), seeded(step))
        sizes.append(len(estimate.metrics["loss"]))
    runs = [(s.population, s.small, s.candidates) for s in search._searches]
    assert sum(candidates for *_, candidates in runs) == sum(sizes)
    large = [population for population, small, _ in runs if not small]
    assert large == [3 * 2**i for i in range(len(large))]
    assert len(large) > 2
    assert any(small for _, small, _ in runs) == (restarts == "bipop")
    for i, (population, small, candidates) in enumerate(runs):
        before = [sum(c for _, s, c in runs[:i] if s is kind) for kind in (False, True)]
        if restarts == "bipop" and i > 1:
            assert small == (before[1] < before[0])
        if small:
            last_large, spent = [(p, c) for p, s, c in runs[:i] if not s][-1]
            assert 2 <= population <= last_large / 2
            assert candidates < spent / 2 + population
    # as from a checkpoint in the midst of it
    again = CMAES(0.5, 3, restarts=restarts, seed=2)
    again.load(search.state())
    for one in (search, again):
        found, estimate = one.improve(Bowl(1), theta, Tasks(Goals(1), step=step), seeded(step))
        runs.append((found["a"].item(), estimate.metrics["loss"].tolist()))
    assert runs[-1] == runs[-2]


def test_cma_es_improves_a_rate_by_its_accuracy():
    """Whose meta-loss, the error on the query, has no gradient."""
    rule = Backprop(lr=mg.learnable(1e-3))
    from mpgraph import data
    from mpgraph.meta import FewShot, evaluate

    family = FewShot(data.load("digits"), ways=3, shots=5, queries=5)
    episode = Episode(mg.compile(mlp([64, 3]), rule))
    search, theta = CMAES(0.05, 4, fitness="error"), episode.parameters()
    held_out = Tasks(family, 1, 20, 0, "test")
    before = evaluate(episode, theta, held_out)["accuracy"].mean()
    for step in range(4):
        theta, _ = search.improve(episode, theta, Tasks(family, 0, 8, step), seeded())
    assert evaluate(episode, theta, held_out)["accuracy"].mean() > before + 0.1


# -- cloning ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("match", ["updates", "weights", "predictions", "messages"])
def test_a_rule_that_is_its_teacher_has_no_error_and_another_rate_has_a_known_one(match):
    teacher = program(Backprop(lr=0.05))
    messages = {"h1": ("e", "e", 1.0)} if match == "messages" else None
    cloning = Cloning(teacher, {match: 1.0}, messages)
    tasks = Tasks(Sinusoids(steps=3), seed=8, count=2)
    same = Episode(program(Backprop(lr=mg.learnable(torch.tensor(0.05, dtype=torch.float64)))))
    exact = {"optimizer.lr": torch.tensor(0.05, dtype=torch.float64)}
    assert cloning.estimate(same, exact, tasks, seeded()).loss < 1e-24
    twice = cloning.estimate(same, {"optimizer.lr": torch.tensor(0.1, dtype=torch.float64)}, tasks, seeded()).loss
    if match == "updates":  # every change is twice the teacher's
        assert abs(twice - 1.0) < 1e-12
    elif match == "messages":  # errors come before the update
        assert twice < 1e-24
    else:
        assert twice > 0.01


def test_a_learned_rate_becomes_its_teachers():
    episode = Episode(program(Backprop(lr=mg.learnable(0.2))))
    cloning, theta = Cloning(program(Backprop(lr=0.05)), {"weights": 1.0}), episode.parameters()
    tasks = Tasks(Sinusoids(steps=3), seed=9, count=2)
    for _ in range(30):
        gradient = cloning.estimate(episode, theta, tasks, seeded()).gradient
        theta = {name: p.detach() - 1e-3 * gradient[name] for name, p in theta.items()}
    assert abs(float(theta["optimizer.lr"]) - 0.05) < 1e-3


def test_what_is_refused():
    with pytest.raises(
        mg.InputError, match="unknown term of the meta-loss 'qery': allowed are .*; did you mean 'query'"
    ):
        Episode(program(), {"qery": 1.0})
    with pytest.raises(mg.InputError, match="has no meta-parameters; make a number one: lr=mg.learnable"):
        Episode(program(Backprop(lr=0.1)))
    episode = Episode(program())
    with pytest.raises(mg.InputError, match="window=4 does not divide an episode of 6 inner steps"):
        Truncated(4).estimate(episode, episode.parameters(), Tasks(Sinusoids(steps=6)), seeded())
    with pytest.raises(mg.InputError, match="unknown match 'update': allowed are .*; did you mean 'updates'"):
        Cloning(program(), {"update": 1.0})
    with pytest.raises(mg.ProtocolError, match="Evolution: sigma=0 must be a finite number above 0"):
        Evolution(0)
    assert Boolean().draw(seeded(), 7).x.shape == (7, 64, 2)
