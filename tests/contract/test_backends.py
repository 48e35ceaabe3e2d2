"""A backend changes how code is run, never what it means."""

import copy
import pickle

import pytest
import torch
from graphs import GRAPHS
from graphs import batch as batch_of
from reference import distance
from torch.utils._python_dispatch import TorchDispatchMode

import mpgraph as mg
from mpgraph.architectures import mlp
from mpgraph.program.backends import CudaGraphs, Inductor
from mpgraph.protocols import VSML, Backprop, FeedbackAlignment

TRACED = Inductor("aot_eager")  # everything that inductor does but writing and compiling C++


class Copying(CudaGraphs):
    """CUDA graphs without CUDA: replaying computes the results anew in the memory of the first ones."""

    def check(self, device):
        pass

    def record(self, function):
        results = function()

        def again():
            for old, new in zip(results, function(), strict=True):
                if old is not new:
                    old.copy_(new)

        return results, again


BACKENDS = {"traced": TRACED, "recorded": Copying()}


def programs(network, rule, backend=TRACED, **options):
    """An eager program and one of the same rule with another backend."""
    options = {"dtype": torch.float64, **options}
    return mg.compile(network, rule, **options), mg.compile(network, rule, backend=backend, **options)


def data(size, steps=3, inputs=3):
    generator = torch.Generator().manual_seed(size)
    xs = torch.randn(steps, size, inputs, generator=generator, dtype=torch.float64)
    return xs, torch.randint(0, 2, (steps, size), generator=generator)


SLOW = ("mplp", "vsml", "blur")  # to trace: a learner in each synapse
FEW = {"equilibrium_propagation": {"free": 2, "nudged": 1}, "predictive_coding": {"steps": 2}}  # torch unrolls loops


@pytest.fixture(params=mg.list_protocols())
def rule(request):
    return mg.make_protocol(request.param, **FEW.get(request.param, {}))


@pytest.fixture
def network(rule):
    return mlp([3, 2] if type(rule).__name__.lower() in SLOW else [3, 4, 2], "tanh")


@pytest.mark.parametrize(("size", "kind"), [(1, "traced"), (4, "traced"), (4, "recorded")])
def test_steps_and_predictions(rule, network, size, kind):
    eager, fast = programs(network, rule, BACKENDS[kind])
    xs, ys = data(size)
    one = two = start = eager.init(batch_size=size)
    with torch.no_grad():
        for x, y in zip(xs, ys, strict=True):
            (one, expected), (two, found) = eager.step(one, x, y), fast.step(two, x, y)
            assert distance(one, two) < 1e-12
            assert torch.allclose(found.prediction, expected.prediction, rtol=0, atol=1e-12)
            assert torch.allclose(found.loss, expected.loss, rtol=0, atol=1e-12)
        assert torch.allclose(fast.predict(two, xs[0]), eager.predict(one, xs[0]), rtol=0, atol=1e-12)
    assert distance(start, eager.init(batch_size=size)) == 0
    what = {c.what for c in fast.compilations}
    assert "predict" in what
    assert any(w.startswith("step") for w in what)


def test_stacked_states_under_vmap(rule, network):
    eager, fast = programs(network, rule)
    xs, ys = data(4)
    states = eager.init(range(3), batch_size=4)
    options = {"noise": eager.noise(states, 4)}
    if rule.phases:
        options["phase"] = rule.phases[0]

    def steps(program):
        def one(state, noise):
            return program.step(state, xs[0], ys[0], **{**options, "noise": noise})

        return torch.func.vmap(one)(states, options["noise"])

    with torch.no_grad():
        (one, expected), (two, found) = steps(eager), steps(fast)
        assert distance(one, two) < 1e-12
        assert torch.allclose(found.prediction, expected.prediction, rtol=0, atol=1e-12)
        before = len(fast.compilations)
        assert before == 1
        with fast.compiling_nothing():
            steps(fast)


def test_meta_gradients_through_an_unroll(rule, network):
    """Gradients of a last loss with respect to the first state and the rule's parameters."""
    eager, fast = programs(network, rule)
    xs, ys = data(4)

    def gradients(program):
        state = first = program.init(batch_size=4)
        leaves = [t.requires_grad_() for channels in first.values() for t in channels.values() if t.is_floating_point()]
        for x, y in zip(xs, ys, strict=True):
            state, out = program.step(state, x, y)
        wanted = [*leaves, *(p for p in program.parameters() if p.requires_grad)]
        return torch.autograd.grad(out.loss, wanted, allow_unused=True, materialize_grads=True)

    for expected, found in zip(gradients(eager), gradients(fast), strict=True):
        assert torch.allclose(found, expected, rtol=1e-9, atol=1e-12)
    before = len(fast.compilations)
    with fast.compiling_nothing():
        gradients(fast)
    assert len(fast.compilations) == before


@pytest.mark.parametrize("kind", BACKENDS)
@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.filterwarnings("ignore::mpgraph.FlatUnitWarning")
def test_networks_of_every_shape(graph, kind):
    network = GRAPHS[graph]()
    eager, fast = programs(network, FeedbackAlignment(lr=0.1), BACKENDS[kind])
    x, y = batch_of(network, 3)
    state = eager.init()
    with torch.no_grad():
        assert distance(fast.step(state, x, y)[0], eager.step(state, x, y)[0]) < 1e-12
        for found, expected in zip([fast.predict(state, x)], [eager.predict(state, x)], strict=True):
            assert torch.allclose(found, expected, rtol=0, atol=1e-12)


def test_replaced_parameters():
    eager, fast = programs(mlp([3, 4, 2]), Backprop(lr=mg.learnable(0.1)))
    xs, ys = data(4)
    state, rates = eager.init(), torch.tensor([0.2, 0.4], dtype=torch.float64)
    for rate in rates:
        given = {"optimizer.lr": rate}
        one, two = (p.step(state, xs[0], ys[0], parameters=given)[0] for p in (eager, fast))
        assert distance(one, two) < 1e-12
    assert len(fast.compilations) == 1

    def losses(program):
        def one(rate):
            after, _ = program.step(state, xs[0], ys[0], parameters={"optimizer.lr": rate})
            return program.step(after, xs[1], ys[1])[1].loss

        leaf = rates.clone().requires_grad_()
        found = torch.func.vmap(one)(leaf)
        return found, *torch.autograd.grad(found.sum(), leaf)

    for expected, found in zip(losses(eager), losses(fast), strict=True):
        assert torch.allclose(found, expected, rtol=1e-10, atol=1e-12)


def test_vmap_in_vmap_and_over_what_a_step_does_not_read():
    eager, fast = programs(mlp([3, 4, 2]), FeedbackAlignment(lr=0.1))
    xs, ys = data(4)
    states, state = eager.init(range(2)), eager.init()

    def everything(program):
        def of_state(state):
            return torch.func.vmap(lambda x, y: program.step(state, x, y)[1].loss)(xs, ys)

        mapped = torch.func.vmap(of_state)(states)
        repeated = torch.func.vmap(lambda k: k * program.step(state, xs[0], ys[0])[1].loss)(xs[:, 0, 0])
        across = torch.func.vmap(lambda x: program.predict(state, x), in_dims=1, out_dims=1)(xs)
        return mapped, repeated, across

    for expected, found in zip(everything(eager), everything(fast), strict=True):
        assert found.shape == expected.shape
        assert torch.allclose(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", BACKENDS)
def test_run(kind):
    eager, fast = programs(mlp([3, 4, 2]), Backprop(lr=0.1), BACKENDS[kind])
    xs, ys = data(4)
    batches = [*zip(xs, ys, strict=True), (xs[0][:1], ys[0][:1])]
    (one, expected), (two, found) = (p.run(p.init(), batches) for p in (eager, fast))
    assert distance(one, two) < 1e-12
    assert found == pytest.approx(expected, abs=1e-12)
    assert len(fast.compilations) == 2  # batches of four, and of one


@pytest.mark.parametrize("kind", BACKENDS)
def test_what_is_returned_stays_as_it_is(kind):
    """And a channel that a step leaves alone is the tensor that it was."""
    _, fast = programs(mlp([3, 4, 2]), FeedbackAlignment(lr=0.1), BACKENDS[kind])
    xs, ys = data(4)
    with torch.no_grad():
        first = fast.init()
        kept = copy.deepcopy(first)
        second, out = fast.step(first, xs[0], ys[0])
        saved, loss = copy.deepcopy(second), float(out.loss)
        fast.step(second, xs[1], ys[1])
        fast.step(first, xs[2], ys[2])
        assert distance(first, kept) == 0
        assert distance(second, saved) == 0
        assert float(out.loss) == loss
        assert second["h1->y"]["b"] is first["h1->y"]["b"]
        assert second["h1->y"]["w"] is not first["h1->y"]["w"]


@pytest.mark.parametrize("kind", BACKENDS)
def test_where_code_runs_as_it_is(kind):
    """Under transforms of torch that look at single operations, and of recordings also under autograd and vmap."""
    eager, fast = programs(mlp([3, 4, 2]), Backprop(lr=mg.learnable(0.1)), BACKENDS[kind])
    (x, *_), (y, *_) = data(4)
    state, rate = eager.init(), torch.tensor(0.3, dtype=torch.float64)

    def loss(program, rate):
        after, _ = program.step(state, x, y, parameters={"optimizer.lr": rate})
        return program.step(after, x, y)[1].loss

    class Count(TorchDispatchMode):
        calls = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.calls += 1
            return func(*args, **(kwargs or {}))

    expected = torch.func.grad(lambda r: loss(eager, r))(rate)
    assert torch.allclose(torch.func.grad(lambda r: loss(fast, r))(rate), expected, rtol=1e-12)
    _, tangent = torch.func.jvp(lambda r: loss(fast, r), (rate,), (torch.ones_like(rate),))
    assert torch.allclose(tangent, expected, rtol=1e-10)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(rate, torch.ones_like(rate))
        tangent = torch.autograd.forward_ad.unpack_dual(loss(fast, dual)).tangent
        assert torch.allclose(tangent, expected, rtol=1e-10)
    each = torch.func.vmap(torch.func.grad(lambda r: loss(fast, r)))(rate.expand(2))
    assert torch.allclose(each, expected.expand(2), rtol=1e-10)
    with Count() as count:
        loss(fast, rate)
    assert count.calls > 10
    inside = torch.compile(lambda r: loss(fast, r), backend="eager", fullgraph=True)(rate)
    assert torch.allclose(inside, loss(eager, rate), rtol=1e-12)


def test_nothing_more_is_compiled_where_that_was_ruled_out():
    _, fast = programs(mlp([3, 4, 2]), Backprop(lr=0.1))
    xs, ys = data(4)
    state = fast.init()
    with torch.no_grad():
        with pytest.raises(mg.BackendError, match="Compiled so far: nothing"), fast.compiling_nothing():
            fast.step(state, xs[0], ys[0])
        state, _ = fast.step(state, xs[0], ys[0])
        with fast.compiling_nothing():
            for x, y in zip(xs, ys, strict=True):
                state, _ = fast.step(state, x, y)
            with pytest.raises(mg.BackendError, match=r"step would have to be compiled for x \(3, 3\)"):
                fast.step(state, xs[0][:3], ys[0][:3])
            leaf = {**state, "x->h1": {"w": state["x->h1"]["w"].clone().requires_grad_()}}
            with pytest.raises(mg.BackendError, match="gradients of 1 of"), torch.enable_grad():
                fast.step(leaf, xs[0], ys[0])
        state, _ = fast.step(state, xs[0][:3], ys[0][:3])
    assert [c.what for c in fast.compilations] == ["step", "step"]
    assert all(c.seconds > 0 for c in fast.compilations)


def test_copies_and_pickles_keep_the_backend():
    _, fast = programs(mlp([3, 4, 2]), Backprop(lr=0.1))
    (x, *_), (y, *_) = data(4)
    state = fast.init()
    expected, _ = fast.step(state, x, y)
    for again in (copy.copy(fast), copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
        assert isinstance(again.backend, Inductor)
        assert again.backend is not fast.backend
        assert not again.compilations
        assert distance(again.step(state, x, y)[0], expected) < 1e-12
        assert len(again.compilations) == 1


def test_what_explain_says():
    network = mlp([3, 4, 2])
    assert "backend" not in mg.compile(network, Backprop()).explain()
    assert "backend inductor: compiled" in mg.compile(network, Backprop(), backend="inductor").explain()
    assert "eager where gradients are wanted" in mg.compile(network, Backprop(), backend=Copying()).explain()


@pytest.mark.parametrize("given", ["inductr", "", None, 3, True, ["eager"]])
def test_unknown_backends(given):
    with pytest.raises(mg.InputError, match="unknown backend .* allowed are cudagraphs, eager, inductor"):
        mg.compile(mlp([3, 2]), Backprop(), backend=given)


def test_cuda_graphs_need_cuda():
    with pytest.raises(mg.BackendError, match="needs a CUDA device, got device='cpu'.*backend='inductor'"):
        mg.compile(mlp([3, 2]), Backprop(), backend="cudagraphs", device="cpu")


def test_code_that_cannot_be_compiled():
    network = mg.Network()
    network.input("x", 3), network.unit("h", 4, mg.Function(looks_at_values)), network.unit("y", 2)
    network.connect("x", "h"), network.connect("h", "y"), network.loss("y", "cross_entropy")
    program = mg.compile(network, FeedbackAlignment(surrogate="tanh"), backend=TRACED)
    with pytest.raises(mg.BackendError, match=r"cannot compile step for x \(4, 3\).*backend=\"eager\""):
        program.step(program.init(), torch.ones(4, 3), torch.zeros(4, dtype=torch.long))


def looks_at_values(z):
    return z if bool((z == z).all()) else -z


def test_inductor(tmp_path, monkeypatch):
    """Steps, gradients and vmap by compiled C++."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))  # or what an earlier run compiled is taken from there
    eager, fast = programs(mlp([3, 2]), FeedbackAlignment(lr=mg.learnable(0.1)), "inductor")
    xs, ys = data(4)

    def learn(program, state):
        for x, y in zip(xs, ys, strict=True):
            state, out = program.step(state, x, y)
        return state, out.loss

    (one, expected), (two, found) = (learn(p, eager.init()) for p in (eager, fast))
    assert distance(one, two) < 1e-12
    rates = list(eager.protocol.parameters())
    (expected,), (found,) = torch.autograd.grad(expected, rates), torch.autograd.grad(found, rates)
    assert torch.allclose(found, expected, rtol=1e-10)
    assert any(c.why == "its backward pass" for c in fast.compilations)
    states = eager.init(range(2))
    with torch.no_grad():
        one, two = (torch.func.vmap(lambda s, p=p: p.step(s, xs[0], ys[0])[0])(states) for p in (eager, fast))
    assert distance(one, two) < 1e-12


def test_no_tensor_of_a_compiled_state_shares_memory():
    """VS-ML keeps the error that it also sends, so its code ends with a copy."""
    eager, fast = programs(mlp([3, 2]), VSML(), "inductor")
    assert "clone" in eager.code
    (x, *_), (y, *_) = data(4)
    state = eager.init(batch_size=4)
    with torch.no_grad():
        expected, found = eager.step(state, x, y)[0], fast.step(state, x, y)[0]
    assert distance(expected, found) < 1e-12
    places = [t.untyped_storage().data_ptr() for channels in found.values() for t in channels.values()]
    assert len(set(places)) == len(places)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("backend", ["inductor", "cudagraphs"])
def test_backends_on_cuda(backend):
    eager, fast = programs(mlp([3, 4, 2]), FeedbackAlignment(lr=0.1), backend, device="cuda")
    xs, ys = (t.cuda() for t in data(4))
    with torch.no_grad():
        one = two = eager.init()
        for x, y in zip(xs, ys, strict=True):
            before = copy.deepcopy(two)
            one, (after, _) = eager.step(one, x, y)[0], fast.step(two, x, y)
            assert distance(two, before) == 0
            two = after
            assert distance(one, two) < 1e-12
