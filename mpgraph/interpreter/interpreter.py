"""The meaning of a program: plain loops over scalar agents, arrow by arrow, with no vectorisation and no cleverness.

Slow and short. Tests hold the compiler to it. State and results have the form that :meth:`Program.step` uses.
An agent that asks for a total over its node or the batch is run again once all have answered: updates are pure.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mpgraph.agents.agent import View
from mpgraph.agents.channel import Channel
from mpgraph.agents.each import Each
from mpgraph.agents.node import AgentNode
from mpgraph.agents.repeat import Repeat, counts_of, names_of
from mpgraph.errors import ProtocolError
from mpgraph.graph.arrows import Arrow
from mpgraph.graph.wiring import AgentGraph
from mpgraph.network.activations import Activation, activation
from mpgraph.network.axes import BATCH
from mpgraph.network.connections import indices
from mpgraph.network.losses import Loss
from mpgraph.network.operations import Operation
from mpgraph.network.stochastic import Stochastic

from .totals import Batch, Cumulative, Group, Measured, Operands, Population, Pulled, answer, total

if TYPE_CHECKING:
    from mpgraph.program.program import Program

Key = tuple[tuple[int, ...], int]  # agent (its index), example


class _Waiting(Exception):
    """An agent asked for a total that is not known yet."""


def step(
    program: Program,
    state: Mapping[str, Any],
    inputs: Mapping[str, Tensor],
    targets: Mapping[str, Tensor],
    noise: Mapping[str, Tensor] | None = None,
    phase: str | None = None,
    repeat: Mapping[str, int] | int | None = None,
    told: Mapping[str, Tensor] | None = None,
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """One learning step: the new state, and the predictions by output.

    Args:
        program: whose graph and agents are run.
        state: as from ``program.init``.
        inputs: for each input a batch of numbers, and for each variant (``"x.second"``).
        targets: for each output a batch of numbers, labels already as one-hot vectors.
        noise: as from ``program.noise``, for rules that use it.
        phase: which one, of a rule that has several; by default the one whose turn it is.
        repeat: other numbers of rounds, by the name of a repetition.
        told: for each output, of a program whose step is one tick or a sequence, one for each example that has a target
            in it (of sequences ``(batch, ticks)``), and zero for others, of which the loss says nothing; by default all
            have one.
    """
    fed = {**inputs, **{f"{k}.target": v for k, v in targets.items()}}
    start = program.renewed(dict(state), len(next(iter(fed.values()))))
    run = _Run(program.graph, start, fed, noise or {}, program.dtype)
    passes = program.graph.protocol.passes_of(program.protocol.phase_at(state, phase))
    run.told = {loss.name: told[loss.pre] for loss in program.graph.network.losses.values()} if told else {}
    run.times, moment = counts_of(passes, repeat), program.graph.protocol.moment(passes)
    predictions: dict[str, Tensor] = {}
    for number, element in enumerate(passes):
        run.element(element)
        if number == moment:
            *_, run.pass_name = names_of([element])
            predictions = {name: run.prediction(name) for name in program.graph.network.outputs}
    for name in program.graph.closing:
        run.element(name)
    return run.state(state), predictions


class _Run:
    def __init__(
        self,
        graph: AgentGraph,
        state: Mapping[str, Any],
        fed: Mapping[str, Tensor],
        noise: Mapping[str, Tensor],
        dtype: torch.dtype,
    ) -> None:
        self.graph, self.noise, self.dtype = graph, noise, dtype
        self.batch = len(next(iter(fed.values())))
        self.noise_count = 0
        self.pass_name = ""
        self.told: Mapping[str, Tensor] = {}  # by loss, of which examples it has a target
        self.times: dict[str, int] = {}  # rounds of repetitions, where they are not those of the schedule
        self.rounds: tuple[int, ...] = ()  # numbers of the present ones
        self.first: dict[str, tuple[Any, Any]] = {}  # of this pass, values before it, where agents send first
        self.kept = {n: dict(channels) for n, channels in state.items()}  # as in a state; by owner
        self.wrote: dict[tuple[str, str], list[Tensor]] = {}  # by owner and channel, what each of several uses wrote
        self.signals: dict[tuple[str, str], list[Tensor]] = {}  # likewise, what each handed to the optimizer
        self.fast: dict[str, dict[Key, dict[str, Any]]] = {}  # at this tick, of sequences
        self.tick = 0
        self.ticks = [self.fast]  # the same of all
        self.late: dict[tuple[str, str, int], dict[Key, Any]] = {}  # of this pass, what is heard at other ticks
        self.whole: dict[tuple[Arrow, int], Tensor] = {}
        if graph.sequences:
            inputs = [fed[name] for name in graph.network.inputs]
            self.ticks = [{} for _ in range(inputs[0].shape[1])]
        for tick in range(len(self.ticks)):
            self.go_to(tick)
            self.begin(fed)

    def go_to(self, tick: int) -> None:
        """Look at a tick; there is only one, but for sequences."""
        self.tick, self.fast = tick, self.ticks[tick]

    def begin(self, fed: Mapping[str, Tensor]) -> None:
        """What agents hold at first, at one tick."""
        graph = self.graph
        for name, node in graph.nodes.items():
            self.fast[name] = {key: {} for key in self.keys(node)}
            if node.type not in ("input", "target"):
                continue
            for channel in ("value", *(c for c, declared in graph.channels[name].items() if declared.fed)):
                given = fed[(node.owner if node.type == "input" else name) + f".{channel}" * (channel != "value")]
                if node.type == "input" and graph.network.ticks > 1:
                    given = given[:, node.tick]
                if graph.sequences:
                    given = given[:, self.tick]
                for key, own in self.fast[name].items():
                    own[channel] = given[(key[1], *key[0])]

    def keys(self, node: AgentNode) -> list[Key]:
        return list(itertools.product(indices(node.shape), range(self.batch)))

    def view(self, node: AgentNode, key: Key, answers: Any = None, asked: Any = None, first: Any = None) -> ScalarView:
        """The view of one agent: its fast channels, and what its owner keeps."""
        declared = self.graph.channels[node.name]
        fast, owned = first or (self.fast[node.name], self.kept)
        kept = {c: owned[node.keeper(d)][c][_place(node, d, key)] for c, d in declared.items() if d.kept}
        return ScalarView(self, node, key, {**fast[key], **kept}, answers, asked)

    # -- the schedule -------------------------------------------------------------------------------------

    def element(self, element: str | Repeat) -> None:
        """One pass, or several that are repeated."""
        if isinstance(element, str):
            ticks = range(len(self.ticks))
            self.late, noise = {}, self.noise_count
            for tick in reversed(ticks) if element in self.graph.back else ticks:
                self.go_to(tick)
                self.rounds = (self.tick,) if self.graph.sequences else self.rounds
                self.noise_count = noise
                self.one_tick(element)
            self.merge()
            return
        noise = self.noise_count
        for number in range(self.times.get(element.name, element.times)):
            self.rounds, self.noise_count = (*self.rounds, number), noise
            before = self.watched(element.until)
            for inner in element.passes:
                self.element(inner)
            self.rounds = self.rounds[:-1]
            after = self.watched(element.until)
            if before and all((after[k] - b).abs().max() <= element.tolerance for k, b in before.items()):
                break

    def one_tick(self, name: str) -> None:
        """One pass over all nodes, of sequences at one tick."""
        first = self.graph.first[name]
        fast = {n: {key: dict(own) for key, own in self.fast[n].items()} for n in first}
        self.first = {n: (fast[n], {name: dict(kept) for name, kept in self.kept.items()}) for n in first}
        for node in self.graph.order[name]:
            self.update(name, node)
        roles = (arrows for one in self.graph.arrows[name].values() for arrows in one.values())
        for arrow in (arrow for arrows in roles for arrow in arrows if arrow.delay):
            keys = self.keys(arrow.source)
            self.late[arrow.source.name, arrow.to, self.tick] = {key: self.said(arrow, *key) for key in keys}
        self.first = {}

    def watched(self, channel: str | None) -> dict[Any, Tensor]:
        """All values of a channel: those that a repetition waits for."""
        found: dict[Any, Tensor] = {}
        for name, node in self.graph.nodes.items():
            for key in self.keys(node) if channel in self.graph.channels[name] else ():
                values = self.view(node, key)._values
                if channel in values:
                    found[name, key] = values[channel]
        return found

    # -- one pass over one node ---------------------------------------------------------------------------

    def update(self, name: str, node: AgentNode) -> None:
        self.pass_name = name
        method = self.graph.agents[node.name].update_of(name)
        if method is not None:
            inboxes = {key: self.inbox(name, node, key) for key in self.keys(node)}
            self.everywhere(node, lambda view, key: method(view, **inboxes[key]))
            self.whole = {}

    def everywhere(self, node: AgentNode, call: Any) -> None:
        """Run every agent of a node, again whenever one asks for a total; then keep what they wrote."""
        answers: list[dict[Key, Any]] = []
        noise_before = self.noise_count
        while True:
            asked: dict[Key, tuple[Any, Any]] = {}
            done: dict[Key, Any] = {}
            for key in self.keys(node):
                self.noise_count = noise_before
                try:
                    done[key] = call(self.view(node, key, iter(answers), asked), key)
                except _Waiting:
                    continue
            if not asked:
                break
            answers.append(answer(asked))
        several = self.graph.sequences or len(self.graph.uses[node.owner]) > 1
        for channel, declared in self.graph.channels[node.name].items():
            if not declared.kept:
                for key, view in done.items():
                    if channel in view._values:
                        self.fast[node.name][key][channel] = view._values[channel]
                continue
            name = (node.keeper(declared), channel)
            if any(channel in view._wrote for view in done.values()):
                new = self.tensor(node, channel, {k: v._values[channel] for k, v in done.items()})
                if several and declared.extent != "carry":
                    self.wrote.setdefault(name, []).append(new)
                else:
                    self.kept[name[0]][channel] = new
            if any(channel in view._signals for view in done.values()):
                signal = self.tensor(node, channel, {k: v._signals[channel] for k, v in done.items()})
                self.signals.setdefault(name, []).append(signal)

    def tensor(self, node: AgentNode, channel: str, values: Mapping[Key, Any]) -> Tensor:
        """A channel's tensor from the values of all agents and examples, averaged over what it has no axis for."""
        declared = self.graph.channels[node.name][channel]
        tensor = torch.zeros_like(self.kept[node.keeper(declared)][channel])
        counts = torch.zeros_like(tensor)
        for key, value in values.items():
            tensor[_place(node, declared, key)] += value
            counts[_place(node, declared, key)] += 1.0
        return tensor / counts

    def merge(self) -> None:
        """After a pass: the average of what the several uses of one node wrote, then one optimizer step for all."""
        for (owner, channel), values in self.wrote.items():
            self.kept[owner][channel] = torch.stack(values).mean(0)
        self.wrote, signals = {}, self.signals
        self.signals = {}
        for (owner, channel), values in signals.items():
            node, mean = self.graph.nodes[owner], torch.stack(values).mean(0)
            declared, optimizer = self.graph.channels[owner][channel], self.graph.protocol.optimizer_of(node, channel)

            def step(view: View, key: Key, at: Any = (optimizer, channel, mean, declared)) -> View:
                optimizer, channel, mean, declared = at
                return optimizer.update(view, channel, mean[_place(view.node, declared, key)])

            self.everywhere(node, step)
        for (owner, channel), values in self.wrote.items():
            self.kept[owner][channel] = values[0]
        self.wrote = {}

    def inbox(self, name: str, node: AgentNode, key: Key) -> dict[str, Any]:
        inbox: dict[str, Any] = {}
        for role, arrows in self.graph.arrows[name][node.name].items():
            if not arrows:
                continue
            how = arrows[0].how
            if node.inner and role == "pre":
                inbox[role] = Each({a.source.name: self.operand(a, key[1]) for a in arrows})
            elif how == "each":
                inbox[role] = Each({a.source.name: total(self.messages(a, key), "sum") for a in arrows})
            else:
                found = [m for a in arrows for m in self.messages(a, key)]
                if how == "window_mean":
                    silent = sum(self.windows(a, key) for a in arrows) - len(found)
                    found, how = [*found, *[_scaled(found[0], 0.0)] * silent], "mean"
                inbox[role] = total(found, how)
        return inbox

    def windows(self, arrow: Arrow, key: Key) -> int:
        """How many messages would reach one agent through an arrow if no window reached over the edge."""
        messages = math.prod(axis.size or 1 for axis in arrow.aggregated)
        if not arrow.adds_up or arrow.incidence is None:
            return messages
        place = dict(zip(arrow.target.axes, key[0], strict=True))
        degrees = arrow.incidence.full_degrees.clamp(min=1)
        return messages * int(degrees[tuple(place[axis] for axis in arrow.incidence.unit)])

    def operand(self, arrow: Arrow, example: int) -> Tensor:
        """All messages of a unit to an operation, as a whole."""
        if (arrow, example) not in self.whole:
            shape = arrow.source.shape
            messages = [self.message(arrow, index, example) for index in indices(shape)]
            stacked = torch.stack([torch.as_tensor(m) for m in messages])
            self.whole[arrow, example] = stacked.reshape(*shape, *stacked.shape[1:])
        return self.whole[arrow, example]

    def messages(self, arrow: Arrow, key: Key) -> list[Any]:
        """Messages that reach one agent through an arrow: one from each source that meets it."""
        if arrow.is_answer:
            first = next(iter(indices(arrow.source.shape)))
            return [self.message(arrow, first, key[1])[arrow.target.name][key[0]]]
        place = dict(zip(arrow.target.axes, key[0], strict=True))
        incidence = arrow.incidence
        absent = False
        if incidence is not None and arrow.looks_up:
            site = tuple(place[axis] for axis in incidence.sites)
            agent = int(incidence.grid[site])
            absent = agent < 0
            shape = tuple(axis.size or 0 for axis in incidence.unit)
            met = torch.unravel_index(torch.tensor(max(agent, 0)), shape)
            there = dict(zip(incidence.unit, map(int, met), strict=True))
        choices: list[Sequence[int]] = []
        for axis in arrow.source.axes:
            if axis in arrow.names:
                choices.append([place[arrow.names[axis]]])
            elif incidence is not None and arrow.looks_up and axis in there:
                choices.append([there[axis]])
            else:
                choices.append(range(axis.size or 0))
        found = []
        for index in itertools.product(*choices):
            if incidence is not None and arrow.adds_up and not self.leads(arrow, index, place):
                continue
            message = self.message(arrow, index, key[1])
            message = message[arrow.target.name] if isinstance(message, Each) else message
            found.append(_scaled(message, 0.0) if absent else message)
        if not found:  # no synapse at all: nothing is received
            any_source = tuple(0 for _ in arrow.source.axes)
            found.append(_scaled(self.message(arrow, any_source, key[1]), 0.0))
        return found

    def leads(self, arrow: Arrow, index: tuple[int, ...], place: Mapping[Any, int]) -> bool:
        """Whether a site of a connection meets an agent of the unit."""
        incidence = arrow.incidence
        assert incidence is not None
        own = dict(zip(arrow.source.axes, index, strict=True))
        agent = int(incidence.grid[tuple(own[axis] for axis in incidence.sites)])
        flat = 0
        for axis in incidence.unit:
            flat = flat * (axis.size or 0) + place[axis]
        return agent == flat

    def message(self, arrow: Arrow, index: tuple[int, ...], example: int) -> Any:
        """What a source says; of a delayed message what it said at another tick, and zero where there is none."""
        if not arrow.delay:
            return self.said(arrow, index, example)
        said = self.late.get((arrow.source.name, arrow.to, self.tick - arrow.delay))
        return torch.zeros((), dtype=self.dtype) if said is None else said[index, example]

    def said(self, arrow: Arrow, index: tuple[int, ...], example: int) -> Any:
        send = self.graph.agents[arrow.source.name].answer_of(arrow.pass_name, arrow.to)
        assert send is not None
        said = send(self.view(arrow.source, (index, example), first=self.first.get(arrow.source.name)))
        told = self.told.get(arrow.source.name)
        if told is None:
            return said
        return _scaled(said, float(told[example, self.tick] if self.graph.sequences else told[example]))

    # -- results ------------------------------------------------------------------------------------------

    def state(self, before: Mapping[str, Any]) -> dict[str, Any]:
        """The state after the step."""
        program = {"seed": before["program"]["seed"], "step": before["program"]["step"] + 1}
        return {**self.kept, "program": program}

    def prediction(self, name: str) -> Tensor:
        """The readout of an output, of sequences at each tick."""
        if not self.graph.sequences:
            return self.predicted(name)
        each = []
        for tick in range(len(self.ticks)):
            self.go_to(tick)
            each.append(self.predicted(name))
        return torch.stack(each, 1)

    def predicted(self, name: str) -> Tensor:
        node, agent = self.graph.nodes[name], self.graph.agents[name]
        rows = []
        for example in range(self.batch):
            row = [torch.as_tensor(agent.readout(self.view(node, (i, example)))) for i in indices(node.shape)]
            rows.append(torch.stack(row).reshape(*node.shape, *row[0].shape))
        return torch.stack(rows)


class ScalarView(View):
    """The view of one agent for one example."""

    learning = True

    def __init__(
        self,
        run: _Run,
        node: AgentNode,
        key: Key,
        values: Mapping[str, Any],
        answers: Any = None,
        asked: dict[Key, Any] | None = None,
    ) -> None:
        self._run, self.node, self._key = run, node, key
        self._agent, self._channels = run.graph.agents[node.name], run.graph.channels[node.name]
        self._pass = run.pass_name
        self._values, self._answers, self._asked = dict(values), answers, asked
        self._wrote: set[str] = set()
        self._signals: dict[str, Any] = {}

    def _copy(self) -> ScalarView:
        view = ScalarView(self._run, self.node, self._key, self._values, self._answers, self._asked)
        view._wrote, view._signals = set(self._wrote), dict(self._signals)
        return view

    def _write(self, name: str, channel: Channel, value: Any) -> None:
        if not isinstance(value, Each):
            value = torch.as_tensor(value, dtype=self._run.dtype)
            if channel.kept or channel.size is not None:  # one number may stand for all k
                value = value.expand(self._agent.size_of(channel))
        if channel.kept and self._asked is not None:
            value = self._ask(value, self._sharing(channel))
            self._wrote.add(name)
        self._values[name] = value

    def _sharing(self, channel: Channel) -> Group:
        """The mean over all agents and examples for which a kept channel is one."""
        return Group(lambda key: _place(self.node, channel, key), "mean")

    def _ask(self, value: Any, how: Any) -> Any:
        """Hand in a value; wait until every agent and example has."""
        if self._asked is None:
            raise ProtocolError("totals over agents or examples belong into updates, not into messages")
        try:
            return next(self._answers)[self._key]
        except StopIteration:
            self._asked[self._key] = (value, how)
            raise _Waiting from None

    def segment(self, function: Any, *values: Any) -> Any:  # noqa: D102
        return function(*values)

    def population(self, value: Any, how: str = "sum") -> Any:  # noqa: D102
        return self._ask(value, Group(lambda key: key[1], how))

    def cumsum(self, value: Any, end: str = "post") -> Any:  # noqa: D102
        free = self.node.free_at(end)
        return self._ask(value, Cumulative([i for i, axis in enumerate(self.node.axes) if axis in free]))

    def examples(self, value: Any, how: str = "mean") -> Any:  # noqa: D102
        shared = [i for i, axis in enumerate(self.node.axes) if axis in self.node.shared]

        def agent(key: Key) -> Any:
            return tuple(n for i, n in enumerate(key[0]) if i not in shared)

        if how in ("max", "min"):
            return self._ask(value, Group(agent, how))
        summed = self._ask(value, Group(lambda key: (agent(key), key[1]), "sum"))
        uses = len(self._run.graph.uses[self.node.owner]) * len(self._run.ticks)
        return self._ask(summed, Batch(agent, how)) * uses

    def all(self, value: Any, how: str = "mean") -> Any:  # noqa: D102
        return self._ask(value, Group(lambda key: None, how))

    def normal(self, per: str = "example") -> Any:  # noqa: D102
        name = f"{self.node.name}.{self._run.pass_name}.{self._run.noise_count}"
        self._run.noise_count += 1
        place = dict(zip(self.node.axes, self._key[0], strict=True))
        own = tuple(place[axis] for axis in self.node.kept)
        return self._run.noise[name][self._run.rounds][(self._key[1], *self._key[0]) if per == "example" else own]

    @property
    def step(self) -> Any:  # noqa: D102
        return self._run.kept["program"]["step"].to(self._run.dtype)

    def _on_node(self, func: Any, *values: Any) -> Any:
        """A function of the whole population and batch: all agents hand in their numbers."""
        return self._ask(values, Population(func, self.node.shape))

    def apply(self, z: Any) -> Any:  # noqa: D102
        kind = self.node.function
        assert isinstance(kind, Activation)
        if isinstance(kind, Operation):
            return self._ask(tuple(z.values()), Operands(kind.apply, self.node.shape, self._dims()))
        if isinstance(kind, Stochastic):
            return self._by(kind, kind.sample, z, self._own_noise())
        return self._by(kind, kind.apply, z)

    def _by(self, kind: Activation, func: Any, *values: Any) -> Any:
        """A function of a node's on the numbers of one agent, or of all if it needs them."""
        return func(*values) if kind.over == "agent" else self._on_node(func, *values)

    def _own_noise(self) -> Any:
        """The noise of a stochastic unit."""
        noise = self._run.noise[f"{self.node.name}.own"]
        return (noise[self._run.tick] if self._run.graph.sequences else noise)[(self._key[1], *self._key[0])]

    def _dims(self) -> list[int]:
        """Number of dimensions of each operand."""
        return [len(axes) for axes in self.node.inner.values()]

    def statistics(self, z: Any) -> tuple[Any, ...]:  # noqa: D102
        kind = self.node.function
        assert isinstance(kind, Activation)
        kept = [i for i, axis in enumerate(self.node.axes) if axis in self.node.kept]
        return self._ask((z,), Measured(kind.statistics, self.node.shape, kept))

    def _vjp(self, e: Any, z: Any, out: Any) -> Any:
        kind = self.node.function
        assert isinstance(kind, Activation)
        if isinstance(kind, Operation):
            parts = self._ask((e, out, *z.values()), Pulled(kind.vjp, self.node.shape, self._dims()))
            return Each(dict(zip(z, parts, strict=True)))
        if kind.is_flat():
            surrogate = self._run.graph.protocol.rule_of(self.node).surrogate
            if surrogate is None:
                return e * 0.0
            kind = activation(surrogate)
            return kind.vjp(e, z, kind.apply(z))
        e = torch.as_tensor(e, dtype=self._run.dtype)
        if isinstance(kind, Stochastic):
            return self._by(kind, kind.sample_vjp, e, z, out, self._own_noise())
        return self._by(kind, kind.vjp, e, z, out)

    def loss(self, pre: Any, target: Any) -> Any:  # noqa: D102
        func, shape = self.node.function, self.node.shape
        assert isinstance(func, Loss)

        def everywhere(z: Tensor, t: Tensor) -> Tensor:
            each = func.apply(z, t)
            return each.reshape(-1, *(1 for _ in shape)).expand(-1, *shape)

        return self._on_node(everywhere, pre, target)

    def gradient(self, pre: Any, target: Any) -> Any:  # noqa: D102
        assert isinstance(self.node.function, Loss)
        return self._on_node(self.node.function.gradient, pre, target)

    def _descend(self, channel: str, signal: Any) -> View:
        signal = self._ask(signal, self._sharing(self._channels[channel]))
        if self._run.graph.sequences or len(self._run.graph.uses[self.node.owner]) > 1:
            view = self._copy()
            view._signals[channel] = signal
            return view
        return self._run.graph.protocol.optimizer_of(self.node, channel).update(self, channel, signal)


def _scaled(message: Any, factor: float) -> Any:
    return {k: v * factor for k, v in message.items()} if isinstance(message, dict) else message * factor


def _place(node: AgentNode, channel: Any, key: Key) -> tuple[int, ...]:
    """Where the state tensor of a kept channel holds the entry of one agent and example."""
    place = dict(zip(node.axes, key[0], strict=True))
    return tuple(key[1] if axis is BATCH else place[axis] for axis in node.layout(channel))
