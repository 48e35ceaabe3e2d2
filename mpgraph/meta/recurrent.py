"""MetaRNN, the baseline of learned learning: one recurrent network that is told its errors and predicts online.

Hochreiter, Younger and Conwell (2001), "Learning to learn using gradient descent". Its weights are the meta-parameters
and are the same for every task; what it learns of a task is in its activations.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

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
from .randomness import generator_of
from .task import TaskBatch

NAME = "meta_rnn"  # in settings, the name of a protocol
FILE, FORMAT = "meta_rnn.safetensors", "mpgraph.meta_rnn"


class MetaRNN(Episode):
    """An episode in which an LSTM takes the place of a network and its rule.

    For each example it gets the input, and the error (or the target) of the example before; its output layer predicts.
    The examples of a batch come one after the other. Asked for a prediction of the query, it makes one step from where
    it is, for each question by itself.

    Args:
        inputs: numbers in an input.
        outputs: numbers of a prediction, for class labels the classes.
        hidden: LSTM cells.
        loss: of predictions, as of a network.
        terms: of the meta-loss; all but ``size``.
        penalised: pattern of the names of meta-parameters in ``l1``.
        told: ``error``, the derivative of the loss by the prediction, or ``label``, the target.
        seed: of the initial weights, uniform up to one over the root of ``hidden`` as in ``torch.nn.LSTM``.
        device: where it runs.
        dtype: of its numbers; torch's default if not given.

    Raises:
        InputError: for an argument that is not of its kind, tasks with another number of inputs, or when it is asked
            for a rule: it has none.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        hidden: int = 64,
        loss: str = "cross_entropy",
        terms: Mapping[str, float] | None = None,
        penalised: str = "*",
        *,
        told: Literal["error", "label"] = "error",
        seed: int = 0,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
    ) -> None:
        check = Arguments("MetaRNN")
        self.inputs, self._classes = check.integer("inputs", inputs, 1), check.integer("outputs", outputs, 1)
        self.hidden, self.told = check.integer("hidden", hidden, 1), check.choice("told", told, ("error", "label"))
        self.device, self.dtype = torch.device(device), dtype or torch.get_default_dtype()
        self.terms = checked_terms("MetaRNN", terms, tuple(term for term in TERMS if term != "size"))
        self.penalised, self.pool, self._prior, self._loss = penalised, None, {}, losses.loss(loss)
        generator, bound = generator_of(check.seed("seed", seed), "meta_rnn"), 1.0 / math.sqrt(hidden)
        shapes = {
            "input": (4 * hidden, inputs + outputs), "recurrent": (4 * hidden, hidden), "bias": (4 * hidden,),
            "output": (outputs, hidden), "output_bias": (outputs,),
        }  # fmt: skip
        self._weights = {
            name: ((2.0 * torch.rand(shape, generator=generator, dtype=torch.float64) - 1.0) * bound).to(
                self.device, self.dtype
            )
            for name, shape in shapes.items()
        }

    def parameters(self) -> dict[str, Tensor]:  # noqa: D102
        return dict(self._weights)

    def begin(self, batch: TaskBatch) -> State:  # noqa: D102
        if batch.x.shape[3:].numel() != self.inputs:
            raise InputError(f"MetaRNN has {self.inputs} inputs, the tasks {batch.x.shape[3:].numel()}")
        sizes, many = {"h": self.hidden, "c": self.hidden, "told": self._classes}, len(batch.seeds)
        return {"lstm": {name: batch.x.new_zeros(many, n, dtype=self.dtype) for name, n in sizes.items()}}

    def describe(self) -> str:  # noqa: D102
        return f"MetaRNN({self.inputs}, {self._classes}, {self.hidden}, told={self.told!r})"

    def protocol(self, parameters: Parameters) -> Protocol:  # noqa: D102
        raise InputError("MetaRNN is a network that learns by its activations: there is no rule; use its parameters()")

    def save(self, parameters: Parameters, folder: Path, record: Mapping[str, Any]) -> None:  # noqa: D102
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {name: parameters[name].detach() for name in self._weights}
        write(folder / FILE, packed(FORMAT, tensors, {"record": json.dumps(dict(record), sort_keys=True)}))

    @staticmethod
    def record(folder: Path) -> dict[str, Any]:
        """The training record of a saved one."""
        return dict(json.loads(read(folder / FILE, FORMAT, ("record",))[1]["record"]))

    def load(self, folder: Path) -> dict[str, Tensor]:  # noqa: D102
        tensors, _ = read(folder / FILE, FORMAT, ("record",))
        return {name: tensors[name].to(self.device, self.dtype) for name in self._weights}

    @torch.no_grad()
    def predictions(self, parameters: Parameters, x: Tensor, y: Tensor) -> Tensor:
        """What it predicts of the examples of a stream, each before its target is told ``(examples, outputs)``.

        Args:
            parameters: the meta-parameters by name.
            x: ``(examples, *input)``.
            y: class labels ``(examples,)``, or targets ``(examples, outputs)``.
        """
        h, c, told = (x.new_zeros(size) for size in (self.hidden, self.hidden, self._classes))
        found = []
        for example, target in zip(x.flatten(1), self._target(y), strict=True):
            h, c, prediction = self._cell(parameters, {"h": h, "c": c, "told": told}, example)
            told = self._loss.gradient(prediction[None], target[None])[0] if self.told == "error" else target
            found.append(prediction)
        return torch.stack(found)

    # -- one inner step of all tasks ------------------------------------------------------------------------------

    def _cell(self, own: Parameters, state: Mapping[str, Tensor], x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Activations, cells and prediction after an input; ``x`` may be many, each by itself."""
        told = state["told"].expand(*x.shape[:-1], -1)
        gates = functional.linear(torch.cat([x, told], -1), own["input"], own["bias"])
        i, f, g, o = (gates + functional.linear(state["h"], own["recurrent"])).chunk(4, -1)
        c = torch.sigmoid(f) * state["c"] + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(c)
        return h, c, functional.linear(h, own["output"], own["output_bias"])

    def _target(self, y: Tensor) -> Tensor:
        return y.flatten(1) if y.is_floating_point() else functional.one_hot(y, self._classes).to(self.dtype)

    def _step(
        self, parameters: Parameters, each: bool, state: State, x: Tensor, y: Tensor, seeds: list[int], at: list[int]
    ) -> tuple[State, Tensor]:
        def one(state: State, x: Tensor, y: Tensor, own: Parameters = parameters) -> tuple[State, Tensor]:
            now, seen = state["lstm"], []
            for example, target in zip(x.flatten(1), self._target(y), strict=True):
                h, c, prediction = self._cell(own, now, example)
                pair = prediction[None], target[None]
                seen.append(self._loss.apply(*pair)[0])
                now = {"h": h, "c": c, "told": self._loss.gradient(*pair)[0] if self.told == "error" else target}
            return {"lstm": now}, torch.stack(seen).mean()

        return mapped(one, state, x, y, *([parameters] if each else []))

    def _asked(self, parameters: Parameters, each: bool, state: State, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        def one(state: State, x: Tensor, y: Tensor, own: Parameters = parameters) -> tuple[Tensor, Tensor]:
            prediction = self._cell(own, state["lstm"], x.flatten(1))[2]
            labels = not y.is_floating_point()
            right = (prediction.argmax(-1) == y).to(prediction.dtype).mean() if labels else prediction.sum() * torch.nan
            return self._loss.apply(prediction, self._target(y)).mean(), right

        return mapped(one, state, x, y, *([parameters] if each else []))
