"""What a learning rule is written for: one agent, its channels of state, and its local view.

An agent class has up to two methods a pass, ``<pass>_update(self, s, <roles>)`` and ``<pass>_message(self, s)``.
The parameters of an update *are* its inbox, by role: ``pre`` and ``post`` are the neighbours on either side, a
loss also has ``target``. A default (``post=None``) makes a role optional. The view ``s`` is a value: ``s.set``
returns a new one.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

from mpgraph.errors import ProtocolError

from .channel import Channel, End
from .initializers import Initializer
from .module import RuleModule

if TYPE_CHECKING:
    from .node import AgentNode


class Agent(RuleModule):
    """Base of all agents. Learned parts of a rule are its parameters and sub-modules, shared by whoever uses it.

    Class attributes:
        aggregate: for a role, or for a role in one pass (``"project:pre"``), how the messages of all neighbours become
            one: ``sum`` (default), ``mean`` (total sum over total count), ``window_mean`` (the same, but a window of a
            convolution counts whole, also where it reaches over the edge: all pixels divide by the same number),
            ``max``, ``min``, or ``each`` (kept apart by connection, see :class:`Each`).
    """

    aggregate: dict[str, str] = {}  # noqa: RUF012 - overridden whole, never changed

    def channels(self) -> dict[str, Channel]:
        """Channels by name, those of base classes first. Override to add some that depend on arguments."""
        found: dict[str, Channel] = {}
        for base in reversed(type(self).__mro__):
            found.update({k: v for k, v in vars(base).items() if isinstance(v, Channel)})
        return found

    def update_of(self, name: str) -> Callable[..., View] | None:
        """The update of a pass, if this agent has one."""
        return getattr(self, f"{name}_update", None)

    def message_of(self, name: str) -> Callable[[View], Any] | None:
        """The message of a pass, if this agent has one."""
        return getattr(self, f"{name}_message", None)

    def roles(self, name: str) -> dict[str, bool]:
        """Roles that the update of a pass reads; the value says whether the role must be filled."""
        update = self.update_of(name)
        if update is None:
            return {}
        parameters = list(inspect.signature(update).parameters.values())[1:]
        return {p.name: p.default is inspect.Parameter.empty for p in parameters}

    def size_of(self, channel: Channel) -> tuple[int, ...]:
        """Local shape of a channel: ``()`` or ``(k,)``."""
        size = getattr(self, channel.size) if isinstance(channel.size, str) else channel.size
        return () if size is None else (int(size),)

    def init_of(self, channel: Channel) -> Initializer:
        """Initialiser of a channel."""
        return getattr(self, channel.init) if isinstance(channel.init, str) else channel.init

    def readout(self, s: View) -> Any:
        """What the network predicts, if this agent is an output: by default its forward message."""
        message = self.message_of("forward")
        if message is None:
            raise ProtocolError(f"{type(self).__name__} is used as an output but has no forward_message")
        return message(s)


class View(ABC):
    """The state of one agent for one example, as its rule sees it. Reading ``s.name`` reads channel ``name``.

    The two executors implement it: on lazy values (compiler) and on single numbers (interpreter).
    """

    node: AgentNode
    learning: bool  # False in predict, where every write is discarded

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return self._read(name)

    def __setattr__(self, name: str, value: Any) -> None:
        if not name.startswith("_") and name not in ("node", "learning"):
            raise ProtocolError(f"a rule assigned s.{name}: state is a value, write 's = s.set({name}=...)'")
        object.__setattr__(self, name, value)

    @abstractmethod
    def _read(self, name: str) -> Any: ...

    @abstractmethod
    def set(self, **values: Any) -> View:
        """A view with other values. A slow channel takes the batch average, a common one that of all agents too."""

    @abstractmethod
    def population(self, value: Any, how: str = "sum") -> Any:
        """Aggregate over the agents of the node, for each example: ``sum``, ``mean``, ``max``, ``min``."""

    @abstractmethod
    def cumsum(self, value: Any, end: End = "post") -> Any:
        """Sum over this agent of a connection and those before it at one end, for each example.

        Those are the synapses that differ from it in their place at that end alone: of a dense connection all from the
        same ``pre``, in the order of the unit; of a convolution those of lower channels. Where places at one end are
        not free of those at the other (one-to-one, sparse) it is the value itself.
        """

    @abstractmethod
    def examples(self, value: Any, how: str = "mean") -> Any:
        """Aggregate over the batch, for each agent.

        A synapse that is used several times in an example (a convolution's at every position, a recurrent one's at
        every tick) first *sums* its uses; they are parts of one example.
        """

    @abstractmethod
    def all(self, value: Any, how: str = "mean") -> Any:
        """Aggregate over the agents and the batch."""

    @abstractmethod
    def segment(self, function: Callable[..., Any], *values: Any) -> Any:
        """``function(*values)``, for one that is wide inside: a network at each synapse.

        It runs on some agents and examples at a time and, where there is a backward pass, again in that; so it costs
        memory for what goes in and comes out alone, and time for one more forward run. The function may use the
        parameters of its modules; of the agent's values only those that it is given. It returns a value, or a tuple.
        """

    @abstractmethod
    def normal(self, per: Literal["example", "agent"] = "example") -> Any:
        """A standard normal number for each agent and example; drawn outside, so that a step stays pure.

        With ``per="agent"`` one for each agent's kept state, the same for all examples and uses: the shape of a weight.
        """

    @property
    @abstractmethod
    def step(self) -> Any:
        """How many steps the state has taken: a number of the program's dtype, for schedules."""

    @abstractmethod
    def apply(self, z: Any) -> Any:
        """The function of this node's kind (an activation)."""

    def vjp(self, e: Any, z: Any, *, out: Any = None, instead: str | None = None) -> Any:
        """Carry ``e`` back through the node's function: its transposed derivative at ``z``, times ``e``.

        ``out`` is the function's value there. Where the function has zero derivative everywhere, ``instead`` names
        the activation whose derivative stands in (a surrogate); without one the result is zero.
        """
        if out is None:
            raise ProtocolError(
                f"node {self.node.name!r}: s.vjp(e, z) also needs out=, the function's value at z: "
                "s.vjp(post, s.z, out=s.y)"
            )
        return self._vjp(e, z, out=out, instead=instead)

    @abstractmethod
    def _vjp(self, e: Any, z: Any, *, out: Any, instead: str | None) -> Any: ...

    @abstractmethod
    def statistics(self, z: Any) -> tuple[Any, ...]:
        """What the node's kind measures on all agents and examples together (a batch normalisation's mean)."""

    @abstractmethod
    def loss(self, pre: Any, target: Any) -> Any:
        """This node's loss of each example, the same for all agents of the node."""

    @abstractmethod
    def gradient(self, pre: Any, target: Any) -> Any:
        """Derivative of this node's loss with respect to ``pre``, for each example, not divided by the batch."""

    # Names before 0.2, for rules that were written with them.

    def pull(self, e: Any, z: Any, **options: Any) -> Any:
        """:meth:`vjp`."""
        return self.vjp(e, z, **options)

    def peers(self, value: Any, how: str = "sum") -> Any:
        """:meth:`population`."""
        return self.population(value, how)

    def upto(self, value: Any, end: End = "post") -> Any:
        """:meth:`cumsum`."""
        return self.cumsum(value, end)

    @abstractmethod
    def _descend(self, channel: str, signal: Any) -> View: ...

    def descend(self, **signals: Any) -> View:
        """Hand a channel's increment (a gradient) to the protocol's inner optimiser, which writes the channel.

        The optimiser gets the average of the signal over the batch, and over the uses of a synapse in one example
        where it depends on them: write ``s.examples(...)`` for what is to be summed over uses, a gradient.
        """
        view: View = self
        for channel, signal in signals.items():
            view = view._descend(channel, signal)
        return view
