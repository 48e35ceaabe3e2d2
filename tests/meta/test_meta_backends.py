"""A compiled inner step: the same meta-gradients as without, and nothing compiled after the first outer step."""

import pytest
import torch

import mpgraph as mg
from mpgraph.architectures import mlp
from mpgraph.meta import Episode, LogUniform, MetaTrainer, Recomputed, Sinusoids, Tasks, Truncated, Unroll
from mpgraph.meta import settings as files
from mpgraph.program.backends import Inductor
from mpgraph.protocols import Backprop

pytestmark = pytest.mark.filterwarnings("ignore")


def episode(backend):
    rule = Backprop(optimizer=mg.SGD(mg.learnable(0.02), momentum=mg.learnable(0.5)))
    program = mg.compile(mlp([1, 3, 1], "tanh", "l2"), rule, dtype=torch.float64, backend=backend)
    return Episode(program)


@pytest.mark.parametrize("tasks", [1, 2])
@pytest.mark.parametrize("estimator", [Unroll, Recomputed, lambda: Truncated(2)])
def test_a_compiled_step_has_the_meta_gradient_of_an_eager_one(estimator, tasks):
    found = []
    for backend in ("eager", Inductor("aot_eager")):  # the tracing and its backward pass, without machine code
        made = episode(backend)
        drawn = Tasks(Sinusoids(shots=3, steps=4), 1, tasks)
        found.append(estimator().estimate(made, made.parameters(), drawn, torch.Generator()))
    assert made.program.compilations
    assert abs(found[0].loss - found[1].loss) < 1e-12
    for name, slope in found[0].gradient.items():
        assert abs(slope - found[1].gradient[name]) < 1e-9


class Widening(Sinusoids):
    """One more example in a batch for every task that was drawn."""

    def draw(self, generator, steps=None, split="train"):
        self.shots += 1
        return super().draw(generator, steps, split)


def test_nothing_is_compiled_after_the_first_outer_step():
    made = MetaTrainer(episode(Inductor("aot_eager")), Sinusoids(shots=3), Unroll(LogUniform(2, 5)))
    made.update()
    before = len(made.episode.program.compilations)
    for _ in range(4):
        made.update()
    assert len(made.episode.program.compilations) == before > 0
    made = MetaTrainer(episode(Inductor("aot_eager")), Widening(shots=3, steps=2), Unroll())
    made.update()
    with pytest.raises(mg.MPGraphError, match=r"would have to be compiled .* keep batch sizes"):
        made.update()


def test_the_backend_is_a_setting_of_the_trainer():
    given = {
        "protocol": {"name": "backprop", "learn": {"lr": 0.1}}, "family": {"name": "sinusoids"},
        "network": {"hidden": [2], "loss": "l2"}, "trainer": {"backend": "inductor"},
    }  # fmt: skip
    assert files.trainer_of(given).episode.program.backend.name == "inductor"
    given["trainer"]["backend"] = "inducter"
    with pytest.raises(mg.InputError, match="unknown backend 'inducter'.*did you mean 'inductor'"):
        files.trainer_of(given)
