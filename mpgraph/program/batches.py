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
MISSING = -100  # the label of an example without a target, as in torch's losses
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
        online: whether a batch is one tick, at which targets may be missing.
        sequences: whether a batch has any number of ticks; targets may be missing as well.
        given: inputs and variants: what ``x`` holds in a step.
        shapes: of one example, by name.
        names: of inputs and targets, in the order of :meth:`tensors`.
        fed_shapes: of all tensors, of one example, in that order.
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
        self.online, self.sequences = graph.online, graph.sequences
        self.given = (*self.inputs, *self.variants)
        self.ticks = (network.ticks,) if network.ticks > 1 else ()
        self.shapes: dict[str, tuple[int, ...]] = {
            name: (*(self.ticks if name in self.inputs else ()), *graph.nodes[name].shape)
            for name in (*self.inputs, *self.targets)
        }
        self.shapes |= {name: self.shapes[name.rpartition(".")[0]] for name in self.variants}
        self.fed_shapes = [self.shapes[name.removesuffix(".target")] for name in self.names]
        self.fed_shapes += [()] * len(self.targets) * (self.online or self.sequences)
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

    def fed(self, x: Any, y: Any, *, learning: bool = True) -> tuple[list[Tensor], int, int | None]:
        """What a step or a prediction takes, the number of examples and, of a program of sequences, that of ticks."""
        if self.sequences:
            return self.sequence(x, y, learning=learning)
        return (*self.tensors(x, y, learning=learning), None)

    def is_sequence(self, x: Any) -> bool:
        """Whether an input has a dimension of ticks, of a program whose step is one tick."""
        fed = x if isinstance(x, Mapping) else dict.fromkeys(self.inputs[:1], x)
        return any(
            isinstance(tensor, Tensor) and name in self.inputs and tensor.ndim == len(self.shapes[name]) + 2
            for name, tensor in fed.items()
        )

    def sequence(self, x: Any, y: Any, *, learning: bool = True) -> tuple[list[Tensor], int, int]:
        """The same as :meth:`tensors` of a sequence, with ticks after the batch, and their number.

        Targets without ticks are those of the last tick.

        Raises:
            InputError: for a batch that does not fit.
        """
        names, tensors = (self.given if learning else self.inputs), list[Tensor]()
        alone = (x,) if isinstance(x, Tensor) and len(names) == 1 else None
        ticks = 0
        for name, tensor in zip(names, alone or checks.by_name("x", x, names, "input"), strict=True):
            called = "x" if len(names) == 1 else f"x[{name!r}]"
            if not tensors:
                ticks = checks.ticks(name, tensor, self.shapes[name], called)
            shape = (ticks, *self.shapes[name])
            if tensors and isinstance(tensor, Tensor) and tensor.ndim > 1 and tensor.shape[1] != ticks:
                checks.lengths(f"input {name!r}", tensor.shape[1], ticks)
            checks.input(name, tensor, shape, self.dtype, self.device, called, True)
            if self.values == "all" and not inside_transform():
                checks.finite(name, tensor)
            tensors.append(tensor)
        size = checks.one_size(names, tensors)
        if not learning:
            return tensors, size, ticks
        if size == 1 and self.normalized:
            checks.one_value(self.normalized)
        if not self.targets:
            if y is not None:
                raise InputError("y was given, but the network has no loss that could use it")
            return tensors, size, ticks
        given = (y,) if isinstance(y, Tensor) and len(self.targets) == 1 else None
        none = dict.fromkeys(self.targets) if y is None else y
        told = []
        for name, tensor in zip(self.targets, given or checks.by_name("y", none, self.targets, "output"), strict=True):
            flat, there = self._present(name, self._at_every_tick(name, tensor, size, ticks), size * ticks)
            flat = self._target(name, flat, size * ticks, there)
            tensors.append(flat.unflatten(0, (size, ticks)))
            told.append(there.unflatten(0, (size, ticks)))
        return tensors + told, size, ticks

    def _at_every_tick(self, name: str, tensor: Any, size: int, ticks: int) -> Any:
        """Targets of all ticks, one after the other; where they have none, they are those of the last tick."""
        if not isinstance(tensor, Tensor) or tensor.layout is not torch.strided or not tensor.ndim:
            return tensor
        labels = tensor.dtype in checks.LABELS
        rest = () if labels and tensor.ndim < 3 else self.shapes[name]
        if tensor.ndim == len(rest) + 1:
            tensor = tensor.long() if labels else tensor  # some integers cannot be -100
            none = tensor.new_full((len(tensor), ticks - 1, *tensor.shape[1:]), MISSING if labels else math.nan)
            tensor = torch.cat([none, tensor[:, None]], 1)
        if tensor.ndim > 1 and tensor.shape[0] == size and tensor.shape[1] != ticks:
            checks.lengths(f"target of {name!r}", tensor.shape[1], ticks)
        if tensor.ndim != len(rest) + 2 or len(tensor) != size:
            checks.target_of_sequence(name, tensor, size, ticks, self.shapes[name])
        return tensor.flatten(0, 1)

    def tensors(self, x: Any, y: Any, *, learning: bool = True) -> tuple[list[Tensor], int]:
        """Inputs and targets in order, and the number of examples; only inputs where nothing is learned.

        Of a program whose step is one tick, then one number for each example and target: one where there is a target,
        zero where it is missing.

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
        size = checks.one_size(names, tensors)
        if not learning:
            return tensors, size
        if size == 1 and self.normalized:
            checks.one_value(self.normalized)
        if self.targets:
            given = (y,) if isinstance(y, Tensor) and len(self.targets) == 1 else None
            none = dict.fromkeys(self.targets) if y is None and self.online else y
            found = given or checks.by_name("y", none, self.targets, "output")
            told = []
            for name, tensor in zip(self.targets, found, strict=True):
                there = None
                if self.online:
                    tensor, there = self._present(name, tensor, size)
                    told.append(there)
                tensors.append(self._target(name, tensor, size, there))
            tensors += told
        elif y is not None:
            raise InputError("y was given, but the network has no loss that could use it")
        return tensors, size

    def _present(self, name: str, tensor: Any, size: int) -> tuple[Any, Tensor]:
        """A target with zeros where it is missing, and which examples have one."""
        like: Any = {"device": self.device, "dtype": self.dtype}
        if tensor is None:
            return torch.zeros((size, *self.shapes[name]), **like), torch.zeros(size, **like)
        if isinstance(tensor, Tensor) and tensor.ndim and tensor.layout is torch.strided:
            labels = tensor.dtype in checks.LABELS - {torch.uint8}
            missing = tensor == MISSING if labels else tensor.isnan().flatten(1).any(1) if tensor.ndim > 1 else None
            if missing is not None and missing.ndim == 1:
                hidden = missing.reshape(-1, *(1 for _ in tensor.shape[1:]))
                return tensor.masked_fill(hidden, 0), 1 - missing.to(self.dtype)
        return tensor, torch.ones(size, **like)

    def _target(self, name: str, tensor: Any, size: int, there: Tensor | None = None) -> Tensor:
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
        checks.target(name, tensor, size, self.shapes[name], self.dtype, self.device, called, sum(self.ticks))
        if self.values != "none" and not inside_transform():
            given = tensor if there is None else tensor[there > 0]
            for node in self.losses:
                problem = node.loss.problem(given) if node.pre == name and len(given) else None
                if problem:
                    raise InputError(f"target of {name!r}, loss {node.name!r}: {problem}")
        return tensor

    def _one_hot(self, labels: Tensor, classes: int) -> Tensor:
        """A row for each label; one out of range is an error of torch's on the CPU."""
        if classes in self._tables:
            return self._tables[classes].index_select(0, labels.long())
        rows = torch.zeros((labels.shape[0], classes), device=self.device, dtype=self.dtype)
        return rows.scatter(1, labels.long()[:, None], 1.0)
