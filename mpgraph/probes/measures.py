"""Measuring a rule: its errors against the gradient, its feedback against its weights, its updates, its units.

A probe reads. It takes steps of its own from the state that it is given and throws their results away, so a run is the
same with and without it. Probes know channels by name and nothing of rules: which channel of a unit holds its error and
which of a synapse its feedback weight are arguments, by default ``e`` and ``b`` as in the rules of this project.
:class:`Follow` measures all along a training.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from mpgraph.agents.agent import Agent
from mpgraph.agents.channel import fast, slow
from mpgraph.agents.protocol import Protocol
from mpgraph.errors import InputError, ProtocolError
from mpgraph.network.network import Network, Wire
from mpgraph.program.compile import compile
from mpgraph.program.program import Batch, Program, State

from .channels import Part, nodes_with, recorded, units_with
from .gradient import gradients, weight_gradients

# -- errors -------------------------------------------------------------------------------------------------------


def angles(
    program: Program,
    state: State,
    x: Batch,
    y: Batch | None = None,
    *,
    error: Part = "e",
    against: Mapping[str, str] | None = None,
    nodes: Sequence[str] | None = None,
    phase: str | None = None,
) -> dict[str, float]:
    """Angle between the batch means of a rule's errors and of the gradient, for each unit, in degrees.

    The mean vector over the batch is taken first, as in the code of Shervani-Tabar and Rosenbaum (2023); see
    :func:`angles_by_example` for the angle of each example. It is nan where one of the two vanishes: at a unit without
    derivative there is no gradient to compare with.

    Args:
        program: a network with a rule.
        state: where to measure.
        x, y: a batch, as for ``program.step``.
        error: the channel of units that holds the error, ``(channel, index)`` for one number of several.
        against: compare not with the gradient, but with the rule's own errors once channels are replaced by others:
            ``{"b": "w"}`` sends errors through the forward weights.
        nodes: of which to measure the angle; by default all units that have the channel.
        phase: of a rule whose steps are not all alike.

    Returns:
        Degrees, 0..180, by node.

    Raises:
        ProtocolError: for an unknown node or channel.
    """
    pairs = _errors(program, state, x, y, error, against, nodes, phase)
    return {name: float(angle(mine.mean(0), true.mean(0))) for name, (mine, true) in pairs.items()}


def angles_by_example(
    program: Program,
    state: State,
    x: Batch,
    y: Batch | None = None,
    *,
    error: Part = "e",
    against: Mapping[str, str] | None = None,
    nodes: Sequence[str] | None = None,
    phase: str | None = None,
) -> dict[str, Tensor]:
    """As :func:`angles` for each example by itself.

    Args:
        program, state, x, y: where to measure, and a batch.
        error, against, nodes, phase: as of :func:`angles`.

    Returns:
        Degrees, 0..180, as a tensor ``(batch,)`` by node.
    """
    pairs = _errors(program, state, x, y, error, against, nodes, phase)
    return {name: angle(mine.flatten(1), true.flatten(1), dim=1) for name, (mine, true) in pairs.items()}


def _errors(
    program: Program,
    state: State,
    x: Batch,
    y: Batch | None,
    error: Part,
    against: Mapping[str, str] | None,
    nodes: Sequence[str] | None,
    phase: str | None,
) -> dict[str, tuple[Tensor, Tensor]]:
    """The rule's error and the one to compare it with, by node."""
    chosen = units_with(program, error) if nodes is None else list(nodes)
    mine = recorded(program, state, x, y, dict.fromkeys(chosen, error), phase)
    _single("angles", "error", program, error, x, mine)
    if against is None:
        true = gradients(program, state, x, y)
        for name in chosen:
            if name not in true:
                raise ProtocolError(
                    f"angles: node {name!r} receives no summed messages, so there is no gradient to compare with; "
                    f"units are {', '.join(true)}. Or compare with the rule's own errors, against={{'b': 'w'}}"
                )
    else:
        true = recorded(program, _replaced(state, against), x, y, dict.fromkeys(chosen, error), phase)
    return {name: (mine[name], true[name]) for name in chosen}


def _single(caller: str, argument: str, program: Program, part: Part, x: Batch, found: Mapping[str, Tensor]) -> None:
    """Refuse a channel that holds several numbers at an agent."""
    ticks = program.online and program._batches.is_sequence(x)  # those of a sequence come after the batch
    for name, tensor in found.items():
        if tensor.ndim > 1 + ticks + len(program.graph.nodes[name].axes):
            raise ProtocolError(
                f"{caller}: the channel {part!r} of node {name!r} holds {tensor.shape[-1]} numbers; allowed are single "
                f"ones, such as {argument}=({part!r}, 0)"
            )


def _replaced(state: State, against: Mapping[str, str]) -> State:
    """The state with some channels in the place of others, wherever a node has both."""
    for old, new in against.items():
        nodes_with(state, old, new)
    return {
        name: {c: channels[against[c]] if against.get(c) in channels else t for c, t in channels.items()}
        for name, channels in state.items()
    }


def angle(one: Tensor, two: Tensor, dim: int | None = None) -> Tensor:
    """Angle between vectors in degrees, 0..180; nan where one is zero.

    Kahan's formula, exact for small angles, where the arc cosine of a rounded number is not.

    Args:
        one, two: of one shape.
        dim: along which vectors lie; by default each tensor is one vector as a whole.
    """
    if dim is None:
        one, two, dim = one.flatten(), two.flatten(), 0
    one, two = (v / torch.linalg.vector_norm(v, dim=dim, keepdim=True) for v in (one, two))
    apart, together = (torch.linalg.vector_norm(v, dim=dim) for v in (one - two, one + two))
    return torch.rad2deg(2.0 * torch.atan2(apart, together))


# -- weights ------------------------------------------------------------------------------------------------------


def weight_angles(state: State, *, weight: str = "w", partner: str = "b") -> dict[str, float]:
    """Angle between W and B' of each connection in degrees: both are kept in one layout, so equal tensors give 0.

    Args:
        state: of any program whose synapses keep both channels.
        weight, partner: names of the channels; the partner is what carries errors in place of the weight.

    Raises:
        ProtocolError: if no node keeps both; it lists the channels that there are.
    """
    nodes = nodes_with(state, weight, partner)
    return {name: float(angle(state[name][weight], state[name][partner])) for name in nodes}


def norm_ratios(state: State, *, weight: str = "w", partner: str = "b") -> dict[str, float]:
    """Frobenius norm of W by that of B, for each connection.

    Args:
        state: of any program whose synapses keep both channels.
        weight, partner: names of the channels, as of :func:`weight_angles`.

    Returns:
        Ratios by connection, without a unit.

    Raises:
        ProtocolError: if no node keeps both; it lists the channels that there are.
    """
    nodes = nodes_with(state, weight, partner)
    return {name: float(state[name][weight].norm() / state[name][partner].norm()) for name in nodes}


class _Carrier(Agent):
    """A synapse that passes on what it receives."""

    w, x = slow(), fast()

    def forward_update(self, s: Any, pre: Any) -> Any:
        return s.set(x=pre)

    def forward_message(self, s: Any) -> Any:
        return s.w * s.x


class _Linear(Protocol):
    """A connection by itself: x -> W x."""

    passes = ("forward",)

    def __init__(self) -> None:
        super().__init__(weight=_Carrier())


_maps: WeakKeyDictionary[Program, dict[str, Program]] = WeakKeyDictionary()  # by connection, compiled once


def orthonormality(
    program: Program,
    state: State,
    x: Batch,
    y: Batch | None = None,
    *,
    activity: Part = "y",
    weight: str = "w",
    phase: str | None = None,
) -> dict[str, float]:
    """How far the rows of each W are from orthonormal, as the activities see it: sum of ``|W y_below - W W' y|^2``.

    Shervani-Tabar and Rosenbaum (2023), Eq. 11; the sum is over the examples of the batch, and over ticks. Works for
    every kind of connection, which is taken as the linear map that it is.

    Args:
        program: a network with a rule.
        state: where to measure.
        x, y: a batch, as for ``program.step``.
        activity: the channel of units that holds it. Inputs without that channel are taken as they are. In the paper
            that of an output is its softmax.
        weight: the channel of synapses.
        phase: of a rule whose steps are not all alike.

    Returns:
        By connection, in squared units of activity.

    Raises:
        ProtocolError: for an unknown channel.
    """
    graph = program.graph
    places = {(node.owner, node.tick): name for name, node in graph.nodes.items() if node.owner in graph.network.units}
    wires = [wire for wire in graph.network.wires.values() if _is_map(wire, state, weight)]
    if not wires:
        nodes_with(state, weight)
    pairs = {
        wire: [
            (places[wire.pre, tick - wire.delay], places[wire.post, tick])
            for tick in range(wire.delay, graph.network.ticks)
            if (wire.pre, tick - wire.delay) in places and (wire.post, tick) in places
        ]
        for wire in wires
    }
    needed = dict.fromkeys(name for ends in pairs.values() for end in ends for name in end)
    channels = {name: _activity_of(program, name, activity) for name in needed}
    found = recorded(program, state, x, y, channels, phase)
    return {
        wire.name: sum(_residual(program, wire, state[wire.name][weight], found[a], found[b]) for a, b in ends)
        for wire, ends in pairs.items()
    }


def _is_map(wire: Wire, state: State, weight: str) -> bool:
    return wire.tied is None and weight in state.get(wire.name, {})


def _activity_of(program: Program, name: str, activity: Part) -> Part:
    channel = activity if isinstance(activity, str) else activity[0]
    own = program.graph.channels[name]
    return "value" if channel not in own and program.graph.nodes[name].type == "input" else activity


def _residual(program: Program, wire: Wire, w: Tensor, below: Tensor, above: Tensor) -> float:
    """Sum over examples of ``|W below - W W' above|^2`` for one connection."""
    maps = _maps.setdefault(program, {})
    if wire.name not in maps:
        network = Network()
        network.input("x", tuple(below.shape[1:]))
        network.unit("y", tuple(above.shape[1:]), bias=False)
        network.connect("x", "y", wire.connection)
        maps[wire.name] = compile(network, _Linear(), device=program.device, dtype=program.dtype)
    linear = maps[wire.name]
    kept = linear.init()
    if kept["x->y"]["w"].shape != w.shape:
        raise ProtocolError(f"orthonormality: {wire.name!r} keeps {tuple(w.shape)}, not one number for each synapse")
    kept["x->y"] = {"w": w.detach()}
    with torch.enable_grad():
        seen = below.detach().requires_grad_()
        (back,) = torch.autograd.grad(linear.predict(kept, seen), seen, above.detach())  # W' above
    return float(linear.predict(kept, below - back).square().sum())


# -- updates ------------------------------------------------------------------------------------------------------


def update_norms(
    program: Program,
    state: State,
    x: Batch,
    y: Batch | None = None,
    *,
    channel: str = "w",
    relative: bool = False,
    phase: str | None = None,
) -> dict[str, float]:
    """Frobenius norm of the change that one step makes to a channel, by node.

    Args:
        program: a network with a rule.
        state: before the step.
        x, y: the batch of the step.
        channel: which one.
        relative: divide by the norm of what is there before (``inf`` where that is zero).
        phase: of a rule whose steps are not all alike.

    Raises:
        ProtocolError: for a channel that no node keeps.
    """
    nodes = nodes_with(state, channel)
    with torch.no_grad():
        after, _ = program.step(state, x, y, phase=phase)
    norms = {name: (after[name][channel] - state[name][channel]).norm() for name in nodes}
    return {n: float(norm / state[n][channel].norm() if relative else norm) for n, norm in norms.items()}


class Update(NamedTuple):
    """What a rule did to weights, beside the gradient.

    Attributes:
        angle: to the negative gradient in degrees, 0..180; nan where one of the two vanishes.
        ratio: of its norm to that of the gradient: of plain gradient descent the learning rate.
    """

    angle: float
    ratio: float


def updates(
    program: Program, state: State, x: Batch, y: Batch | None = None, *, channel: str = "w"
) -> dict[str, Update]:
    """The change that one step makes to each trained weight and bias, beside the exact gradient of the loss there.

    Of a rule whose steps are not all alike it is the change by one step of each phase, on the same batch. A rule that
    predicts with noise, or perturbs, is compared with the gradient of the very same noise.

    Args:
        program: a network with a rule.
        state: before the step.
        x, y: the batch of the step, of which the loss is the mean.
        channel: of synapses and biases that holds the weight.

    Returns:
        By connection and bias, and for ``all`` of them as one vector.

    Raises:
        ProtocolError: for a network without a loss, a rule that keeps no such channel, or a forward pass that autograd
            cannot follow.
    """
    true = weight_gradients(program, state, x, y, channel=channel)
    after = state
    with torch.no_grad():
        for phase in program.protocol.phases or [None]:
            after, _ = program.step(after, x, y, phase=phase)
    moved = {name: after[name][channel] - state[name][channel] for name in true}
    moved["all"], true["all"] = (torch.cat([t.flatten() for t in part.values()]) for part in (moved, true))
    return {n: Update(float(angle(moved[n], -true[n])), float(moved[n].norm() / true[n].norm())) for n in true}


# -- units --------------------------------------------------------------------------------------------------------


def dead_units(
    program: Program,
    state: State,
    x: Batch,
    y: Batch | None = None,
    *,
    activity: Part = "y",
    tolerance: float = 0.0,
    phase: str | None = None,
) -> dict[str, float]:
    """Share of a population, 0..1, whose activity is the same for every example of the batch: silent or saturated.

    Args:
        program: a network with a rule.
        state: where to measure.
        x, y: a batch of at least two examples, as for ``program.step``.
        activity: the channel of units that holds it.
        tolerance: largest difference between two examples that counts as none.
        phase: of a rule whose steps are not all alike.

    Raises:
        ProtocolError: for an unknown channel.
        InputError: for a batch of one.
    """
    nodes = units_with(program, activity)
    found = recorded(program, state, x, y, dict.fromkeys(nodes, activity), phase)
    if any(len(tensor) < 2 for tensor in found.values()):
        raise InputError("dead_units: needs at least two examples to see whether a unit responds to its input")
    spread = {name: tensor.amax(0) - tensor.amin(0) for name, tensor in found.items()}
    return {name: float((moved <= tolerance).to(moved.dtype).mean()) for name, moved in spread.items()}


def silent_units(
    program: Program,
    state: State,
    x: Batch,
    y: Batch | None = None,
    *,
    activity: Part = "y",
    tolerance: float = 0.0,
    phase: str | None = None,
) -> dict[str, float]:
    """Share of activities, 0..1, that are zero: over the units of a population and the examples of the batch.

    Args:
        program: a network with a rule.
        state: where to measure.
        x, y: a batch, as for ``program.step``.
        activity: the channel of units that holds it, at the end of a step.
        tolerance: largest absolute value that counts as zero.
        phase: of a rule whose steps are not all alike.

    Raises:
        ProtocolError: for an unknown channel, or one that holds several numbers.
    """
    nodes = units_with(program, activity)
    found = recorded(program, state, x, y, dict.fromkeys(nodes, activity), phase)
    _single("silent_units", "activity", program, activity, x, found)
    return {name: float((tensor.abs() <= tolerance).to(tensor.dtype).mean()) for name, tensor in found.items()}


# -- along a training ---------------------------------------------------------------------------------------------


class Follow:
    """Measures a state again and again: ``experiment.train(..., follow=Follow({...}))``, or call it in your own loop.

    Args:
        measures: by the name under which it is shown, a function from a state to a number for each node:
            ``{"error angle": lambda state: probes.angles(program, state, x, y)}``. Of a tensor the mean is kept.
        every: measure at every so many calls only, the first included.

    Attributes:
        steps: when it measured, as the caller counts.
        history: ``history[measure][node]``, a number for each of ``steps``.

    Raises:
        InputError: for ``every`` below one, or a measure that is not callable.
    """

    def __init__(self, measures: Mapping[str, Callable[[State], Mapping[str, Any]]], every: int = 1) -> None:
        if every < 1 or not all(callable(measure) for measure in measures.values()):
            raise InputError(f"Follow: needs functions of a state and every >= 1, got {dict(measures)}, every={every}")
        self.measures, self.every = dict(measures), every
        self.steps: list[int] = []
        self.history: dict[str, dict[str, list[float]]] = {name: {} for name in measures}
        self._calls = 0

    def __call__(self, step: int, state: State) -> None:
        """Measure, if it is time."""
        self._calls += 1
        if (self._calls - 1) % self.every:
            return
        self.steps.append(step)
        for name, measure in self.measures.items():
            for node, number in measure(state).items():
                value = float(torch.as_tensor(number, dtype=torch.float64, device="cpu").mean())
                self.history[name].setdefault(node, []).append(value)
