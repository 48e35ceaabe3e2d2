"""Hebb's, Oja's and Sanger's rules: features learned from activities alone, read out by the delta rule.

    Hebb        dw_ji = rate y_j x_i                                        Hebb (1949)
    Oja         dw_ji = rate y_j (x_i - sum_k w_ki y_k)                     Oja (1989), of a subspace
                dw_ji = rate y_j (x_i - w_ji y_j)                           Oja (1982), of each neuron by itself
    Sanger      dw_ji = rate y_j (x_i - sum_{k <= j} w_ki y_k)              Sanger (1989), in the order of the unit
    readout     dw_ji = -lr e_j x_i                                         Widrow and Hoff (1960)

For linear units and centred inputs Hebb's weights grow without bound along the first principal direction, an Oja
neuron settles on it, Oja's subspace form on an orthonormal basis of the principal subspace, and Sanger's on the
principal directions one by one. Here y = f(z) is the activity after the unit's function, whatever it is.

- A unit with a loss is taught: its connections follow the delta rule, with e = dL/dz. All others learn by the local
  rule, and hear no error. ``supervision`` adds -supervision e_j x_i to theirs, with e carried back through the weights.
- A bias follows errors alone; a feature's stays as it is if unsupervised. The rules want centred inputs, not offsets.
- The papers learn from one example at a time; here increments are averaged over a batch. Where an example uses a
  synapse at several places (a convolution's positions, a recurrent one's ticks) local increments are averaged over them
  as well, so that a rate means the same everywhere; errors are summed, as a gradient is.
- Sums over k reach unit i as messages, so they are those of the whole linear map, also of a convolution. Sanger's runs
  over the channels at one position, and in a sparse or one-to-one connection over the synapse itself.
"""

from __future__ import annotations

from typing import Any, Literal

import torch

import mpgraph as mg
from mpgraph import Agent, Protocol

from .features import Synapse, features, is_on
from .neighbours import PASSES


class Subspace(Synapse):
    """Oja's synapse in a layer: all neurons together explain x."""

    def explained(self, s: mg.View) -> Any:
        """sum_k w_ki y_k."""
        return s.r


class Neuron(Synapse):
    """Oja's synapse of a single neuron, which explains x alone."""

    def explained(self, s: mg.View) -> Any:
        """w y."""
        return s.w * s.y


class Ordered(Synapse):
    """Sanger's synapse: the neurons before it and its own explain x."""

    def explained(self, s: mg.View) -> Any:
        """sum_{k <= j} w_ki y_k."""
        return s.cumsum(s.w * s.y)


FORMS = {"subspace": Subspace, "neuron": Neuron}


class Hebbian(Protocol):
    """What the three rules share; see :class:`Hebb` for the arguments."""

    passes = PASSES
    synapse: type[Synapse] = Synapse
    usual_rate = 1e-5

    def __init__(
        self,
        lr: Any = 0.1,
        rate: Any = None,
        supervision: Any = 0.0,
        *,
        optimizer: mg.Optimizer | None = None,
        surrogate: str | None = None,
        **agents: Agent,
    ) -> None:
        rate = self.usual_rate if rate is None else rate
        own: dict[str, Any] = features(self.synapse, lr, rate, supervision, surrogate)
        super().__init__(optimizer=optimizer or mg.SGD(1.0), **{**own, **agents})
        self.rates, self.surrogate = {"lr": lr, "rate": rate, "supervision": supervision}, surrogate

    def extra_repr(self) -> str:
        """Arguments, for ``repr``."""
        shown = [f"{name}={float(torch.as_tensor(rate, device='cpu').detach()):g}" for name, rate in self.rates.items()]
        return ", ".join([*shown, super().extra_repr()])


class Hebb(Hebbian):
    """Hebb's rule below, the delta rule on top.

    Args:
        lr: of connections to a unit with a loss: the delta rule, that is gradient descent of the readout.
        rate: of all others: the local rule; by default 1e-5 for Hebb's, at which it does not yet make all features
            alike, 0.01 for Oja's, 0.003 for Sanger's. All three are numbers or ``mg.learnable(0.1)``.
        supervision: learning rate of backpropagation, added to the local rule; 0 sends no error down.
        optimizer: another inner optimiser than adding the increments.
        surrogate: activation whose derivative stands in for units that have none (a step), if supervised.
    """

    source = """
@book{hebb1949organization,
  title={The organization of behavior: a neuropsychological theory},
  author={Hebb, Donald O.}, publisher={Wiley}, year={1949}
}"""


class Oja(Hebbian):
    """Oja's rule below, the delta rule on top; its features span the principal subspace of what they hear.

    Args:
        form: ``subspace``, in which the neurons of a layer explain their input together, or ``neuron``, each alone.
        lr, rate, supervision, optimizer, surrogate: as for :class:`Hebb`.

    Raises:
        ProtocolError: for another form.
    """

    usual_rate = 0.01
    source = """
@article{oja1982simplified,
  title={Simplified neuron model as a principal component analyzer},
  author={Oja, Erkki}, journal={Journal of Mathematical Biology}, volume={15}, pages={267--273}, year={1982}
}
@article{oja1989neural,
  title={Neural networks, principal components, and subspaces},
  author={Oja, Erkki}, journal={International Journal of Neural Systems}, volume={1}, pages={61--68}, year={1989}
}"""

    def __init__(
        self,
        lr: Any = 0.1,
        rate: Any = None,
        supervision: Any = 0.0,
        form: Literal["subspace", "neuron"] = "subspace",
        *,
        optimizer: mg.Optimizer | None = None,
        surrogate: str | None = None,
        **agents: Agent,
    ) -> None:
        if form not in FORMS:
            raise mg.ProtocolError(f"Oja: form={form!r}; allowed are {', '.join(FORMS)}")
        weight = FORMS[form](is_on(supervision))
        super().__init__(
            lr, rate, supervision, optimizer=optimizer, surrogate=surrogate, **{"weight": weight, **agents}
        )
        self.form = form

    def extra_repr(self) -> str:
        """Arguments, for ``repr``."""
        return f"{super().extra_repr()}, form={self.form!r}"


class Sanger(Hebbian):
    """Sanger's rule below, the delta rule on top; its features are the principal components, in order.

    Arguments as for :class:`Hebb`.
    """

    synapse, usual_rate = Ordered, 0.003
    source = """
@article{sanger1989optimal,
  title={Optimal unsupervised learning in a single-layer linear feedforward neural network},
  author={Sanger, Terence D.}, journal={Neural Networks}, volume={2}, pages={459--473}, year={1989}
}"""
