"""Rules whose feedback weights learn, composed of primitives.

Kunin, Nayebi, Sagastuy-Brena, Ganguli, Bloom and Yamins (2020), "Two routes to scalable credit assignment without
weight symmetry", ICML, section 3. The error travels through weights B of its own, which descend a sum of primitives
(``primitives.py``) while W descends the loss:

    backward    e_i = f'(z_i) sum_j b_ji e_j
    align       b_ji <- b_ji - lr sum_p c_p grad_p          c_p: the coefficient of primitive p
    learn       w_ji <- w_ji - lr <e_j x_i>                 both from the state before the step

Without primitives it is feedback alignment. What differs from the paper: coefficients are named by their primitive, as
the published code permutes the Greek letters; connections from inputs keep no B, as no error goes back through them
(``inputs=True`` gives them one, for the sake of watching it); an idle weight does not move at all; a synapse that an
example uses at several places (a convolution's, a recurrent one's) averages over them what primitives meet there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import mpgraph as mg
from mpgraph.agents.options import Number, option
from mpgraph.arguments import Arguments
from mpgraph.protocols.backprop import Backprop, Weight

from .agents import AlignedInput, AlignedUnit, AlignedWeight, DecayedWeight, Stage, present
from .primitives import PRIMITIVES
from .stabilising import named

Coefficient = Number | Callable[[Any], Any]  # also a schedule, as in mpgraph.agents.schedules
SUMS = Literal["mean", "sum"]


@dataclass(frozen=True)
class Turns:
    """Whose turn it is: ``align_first`` steps of B, then one step of B for each ``alternate`` of the others."""

    alternate: int
    align_first: int

    def __call__(self, step: int) -> str:
        """The phase of a step, counted from 0."""
        later = step - self.align_first
        return "align" if later < 0 or later % (1 + self.alternate) == 0 else "task"


def _operations(check: Arguments, name: str, value: Any) -> tuple[str, ...]:
    return named(name, value)


def _noise(check: Arguments, name: str, value: Any) -> Any:
    check.number(name, value if isinstance(value, (int, float)) else 0.0, low=0.0)
    return value


class Alignment(Backprop):
    """Gradient descent with errors sent through feedback weights that learn: ``Alignment(decay=1.0, self=1.0)``.

    Coefficients of primitives are numbers, ``mg.learnable(...)``, or functions of the step as in
    :mod:`mpgraph.agents.schedules`.

    Raises:
        ProtocolError: for an unknown primitive, operation or option, numbers out of range, or an option that acts on
            none of the primitives given.
    """

    decay: Coefficient = option(0.0, "coefficient of the primitive of this name, as the five that follow.")
    amp: Coefficient = option(0.0, "coefficient of amplification.")
    null: Coefficient = option(0.0, "coefficient of the pull of reconstructions towards zero.")
    sparse: Coefficient = option(0.0, "coefficient of the pull of B' x towards zero.")
    self: Coefficient = option(0.0, "coefficient of W.")
    task: Coefficient = option(0.0, "coefficient of the gradient of W.")
    forward_decay: Coefficient | None = option(0.0, "times W, added to the gradient of W (not of biases).")
    scaling: Literal["paper", "code"] = option(
        "paper", "of primitives: as in Table 1, or as in the published code, where decay, null and sparse count twice."
    )
    batch: SUMS = option("mean", "``mean`` or ``sum`` of primitives over the batch.")
    places: SUMS = option(
        "mean",
        "the same over the places where one example uses a synapse (positions, ticks); ``sum`` is the published "
        "code's. ``task`` and the gradient of W are sums over places.",
    )
    noise: Any = option(
        None,
        "standard deviation of Gaussian noise, each unit's own, that primitives see in place of the activity.",
        check=_noise,
    )
    driving: str | Sequence[str] = option(
        (),
        "stabilizing operations on that activity or noise, by name: ``centre``, ``normalise``, ``batch_centre``, one "
        "or several in their order (section 4).",
        check=_operations,
    )
    forward: str | Sequence[str] = option(  # type: ignore[assignment]
        (),
        "the same on W x and on its reconstruction B W x; also ``activation``, the unit's own function.",
        check=_operations,
    )
    backward: str | Sequence[str] = option((), "the same on B' x.", check=_operations)
    alternate: int | None = option(
        None,
        "k for one step that moves only B, then k that move all but B; by default each step moves both.",
        low=1,
    )
    align_first: int = option(0, "with ``alternate``, how many steps at the start move only B.", low=0)
    inputs: bool = option(False, "whether connections from inputs have feedback weights as well.")
    feedback_optimizer: mg.Optimizer | None = option(
        None, "inner optimizer of B; by default that of W, in rules with a rate of their own for B that of the rule."
    )

    agents = {
        "weight": AlignedWeight,
        "input_weight": lambda rule: (AlignedWeight if rule.inputs else DecayedWeight)(rule),
        "bias": Weight,
        "input": AlignedInput,
        "unit": AlignedUnit,
    }

    source = """
@inproceedings{kunin2020two,
  title={Two routes to scalable credit assignment without weight symmetry},
  author={Kunin, Daniel and Nayebi, Aran and Sagastuy-Brena, Javier and Ganguli, Surya and Bloom, Jonathan M. and
    Yamins, Daniel L. K.},
  booktitle={International Conference on Machine Learning}, pages={5511--5521}, year={2020}
}"""

    @property
    def terms(self) -> dict[str, Any]:
        """Coefficients of the primitives that the rule has."""
        return {name: self.__dict__[name] for name in PRIMITIVES if present(self.__dict__[name])}

    def usual_feedback_optimizer(self) -> mg.Optimizer | None:
        """That of B if none is given; ``None`` for that of W."""
        return None

    def setup(self) -> None:
        """Check what has an effect, and choose passes and phases."""
        if self.align_first and self.alternate is None:
            Arguments(type(self).__name__).refuse(
                "align_first", self.align_first, "0 where steps do not alternate, or alternate must be given as well"
            )
        names = ("batch", "places", "noise", "driving", "forward", "backward")
        options = {name: self.__dict__[name] for name in names}
        usual = {"batch": "mean", "places": "mean", "noise": None}
        changed = {name: value for name, value in options.items() if value != usual.get(name, ()) and value != 0}
        self._effective(changed, list(self.terms))
        self.stage = Stage(self.noise, *(self.__dict__[name] for name in ("driving", "forward", "backward")))
        of_feedback = self.feedback_optimizer or self.usual_feedback_optimizer()
        if of_feedback is not None:
            self.optimizers["b"] = of_feedback  # type: ignore[index]
        needed = dict.fromkeys(name for term in self.terms for name in PRIMITIVES[term].passes)
        aligning = (*needed, "align") if self.terms else ()
        self.passes = ("forward", "backward", *aligning, "learn")
        if self.alternate is not None:
            before = ("forward", "backward") if "task" in self.terms else ("forward",)
            self.phases = {"align": (*before, *aligning), "task": ("forward", "backward", "learn")}
            self.phase = Turns(self.alternate, self.align_first)  # type: ignore[method-assign]

    def _effective(self, options: Mapping[str, Any], terms: Sequence[str]) -> None:
        idle = [name for name in options if not any(name in PRIMITIVES[term].options for term in terms)]
        if idle:
            able = [name for name, primitive in PRIMITIVES.items() if idle[0] in primitive.options]
            raise mg.ProtocolError(
                f"{type(self).__name__}: {idle[0]}={options[idle[0]]!r} acts only on {', '.join(able)}, but the "
                f"primitives here are {', '.join(terms) or 'none'}; leave it out, or add one of those"
            )
