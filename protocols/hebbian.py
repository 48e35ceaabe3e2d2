"""Hebb's, Oja's and Sanger's rules: features learned only from activities, read out by the delta rule.

    Hebb        dw_ji = rate y_j x_i                                        Hebb (1949)
    Oja         dw_ji = rate y_j (x_i - sum_k w_ki y_k)                     Oja (1989), of a subspace
                dw_ji = rate y_j (x_i - w_ji y_j)                           Oja (1982), of each neuron by itself
    Sanger      dw_ji = rate y_j (x_i - sum_{k <= j} w_ki y_k)              Sanger (1989), in the order of the unit
    readout     dw_ji = -lr e_j x_i                                         Widrow and Hoff (1960)

For linear units and centered inputs Hebb's weights grow without bound along the first principal direction, an Oja
neuron settles on it, Oja's subspace form on an orthonormal basis of the principal subspace, and Sanger's on the
principal directions one by one. Here y = f(z) is the activity after the unit's function, whatever it is.

- A unit with a loss is taught: its connections follow the delta rule, with e = dL/dz. All others learn by the local
  rule, and receive no error. ``supervision`` adds -supervision e_j x_i to theirs, e being carried back through the
  weights.
- A bias follows only errors; a feature's stays as it is if unsupervised. The rules want centered inputs, not offsets.
- The papers learn from one example at a time; here increments are averaged over a batch. Where an example uses a
  synapse at several places (a convolution's positions, a recurrent one's ticks) local increments are averaged over them
  as well, so that a rate means the same everywhere; errors are summed, as a gradient is.
- Sums over k reach unit i as messages, so they are those of the whole linear map, also of a convolution. Sanger's runs
  over the channels at one position, and in a sparse or one-to-one connection over the synapse itself.
"""

from __future__ import annotations

from typing import Any, Literal

import mpgraph as mg
from mpgraph import Protocol
from mpgraph.agents.options import Number, option

from .features import FEATURES, Synapse
from .neighbors import PASSES


class Subspace(Synapse):
    """Oja's synapse in a layer: all neurons together explain x."""

    def explained(self, s: mg.View) -> Any:
        """sum_k w_ki y_k."""
        return s.r


class Neuron(Synapse):
    """Oja's synapse of a single neuron, which explains x by itself."""

    def explained(self, s: mg.View) -> Any:
        """w y."""
        return s.w * s.y


class Ordered(Synapse):
    """Sanger's synapse: the neurons before it and its own explain x."""

    def explained(self, s: mg.View) -> Any:
        """sum_{k <= j} w_ki y_k."""
        return s.cumsum(s.w * s.y)


FORMS = {"subspace": Subspace, "neuron": Neuron}


class Hebb(Protocol):
    """Hebb's rule below, the delta rule on top."""

    lr: Number = option(0.1, "of connections to a unit with a loss: the delta rule, gradient descent of the readout.")
    rate: Number | None = option(
        1e-5,
        "of all others: the local rule. Like ``lr`` and ``supervision`` a number, or ``mg.learnable(0.1)``. By default "
        "1e-5 for Hebb's, at which it does not yet make all features alike, 0.01 for Oja's, 0.003 for Sanger's.",
        positional=True,
    )
    supervision: Number = option(
        0.0,
        "learning rate of backpropagation, added to the local rule; 0 sends no error down. It needs derivatives.",
        positional=True,
    )
    plain_rate = 1.0
    passes = PASSES
    agents = {**FEATURES, "weight": Synapse}
    source = """
@book{hebb1949organization,
  title={The organization of behavior: a neuropsychological theory},
  author={Hebb, Donald O.}, publisher={Wiley}, year={1949}
}"""

    def setup(self) -> None:
        """Take the usual rate for ``None``."""
        if self.rate is None:
            self.rate = self.declared["rate"].default


class Oja(Hebb):
    """Oja's rule below, the delta rule on top; its features span the principal subspace of what they receive."""

    rate = 0.01
    form: Literal["subspace", "neuron"] = option(
        "subspace",
        "``subspace``, in which the neurons of a layer explain their input together, or ``neuron``, each by itself.",
        positional=True,
    )
    agents = {"weight": lambda rule: FORMS[rule.form](rule)}
    source = """
@article{oja1982simplified,
  title={Simplified neuron model as a principal component analyzer},
  author={Oja, Erkki}, journal={Journal of Mathematical Biology}, volume={15}, pages={267--273}, year={1982}
}
@article{oja1989neural,
  title={Neural networks, principal components, and subspaces},
  author={Oja, Erkki}, journal={International Journal of Neural Systems}, volume={1}, pages={61--68}, year={1989}
}"""


class Sanger(Hebb):
    """Sanger's rule below, the delta rule on top; its features are the principal components, in order."""

    rate = 0.003
    agents = {"weight": Ordered}
    source = """
@article{sanger1989optimal,
  title={Optimal unsupervised learning in a single-layer linear feedforward neural network},
  author={Sanger, Terence D.}, journal={Neural Networks}, volume={2}, pages={459--473}, year={1989}
}"""
