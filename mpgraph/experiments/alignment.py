"""A rule's updates beside the gradient over the course of training, and how many units are silent after it."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from mpgraph.data.datasets import Dataset
from mpgraph.errors import MPGraphError
from mpgraph.probes import silent_units, updates
from mpgraph.program.program import Program, State


class Alignment:
    """The angle and norm of updates beside the gradient, on one batch of the training set, at each epoch.

    Passed to :func:`mpgraph.experiments.train` as ``follow``. Each measure is a step that is thrown away
    (:func:`mpgraph.probes.updates`).

    Args:
        program: a network with a rule.
        data: whose first training examples are the batch.
        batch: how many.

    Attributes:
        found: ``epochs``, and by connection, bias and ``all`` lists of ``angles`` in degrees and of ``ratios``, with
            ``None`` where an update or the gradient vanishes. Or ``unknown``: why it cannot be measured.
    """

    def __init__(self, program: Program, data: Dataset, batch: int) -> None:
        self.program = program
        self.x = data.train_x[:batch]
        self.y = _targets(data, [one.train[:batch] for one in data.targets.values()])
        self.found: dict[str, Any] = {"epochs": [], "angles": {}, "ratios": {}}

    def __call__(self, epoch: int, state: State) -> None:
        """Measure."""
        if "unknown" in self.found:
            return
        try:
            rows = updates(self.program, state, self.x, self.y)
        except MPGraphError as error:
            self.found = {"unknown": str(error)}
            return
        self.found["epochs"].append(epoch)
        for name, row in rows.items():
            for kind, number in (("angles", row.angle), ("ratios", row.ratio)):
                self.found[kind].setdefault(name, []).append(number if math.isfinite(number) else None)


def silent(program: Program, state: State, data: Dataset, batch: int) -> dict[str, float]:
    """The share of zero activities of each hidden unit on the first test examples; empty where units keep no ``y``."""
    x = data.test_x[:batch]
    y = _targets(data, [one.test[:batch] for one in data.targets.values()])
    try:
        found = silent_units(program, program.reset(state) if program.online else state, x, y)
    except MPGraphError:
        return {}
    nodes, outputs = program.graph.nodes, program.graph.network.outputs
    return {name: share for name, share in found.items() if nodes[name].owner not in outputs}


def _targets(data: Dataset, parts: list[Tensor]) -> Any:
    """Targets as a step takes them."""
    return dict(zip(data.targets, parts, strict=True)) if data.others else parts[0]
