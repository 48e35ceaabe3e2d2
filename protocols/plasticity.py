"""Plasticity rules from a pool of ten local terms, with errors sent through random weights.

Shervani-Tabar and Rosenbaum (2023), "Meta-learning biologically plausible plasticity rules with random feedback
pathways", Nature Communications 14, 1805; preprint arXiv:2210.16414, whose equations are numbered here.

    forward     z_l = W y_{l-1}      y_l = f(z_l)                                                    (1), (2)
    backward    e_L = dL/dz_L        e_{l-1} = B e_l * f'(z_{l-1})          B is fixed and random    (3), (4)
    learn       W <- W + sum_r theta_r F_r                                  F_r is one of TERMS      (Appendix B)

A synapse joins unit i of layer l-1 to unit j of layer l, and knows activity and error at both of its ends. Three things
reach it by messages: y'We and e'Wy, sums over its connection; the reconstruction (W'y_l)_i, which unit i receives from
its synapses and sends back to them.

- y_l of an output is its target plus the derivative of the loss: the softmax, where logits meet a cross-entropy.
- e_0, the error of an input, belongs to no neuron: the paper calls it synthetic. Here it is B e_1, times the
  ``input_slope``; the authors' code takes the softplus' slope at the pixel as if that were an activity.
- A bias is a synapse from the number one, whose error is zero. The error of an operation is what reaches its result.
- F_r is averaged over a batch. The paper always learns from one example at a time. It has no synapse that an example
  uses at several places (a convolution's positions, a recurrent one's ticks): F1 is summed over them, as the gradient
  is, all others are averaged, so that they cannot outgrow it by the number of places.
- The authors' code counts Oja's coefficient with the opposite sign: its +0.0038 is ``oja=-0.0038``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import nn

import mpgraph as mg
from mpgraph import Agent, Protocol, fast, slow
from mpgraph.agents.options import Number, option

from .neighbors import AGENTS, PASSES, Input

TERMS: dict[str, Callable[[mg.View], Any]] = {
    "pseudo": lambda s: -s.e_j * s.y_i,  # F1: the gradient, as far as B carries it
    "crossed": lambda s: -s.y_j * s.e_i,  # F2
    "ehebb": lambda s: -s.e_j * s.e_i,  # F3: Hebb's rule of errors; a coefficient below zero pulls W towards B'
    "decay": lambda s: -s.w,  # F4
    "presynaptic": lambda s: -s.e_i,  # F5
    "pseudo_sum": lambda s: -s.e_j * s.sum_j * s.y_i,  # F6: the sum is 1'y_l
    "crossed_ywe": lambda s: -s.y_j * s.population(s.y_j * s.w * s.e_i) * s.e_i,  # F7: y_l' W e_{l-1}
    "pseudo_ywe": lambda s: -s.e_j * s.population(s.y_j * s.w * s.e_i) * s.y_i,  # F8
    "crossed_ewy": lambda s: -s.y_j * s.population(s.e_j * s.w * s.y_i) * s.e_i,  # F9: e_l' W y_{l-1}
    "oja": lambda s: -s.y_j * (s.y_i - s.r_i),  # F10: r is W'y_l; below zero it makes the rows of W orthonormal
}


class Synapse(Agent):
    """One synapse ``w`` from i to j; its coefficients are those of the rule."""

    w = slow(init=mg.xavier_uniform)
    y_i, e_i, y_j, e_j, sum_j, r_i = fast(), fast(), fast(), fast(), fast(), fast()

    def __init__(self, rule: Plasticity) -> None:
        super().__init__()
        self.fixed = {name: c for name, c in rule.theta.items() if not isinstance(c, nn.Parameter)}
        self.theta = nn.ParameterDict({name: c for name, c in rule.theta.items() if isinstance(c, nn.Parameter)})

    def forward_update(self, s: mg.View, pre: Any) -> mg.View:
        """Keep the activity below."""
        return s.set(y_i=pre)

    def forward_message(self, s: mg.View) -> Any:
        """w y, summed over i on its way to unit j."""
        return s.w * s.y_i

    def backward_update(self, s: mg.View, post: Any) -> mg.View:
        """Keep the error above."""
        return s.set(e_j=post)

    def backward_message(self, s: mg.View) -> Any:
        """w e, summed over j on its way to unit i."""
        return s.w * s.e_j

    def meet_update(self, s: mg.View, pre: Any, post: Any) -> mg.View:
        """Keep the error below, and the activity above with its sum over the layer."""
        return s.set(e_i=pre["e"], y_j=post["y"], sum_j=post["sum"])

    def recall_message(self, s: mg.View) -> Any:
        """w y_j, summed over j on its way back to unit i."""
        return s.w * s.y_j

    def learn_update(self, s: mg.View, pre: Any) -> mg.View:
        """w + sum_r theta_r F_r; the optimizer goes against its signal."""
        s = s.set(r_i=pre)
        theta, places = {**self.fixed, **self.theta}, s.examples(1.0)
        share = {name: 1.0 if name == "pseudo" else 1.0 / places for name in theta}
        return s.descend(w=-s.examples(sum(theta[name] * share[name] * TERMS[name](s) for name in theta)))


class FeedbackSynapse(Synapse):
    """A synapse with a fixed random partner ``b`` that carries the error."""

    b = slow(init=mg.xavier_uniform, frozen=True)

    def backward_message(self, s: mg.View) -> Any:
        """b e."""
        return s.b * s.e_j


class DetachedSynapse(Synapse):
    """A synapse that carries the error by ``w``, through which no meta-gradient flows."""

    def backward_message(self, s: mg.View) -> Any:
        """w e, with w as a given number."""
        return torch.detach(s.w) * s.e_j


CARRIERS = {"random": FeedbackSynapse, "symmetric": Synapse, "detached": DetachedSynapse}
F_BIO = {"pseudo": 0.3, "ehebb": -0.3, "oja": -0.003}


class Plasticity(Protocol):
    """A sum of local terms with coefficients of their own (meta-learned plasticity with random feedback).

    Without any coefficient it is the paper's F_bio (8), pseudo-gradient, Hebb's rule of errors and Oja's rule, with
    coefficients that suit averages over batches of 32 in a small network rather than single examples. A coefficient
    is a number, or ``mg.learnable(0.0)``, shared by all connections. ``mg.Regions`` gives connections others.

    Raises:
        ProtocolError: for an argument out of range.
    """

    pseudo: Number | None = option(None, "theta_1, of -e_l y_{l-1}'.")
    crossed: Number | None = option(None, "theta_2, of -y_l e_{l-1}'.")
    ehebb: Number | None = option(None, "theta_3, of -e_l e_{l-1}'; useful below zero.")
    decay: Number | None = option(None, "theta_4, of -W.")
    presynaptic: Number | None = option(None, "theta_5, of -1 e_{l-1}'.")
    pseudo_sum: Number | None = option(None, "theta_6, of -e_l (1'y_l) y_{l-1}'.")
    crossed_ywe: Number | None = option(None, "theta_7, of -y_l (y_l'W e_{l-1}) e_{l-1}'.")
    pseudo_ywe: Number | None = option(None, "theta_8, of -e_l (y_l'W e_{l-1}) y_{l-1}'.")
    crossed_ewy: Number | None = option(None, "theta_9, of -y_l (e_l'W y_{l-1}) e_{l-1}'.")
    oja: Number | None = option(None, "theta_10, of -y_l (y_{l-1} - W'y_l)'; useful below zero.")
    feedback: Literal["random", "symmetric", "detached"] = option(
        "random",
        "what carries errors back: ``random``, fixed weights of its own; ``symmetric``, W' (backprop); ``detached``, "
        "W' through which no meta-gradient flows.",
    )
    input_slope: float | Callable[[Any], Any] | None = option(
        None,
        "what multiplies the error of an input: a function of its value, or beta for 1 - exp(-beta value), the slope "
        "of a softplus at that activity (10 in the authors' code); 1 by default.",
    )
    without = ("lr",)
    plain_rate = 1.0

    agents = {
        **AGENTS,
        "input": lambda rule: Input(rule.input_slope),
        "weight": lambda rule: CARRIERS[rule.feedback](rule),
        "bias": Synapse,
    }
    passes = PASSES
    source = """
@article{shervani2023meta,
  title={Meta-learning biologically plausible plasticity rules with random feedback pathways},
  author={Shervani-Tabar, Navid and Rosenbaum, Robert},
  journal={Nature Communications}, volume={14}, pages={1805}, year={2023}
}"""

    def setup(self) -> None:
        """Without coefficients, those of the paper's F_bio."""
        self.theta = {name: getattr(self, name) for name in TERMS if getattr(self, name) is not None} or F_BIO
