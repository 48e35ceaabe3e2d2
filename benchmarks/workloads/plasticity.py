"""A meta-step of plasticity: 250 points online, 50 queries, meta-gradient, Adam; the same script in plain torch."""

from __future__ import annotations

import functools
import itertools

import torch
from torch import Tensor
from torch.nn import functional

import mpgraph as mg
from benchmarks.harness import OURS, Case, Contestant, Workload, cost
from mpgraph.architectures import mlp
from mpgraph.protocols import Plasticity
from mpgraph.protocols.plasticity import TERMS

from .steps import names

SIZES = [784, 170, 130, 100, 70, 47]
BETA = 10.0
THETA = {
    "pseudo": {"pseudo": 0.0103},
    "bio": {"pseudo": 0.0131, "ehebb": -0.0389, "oja": -0.0038},
    "pool": {**dict.fromkeys(TERMS, 1e-5), "pseudo": 0.0131, "ehebb": -0.0389, "oja": -0.0038},
}
SCRIPT = "torch by hand"


def script(theta: dict[str, Tensor], w: list[Tensor], b: list[Tensor], x: Tensor, y: Tensor) -> list[Tensor]:
    """One step. What meets the same vector above is added before any outer product is formed.

    W <- (1 - t4) W - e [(t1 + t6 1'y_j + t8 y'We) y + t3 e_i]' - y_j [(t2 + t7 y'We + t9 e'Wy) e_i + t10 (y - W'y_j)]'
         - 1 (t5 e_i)'
    """
    activities = [x]
    for weight in w:
        z = torch.mv(weight, activities[-1])
        activities.append(functional.softplus(z, BETA))
    output = torch.softmax(z, 0)
    errors = [output - y]
    for carrier, activity in zip(b[:0:-1], activities[-2:0:-1], strict=True):
        errors.append(torch.mv(carrier.t(), errors[-1]) * (1.0 - torch.exp(-BETA * activity)))
    errors.append(torch.mv(b[0].t(), errors[-1]) * (1.0 - torch.exp(-BETA * x)))
    errors.reverse()
    activities[-1] = output
    new = []
    for weight, (y_i, y_j), (e_i, e_j) in zip(
        w, itertools.pairwise(activities), itertools.pairwise(errors), strict=True
    ):
        with_error, with_activity = theta["pseudo"] * y_i, None
        if "ehebb" in theta:
            with_error = with_error + theta["ehebb"] * e_i
        if "oja" in theta:
            with_activity = theta["oja"] * (y_i - torch.mv(weight.t(), y_j))
        if "decay" in theta:
            we, wy = torch.mv(weight, e_i), torch.mv(weight, y_i)
            ywe, ewy = torch.dot(y_j, we), torch.dot(e_j, wy)
            factor = theta["pseudo_sum"] * y_j.sum() + theta["pseudo_ywe"] * ywe
            with_error = with_error + factor * y_i
            factor = theta["crossed"] + theta["crossed_ywe"] * ywe + theta["crossed_ewy"] * ewy
            with_activity = with_activity + factor * e_i
            weight = (1.0 - theta["decay"]) * weight - (theta["presynaptic"] * e_i)
        if with_activity is None:
            new.append(torch.addr(weight, e_j, with_error, alpha=-1.0))
        else:
            above, below = torch.stack([e_j, y_j]), torch.stack([with_error, with_activity])
            new.append(torch.addmm(weight, above.t(), below, alpha=-1.0))
    return new


def make(which: str, quick: bool, device: str) -> Case:
    """One meta-step after another, each from the same weights on the same points."""
    points = 10 if quick else 250
    network = mlp(SIZES, mg.Softplus(BETA), bias=False)
    rule = Plasticity(**{term: mg.learnable(value) for term, value in THETA[which].items()}, input_slope=BETA)
    program = mg.compile(network, rule, device=device)
    start = program.init()
    # Five classes, pixels from 0 to 1 of which most are zero, as characters have them.
    labels = torch.randint(0, 5, (points + 50,), device=device)
    images = (torch.rand(points + 50, SIZES[0], device=device) - 0.7).clamp(0.0)
    xs, ys = images[:points], labels[:points]
    query, wanted = images[points:], labels[points:]

    def ours() -> Tensor:
        state = start
        for i in range(points):
            state, _ = program.step(state, xs[i : i + 1], ys[i : i + 1])
        loss = program.step(state, query, wanted)[1].loss
        return learn(loss)

    adam = torch.optim.Adam(program.parameters(), lr=0.0)

    def learn(loss: Tensor) -> Tensor:
        adam.zero_grad()
        loss.backward()
        adam.step()
        return loss.detach()

    theta = {term: torch.tensor(value, device=device, requires_grad=True) for term, value in THETA[which].items()}
    w = [start[name]["w"] for name in names(SIZES)]
    b = [start[name]["b"] for name in names(SIZES)]
    own, one_hot = torch.optim.Adam(list(theta.values()), lr=0.0), torch.eye(SIZES[-1], device=device)

    def by_hand() -> Tensor:
        weights = w
        for i in range(points):
            weights = script(theta, weights, b, xs[i], one_hot[ys[i]])
        activity = query
        for weight in weights[:-1]:
            activity = functional.softplus(activity @ weight.t(), BETA)
        loss = functional.cross_entropy(activity @ weights[-1].t(), wanted)
        own.zero_grad()
        loss.backward()
        own.step()
        return loss.detach()

    contestants: dict[str, Contestant] = {OURS: ours, SCRIPT: by_hand}
    return Case(contestants, SCRIPT, cost(program, 1, 3 * points))


WORKLOADS = [
    Workload(
        f"plasticity_{which}", f"plasticity, meta-step of {what}", functools.partial(make, which), None, {1: seconds}
    )
    for which, what, seconds in (
        ("pseudo", "the pseudo-gradient", 0.28),
        ("bio", "F_bio", 1.29),
        ("pool", "the pool of ten terms", 0.90),
    )
]
