"""The outer loop: one estimate, one update, and everything that keeps a long run safe."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from mpgraph.agents.protocol import Protocol
from mpgraph.arguments import Arguments
from mpgraph.errors import FileError, InputError, MPGraphError

from . import checkpoint
from .clipping import Clip, clipped, norm_of, sparse_gradient, sparse_value, usual_clipped
from .distributed import Group
from .episode import Episode
from .estimators.base import Estimate, Estimator
from .guard import Guard, audit, broken
from .randomness import generator_of
from .search import Search
from .task import TaskFamily, Tasks

LAST = 50  # outer steps whose means a training record gives
SHOWN = 32  # meta-parameters that are single numbers are written to the log if there are at most so many


class DivergenceError(MPGraphError, RuntimeError):
    """Meta-training was stopped because its loss or parameters are of no use any more."""


class MetaTrainer:
    """Trains the meta-parameters of an episode's rule on tasks of a family.

    Everything random is a function of ``seed``, the outer step and the index of a task. So a run that was killed and
    resumed from its last checkpoint gives the same numbers, to the bit, as one that was not.

    Args:
        episode: what is run in an outer step.
        family: tasks are drawn from.
        estimator: of the meta-gradient, or a search (:class:`CMAES`, :class:`Synchronised`), which needs no optimizer.
        optimizer: makes a ``torch.optim`` optimizer of a list of tensors; Adam at 1e-3 by default.
        tasks: in an outer step.
        seed: of all that is random.
        schedule: factor of the learning rate at an outer step; 1 by default.
        clip: ``norm`` scales the gradient down to at most ``limit``, ``value`` cuts its numbers off there, ``tensor``
            makes the norm of each tensor ``limit``, ``usual`` scales each tensor down to at most ``limit`` times the
            median of its own last norms.
        limit: of ``clip``.
        rates: factors of the learning rate by pattern of the names of meta-parameters; the first that matches counts.
            Numbers of a rule differ in size: a decay of 1e-3 is much, a factor of an outer product of errors little.
        bounds: lowest and highest value of some meta-parameters, by pattern of their names; an update that leads out
            of them ends there. A weight that is multiplied by at most one in a step does not grow by itself, however
            many steps are made.
        sparsity: weight of the sum of absolute values of the meta-parameters, added to the meta-loss so that it makes
            exact zeros: a number that is zero stays so while its gradient is smaller than the weight, and one that
            would change its sign becomes zero (as in orthant-wise descent, Andrew and Gao, 2007). The term ``l1`` of
            an episode has no such care: under Adam its numbers jitter around zero with the learning rate.
        average: decay of a moving average of the parameters, which is then evaluated and saved instead of them.
        validate_every: outer steps between evaluations on the family's ``validation`` tasks; the best rule is kept.
        validation_tasks: how many.
        guard: what to do about a loss that is not finite or explodes.
        group: the processes that share the tasks.

    Raises:
        InputError: for an argument that is not of its kind, a pattern of ``rates`` or ``bounds`` that matches no
            meta-parameter, or a guard that restores the best parameters where nothing is validated.

    Attributes:
        step: outer steps that are done.
        parameters: the meta-parameters by name.
        best: validation loss of the best parameters so far, if any.
        audited: meta-parameters that the first gradient did not reach, with the reason; ``None`` before it is known.
        stopped: why the guard ended the run, if it did.
    """

    def __init__(
        self,
        episode: Episode,
        family: TaskFamily,
        estimator: Estimator | Search,
        *,
        optimizer: Callable[[list[Tensor]], torch.optim.Optimizer] | None = None,
        tasks: int = 1,
        seed: int = 0,
        schedule: Callable[[int], float] | None = None,
        clip: Clip | None = None,
        limit: float = 1.0,
        rates: Mapping[str, float] | None = None,
        bounds: Mapping[str, tuple[float, float]] | None = None,
        sparsity: float = 0.0,
        average: float | None = None,
        validate_every: int | None = None,
        validation_tasks: int = 16,
        guard: Guard | None = None,
        group: Group | None = None,
    ) -> None:
        check = Arguments("MetaTrainer")
        self.episode, self.family, self.estimator = episode, family, estimator
        self.tasks, self.seed = check.integer("tasks", tasks, 1), check.seed("seed", seed)
        self.schedule, self.guard, self.group = schedule, guard or Guard(), group or Group()
        self.clip = check.choice("clip", clip, ("norm", "value", "tensor", "usual", None))
        self.limit = check.number("limit", limit, above=0.0)
        self.rates = {pattern: check.number(f"rates[{pattern!r}]", r, 0.0) for pattern, r in (rates or {}).items()}
        self.bounds = {p: check.numbers(f"bounds[{p!r}]", pair, 2) for p, pair in (bounds or {}).items()}
        self.norms: dict[str, list[float]] = {}
        self.sparsity = check.number("sparsity", sparsity, 0.0)
        self.average = None if average is None else check.number("average", average, 0.0, 1.0)
        self.validate_every = None if validate_every is None else check.integer("validate_every", validate_every, 1)
        self.validation_tasks = check.integer("validation_tasks", validation_tasks, 1)
        if self.guard.policy == "restore" and self.validate_every is None:
            raise InputError("Guard(policy='restore') returns to the best parameters: give validate_every too")
        self.parameters = {name: p.detach().clone().requires_grad_() for name, p in episode.parameters().items()}
        for pattern in self.bounds:
            if not any(fnmatchcase(name, pattern) for name in self.parameters):
                raise InputError(
                    f"MetaTrainer: bounds has {pattern!r}, which matches none of {', '.join(self.parameters)}"
                )
        self._given = optimizer or (lambda tensors: torch.optim.Adam(tensors, lr=1e-3))
        self.optimizer = self._make()
        self._rates = [group["lr"] for group in self.optimizer.param_groups]
        self._previous, self._mean, self._best = (self._copy() for _ in range(3))
        self.step, self._scale, self._warm = 0, 1.0, False
        self.audited: dict[str, str] | None = None
        self.best: float | None = None
        self.stopped: str | None = None

    def _make(self) -> torch.optim.Optimizer:
        """A fresh optimizer, in which each rate has parameters of its own."""
        factors = dict.fromkeys(self.parameters, 1.0)
        for pattern, factor in reversed(self.rates.items()):
            matched = [name for name in factors if fnmatchcase(name, pattern)]
            if not matched:
                known = ", ".join(factors)
                raise InputError(
                    f"MetaTrainer: rates has {pattern!r}, which matches none of the meta-parameters {known}"
                )
            factors |= dict.fromkeys(matched, factor)
        made = self._given(list(self.parameters.values()))
        if self.rates:
            group, *more = made.param_groups
            if more or isinstance(made, torch.optim.LBFGS):
                raise InputError(
                    f"MetaTrainer: rates need an optimizer with one rate for all and groups of parameters, "
                    f"{type(made).__name__} has {1 + len(more)} group(s); leave out rates"
                )
            made.param_groups.clear()
            for name, p in self.parameters.items():
                made.add_param_group({**group, "params": [p], "lr": group["lr"] * factors[name]})
        return made

    def _bounded(self) -> None:
        """Put meta-parameters back within their bounds."""
        for pattern, (low, high) in self.bounds.items():
            for name, p in self.parameters.items():
                if fnmatchcase(name, pattern):
                    p.clamp_(low, high)

    # -- one outer step -------------------------------------------------------------------------------------------

    def update(self) -> dict[str, Any]:
        """One outer step; what it measured, as the log has it.

        Raises:
            DivergenceError: where the guard ends the run.
        """
        tasks = Tasks(self.family, self.seed, self.tasks, self.step)
        generator = generator_of(self.seed, "estimator", self.step)
        row: dict[str, Any] = {"step": self.step}
        found: dict[str, Tensor] | None = None
        if isinstance(self.estimator, Search):
            found, estimate = self.estimator.improve(self.episode, self.parameters, tasks, generator, self.group)
        else:
            mine = tasks.shard(self.group.rank, self.group.size)
            with self._compiling():
                estimate = self.estimator.estimate(self.episode, self.parameters, mine, generator)
            estimate = self.group.mean(estimate)
            if self.audited is None:
                self._audit(estimate, row)
        row["loss"] = float(estimate.loss)
        row |= {name: _mean(value) for name, value in estimate.metrics.items() if name != "loss"}
        problem = self.guard.problem(estimate, tasks)
        if problem is None:
            before = self._copy()
            if found is None:
                row["gradient"] = self._descend(estimate)
            else:
                self._set(found)
            wrong = broken({name: p.detach() for name, p in self.parameters.items()})
            if wrong:
                self._set(before)
                problem = f"after the update {', '.join(wrong)} is not finite"
            else:
                self._previous = before
                self.guard.accept(row["loss"])
        if problem is not None:
            self._recover(problem, row)
        for name, p in self.parameters.items():
            if self.average is None:
                self._mean[name] = p.detach().clone()
            else:
                self._mean[name] = self.average * self._mean[name] + (1.0 - self.average) * p.detach()
        self.step += 1
        if self.validate_every and self.step % self.validate_every == 0:
            row["validation"] = self._validate()
        if sum(p.numel() for p in self.parameters.values()) <= SHOWN:
            row["parameters"] = {name: p.detach().tolist() for name, p in self.parameters.items()}
        return row

    def _compiling(self) -> AbstractContextManager[None]:
        """Whether the backend of a program may compile: in the first outer step that this process makes.

        Compiling again and again takes longer than steps do, so that is an error. Where episodes are carried over outer
        steps, what the first one saw is not all there is.
        """
        first, self._warm = not self._warm, True
        program = getattr(self.episode, "program", None)
        if first or program is None or (isinstance(self.estimator, Estimator) and self.estimator.carries):
            return nullcontext()
        return program.compiling_nothing()

    def _descend(self, estimate: Estimate) -> float:
        """An optimizer step; the norm of the gradient before clipping."""
        given = {name: g.detach() for name, g in estimate.gradient.items() if g is not None}
        norm = norm_of(given)
        if self.clip == "usual":
            given, self.norms = usual_clipped(given, self.limit, self.norms)
        else:
            given = clipped(given, self.clip, self.limit)
        before = {name: self.parameters[name].detach().clone() for name in given}
        if self.sparsity:  # after clipping, so that an exploding gradient cannot hide it
            given = {name: sparse_gradient(before[name], g, self.sparsity) for name, g in given.items()}
        for name, p in self.parameters.items():
            p.grad = given.get(name)
        factor = self._scale * (1.0 if self.schedule is None else float(self.schedule(self.step)))
        for group, rate in zip(self.optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * factor
        self.optimizer.step()
        with torch.no_grad():
            self._bounded()
        if self.sparsity:
            with torch.no_grad():
                for name, g in given.items():
                    self.parameters[name].copy_(sparse_value(before[name], g, self.parameters[name]))
        return norm

    def _audit(self, estimate: Estimate, row: dict[str, Any]) -> None:
        """Name the meta-parameters that the first gradient does not reach; once, at the first loss that tells."""
        assert isinstance(self.estimator, Estimator)
        nothing = not any(g is not None and bool(g.any()) for g in estimate.gradient.values())
        if not bool(torch.isfinite(estimate.loss)) or (nothing and self.estimator.carries):
            return
        self.audited = audit(estimate.gradient)
        if self.audited:
            row["audit"] = self.audited
            named = "; ".join(f"{name}: {reason}" for name, reason in self.audited.items())
            warnings.warn(f"meta-parameters without a usable gradient in outer step {self.step}: {named}", stacklevel=3)

    def _recover(self, problem: str, row: dict[str, Any]) -> None:
        """Do what the guard's policy says."""
        self.guard.faults += 1
        policy = self.guard.policy
        if self.guard.faults >= self.guard.patience and policy != "stop":
            problem, policy = f"{problem}; {self.guard.faults} faults in a row", "stop"
        done = {
            "skip": "no update is made",
            "back_off": "the last update is undone and the learning rate halved",
            "restore": f"back to the best parameters (validation loss {self.best}), with a fresh optimizer",
            "stop": "the run ends",
        }[policy]
        row["guard"] = f"outer step {self.step}: {problem}; {done}"
        if policy == "back_off":
            self._set(self._previous)
            self._scale /= 2.0
        elif policy == "restore":
            self._set(self._best)
            self.optimizer = self._make()
        elif policy == "stop":
            self.stopped = str(row["guard"])

    # -- evaluation -----------------------------------------------------------------------------------------------

    def evaluate(
        self, count: int, split: str = "test", parameters: Mapping[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Loss, terms and accuracy of whole episodes on fresh tasks ``(count,)``, the same ones at every call.

        Args:
            count: tasks.
            split: of the family.
            parameters: those of :meth:`rule` by default.
        """
        tasks = Tasks(self.family, self.seed, count, 0, split)
        return evaluate(self.episode, self.rule() if parameters is None else parameters, tasks, self.tasks)

    def _validate(self) -> float:
        loss = float(self.evaluate(self.validation_tasks, "validation", self._mean)["loss"].mean())
        if loss < (float("inf") if self.best is None else self.best):
            self.best, self._best = loss, {name: p.clone() for name, p in self._mean.items()}
        return loss

    def rule(self) -> dict[str, Tensor]:
        """The meta-parameters worth keeping: the best on validation tasks, or the (averaged) last."""
        return dict(self._mean if self.best is None else self._best)

    def protocol(self) -> Protocol:
        """The rule of the episode's program, into which the parameters of :meth:`rule` are written."""
        return self.episode.protocol(self.rule())

    # -- a run ----------------------------------------------------------------------------------------------------

    def run(
        self,
        steps: int,
        folder: Any = None,
        *,
        resume: bool = False,
        every: int = 10,
        keep: int = 3,
        record: Mapping[str, Any] | None = None,
        progress: bool = False,
    ) -> list[dict[str, Any]]:
        """Outer steps until so many are done.

        Args:
            steps: in all, those of an earlier run that is resumed among them.
            folder: for ``log.jsonl``, ``checkpoints`` and ``rule``; nothing is written without one.
            resume: go on from the newest checkpoint of the folder, or begin if there is none.
            every: outer steps between checkpoints.
            keep: checkpoints.
            record: what the rule's training record says beside the budget.
            progress: whether to show a bar.

        Returns:
            The rows of the log, from the step at which this call began.

        Raises:
            DivergenceError: where the guard ended the run; the best rule is on disk.
            FileError: for a folder that cannot be written, or that holds another run.
        """
        check = Arguments("MetaTrainer.run")
        steps, every = check.integer("steps", steps, 0), check.integer("every", every, 1)
        keep = check.integer("keep", keep, 1)
        place = None if folder is None else Path(folder)
        log = None
        self.group.wait()  # until an earlier run here has written its last file
        if place is not None:
            position = self._open(place, resume)
            if self.group.rank == 0:
                log = open(place / "log.jsonl", "r+b" if (place / "log.jsonl").exists() else "w+b")  # noqa: SIM115
                log.truncate(position)
                log.seek(position)
        rows: list[dict[str, Any]] = []
        hidden = None if progress and self.group.rank == 0 else True  # None: only on a terminal
        with tqdm(total=steps, initial=self.step, disable=hidden, unit="step") as bar:
            try:
                while self.step < steps and self.stopped is None:
                    rows.append(self.update())
                    if log is not None:
                        log.write((json.dumps(_strict(rows[-1])) + "\n").encode())
                        log.flush()
                    bar.update()
                    bar.set_postfix(loss=f"{rows[-1]['loss']:.4g}", best=f"{self.best:.4g}" if self.best else "-")
                    if place is not None and (self.step % every == 0 or self.step == steps or self.stopped):
                        self._keep(place, log.tell() if log else 0, keep)
                        self._save(place, record)
            finally:
                if log is not None:
                    log.close()
        if place is not None and not rows:  # nothing was left to do, but the rule may be missing
            self._save(place, record)
        if self.stopped is not None:
            raise DivergenceError(self.stopped)
        return rows

    def describe(self) -> dict[str, Any]:
        """The training record: how, on what, with what budget and to what end."""
        return {
            "seed": self.seed,
            "network": self.episode.describe(),
            "family": self.family.describe(),
            "estimator": self.estimator.describe(),
            "optimizer": type(self.optimizer).__name__,
            "learning_rate": self._rates,
            "terms": self.episode.terms,
            "budget": {"outer_steps": self.step, "tasks_in_a_step": self.tasks},
        }

    def _reached(self, log: Path) -> dict[str, Any]:
        """The best validation loss, and means over the last outer steps."""
        rows = [json.loads(line) for line in log.read_text().splitlines()[-LAST:]]
        found: dict[str, Any] = {} if self.best is None else {"validation_loss": self.best}
        for name in ("loss", "accuracy"):
            values = [row[name] for row in rows if row.get(name) is not None]
            if values:
                found[f"mean_{name}_of_last_{len(rows)}"] = sum(values) / len(values)
        return found

    # -- checkpoints ----------------------------------------------------------------------------------------------

    def _open(self, place: Path, resume: bool) -> int:
        """Take up the newest checkpoint if asked to; the length that the log had then, in bytes."""
        try:
            place.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FileError(f"cannot write to {place}: {error.strerror}") from None
        path = checkpoint.newest(place / "checkpoints")
        if path is not None and not resume:
            raise FileError(f"{place} holds a run; go on with it by resume=True (--resume), or give another folder")
        if self.group.rank == 0:
            checkpoint.sweep(place)
        return 0 if path is None else self.load(path)

    def _save(self, place: Path, record: Mapping[str, Any] | None) -> None:
        """Write the rule with its training record."""
        if self.group.rank == 0:
            about = {**self.describe(), **(record or {}), "reached": self._reached(place / "log.jsonl")}
            self.episode.save(self.rule(), place / "rule", _strict(about))

    def _keep(self, place: Path, position: int, keep: int) -> None:
        tensors, about = self.state()  # every process takes part
        if self.group.rank:
            return
        folder = place / "checkpoints"
        checkpoint.save(folder / f"step-{self.step:08d}.safetensors", tensors, {**about, "log_bytes": position})
        checkpoint.prune(folder, keep)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """All that the next outer step depends on: tensors by name, and the rest as JSON can hold it."""
        kinds = {"now": self.parameters, "previous": self._previous, "mean": self._mean, "best": self._best}
        tensors = {f"{kind}|{name}": p.detach() for kind, held in kinds.items() for name, p in held.items()}
        kept, rest = checkpoint.optimizer_state(self.optimizer)
        tensors |= {f"optimizer|{name}": tensor for name, tensor in kept.items()}
        carried = self.estimator.state()
        if isinstance(self.estimator, Estimator):
            carried = self.group.gathered(carried)
        tensors |= {f"estimator|{name}": tensor for name, tensor in carried.items()}
        about = {
            "step": self.step, "best": self.best, "scale": self._scale, "optimizer": rest, "seed": self.seed,
            "tasks": self.tasks, "recent": self.guard.recent, "faults": self.guard.faults, "stopped": self.stopped,
            "audited": self.audited, "norms": self.norms,
        }  # fmt: skip
        return tensors, about

    def load(self, path: Any) -> int:
        """Take up a checkpoint; returns the length of the log when it was written, in bytes.

        Raises:
            FileError: for a checkpoint of other meta-parameters, another seed or number of tasks.
        """
        tensors, about = checkpoint.load(Path(path))
        kinds: dict[str, dict[str, Tensor]] = {}
        for full, tensor in tensors.items():
            kind, _, name = full.partition("|")
            kinds.setdefault(kind, {})[name] = tensor
        shapes = {name: tuple(p.shape) for name, p in self.parameters.items()}
        there = {name: tuple(p.shape) for name, p in kinds.get("now", {}).items()}
        if shapes != there:
            raise FileError(f"{path} is of another rule: its meta-parameters are {there}, this rule has {shapes}")
        for name, ours in (("seed", self.seed), ("tasks", self.tasks)):
            if about[name] != ours:
                raise FileError(f"{path} is of a run with {name}={about[name]}, this one has {name}={ours}")
        self._set(kinds["now"])
        device = self.episode.device
        held = [{n: t.to(device) for n, t in kinds[kind].items()} for kind in ("previous", "mean", "best")]
        self._previous, self._mean, self._best = held
        checkpoint.load_optimizer(self.optimizer, kinds.get("optimizer", {}), about["optimizer"])
        carried = kinds.get("estimator", {})
        if isinstance(self.estimator, Estimator):
            carried = self.group.own({n: t.to(device) if n.count("/") else t for n, t in carried.items()})
        self.estimator.load(carried)
        self.step, self.best, self._scale = about["step"], about["best"], about["scale"]
        self.guard.recent, self.guard.faults, self.stopped = about["recent"], about["faults"], about["stopped"]
        self.audited, self.norms = about["audited"], about.get("norms", {})
        return int(about["log_bytes"])

    def _copy(self) -> dict[str, Tensor]:
        return {name: p.detach().clone() for name, p in self.parameters.items()}

    def _set(self, values: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, p in self.parameters.items():
                p.copy_(values[name])


def evaluate(
    episode: Episode, parameters: Mapping[str, Tensor], tasks: Tasks, at_once: int | None = None
) -> dict[str, Tensor]:
    """Loss, terms and accuracy of whole episodes, without a gradient.

    Args:
        episode: what is run.
        parameters: the meta-parameters by name, as ``trainer.parameters``.
        tasks: that are learned, each by a new network.
        at_once: how many of them in one call; all by default.

    Returns:
        Tensors ``(tasks,)`` by name; losses in units of the loss, ``accuracy`` a share between 0 and 1.
    """
    parts = []
    with torch.no_grad():
        for first in range(0, len(tasks), at_once or len(tasks)):
            batch = tasks.batch(range(first, min(first + (at_once or len(tasks)), len(tasks))))
            window = episode.run(parameters, batch)
            parts.append({"loss": window.loss, **window.metrics})
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _mean(values: Tensor) -> float:
    """Mean of the numbers that are there."""
    return float(values.double().nanmean())


def _strict(value: Any) -> Any:
    """What JSON can hold: ``null`` for a number that is not finite."""
    if isinstance(value, dict):
        return {key: _strict(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_strict(part) for part in value]
    return None if isinstance(value, float) and not abs(value) < float("inf") else value
