"""The meaning of a program: plain loops over scalar agents, arrow by arrow, with no vectorisation and no cleverness.

Slow and short. Tests hold the compiler to it. State and results have the form that :meth:`Program.step` uses.
An agent that asks for a total over its node or the batch is run again once all have answered: updates are pure.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .agent import View
from .connection import indices
from .each import Each
from .errors import ProtocolError
from .graph import AgentGraph, AgentNode, Arrow
from .kinds import Kind, activation
from .losses import Loss

if TYPE_CHECKING:
    from .program import Program

Key = tuple[tuple[int, ...], int]  # agent (its index), example


class _Waiting(Exception):
    """An agent asked for a total that is not known yet."""


def step(
    program: Program,
    state: Mapping[str, Any],
    inputs: Mapping[str, Tensor],
    targets: Mapping[str, Tensor],
    noise: Mapping[str, Tensor] | None = None,
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """One learning step: the new state, and the predictions by output.

    Args:
        program: whose graph and agents are run.
        state: as from ``program.init``.
        inputs: for each input a batch of numbers.
        targets: for each output a batch of numbers, labels already as one-hot vectors.
        noise: as from ``program.noise``, for rules that use it.
    """
    run = _Run(program.graph, state, {**inputs, **{f"{k}.target": v for k, v in targets.items()}}, noise or {})
    for name in program.graph.protocol.passes:
        for node in program.graph.order[name]:
            run.update(name, node)
    return run.state(state), {name: run.prediction(name) for name in program.graph.network.outputs}


class _Run:
    def __init__(
        self,
        graph: AgentGraph,
        state: Mapping[str, Any],
        fed: Mapping[str, Tensor],
        noise: Mapping[str, Tensor],
    ) -> None:
        self.graph, self.noise = graph, noise
        self.batch = len(next(iter(fed.values())))
        self.noise_count = 0
        self.values: dict[str, dict[Key, dict[str, Any]]] = {}
        for name, node in graph.nodes.items():
            self.values[name] = {}
            for key in self.keys(node):
                own = self.values[name][key] = {}
                for channel, declared in graph.agents[name].channels().items():
                    if declared.kept:
                        own[channel] = state[name][channel][_place(node, declared, key)]
                if name in fed:
                    own["value"] = fed[name][(key[1], *key[0])]

    def keys(self, node: AgentNode) -> list[Key]:
        return list(itertools.product(indices(node.shape), range(self.batch)))

    # -- one pass over one node ---------------------------------------------------------------------------

    def update(self, name: str, node: AgentNode) -> None:
        agent = self.graph.agents[node.name]
        method = agent.update_of(name)
        if method is None:
            return
        inboxes = {key: self.inbox(name, node, key) for key in self.keys(node)}
        answers: list[dict[Key, Any]] = []
        noise_before = self.noise_count
        while True:
            asked: dict[Key, tuple[Any, Any]] = {}
            done: dict[Key, Any] = {}
            for key, inbox in inboxes.items():
                self.noise_count = noise_before
                view = ScalarView(self, node, name, key, self.values[node.name][key], iter(answers), asked)
                try:
                    done[key] = method(view, **inbox)
                except _Waiting:
                    continue
            if not asked:
                break
            answers.append(_answer(asked))
        self.values[node.name] = {key: view._values for key, view in done.items()}

    def inbox(self, name: str, node: AgentNode, key: Key) -> dict[str, Any]:
        inbox = {}
        for role, arrows in self.graph.arrows[name][node.name].items():
            if arrows:
                by_source = {a.source.name: self.messages(a, key) for a in arrows}
                if arrows[0].how == "each":
                    inbox[role] = Each({n: _total(m, "sum") for n, m in by_source.items()})
                else:
                    inbox[role] = _total([m for found in by_source.values() for m in found], arrows[0].how)
        return inbox

    def messages(self, arrow: Arrow, key: Key) -> list[Any]:
        """Messages that reach one agent through an arrow: one from each source that shares its place."""
        place = dict(zip(arrow.target.axes, key[0], strict=True))
        choices = [
            [place[arrow.names[axis]]] if axis in arrow.names else range(axis.size or 0) for axis in arrow.source.axes
        ]
        found = []
        for index in itertools.product(*choices):
            source = (tuple(index), key[1])
            view = ScalarView(self, arrow.source, arrow.pass_name, source, self.values[arrow.source.name][source])
            send = self.graph.agents[arrow.source.name].message_of(arrow.pass_name)
            assert send is not None
            message = send(view)
            found.append(message[arrow.target.name] if isinstance(message, Each) else message)
        return found

    # -- results ------------------------------------------------------------------------------------------

    def state(self, before: Mapping[str, Any]) -> dict[str, Any]:
        """Kept channels as tensors: averaged over whatever the channel has no axis for."""
        after: dict[str, Any] = {}
        for name, node in self.graph.nodes.items():
            kept = {c: d for c, d in self.graph.agents[name].channels().items() if d.kept}
            for channel, declared in kept.items():
                tensor = torch.zeros_like(before[name][channel])
                counts = torch.zeros_like(tensor)
                for key, own in self.values[name].items():
                    tensor[_place(node, declared, key)] += own[channel]
                    counts[_place(node, declared, key)] += 1.0
                after.setdefault(name, {})[channel] = tensor / counts
        after["program"] = {"seed": before["program"]["seed"], "step": before["program"]["step"] + 1}
        return after

    def prediction(self, name: str) -> Tensor:
        node, agent = self.graph.nodes[name], self.graph.agents[name]
        rows = []
        for example in range(self.batch):
            row = [
                torch.as_tensor(
                    agent.readout(ScalarView(self, node, "forward", (i, example), self.values[name][i, example]))
                )
                for i in indices(node.shape)
            ]
            rows.append(torch.stack(row).reshape(*node.shape, *row[0].shape))
        return torch.stack(rows)


class ScalarView(View):
    """The view of one agent for one example."""

    def __init__(
        self,
        run: _Run,
        node: AgentNode,
        pass_name: str,
        key: Key,
        values: Mapping[str, Any],
        answers: Any = None,
        asked: dict[Key, Any] | None = None,
    ) -> None:
        self._run, self.node, self._pass, self._key = run, node, pass_name, key
        self._values, self._answers, self._asked = dict(values), answers, asked

    def _read(self, name: str) -> Any:
        if name not in self._values:
            raise ProtocolError(f"node {self.node.name!r}, pass {self._pass!r}: {name!r} is read before it is written")
        return self._values[name]

    def set(self, **values: Any) -> ScalarView:  # noqa: D102
        view = ScalarView(self._run, self.node, self._pass, self._key, self._values, self._answers, self._asked)
        for name, value in values.items():
            channel = self._run.graph.agents[self.node.name].channels()[name]
            if name == "w" and not self.node.trained:
                continue
            if channel.kept and self._asked is not None:
                value = self._ask(value, _Mean(lambda key, c=channel: _place(self.node, c, key)))
            view._values[name] = value
        return view

    def _ask(self, value: Any, how: Any) -> Any:
        """Hand in a value; wait until every agent and example has."""
        if self._asked is None:
            raise ProtocolError("totals over agents or examples belong into updates, not into messages")
        try:
            return next(self._answers)[self._key]
        except StopIteration:
            self._asked[self._key] = (value, how)
            raise _Waiting from None

    def peers(self, value: Any, how: str = "sum") -> Any:  # noqa: D102
        return self._ask(value, _Group(lambda key: key[1], how))

    def examples(self, value: Any, how: str = "mean") -> Any:  # noqa: D102
        return self._ask(value, _Group(lambda key: key[0], how))

    def all(self, value: Any, how: str = "mean") -> Any:  # noqa: D102
        return self._ask(value, _Group(lambda key: None, how))

    def normal(self) -> Any:  # noqa: D102
        name = f"{self.node.name}.{self._pass}.{self._run.noise_count}"
        self._run.noise_count += 1
        return self._run.noise[name][(self._key[1], *self._key[0])]

    def _on_node(self, func: Any, *values: Any) -> Any:
        """A function of the whole population, for each example: all agents hand in their numbers."""
        return self._ask(values, _Population(func, self.node.shape))

    def apply(self, z: Any) -> Any:  # noqa: D102
        kind = self.node.function
        assert isinstance(kind, Kind)
        return self._on_node(kind.apply, z) if kind.over == "node" else kind.apply(z)

    def pull(self, e: Any, z: Any, *, out: Any, instead: str | None = None) -> Any:  # noqa: D102
        kind = self.node.function
        assert isinstance(kind, Kind)
        if kind.is_flat():
            if instead is None:
                return e * 0.0
            kind = activation(instead)
            return kind.pull(e, z, kind.apply(z))
        if kind.over == "node":
            return self._on_node(kind.pull, e, z, out)
        return kind.pull(e, z, out)

    def gradient(self, pre: Any, target: Any) -> Any:  # noqa: D102
        assert isinstance(self.node.function, Loss)
        return self._on_node(self.node.function.gradient, pre, target)

    def _descend(self, channel: str, signal: Any) -> View:
        if channel == "w" and not self.node.trained:
            return self
        return self._run.graph.protocol.optimizer.update(self, channel, signal)


# -- totals: what happens to the values that all agents of a node have handed in ------------------------------


class _Group:
    """Aggregate over all keys of one group."""

    def __init__(self, group: Any, how: str) -> None:
        self.group, self.how = group, how

    def __call__(self, values: Mapping[Key, Any]) -> dict[Key, Any]:
        groups: dict[Any, list[Any]] = {}
        for key, value in values.items():
            groups.setdefault(self.group(key), []).append(value)
        totals = {group: _total(members, self.how) for group, members in groups.items()}
        return {key: totals[self.group(key)] for key in values}


class _Mean(_Group):
    """What a kept channel takes: the mean over everything for which it has no axis."""

    def __init__(self, group: Any) -> None:
        super().__init__(group, "mean")


class _Population:
    """A function of the whole node, example by example."""

    def __init__(self, func: Any, shape: tuple[int, ...]) -> None:
        self.func, self.shape = func, shape

    def __call__(self, values: Mapping[Key, Any]) -> dict[Key, Any]:
        result = {}
        for example in {key[1] for key in values}:
            inputs = zip(*(values[i, example] for i in indices(self.shape)), strict=True)
            whole = self.func(*(torch.stack(list(v)).reshape(1, *self.shape) for v in inputs))
            result.update({(i, example): whole[(0, *i)] for i in indices(self.shape)})
        return result


def _answer(asked: Mapping[Key, tuple[Any, Any]]) -> dict[Key, Any]:
    how = next(iter(asked.values()))[1]
    return how({key: value for key, (value, _) in asked.items()})


def _total(values: Sequence[Any], how: str) -> Any:
    if isinstance(values[0], dict):
        return {k: _total([v[k] for v in values], how) for k in values[0]}
    stacked = torch.stack(
        [torch.as_tensor(v, dtype=torch.get_default_dtype() if isinstance(v, float) else None) for v in values]
    )
    return {"sum": stacked.sum(0), "mean": stacked.mean(0), "max": stacked.amax(0), "min": stacked.amin(0)}[how]


def _place(node: AgentNode, channel: Any, key: Key) -> tuple[int, ...]:
    """Where the state tensor of a kept channel holds the entry of one agent and example."""
    if channel.extent == "common":
        return ()
    axes = node.axes if channel.end is None else node.ends.get(channel.end, node.axes)
    place = tuple(key[0][node.axes.index(axis)] for axis in axes)
    return (key[1], *place) if channel.extent == "carry" else place
