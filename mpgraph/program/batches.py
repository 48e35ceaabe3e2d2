"""From what is passed as ``x`` and ``y`` to the tensors that the generated code takes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mpgraph.environment import inside_transform
from mpgraph.errors import InputError
from mpgraph.graph.wiring import AgentGraph
from mpgraph.network.normalization import BatchNorm

from . import checks

Batch = Tensor | Mapping[str, Tensor]
TABLE = 512  # classes up to which one-hot rows are looked up in a table; more of them are written for each batch


class Batches:
    """Inputs and targets of a network, as a program's code takes them.

    Args:
        graph: of the network.
        device, dtype: of the tensors.
        values: which values eager calls inspect, see :func:`mpgraph.compile`.
        slices: how many processes have a slice of the batch each.

    Attributes:
        inputs, targets: names, in order.
        variants: of inputs that steps are given as well, such as ``x.second`` (:func:`mpgraph.fed`).
        given: inputs and variants: what ``x`` holds in a step.
        shapes: of one example, by name.
        names: of all tensors, in the order of :meth:`tensors`.
        normalized: units that a batch of one example gives one value for each channel to normalize; not those of
            rules whose agents leave the normalization out, which keep no averages of it.
    """

    def __init__(
        self, graph: AgentGraph, device: torch.device, dtype: torch.dtype, values: str, slices: int = 1
    ) -> None:
        network = graph.network
        self.device, self.dtype, self.losses = device, dtype, tuple(network.losses.values())
        self.values = "none" if device.type == "meta" else values  # which has shapes, but no values
        self.inputs = tuple(network.inputs)
        self.targets = tuple(dict.fromkeys(node.pre for node in network.losses.values()))
        self.names = tuple(graph.fed())
        self.variants = self.names[len(self.inputs) : len(self.names) - len(self.targets)]
        self.given = (*self.inputs, *self.variants)
        self.ticks = (network.ticks,) if network.ticks > 1 else ()
        self.shapes: dict[str, tuple[int, ...]] = {
            name: (*(self.ticks if name in self.inputs else ()), *graph.nodes[name].shape)
            for name in (*self.inputs, *self.targets)
        }
        self.shapes |= {name: self.shapes[name.rpartition(".")[0]] for name in self.variants}
        self._classes = {name: math.prod(self.shapes[name]) for name in self.targets if len(self.shapes[name]) == 1}
        self._tables = {n: torch.eye(n, device=device, dtype=dtype) for n in self._classes.values() if 1 < n <= TABLE}
        self.normalized = [
            name
            for name, unit in network.units.items()
            if slices == 1
            and isinstance(unit.activation, BatchNorm)
            and math.prod(graph.nodes[name].shape[1:]) == 1
            and unit.activation.kept.keys() <= graph.channels[name].keys()
        ]

    def tensors(self, x: Any, y: Any, *, learning: bool = True) -> tuple[list[Tensor], int]:
        """Inputs and targets in order, and the number of examples; only inputs where nothing is learned.

        Raises:
            InputError: for a batch that does not fit.
        """
        tensors: list[Tensor] = []
        names = self.given if learning else self.inputs
        alone = (x,) if isinstance(x, Tensor) and len(names) == 1 else None
        for name, tensor in zip(names, alone or checks.by_name("x", x, names, "input"), strict=True):
            shape: Any = tensor.shape if isinstance(tensor, Tensor) else ()
            if (
                shape[1:] != self.shapes[name]
                or tensor.dtype != self.dtype
                or tensor.device != self.device
                or tensor.layout is not torch.strided
                or not shape[0]
            ):
                called = "x" if len(names) == 1 else f"x[{name!r}]"
                checks.input(name, tensor, self.shapes[name], self.dtype, self.device, called, bool(self.ticks))
            if self.values == "all" and not inside_transform():
                checks.finite(name, tensor)
            tensors.append(tensor)
        size = tensors[0].shape[0]
        for name, tensor in zip(names[1:], tensors[1:], strict=True):
            if tensor.shape[0] != size:
                raise InputError(f"input {name!r} has {tensor.shape[0]} examples, {names[0]!r} has {size}")
        if not learning:
            return tensors, size
        if size == 1 and self.normalized:
            checks.one_value(self.normalized)
        if self.targets:
            given = (y,) if isinstance(y, Tensor) and len(self.targets) == 1 else None
            found = given or checks.by_name("y", y, self.targets, "output")
            for name, tensor in zip(self.targets, found, strict=True):
                tensors.append(self._target(name, tensor, size))
        elif y is not None:
            raise InputError("y was given, but the network has no loss that could use it")
        return tensors, size

    def _target(self, name: str, tensor: Any, size: int) -> Tensor:
        """Targets as numbers of the program's dtype; class labels become one-hot vectors."""
        classes = self._classes.get(name, 1)
        if (
            classes > 1
            and isinstance(tensor, Tensor)
            and tensor.shape == (size,)
            and tensor.dtype in checks.LABELS
            and tensor.layout is torch.strided
        ):
            if inside_transform() or (self.values == "none" and self.device.type != "cpu"):
                return self._one_hot(tensor, classes)
            return checks.labels(name, tensor, classes, self.device, self._one_hot)
        called = "y" if len(self.targets) == 1 else f"y[{name!r}]"
        checks.target(name, tensor, size, self.shapes[name], self.dtype, self.device, called)
        if self.values != "none" and not inside_transform():
            for node in self.losses:
                problem = node.loss.problem(tensor) if node.pre == name else None
                if problem:
                    raise InputError(f"target of {name!r}, loss {node.name!r}: {problem}")
        return tensor

    def _one_hot(self, labels: Tensor, classes: int) -> Tensor:
        """A row for each label; one out of range is an error of torch's on the CPU."""
        if classes in self._tables:
            return self._tables[classes].index_select(0, labels.long())
        rows = torch.zeros((labels.shape[0], classes), device=self.device, dtype=self.dtype)
        return rows.scatter(1, labels.long()[:, None], 1.0)
