"""Covariance matrix adaptation (Hansen and Ostermeier, 2001), by the package ``cma``: ask, run all candidates, tell.

What ``cma`` keeps is a function of its options and of the losses that it was told. So these losses are all that a
checkpoint holds: a resumed search tells them again, which costs no episode, and is where it was, to the bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Generator, Tensor

from mpgraph.arguments import Arguments
from mpgraph.budget import Memory
from mpgraph.meta.distributed import Group
from mpgraph.meta.episode import Episode, Window
from mpgraph.meta.estimators.base import Estimate, Length, checked_length, length_at, pieces, threads_of
from mpgraph.meta.estimators.plan import Budget, held_by_a_step
from mpgraph.meta.task import Tasks
from mpgraph.threads import side_by_side

from .base import Search


class CMAES(Search):
    """A population of candidates, all on the same tasks, in one vmapped program.

    Args:
        sigma: initial standard deviation of every meta-parameter.
        population: candidates in a generation; ``4 + 3 log(numbers)`` by default.
        restarts: begin again from the start whenever the search has converged: ``ipop`` with twice the population;
            ``bipop`` also with small populations and narrow ones (Hansen, 2009), so that both kinds run equally many
            candidates.
        bounds: lowest and highest value of all meta-parameters.
        fitness: what is minimized: ``loss``, or ``error``, the share of wrong answers on the query.
        chunk: candidates in one call; all by default. Of several pieces as many are run side by side as the program
            has threads (see :func:`mpgraph.compile`).
        memory: what the networks of the candidates that are run at once may take, which chooses ``chunk``: bytes,
            ``"2 GiB"``, or a share of what is free, ``0.5`` or ``"50%"``. What one needs is measured.
        steps: inner steps, or a schedule of them; the family's number by default.
        seed: of the candidates.
    """

    def __init__(
        self,
        sigma: float = 0.1,
        population: int | None = None,
        *,
        restarts: Literal["none", "ipop", "bipop"] = "none",
        bounds: tuple[float, float] | None = None,
        fitness: Literal["loss", "error"] = "loss",
        chunk: int | None = None,
        memory: Memory | None = None,
        steps: Length = None,
        seed: int = 0,
    ) -> None:
        check = Arguments("CMAES")
        self.sigma = check.number("sigma", sigma, above=0.0)
        self.population = None if population is None else check.integer("population", population, 2)
        self.restarts = check.choice("restarts", restarts, ("none", "ipop", "bipop"))
        self.bounds = None if bounds is None else check.numbers("bounds", bounds, 2)
        self.fitness = check.choice("fitness", fitness, ("loss", "error"))
        self.chunk = None if chunk is None else check.integer("chunk", chunk, 1)
        self.steps, self.seed = checked_length("CMAES", steps), check.seed("seed", seed)
        self.memory, self._budget = memory, Budget("CMAES", memory, chunk=chunk)
        self._told: list[Tensor] = []  # losses of each generation
        self._searches: list[Round] = []
        self._start: Tensor | None = None
        self._search: Any = None

    def improve(
        self,
        episode: Episode,
        parameters: Mapping[str, Tensor],
        tasks: Tasks,
        generator: Generator,
        group: Group | None = None,
    ) -> tuple[dict[str, Tensor], Estimate]:
        """One generation: the new favorite, and the losses of the candidates."""
        group = group or Group()
        if self._start is None:
            self._start = torch.cat([p.detach().double().cpu().flatten() for p in parameters.values()])
        if self._search is None:
            self._replay()
        candidates = self._search.ask()
        rows = torch.from_numpy(np.stack(candidates))
        batch = episode.prepared(tasks.batch(steps=length_at(self.steps, tasks.step, generator)))
        state = episode.begin(batch)

        def one(own: dict[str, Tensor]) -> Window:
            return episode.window(own, state, batch, 0, batch.steps)

        def run(piece: slice) -> dict[str, Tensor]:
            window = torch.func.vmap(one)(_split(mine[piece], parameters))
            return {"loss": window.loss.mean(1), **{n: v.mean(1) for n, v in window.metrics.items()}}

        mine, threads = group.share(rows), threads_of(episode, batch)
        together, limit = pieces(len(mine), self.chunk), self._budget.limit(batch.x.device)
        if limit is not None:
            each = len(tasks) * self._budget.measured(held_by_a_step, episode, parameters, batch)
            fix = "give more, or fewer tasks in an outer step"
            together, threads = self._budget.pieces(limit, each, len(mine), threads, fix)
        with torch.no_grad():
            parts = side_by_side(run, together, threads)
        found = group.gathered({name: torch.cat([part[name] for part in parts]) for name in parts[0]})
        metrics = {name: values[: len(rows)] for name, values in found.items()}
        wanted = metrics["loss"] if self.fitness == "loss" else 1.0 - metrics["accuracy"]
        self._tell(candidates, wanted.double().cpu())
        favourite = torch.from_numpy(np.array(self._search.result.xfavorite))
        best = {name: p[0] for name, p in _split(favourite[None], parameters).items()}
        finite = metrics["loss"][torch.isfinite(metrics["loss"])]
        loss = finite.mean() if len(finite) else metrics["loss"].mean()
        return best, Estimate(loss, {}, {**metrics, "best": wanted.min()[None]})

    def _begin(self) -> None:
        """A fresh search."""
        import cma

        assert self._start is not None
        number = len(self._searches)
        random = np.random.RandomState((self.seed + number) % 2**32)
        search = _next(self._searches, self.population or 4 + int(3 * np.log(len(self._start))), self.restarts, random)
        self._searches.append(search)
        options: dict[str, Any] = {"popsize": search.population, "verbose": -9, "seed": np.nan, "randn": random.randn}
        if self.bounds is not None:
            options["bounds"] = list(self.bounds)
        self._search = cma.CMAEvolutionStrategy(self._start.numpy(), self.sigma * search.narrow, options)

    def _tell(self, candidates: list[Any], losses: Tensor) -> None:
        """Hand the losses over; one that is not finite counts as worse than all that are."""
        self._told.append(losses)
        finite = losses[torch.isfinite(losses)]
        worst = float(finite.max()) + 1.0 if len(finite) else 0.0
        self._search.tell(candidates, torch.where(torch.isfinite(losses), losses, worst).tolist())
        now = self._searches[-1]
        now.candidates += len(losses)
        if self.restarts != "none" and (now.candidates >= now.most or self._search.stop()):
            self._begin()

    def _replay(self) -> None:
        """Bring ``cma`` to where it was, from the losses."""
        told, self._told, self._searches = self._told, [], []
        self._begin()
        for losses in told:
            self._tell(self._search.ask(), losses)

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint holds."""
        found = {f"{i:08d}": losses for i, losses in enumerate(self._told)}
        return found if self._start is None else {**found, "start": self._start}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take up what :meth:`state` gave."""
        self._start = state.get("start")
        self._told = [state[name] for name in sorted(state) if name != "start"]
        self._search = None


@dataclass
class Round:
    """One search between restarts.

    Attributes:
        population: candidates in a generation.
        narrow: factor of the initial standard deviation.
        small: whether it is of the kind of ``bipop`` with small populations.
        most: candidates after which it ends.
        candidates: that it has run.
    """

    population: int
    narrow: float = 1.0
    small: bool = False
    most: float = float("inf")
    candidates: int = 0


def _next(before: list[Round], population: int, restarts: str, random: np.random.RandomState) -> Round:
    """What comes after some searches: twice the large population, or a small one if those have run less."""
    large, small = ([search for search in before if search.small is kind] for kind in (False, True))
    spent = [sum(search.candidates for search in kind) for kind in (large, small)]
    if restarts == "bipop" and len(large) > 1 and spent[1] < spent[0]:
        ratio = large[-1].population / (2.0 * population)
        size = int(population * ratio ** (random.uniform() ** 2))
        return Round(max(size, 2), 0.01 ** random.uniform(), True, large[-1].candidates / 2.0)
    return Round(population * 2 ** len(large))


def _split(rows: Tensor, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Vectors ``(candidates, numbers)`` as meta-parameters ``(candidates, *shape)``."""
    sizes = [p.numel() for p in like.values()]
    parts = rows.split(sizes, 1)
    return {name: part.reshape(-1, *p.shape).to(p) for (name, p), part in zip(like.items(), parts, strict=True)}
