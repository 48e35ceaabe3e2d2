"""One family of several: each task is of one of them, so that a rule does not fit a single data set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Generator

from mpgraph.arguments import Arguments
from mpgraph.errors import InputError
from mpgraph.meta.task import Task, TaskFamily


class Mixture(TaskFamily):
    """Each task is drawn from one of several families.

    Args:
        families: at least one; their tasks must have one shape where several are in one outer step.
        weights: how often each is chosen, relative to the others; all alike by default.

    Raises:
        InputError: for no family, what is not one, families whose ``inputs`` or ``outputs`` differ, or weights that
            are not positive numbers, one for each family.
    """

    def __init__(self, families: Sequence[TaskFamily], weights: Sequence[float] | None = None) -> None:
        check = Arguments("Mixture", InputError)
        self.families = list(families)
        if not self.families or not all(isinstance(family, TaskFamily) for family in self.families):
            check.refuse("families", families, "a list of at least one task family")
        for name in ("inputs", "outputs"):
            sizes = {getattr(family, name, None) for family in self.families}
            if len(sizes) > 1:
                raise InputError(f"Mixture: the families differ in their {name}, {sorted(map(str, sizes))}")
            if sizes != {None}:
                setattr(self, name, sizes.pop())
        given = [1.0] * len(self.families) if weights is None else weights
        self.weights = list(check.numbers("weights", given, len(self.families)))
        if min(self.weights) <= 0.0:
            check.refuse("weights", weights, "positive numbers")

    def draw(self, generator: Generator, steps: int | None = None, split: str = "train") -> Task:  # noqa: D102
        chosen = int(torch.multinomial(torch.tensor(self.weights), 1, generator=generator))
        return self.families[chosen].draw(generator, steps, split)

    def describe(self) -> dict[str, Any]:
        """Also what each family says of itself."""
        return {**super().describe(), "families": [family.describe() for family in self.families]}
