"""Sign symmetry.

Liao, Leibo and Poggio (2016), "How important is weight symmetry in backpropagation?", AAAI; Xiao, Chen, Liao and Poggio
(2019), "Biologically-plausible learning algorithms can scale to large datasets", ICLR. Feedback weights have at every
moment the signs of the forward weights, and magnitudes of their own:

    backward    e_i = f'(z_i) sum_j m_ji sign(w_ji) e_j

Magnitudes are ``"uniform"``, one number for all synapses of a connection, or ``"fixed"``, sampled once for each. The
papers take 1 and let a normalization repair the scale of the error; here the number is the standard deviation of an
initial weight, sqrt(2 / (fan_in + fan_out)), and sampled magnitudes are those of another such weight. A weight of zero
sends nothing.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

import mpgraph as mg
from mpgraph import common, slow
from mpgraph.agents.initializers import Sized
from mpgraph.agents.options import option

from .backprop import Backprop, Weight


def _deviation(shape: tuple[int, ...], node: Sized, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
    """The standard deviation of Xavier-uniform weights."""
    return torch.full(shape, (2.0 / max(1, node.fan_in + node.fan_out)) ** 0.5, dtype=dtype)


def _magnitude(shape: tuple[int, ...], node: Sized, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
    """The magnitude of a Xavier-uniform weight."""
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


MAGNITUDES = {"uniform": UniformWeight, "fixed": FixedWeight}


class SignSymmetry(Backprop):
    """Gradient descent with errors sent through the signs of the weights."""

    magnitudes: Literal["uniform", "fixed"] = option("uniform", "one for a connection, or one for each synapse.")

    agents = {"weight": lambda rule: MAGNITUDES[rule.magnitudes](), "input_weight": Weight, "bias": Weight}
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
