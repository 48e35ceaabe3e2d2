"""Information alignment.

Kunin et al. (2020), "Two routes to scalable credit assignment without weight symmetry", ICML, section 4. A weight
mirror with one more local term, which keeps the reconstruction r = B y from growing as Oja's rule does:

    b_ji <- b_ji - (-amp <x_i y_j> + decay b_ji + null <r_i y_j>)         y = W x, r = B y

With amp = null it is the gradient, with respect to B, of a linear autoencoder |x - B W x|^2 / 2 with decay, all of
whose critical points are symmetric where W descends it too (Kunin et al., 2019). Here W descends the task, so that B
settles at amp sigma^2 W' (null sigma^2 W W' + decay)^-1, for noise of deviation sigma: the more decay outweighs null,
the closer to W' in angle. The paper's coefficients were found by search and are not in it; those here are ours, at a
rate of B of 1. Too large a null diverges, as any gradient descent does: null times the largest eigenvalue of a batch's
<y y'> must stay below 2.
"""

from __future__ import annotations

from .rule import Alignment
from .weight_mirror import WeightMirror


class InformationAlignment(WeightMirror):
    """Errors sent through feedback weights that reconstruct what the forward weights were given."""

    null = 0.02
    source = Alignment.source
