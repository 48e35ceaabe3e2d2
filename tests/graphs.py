"""Small networks, one for each connection, operation and way of meeting: every rule must run on all of them."""

import torch

import mpgraph as mg

SPARSE = [[0, 1, 5, 7, 2, 2, 0, 3], [0, 1, 2, 3, 5, 5, 5, 4]]


def _finish(network, below, *others):
    network.unit("y", 2)
    for name in (below, *others):
        network.connect(name, "y")
    network.loss("y", "cross_entropy")
    return network


def _start(size=3, ticks=1):
    network = mg.Network(ticks=ticks)
    network.input("x", size)
    return network


def convolution(kind="tanh", channels=2, image=(2, 5, 4), **options):
    network = _start(image)
    meeting = mg.Conv2d((3, 2), **options)
    network.unit("h", meeting.size(image, channels), kind)
    network.connect("x", "h", meeting)
    return _finish(network, network.operation("flat", "flatten", "h"))


def sparse():
    network = _start((2, 4))
    network.unit("h", (3, 2), "tanh"), network.unit("g", 3, "sigmoid")
    network.connect("x", "h", mg.Sparse(SPARSE))
    network.connect("h", "g", mg.Sparse([[0, 5, 1, 2], [1, 0, 0, 1]]))  # nobody meets the last agent
    return _finish(network, "g")


def recurrence():
    network = _start(2, ticks=3)
    network.unit("h", 3, "tanh")
    network.connect("x", "h"), network.connect("h", "h", delay=1), network.connect("h", "h", "one_to_one", delay=2)
    return _finish(network, "h")


def late():
    """A unit that hears nothing but delayed messages, so nothing at all at first."""
    network = _start(2, ticks=3)
    network.unit("h", 3, "sigmoid", bias=False), network.unit("g", 2, "tanh", bias=False)
    network.connect("x", "h", delay=1), network.connect("h", "g"), network.connect("g", "h", delay=1)
    return _finish(network, "g")


def tied():
    network = _start(3)
    network.unit("h", 2, "tanh"), network.unit("g", 3, "tanh"), network.unit("k", 2, "tanh")
    wire = network.connect("x", "h")
    network.connect("h", "g", tied=wire, transposed=True)
    network.connect("g", "k", tied=wire)
    return _finish(network, "k")


def residual():
    network = _start((2, 3, 3))
    network.unit("n", (2, 3, 3), mg.BatchNorm(), bias=False), network.unit("g", (2, 3, 3), "relu")
    network.connect("x", "n", mg.Conv2d(3, padding=1))
    network.connect("n", "g", mg.OneToOne(shared=(1, 2)))
    network.connect("x", "g", "identity")
    return _finish(network, network.operation("pool", "global_avg_pool", "g"))


def operations():
    network = _start((2, 3, 3))
    network.unit("c", (2, 3, 3), "tanh")
    network.connect("x", "c", mg.Conv2d(3, padding=1))
    network.operation("max", mg.MaxPool(3, 2, 1), "c"), network.operation("avg", mg.AvgPool(3, 1, 1), "max")
    network.operation("row", mg.Reshape(8), "avg")
    network.unit("l", 4, mg.LayerNorm(), bias=False), network.unit("k", 4, "sigmoid")
    network.connect("row", "l"), network.connect("row", "k")
    network.operation("gate", "product", "l", "k")
    return _finish(network, network.operation("all", "concat", "gate", "l", "row"))


def pieces():
    """Units of several kinds: softmax over the population, fixed weights, a skip."""
    network = _start(3)
    network.unit("h", 4, mg.Function(lambda z: torch.softmax(z, -1), over="node")), network.unit("g", 3, "tanh")
    network.connect("x", "h", trained=False), network.connect("h", "g"), network.connect("x", "g", "identity")
    return _finish(network, "g", "x")


def flat(kind):
    def build():
        network = _start(3)
        network.unit("h", 4, kind), network.unit("g", 3, "tanh")
        network.connect("x", "h"), network.connect("h", "g")
        return _finish(network, "g")

    return build


GRAPHS = {
    "convolution": convolution,
    "strided, padded": lambda: convolution("relu", stride=2, padding=1),
    "dilated": lambda: convolution(dilation=(1, 2), padding=(0, 1)),
    "grouped": lambda: convolution(channels=4, image=(2, 3, 3), groups=2, padding=1),
    "sparse": sparse,
    "recurrence": recurrence,
    "late": late,
    "tied": tied,
    "residual": residual,
    "operations": operations,
    "pieces": pieces,
    "step": flat("step"),
    "sign": flat("sign"),
    "winner take all": flat("winner_take_all"),
    "quantizer": flat(mg.Quantizer(3)),
}


def batch(network, size, seed=0):
    """Random inputs and labels of a network with the output ``y`` of two classes."""
    generator = torch.Generator().manual_seed(seed)
    ticks = (network.ticks,) if network.ticks > 1 else ()
    x = {
        n: torch.randn(size, *ticks, *network.shape(n), generator=generator, dtype=torch.float64)
        for n in network.inputs
    }
    return x, torch.randint(0, 2, (size,), generator=generator)
