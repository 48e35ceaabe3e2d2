"""Tasks: what a family promises, held against its data; randomness that depends on names only."""

import math
from dataclasses import replace

import pytest
import torch

import mpgraph as mg
from mpgraph.data import Dataset
from mpgraph.meta import (
    Boolean,
    FewShot,
    Minibatches,
    OnlineStream,
    PermutedLabels,
    Plane,
    RandomFilter,
    RandomProjection,
    Sinusoids,
    Task,
    TaskFamily,
    Tasks,
    list_families,
    make_family,
)


def seeded(number=0):
    return torch.Generator().manual_seed(number)


@pytest.fixture(scope="module")
def numbered():
    """A data set of 12 classes whose every image is its own number, and tells its class: label times 100 + index."""
    labels = torch.arange(12).repeat_interleave(30)
    images = (100 * labels + torch.arange(30).repeat(12)).double()[:, None]
    return Dataset("numbered", images, labels, images + 50.0, labels, 12)


@pytest.mark.parametrize("relabel", [True, False])
def test_few_shots_are_distinct_images_of_the_right_classes(numbered, relabel):
    family = FewShot(numbered, ways=4, shots=5, queries=3, batch=2, relabel=relabel)
    for number in range(20):
        task = family.draw(seeded(number))
        assert task.x.shape == (10, 2, 1)
        assert task.query_x.shape == (12, 1)
        support, query = task.x.flatten().long(), task.query_x.flatten().long()
        assert len({*support.tolist(), *query.tolist()}) == 20 + 12
        classes = support // 100
        assert torch.bincount(classes).tolist().count(5) == 4
        assert torch.bincount(query // 100).tolist().count(3) == 4
        if relabel:
            pairs = {*zip(classes.tolist(), task.y.flatten().tolist(), strict=True)}
            pairs |= {*zip((query // 100).tolist(), task.query_y.tolist(), strict=True)}
            assert sorted(label for _, label in pairs) == [0, 1, 2, 3]
        else:
            assert torch.equal(task.y.flatten(), classes)
            assert torch.equal(task.query_y, query // 100)


def test_minibatches_are_fresh_examples_and_the_splits_do_not_meet(numbered):
    family = Minibatches(numbered, batch=3, steps=4, queries=5, held_out=60, standardise=False)
    seen = {}
    for split in ("train", "validation", "test"):
        for number in range(30):
            task = family.draw(seeded(number), 6, split)
            assert task.x.shape == (6, 3, 1)
            support, query = (x.flatten().long() for x in (task.x, task.query_x))
            assert len({*support.tolist(), *query.tolist()}) == 18 + 5
            assert torch.equal(support // 100, task.y.flatten())
            asked = {*query.tolist()}
            assert all((x % 100 >= 50) == (split == "test") for x in asked)
            seen.setdefault(split, set()).update(support.tolist(), asked)
    assert not seen["train"] & seen["validation"]
    assert seen["validation"] <= {int(x) for x in numbered.train_x[-60:]}
    with pytest.raises(mg.InputError, match="held_out=355 leaves 5 for train"):
        Minibatches(numbered, batch=3, queries=5, held_out=355)
    with pytest.raises(mg.InputError, match="need more than the 60 examples"):
        Minibatches(numbered, batch=3, queries=5, held_out=60).draw(seeded(), 30, "validation")


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_minibatches_of_some_classes(numbered, split):
    """Each task has ``ways`` classes, each with one number below ``ways``; other tasks have other classes."""
    mixed = torch.randperm(360, generator=seeded(5))  # or the last 60, held out, are of two classes only
    data = replace(numbered, train_x=numbered.train_x[mixed], train_y=numbered.train_y[mixed])
    family, met = Minibatches(data, batch=2, queries=3, ways=3, held_out=120, standardise=False), set()
    assert family.outputs == 3
    for number in range(20):
        task = family.draw(seeded(number), 6, split)
        pairs = {*zip((task.x.flatten() // 100).long().tolist(), task.y.flatten().tolist(), strict=True)}
        pairs |= {*zip((task.query_x.flatten() // 100).long().tolist(), task.query_y.tolist(), strict=True)}
        assert len({c for c, _ in pairs}) == len({label for _, label in pairs}) == len(pairs) <= 3
        assert {label for _, label in pairs} <= {0, 1, 2}
        met |= pairs
    assert len({c for c, _ in met}) > 9
    assert max(len({label for c, label in met if c == one}) for one in range(12)) == 3  # labels are in random order
    with pytest.raises(mg.InputError, match="ways=13, but numbered has 12 classes"):
        Minibatches(numbered, ways=13, queries=3)
    with pytest.raises(mg.InputError, match=r"40 steps of 2 and 3 queries need more than the \d+ examples"):
        family.draw(seeded(), 40, "validation")


def test_sinusoids_may_show_fresh_points_in_every_step():
    task = Sinusoids(shots=4, steps=3, queries=6, amplitude=(0.1, 0.5), fresh=True).draw(seeded(1), 5)
    assert task.x.shape == (5, 4, 1)
    assert len({*task.x.flatten().tolist(), *task.query_x.flatten().tolist()}) == 5 * 4 + 6
    assert float(task.query_y.abs().max()) <= 0.5
    one = Sinusoids(shots=4, steps=3).draw(seeded(1))
    assert torch.equal(one.x[0], one.x[2])


def test_images_are_resized_as_published(tmp_path):
    """Bilinear without smoothing: of every 2x2 pixels the mean, at half the size."""
    images = torch.rand(3, 1, 4, 4)
    found = Dataset("images", images, torch.arange(3), images, torch.arange(3), 3).resized(2)
    wanted = images.unfold(2, 2, 2).unfold(3, 2, 2).mean((-1, -2))
    torch.testing.assert_close(found.train_x, wanted)
    with pytest.raises(mg.InputError, match="needs images"):
        found.flat().resized(2)


def test_classes_of_the_splits_do_not_meet(numbered):
    family = FewShot(numbered, ways=2, shots=1, queries=1, splits=(0.5, 0.25, 0.25))
    seen = {
        split: {int(x) // 100 for n in range(60) for x in family.draw(seeded(n), split=split).x.flatten()}
        for split in ("train", "validation", "test")
    }
    assert [len(classes) for classes in seen.values()] == [6, 3, 3]
    assert set.union(*seen.values()) == set(range(12))


def test_without_class_splits_test_tasks_are_of_the_test_set(numbered):
    family = FewShot(numbered, ways=3, shots=2, queries=2)
    last = [int(x) % 100 for n in range(20) for x in family.draw(seeded(n), split="test").x.flatten()]
    assert min(last) >= 50
    assert max(int(x) % 100 for n in range(20) for x in family.draw(seeded(n)).x.flatten()) < 50


def test_more_steps_are_further_epochs_in_another_order(numbered):
    family = FewShot(numbered, ways=2, shots=3, queries=1, batch=2)
    task = family.draw(seeded(), steps=6)
    epochs = task.x.flatten().reshape(2, 6)
    assert torch.equal(epochs[0].sort().values, epochs[1].sort().values)
    assert torch.equal(family.draw(seeded(), steps=3).query_x, task.query_x)


def test_the_stream_draws_classes_with_replacement_as_published(numbered):
    family = OnlineStream(numbered, ways=3, shots=4, queries=2)
    repeated = 0
    for number in range(300):
        task = family.draw(seeded(number))
        assert task.x.shape == (12, 1, 1)
        assert torch.equal(task.y.flatten(), task.x.flatten().long() // 100)
        assert len({*task.x.flatten().tolist(), *task.query_x.flatten().tolist()}) == 18
        repeated += len(task.y.unique()) < 3
    chance = 1 - 12 * 11 * 10 / 12**3
    assert abs(repeated / 300 - chance) < 4 * math.sqrt(chance * (1 - chance) / 300)


def test_what_a_data_set_cannot_give_is_refused(numbered):
    with pytest.raises(
        mg.InputError, match="shots=20 and queries=15 need 35 images of each class; one of train has 30"
    ):
        FewShot(numbered, shots=20)
    with pytest.raises(mg.InputError, match="3 classes for validation, ways=5 of them"):
        FewShot(numbered, splits=(0.5, 0.25, 0.25))
    with pytest.raises(mg.InputError, match="unknown split 'tset': allowed are .*; did you mean 'test'"):
        FewShot(numbered).draw(seeded(), split="tset")
    with pytest.raises(mg.InputError, match="unknown task family 'sinusoid'.*did you mean 'sinusoids'"):
        make_family("sinusoid")
    with pytest.raises(mg.InputError, match="targets of type torch.float64; it needs class labels"):
        PermutedLabels(Sinusoids(), 5).draw(seeded())


def test_sinusoids_are_sinusoids():
    for number in range(20):
        task = Sinusoids(shots=20, steps=2).draw(seeded(number))
        amplitude = float(torch.cat([task.y[0], task.query_y]).abs().max())
        assert amplitude <= 5.0
        # sin(x + p) is a mixture of sin x and cos x, fitted on the support: it must hit the query.
        support, query = (torch.cat([torch.sin(x), torch.cos(x)], 1) for x in (task.x[0], task.query_x))
        fitted = torch.linalg.lstsq(support, task.y[0]).solution
        assert (query @ fitted - task.query_y).abs().max() < 1e-9
        assert torch.equal(task.x[0], task.x[1])


def test_boolean_tasks_are_their_truth_tables():
    tables = {"and": (0, 0, 0, 1), "or": (0, 1, 1, 1), "nand": (1, 1, 1, 0), "nor": (1, 0, 0, 0)}
    tables |= {"xor": (1, 0, 0, 1), "nxor": (0, 1, 1, 0)}  # BLUR's xor is the sign of the product
    for name, table in tables.items():
        task = Boolean(train=(name,)).draw(seeded())
        for x, y in zip(task.x.flatten(0, 1), task.y.flatten(0, 1), strict=True):
            assert int(y) == 2 * table[2 * int(x[0] > 0) + int(x[1] > 0)] - 1
    assert {Boolean().draw(seeded(n), split="test").name for n in range(5)} == {"nxor"}


def test_shapes_in_the_plane_can_be_told_apart_and_only_some_by_a_line():
    for name, linear in {"blobs": True, "circles": False, "moons": False, "spirals": False}.items():
        task = Plane(train=(name,), noise=0.02, batch=200, steps=1, queries=200).draw(seeded())
        x, y = task.x[0], task.y[0]
        nearest = y[torch.cdist(task.query_x, x).argmin(1)]
        assert (nearest == task.query_y).double().mean() > 0.9, name
        ones = torch.cat([x, torch.ones(200, 1, dtype=x.dtype)], 1)
        fitted = ones @ torch.linalg.lstsq(ones, y).solution
        right = float((fitted.sign() == y).double().mean())
        assert (right > 0.99) == linear, (name, right)


def test_augmented_tasks(numbered):
    plain, family = FewShot(numbered, ways=2, shots=2, queries=1), None
    family = PermutedLabels(plain, 2)
    task, moved = plain.draw(seeded(3)), family.draw(seeded(3))
    assert torch.equal(task.x, moved.x)
    assert {tuple(pair) for pair in zip(task.y.flatten().tolist(), moved.y.flatten().tolist(), strict=True)} in (
        {(0, 0), (1, 1)}, {(0, 1), (1, 0)}
    )  # fmt: skip
    wide = RandomProjection(Boolean(), 500).draw(seeded(3))
    narrow = Boolean().draw(seeded(3))
    assert wide.x.shape[-1] == 500
    ratio = wide.query_x.square().sum(1) / narrow.query_x.square().sum(1)  # E |Mx|^2 = 500/2 |x|^2
    assert (ratio / 250 - 1).abs().max() < 0.5


def test_a_projection_with_a_spectrum_keeps_the_scale_and_needs_fewer_directions():
    def directions(decay):
        """Participation ratio of the spectrum of what isotropic inputs become, in the mean of 20 tasks."""
        family, found = RandomProjection(Isotropic(), decay=decay), []
        for number in range(20):
            task = family.draw(seeded(number))
            assert float(task.x.square().mean()) == pytest.approx(4.0, rel=1e-6)
            values = torch.linalg.svdvals(task.x[:, 0]) ** 2
            found.append(float(values.sum() ** 2 / values.square().sum()))
        return sum(found) / len(found)

    class Isotropic(TaskFamily):
        def draw(self, generator, steps=None, split="train"):
            x = torch.randn(400, 1, 20, generator=generator, dtype=torch.float64)
            x *= 2.0 / x.square().mean().sqrt()
            return Task(x, x[..., :1], x[:5, 0], x[:5, 0, :1])

    assert directions(2.0) < 0.6 * directions(0.0)
    with pytest.raises(mg.ProtocolError, match="decay=-1.0 must be"):
        RandomProjection(Isotropic(), decay=-1.0)


def test_a_filtered_image_is_two_sums_over_neighbours():
    class Images(TaskFamily):
        def draw(self, generator, steps=None, split="train"):
            x = torch.randn(5, 2, 16, generator=generator)
            return Task(x, torch.zeros(5, 2), x[:3, 0], torch.zeros(3))

    class Flat(TaskFamily):
        def draw(self, generator, steps=None, split="train"):
            x = torch.randn(5, 2, 15, generator=generator)
            return Task(x, x, x[:3, 0], x[:3, 0], "odd")

    def around(image, filters):
        """Sum over the neighbours of each pixel, of all channels; beyond the border is zero."""
        out = torch.zeros(4, 4, dtype=torch.float64)
        for channel, weights in zip(image, filters, strict=True):
            for i in range(4):
                for j in range(4):
                    for a in (-1, 0, 1):
                        for b in (-1, 0, 1):
                            if 0 <= i + a < 4 and 0 <= j + b < 4:
                                out[i, j] += weights[a + 1, b + 1] * channel[i + a, j + b]
        return out

    found, generator = RandomFilter(Images(), channels=2, threshold=0.5).draw(seeded(3)), seeded(3)
    plain = Images().draw(generator)
    first, threshold, second = (
        torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((2, 3, 3), (2,), (2, 3, 3))
    )
    wanted = []
    for image in plain.x.double().reshape(-1, 1, 4, 4):
        between = [(around(image, first[c : c + 1]) + 0.5 * threshold[c]).clamp(min=0.0) for c in range(2)]
        wanted.append(around(between, second))
    wanted = torch.stack(wanted)
    wanted = ((wanted - wanted.mean()) / wanted.std(correction=0)).reshape(5, 2, 16)
    assert (found.x - wanted).abs().max() < 1e-5
    assert torch.equal(found.query_x, found.x[:3, 0])
    assert torch.equal(found.y, plain.y)
    with pytest.raises(mg.InputError, match=r"odd has inputs of shape \(15,\); it needs flat square images"):
        RandomFilter(Flat()).draw(seeded(3))


def test_a_task_depends_on_names_only_and_shards_are_parts():
    family = Sinusoids()
    tasks = Tasks(family, seed=4, count=6, step=9)
    torch.manual_seed(0)
    first = [task.x for task in tasks]
    torch.manual_seed(1)
    torch.rand(7)
    assert all(torch.equal(a, b.x) for a, b in zip(first, tasks, strict=True))
    parts = [task.x for rank in range(3) for task in tasks.shard(rank, 3)]
    assert all(torch.equal(a, b) for a, b in zip(first, parts, strict=True))
    assert [tasks.shard(1, 3).network_seed(0)] == [tasks.network_seed(2)]
    others = [Tasks(family, 5, 6, 9), tasks.at(10), Tasks(family, 4, 6, 9, "validation")]
    assert all(not torch.equal(first[0], other[0].x) for other in others)
    with pytest.raises(mg.InputError, match="6 tasks cannot be shared evenly by 4 processes"):
        tasks.shard(0, 4)


def test_registered_families_make_tasks(numbered):
    for name in list_families():
        given = {"data": numbered} if name in ("few_shot", "online_stream", "minibatches") else {}
        more = {"shots": 2, "queries": 2} if given else {}
        more = {"queries": 2, "held_out": 20} if name == "minibatches" else more
        more = {"families": [Sinusoids()]} if name == "mixture" else more
        batch = Tasks(make_family(name, **given, **more), count=2).batch()
        assert len(batch.x) == len(batch.seeds) == 2
