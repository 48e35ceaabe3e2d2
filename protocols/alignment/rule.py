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

from collections.abc import Mapping, Sequence
from typing import Any

import mpgraph as mg
from mpgraph import Agent
from mpgraph.arguments import Arguments
from mpgraph.protocols.backprop import Backprop, Weight

from .agents import AlignedBatchNorm, AlignedInput, AlignedOperation, AlignedUnit, AlignedWeight, DecayedWeight, Stage
from .primitives import PRIMITIVES, Over
from .stabilising import named


class Alignment(Backprop):
    """Gradient descent with errors sent through feedback weights that learn: ``Alignment(decay=1.0, self=1.0)``.

    Args:
        lr: learning rate of plain gradient descent of W, and of B unless it has an optimiser; ignored with
            ``optimizer``.
        scaling: of primitives, ``"paper"`` (Table 1) or ``"code"`` (decay, null and sparse count twice).
        batch: ``"mean"`` or ``"sum"`` of primitives over the batch.
        places: the same over the places where one example uses a synapse (positions, ticks); ``"sum"`` is the
            published code's. ``task`` and the gradient of W are sums over places.
        forward_decay: times W, added to the gradient of W (not of biases).
        noise: standard deviation of Gaussian noise, each unit's own, that primitives see in place of the activity.
        driving: stabilising operations on that activity or noise, by name: ``"centre"``, ``"normalise"``,
            ``"batch_centre"``, one or several in their order (section 4).
        forward: the same on W x and on its reconstruction B W x; also ``"activation"``, the unit's own function.
        backward: the same on B' x.
        alternate: k for one step that moves B alone, then k that move all but B; by default each step moves both.
        align_first: with ``alternate``, how many steps at the start move B alone.
        inputs: whether connections from inputs have feedback weights as well.
        optimizer: inner optimiser of W, and of B unless it has its own.
        feedback_optimizer: inner optimiser of B.
        surrogate: activation whose derivative stands in for units that have none (a step).
        given: coefficients by primitive (``decay``, ``amp``, ``null``, ``sparse``, ``self``, and ``task``, the gradient
            of W), each a number, ``mg.learnable(...)`` or a function of the step as in
            :mod:`mpgraph.agents.schedules`; agents by kind of node.

    Raises:
        ProtocolError: for an unknown primitive, operation or option, numbers out of range, or an option that acts on
            none of the primitives given.
    """

    source = """
@inproceedings{kunin2020two,
  title={Two routes to scalable credit assignment without weight symmetry},
  author={Kunin, Daniel and Nayebi, Aran and Sagastuy-Brena, Javier and Ganguli, Surya and Bloom, Jonathan M. and
    Yamins, Daniel L. K.},
  booktitle={International Conference on Machine Learning}, pages={5511--5521}, year={2020}
}"""

    def __init__(
        self,
        /,
        lr: Any = 0.1,
        *,
        scaling: str = "paper",
        batch: str = "mean",
        places: str = "mean",
        forward_decay: Any = 0.0,
        noise: Any = None,
        driving: str | Sequence[str] = (),
        forward: str | Sequence[str] = (),
        backward: str | Sequence[str] = (),
        alternate: int | None = None,
        align_first: int = 0,
        inputs: bool = False,
        optimizer: mg.Optimizer | None = None,
        feedback_optimizer: mg.Optimizer | None = None,
        surrogate: str | None = None,
        **given: Any,
    ) -> None:
        terms = {name: c for name, c in given.items() if name in PRIMITIVES}
        agents = {name: agent for name, agent in given.items() if name not in PRIMITIVES}
        strange = [name for name, agent in agents.items() if not isinstance(agent, Agent)]
        if strange:
            raise mg.ProtocolError(
                f"{type(self).__name__}: {strange[0]!r} is neither an option nor a primitive; primitives are "
                f"{', '.join(PRIMITIVES)}"
            )
        check = Arguments(type(self).__name__)
        check.choice("scaling", scaling, ("paper", "code"))
        check.choice("batch", batch, ("mean", "sum"))
        check.choice("places", places, ("mean", "sum"))
        check.integer("alternate", 1 if alternate is None else alternate, low=1)
        check.integer("align_first", align_first, low=0)
        if align_first and alternate is None:
            check.refuse(
                "align_first", align_first, "0 where steps do not alternate, or alternate must be given as well"
            )
        check.flag("inputs", inputs)
        check.number("noise", noise if isinstance(noise, (int, float)) else 0.0, low=0.0)
        check.instance("feedback_optimizer", feedback_optimizer, mg.Optimizer)
        stage = Stage(noise, named("driving", driving), named("forward", forward), named("backward", backward))
        scale = {name: p.code if scaling == "code" else 1.0 for name, p in PRIMITIVES.items()}
        weight = AlignedWeight(terms, scale, Over(batch, places), forward_decay)
        options = {
            "batch": batch, "places": places, "noise": noise,
            "driving": stage.driving, "forward": stage.forward, "backward": stage.backward,
        }  # fmt: skip
        self._effective({name: v for name, v in options.items() if not _usual(v)}, list(weight.terms))
        needed = dict.fromkeys(name for term in weight.terms for name in PRIMITIVES[term].passes)
        own: dict[str, Agent] = {
            "weight": weight,
            "input_weight": weight if inputs else DecayedWeight(forward_decay),
            "bias": Weight(),
        }
        if needed:
            own |= {
                "input": AlignedInput(stage if inputs else stage._replace(noise=None)),
                "unit": AlignedUnit(stage, surrogate),
                "operation": AlignedOperation(stage),
                "batchnorm": AlignedBatchNorm(stage, surrogate),
            }
        super().__init__(lr, optimizer=optimizer, surrogate=surrogate, **{**own, **agents})
        if feedback_optimizer is not None:
            self.optimizers["b"] = feedback_optimizer
        aligning = (*needed, "align") if weight.terms else ()
        self.passes = ("forward", "backward", *aligning, "learn")
        self.alternate, self.align_first = alternate, align_first
        if alternate is not None:
            before = ("forward", "backward") if "task" in weight.terms else ("forward",)
            self.phases = {"align": (*before, *aligning), "task": ("forward", "backward", "learn")}
        shown = {
            "forward_decay": forward_decay, "scaling": scaling, **options,
            "alternate": alternate, "align_first": align_first, "inputs": inputs,
        }  # fmt: skip
        self._shown = {**terms, **{name: v for name, v in shown.items() if not _usual(v)}}

    def _effective(self, options: Mapping[str, Any], terms: Sequence[str]) -> None:
        idle = [name for name in options if not any(name in PRIMITIVES[term].options for term in terms)]
        if idle:
            able = [name for name, primitive in PRIMITIVES.items() if idle[0] in primitive.options]
            raise mg.ProtocolError(
                f"{type(self).__name__}: {idle[0]}={options[idle[0]]!r} acts on {', '.join(able)} alone, but the "
                f"primitives here are {', '.join(terms) or 'none'}; leave it out, or add one of those"
            )

    def phase(self, step: int) -> str:
        """Which phase a step belongs to, counted from 0."""
        later = step - self.align_first
        return "align" if later < 0 or later % (1 + (self.alternate or 0)) == 0 else "task"

    def extra_repr(self) -> str:
        """Arguments, for ``repr``."""
        return ", ".join([super().extra_repr(), *(f"{name}={_text(value)}" for name, value in self._shown.items())])


def _usual(value: Any) -> bool:
    """Whether an option is what it is by default."""
    if isinstance(value, (int, float)):
        return not value
    return value is None or value == () or value in ("paper", "mean")


def _text(value: Any) -> str:
    return f"{float(value):g}" if hasattr(value, "__float__") and not isinstance(value, bool) else repr(value)
