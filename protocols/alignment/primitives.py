"""The five primitives of which rules for feedback weights are made.

Kunin, Nayebi, Sagastuy-Brena, Ganguli, Bloom and Yamins (2020), "Two routes to scalable credit assignment without
weight symmetry", ICML, Table 1: each is a gradient with respect to the feedback weights B of one connection. Here it
is written for one synapse ``b``, in the layout of ``w`` (``b == w`` means B = W'). With x what drives the unit below,
y = W x, q = B' x and r = B y, of this connection alone and before bias, normalisation and non-linearity:

    decay     B             b
    amp       -x y'         -<x y>
    null      B y y'        <r y>
    sparse    x x' B        <x q>
    self      -W'           -w

<.> aggregates over the batch, after a sum over all places where one example uses the synapse, as the published code
does in convolutions. That code takes squares without 1/2, hence twice the gradient of decay, null and sparse.
What differs from the paper: its caption has x and y after the non-linearity; its code takes y before, as here, unless
asked for ``forward=("activation",)``.

``task`` is no primitive of the paper: it is the gradient that w itself gets, by which Kolen and Pollack's rule fits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import mpgraph as mg


def decay(s: mg.View, how: str) -> Any:
    """Towards zero."""
    return s.b


def amp(s: mg.View, how: str) -> Any:
    """Hebbian: what is active together at both ends is amplified."""
    return -s.examples(s.drive * s.y, how)


def null(s: mg.View, how: str) -> Any:
    """Towards reconstructions r of zero, which bounds what is amplified, as Oja's term does."""
    return s.examples(s.r * s.y_null, how)


def sparse(s: mg.View, how: str) -> Any:
    """Towards backward projections q of zero."""
    return s.examples(s.drive * s.q, how)


def itself(s: mg.View, how: str) -> Any:
    """Towards w, read directly."""
    return -s.w


def task(s: mg.View, how: str) -> Any:
    """Along with w: dL/dw = <e x>, always the batch average."""
    return s.examples(s.e * s.x)


class Primitive(NamedTuple):
    """A term of a rule for feedback weights.

    Attributes:
        gradient: of one synapse, and of how to aggregate over the batch (``"mean"`` or ``"sum"``).
        code: how much larger it is in the published code.
        passes: what must have been said before.
    """

    gradient: Callable[[mg.View, str], Any]
    code: float = 1.0
    passes: tuple[str, ...] = ()


PROJECT = ("drive", "project", "answer")
PRIMITIVES = {
    "decay": Primitive(decay, 2.0),
    "amp": Primitive(amp, 1.0, PROJECT),
    "null": Primitive(null, 2.0, (*PROJECT, "reconstruct", "compare")),
    "sparse": Primitive(sparse, 2.0, PROJECT),
    "self": Primitive(itself),
    "task": Primitive(task),
}
