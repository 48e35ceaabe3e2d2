"""Programs under torch's ambient modes: autocast, default devices; in other processes; moved."""

import copy
import io
import multiprocessing
import pickle

import networkx
import pytest
import torch
from reference import distance

import mpgraph as mg
from mpgraph import data
from mpgraph.architectures import convnet, layered_sparse, mlp
from mpgraph.experiments import train
from mpgraph.protocols import MPLP, VSML, Backprop, FeedbackAlignment, WeightMirror
from mpgraph.protocols.backprop import Weight

pytestmark = pytest.mark.filterwarnings("ignore::mpgraph.FlatUnitWarning")


def problem(name, **options):
    torch.manual_seed(0)
    program = mg.compile(mlp([5, 4, 3]), mg.make_protocol(name), **options)
    generator = torch.Generator("cpu").manual_seed(1)
    x = torch.randn(4, 5, generator=generator, device="cpu", dtype=program.dtype)
    return program, x, torch.tensor([0, 1, 2, 0], device="cpu")


def same(one, two):
    return {n: set(c) for n, c in one.items()} == {n: set(c) for n, c in two.items()} and all(
        t.dtype == two[n][c].dtype and torch.equal(t, two[n][c]) for n, k in one.items() for c, t in k.items()
    )


# -- autocast -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", mg.list_protocols())
def test_autocast_changes_nothing(name):
    program, x, y = problem(name)
    state = program.init(batch_size=4)
    after, out = program.step(state, x, y)
    prediction = program.predict(after, x)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.mm(x, x.t()).dtype == torch.bfloat16  # the mode does work here
        inside, _, _ = problem(name)
        for made in (program, inside):
            assert same(made.init(batch_size=4), state)
            mixed, found = made.step(state, x, y)
            assert same(mixed, after)
            assert torch.equal(found.prediction, out.prediction)
            assert torch.equal(found.loss, out.loss)
            assert torch.equal(made.predict(after, x), prediction)


def test_autocast_changes_nothing_under_transforms():
    torch.compiler.reset()
    program, x, y = problem("backprop")
    states = program.init(range(2))
    wanted = torch.func.vmap(lambda s: program.step(s, x, y)[0])(states)
    compiled = torch.compile(program.step, fullgraph=True, backend="aot_eager")
    with torch.autocast("cpu", torch.bfloat16):
        assert same(torch.func.vmap(lambda s: program.step(s, x, y)[0])(states), wanted)
        fast, _ = compiled(program.init(), x, y)
    assert all(t.dtype in (torch.float32, torch.int64) for k in fast.values() for t in k.values())
    assert distance(fast, program.step(program.init(), x, y)[0]) < 1e-6


# -- default devices: "meta" stands in for an accelerator ---------------------------------------------------


@pytest.mark.parametrize("name", mg.list_protocols())
def test_a_default_device_changes_nothing_on_the_cpu(name, tmp_path):
    program, x, y = problem(name)
    state = program.init(3, batch_size=4)
    noise, (after, _) = program.noise(state, 4), program.step(state, x, y)
    text = program.explain(4)
    with torch.device("meta"):
        inside, _, _ = problem(name, device="cpu")
        for made in (program, inside):
            assert same(made.init(3, batch_size=4), state)
            assert same(made.step(state, x, y)[0], after)
            assert made.noise(state, 4).keys() == noise.keys()
            assert all(torch.equal(t, noise[n]) for n, t in made.noise(state, 4).items())
            made.save(after, tmp_path / "state")
            assert same(made.load(tmp_path / "state"), after)
            assert torch.equal(made.predict(after, x), program.predict(after, x))
            assert made.explain(4) == text
        inside.protocol.save(tmp_path / "rule")
        again = mg.compile(mlp([5, 4, 3]), mg.load_protocol(tmp_path / "rule"), device="cpu")
        assert same(again.step(state, x, y)[0], after)


@pytest.mark.parametrize("name", mg.list_protocols())
def test_a_default_device_is_where_programs_are_made(name):
    program, x, y = problem(name, device="cpu")
    noise = {n: t.to("meta") for n, t in program.noise(program.init(batch_size=4), 4).items()}
    with torch.device("meta"):
        program, _, _ = problem(name)
        state, out = program.step(program.init(batch_size=4), x.to("meta"), y.to("meta"), noise=noise)
    assert {t.device.type for k in state.values() for t in k.values()} == {"meta"}
    assert out.prediction.shape == (4, 3)


def test_a_default_device_leaves_data_networks_and_training_alone():
    digits = data.load("digits").flat()
    rule = Backprop(lr=mg.learnable(0.1))
    plain = train(mg.compile(mlp([64, 8, 10]), rule), digits, epochs=1)
    with torch.device("meta"):
        inside = data.load("digits").flat()
        assert torch.equal(inside.train_x, digits.train_x)
        under = train(mg.compile(mlp([64, 8, 10]), Backprop(lr=mg.learnable(0.1)), device="cpu"), inside, epochs=1)
        assert mg.compile(convnet(), Backprop(), device="cpu").init()
        graph = networkx.DiGraph([(0, 2), (1, 2), (2, 3)])
        neurons = mg.Network.from_networkx(graph)
        neurons.loss("y", "l2")
        assert mg.compile(neurons, FeedbackAlignment(), device="cpu").init()
        module = torch.nn.Sequential(torch.nn.Linear(3, 2, device="cpu"), torch.nn.Tanh())
        assert mg.compile(mg.Network.from_torch(module, 3, loss="l2"), Backprop(), device="cpu").init()
        sparse = mg.Network()
        sparse.input("x", 3), sparse.unit("y", 2), sparse.loss("y", "l2")
        sparse.connect("x", "y", mg.Sparse([[0, 1], [0, 1]]))
        assert mg.compile(sparse, Backprop(), device="cpu").init()
    assert same(plain[0], under[0])
    assert plain[1:] == under[1:]


def test_a_default_device_changes_nothing_that_is_read_or_sampled():
    from torch_geometric.data import Data, HeteroData

    digits, order = data.load("digits").flat(), data.load("digits")
    program = mg.compile(mlp([64, 8, 10]), Backprop())
    edges, weights = torch.tensor([[0, 1], [2, 2]]), torch.tensor([0.5, -2.0])
    neurons = Data(edge_index=edges, edge_weight=weights, num_nodes=3)
    populations = HeteroData()
    populations["x"].num_nodes, populations["y"].num_nodes = 2, 1
    populations["x", "to", "y"].edge_index, populations["x", "to", "y"].w = edges - torch.tensor([[0], [2]]), weights
    mean, var = torch.tensor([0.5, 1.0]), torch.tensor([1.0, 4.0])
    z = torch.tensor([[1.5, 5.0]])

    def everything():
        trained = train(program, digits, epochs=1)
        batches = [(x.tolist(), y.tolist()) for x, y in order.batches(512, torch.Generator().manual_seed(1))]
        sparse = mg.compile(layered_sparse([4, 5, 3], 2), Backprop(), device="cpu")
        compiled = [
            mg.compile(mg.Network.from_pyg(g, loss="l2"), Backprop(), device="cpu") for g in (neurons, populations)
        ]
        written = [one.to_pyg(one.init()) for one in compiled]
        indices = [written[1][kind].edge_index.tolist() for kind in written[1].edge_types]
        states = [one.init() for one in (sparse, *compiled)]
        frozen = mg.BatchNorm(eps=0.0).frozen(mean, var).apply(z).tolist()
        return trained, batches, states, indices, frozen

    one = everything()
    with torch.device("meta"):
        two = everything()
    assert same(one[0][0], two[0][0])
    assert one[0][1:] == two[0][1:]
    assert one[1] == two[1]
    assert all(same(a, b) for a, b in zip(one[2], two[2], strict=True))
    assert two[2][2]["x->y"]["w"].tolist() == [0.5, -2.0]
    assert one[3] == two[3] == [[[0, 1], [0, 0]]]
    assert one[4] == two[4] == [[1.0, 2.0]]


# -- copies, pickles, processes -----------------------------------------------------------------------------


def stepped(pair):
    """What another process computes with a program that it was sent."""
    program, state, x, y = pair
    return program.step(state, x, y)[0]


@pytest.mark.parametrize("rule", [Backprop(lr=mg.learnable(0.2)), WeightMirror(), MPLP(), VSML(4, 4)], ids=repr)
@pytest.mark.parametrize("way", ["pickle", "torch.save", "deepcopy", "copy"])
def test_a_program_goes_through_a_pickle(rule, way):
    program = mg.compile(mlp([5, 4, 3], "step"), rule, dtype=torch.float64, checks="all")
    _, x, y = problem("backprop", dtype=torch.float64)
    state = program.init(batch_size=4)
    with torch.no_grad():
        for p in program.parameters():
            p.add_(0.01)  # what was learned since it was compiled
    if way == "torch.save":
        file = io.BytesIO()
        torch.save(program, file)
        file.seek(0)
        again = torch.load(file, weights_only=False)
    else:
        again = {"pickle": lambda p: pickle.loads(pickle.dumps(p)), "deepcopy": copy.deepcopy, "copy": copy.copy}[way](
            program
        )
    assert same(stepped((again, state, x, y)), stepped((program, state, x, y)))
    assert again.code == program.code
    assert (again.dtype, again.device, again.checks) == (program.dtype, program.device, "all")
    assert again.state_dict().keys() == program.state_dict().keys()


class Local:
    """A neuron's name that cannot be pickled."""

    def __reduce__(self):
        raise TypeError("a name of its own")


def of_neurons():
    network = mg.Network.from_networkx(networkx.DiGraph([(Local(), 1)]))
    network.loss("y", "l2")
    return network


def with_loss(loss):
    network = mlp([5, 4, 3], loss=None)
    network.loss("y", loss)
    return network


def local_loss():
    class Own(mg.Loss):
        def apply(self, z, t):
            return ((z - t) ** 2).sum(1)

    return Own()


@pytest.mark.parametrize(
    ("make", "rule", "error", "words"),
    [
        (lambda: mlp([5, 4, 3], lambda z: torch.tanh(z)), Backprop, mg.NetworkError, "^unit 'h1', function: "),
        (lambda: with_loss(local_loss()), Backprop, mg.NetworkError, "^loss 'loss', own: "),
        (of_neurons, Backprop, mg.NetworkError, "^the graph .*a name of its own"),
        (lambda: mlp([5, 4, 3]), lambda: Backprop(surrogate=lambda z: z), mg.ProtocolError, "^the rule Backprop: "),
    ],
)
def test_a_program_that_cannot_be_pickled_says_why(make, rule, error, words):
    program = mg.compile(make(), rule())
    for save in (pickle.dumps, lambda p: torch.save(p, io.BytesIO())):
        with pytest.raises(error, match=words + ".*top level of a module"):
            save(program)


@pytest.mark.parametrize("way", [copy.copy, copy.deepcopy])
def test_a_program_with_a_lambda_can_be_copied(way):
    program = mg.compile(mlp([5, 4, 3], lambda z: torch.tanh(z)), Backprop())
    _, x, y = problem("backprop")
    assert same(stepped((way(program), program.init(), x, y)), stepped((program, program.init(), x, y)))


class Own(mg.Protocol):
    """A rule that makes a random agent and does not hold it."""

    def agent(self, node):
        return Gain() if node.type == "unit" else super().agent(node)


class Gain(mg.UnitAgent):
    def __init__(self):
        super().__init__()
        self.gain = torch.nn.Parameter(torch.rand(()))

    def forward_update(self, s, pre):
        return super().forward_update(s, self.gain * pre)


def test_agents_that_the_rule_does_not_hold_keep_their_numbers():
    program = mg.compile(mlp([5, 4, 3]), Own(weight=Weight()))
    x, y = torch.randn(2, 5), torch.tensor([0, 1])
    for again in (pickle.loads(pickle.dumps(program)), copy.deepcopy(program)):
        assert same(again.step(program.init(), x, y)[0], program.step(program.init(), x, y)[0])


def test_a_program_goes_to_a_spawned_process():
    program, x, y = problem("feedback_alignment")
    state = program.init()
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        (found,) = pool.map(stepped, [(program, state, x, y)])
    assert same(found, program.step(state, x, y)[0])


# -- moves --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "move", [lambda p: p.double(), lambda p: p.half(), lambda p: p.to(torch.float64), lambda p: p.to("meta"),
             lambda p: p.bfloat16(), lambda p: p.to_empty(device="meta"), lambda p: torch.nn.Sequential(p).double()]
)  # fmt: skip
@pytest.mark.parametrize("rule", [Backprop, lambda: Backprop(lr=mg.learnable(0.1))])
def test_moves_are_refused_with_the_way_to_go(move, rule):
    program, x, y = mg.compile(mlp([5, 4, 3]), rule()), torch.randn(2, 5), torch.tensor([0, 1])
    with pytest.raises(mg.ProtocolError, match=r"compile again, mg.compile\(network, protocol, (dtype|device)="):
        move(program)
    assert program.step(program.init(), x, y)


def test_moves_to_where_it_is_and_modes_change_nothing():
    program, x, y = problem("backprop")
    wanted = program.step(program.init(), x, y)[0]
    for same_program in (
        program.to("cpu"), program.float(), program.cpu(), program.to(torch.float32), program.eval(), program.train(),
        program.requires_grad_(False),
    ):  # fmt: skip
        assert same_program is program
        assert same(program.step(program.init(), x, y)[0], wanted)
    if not torch.cuda.is_available():
        with pytest.raises(mg.ProtocolError, match="cannot be moved"):
            program.cuda()
