"""Channels: the named pieces of an agent's state, and how long each is kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from mpgraph.errors import ProtocolError, unknown

from .initializers import Initializer, constant, zeros

Extent = Literal["slow", "fast", "carry", "common"]
End = Literal["pre", "post"]
AGGREGATIONS = ("sum", "mean", "window_mean", "max", "min", "each")


@dataclass(frozen=True)
class Channel:
    """One piece of an agent's state; made by :func:`slow`, :func:`fast`, :func:`fed`, :func:`carry` and :func:`common`.

    Attributes:
        extent: over what it is kept, see the functions.
        size: ``None`` for one number, ``k`` (or the name of an agent's attribute that holds k) for a vector; a
            channel of size 0 is not there at all.
        init: initializer, for channels that outlive a step, or the name of an agent's method that is one.
        frozen: a write to it is an error.
        end: keep only the axes of one end of a connection.
        per: ``"agent"`` keeps one value for all uses of an agent (positions of a convolution, ticks, tied connections),
            ``"use"`` one for each: a message that is held belongs to the place where it arrived.
        learned: of a carry, whether it is what the rule has learned, see :func:`carry`.
        fed: of a fast channel of an input, whether each batch fills it, see :func:`fed`.
        life: of a carry, ``"state"`` if it goes from step to step, ``"step"`` if each step begins anew.
    """

    extent: Extent
    size: int | str | None = None
    init: Initializer | str = zeros
    frozen: bool = False
    end: End | None = None
    per: Literal["agent", "use"] = "agent"
    learned: bool = False
    fed: bool = False
    life: Literal["state", "step"] = "state"

    @property
    def kept(self) -> bool:
        """Whether the channel is part of the state between steps."""
        return self.extent != "fast"


def _initializer(init: Initializer | float | str) -> Initializer | str:
    return init if callable(init) or isinstance(init, str) else constant(float(init))


def slow(size: int | str | None = None, *, init: Initializer | float | str = 0.0, frozen: bool = False) -> Any:
    """Per-agent state kept across steps, with no batch axis (a weight). Writes are averaged over the batch and uses.

    Args:
        size: ``None`` for one number, ``k`` for a vector of that length, or the name of an agent's attribute that holds
            k. In the state the tensor has the node's axes, ``(post, pre)`` for a dense connection, then ``k``.
        init: its first value: a number, a function such as :func:`xavier_uniform`, or the name of a method that is one.
        frozen: a write to it is an error.
    """
    return Channel("slow", size, _initializer(init), frozen)


def fast(size: int | str | None = None) -> Any:
    """One value for each example, gone after the step (an activation).

    Args:
        size: ``k`` for a vector of that length; without a size, any local shape.
    """
    return Channel("fast", size)


def fed() -> Any:
    """Another variant of an input, which comes with each batch that is learned from: a second view, a negative example.

    Only for agents of inputs. A channel ``second = mg.fed()`` of the agent of the input ``"x"`` holds what a step is
    given as ``x={"x": ..., "x.second": ...}``, of the input's own shape; its agent sends it in the passes of that
    variant. Predictions are not given it.
    """
    return Channel("fast", fed=True)


def carry(
    size: int | str | None = None,
    *,
    init: Initializer | float | str = 0.0,
    end: End | None = None,
    per: Literal["agent", "use"] = "agent",
    learned: bool = False,
    life: Literal["state", "step"] = "state",
) -> Any:
    """One value for each slot of the batch, kept between steps (a memory).

    A memory of the agent goes from tick to tick and from one tied connection to the next; over the positions of a
    convolution its writes are averaged. A memory of each use stays where it is.

    ``program.predict`` starts from a memory's initial value: what the last batch of training left in it belongs to
    other examples. ``learned=True`` means that the memory *is* what the rule learns (a synapse that is a recurrent
    network); predictions then start from the state. ``life="step"`` is a memory within a step, such as a trace that
    goes from tick to tick of a network that is unrolled: every step begins with its initial value.

    Args:
        size: as of :func:`slow`; in the state the tensor has the axis of the batch first.
        init: as of :func:`slow`.
        end: ``"pre"`` or ``"post"``: of a synapse, one value for each unit at that end, with the average of what the
            synapses write.
        per: ``"agent"`` or ``"use"``: one value for all uses of an agent, or one for each.
        learned: whether it is what the rule learns.
        life: ``"state"`` or ``"step"``.

    Raises:
        ProtocolError: for another word for its life, or one of a step for what was learned.
    """
    if life not in ("state", "step"):
        raise ProtocolError("mg.carry: " + unknown("life", life, ("state", "step")))
    if learned and life == "step":
        raise ProtocolError("mg.carry(learned=True, life='step'): what was learned would be lost after each step")
    return Channel("carry", size, _initializer(init), end=end, per=per, learned=learned, life=life)


def common(size: int | str | None = None, *, init: Initializer | float | str = 0.0) -> Any:
    """One value for the whole node, kept (running statistics). Writes are averaged over agents and batch.

    Args:
        size: as of :func:`slow`; in the state the tensor has no other axis.
        init: as of :func:`slow`.
    """
    return Channel("common", size, _initializer(init))
