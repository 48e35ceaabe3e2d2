"""Rules x networks x tasks x seeds, one cell at a time: each is trained by itself, from names alone.

A cell needs nothing of the others, so cells run in any order, in several processes, and a comparison goes on where it
stopped. A seed fixes the split, the initial weights and the order of examples, for every rule alike.
"""

from __future__ import annotations

import multiprocessing
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from tqdm import tqdm

from mpgraph.data.datasets import Dataset
from mpgraph.environment import usable
from mpgraph.errors import GroupError, InputError, MPGraphError
from mpgraph.network.network import Network
from mpgraph.program.compile import compile
from mpgraph.program.program import Program

from .comparison import measured, shape_of
from .naming import named, network_named, own_code
from .results import READOUT_ONLY, Run
from .tasks import fitted, task_named
from .tuning import SHARE, Space, searched


@dataclass(frozen=True)
class Plan:
    """What all cells of a comparison share.

    Attributes:
        epochs: passes over the training set; that of each task if not given.
        batch: examples in a step; one for tasks whose examples come one at a time.
        lr, surrogate: for the rules that take them and are not given others.
        hidden, activation, loss: for the networks that take them; by task if not given.
        raw: leave inputs as they are instead of standardising them.
        limit: train on the first examples only.
        space: what is searched for each rule, on validation data.
        device: where to run.
        root: folder of data files.
        angles: measure updates beside the gradient at each epoch.
    """

    epochs: int | None = None
    batch: int = 32
    lr: float | None = None
    surrogate: str | None = None
    hidden: tuple[int, ...] | None = None
    activation: str | None = None
    loss: str | None = None
    raw: bool = False
    limit: int | None = None
    space: Space | None = None
    device: str | None = None
    root: str | None = None
    angles: bool = False

    def network(self, cell: Cell) -> Network:
        """The network of a cell, for the floor with its readout trained alone."""
        given = {"hidden": self.hidden, "activation": self.activation, "loss": self.loss}
        usual = {key: value for key, value in given.items() if value is not None}
        network = network_named(cell.network, task_named(cell.task), usual)
        return network.readout_only() if cell.protocol == READOUT_ONLY else network

    def program(self, cell: Cell, chosen: dict[str, Any] | None = None, *, trained: bool = True) -> Program:
        """The compiled cell, with arguments that were chosen for its rule; ``trained`` as in :func:`named`."""
        make = named(cell.protocol, {**self._usual(), **(chosen or {})}, trained=trained).make
        network = self.network(cell)
        with own_code(cell.protocol):
            return compile(network, make(), device=self.device)

    def searched(self, cell: Cell) -> Space | None:
        """What is searched for the rule of a cell."""
        if self.space is None:
            return None
        return self.space.of(named(cell.protocol, self._usual(), trained=True).free)

    def epochs_of(self, cell: Cell) -> int:
        """Passes over the training set; one where each example comes once."""
        task = task_named(cell.task)
        return 1 if task.online else self.epochs or task.epochs

    def batch_of(self, cell: Cell) -> int:
        """Examples in a step; one where they come one at a time."""
        return 1 if task_named(cell.task).online else self.batch

    def steps_of(self, cell: Cell) -> int:
        """Steps of one training, without those on a smaller last batch."""
        data = _data(cell.task, self.root, cell.seed, self.raw, self.limit, False)
        return self.epochs_of(cell) * (len(data.train_x) // self.batch_of(cell))

    def _usual(self) -> dict[str, Any]:
        return {key: value for key, value in (("lr", self.lr), ("surrogate", self.surrogate)) if value is not None}


@dataclass(frozen=True)
class Cell:
    """One rule on one network, task and seed, by name; ``label`` is what results call the network."""

    task: str
    network: str
    protocol: str
    seed: int
    label: str = ""

    @property
    def key(self) -> tuple[str, str, str, int]:
        """As :attr:`Run.key`."""
        return self.task, self.label, self.protocol, self.seed


def cells_of(
    plan: Plan, tasks: Sequence[str], networks: Sequence[str], rules: Sequence[str], seeds: Sequence[int]
) -> list[Cell]:
    """All cells, ordered by task, network, seed and rule.

    A chain is labelled by its sizes, ``64-32-10 tanh``, unless another network of the comparison has the same label;
    any other network by its name.
    """
    cells = []
    for task in tasks:
        made = {}
        for name in networks:
            shape = shape_of(plan.network(Cell(task, name, rules[0], 0)))
            made[name] = shape if name.partition("(")[0] == "mlp" else name
        labels = list(made.values())
        made = {name: label if labels.count(label) == 1 else name for name, label in made.items()}
        cells += [
            Cell(task, name, rule, seed, label) for name, label in made.items() for seed in seeds for rule in rules
        ]
    return cells


def checked(plan: Plan, cells: Sequence[Cell], *, keep_going: bool = False) -> dict[tuple[str, str, str], str]:
    """Compile every rule on every network before the first is trained.

    Args:
        plan: what all cells share.
        cells: of which one for each seed is enough.
        keep_going: return what does not fit, or fails in any other way, instead of raising it; a searched argument that
            no rule takes is no fault then.

    Returns:
        Why a rule does not run, by task, label of the network, and rule.

    Raises:
        MPGraphError: for the first rule that does not fit, unless ``keep_going``.
    """
    refused: dict[tuple[str, str, str], str] = {}
    for cell in {cell.key[:3]: cell for cell in cells}.values():
        try:
            plan.searched(cell)
            plan.program(cell)
        except Exception as error:
            if not keep_going:
                raise
            refused[cell.key[:3]] = reason(error)
    if plan.space is not None and not keep_going:
        free = [one.name for one in plan.space.dimensions]
        taken = {one.name for cell in cells if cell.key[:3] not in refused
                 for one in (plan.searched(cell) or plan.space).dimensions}  # fmt: skip
        idle = [name for name in free if name not in taken]
        if idle:
            raise InputError(f"--tune: none of the rules takes {', '.join(idle)}, or all were given it")
    return refused


def reason(error: BaseException) -> str:
    """Why a cell cannot run, in one line; of what is no refusal also the kind of the exception."""
    text = " ".join(str(error).split()) or "without a message"
    return text if isinstance(error, MPGraphError) else f"failed with {type(error).__name__}: {text}"


@lru_cache(maxsize=2)  # the rules of one seed follow each other
def _data(task: str, root: str | None, seed: int, raw: bool, limit: int | None, progress: bool) -> Dataset:
    return task_named(task).load(root, seed=seed, raw=raw, limit=limit, progress=progress)


def run_cell(plan: Plan, cell: Cell, progress: bool = False, on_epoch: Callable[[], object] = lambda: None) -> Run:
    """Search, if the plan says so, then train and test one cell.

    A search trains on four fifths of the training set and scores on the rest; the run itself trains on all of it.
    What compiling warns of was said when the rules were checked.
    """
    with own_code(cell.protocol), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _trained(plan, cell, progress, on_epoch)


def _trained(plan: Plan, cell: Cell, progress: bool, on_epoch: Callable[[], object]) -> Run:
    data = fitted(_data(cell.task, plan.root, cell.seed, plan.raw, plan.limit, progress), plan.network(cell))
    data = data.to(usable(plan.device)) if plan.device else data
    epochs, batch = plan.epochs_of(cell), plan.batch_of(cell)
    space, tuning = plan.searched(cell), None
    if space is not None:
        held = data.validation(SHARE, cell.seed)

        def trial(arguments: dict[str, Any]) -> tuple[float, bool]:
            program = plan.program(cell, arguments)
            found = measured(program, held, cell.key, epochs=epochs, batch=batch, on_epoch=on_epoch)
            return found.gain, found.diverged

        tuning = {**searched(space, trial), "validation_examples": len(held.test_x)}
    program = plan.program(cell, tuning["chosen"] if tuning else None)
    run = measured(program, data, cell.key, epochs=epochs, batch=batch, on_epoch=on_epoch, angles=plan.angles)
    return replace(run, tuning=tuning)


def run_cells(
    plan: Plan,
    cells: Sequence[Cell],
    *,
    jobs: int = 1,
    done: Sequence[Run] = (),
    on_run: Callable[[list[Run]], None] | None = None,
    on_refused: Callable[[Cell, Exception], None] | None = None,
    progress: bool = True,
) -> list[Run]:
    """Run all cells that are not done.

    Args:
        plan: what all cells share.
        cells: in the order of the result.
        jobs: processes that train at once; one trains in this process.
        done: runs of an earlier call, which are not repeated.
        on_run: called after each run with all runs so far, including those of ``done``.
        on_refused: called with a cell that cannot run and why, whatever was raised, also where its process ended; it
            is left out.
        progress: show a bar, if stderr is a terminal.

    Returns:
        The runs in the order of the cells.

    Raises:
        Exception: what a cell raises, without ``on_refused``: an MPGraphError if a rule does not fit. Runs that ended
            before have been given to ``on_run``.
    """
    _data.cache_clear()  # files may have changed since the last comparison
    found = {run.key: run for run in done}
    todo = [cell for cell in cells if cell.key not in found]
    wanted = [cell.key for cell in cells]

    def finished(cell: Cell, run: Run) -> None:
        found[cell.key] = run
        if on_run:
            order = {key: i for i, key in enumerate(wanted)}
            on_run(sorted(found.values(), key=lambda run: order.get(run.key, len(order))))

    def refused(cell: Cell, error: Exception) -> None:
        if on_refused is None:
            raise error
        on_refused(cell, error)

    with tqdm(total=sum(_epochs(plan, c) for c in todo), disable=None if progress else True, unit="epoch",
              leave=False) as bar:  # fmt: skip
        if jobs == 1 or len(todo) < 2:
            for cell in todo:
                bar.set_description(f"{cell.task}, {cell.protocol}, seed {cell.seed}")
                before = bar.n
                try:
                    run = run_cell(plan, cell, progress, bar.update)
                except Exception as error:
                    refused(cell, error)
                else:
                    finished(cell, run)
                bar.update(_epochs(plan, cell) - (bar.n - before))
        else:
            for cell, came in _in_processes(plan, todo, jobs, alone=on_refused is not None):
                if isinstance(came, Exception):
                    refused(cell, came)
                else:
                    finished(cell, came)
                bar.update(_epochs(plan, cell))
    return [found[key] for key in wanted if key in found]


Found = Generator[tuple[Cell, Run | Exception], None, list[Cell]]


def _in_processes(plan: Plan, cells: Sequence[Cell], jobs: int, *, alone: bool) -> Found:
    """Cells with their runs, or what was raised, as they come.

    A process that ends takes the others of its pool with it. With ``alone`` the cells that were running then run again,
    each in a pool by itself, so that it is known which one ends it, and the rest goes on.

    Raises:
        GroupError: for a process that ends, without ``alone``.
    """
    waiting = list(cells)
    while waiting:
        suspects = yield from _in_pool(plan, waiting, min(jobs, len(waiting)))
        if suspects and not alone:
            raise GroupError(
                "a process ended in the middle of a run, perhaps for want of memory; finished runs are kept, --resume "
                "goes on, and fewer --jobs need less"
            )
        for cell in suspects:
            if (yield from _in_pool(plan, [cell], 1)):
                yield cell, GroupError("its process ended in the middle of the run, perhaps for want of memory")
    return []


def _in_pool(plan: Plan, waiting: list[Cell], jobs: int) -> Found:
    """Runs as they come; returns the cells that were running when a process ended. They are taken from ``waiting``."""
    running: dict[Future[Run], Cell] = {}
    with _pool(jobs) as pool:
        while waiting or running:
            while waiting and len(running) < jobs:
                cell = waiting.pop(0)
                try:
                    running[pool.submit(run_cell, plan, cell)] = cell
                except BrokenProcessPool:
                    return [*running.values(), cell]
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                error = future.exception()
                if isinstance(error, BrokenProcessPool):
                    return list(running.values())
                yield running.pop(future), error if isinstance(error, Exception) else future.result()
    return []


def _epochs(plan: Plan, cell: Cell) -> int:
    space = plan.searched(cell)
    return plan.epochs_of(cell) * (1 + (len(space.candidates()) if space else 0))


@contextmanager
def _pool(jobs: int) -> Iterator[ProcessPoolExecutor]:
    """Fresh processes that share the threads of this one; what has not begun is dropped after an error."""
    threads = max(1, torch.get_num_threads() // jobs)
    start = multiprocessing.get_context("spawn")  # a fork copies locks that other threads hold
    pool = ProcessPoolExecutor(jobs, start, initializer=_begin, initargs=(threads, torch.get_default_dtype()))
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _begin(threads: int, dtype: torch.dtype) -> None:
    torch.set_num_threads(threads)
    torch.set_default_dtype(dtype)
