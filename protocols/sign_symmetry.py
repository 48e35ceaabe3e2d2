"""Sign symmetry.

Liao, Leibo and Poggio (2016), "How important is weight symmetry in backpropagation?", AAAI; Xiao, Chen, Liao and Poggio
(2019), "Biologically-plausible learning algorithms can scale to large datasets", ICLR. Feedback weights have at every
moment the signs of the forward weights, and magnitudes of their own:

    backward    e_i = f'(z_i) sum_j m_ji sign(w_ji) e_j

Magnitudes are ``"uniform"``, one number for all synapses of a connection, or ``"fixed"``, drawn once for each. The
papers take 1 and let a normalisation repair the scale of the error; here the number is the deviation that a weight
begins with, sqrt(2 / (fan_in + fan_out)), and drawn magnitudes are those of another such weight. A weight of zero sends
nothing.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import mpgraph as mg
from mpgraph import common, slow
from mpgraph.agents.initializers import Sized

from .backprop import Backprop, Weight


def _deviation(shape: tuple[int, ...], node: Sized, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
    """That of Xavier-uniform weights."""
    return torch.full(shape, (2.0 / max(1, node.fan_in + node.fan_out)) ** 0.5, dtype=dtype, device="cpu")


def _magnitude(shape: tuple[int, ...], node: Sized, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
    """Of Xavier-uniform weights."""
    return mg.xavier_uniform(shape, node, generator, dtype).abs()


class UniformWeight(Weight):
    """A synapse through which errors travel with the sign of its weight, all equally strong."""

    m = common(init=_deviation)

    def backward_message(self, s: mg.View) -> Any:
        """m sign(w) e, summed over j on its way to unit i."""
        return s.m * (torch.sign(s.w) * s.e)


class FixedWeight(UniformWeight):
    """The same with a strength of its own."""

    m = slow(init=_magnitude, frozen=True)


class SignSymmetry(Backprop):
    """Gradient descent with errors sent through the signs of the weights.

    Args:
        lr: learning rate of plain gradient descent, a float or ``mg.learnable(0.1)``; ignored with ``optimizer``.
        magnitudes: ``"uniform"`` or ``"fixed"``.
        optimizer: another inner optimiser.
        surrogate: activation whose derivative stands in for units that have none (a step).

    Raises:
        ProtocolError: for other magnitudes.
    """

    source = """
@inproceedings{liao2016important,
  title={How important is weight symmetry in backpropagation?},
  author={Liao, Qianli and Leibo, Joel Z. and Poggio, Tomaso},
  booktitle={AAAI Conference on Artificial Intelligence}, year={2016}
}
@inproceedings{xiao2019biologically,
  title={Biologically-plausible learning algorithms can scale to large datasets},
  author={Xiao, Will and Chen, Honglin and Liao, Qianli and Poggio, Tomaso},
  booktitle={International Conference on Learning Representations}, year={2019}
}"""

    def __init__(
        self,
        lr: Any = 0.1,
        *,
        magnitudes: str = "uniform",
        optimizer: mg.Optimizer | None = None,
        surrogate: str | None = None,
        **agents: mg.Agent,
    ) -> None:
        kinds = {"uniform": UniformWeight, "fixed": FixedWeight}
        if magnitudes not in kinds:
            raise mg.ProtocolError(f"magnitudes={magnitudes!r}: allowed are {', '.join(kinds)}")
        own: dict[str, Any] = {"weight": kinds[magnitudes](), "input_weight": Weight(), "bias": Weight()}
        super().__init__(lr, optimizer=optimizer, surrogate=surrogate, **{**own, **agents})
        self.magnitudes = magnitudes

    def extra_repr(self) -> str:
        """Arguments, for ``repr``."""
        return f"{super().extra_repr()}, magnitudes={self.magnitudes!r}"
