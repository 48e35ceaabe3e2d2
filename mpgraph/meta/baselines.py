"""What a learned rule is held against: the same tasks by gradient descent, tuned, and by class means."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

import mpgraph as mg
from mpgraph.agents.optimizers import Optimizer
from mpgraph.agents.protocol import Protocol
from mpgraph.errors import InputError
from mpgraph.network.network import Network

from .episode import Episode
from .task import Tasks
from .trainer import evaluate

RATES = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)
OPTIMIZERS: dict[str, Callable[[Tensor], Optimizer]] = {"sgd": lambda lr: mg.SGD(lr), "adam": lambda lr: mg.Adam(lr)}


def tuned(
    network: Network,
    rule: Callable[..., Protocol],
    optimizer: str,
    tasks: Tasks,
    validation: Tasks,
    rates: tuple[float, ...] = RATES,
    at_once: int | None = None,
) -> tuple[float, dict[str, Tensor]]:
    """The best learning rate on validation tasks, and what it reaches on the others.

    Args:
        network: that learns.
        rule: class of a fixed rule that takes ``optimizer=``.
        optimizer: ``sgd`` or ``adam``.
        tasks: to report on.
        validation: to choose the rate on.
        rates: the search space.
        at_once: tasks in one program.
    """
    made = rule(optimizer=OPTIMIZERS[optimizer](mg.learnable(rates[0])))
    episode = Episode(mg.compile(network, made))
    losses = {}
    for rate in rates:
        theta = {name: torch.full_like(p, rate) for name, p in episode.parameters().items()}
        loss = float(evaluate(episode, theta, validation, at_once)["loss"].mean())
        losses[rate] = loss if loss == loss else float("inf")
    best = min(losses, key=lambda rate: losses[rate])
    theta = {name: torch.full_like(p, best) for name, p in episode.parameters().items()}
    return best, evaluate(episode, theta, tasks, at_once)


def nearest_class_mean(tasks: Tasks) -> Tensor:
    """Accuracy of the nearest mean of the support examples of a class ``(tasks,)``.

    Raises:
        InputError: for tasks without class labels.
    """
    found = []
    for task in tasks:
        if task.y.is_floating_point():
            raise InputError(f"nearest class mean: {task.name} has targets of type {task.y.dtype}; it needs labels")
        x, y = task.x.flatten(0, 1).flatten(1), task.y.flatten()
        labels = y.unique()
        means = torch.stack([x[y == label].mean(0) for label in labels])
        nearest = torch.cdist(task.query_x.flatten(1), means).argmin(1)
        found.append((labels[nearest] == task.query_y).double().mean())
    return torch.stack(found)
