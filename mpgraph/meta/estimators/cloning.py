"""Cloning: a learned rule imitates a teacher, any rule on the same network.

This is the way through the plateau at which learning to learn begins: a rule that imitates gradient descent learns
already, and is then tuned by its own loss. VS-ML calls it learning algorithm cloning (Kirsch and Schmidhuber, 2021).
"""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Generator, Tensor

from mpgraph.arguments import Arguments
from mpgraph.errors import InputError, unknown
from mpgraph.meta.episode import Episode, mapped
from mpgraph.meta.task import TaskBatch, Tasks
from mpgraph.program.program import Program, State

from .base import Estimate, Estimator, Length, checked_length, gradient_of, leaves, length_at

MATCHES = ("updates", "messages", "weights", "predictions")


class Cloning(Estimator):
    """The gradient of how much a student differs from its teacher: relative squared errors, each times its weight.

    - ``updates``: the change of every weight in a step, where the teacher starts from the student's weights, averaged
      over connections and steps;
    - ``messages``: channels of nodes in those steps, averaged likewise;
    - ``weights``: the weights after all steps of the student and of a teacher that went its own way from the same
      initial weights, relative to how far the teacher went;
    - ``predictions``: for all support batches on those two ways, before learning from them.

    A number that the student keeps as a vector is compared by its first entry.

    Args:
        teacher: a program of the same network with the rule to imitate.
        match: weights of what is compared.
        messages: for ``messages``, patterns of node names to (student's channel, teacher's channel, factor of the
            teacher's): ``{"h*": ("e", "e", 4.0)}``.
        steps: inner steps, or a schedule of them; the family's number by default.

    Raises:
        InputError: for a program of another network, or an unknown name in ``match``.
    """

    def __init__(
        self,
        teacher: Program,
        match: Mapping[str, float] | None = None,
        messages: Mapping[str, tuple[str, str, float]] | None = None,
        steps: Length = None,
    ) -> None:
        check = Arguments("Cloning")
        if not isinstance(teacher, Program):
            check.refuse("teacher", teacher, "a program, as mg.compile(network, rule) makes")
        self._teacher, self.teacher = teacher, teacher.protocol.name
        self.match = {}
        for name, weight in ({"updates": 1.0} if match is None else match).items():
            if name not in MATCHES:
                raise InputError("Cloning: " + unknown("match", name, MATCHES))
            self.match[name] = check.number(f"match[{name!r}]", weight)
        if "messages" in self.match and not messages:
            raise InputError('Cloning: match has "messages"; say which, for example messages={"h*": ("e", "e", 1.0)}')
        self.messages, self.steps = dict(messages or {}), checked_length("Cloning", steps)

    def estimate(  # noqa: D102
        self, episode: Episode, parameters: Mapping[str, Tensor], tasks: Tasks, generator: Generator
    ) -> Estimate:
        batch = episode.prepared(tasks.batch(steps=length_at(self.steps, tasks.step, generator)))
        theta = leaves(parameters)
        errors = self._errors(episode, theta, batch)
        loss = sum((self.match[name] * error for name, error in errors.items()), torch.zeros(()).to(batch.x))
        metrics = {"loss": loss.detach(), **{name: error.detach() for name, error in errors.items()}}
        return Estimate(loss.detach().mean(), gradient_of(loss.mean(), theta), metrics)

    def _errors(self, episode: Episode, theta: Mapping[str, Tensor], batch: TaskBatch) -> dict[str, Tensor]:
        """Relative squared errors ``(tasks,)``."""
        steps, student, teacher = batch.steps, episode.program, self._teacher
        state = episode.given(theta, episode.begin(batch), torch.ones(len(batch.seeds), dtype=torch.bool))
        theta = episode.of_rule(theta)
        own = teacher.init(batch.seeds, batch_size=batch.x.shape[2])
        wires = [n for n in own if "w" in own[n] and "w" in state.get(n, {})]
        if not wires and {"updates", "weights"} & self.match.keys():
            raise InputError(f"Cloning: {student.protocol.name} and {self.teacher} keep no weight 'w' in common")
        own = _with_weights(own, state, wires)
        first = own
        records = self._records(student), self._records(teacher, 1)
        totals = {name: torch.zeros(len(batch.seeds)).to(batch.x) for name in self.match}
        seen: list[tuple[Tensor, Tensor]] = []
        for t in range(steps):
            x, y = batch.x[:, t], batch.y[:, t]
            before = state
            state, said, prediction = self._step(student, theta, state, x, y, batch.seeds, t, records[0])
            if totals.keys() & {"updates", "messages"}:
                with torch.no_grad():
                    at = _with_weights(own, before, wires)
                    after, taught, _ = self._step(teacher, {}, at, x, y, batch.seeds, t, records[1])
                if "updates" in totals:
                    pairs = [
                        (_scalar(state[n]["w"], at[n]["w"]) - _scalar(before[n]["w"], at[n]["w"]),
                         after[n]["w"] - at[n]["w"])
                        for n in wires
                    ]  # fmt: skip
                    totals["updates"] = totals["updates"] + _relative(pairs) / steps
                if "messages" in totals:
                    pairs = [
                        (_scalar(said[n][ours], factor * taught[n][theirs]), factor * taught[n][theirs])
                        for n, (ours, theirs, factor) in self._matched(student).items()
                    ]
                    totals["messages"] = totals["messages"] + _relative(pairs) / steps
            if totals.keys() & {"weights", "predictions"}:
                with torch.no_grad():
                    own, _, wanted = self._step(teacher, {}, own, x, y, batch.seeds, t, {})
                seen.append((prediction, wanted))
        if "weights" in totals:
            pairs = [(_scalar(state[n]["w"], own[n]["w"]) - first[n]["w"], own[n]["w"] - first[n]["w"]) for n in wires]
            totals["weights"] = _relative(pairs)
        if "predictions" in totals:
            ours, theirs = (torch.stack(parts, 1) for parts in zip(*seen, strict=True))
            totals["predictions"] = _relative([(ours, theirs)])
        return totals

    def _matched(self, program: Program) -> dict[str, tuple[str, str, float]]:
        """The channels to compare, by node."""
        nodes = list(program.graph.nodes)
        found = {n: channels for n in nodes for p, channels in self.messages.items() if fnmatchcase(n, p)}
        if self.messages and not found:
            raise InputError(f"Cloning: messages={self.messages} match none of the nodes {', '.join(nodes)}")
        return found

    def _records(self, program: Program, which: int = 0) -> dict[str, list[str]]:
        if "messages" not in self.match:
            return {}
        return {node: [str(channels[which])] for node, channels in self._matched(program).items()}

    @staticmethod
    def _step(
        program: Program,
        theta: Mapping[str, Tensor],
        state: State,
        x: Tensor,
        y: Tensor,
        seeds: list[int],
        at: int,
        record: Mapping[str, Any],
    ) -> tuple[State, dict[str, dict[str, Tensor]], Tensor]:
        phase = program.protocol.phase(at) if program.protocol.phases else None
        counters = {"seed": torch.tensor(seeds), "step": torch.full((len(seeds),), at)}
        normal = program.noise({"program": counters}, x.shape[1], phase=phase)

        def one(state: State, x: Tensor, y: Tensor, normal: dict[str, Tensor]) -> Any:
            state, out = program.step(state, x, y, record=record, noise=normal, phase=phase, parameters=theta)
            return state, out.recorded, out.prediction

        return mapped(one, state, x, y, normal)


def _with_weights(state: State, source: State, wires: list[str]) -> State:
    """The state with the weights of another, as numbers without a graph."""
    given = {n: {**state[n], "w": _scalar(source[n]["w"], state[n]["w"]).detach()} for n in wires}
    return {**state, **given}


def _scalar(tensor: Tensor, like: Tensor) -> Tensor:
    """The first number of what one side keeps as a vector."""
    return tensor.flatten(like.ndim)[..., 0] if tensor.ndim > like.ndim else tensor


def _relative(pairs: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Mean over pairs of the squared difference over the square of the second ``(tasks,)``."""
    errors = []
    for ours, theirs in pairs:
        square = theirs.square().flatten(1).sum(1)
        errors.append((ours - theirs).square().flatten(1).sum(1) / torch.where(square > 0, square, 1.0))
    return torch.stack(errors).mean(0)
