"""Backpropagation of errors.

Rumelhart, Hinton and Williams (1986), "Learning representations by back-propagating errors", Nature 323.

    forward     z_j = sum_i w_ji x_i + b_j        y_j = f(z_j)
    backward    e_j = f'(z_j) sum_k w_kj e_k      at the output e = dL/dz
    learn       w_ji <- w_ji - lr <e_j x_i>       <.> is the average over the batch

Units and losses are the engine's own agents: a unit carries the error through its transposed derivative, in closed
form where one is known and otherwise by ``torch.func.vjp``, so a new differentiable node needs no formula here.
"""

from __future__ import annotations

from typing import Any

import mpgraph as mg
from mpgraph import Agent, Protocol, fast, slow


class Weight(Agent):
    """One synapse ``w`` between activity ``x`` and error ``e``. A bias is a synapse from the number one."""

    w = slow(init=mg.xavier_uniform)
    x, e = fast(), fast()

    def forward_update(self, s: mg.View, pre: Any) -> mg.View:
        """Keep the activity of the presynaptic unit."""
        return s.set(x=pre)

    def forward_message(self, s: mg.View) -> Any:
        """w x, summed over i on its way to unit j."""
        return s.w * s.x

    def backward_update(self, s: mg.View, post: Any) -> mg.View:
        """Keep the error of the postsynaptic unit."""
        return s.set(e=post)

    def backward_message(self, s: mg.View) -> Any:
        """w e, summed over j on its way to unit i."""
        return s.w * s.e

    def learn_update(self, s: mg.View) -> mg.View:
        """dL/dw = <e x>, summed over the places where one example uses the synapse (positions, ticks)."""
        return s.descend(w=s.examples(s.e * s.x))


class Backprop(Protocol):
    """Gradient descent by backpropagation."""

    agents = {"weight": Weight}
    source = """
@article{rumelhart1986learning,
  title={Learning representations by back-propagating errors},
  author={Rumelhart, David E. and Hinton, Geoffrey E. and Williams, Ronald J.},
  journal={Nature}, volume={323}, pages={533--536}, year={1986}
}"""
