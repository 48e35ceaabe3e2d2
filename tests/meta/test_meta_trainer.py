"""The outer loop: exact resume after SIGKILL, the guard, the audit, clipping by torch's own functions, memory."""

import json
import os
import pathlib
import random
import signal
import time
import warnings

import pytest
import torch

import mpgraph as mg
from mpgraph.architectures import mlp
from mpgraph.meta import (
    CMAES,
    Cloning,
    DivergenceError,
    Episode,
    Estimate,
    Evolution,
    Guard,
    LogUniform,
    MetaTrainer,
    Sinusoids,
    TaskFamily,
    Tasks,
    Truncated,
    Unroll,
    checkpoint,
)
from mpgraph.protocols import Backprop, Plasticity


def episode(rule=None, terms=None):
    rule = rule or Backprop(optimizer=mg.SGD(mg.learnable(0.02), momentum=mg.learnable(0.5)))
    return Episode(mg.compile(mlp([1, 3, 1], "tanh", "l2"), rule), terms)


class Multiples:
    """Random episode lengths that a window of two divides."""

    def __call__(self, step, generator):
        return 2 * LogUniform(1, 4)(step, generator)

    def __repr__(self):
        return "Multiples()"


def trainer(name, **options):
    estimator = {
        "unroll": lambda: Unroll(LogUniform(1, 5)),
        "truncated": lambda: Truncated(2, Multiples()),
        "evolution": lambda: Evolution(0.01, 1, 2),
        "cma_es": lambda: CMAES(0.05, 4, restarts="ipop", steps=2),
        "cloning": lambda: Cloning(mg.compile(mlp([1, 3, 1], "tanh", "l2"), Backprop(0.05)), {"weights": 1.0}),
    }[name]()
    made = {
        "tasks": 2, "seed": 5, "average": 0.9, "validate_every": 4, "validation_tasks": 2, "clip": "norm",
        "schedule": lambda step: 1.0 / (1.0 + step), "guard": Guard(factor=1.5, policy="back_off"),
    }  # fmt: skip
    return MetaTrainer(episode(), Sinusoids(shots=3, queries=3, steps=4), estimator, **{**made, **options})


def files(folder):
    """What a run leaves, by name: its log, its rule, its checkpoints."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def child(name, folder, steps, prepare):
    """Go on with a run in a process of its own, which prepares for its death first; the process' number."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # threads that torch has are not used in the child
        number = os.fork()
    if number == 0:
        try:
            prepare()
            trainer(name).run(steps, folder, resume=True, every=1)
            os._exit(0)
        except BaseException:
            os._exit(1)
    return number


def killed_at_a_moment(name, folder, steps, chance, step):
    """Killed a random time after a random line of the log was written; a step takes about ``step`` seconds."""
    log = folder / "log.jsonl"
    lines = log.read_bytes().count(b"\n") + chance.randrange(2) if log.exists() else 0
    number = child(name, folder, steps, lambda: None)
    while not log.exists() or log.read_bytes().count(b"\n") < lines:
        done, status = os.waitpid(number, os.WNOHANG)
        if done:
            return status
        time.sleep(0.001)
    time.sleep(chance.uniform(0.0, 2.0 * step))
    os.kill(number, signal.SIGKILL)
    return os.waitpid(number, 0)[1]


def killed_in_a_write(name, folder, steps, chance, step):
    """Killed in the middle of writing a checkpoint or the rule, or right before or after it takes its place."""
    turns, share, place = chance.randint(1, 5), chance.random(), chance.choice(["middle", "before", "after"])
    write, replace = pathlib.Path.write_bytes, os.replace

    def die():
        os.kill(os.getpid(), signal.SIGKILL)

    def written(path, data):
        nonlocal turns
        turns -= 1
        if turns == 0 and place == "middle":
            write(path, data[: int(share * len(data))])
            die()
        return write(path, data)

    def replaced(*paths):
        if turns == 0 and place == "before":
            die()
        replace(*paths)
        if turns == 0:
            die()

    def prepare():
        pathlib.Path.write_bytes, os.replace = written, replaced

    return os.waitpid(child(name, folder, steps, prepare), 0)[1]


@pytest.mark.parametrize("name", ["unroll", "truncated", "evolution", "cma_es"])
def test_a_run_that_is_killed_twenty_times_leaves_the_same_files(name, tmp_path):
    steps, chance, killed = 36, random.Random(name), 0
    begin = time.monotonic()
    trainer(name).run(steps, tmp_path / "whole", every=1)
    step = (time.monotonic() - begin) / steps
    for kill in range(20):
        how = killed_in_a_write if kill % 2 else killed_at_a_moment
        status = how(name, tmp_path / "killed", steps, chance, step)
        assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
        killed += os.WIFSIGNALED(status)
    trainer(name).run(steps, tmp_path / "killed", resume=True, every=1)
    assert killed > 15  # the last moments may come after the end
    whole, found = files(tmp_path / "whole"), files(tmp_path / "killed")
    assert whole.keys() == found.keys()
    assert {key for key in whole if whole[key] != found[key]} == set()
    assert len(whole["log.jsonl"].splitlines()) == steps
    assert sum(key.startswith("checkpoints") for key in whole) == 3


def test_a_write_that_is_killed_leaves_the_checkpoint_before_it(tmp_path):
    """What a killed write leaves beside it is never read, and is cleaned up."""
    trainer("unroll").run(3, tmp_path, every=1)
    newest = max((tmp_path / "checkpoints").iterdir())
    partial = newest.with_name(".step-00000004.safetensors.1.partial")
    partial.write_bytes(newest.read_bytes()[:100])
    log = tmp_path / "log.jsonl"
    log.write_bytes(log.read_bytes() + b'{"step": 3, "lo')  # as cut off in the middle of a line
    trainer("unroll").run(6, tmp_path, resume=True, every=1)
    trainer("unroll").run(6, tmp_path / "whole", every=1)
    assert (tmp_path / "log.jsonl").read_bytes() == (tmp_path / "whole" / "log.jsonl").read_bytes()
    assert not partial.exists()


def test_a_folder_with_another_run_is_refused(tmp_path):
    trainer("unroll").run(1, tmp_path)
    with pytest.raises(mg.FileError, match="holds a run; go on with it by resume=True"):
        trainer("unroll").run(2, tmp_path)
    with pytest.raises(mg.FileError, match="of a run with seed=5, this one has seed=6"):
        trainer("unroll", seed=6).run(2, tmp_path, resume=True)
    (tmp_path / "checkpoints" / "step-00000009.safetensors").write_bytes(b"nonsense")
    with pytest.raises(mg.FileError, match="is not a safetensors file, or is damaged"):
        trainer("unroll").run(2, tmp_path, resume=True)


def test_the_saved_rule_is_the_best_and_knows_how_it_was_made(tmp_path):
    made = trainer("unroll", average=None)
    made.run(12, tmp_path, record={"command": "as typed"})
    rule = mg.load_protocol(tmp_path / "rule")
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    validated = {row["step"]: row["validation"] for row in log if "validation" in row}
    best = min(validated, key=validated.get)
    for name, p in rule.named_parameters():
        assert p.item() == log[best]["parameters"][name]
    assert rule.record["command"] == "as typed"
    assert rule.record["budget"] == {"outer_steps": 12, "tasks_in_a_step": 2}
    assert rule.record["reached"]["validation_loss"] == validated[best]
    loss = made.episode.run(dict(rule.named_parameters()), Tasks(made.family, 5, 2, 0, "validation").batch()).loss
    assert abs(loss.mean().item() - validated[best]) < 1e-6


@pytest.mark.parametrize("clip", ["norm", "value", "tensor", None])
def test_updates_are_those_of_torch(clip):
    made = trainer("unroll", clip=clip, limit=0.3, schedule=None, guard=Guard(factor=None), average=None, tasks=2)
    made.estimator = Unroll(3)  # after one step alone, momentum has no gradient
    theta = [p.detach().clone().requires_grad_() for p in made.parameters.values()]
    adam = torch.optim.Adam(theta, lr=1e-3)
    for step in range(4):
        names = list(made.parameters)
        tasks = Tasks(made.family, 5, 2, step)
        from mpgraph.meta.randomness import generator_of

        values = dict(zip(names, theta, strict=True))
        found = made.estimator.estimate(made.episode, values, tasks, generator_of(5, "estimator", step))
        for name, p in values.items():
            p.grad = found.gradient[name].clone()
        if clip == "norm":
            torch.nn.utils.clip_grad_norm_(theta, 0.3)
        elif clip == "value":
            torch.nn.utils.clip_grad_value_(theta, 0.3)
        elif clip == "tensor":
            for p in theta:
                p.grad = 0.3 * p.grad / p.grad.norm()
        adam.step()
        made.update()
    for p, name in zip(theta, names, strict=True):
        torch.testing.assert_close(p, made.parameters[name], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
def test_sparsity_finds_the_soft_threshold_and_exact_zeros(optimizer):
    """Of the sum of (p - goal)^2 / 2 + weight |p|, whose minimum is known in closed form."""

    class Bowl(Unroll):
        def estimate(self, episode, parameters, tasks, generator):
            goal = {"optimizer.lr": 0.5, "optimizer.momentum": 0.1}
            gradient = {name: (p - goal[name]).detach() for name, p in parameters.items()}
            return Estimate(torch.ones(()), gradient, {"loss": torch.ones(1)})

    made = MetaTrainer(episode(), Sinusoids(), Bowl(), optimizer=lambda p: optimizer(p, lr=0.02), sparsity=0.2)
    for _ in range(400):
        made.update()
    assert made.parameters["optimizer.momentum"].item() == 0.0  # from 0.5; its goal is below the weight
    assert made.parameters["optimizer.lr"].item() == pytest.approx(0.3, abs=1e-3)


# -- guard and audit -------------------------------------------------------------------------------------------------


class Poisoned(TaskFamily):
    """Sinusoids, but for the second task of some outer steps, whose targets are what a test says."""

    def __init__(self, value, turns):
        self.value, self.turns, self.calls = value, turns, 0

    def draw(self, generator, steps=None, split="train"):
        task = Sinusoids(shots=3, queries=3, steps=4).draw(generator, steps)
        bad = split == "train" and generator.initial_seed() in self.seeds
        return task._replace(query_y=task.query_y * 0.0 + self.value, name="poison") if bad else task

    @property
    def seeds(self):
        from mpgraph.meta.randomness import seed_of

        return {seed_of(0, "task", "train", step, 1) for step in self.turns}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e15])
@pytest.mark.parametrize("policy", ["skip", "back_off", "restore", "stop"])
def test_the_guard_names_step_task_and_policy_and_the_best_rule_is_kept(value, policy, tmp_path):
    made = MetaTrainer(
        episode(), Poisoned(value, [7]), Unroll(), tasks=2, validate_every=2, validation_tasks=2,
        guard=Guard(policy=policy),
    )  # fmt: skip
    before = []

    def update():
        before.append({name: p.detach().clone() for name, p in made.parameters.items()})
        return MetaTrainer.update(made)

    made.update = update
    if policy == "stop":
        with pytest.raises(DivergenceError, match=r"outer step 7: the loss is .*of task 1 \(poison\).*the run ends"):
            made.run(12, tmp_path)
    else:
        rows = made.run(12, tmp_path)
        assert [row["step"] for row in rows if "guard" in row] == [7]
        assert all(torch.isfinite(p).all() for p in made.parameters.values())
        after = before[8]
        best = min(range(2, 8, 2), key=lambda step: rows[step - 1]["validation"])
        wanted = {"skip": before[7], "back_off": before[6], "restore": before[best]}[policy]
        assert all(torch.equal(after[name], wanted[name]) for name in wanted)
        rate = made.optimizer.param_groups[0]["lr"]
        assert rate == (0.0005 if policy == "back_off" else 0.001)
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert "task 1 (poison)" in log[7]["guard"]
    rule = dict(mg.load_protocol(tmp_path / "rule").named_parameters())
    validated = {row["step"]: row["validation"] for row in log if "validation" in row}
    best = min(validated, key=validated.get)
    assert all(p.item() == log[best]["parameters"][name] for name, p in rule.items())


def test_faults_in_a_row_end_the_run():
    made = MetaTrainer(episode(), Poisoned(float("nan"), range(50)), Unroll(), tasks=2, guard=Guard(patience=3))
    with pytest.raises(DivergenceError, match="outer step 2: the loss is nan.*3 faults in a row; the run ends"):
        made.run(10)


def test_a_rule_that_explodes_names_the_parameters():
    rule = Backprop(optimizer=mg.SGD(mg.learnable(1e6)))
    unbounded = Episode(mg.compile(mlp([1, 3, 1], "relu", "l2"), rule))
    made = MetaTrainer(unbounded, Sinusoids(steps=30), Unroll(), tasks=2, guard=Guard(policy="stop"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        with pytest.raises(DivergenceError, match=r"outer step 0: the loss is .*task 0 .*gradient of optimizer.lr"):
            made.run(3)


def test_the_audit_names_what_has_no_gradient():
    # No error reaches an input here, so a rule that multiplies errors at both ends of the first connection is idle.
    rule = Plasticity(pseudo=mg.learnable(0.01), oja=mg.learnable(0.0))
    network = mlp([1, 1], "tanh", "l2")
    made = MetaTrainer(Episode(mg.compile(network, rule)), Sinusoids(), Unroll())
    made.update()
    assert made.audited == {}
    rule = Backprop(optimizer=mg.SGD(mg.learnable(0.0), momentum=mg.learnable(0.5)))
    made = MetaTrainer(episode(rule), Sinusoids(), Unroll())
    with pytest.warns(UserWarning, match="optimizer.momentum: its gradient is exactly zero"):
        row = made.update()
    assert list(row["audit"]) == ["optimizer.momentum"]  # a rate of zero hides the momentum


@pytest.mark.parametrize("name", ["unroll", "truncated", "evolution", "cloning"])
def test_memory_is_flat_over_outer_steps(name):
    made = trainer(name, validate_every=None, clip="usual", limit=2.0)
    import gc

    def tensors():
        gc.collect()
        return sum(1 for thing in gc.get_objects() if issubclass(type(thing), torch.Tensor))

    for _ in range(5):
        made.update()
    before = tensors()
    for _ in range(50):
        made.update()
    assert tensors() <= before + 4


def test_a_damaged_checkpoint_is_refused(tmp_path):
    path = tmp_path / "step-1.safetensors"
    checkpoint.save(path, {"a": torch.arange(4.0)}, {"step": 1})
    tensors, about = checkpoint.load(path)
    assert tensors["a"].tolist() == [0.0, 1.0, 2.0, 3.0]
    assert about == {"step": 1}
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))  # another number
    with pytest.raises(mg.FileError, match="damaged"):
        checkpoint.load(path)


def test_what_a_killed_write_left_is_removed(tmp_path):
    run = trainer("unroll")
    run.run(2, tmp_path, every=1)
    for folder in ("checkpoints", "rule"):
        (tmp_path / folder / ".file.123.partial").write_bytes(b"half")
    trainer("unroll").run(3, tmp_path, resume=True, every=1)
    assert not list(tmp_path.rglob("*.partial"))


def test_rates_are_those_of_groups_of_the_optimizer():
    made = trainer("unroll", rates={"*.lr": 0.1, "optimizer.*": 3.0}, clip=None, schedule=None, average=None)
    made.estimator = Unroll(3)
    rate, momentum = (p.detach().clone().requires_grad_() for p in made.parameters.values())
    adam = torch.optim.Adam([{"params": [rate], "lr": 1e-4}, {"params": [momentum], "lr": 3e-3}])
    for step in range(4):
        values = dict(zip(made.parameters, (rate, momentum), strict=True))
        tasks = Tasks(made.family, 5, 2, step)
        found = made.estimator.estimate(made.episode, values, tasks, torch.Generator())
        for name, p in values.items():
            p.grad = found.gradient[name].clone()
        adam.step()
        made.update()
    torch.testing.assert_close(list(made.parameters.values()), [rate, momentum], rtol=1e-6, atol=1e-9)
    with pytest.raises(mg.InputError, match=r"rates has 'lr', which matches none of the meta-parameters optimizer.lr"):
        trainer("unroll", rates={"lr": 0.1})
    with pytest.raises(mg.InputError, match="LBFGS has 1 group"):
        trainer("unroll", rates={"*": 0.1}, optimizer=lambda tensors: torch.optim.LBFGS(tensors))


def test_usual_clipping_is_by_the_median_of_each():
    from mpgraph.meta.clipping import usual_clipped

    norms = {}
    for size in (1.0, 3.0, 2.0, 100.0):
        given = {"a": torch.tensor([0.6, -0.8]) * size, "b": torch.tensor(1e-3 * size)}
        made, norms = usual_clipped(given, 2.0, norms)
    # medians of (1, 3, 2, 100) and a thousandth of it
    torch.testing.assert_close(made["a"], torch.tensor([0.6, -0.8]) * 2.0 * 2.5)
    torch.testing.assert_close(made["b"], torch.tensor(2.0 * 2.5e-3))
    for _ in range(60):
        _, norms = usual_clipped({"a": torch.ones(1)}, 2.0, norms)
    assert norms["a"] == [1.0] * 50
