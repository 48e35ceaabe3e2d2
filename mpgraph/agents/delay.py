"""What travels along a delayed connection, of a program whose step is one tick: an agent that says it a tick later."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from mpgraph.errors import ProtocolError

from .agent import Agent, View
from .channel import Channel, carry, fast

NEXT = "next tick"  # a pass that the engine adds at the end of a step; no rule can have one of this name


class Delay(Agent):
    """Says in each pass what its unit said in that pass one tick ago, and zero before the first tick.

    It keeps a number for each pass in which somebody hears it, under the name of the pass: what is said in the next
    step. Nothing goes back through it: messages do not travel from a tick to an earlier one.

    Args:
        heard: the passes in which it is heard, and whether a synapse needs its message there.
    """

    def __init__(self, heard: Mapping[str, bool]) -> None:
        super().__init__()
        self.heard = dict(heard)
        self.sends_first = tuple(heard)  # nobody waits within a tick for what comes in the next

    def channels(self) -> dict[str, Channel]:
        """What is said in this tick, and what was heard for the next."""
        return {name: carry() for name in self.heard} | {_heard(name): fast() for name in self.heard}

    def roles(self, name: str) -> dict[str, bool]:
        """Its unit, in passes in which it is heard."""
        return {"pre": self.heard[name]} if name in self.heard else {}

    def update_of(self, name: str) -> Callable[..., View] | None:
        """Hear the unit; at the end of the tick take over what was heard."""

        def hear(s: View, pre: Any) -> View:
            if isinstance(pre, dict) or tuple(getattr(pre, "shape", ())):
                kind = "a dictionary" if isinstance(pre, dict) else f"of shape {tuple(pre.shape)}"
                raise ProtocolError(
                    f"node {s.node.name!r}, pass {name!r}: the message that is delayed is {kind}; where a step is one "
                    "tick it must be a single number. Unroll the network instead: mg.compile(..., online=False)"
                )
            return s.set(**{_heard(name): pre})

        def take_over(s: View) -> View:
            return s.set(**{one: getattr(s, _heard(one)) for one in self.heard if _heard(one) in s._values})

        return take_over if name == NEXT else hear if name in self.heard else None

    def message_of(self, name: str, to: str = "") -> Callable[[View], Any] | None:
        """What the unit said one tick ago, to those behind it."""

        def say(s: View) -> Any:
            return getattr(s, name)

        return say if name in self.heard and to != "pre" else None


def _heard(name: str) -> str:
    return f"{name}, heard"
