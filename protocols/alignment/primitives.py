"""The five primitives of which rules for feedback weights are made.

Kunin, Nayebi, Sagastuy-Brena, Ganguli, Bloom and Yamins (2020), "Two routes to scalable credit assignment without
weight symmetry", ICML, Table 1: each is a gradient with respect to the feedback weights B of one connection. Here it
is written for one synapse ``b``, in the layout of ``w`` (``b == w`` means B = W'). With x what drives the unit below,
y = W x, q = B' x and r = B y, of this connection only and before bias, normalization and non-linearity:

    decay     B             b
    amp       -x y'         -<x y>
    null      B y y'        <r y>
    sparse    x x' B        <x q>
    self      -W'           -w

<.> aggregates over the batch, after an average over all places where one example uses the synapse (positions of the
output, padding included; ticks). The paper's equations know one place. The published code sums over places, which in a
convolution makes them outweigh decay a hundredfold and diverge at rates that suit dense layers: ``places="sum"``. It
also takes squares without 1/2, hence twice the gradient of decay, null and sparse.
What differs from the paper: its caption has x and y after the non-linearity; its code takes y before, as here, unless
asked for ``forward=("activation",)``.

``task`` is not a primitive of the paper: it is the gradient that w itself gets, by which Kolen and Pollack's rule fits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import mpgraph as mg


class Over(NamedTuple):
    """How what one synapse meets is aggregated.

    Attributes:
        batch: ``"mean"`` or ``"sum"`` over examples.
        places: the same over the places of an example.
    """

    batch: str = "mean"
    places: str = "mean"

    def __call__(self, s: mg.View, value: Any) -> Any:
        """<value>."""
        share = 1.0 / s.examples(1.0) if self.places == "mean" else 1.0
        return s.examples(share * value, self.batch)


def decay(s: mg.View, over: Over) -> Any:
    """Towards zero."""
    return s.b


def amp(s: mg.View, over: Over) -> Any:
    """Hebbian: what is active together at both ends is amplified."""
    return -over(s, s.drive * s.y)


def null(s: mg.View, over: Over) -> Any:
    """Towards reconstructions r of zero, which bounds what is amplified, as Oja's term does."""
    return over(s, s.r * s.y_null)


def sparse(s: mg.View, over: Over) -> Any:
    """Towards backward projections q of zero."""
    return over(s, s.drive * s.q)


def itself(s: mg.View, over: Over) -> Any:
    """Towards w, read directly."""
    return -s.w


def task(s: mg.View, over: Over) -> Any:
    """Along with w: dL/dw = <e x>, as w has it: the batch average of sums over places."""
    return s.examples(s.e * s.x)


class Primitive(NamedTuple):
    """A term of a rule for feedback weights.

    Attributes:
        gradient: of one synapse, and of how to aggregate what it meets.
        code: how much larger it is in the published code.
        passes: that must run before.
        options: of a rule, which act on it.
    """

    gradient: Callable[[mg.View, Over], Any]
    code: float = 1.0
    passes: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


PROJECT = ("drive", "project", "answer")
MET = ("batch", "places", "noise", "driving")
PRIMITIVES = {
    "decay": Primitive(decay, 2.0),
    "amp": Primitive(amp, 1.0, PROJECT, (*MET, "forward", "backward")),
    "null": Primitive(null, 2.0, (*PROJECT, "reconstruct", "compare"), (*MET, "forward")),
    "sparse": Primitive(sparse, 2.0, PROJECT, (*MET, "backward")),
    "self": Primitive(itself),
    "task": Primitive(task),
}
