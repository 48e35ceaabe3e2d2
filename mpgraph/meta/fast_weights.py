"""Fast weights by Hebb and by Oja, baselines of learned learning: slow weights are learned over tasks, fast in each.

Schmidhuber (1992), "Learning to control fast-weight memories", has the two kinds of weights; Miconi, Stanley and Clune
(2018), "Differentiable plasticity", has their sum with a learned coefficient for each synapse, and both rules. Kirsch
and Schmidhuber (2021) hold VS-ML against them; errors and labels are inputs here, as there.
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

COEFFICIENT, RATE = 0.01, -4.5  # where training begins; sigmoid(-4.5) is 0.011


class FastWeights(Told):
    """An episode in which one layer with slow and fast weights takes the place of a network and its rule.

    With ``x`` the image, its error and its label, side by side, and ``y`` the softmax of the prediction (for another
    loss its inverse link, if it has one)::

        prediction = (slow + coefficient * F) x + bias
        hebb: F <- (1 - eta) F + eta y x        oja: F <- F + eta y (x - y F)

    Each example is run twice: with error and label zero to predict, then with them, for the change of ``F``. ``slow``,
    ``coefficient``, ``bias`` and ``eta``, the sigmoid of ``rate``, are meta-parameters; ``F`` begins with zeros in
    each task.

    Args:
        inputs: numbers in an input.
        outputs: numbers of a prediction, for class labels the classes.
        rule: ``hebb`` or ``oja``.
        loss: of predictions, as of a network.
        terms: of the meta-loss; all but ``size``.
        penalised: pattern of the names of meta-parameters in ``l1``.
        seed: of the initial slow weights, uniform up to one over the root of the inputs as in ``torch.nn.Linear``.
        device: where it runs.
        dtype: of its numbers; torch's default if not given.

    Raises:
        InputError: for an argument that is not of its kind, tasks with another number of inputs, or when it is asked
            for a rule of a network: it has none.
    """

    name = "fast_weights"

    def __init__(
        self,
        inputs: int,
        outputs: int,
        rule: Literal["hebb", "oja"] = "oja",
        loss: str = "cross_entropy",
        terms: Mapping[str, float] | None = None,
        penalised: str = "*",
        *,
        seed: int = 0,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(inputs, outputs, loss, terms, penalised, device=device, dtype=dtype)
        check = Arguments("FastWeights", InputError)
        self.rule = check.choice("rule", rule, ("hebb", "oja"))
        parts, wide = self._loss.split(), inputs + 2 * outputs
        self._link = None if parts is None else parts[0]
        generator = generator_of(check.seed("seed", seed), "fast_weights")
        slow = (2.0 * torch.rand(outputs, wide, generator=generator, dtype=torch.float64) - 1.0) / math.sqrt(wide)
        begin = {
            "slow": slow, "coefficient": torch.full((outputs, wide), COEFFICIENT), "bias": torch.zeros(outputs),
            "rate": torch.tensor(RATE),
        }  # fmt: skip
        self._weights = {name: tensor.to(self.device, self.dtype) for name, tensor in begin.items()}

    def describe(self) -> str:  # noqa: D102
        return f"FastWeights({self.inputs}, {self._classes}, {self.rule!r})"

    def fresh(self, x: Tensor) -> Memory:  # noqa: D102
        return {"F": x.new_zeros(*x.shape[:-1], self._classes, self.inputs + 2 * self._classes)}

    def see(self, own: Parameters, memory: Memory, x: Tensor) -> tuple[Memory, Tensor]:  # noqa: D102
        nothing = x.new_zeros(*x.shape[:-1], 2 * self._classes)
        return memory, self._run(own, memory, torch.cat([x, nothing], -1))

    def tell(self, own: Parameters, memory: Memory, x: Tensor, prediction: Tensor, target: Tensor) -> Memory:  # noqa: D102
        x = torch.cat([x, self._error(prediction, target), target])
        y, fast, eta = self._run(own, memory, x), memory["F"], torch.sigmoid(own["rate"])
        y = (y if self._link is None else self._link.apply(y))[:, None]
        if self.rule == "hebb":
            return {"F": (1.0 - eta) * fast + eta * y * x}
        return {"F": fast + eta * y * (x - y * fast)}

    def _run(self, own: Parameters, memory: Memory, x: Tensor) -> Tensor:
        return functional.linear(x, own["slow"] + own["coefficient"] * memory["F"], own["bias"])
