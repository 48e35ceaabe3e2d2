"""The agents of alignment: synapses whose feedback weight learns, and units that send them what it needs.

Kunin et al. (2020), Fig. 1. What the primitives need is sent in passes of their own, for each connection apart:

    drive         the unit below sends up its activity x, or noise of its own
    project       the synapse sends up w x and b x; the unit above sums them to y = W x and q = B' x
    answer        the unit above sends y and q back
    reconstruct   the synapse sends down b y; the unit below sums them to r = B y
    compare       the unit below sends r back
    align         the synapse changes b

A rule runs only those of them that its primitives need. The feedback weight carries the error in the backward pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import nn

import mpgraph as mg
from mpgraph import Agent, fast, slow
from mpgraph.agents.builtin import Input
from mpgraph.agents.schedules import at
from mpgraph.protocols.backprop import Weight

from .primitives import PRIMITIVES, Over
from .stabilising import RECONSTRUCTION, through


class DecayedWeight(Weight):
    """A synapse whose weight decays: ``decay`` times ``w`` is added to its gradient."""

    def __init__(self, rule: Any) -> None:
        super().__init__()
        self.decay = rule.forward_decay

    def learn_update(self, s: mg.View) -> mg.View:
        """dL/dw = <e x> + decay w."""
        gradient = s.examples(s.e * s.x)
        return s.descend(w=gradient + at(self.decay, s) * s.w if present(self.decay) else gradient)


class AlignedWeight(DecayedWeight):
    """A synapse with a feedback weight ``b``, which carries the error and descends a sum of primitives.

    The coefficient of a primitive is a number, a parameter, or a schedule of the step.
    """

    b = slow(init=mg.xavier_uniform)
    drive, y, q, r = fast(), fast(), fast(), fast()
    y_null = fast()  # y without the operations that act on its reconstruction in its place

    def __init__(self, rule: Any) -> None:
        super().__init__(rule)
        self.terms = nn.ParameterDict(rule.terms)
        self.scale = {name: PRIMITIVES[name].code if rule.scaling == "code" else 1.0 for name in rule.terms}
        self.over = Over(rule.batch, rule.places)

    def backward_message(self, s: mg.View) -> Any:
        """b e, summed over j on its way to unit i."""
        return s.b * s.e

    def drive_update(self, s: mg.View, pre: Any) -> mg.View:
        """Keep what drives the unit below."""
        return s.set(drive=pre)

    def project_message(self, s: mg.View) -> Any:
        """w x and b x, summed over i on their way to unit j."""
        return {"y": s.w * s.drive, "q": s.b * s.drive}

    def answer_update(self, s: mg.View, post: Any) -> mg.View:
        """Keep what their sums are."""
        return s.set(**post)

    def reconstruct_message(self, s: mg.View) -> Any:
        """b y, summed over j on its way to unit i."""
        return s.b * s.y_null

    def compare_update(self, s: mg.View, pre: Any) -> mg.View:
        """Keep what the sum is."""
        return s.set(r=pre)

    def align_update(self, s: mg.View) -> mg.View:
        """Against the sum of the primitives, each times its coefficient."""
        gradients = {name: PRIMITIVES[name].gradient(s, self.over) * self.scale[name] for name in self.terms}
        return s.descend(b=sum(at(c, s) * gradients[name] for name, c in self.terms.items()))


def present(number: Any) -> bool:
    """Whether a coefficient is there: a number other than zero, a parameter, or a schedule."""
    return not (isinstance(number, (int, float)) and number == 0)


class Stage(NamedTuple):
    """What drives units, and what is done to the activity that primitives see.

    Attributes:
        noise: standard deviation of Gaussian noise in place of the activity, for every unit its own; or ``None``.
        driving: operations on what drives a unit.
        forward: operations on y and on its reconstruction r.
        backward: operations on q.
    """

    noise: Any = None
    driving: Sequence[str] = ()
    forward: Sequence[str] = ()
    backward: Sequence[str] = ()


class Below(Agent):
    """Mixin: drives the connections above it, and receives what each makes of it."""

    aggregate = {"reconstruct:post": "each"}
    drive, r = fast(), fast()
    stage: Stage
    forward_message: Any

    def drive_update(self, s: mg.View) -> mg.View:
        """Noise of its own, or its activity."""
        x = self.forward_message(s) if self.stage.noise is None else at(self.stage.noise, s) * s.normal()
        return s.set(drive=through(self.stage.driving, s, x)[0])

    def drive_message(self, s: mg.View) -> Any:
        """Send it up."""
        return s.drive

    def reconstruct_update(self, s: mg.View, post: Any = None) -> mg.View:
        """r = B y of each connection; with operations C on it, C' C r, as the gradient of |C r|^2 / 2 has it."""
        return s if post is None else s.set(r=post.map(lambda r: self.half_square(s, r)))

    def half_square(self, s: mg.View, r: Any) -> Any:
        """The gradient of |C r|^2 / 2 with respect to r."""
        value, back = through([name for name in self.stage.forward if name in RECONSTRUCTION], s, r)
        return back(value)

    def compare_message(self, s: mg.View) -> Any:
        """To each connection its own."""
        return s.r


class Above(Agent):
    """Mixin: sums what each connection below it projects, and answers."""

    aggregate = {"project:pre": "each"}
    answers = fast()
    stage: Stage

    def project_update(self, s: mg.View, pre: Any = None) -> mg.View:
        """y and q of each connection."""
        return s if pre is None else s.set(answers=pre.map(lambda sums: self.answer(s, **sums)))

    def answer(self, s: mg.View, y: Any, q: Any) -> dict[str, Any]:
        """y and q as primitives see them: gradients of y'q and of |q|^2 / 2 with respect to the bare q."""
        y_null, _ = through([name for name in self.stage.forward if name not in RECONSTRUCTION], s, y)
        y, _ = through(self.stage.forward, s, y)
        q, back = through(self.stage.backward, s, q)
        return {"y": back(y), "q": back(q), "y_null": y_null}

    def answer_message(self, s: mg.View) -> Any:
        """To each connection its own."""
        return s.answers


class AlignedInput(Input, Below):
    """An input; its noise matters only to connections from inputs that have feedback weights."""

    def __init__(self, rule: Any) -> None:
        super().__init__()
        self.stage = rule.stage if rule.inputs else rule.stage._replace(noise=None)


class AlignedUnit(mg.UnitAgent, Below, Above):
    """A unit or an operation, between the connections below and those above it."""

    aggregate = {**Below.aggregate, **Above.aggregate}

    def __init__(self, rule: Any) -> None:
        super().__init__()
        self.stage = rule.stage
