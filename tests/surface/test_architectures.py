"""Builders of networks: their arguments are numbers that make sense, of Python or numpy."""

import numpy as np
import pytest
from refusals import refuses

import mpgraph as mg
from mpgraph import architectures

CHAINS = {"mlp": (2, {}), "autoencoder": (2, {}), "layered_sparse": (2, {}), "recurrent": (3, {"ticks": 2})}


@pytest.mark.parametrize("name", CHAINS)
@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        (4, "sizes=4"),
        (None, "sizes=None"),
        ("432", "sizes='432'"),
        ([4], "sizes=[4]"),
        ({4: 3, 2: 1, 1: 1}, "sizes={"),
        ([4, 0, 2], "sizes[1]=0"),
        ([4, 3, -2], "sizes[2]=-2"),
        ([2.5, 3, 2], "sizes[0]=2.5"),
        ([4, True, 2], "sizes[1]=True"),
        ([4, "3", 2], "sizes[1]='3'"),
    ],
)
def test_sizes_are_positive_integers(name, sizes, words):
    with refuses(mg.NetworkError, name, words):
        getattr(architectures, name)(sizes, **CHAINS[name][1])


@pytest.mark.parametrize("name", CHAINS)
def test_sizes_may_be_of_numpy(name):
    build, options = getattr(architectures, name), CHAINS[name][1]
    wanted = repr(build([5, 4, 3], **options))
    for sizes in ((5, 4, 3), np.array([5, 4, 3]), [np.int64(5), np.int32(4), np.uint8(3)], iter([5, 4, 3])):
        assert repr(build(sizes, **options)) == wanted


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("recurrent", {"sizes": [2, 2, 2], "ticks": 1}, ["ticks=1", "at least 2"]),
        ("recurrent", {"sizes": [2, 2, 2], "ticks": "a"}, ["ticks='a'"]),
        ("recurrent", {"sizes": [2, 2], "ticks": 2}, ["sizes=[2, 2]", "at least 3"]),
        ("layered_sparse", {"sizes": [2, 2], "fan_in": 1.5}, ["fan_in=1.5"]),
        ("layered_sparse", {"sizes": [2, 2], "seed": None}, ["seed=None"]),
        ("convnet", {"channels": 6}, ["channels=6"]),
        ("convnet", {"hidden": [0]}, ["hidden[0]=0"]),
        ("convnet", {"classes": 0}, ["classes=0"]),
        ("convnet", {"kernel": 2.0}, ["kernel=2.0"]),
        ("convnet", {"pool": "sum"}, ["pool='sum'", "'max'", "'avg'"]),
        ("convnet", {"image": (1, 4, 4)}, ["image=(1, 4, 4)", "too small"]),
        ("resnet", {"depth": 9}, ["8, 14, 20", "9"]),
        ("resnet", {"depth": 8.0}, ["depth=8.0"]),
        ("resnet", {"width": 0}, ["width=0"]),
        ("random_graph", {"neurons": 2.5}, ["neurons=2.5"]),
        ("random_graph", {"neurons": 12, "degree": 12}, ["degree=12", "from 2 to 11"]),
        ("random_graph", {"last": 201}, ["last=201", "200"]),
        ("random_graph", {"inputs": 0}, ["inputs=0"]),
        ("random_graph", {"rewired": 1.5}, ["rewired=1.5"]),
        ("random_graph", {"seed": None}, ["seed=None"]),
        ("random_graph", {"model": "watts"}, ["'watts'", "watts_strogatz"]),
        ("random_graph", {"model": 3}, ["unknown model 3"]),
    ],
)
def test_other_arguments(name, options, words):
    with refuses(mg.NetworkError, name, *words):
        getattr(architectures, name)(**options)


def test_numpy_numbers_are_numbers():
    i = np.int64
    graph = {"neurons": 12, "inputs": 3, "outputs": 2, "degree": 4, "first": 5, "seed": 1}
    for name, options in (
        ("random_graph", graph),
        ("resnet", {"depth": 8, "width": 2, "classes": 3}),
        ("convnet", {"classes": 4, "kernel": 3}),
        ("layered_sparse", {"sizes": [5, 4], "fan_in": 2, "seed": 3}),
        ("recurrent", {"sizes": [2, 3, 2], "ticks": 2}),
    ):
        build = getattr(architectures, name)
        of_numpy = {k: v if isinstance(v, list) else i(v) for k, v in options.items()}
        assert repr(build(**of_numpy)) == repr(build(**options))
