"""Work side by side: the same numbers as one after the other, in threads only where nobody would notice."""

import multiprocessing
import threading

import pytest
import torch
from reference import distance, randomised

import mpgraph as mg
from mpgraph import meta
from mpgraph.architectures import mlp
from mpgraph.lowering import segment
from mpgraph.protocols import BLUR, MPLP, Backprop
from mpgraph.threads import side_by_side, threads_for

X = torch.zeros(1)


@pytest.fixture
def small_slices(monkeypatch):
    """Threads for small slices too, which must then be as many as there are threads."""
    monkeypatch.setattr(segment, "WORTH_A_THREAD", 1)


def names(threads, pieces=4):
    return {side_by_side(lambda _: threading.current_thread().name, range(pieces), threads)[i] for i in range(pieces)}


def test_pieces_in_order_in_threads_of_one_torch_thread_each():
    before = torch.get_num_threads()
    meeting = threading.Barrier(2, timeout=10.0)  # passed only if two pieces run at once

    def work(piece):
        meeting.wait()
        return piece, torch.get_num_threads(), threads_for(None, [X]), torch.is_grad_enabled()

    with torch.no_grad():
        assert side_by_side(work, [3, 1], 2) == [(3, 1, 1, False), (1, 1, 1, False)]
    assert side_by_side(work, "ab", 2) == [("a", 1, 1, True), ("b", 1, 1, True)]
    assert torch.get_num_threads() == before
    assert names(1) == {threading.current_thread().name}


def test_errors_come_out():
    with pytest.raises(ZeroDivisionError):
        side_by_side(lambda piece: 1 / piece, [1, 0, 2], 2)


def test_one_thread_where_calls_are_watched_or_changed():
    assert threads_for(3, [X]) == 3
    assert threads_for(None, [X]) == torch.get_num_threads()
    assert threads_for(3, [X, X.to("meta")]) == 1
    seen = []
    torch.func.vmap(lambda x: seen.append(threads_for(3, [X])) or x)(X)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t):
        seen.append(threads_for(3, [X]))
    with torch.autocast("cpu"):
        seen.append(threads_for(3, [X]))
    with torch.device("cpu"):
        seen.append(threads_for(3, [X]))
    with torch.autograd.set_detect_anomaly(True, check_nan=False):
        seen.append(threads_for(3, [X]))
    assert seen == [1] * 5


def _forked(queue):
    queue.put(side_by_side(lambda piece: 2 * piece, [1, 2], 2))


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="this system does not fork")
def test_a_forked_process_has_threads_of_its_own():
    side_by_side(str, [1, 2], 2)
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    child = context.Process(target=_forked, args=(queue,), daemon=True)
    child.start()
    child.join(20)
    assert child.exitcode == 0
    assert queue.get() == [2, 4]


@pytest.mark.parametrize("memory", ["1 GiB", 0])
def test_slices_of_segments_in_threads_give_the_same_gradient(small_slices, memory):
    rule = MPLP(k=2, n=3)
    x, y = torch.randn(4, 6, 5, dtype=torch.float64), torch.randint(0, 3, (4, 6))
    found = []
    for threads in (1, 3):
        program = mg.compile(mlp([5, 4, 3]), rule, dtype=torch.float64, threads=threads, memory=memory)
        calls = []
        state = randomised(program.init(batch_size=6), torch.Generator().manual_seed(0))
        for batch in zip(x, y, strict=True):
            state, out = program.step(state, *batch)
            calls.append(out.loss)
        found.append((state, torch.autograd.grad(sum(calls), list(rule.parameters()))))
        assert (program.memory.held > 0) == (memory != 0)  # of the last step, whose new weights nobody asked
    assert distance(found[0][0], found[1][0]) < 1e-12
    for one, two in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(one, two, rtol=1e-10, atol=1e-12)


def test_threads_of_a_program_are_torchs_unless_it_is_told(small_slices, monkeypatch):
    asked = []
    monkeypatch.setattr(segment, "side_by_side", lambda work, pieces, threads: asked.append((len(pieces), threads))
                        or [work(piece) for piece in pieces])  # fmt: skip
    for threads in (None, 3):
        program = mg.compile(mlp([5, 4, 3]), MPLP(k=2, n=3), threads=threads)
        assert program.threads == threads
        program.step(program.init(batch_size=2), torch.randn(2, 5), torch.tensor([0, 1]))
        wanted = threads or torch.get_num_threads()
        assert {t for _, t in asked} == {wanted}
        assert max(pieces for pieces, _ in asked) % wanted == 0
        asked.clear()
    for wrong in (0, 1.5, True):
        with pytest.raises(mg.ProtocolError, match="threads"):
            mg.compile(mlp([5, 4, 3]), Backprop(), threads=wrong)


def test_pieces_of_estimates_in_threads():
    family = meta.Sinusoids(shots=4, steps=2)
    estimates = {
        "unroll": lambda: meta.Unroll(chunk=2),
        "recomputed": lambda: meta.Recomputed(chunk=2),
        "evolution": lambda: meta.Evolution(memory="20 KiB"),
    }
    for name, make in estimates.items():
        found = []
        for threads in (1, 2):
            rule = BLUR() if name != "evolution" else Backprop(lr=mg.learnable(0.1))
            program = mg.compile(mlp([1, 4, 1], "tanh", "l2"), rule, dtype=torch.float64, threads=threads)
            episode = meta.Episode(program)
            tasks = meta.Tasks(family, seed=0, count=4)
            found.append(make().estimate(episode, episode.parameters(), tasks, torch.Generator().manual_seed(0)))
        torch.testing.assert_close(found[0].loss, found[1].loss)
        for parameter, gradient in found[0].gradient.items():
            torch.testing.assert_close(gradient, found[1].gradient[parameter], msg=f"{name} {parameter}")


@pytest.mark.parametrize("batch", [1, 3])
def test_a_prepared_program_writes_no_more_code(batch, monkeypatch):
    program = mg.compile(mlp([5, 4, 3]), Backprop())
    program.prepare(batch)

    def refused(*args, **options):
        raise AssertionError("code was written after prepare")

    monkeypatch.setattr("mpgraph.program.program.compile_passes", refused)
    x = torch.randn(batch, 5)
    state, _ = program.step(program.init(), x, torch.zeros(batch, dtype=torch.long))
    program.predict(state, x)
