"""The tasks that rules are compared on by name: their sizes, and what a newcomer gets without further options."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from mpgraph import data
from mpgraph.errors import FileError, InputError, unknown
from mpgraph.network.network import Network


@dataclass(frozen=True)
class Task:
    """A data set of :func:`mpgraph.data.load` with what fits it.

    Attributes:
        name: of the data set.
        shape: of one example.
        outputs: units that a network for it ends with: those of its first output.
        hidden: units of the hidden layers of an mlp.
        epochs: passes over the training set.
        numbers: whether targets are numbers rather than classes.
        heads: further outputs, by name the number of their units and their loss.
        online: whether examples come one at a time and each once, whatever the batch and epochs of a comparison.
    """

    name: str
    shape: tuple[int, ...]
    outputs: int
    hidden: tuple[int, ...]
    epochs: int
    numbers: bool = False
    heads: Mapping[str, tuple[int, str]] = field(default_factory=dict)
    online: bool = False

    @property
    def row(self) -> int:
        """Numbers that a recurrent network gets at each tick: the last axis of an example."""
        return self.shape[-1]

    def given(self) -> dict[str, Any]:
        """Arguments of architectures that the task decides."""
        found: dict[str, Any] = {"inputs": math.prod(self.shape), "outputs": self.outputs}
        found["loss"] = "l2" if self.numbers else "cross_entropy"
        if not self.numbers:
            found["classes"] = self.outputs
        if self.heads:
            found["heads"] = self.heads
        if len(self.shape) == 3:
            found["image"] = self.shape
        if len(self.shape) > 1:
            found["ticks"] = math.prod(self.shape) // self.row
        return found

    def load(
        self, root: Any = None, *, seed: int, raw: bool = False, limit: int | None = None, progress: bool = False
    ) -> data.Dataset:
        """The data, with inputs standardised unless ``raw``, and at most ``limit`` training examples.

        Raises:
            FileError: for files that are missing or damaged, or hold another number of classes.
        """
        found = data.load(self.name, root, seed=seed, standardise=not raw, progress=progress)
        classes = 0 if self.numbers else self.outputs
        if found.classes != classes:
            raise FileError(f"{self.name} has {classes} classes, its files {found.classes}")
        return found.head(limit) if limit else found


TASKS = {
    task.name: task
    for task in (
        Task("digits", (1, 8, 8), 10, (32,), 20),
        Task("digits_redrawn", (1, 8, 8), 10, (32,), 20, heads={"image": (64, "l2")}),
        Task("mnist", (1, 28, 28), 10, (128,), 2),
        Task("fashion_mnist", (1, 28, 28), 10, (128,), 2),
        Task("emnist47", (1, 28, 28), 47, (256, 256), 12),
        Task("omniglot", (1, 28, 28), 964, (256,), 10),
        Task("digits_5way", (1, 8, 8), 5, (32,), 1, online=True),
        Task("emnist47_5way", (1, 28, 28), 5, (170, 130, 100, 70), 1, online=True),
        Task("xor", (2,), 2, (16,), 20),
        Task("delayed_cue", (10, 3), 2, (32,), 20),
        Task("teacher", (16,), 4, (64,), 20, numbers=True),
        Task("mackey_glass", (4,), 1, (32,), 20, numbers=True),
    )
}


def task_named(name: str) -> Task:
    """The task of that name.

    Raises:
        InputError: for an unknown one.
    """
    if name not in TASKS:
        raise InputError(unknown("task", name, TASKS))
    return TASKS[name]


def fitted(found: data.Dataset, network: Network) -> data.Dataset:
    """The data with each example in the shape of the network's input, if it has as many numbers, and targets likewise.

    An image becomes a row of pixels for an input of one axis, and for a network that runs for several ticks a sequence
    of such rows.

    Raises:
        InputError: for several inputs, outputs other than those that there are targets for, or other numbers of
            numbers.
    """
    inputs = [unit for unit in network.units.values() if unit.is_input]
    if len(inputs) != 1:
        raise InputError(
            f"rules are compared on networks with one input; this one has the inputs "
            f"{_names(unit.name for unit in inputs)}"
        )
    shape = (network.ticks,) * (network.ticks > 1) + tuple(inputs[0].shape)
    if math.prod(shape) != math.prod(found.shape):
        raise InputError(
            f"data set {found.name!r}: an example of shape {found.shape} does not fit the input {inputs[0].name!r}, "
            f"which takes {shape}"
        )
    free = [name for name in network.outputs if name not in found.others]
    if len(free) != 1 or len(network.outputs) != 1 + len(found.others):
        raise InputError(
            f"data set {found.name!r} has targets for {_targets(found)}, the network has the outputs "
            f"{_names(network.outputs)}. mlp makes those of a task; a network of your own is FILE.py:FUNCTION"
        )
    found = replace(found, output=free[0])
    return replace(
        found,
        train_x=found.train_x.reshape(-1, *shape),
        test_x=found.test_x.reshape(-1, *shape),
        **_shaped(found, network),
    )


def _shaped(found: data.Dataset, network: Network) -> dict[str, Any]:
    """All targets in the shape of their outputs."""
    made = {}
    for name, one in found.targets.items():
        shape = network.shape(name)
        wanted = one.classes or math.prod(one.train.shape[1:])
        if math.prod(shape) != wanted:
            raise InputError(
                f"data set {found.name!r} needs {wanted} outputs, the network's {name!r} has {math.prod(shape)}"
            )
        train, test = (part if one.classes else part.reshape(-1, *shape) for part in one[:2])
        made[name] = data.Targets(train, test, one.classes)
    own = made.pop(found.output)
    return {"train_y": own.train, "test_y": own.test, "others": made}


def _targets(found: data.Dataset) -> str:
    """The outputs that a data set has targets for: the first belongs to whatever output is left."""
    return f"{_names(found.others)} and one more output" if found.others else "one output"


def _names(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names)) or "(none)"
