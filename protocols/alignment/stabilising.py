"""Parameter-free operations that keep the learning of feedback weights stable.

Kunin et al. (2020), section 4, "Local stabilizing operations". Each acts on the numbers of one unit, and returns its
value v together with how a gradient with respect to v goes back to the input, J' g:

    centre         v - mean of the example over the unit
    normalise      the same, divided by its L2 norm (not by its deviation), as in the published code
    batch_centre   v - mean of the agent over the batch
    activation     the unit's own function
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

import mpgraph as mg

Pull = Callable[[Any], Any]


def centre(s: mg.View, v: Any) -> tuple[Any, Pull]:
    """Without each example's mean over the unit."""
    return v - s.population(v, "mean"), lambda g: g - s.population(g, "mean")


def normalise(s: mg.View, v: Any) -> tuple[Any, Pull]:
    """Centered, and of length one."""
    centred, back = centre(s, v)
    scale = torch.rsqrt(torch.clamp(s.population(centred * centred), 1e-12))  # the bound is the published code's
    unit = centred * scale
    return unit, lambda g: back((g - unit * s.population(g * unit)) * scale)


def batch_centre(s: mg.View, v: Any) -> tuple[Any, Pull]:
    """Without each agent's mean over the batch."""
    uses = s.examples(1.0)  # an average over the batch is a sum over the uses within an example
    return v - s.examples(v) / uses, lambda g: g - s.examples(g) / uses


def activation(s: mg.View, v: Any) -> tuple[Any, Pull]:
    """Through the unit's function."""
    y = s.apply(v)
    return y, lambda g: s.vjp(g, v, out=y)


OPERATIONS = {"centre": centre, "normalise": normalise, "batch_centre": batch_centre, "activation": activation}
# These act on the reconstruction in place of what is reconstructed, as in the published code.
RECONSTRUCTION = ("centre", "normalise")


def named(place: str, given: str | Sequence[str]) -> tuple[str, ...]:
    """The names of operations at one place, given one or several.

    Raises:
        ProtocolError: for an unknown one, or an activation where there may be no unit to have one.
    """
    names = (given,) if isinstance(given, str) else tuple(given)
    allowed = [name for name in OPERATIONS if (place, name) != ("driving", "activation")]
    wrong = [name for name in names if name not in allowed]
    if wrong:
        raise mg.ProtocolError(f"{place}={wrong[0]!r} is not an operation; allowed are {', '.join(allowed)}")
    return names


def through(names: Sequence[str], s: mg.View, v: Any) -> tuple[Any, Pull]:
    """A value after these operations, in their order, and how a gradient goes back through all of them."""
    if not names:
        return v, lambda g: g
    first, back = OPERATIONS[names[0]](s, v)
    value, rest = through(names[1:], s, first)
    return value, lambda g: back(rest(g))
