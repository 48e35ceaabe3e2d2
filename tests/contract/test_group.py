"""A batch spread over processes gives the states that one process gives for the whole batch."""

import copy
import json
import os
import pickle
import re
import runpy
import signal
import subprocess
import sys
import time
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from graphs import GRAPHS
from processes import together
from reference import largest
from rules import Echo, Memories, TwoStates

import mpgraph as mg
from mpgraph.architectures import convnet, mlp, recurrent
from mpgraph.program.backends import Inductor
from mpgraph.protocols import BLUR, Backprop, NodePerturbation
from mpgraph.protocols.backprop import Weight
from mpgraph.registry import lookup

SLICE, PROCESSES = 3, 2
NETWORKS = {
    "dense": lambda: mlp([4, 5, 4, 3], "tanh"),
    "convolutional": lambda: convnet((1, 8, 8), channels=(2, 3), hidden=(4,), classes=3, kernel=3),
    "recurrent": lambda: recurrent([4, 5, 3], ticks=3),
}


class Reducing(Weight):
    """A weight that reduces over the batch in every way, also within what belongs to single examples."""

    high, low, spread = mg.slow(), mg.slow(), mg.slow(2)
    level, top = mg.common(), mg.common()
    trace = mg.carry(init=lambda shape, node, generator, dtype: torch.randn(shape, generator=generator, dtype=dtype))

    def learn_update(self, s):
        product = s.e * s.x
        mean = s.examples(product)
        rows, columns = torch.stack([s.e, s.e * s.e]), torch.stack([s.x, s.x * s.x, 2 * s.x])
        grown = s.examples(rows[:, None] * columns[None, :])  # larger than what it is made of
        grown = (grown * torch.tanh(s.e)).sum() + mean * s.x  # multiplied with what an example has
        s = s.set(high=s.examples(product, "max"), low=s.examples(product, "min"))
        s = s.set(spread=torch.stack([(product - mean) ** 2, s.population(grown * s.x)]))
        s = s.set(level=s.all(product) + s.level, top=s.all(product, "max"))
        s = s.set(trace=0.5 * s.trace + grown * s.x - s.cumsum(mean))
        return s.descend(w=mean + 0.1 * s.trace + 0.1 / s.examples(1.0, "sum"))


class Everything(Backprop):
    agents = {"weight": Reducing, "bias": Weight}  # noqa: RUF012


class Centered(mg.Activation):
    """Needs all examples, in a way that the engine knows nothing of."""

    over = "batch"

    def apply(self, z):
        return torch.tanh(z - z.mean(0) + 0.1 * torch.logsumexp(z, 0))


def centered():
    network = mg.Network()
    network.input("x", 4), network.unit("h", 5, Centered()), network.unit("y", 3)
    network.connect("x", "h"), network.connect("h", "y")
    network.loss("y", "cross_entropy")
    return network


def normalized(momentum=0.1):
    network = mg.Network()
    network.input("x", (2, 4, 4)), network.unit("h", (3, 2, 2), mg.BatchNorm(momentum=momentum)), network.unit("y", 3)
    network.connect("x", "h", mg.Conv2d(3))
    network.operation("r", "flatten", "h")
    network.connect("r", "y")
    network.loss("y", "cross_entropy")
    return network


def cases():
    """Name, network and rule of everything that is compared."""
    for rule in mg.list_protocols():
        for network, build in NETWORKS.items():
            yield f"{rule} on {network}", build, lookup("mpgraph.protocols", rule)
    for graph, build in GRAPHS.items():
        yield f"Everything on {graph}", build, Everything
    for network in ("dense", "convolutional"):
        for rule in (Memories, Echo):
            yield f"{rule.__name__} on {network}", NETWORKS[network], rule
    yield "two states", lambda: mlp([4, 5, 3], "tanh", None), TwoStates
    yield "Everything on a function of the batch", centered, Everything
    for rule in (Backprop, BLUR, Everything):
        yield f"{rule.__name__} on a normalized image", normalized, rule
    yield "Adam", NETWORKS["convolutional"], lambda: Backprop(optimizer=mg.Adam(0.01))
    yield "regions", NETWORKS["dense"], lambda: mg.Regions({"*y*": Everything(), "*": Backprop()})


def problem(network, size, seed=0):
    generator = torch.Generator().manual_seed(seed)
    ticks = (network.ticks,) if network.ticks > 1 else ()
    x = {n: torch.randn(size, *ticks, *network.shape(n), generator=generator).double() for n in network.inputs}
    y = [torch.randint(0, *network.shape(n.pre), (size,), generator=generator) for n in network.losses.values()]
    return x, y[0] if y else None


def rows(tensors, rank):
    part = slice(rank * SLICE, (rank + 1) * SLICE)
    return {n: t[part] for n, t in tensors.items()} if isinstance(tensors, dict) else tensors[part]


def followed(build, rule, rank=None):
    """States, losses, predictions and noise over two steps or more, each with whether it has a row for each example.

    In one process with the whole batch; with a rank, of that process's slice in the group of all.
    """
    group, size = ("alone", SLICE * PROCESSES) if rank is None else (dist.group.WORLD, SLICE)
    program = mg.compile(build(), rule(), dtype=torch.float64, group=group)
    state = program.init(1, batch_size=size)
    found = {}

    def states(when):
        for node, channels in state.items():
            for channel, tensor in channels.items():
                carry = node != "program" and program.graph.channels[node][channel].extent == "carry"
                found[f"{when}: {node}.{channel}"] = tensor, carry

    states("start")
    phases = [*program.protocol.phases]
    for step, phase in enumerate(phases + [None] * (2 - len(phases))):
        x, y = problem(program.graph.network, SLICE * PROCESSES, step)
        if rank is not None:
            x, y = rows(x, rank), rows(y, rank) if y is not None else None
        for name, tensor in program.noise(state, size, phase=phase).items():
            found[f"{step}: noise {name}"] = tensor, len(tensor) == size
        state, out = program.step(state, x, y, phase=phase)
        states(step)
        found |= {f"{step}: loss {name}": (loss, False) for name, loss in out.losses.items()}
        found |= {f"{step}: output": (out.prediction, True), f"{step}: predicted": (program.predict(state, x), True)}
    return found


def distance(expected, build, rule, rank):
    """Between what a process of the group has and its part of what one process has."""
    found = followed(build, rule, rank)
    assert set(found) == set(expected)
    pairs = [(found[name][0], rows(t, rank) if sliced else t) for name, (t, sliced) in expected.items()]
    return largest(a - b for a, b in pairs)


# -- what else must hold, each in both processes ------------------------------------------------------------


def dense(rule=None, group="alone", **options):
    return mg.compile(NETWORKS["dense"](), rule or Backprop(), dtype=torch.float64, group=group, **options)


def close(one, two):
    return all(torch.allclose(t, two[n][c], rtol=0, atol=1e-10) for n, k in one.items() for c, t in k.items())


def one_example_each(rank):
    one, many = dense(), dense(group=dist.group.WORLD)
    x, y = problem(one.graph.network, PROCESSES)
    state, _ = one.step(one.init(), x, y)
    parts, _ = many.step(many.init(), {"x": x["x"][rank : rank + 1]}, y[rank : rank + 1])
    assert close(state, parts)


def normalization_of_one_example_each(rank):
    network = mg.Network()
    network.input("x", 3), network.unit("h", 4, mg.BatchNorm()), network.unit("y", 2)
    network.connect("x", "h"), network.connect("h", "y")
    network.loss("y", "cross_entropy")
    one = mg.compile(network, Backprop(), dtype=torch.float64)
    many = mg.compile(network, Backprop(), dtype=torch.float64, group=dist.group.WORLD)
    x, y = problem(network, PROCESSES)
    parts, _ = many.step(many.init(), {"x": x["x"][rank : rank + 1]}, y[rank : rank + 1])
    assert close(one.step(one.init(), x, y)[0], parts)


def mapped_over_states(rank):
    one, many = dense(), dense(group=dist.group.WORLD)
    x, y = problem(one.graph.network, SLICE * PROCESSES)
    mapped, _ = torch.func.vmap(lambda s: many.step(s, rows(x, rank), rows(y, rank)))(many.init(range(3)))
    for i in range(3):
        assert close(one.step(one.init(i), x, y)[0], {n: {c: t[i] for c, t in k.items()} for n, k in mapped.items()})


def gradients_average_to_the_gradient(rank):
    def loss(program, x, y, rate, w):
        state = {**start, "x->h1": {"w": w}}
        for _ in range(3):
            state, out = program.step(state, x, y, parameters={"optimizer.lr": rate})
        return out.loss

    rule = [Backprop(optimizer=mg.SGD(mg.learnable(0.3))) for _ in range(2)]
    one, many = dense(rule[0]), dense(rule[1], dist.group.WORLD)
    x, y = problem(one.graph.network, SLICE * PROCESSES)
    start = one.init()
    inputs = torch.tensor(0.3, dtype=torch.float64), start["x->h1"]["w"]
    expected = torch.func.grad(lambda *i: loss(one, x, y, *i), (0, 1))(*inputs)

    def share(*given):
        return loss(many, rows(x, rank), rows(y, rank), *given)

    leaves = [t.clone().requires_grad_() for t in inputs]
    compiled = torch.compile(share, backend="aot_eager", fullgraph=True)
    for found in (
        torch.func.grad(share, (0, 1))(*inputs),
        torch.autograd.grad(share(*leaves), leaves),
        torch.autograd.grad(compiled(*leaves), leaves),
    ):
        for gradient, whole in zip(found, expected, strict=True):
            dist.all_reduce(gradient)
            assert torch.allclose(gradient / PROCESSES, whole, rtol=0, atol=1e-10)


def run_by_a_backend(rank):
    one, many = dense(), dense(group=dist.group.WORLD, backend=Inductor("aot_eager"))
    x, y = problem(one.graph.network, SLICE * PROCESSES)
    assert close(one.step(one.init(), x, y)[0], many.step(many.init(), rows(x, rank), rows(y, rank))[0])
    assert many.compilations
    with pytest.raises(RuntimeError, match="differ in the size of their slices"):
        many.step(many.init(), *problem(one.graph.network, 4 + rank))


def no_derivative_of_an_extremum(rank):
    many = dense(Everything(), dist.group.WORLD)
    state = many.init(batch_size=SLICE)
    state["x->h1"]["w"].requires_grad_()
    state, _ = many.step(state, *problem(many.graph.network, SLICE, rank))
    with pytest.raises(mg.GroupError, match="extremum"):
        state["x->h1"]["high"].sum().backward()


def slices_of_different_sizes(rank):
    many = dense(group=dist.group.WORLD)
    with pytest.raises(mg.InputError, match=rf"process {rank} of 2: the slices of the batch differ in size"):
        many.step(many.init(), *problem(many.graph.network, 4 + rank))


def states_of_different_seeds(rank):
    many = dense(group=dist.group.WORLD)
    with pytest.raises(mg.StateError, match=rf"process {rank} of 2: .* differ in their seed"):
        many.step(many.init(rank), *problem(many.graph.network, 4))


def states_of_different_steps(rank):
    many, alone = dense(group=dist.group.WORLD), dense()
    batch = problem(many.graph.network, 4)
    state = many.init()
    state = alone.step(state, *batch)[0] if rank else state
    with pytest.raises(mg.StateError, match=rf"process {rank} of 2: .* differ in their step"):
        many.step(state, *batch)


def unchecked(rank):
    one, many = dense(), dense(group=dist.group.WORLD, checks="none")
    assert "marks" not in many.code
    x, y = problem(one.graph.network, SLICE * PROCESSES)
    assert close(one.step(one.init(), x, y)[0], many.step(many.init(), rows(x, rank), rows(y, rank))[0])


def predictions_wait_for_nobody(rank):
    many = dense(group=dist.group.WORLD)
    if rank == 0:
        many.predict(many.init(), problem(many.graph.network, 4)[0])


class Keeping(mg.Agent):
    trace = mg.carry()

    def forward_update(self, s, pre):
        return s.set(trace=0.5 * s.trace + pre)

    def forward_message(self, s):
        return s.trace


class Traces(mg.Protocol):
    passes = ("forward",)

    def __init__(self):
        super().__init__(weight=Keeping(), unit=mg.UnitAgent())


def without_reductions_nothing_is_sent(rank):
    network = mlp([4, 5, 3], "tanh", None)
    many = mg.compile(network, Traces(), group=dist.group.WORLD)
    assert (many.cost(4).sent, many.cost(4).rounds) == (0, 0)
    if rank == 0:  # the other one does not step
        many.step(many.init(batch_size=4), torch.randn(4, 4))


def copies_stay_in_the_group(rank):
    many = copy.deepcopy(dense(group=dist.group.WORLD))
    one = dense()
    x, y = problem(one.graph.network, SLICE * PROCESSES)
    assert close(one.step(one.init(), x, y)[0], many.step(many.init(), rows(x, rank), rows(y, rank))[0])
    with pytest.raises(mg.GroupError, match="pickled"):
        pickle.dumps(many)


def part_of_the_processes(rank):
    first = dist.new_group([0])
    if rank:
        with pytest.raises(mg.GroupError, match="not in the group"):
            dense(group=first)
        return
    one, many = dense(), dense(group=first)
    batch = problem(one.graph.network, 4)
    assert close(one.step(one.init(), *batch)[0], many.step(many.init(), *batch)[0])


def costs(rank):
    """One round, of every trained number and the loss; beside it 64 digits of three numbers."""
    many = dense(group=dist.group.WORLD)
    numbers = sum(t.numel() for name, k in many.init().items() if name != "program" for t in k.values())
    cost = many.cost(SLICE)
    assert (cost.sent, cost.rounds) == (8 * (numbers + 1 + 3 * 64), 1)
    assert many.explain(SLICE).splitlines()[0].split()[-3:] == ["bytes", "sent", "note"]
    assert dense().cost(SLICE).rounds == 0
    images = mg.compile(normalized(), Backprop(), group=dist.group.WORLD)
    assert images.code.count("conv2d(") == 1  # nothing is computed again for a mean
    assert (
        images.cost(SLICE).rounds == 4
    )  # mean, variance; two means of errors, with the writes above; all other writes


OTHERS = [
    *(
        run_by_a_backend,
        one_example_each,
        normalization_of_one_example_each,
        mapped_over_states,
        gradients_average_to_the_gradient,
    ),
    *(no_derivative_of_an_extremum, slices_of_different_sizes, states_of_different_seeds, states_of_different_steps),
    *(unchecked, predictions_wait_for_nobody, without_reductions_nothing_is_sent, copies_stay_in_the_group),
    *(part_of_the_processes, costs),
]


def follow(folder):
    """What each process does: every case, one after the other."""
    join(seconds=240)  # one may have to wait for the other one's half
    rank, found = dist.get_rank(), {}
    for i, (_, build, rule) in enumerate(cases()):  # what one process has: either half is computed once, for both
        if i % PROCESSES == rank:
            torch.save(followed(build, rule), folder / f"{i}.pt")
    dist.barrier()
    for i, (name, build, rule) in enumerate(cases()):
        try:
            found[name] = distance(torch.load(folder / f"{i}.pt"), build, rule, rank)
        except mg.MPGraphError as error:
            found[name] = f"{type(error).__name__}: {error}"
    for other in OTHERS:
        dist.barrier()
        try:
            other(rank)
            found[other.__name__] = 0.0
        except BaseException as error:  # what pytest raises where nothing was raised is no Exception
            found[other.__name__] = f"{type(error).__name__}: {error}"
    (folder / f"{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


def join(seconds=60):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(seconds=seconds))


def distance_alone():
    """What torch loads at its first step is loaded before the processes part."""
    program = mg.compile(NETWORKS["convolutional"](), Backprop(), dtype=torch.float64)
    program.step(program.init(), *problem(program.graph.network, 2))


def test_two_processes_have_the_states_of_one(tmp_path):
    """All cases in one test: the processes go through them once, whoever runs the tests."""
    distance_alone()
    assert together(follow, PROCESSES, tmp_path) == [0] * PROCESSES
    for rank in range(PROCESSES):
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        assert set(found) == {*(name for name, _, _ in cases()), *(other.__name__ for other in OTHERS)}
        assert {name: far for name, far in found.items() if not isinstance(far, float) or not far < 1e-10} == {}


# -- processes that are lost --------------------------------------------------------------------------------


def loses(folder, how):
    join(seconds=3)
    many = dense(group=dist.group.WORLD)
    batch = problem(many.graph.network, 4)
    state, _ = many.step(many.init(), *batch)
    if dist.get_rank() == 1:
        if how == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(6)
        os._exit(0)
    with pytest.raises(mg.GroupError) as caught:
        many.step(state, *batch)
    (folder / "text").write_text(str(caught.value))
    os._exit(0)


ENDED = "closed by peer|reset by peer|roken pipe"  # what the system calls it depends on who writes first


@pytest.mark.parametrize(("how", "code", "reason"), [("dies", -signal.SIGKILL, ENDED), ("waits", 0, "imed out")])
def test_a_lost_process_ends_the_step_with_its_reason(how, code, reason, tmp_path):
    distance_alone()
    begin = time.monotonic()
    assert together(loses, PROCESSES, tmp_path, how) == [0, code]
    text = (tmp_path / "text").read_text()
    assert text.startswith("process 0 of 2 could not add up over the processes: ")
    assert re.search(reason, text), text
    assert "init_process_group(timeout=...)" in text
    assert time.monotonic() - begin < 60


# -- one process --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("group", "text"),
    [(None, "init_process_group"), ("world", "group='world' must be a group"), (2, "group=2 must be a group")],
)
def test_a_group_that_is_not_there(group, text):
    with pytest.raises(mg.GroupError, match=text):
        dense(group=group)


SCRIPT = """
import sys, torch, torch.distributed as dist
import mpgraph as mg
from mpgraph.architectures import mlp
from mpgraph.protocols import NodePerturbation

dist.init_process_group("gloo")
rank, size = dist.get_rank(), dist.get_world_size()
program = mg.compile(mlp([4, 5, 3]), NodePerturbation(), dtype=torch.float64, group=dist.group.WORLD)
state = program.init(seed=0)
generator = torch.Generator().manual_seed(0)
for _ in range(3):
    x, y = torch.randn(6, 4, generator=generator).double(), torch.randint(0, 3, (6,), generator=generator)
    state, out = program.step(state, x.chunk(size)[rank], y.chunk(size)[rank])
program.save(state, f"{sys.argv[1]}/{size}-{rank}")
sys.kept = program  # somebody still holds it when Python ends; the process must end well all the same
dist.destroy_process_group()
"""


def started(script, folder):
    """The script in this process, with the environment that torchrun gives."""
    torch.set_num_threads(1)
    sys.argv = [str(script), str(folder)]
    runpy.run_path(str(script), run_name="__main__")


def test_started_by_torchrun(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={PROCESSES}"]
    subprocess.run([*run, str(script), str(tmp_path)], check=True, env=environment, timeout=240)
    assert together(started, 1, script, tmp_path) == [0]
    program = mg.compile(mlp([4, 5, 3]), NodePerturbation(), dtype=torch.float64)
    one, *both = (program.load(tmp_path / name) for name in ("1-0", "2-0", "2-1"))
    assert all(close(one, other) for other in both)
