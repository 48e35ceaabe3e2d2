"""MetaRNN, the baseline of learned learning: one recurrent network that is told its errors and predicts online.

Hochreiter, Younger and Conwell (2001), "Learning to learn using gradient descent". Its weights are the meta-parameters
and are the same for every task; what it learns of a task is in its activations.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from mpgraph.arguments import Arguments
from mpgraph.errors import InputError

from .episode import Parameters
from .randomness import generator_of
from .told import Memory, Told


class MetaRNN(Told):
    """An episode in which an LSTM takes the place of a network and its rule.

    For each example it gets the input, and the error (or the target) of the example before; its output layer predicts.

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

    name = "meta_rnn"

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
        super().__init__(inputs, outputs, loss, terms, penalised, device=device, dtype=dtype)
        check = Arguments("MetaRNN", InputError)
        self.hidden, self.told = check.integer("hidden", hidden, 1), check.choice("told", told, ("error", "label"))
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

    def describe(self) -> str:  # noqa: D102
        return f"MetaRNN({self.inputs}, {self._classes}, {self.hidden}, told={self.told!r})"

    def fresh(self, x: Tensor) -> Memory:  # noqa: D102
        sizes = {"h": self.hidden, "c": self.hidden, "told": self._classes}
        return {name: x.new_zeros(*x.shape[:-1], size) for name, size in sizes.items()}

    def see(self, own: Parameters, memory: Memory, x: Tensor) -> tuple[Memory, Tensor]:  # noqa: D102
        told = memory["told"].expand(*x.shape[:-1], -1)
        gates = functional.linear(torch.cat([x, told], -1), own["input"], own["bias"])
        i, f, g, o = (gates + functional.linear(memory["h"], own["recurrent"])).chunk(4, -1)
        c = torch.sigmoid(f) * memory["c"] + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(c)
        return {**memory, "h": h, "c": c}, functional.linear(h, own["output"], own["output_bias"])

    def tell(self, own: Parameters, memory: Memory, x: Tensor, prediction: Tensor, target: Tensor) -> Memory:  # noqa: D102
        return {**memory, "told": self._error(prediction, target) if self.told == "error" else target}
