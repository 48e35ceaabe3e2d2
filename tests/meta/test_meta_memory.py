"""Budgets of estimators: the same gradients as without, and no more memory than was allowed, by a count of tensors."""

import math

import pytest
import torch

import mpgraph as mg
from mpgraph.architectures import mlp
from mpgraph.budget import Live
from mpgraph.meta import CMAES, Episode, Evolution, MetaTrainer, Recomputed, Sinusoids, Task, TaskFamily, Tasks, Unroll
from mpgraph.protocols import Backprop, Plasticity

TERMS = {"query": 1.0, "hint": 0.5, "size": 0.7}
HIDDEN = 48


class Labelled(TaskFamily):
    def draw(self, generator, steps=None, split="train"):
        x = torch.randn(15, 16, generator=generator)
        y = torch.randint(4, (15,), generator=generator)
        return Task(x[:12].unflatten(0, (6, 2)), y[:12].unflatten(0, (6, 2)), x[12:], y[12:])


def made(rule=None, loss="l2", terms=TERMS):
    program = mg.compile(
        mlp([1, HIDDEN, HIDDEN, 1], "tanh", loss), rule or Backprop(lr=mg.learnable(0.05)), dtype=torch.float64
    )
    return Episode(program, terms)


def estimated(episode, estimator, tasks):
    """An estimate, and the most bytes of tensors that it held at once."""
    with Live() as live:
        found = estimator.estimate(episode, episode.parameters(), tasks, torch.Generator().manual_seed(0))
    return found, live.peak


def same(one, two):
    assert abs(one.loss - two.loss) < 1e-12
    for name, gradient in two.gradient.items():
        assert (one.gradient[name] - gradient).abs().max() <= 1e-12 * max(1.0, float(gradient.abs().max()))
    for name, metric in two.metrics.items():
        torch.testing.assert_close(one.metrics[name], metric, rtol=1e-12, atol=1e-12, equal_nan=True)


def lengths(episode, monkeypatch):
    """Of the windows that run from here on, as (tasks, inner steps, whether a gradient is kept)."""
    seen, window = [], episode.window

    def noted(parameters, state, batch, start, length, **options):
        seen.append((len(batch.seeds), length, torch.is_grad_enabled()))
        return window(parameters, state, batch, start, length, **options)

    monkeypatch.setattr(episode, "window", noted)
    return seen


@pytest.mark.parametrize("share", [0.35, 0.6, 1.2])
@pytest.mark.parametrize("count", [1, 4])
def test_recomputed_within_a_budget_equals_the_unroll(share, count, monkeypatch):
    episode, tasks = made(), Tasks(Sinusoids(steps=20), seed=1, count=count)
    plain, everything = estimated(episode, Unroll(), tasks)
    limit = int(share * everything)
    estimator = Recomputed(memory=limit)
    estimator.estimate(episode, episode.parameters(), tasks, torch.Generator())  # measures a step
    windows = lengths(episode, monkeypatch)
    found, peak = estimated(episode, estimator, tasks)
    same(found, plain)
    assert peak <= limit
    segments = [steps for _, steps, grad in windows if grad]
    assert sum(segments) == 20 * len({tasks for tasks, *_ in windows}) or count > 1
    if share > 1.0:
        assert segments == [20]  # all of it fits, so nothing runs twice
    if count == 1 and share == 0.6:
        assert max(segments) > math.ceil(math.sqrt(20))  # more than the least memory


def test_more_memory_means_fewer_steps_that_run_twice(monkeypatch):
    episode, tasks = made(), Tasks(Sinusoids(steps=16), seed=1, count=2)
    everything = estimated(episode, Unroll(), tasks)[1]
    twice = []
    for share in (0.4, 0.7, 1.2):
        estimator = Recomputed(memory=int(share * everything))
        estimator.estimate(episode, episode.parameters(), tasks, torch.Generator())
        with monkeypatch.context() as patch:
            windows = lengths(episode, patch)
            estimator.estimate(episode, episode.parameters(), tasks, torch.Generator())
        twice.append(sum(steps for _, steps, grad in windows if not grad))
    assert twice[0] > twice[1] > twice[2] == 0


@pytest.mark.parametrize(("share", "histories", "pieces"), [(1.3, False, 1), (0.9, True, 1), (0.4, True, 2)])
def test_an_unroll_within_a_budget_keeps_histories_and_then_takes_fewer_tasks(share, histories, pieces, monkeypatch):
    episode, tasks = made(terms={"query": 1.0}), Tasks(Sinusoids(shots=1, steps=16), seed=1, count=4)
    plain, everything = estimated(episode, Unroll(), tasks)
    limit = int(share * everything)
    estimator = Unroll(memory=limit)
    estimator.estimate(episode, episode.parameters(), tasks, torch.Generator())
    windows = lengths(episode, monkeypatch)
    found, peak = estimated(episode, estimator, tasks)
    same(found, plain)
    assert peak <= limit
    assert (estimator.schedule.every is not None) == histories
    assert len(windows) == pieces
    assert sum(count for count, *_ in windows) == 4


@pytest.mark.parametrize(("estimator", "exponent"), [(Unroll, 1.0), (Recomputed, 0.5)])
def test_memory_grows_with_the_length_or_its_square_root(estimator, exponent):
    episode, peaks = made(), []
    for steps in (16, 64):
        tasks = Tasks(Sinusoids(steps=steps), seed=1, count=1)
        peaks.append(estimated(episode, estimator(), tasks)[1])
    assert abs(math.log(peaks[1] / peaks[0]) / math.log(4) - exponent) < 0.1, peaks


@pytest.mark.parametrize("estimator", [Unroll(), Recomputed(), Recomputed(memory="1 MiB"), Evolution(window=2)])
def test_memory_is_flat_over_fifty_meta_steps(estimator):
    with Live() as live:
        trainer = MetaTrainer(made(), Sinusoids(steps=4), estimator, tasks=1, seed=0)
        alive = []
        for step in range(1, 51):
            trainer.run(step)
            alive.append(live.now)
    assert len(set(alive[5:])) == 1, alive


def test_candidates_within_a_budget():
    episode = made(Plasticity(pseudo=mg.learnable(0.02), oja=mg.learnable(-0.01)))
    tasks = Tasks(Sinusoids(steps=3), seed=2, count=2)
    found, peaks = [], []
    for memory in (None, "1 MiB"):
        search = CMAES(0.1, 16, seed=3, memory=memory)
        search.improve(episode, episode.parameters(), tasks, torch.Generator())  # measures a step
        with Live() as live:
            found.append(search.improve(episode, episode.parameters(), tasks, torch.Generator()))
        peaks.append(live.peak)
    assert peaks[1] <= 1 << 20 < peaks[0]
    torch.testing.assert_close(found[0][1].metrics["loss"], found[1][1].metrics["loss"], rtol=1e-12, atol=0)
    for name, tensor in found[0][0].items():
        torch.testing.assert_close(found[1][0][name], tensor, rtol=1e-9, atol=0)


def test_pairs_within_a_budget():
    network = mlp([16, HIDDEN, HIDDEN, 4], "tanh", "cross_entropy")
    program = mg.compile(network, Backprop(lr=mg.learnable(0.05)), dtype=torch.float64)
    episode, family = Episode(program, TERMS), Labelled()
    both = [Evolution(0.1, window=2), Evolution(0.1, window=2, memory=300_000)]
    for step in range(4):
        tasks = Tasks(family, seed=5, count=5, step=step)
        (plain, more), (found, less) = (estimated(episode, one, tasks) for one in both)
        same(found, plain)
        assert step == 0 or less < 0.7 * more


def test_a_budget_that_cannot_be_kept_is_refused():
    episode, tasks = made(), Tasks(Sinusoids(steps=20), seed=1, count=2)
    for estimator, fix in ((Unroll(memory=10_000), "Recomputed"), (Recomputed(memory="1 KiB"), "shorter than 20")):
        with pytest.raises(mg.InputError, match=f"but one needs .* [KM]iB; .*{fix}"):
            estimator.estimate(episode, episode.parameters(), tasks, torch.Generator())
    with pytest.raises(mg.ProtocolError, match="Recomputed: memory='much' must be a number of bytes"):
        Recomputed(memory="much")
    for wrong in ({"chunk": 2}, {"segment": 3}):
        with pytest.raises(mg.InputError, match="give one of the two"):
            Recomputed(memory=1 << 20, **wrong)
