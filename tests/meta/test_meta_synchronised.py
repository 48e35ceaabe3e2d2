"""Several rules that are trained side by side and set to the best one, and families that are mixed."""

import pytest
import torch

import mpgraph as mg
from mpgraph import meta
from mpgraph.architectures import mlp
from mpgraph.data import Dataset
from mpgraph.errors import InputError
from mpgraph.meta import settings
from mpgraph.protocols import Backprop

FAMILY = meta.Sinusoids(shots=4, steps=2)


def episode(lr=0.01):
    rule = Backprop(optimizer=mg.SGD(lr=mg.learnable(lr), momentum=mg.learnable(0.3)))
    return meta.Episode(mg.compile(mlp([1, 4, 1], "tanh", "l2"), rule, dtype=torch.float64), {"query": 1.0})


def starts(*rates):
    return [{n: p.detach().clone() for n, p in episode(lr).parameters().items()} for lr in rates]


def test_each_rule_takes_the_steps_of_a_trainer_of_its_own():
    rates = (0.01, 0.05)
    search = meta.Synchronised(starts(*rates), every=100, lr=1e-2, clip=0.05)
    meta.MetaTrainer(episode(), FAMILY, search, tasks=2, seed=3).run(3)
    for i, lr in enumerate(rates):
        adam = lambda p: torch.optim.Adam(p, lr=1e-2)  # noqa: E731
        one = meta.MetaTrainer(
            episode(lr), FAMILY, meta.Unroll(), optimizer=adam, tasks=2, seed=3, clip="norm", limit=0.05
        )
        one.run(3)
        for name, wanted in one.parameters.items():
            found = search.state()[f"rule/{name}"][i]
            torch.testing.assert_close(found, wanted.detach(), rtol=1e-9, atol=1e-12)


def test_all_become_the_best_and_a_resumed_run_is_the_same(tmp_path):
    def made():
        search = meta.Synchronised(starts(0.01, 5.0, 0.05), every=2, lr=1e-3)
        return search, meta.MetaTrainer(episode(), FAMILY, search, seed=1)

    search, trainer = made()
    trainer.run(2)
    best = {name: p.detach().clone() for name, p in trainer.parameters.items()}
    assert float(best["optimizer.lr"]) < 1.0  # a rate of 5 explodes
    search._synchronise()
    for name, wanted in best.items():
        assert all(torch.equal(row, wanted) for row in search.state()[f"rule/{name}"])
    _, whole = made()
    whole.run(5)
    _, first = made()
    first.run(3, tmp_path)
    _, second = made()
    second.run(5, tmp_path, resume=True)
    for name, wanted in whole.parameters.items():
        assert torch.equal(second.parameters[name], wanted)


def test_a_rule_whose_loss_is_not_finite_stays_what_it_was():
    bad = starts(0.01, 2.0**100)
    search = meta.Synchronised(bad, every=100)
    meta.MetaTrainer(episode(), FAMILY, search).run(2)
    assert float(search.state()["rule/optimizer.lr"][1]) == 2.0**100


def test_from_settings_rules_differ_by_their_seed():
    given = {"name": "synchronised", "genomes": 3, "steps": {"growing": [1, 2, 4]}}
    rule = {"name": "blur", "initial": "random", "seed": 5}
    search = settings.estimator_of(given, None, rule)
    for i in range(3):
        wanted = dict(settings.protocol_of({**rule, "seed": 5 + i}).named_parameters())
        assert torch.equal(search.state()["rule/genome.nu"][i], wanted["genome.nu"])


def test_wrong_starts_are_refused_in_words():
    with pytest.raises(InputError, match="at least two"):
        meta.Synchronised(starts(0.1))
    with pytest.raises(InputError, match="differ in names or shapes"):
        meta.Synchronised([{"a": torch.zeros(2)}, {"a": torch.zeros(3)}])
    with pytest.raises(InputError, match="the episode has"):
        meta.MetaTrainer(episode(), FAMILY, meta.Synchronised([{"a": torch.zeros(2)}] * 2)).run(1)


def images(number):
    x = torch.full((40, 1, 4, 2), float(number)) + torch.arange(8.0).reshape(1, 1, 4, 2)
    return Dataset(f"set {number}", x, torch.arange(40) % 2, x, torch.arange(40) % 2, 2)


def test_a_mixture_draws_from_its_families_as_often_as_it_is_told():
    families = [meta.FewShot(images(n), ways=2, queries=2) for n in (0, 100)]
    mixed = meta.Mixture(families, weights=[1.0, 3.0])
    assert (mixed.inputs, mixed.outputs) == (8, 2)
    drawn = [float(task.x.min()) for task in meta.Tasks(mixed, seed=0, count=200)]
    assert set(drawn) == {0.0, 100.0}
    assert 0.65 < sum(value == 100.0 for value in drawn) / 200 < 0.85
    for wrong in ({"families": []}, {"families": families, "weights": [1.0, 0.0]}, {"families": [*families, FAMILY]}):
        with pytest.raises(InputError, match="Mixture"):
            meta.Mixture(**wrong)


def test_pooled_images_are_means_over_squares():
    found = images(0).pooled(2)
    assert found.shape == (1, 2, 1)
    assert found.train_x[0].flatten().tolist() == [1.5, 5.5]  # of 0, 1, 2, 3 and of 4, 5, 6, 7
    with pytest.raises(InputError, match="multiples of 4"):
        images(0).pooled(4)
