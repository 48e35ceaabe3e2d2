"""What a learning rule is written for: one agent, its channels of state, and its local view.

An agent class has up to two methods a pass, ``<pass>_update(self, s, <roles>)`` and ``<pass>_message(self, s)``.
A ``<pass>_message_to_post(self, s)`` is for neighbors of that role only.
The parameters of an update *are* its inbox, by role: ``pre`` and ``post`` are the neighbors on either side, a
loss also has ``target``. A default (``post=None``) makes a role optional. The view ``s`` is a value: ``s.set``
returns a new one.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal, Self

import torch
from torch.overrides import is_tensor_like

from mpgraph.arguments import Arguments
from mpgraph.errors import ProtocolError, unknown

from .channel import Channel, End
from .each import Each
from .initializers import Initializer
from .module import RuleModule

if TYPE_CHECKING:
    from .node import AgentNode


class Agent(RuleModule):
    """Base of all agents. Learned parts of a rule are its parameters and submodules, shared by all nodes that use it.

    Class attributes:
        same_as: passes in which the agent does what it does in another, unless it has methods for them:
            ``{"perturb": "forward"}``.
        sends_first: passes in which the agent sends what it holds before the pass, and receives afterwards. Nobody
            waits for it then, so units that drive each other can send and receive in one pass.
        answers: whether it sends its forward message in every pass in which a neighbor needs one (a role without a
            default) and it has no other: inputs, targets and constants do. ``learn_message = None`` is none.
        aggregate: for a role, or for a role in one pass (``"project:pre"``), how the messages of all neighbors become
            one: ``sum`` (default), ``mean`` (total sum over total count), ``window_mean`` (the same, but a window of a
            convolution counts whole, also where it reaches over the edge: all pixels divide by the same number),
            ``max``, ``min``, or ``each`` (kept apart by connection, see :class:`Each`).
    """

    aggregate: dict[str, str] = {}  # noqa: RUF012 - overridden whole, never changed
    same_as: Mapping[str, str] = {}
    sends_first: tuple[str, ...] = ()
    answers: bool = False

    def channels(self) -> dict[str, Channel]:
        """Channels by name, those of base classes first. Override to add some that depend on arguments."""
        found: dict[str, Channel] = {}
        for base in reversed(type(self).__mro__):
            found.update({k: v for k, v in vars(base).items() if isinstance(v, Channel)})
        return found

    def channels_at(self, node: AgentNode) -> dict[str, Channel]:
        """Channels at a node; an agent that calls ``s.activate`` also has those of the node's function there."""
        return self.channels()

    def update_of(self, name: str) -> Callable[..., View] | None:
        """The update of a pass, if this agent has one."""
        return self._method(name, "update")

    def message_of(self, name: str, to: str = "") -> Callable[[View], Any] | None:
        """The message of a pass, if this agent has one: that to neighbors of a role, or else that to all."""
        return (self._method(name, f"message_to_{to}") if to else None) or self._method(name, "message")

    def answer_of(self, name: str, to: str, needed: bool = True) -> Callable[[View], Any] | None:
        """The message of a pass to neighbors of a role, which may need one."""
        found = self.message_of(name, to)
        if found is None and needed and self.answers and not hasattr(self, f"{name}_message"):
            return self.message_of("forward", to)
        return found

    def sends(self, name: str) -> bool:
        """Whether this agent has a message of a pass, to whomever."""
        names = [name]
        while names[-1] in self.same_as and self.same_as[names[-1]] not in names:
            names.append(self.same_as[names[-1]])
        to_some = any(n.startswith(f"{one}_message_to_") for one in names for n in dir(type(self)))
        return to_some or self.message_of(name) is not None

    def _method(self, name: str, what: str) -> Callable[..., Any] | None:
        """The method of this pass, or of the pass that `same_as` names. ``None`` in a class means none."""
        if not hasattr(self, f"{name}_{what}") and name in self.same_as and not self._has_methods(name, what):
            return self._method(self.same_as[name], what)
        return getattr(self, f"{name}_{what}", None)

    def _has_methods(self, name: str, what: str) -> bool:
        """Whether this agent has a message of its own for a pass, to all, which goes before one to some of another."""
        return what.startswith("message_to_") and hasattr(self, f"{name}_message")

    def check_same_as(self) -> None:
        """Refuse passes in ``same_as`` that lead back to themselves, or that the agent has no method for.

        Raises:
            ProtocolError: naming the class and the pass.
        """
        owner = type(self).__name__
        Arguments(owner).annotated("same_as", self.same_as, Mapping[str, str])
        for name in self.same_as:
            chain = [name]
            while chain[-1] in self.same_as:
                chain.append(self.same_as[chain[-1]])
                if chain[-1] in chain[:-1]:
                    text = " -> ".join(map(repr, chain))
                    raise ProtocolError(f"{owner}.same_as: a pass cannot be the same as itself: {text}")
        for name, other in self.same_as.items():
            if self.update_of(other) is None and not self.sends(other):
                passes = {n.rsplit("_", 1)[0] for n in dir(type(self)) if n.endswith(("_update", "_message"))}
                raise ProtocolError(f"{owner}.same_as[{name!r}]: " + unknown("pass", other, passes))

    def roles(self, name: str) -> dict[str, bool]:
        """Roles that the update of a pass reads; the value is whether the role must be filled."""
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
        """Initializer of a channel."""
        return getattr(self, channel.init) if isinstance(channel.init, str) else channel.init

    def readout(self, s: View) -> Any:
        """What the network predicts, if this agent is an output: by default its message of the pass that predicts.

        Args:
            s: the agent's view after that pass.

        Returns:
            A number, shape ``()``, or a vector ``(k,)``; ``out.prediction`` has the axes of batch and unit before it.

        Raises:
            ProtocolError: for an agent that sends nothing in that pass and has no ``readout`` of its own.
        """
        message = self.message_of(s._pass) or self.message_of("forward")
        if message is None:
            raise ProtocolError(
                f"{type(self).__name__} is used as an output but has no {s._pass}_message, and no readout of its own: "
                "def readout(self, s): return s.y"
            )
        return message(s)


class Unwritten(ProtocolError):
    """A fast channel is read before any pass of the step has written it."""


class View(ABC):
    """The state of one agent for one example, as its rule sees it. Reading ``s.name`` reads channel ``name``.

    Whatever a rule reads has its *local* shape: ``()`` for one number, ``(k,)`` for a channel of size k. That it stands
    for many agents and examples never shows. Where a method below gives no shape, the result has that of its argument.

    The two executors implement it: on lazy values (compiler) and on single numbers (interpreter). What both must refuse
    is refused here.
    """

    node: AgentNode
    learning: bool  # False in predict, where every write is discarded
    _agent: Agent
    _channels: Mapping[str, Channel]  # those of the node
    _pass: str
    _values: dict[str, Any]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return self._read(name)

    def __setattr__(self, name: str, value: Any) -> None:
        if not name.startswith("_") and name not in ("node", "learning"):
            raise ProtocolError(f"a rule assigned s.{name}: state is a value, write 's = s.set({name}=...)'")
        object.__setattr__(self, name, value)

    def _read(self, name: str) -> Any:
        self._channel(name)
        if name not in self._values:
            raise Unwritten(
                f"{self._where()}: channel {name!r} is read before it is written; it is fast, so an earlier pass of "
                "the same step must set it"
            )
        return self._values[name]

    def _where(self) -> str:
        return f"node {self.node.name!r}, pass {self._pass!r}"

    def _channel(self, name: str) -> Channel:
        if name not in self._channels:
            raise ProtocolError(f"{self._where()}: " + unknown("channel", name, self._channels))
        return self._channels[name]

    def _is_fixed(self, name: str) -> bool:
        """Whether writes to a channel are dropped: the weights of a connection that is not trained."""
        return name == "w" and not self.node.trained

    def _check_fits(self, name: str, channel: Channel, value: Any, what: str) -> None:
        """Refuse what is not a number or tensor of a channel's shape; ``()`` fits every shape."""
        if isinstance(value, Each):
            if channel.kept:
                raise ProtocolError(
                    f"{self._where()}: channel {name!r} is kept, so it cannot hold a value for each neighbor"
                )
            return
        if not isinstance(value, (int, float)) and not is_tensor_like(value):
            raise ProtocolError(
                f"{self._where()}: channel {name!r} {what} {type(value).__name__}; it takes a number or a tensor"
            )
        given, size = tuple(getattr(value, "shape", ())), self._agent.size_of(channel)
        if (channel.kept or channel.size is not None) and given not in (size, ()):
            raise ProtocolError(
                f"{self._where()}: channel {name!r} has shape {size} but {what} a value of shape {given}"
            )

    def set(self, **values: Any) -> Self:
        """A view with other values, each of the channel's shape or ``()``.

        A slow channel takes the batch average, a common one that of all agents too. Writes to the ``w`` of a connection
        that is not trained are dropped.

        Args:
            values: by name of the channel: ``s.set(z=pre, y=y)``.

        Raises:
            ProtocolError: for an unknown or frozen channel, or a value of another shape.
        """
        view = self._copy()
        for name, value in values.items():
            channel = self._channel(name)
            if channel.frozen:
                raise ProtocolError(f"{self._where()}: channel {name!r} is frozen and cannot be set")
            self._check_fits(name, channel, value, "was set to")
            if not self._is_fixed(name):
                view._write(name, channel, value)
        return view

    def descend(self, **signals: Any) -> View:
        """Hand a channel's increment (a gradient) to the protocol's inner optimizer, which writes the channel.

        The signal has the channel's shape, or ``()``. The optimizer gets its average over the batch, and over the uses
        of a synapse in one example where it depends on them: write ``s.examples(...)`` for what is to be summed over
        uses, a gradient.

        Args:
            signals: by name of the channel, in the sense of a gradient: plain descent writes ``w - lr * signal``.

        Raises:
            ProtocolError: for an unknown channel, or a signal of another shape.
        """
        view: View = self
        for name, signal in signals.items():
            view._check_fits(name, view._channel(name), signal, "was handed as its signal")
            if not self._is_fixed(name):
                view = view._descend(name, signal)
        return view

    @abstractmethod
    def _copy(self) -> Self:
        """A view of the same agent, to write into."""

    @abstractmethod
    def _write(self, name: str, channel: Channel, value: Any) -> None:
        """Put a value, which fits, into this new view."""

    @abstractmethod
    def _descend(self, name: str, signal: Any) -> View: ...

    @abstractmethod
    def population(self, value: Any, how: str = "sum") -> Any:
        """Aggregate over the agents of the node, for each example.

        Args:
            value: of shape ``()`` or ``(k,)``.
            how: ``sum``, ``mean``, ``max`` or ``min``, entry by entry.

        Returns:
            A value of the same shape, the same for all agents.
        """

    @abstractmethod
    def cumsum(self, value: Any, end: End = "post") -> Any:
        """Sum over this agent of a connection and those before it at one end, for each example.

        A prefix sum along the ``end`` axis: of a dense connection over the synapses from the same ``pre``, in the order
        of the unit; of a convolution over lower channels. Where the place at one end fixes the place at the other
        (one-to-one, sparse) it is the value itself. ``()`` gives ``()``, ``(k,)`` gives ``(k,)``.
        """

    @abstractmethod
    def examples(self, value: Any, how: str = "mean") -> Any:
        """Aggregate over the batch, for each agent.

        A synapse that is used several times in an example (a convolution's at every position, a recurrent one's at
        every tick) first *sums* its uses; they are parts of one example.

        Args:
            value: of shape ``()`` or ``(k,)``.
            how: ``sum``, ``mean``, ``max`` or ``min``, entry by entry.

        Returns:
            A value of the same shape, the same for all examples.
        """

    @abstractmethod
    def all(self, value: Any, how: str = "mean") -> Any:
        """Aggregate over the agents and the batch.

        Args:
            value: of shape ``()`` or ``(k,)``.
            how: ``sum``, ``mean``, ``max`` or ``min``, entry by entry.

        Returns:
            A value of the same shape, the same for all agents and examples.
        """

    @abstractmethod
    def segment(self, function: Callable[..., Any], *values: Any) -> Any:
        """``function(*values)``, for functions with large intermediate values, such as a network per synapse.

        It runs on some agents and examples at a time and, where there is a backward pass, again in that; so it costs
        memory only for what goes in and comes out, and time for one more forward run. The function gets and returns
        tensors of local shape, ``()`` or ``(k,)``, one or a tuple of them. It may use the parameters of its modules; of
        the agent's values only those that it is given.
        """

    @abstractmethod
    def normal(self, per: Literal["example", "agent"] = "example") -> Any:
        """A standard normal number, shape ``()``, for each agent and example; sampled outside, so that steps stay pure.

        With ``per="agent"`` one for each agent's kept state, the same for all examples and uses: the shape of a weight.
        """

    @property
    @abstractmethod
    def step(self) -> Any:
        """How many steps the state has taken: a number, shape ``()``, of the program's dtype, for schedules."""

    @abstractmethod
    def apply(self, z: Any) -> Any:
        """The node's function (an activation, an operation) at ``z``."""

    def activate(self, z: Any) -> tuple[View, Any]:
        """The node's function at ``z``, and the view with what the function keeps brought up to date.

        Most functions keep nothing. A batch normalization keeps running averages: it uses the statistics of the batch
        while learning, and these averages in ``predict``.
        """
        function: Any = self.node.function
        if not getattr(function, "kept", None):
            return self, self.apply(z)
        kept = {name: getattr(self, name) for name in function.kept}
        if not self.learning:
            return self, function.recall(z, **kept)
        return self.set(**function.renew(kept, self._measured(z))), self.apply(z)

    def _measured(self, z: Any) -> tuple[Any, ...]:
        """Statistics of a number, or of each entry of a vector."""
        if not getattr(z, "ndim", 0):
            return self.statistics(z)
        return tuple(torch.stack(parts) for parts in zip(*(self.statistics(one) for one in z), strict=True))

    def vjp(self, e: Any, z: Any, *, out: Any = None) -> Any:
        """Carry ``e`` back through the node's function: its transposed derivative at ``z``, times ``e``.

        ``out`` is the function's value there. Where the function has zero derivative everywhere, the derivative of the
        rule's ``surrogate`` stands in; without one the result is zero.

        Raises:
            ProtocolError: without ``out``.
        """
        if out is None:
            raise ProtocolError(
                f"node {self.node.name!r}: s.vjp(e, z) also needs out=, the function's value at z: "
                "s.vjp(post, s.z, out=s.y)"
            )
        return self._vjp(e, z, out)

    @abstractmethod
    def _vjp(self, e: Any, z: Any, out: Any) -> Any: ...

    @abstractmethod
    def statistics(self, z: Any) -> tuple[Any, ...]:
        """What the node's function measures on all agents and examples together (the mean of a batch normalization).

        Args:
            z: what the function is applied to, shape ``()``.

        Returns:
            As many numbers, of shape ``()``, as the function measures; none for most.
        """

    @abstractmethod
    def loss(self, pre: Any, target: Any) -> Any:
        """This node's loss of each example.

        Args:
            pre: the prediction (logits for a cross-entropy), shape ``()`` for each agent.
            target: of the same shape; a class label is a one-hot row by now.

        Returns:
            A number, shape ``()``, in units of the loss, the same for all agents of the node.
        """

    @abstractmethod
    def gradient(self, pre: Any, target: Any) -> Any:
        """Derivative of this node's loss with respect to ``pre``, for each example, not divided by the batch.

        Args:
            pre: the prediction, shape ``()`` for each agent.
            target: of the same shape.

        Returns:
            A number, shape ``()``, in units of the loss by those of ``pre``.
        """

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
