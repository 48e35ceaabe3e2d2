"""Evolution strategies: the gradient of a smoothed loss from losses only, by antithetic pairs with common numbers.

Both networks of a pair learn the same task from the same initial state, with theta + e and theta - e. Episodes are
carried over outer steps; after each window of W steps the pair gives

    xi (L+ - L-) / (2 sigma^2)        L: loss of the window, times the number of windows in an episode

where xi is the sum of the perturbations e that were drawn since the episode began. How often a new one is drawn names
the method: after every window, persistent evolution strategies (Vicol, Metz and Sohl-Dickstein, 2021); never within an
episode, noise-reuse evolution strategies (Li et al., 2023), also ES-Single (Vicol, 2023). Both are unbiased. With
``xi = e``, the last one drawn, it is truncated ES, which is biased. A window as long as the episode is plain ES.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Generator, Tensor

from mpgraph.arguments import Arguments
from mpgraph.budget import Memory
from mpgraph.meta.episode import Episode, Window
from mpgraph.meta.randomness import generator_of
from mpgraph.meta.task import TaskBatch, Tasks
from mpgraph.program.program import State
from mpgraph.threads import side_by_side

from .base import Estimate, Estimator, Length, checked_length, length_at, threads_of
from .plan import Budget, held_by_a_step
from .workers import Workers


class Evolution(Estimator):
    """Antithetic evolution strategies; one pair of networks for each task.

    A pair one of whose losses is not finite is left out of the mean.

    Args:
        sigma: standard deviation of perturbations.
        window: inner steps before an estimate; the whole episode by default.
        resample: windows after which a new perturbation is drawn: 1 for PES; ``None`` for NRES, which keeps one for
            the episode.
        accumulate: whether earlier perturbations of the episode count; ``False`` is truncated ES.
        steps: inner steps of an episode, a multiple of ``window``, or a schedule; the family's number by default.
        unlocked: spread the first episodes over all phases, so that every outer step sees all of them.
        memory: what the pairs that run at once may take: bytes, ``"2 GiB"``, or a share of what is free, ``0.5`` or
            ``"50%"``. What one needs is measured; by default all run at once.
    """

    carries = True

    def __init__(
        self,
        sigma: float = 0.01,
        window: int | None = None,
        resample: int | None = None,
        *,
        accumulate: bool = True,
        steps: Length = None,
        unlocked: bool = True,
        memory: Memory | None = None,
    ) -> None:
        check = Arguments("Evolution")
        self.sigma = check.number("sigma", sigma, above=0.0)
        self.window = None if window is None else check.integer("window", window, 1)
        self.resample = None if resample is None else check.integer("resample", resample, 1)
        self.accumulate, self.unlocked = check.flag("accumulate", accumulate), check.flag("unlocked", unlocked)
        self.steps = checked_length("Evolution", steps)
        self.memory, self._budget = memory, Budget("Evolution", memory)
        self._workers = Workers(("plus", "minus"))
        self._present: dict[str, Tensor] = {}  # perturbation of each pair by name of the parameter
        self._sum: dict[str, Tensor] = {}

    def noise(self, parameters: Mapping[str, Tensor], index: int, generator: Generator) -> dict[str, Tensor]:
        """Standard normal numbers for the pair of a task."""
        return {
            name: torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p) for name, p in parameters.items()
        }

    def estimate(  # noqa: D102
        self, episode: Episode, parameters: Mapping[str, Tensor], tasks: Tasks, generator: Generator
    ) -> Estimate:
        workers, theta = self._workers, {name: p.detach() for name, p in parameters.items()}
        length = self.window or len(tasks[0].x)
        if self.window is None and self.steps is not None:
            length = length_at(self.steps, tasks.step, generator) or length
        steps = length if self.window is None else self.steps
        batch, ahead = workers.begin(episode, tasks, length, steps, generator, unlocked=self.unlocked)
        if not self._sum:
            self._sum = {name: p.new_zeros(len(tasks), *p.shape) for name, p in theta.items()}
            self._present = dict(self._sum)
        with torch.no_grad():
            for _ in range(int(ahead.max()) // length):
                self._run_ahead(episode, theta, batch, tasks, ahead, length, generator)
            self._perturb(theta, tasks, range(len(tasks)), length, generator)
            window = self._pairs(episode, theta, batch, workers.start(), length)
        for copy, name in enumerate(workers.copies):
            workers.states[name] = {n: {c: t[copy] for c, t in cs.items()} for n, cs in window.state.items()}
        share = (workers.length.double() / length).to(window.loss)
        plus, minus = window.loss * share
        workers.age = workers.age + length
        finite = torch.isfinite(plus) & torch.isfinite(minus)
        difference = torch.where(finite, plus - minus, 0.0) / (2.0 * self.sigma**2 * int(finite.sum()))
        gradient = {name: torch.tensordot(difference, xi, 1) for name, xi in self._sum.items()}
        loss = (plus + minus) / 2.0
        metrics = {"loss": loss, **{name: value.mean(0) for name, value in window.metrics.items()}}
        return Estimate(torch.where(finite, loss, 0.0).sum() / finite.sum(), dict(gradient), metrics)

    def _perturb(
        self, theta: Mapping[str, Tensor], tasks: Tasks, which: range | list[int], length: int, generator: Generator
    ) -> None:
        """New perturbations for the pairs whose turn it is."""
        windows = {i: int(self._workers.age[i]) // length for i in which}
        due = [i for i, n in windows.items() if not n or (self.resample is not None and n % self.resample == 0)]
        if not due:
            return
        rows = torch.tensor(due)
        goes_on = torch.tensor([bool(windows[i]) and self.accumulate for i in due])
        drawn = []
        for i in due:
            own = generator_of(generator.initial_seed(), "noise", tasks.first + i, windows[i])
            drawn.append(self.noise(theta, tasks.first + i, own))
        for name, p in theta.items():
            new = self.sigma * torch.stack([one[name] for one in drawn])
            at, kept = rows.to(p.device), goes_on.to(p.device).reshape(-1, *(1,) * p.ndim)
            before = torch.where(kept, self._sum[name][at], 0.0)
            self._present[name] = self._present[name].index_copy(0, at, new)
            self._sum[name] = self._sum[name].index_copy(0, at, before + new)

    def _pairs(
        self, episode: Episode, theta: Mapping[str, Tensor], batch: TaskBatch, start: int | Tensor, length: int
    ) -> Window:
        """A window of both networks of all pairs, ``(2, tasks, ...)``."""
        count, limit = len(batch.seeds), self._budget.limit(batch.x.device)
        if limit is None:
            return self._some_pairs(episode, theta, batch, start, length, slice(None))
        each = 2 * self._budget.measured(held_by_a_step, episode, theta, batch)
        parts, threads = self._budget.pieces(limit, each, count, threads_of(episode, batch), "give more")

        def run(rows: slice) -> Window:
            begin = start if isinstance(start, int) else start[rows]
            return self._some_pairs(episode, theta, batch.chosen(range(count)[rows]), begin, length, rows)

        found = side_by_side(run, parts, threads)
        state = {n: {c: torch.cat([w.state[n][c] for w in found], 1) for c in cs} for n, cs in found[0].state.items()}
        names = dict.fromkeys(name for window in found for name in window.metrics)
        metrics = {  # where no episode ends there is no accuracy
            name: torch.cat([w.metrics.get(name, torch.full_like(w.loss, torch.nan)) for w in found], 1)
            for name in names
        }
        return Window(state, torch.cat([window.loss for window in found], 1), metrics)

    def _some_pairs(
        self,
        episode: Episode,
        theta: Mapping[str, Tensor],
        batch: TaskBatch,
        start: int | Tensor,
        length: int,
        rows: slice,
    ) -> Window:
        """Those of some tasks, whose batch it is."""
        present = {name: tensor[rows] for name, tensor in self._present.items()}
        both = {name: torch.stack([p + present[name], p - present[name]]) for name, p in theta.items()}
        plus, minus = (self._workers.states[name] for name in self._workers.copies)
        states: State = {
            n: {c: torch.stack([t[rows], minus[n][c][rows]]) for c, t in cs.items()} for n, cs in plus.items()
        }

        def one(own: dict[str, Tensor], state: State) -> Window:
            return episode.window(own, state, batch, start, length, each=True)

        return torch.func.vmap(one)(both, states)

    def _run_ahead(
        self,
        episode: Episode,
        theta: Mapping[str, Tensor],
        batch: TaskBatch,
        tasks: Tasks,
        ahead: Tensor,
        length: int,
        generator: Generator,
    ) -> None:
        """One window of the first episodes that nobody learns from, for those that have not reached their phase."""
        workers = self._workers
        late = [i for i in range(len(tasks)) if workers.age[i] < ahead[i]]
        if not late:
            return
        self._perturb(theta, tasks, late, length, generator)
        window = self._pairs(episode, theta, batch, workers.start(), length)
        for copy, name in enumerate(workers.copies):
            workers.states[name] = {
                n: {
                    c: t.index_copy(0, torch.tensor(late, device=t.device), window.state[n][c][copy][late])
                    for c, t in channels.items()
                }
                for n, channels in workers.states[name].items()
            }
        workers.age = workers.age.index_add(0, torch.tensor(late), torch.full((len(late),), length))

    def state(self) -> dict[str, Tensor]:  # noqa: D102
        found = self._workers.state()
        for kind, tensors in (("present", self._present), ("sum", self._sum)):
            found |= {f"{kind}:{name}": tensor for name, tensor in tensors.items()}
        return found

    def load(self, state: Mapping[str, Tensor]) -> None:  # noqa: D102
        self._present = {n.partition(":")[2]: t for n, t in state.items() if n.startswith("present:")}
        self._sum = {n.partition(":")[2]: t for n, t in state.items() if n.startswith("sum:")}
        self._workers.load({n: t for n, t in state.items() if not n.startswith(("present:", "sum:"))})
