"""Episodes without a rule: one learner of its own design predicts online and is told what was right."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from mpgraph.agents.protocol import Protocol
from mpgraph.arguments import Arguments
from mpgraph.errors import InputError
from mpgraph.network import losses
from mpgraph.program.program import State
from mpgraph.serialization.atomic import write
from mpgraph.serialization.tensors import packed, read

from .episode import TERMS, Episode, Parameters, checked_terms, mapped
from .task import TaskBatch

Memory = Mapping[str, Tensor]  # what one learner knows of its task


class Told(Episode):
    """An episode in which a learner takes the place of a network and its rule.

    Its weights are the meta-parameters, the same for every task. The examples of a batch come one after the other: it
    sees an input (:meth:`see`), predicts, and is told the target (:meth:`tell`). Asked for a prediction of the query,
    it sees each question from where it is, and nothing is kept of it.

    Class attributes:
        name: of the protocol in settings, and of the file in a saved folder.

    Args:
        inputs: numbers in an input.
        outputs: numbers of a prediction, for class labels the classes.
        loss: of predictions, as of a network.
        terms: of the meta-loss; all but ``size``.
        penalised: pattern of the names of meta-parameters in ``l1``.
        device: where it runs.
        dtype: of its numbers; torch's default if not given.

    Raises:
        InputError: for an argument that is not of its kind, tasks with another number of inputs, or when it is asked
            for a rule: it has none.
    """

    name: ClassVar[str]

    def __init__(
        self,
        inputs: int,
        outputs: int,
        loss: str = "cross_entropy",
        terms: Mapping[str, float] | None = None,
        penalised: str = "*",
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
    ) -> None:
        owner = type(self).__name__
        check = Arguments(owner, InputError)
        self.inputs, self._classes = check.integer("inputs", inputs, 1), check.integer("outputs", outputs, 1)
        self.device, self.dtype = torch.device(device), dtype or torch.get_default_dtype()
        self.terms = checked_terms(owner, terms, tuple(term for term in TERMS if term != "size"))
        self.penalised, self.pool, self._prior, self._loss = penalised, None, {}, losses.loss(loss)
        self._weights: dict[str, Tensor] = {}

    @abstractmethod
    def fresh(self, x: Tensor) -> Memory:
        """What it knows before the first example; zeros ``(*x.shape[:-1], ...)``, like ``x`` in type and place."""

    @abstractmethod
    def see(self, own: Parameters, memory: Memory, x: Tensor) -> tuple[Memory, Tensor]:
        """Memory after an input ``(inputs,)`` and the prediction ``(outputs,)``; ``x`` may be many, each by itself."""

    @abstractmethod
    def tell(self, own: Parameters, memory: Memory, x: Tensor, prediction: Tensor, target: Tensor) -> Memory:
        """Memory after it is told the target of the input that it saw last."""

    def parameters(self) -> dict[str, Tensor]:  # noqa: D102
        return dict(self._weights)

    def begin(self, batch: TaskBatch) -> State:  # noqa: D102
        owner, inputs = type(self).__name__, batch.x.shape[3:].numel()
        if inputs != self.inputs:
            raise InputError(f"{owner} has {self.inputs} inputs, the tasks {inputs}")
        return {self.name: dict(self.fresh(batch.x.new_zeros(len(batch.seeds), inputs, dtype=self.dtype)))}

    def describe(self) -> str:  # noqa: D102
        return f"{type(self).__name__}({self.inputs}, {self._classes})"

    def protocol(self, parameters: Parameters) -> Protocol:  # noqa: D102
        raise InputError(f"{type(self).__name__} is a learner of its own: there is no rule; use its parameters()")

    def save(self, parameters: Parameters, folder: Path, record: Mapping[str, Any]) -> None:  # noqa: D102
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {name: parameters[name].detach() for name in self._weights}
        told = {"record": json.dumps(dict(record), sort_keys=True)}
        write(folder / self.file(), packed(self._format(), tensors, told))

    @classmethod
    def file(cls) -> str:
        """The name of its file in a saved folder."""
        return f"{cls.name}.safetensors"

    @classmethod
    def record(cls, folder: Path) -> dict[str, Any]:
        """The training record of a saved one."""
        return dict(json.loads(read(folder / cls.file(), cls._format(), ("record",))[1]["record"]))

    def load(self, folder: Path) -> dict[str, Tensor]:  # noqa: D102
        tensors, _ = read(folder / self.file(), self._format(), ("record",))
        return {name: tensors[name].to(self.device, self.dtype) for name in self._weights}

    @torch.no_grad()
    def predictions(self, parameters: Parameters, x: Tensor, y: Tensor) -> Tensor:
        """What it predicts of the examples of a stream, each before its target is told ``(examples, outputs)``.

        Args:
            parameters: the meta-parameters by name.
            x: ``(examples, *input)``.
            y: class labels ``(examples,)``, or targets ``(examples, outputs)``.
        """
        x = x.flatten(1)
        return self._stream(parameters, self.fresh(x[0]), x, self._target(y))[1]

    # -- one inner step of all tasks ------------------------------------------------------------------------------

    @classmethod
    def _format(cls) -> str:
        return f"mpgraph.{cls.name}"

    def _target(self, y: Tensor) -> Tensor:
        return y.flatten(1) if y.is_floating_point() else functional.one_hot(y, self._classes).to(self.dtype)

    def _error(self, prediction: Tensor, target: Tensor) -> Tensor:
        """The derivative of the loss of one example by its prediction."""
        return self._loss.gradient(prediction[None], target[None])[0]

    def _stream(self, own: Parameters, memory: Memory, x: Tensor, target: Tensor) -> tuple[Memory, Tensor]:
        found = []
        for one, wanted in zip(x, target, strict=True):
            memory, prediction = self.see(own, memory, one)
            memory = self.tell(own, memory, one, prediction, wanted)
            found.append(prediction)
        return memory, torch.stack(found)

    def _step(
        self, parameters: Parameters, each: bool, state: State, x: Tensor, y: Tensor, seeds: list[int], at: list[int]
    ) -> tuple[State, Tensor]:
        def one(state: State, x: Tensor, y: Tensor, own: Parameters = parameters) -> tuple[State, Tensor]:
            target = self._target(y)
            memory, predictions = self._stream(own, state[self.name], x.flatten(1), target)
            return {self.name: dict(memory)}, self._loss.apply(predictions, target).mean()

        return mapped(one, state, x, y, *([parameters] if each else []))

    def _asked(self, parameters: Parameters, each: bool, state: State, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        def one(state: State, x: Tensor, y: Tensor, own: Parameters = parameters) -> tuple[Tensor, Tensor]:
            prediction = self.see(own, state[self.name], x.flatten(1))[1]
            labels = not y.is_floating_point()
            right = (prediction.argmax(-1) == y).to(prediction.dtype).mean() if labels else prediction.sum() * torch.nan
            return self._loss.apply(prediction, self._target(y)).mean(), right

        return mapped(one, state, x, y, *([parameters] if each else []))
