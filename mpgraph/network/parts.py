"""What a network is made of: units, connections between them, losses; and what they may be called."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from mpgraph.errors import NetworkError

from .activations import Activation, Identity
from .connections import Connection
from .losses import Loss

RESERVED = ("program", "one", "zero")


@dataclass(frozen=True)
class Unit:
    """A population of inputs or neurons. ``shape`` is that of one example; inputs compute nothing."""

    name: str
    shape: tuple[int, ...]
    activation: Activation = field(default_factory=Identity)
    is_input: bool = False
    bias: bool = False
    bias_value: Tensor | None = None
    bias_trained: bool = True
    bias_shared: tuple[int, ...] = ()  # dimensions along which one bias serves all
    operands: tuple[str, ...] = ()  # of an operation: it has no connections
    values: Mapping[str, Tensor] = field(default_factory=dict)  # initial, of channels that its agent keeps


@dataclass(frozen=True)
class Wire:
    """A connection between two units, or from a unit to a loss."""

    name: str
    pre: str
    post: str
    connection: Connection
    weight: Tensor | None = None
    trained: bool = True
    delay: int = 0  # ticks
    tied: str | None = None  # the wire whose weights it uses
    transposed: bool = False
    pathway: str = "weight"


@dataclass(frozen=True)
class LossNode:
    """A loss on the output of a unit."""

    name: str
    pre: str
    loss: Loss


def check_name(name: Any) -> None:
    """Refuse what cannot name a node: its name is part of names of connections, of states and of generated code.

    Raises:
        NetworkError: for an empty or unprintable name, or one that the engine needs for its own nodes.
    """
    if not isinstance(name, str) or not name or not name.isprintable() or name != name.strip():
        raise NetworkError(
            f"{name!r} cannot name a node: use a non-empty string of printable characters, with no space at its ends"
        )
    if "->" in name or "@" in name or name.partition("#")[0] in RESERVED:
        raise NetworkError(f"{name!r} cannot name a node: use a string without '->' or '@', not {', '.join(RESERVED)}")
    if name.endswith((".bias", ".target", ".link")):
        raise NetworkError(
            f"{name!r}: names that end in .bias, .target and .link are those of biases, targets and "
            "links; choose another"
        )
