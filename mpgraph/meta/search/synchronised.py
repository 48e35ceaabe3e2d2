"""Several rules that start apart, each trained by its own gradient, and all set to the best one now and then.

From random numbers most rules learn nothing; of several, one does. Sandler et al. (2021) train eight so, with unrolls
that grow, and copy the best over the others before each growth.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Generator, Tensor

from mpgraph.arguments import Arguments
from mpgraph.errors import InputError
from mpgraph.meta.distributed import Group
from mpgraph.meta.episode import Episode
from mpgraph.meta.estimators.base import Estimate, Length, checked_length, leaves, length_at
from mpgraph.meta.task import Tasks

from .base import Search

MEMORY = 0.9  # of the running mean of losses by which the best is chosen


class Synchronised(Search):
    """Adam on several rules side by side, which are set to the best of them every so many outer steps.

    Each learns the same tasks in the same outer step. The best is the one with the lowest running mean of losses since
    they were last equal. A rule whose loss or gradient is not finite makes no update, and is not the best.

    Args:
        starts: meta-parameters by name, a dictionary for each rule, with the names and shapes of the episode's.
        every: outer steps from one synchronization to the next.
        lr: of Adam.
        clip: norm that the gradient of a rule is scaled down to.
        steps: inner steps, or a schedule of them; the family's number by default.

    Raises:
        InputError: for fewer than two rules, or where they differ in names or shapes from those of the episode.
    """

    def __init__(
        self,
        starts: Sequence[Mapping[str, Tensor]],
        every: int = 100,
        *,
        lr: float = 5e-4,
        clip: float = 10.0,
        steps: Length = None,
    ) -> None:
        check = Arguments("Synchronised", InputError)
        self.every, self.steps = check.integer("every", every, 1), checked_length("Synchronised", steps)
        self.lr, self.clip = check.number("lr", lr, above=0.0), check.number("clip", clip, above=0.0)
        self.rules = len(starts)
        if self.rules < 2:
            check.refuse("starts", starts, "meta-parameters of at least two rules")
        names = set(starts[0])
        if any(
            {n: p.shape for n, p in start.items()} != {n: p.shape for n, p in starts[0].items()} for start in starts
        ):
            raise InputError(f"Synchronised: the starts differ in names or shapes from the first, {sorted(names)}")
        self._rules = {name: torch.stack([start[name].detach() for start in starts]) for name in starts[0]}
        self._first, self._second = ({n: torch.zeros_like(p) for n, p in self._rules.items()} for _ in range(2))
        self._updates = torch.zeros(self.rules)
        self._loss = torch.full((self.rules,), torch.nan)  # running means

    def improve(  # noqa: D102
        self,
        episode: Episode,
        parameters: Mapping[str, Tensor],
        tasks: Tasks,
        generator: Generator,
        group: Group | None = None,
    ) -> tuple[dict[str, Tensor], Estimate]:
        self._fits(parameters, group or Group())
        if tasks.step and tasks.step % self.every == 0:
            self._synchronise()
        batch = episode.prepared(tasks.batch(steps=length_at(self.steps, tasks.step, generator)))
        many = len(batch.seeds)
        batch = batch.chosen(list(range(many)) * self.rules)  # rule by rule, all tasks of each
        theta = leaves(self._rules)
        each = {name: p.repeat_interleave(many, 0) for name, p in theta.items()}
        window = episode.window(each, episode.begin(batch), batch, 0, batch.steps, each=True)
        losses = window.loss.reshape(self.rules, many).mean(1)
        found = torch.autograd.grad(losses.nan_to_num(0.0, 0.0, 0.0).sum(), list(theta.values()), allow_unused=True)
        gradient = {n: g for n, g in zip(theta, found, strict=True) if g is not None}
        self._update(gradient, losses.detach())
        metrics = {n: v.reshape(self.rules, many).mean(1) for n, v in window.metrics.items()}
        best, finite = self._best(), losses.detach()[torch.isfinite(losses)]
        kept = {name: p[best].clone() for name, p in self._rules.items()}
        loss = finite.mean() if len(finite) else losses.detach().mean()
        return kept, Estimate(loss, {}, {"loss": losses.detach(), **metrics, "best": self._loss[best][None]})

    def _fits(self, parameters: Mapping[str, Tensor], group: Group) -> None:
        there = {name: tuple(p.shape[1:]) for name, p in self._rules.items()}
        wanted = {name: tuple(p.shape) for name, p in parameters.items()}
        if there != wanted:
            raise InputError(f"Synchronised: the starts have meta-parameters {there}, the episode has {wanted}")
        if group.size > 1:
            raise InputError("Synchronised: rules that start apart are not shared by processes; run it in one")
        like = next(iter(parameters.values()))
        self._rules = {name: p.to(like) for name, p in self._rules.items()}
        self._first, self._second = ({n: p.to(like) for n, p in m.items()} for m in (self._first, self._second))

    def _update(self, gradient: Mapping[str, Tensor], losses: Tensor) -> None:
        """Adam (Kingma and Ba, 2015), of each rule by itself."""
        flat = torch.cat([g.reshape(self.rules, -1) for g in gradient.values()], 1)
        norms = flat.double().norm(dim=1)
        good = torch.isfinite(losses) & torch.isfinite(norms)
        factor = torch.where(good, (self.clip / norms.clamp(min=1e-300)).clamp(max=1.0), 0.0)
        self._updates = self._updates + good
        before = torch.where(torch.isnan(self._loss), losses, self._loss)
        self._loss = torch.where(good, MEMORY * before + (1.0 - MEMORY) * losses, torch.inf).to(losses)
        one, two = (1.0 - beta ** self._updates.clamp(min=1.0).double() for beta in (0.9, 0.999))
        for name, g in gradient.items():
            row = (self.rules, *(1,) * (g.ndim - 1))
            g = torch.where(good.reshape(row), g, 0.0) * factor.reshape(row).to(g)
            self._first[name] = torch.where(good.reshape(row), 0.9 * self._first[name] + 0.1 * g, self._first[name])
            self._second[name] = torch.where(
                good.reshape(row), 0.999 * self._second[name] + 0.001 * g * g, self._second[name]
            )
            rate = self.lr * good.double() / one
            scaled = self._first[name] / ((self._second[name] / two.reshape(row).to(g)).sqrt() + 1e-8)
            self._rules[name] = self._rules[name] - rate.reshape(row).to(g) * scaled

    def _best(self) -> int:
        return int(self._loss.nan_to_num(torch.inf).argmin())

    def _synchronise(self) -> None:
        """All rules, and what Adam knows of them, are those of the best."""
        best = self._best()
        for kept in (self._rules, self._first, self._second):
            kept.update({name: p[best].expand_as(p).clone() for name, p in kept.items()})
        self._updates = self._updates[best].expand(self.rules).clone()
        self._loss = torch.full_like(self._loss, torch.nan)

    def state(self) -> dict[str, Tensor]:  # noqa: D102
        kinds = {"rule": self._rules, "first": self._first, "second": self._second}
        found = {f"{kind}/{name}": p for kind, kept in kinds.items() for name, p in kept.items()}
        return {**found, "updates": self._updates, "loss": self._loss}

    def load(self, state: Mapping[str, Tensor]) -> None:  # noqa: D102
        if not state:
            return
        for kind, kept in (("rule", self._rules), ("first", self._first), ("second", self._second)):
            kept.update({name: state[f"{kind}/{name}"] for name in kept})
        self._updates, self._loss = state["updates"], state["loss"]
