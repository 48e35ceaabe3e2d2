"""The cheapest beginning: each agent of a rule, alone, learns what an agent of gradient descent would do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Generator, Tensor

from mpgraph.arguments import Arguments
from mpgraph.errors import InputError
from mpgraph.meta.episode import Episode
from mpgraph.meta.task import Tasks

from .base import Estimate, Estimator, Gradient


class Alone(Estimator):
    """The gradient of how far the agents of a rule are from gradient descent, on random numbers, without a network.

    In a network an agent can only imitate once those above it send the right messages; alone all of them learn at once,
    and no network is run. For rules that have a method ``alone(graph, generator, examples)``, which returns errors by
    name: :class:`mpgraph.protocols.MPLP`, :class:`mpgraph.protocols.VSML`. :class:`Cloning` goes on from
    there, in a network.

    Args:
        examples: random ones of each kind of agent, in an outer step.

    Raises:
        InputError: for a rule without a method ``alone``, when a gradient is estimated.
    """

    def __init__(self, examples: int = 256) -> None:
        self.examples = Arguments("Alone").integer("examples", examples, 2)

    def estimate(  # noqa: D102
        self, episode: Episode, parameters: Mapping[str, Tensor], tasks: Tasks, generator: Generator
    ) -> Estimate:
        rule: Any = episode.protocol(parameters)
        if not hasattr(rule, "alone"):
            raise InputError(f"Alone: {rule.name} does not say what its agents would do alone; use Cloning")
        errors: dict[str, Tensor] = rule.alone(episode.program.graph, generator, self.examples)
        loss = torch.stack(list(errors.values())).sum()
        named = dict(rule.named_parameters())
        found = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
        gradient: Gradient = {**dict.fromkeys(parameters), **dict(zip(named, found, strict=True))}
        metrics = {"loss": loss.detach()[None], **{name: error.detach()[None] for name, error in errors.items()}}
        return Estimate(loss.detach(), gradient, metrics)
