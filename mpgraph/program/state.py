"""State layout: initialization, validation, stacks, and noise."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mpgraph.agents.node import AgentNode
from mpgraph.arguments import Arguments
from mpgraph.environment import on_cpu
from mpgraph.errors import StateError
from mpgraph.graph.wiring import AgentGraph
from mpgraph.lowering.ranks import Ranks

from . import checks

State = dict[str, dict[str, Tensor]]


def stack(states: Sequence[State]) -> State:
    """Many states of one program as one: every tensor, the program's counters too, gets a leading axis.

    What ``torch.func.vmap`` maps over to run many networks at once::

        states = mg.stack([program.init(seed) for seed in range(8)])  # the same as program.init(range(8))
        states, out = torch.func.vmap(lambda s: program.step(s, x, y))(states)

    Args:
        states: at least one, alike in nodes, channels, shapes, dtypes and devices.

    Raises:
        StateError: for no states, or states that differ in any of these.
    """
    states = list(states) if isinstance(states, Iterable) and not isinstance(states, Mapping) else states
    if not isinstance(states, list) or not all(isinstance(state, Mapping) for state in states):
        raise StateError("mg.stack takes a list of states, as from program.init or program.step")
    if not states:
        raise StateError("mg.stack: no states; give at least one")
    first = states[0]
    for i, state in enumerate(states):
        _alike(i, first, state)
    return {n: {c: torch.stack([state[n][c] for state in states]) for c in channels} for n, channels in first.items()}


def _alike(i: int, first: State, other: State) -> None:
    """Refuse a state that cannot be stacked on the first."""
    where = f"mg.stack: state {i} differs from state 0"
    if first.keys() != other.keys():
        names = ", ".join(sorted(repr(n) for n in first.keys() ^ other.keys()))
        raise StateError(f"{where}: only one of them has node {names}; stack states of one program")
    for name, channels in first.items():
        if not isinstance(channels, Mapping) or not isinstance(other[name], Mapping):
            raise StateError(f"{where}: state[{name!r}] must be a dictionary of tensors")
        if channels.keys() != other[name].keys():
            names = ", ".join(sorted(repr(c) for c in channels.keys() ^ other[name].keys()))
            raise StateError(f"{where}: at node {name!r} only one has channel {names}; stack states of one program")
        for channel, one in channels.items():
            two = other[name][channel]
            if not isinstance(one, Tensor) or not isinstance(two, Tensor):
                raise StateError(f"{where}: state[{name!r}][{channel!r}] must be a tensor")
            if (one.shape, one.dtype, one.device) != (two.shape, two.dtype, two.device):
                raise StateError(
                    f"{where} at state[{name!r}][{channel!r}]: {tuple(two.shape)} of {two.dtype} on {two.device}, not "
                    f"{tuple(one.shape)} of {one.dtype} on {one.device}"
                )


class StateLayout:
    """Which tensors a state holds: the kept channels of a graph, on a device.

    Args:
        graph: nodes and their channels.
        device, dtype: of the tensors.
        ranks: processes that each have a slice of the batch. What is sampled for each example is sampled for all of
            them in every process, which keeps its own rows; so it does not depend on how many processes there are.

    Attributes:
        wanted: node, channel and shape of each tensor; ``None`` in a shape stands for the batch.
    """

    def __init__(self, graph: AgentGraph, device: torch.device, dtype: torch.dtype, ranks: Ranks | None = None) -> None:
        self.graph, self.device, self.dtype, self.ranks = graph, device, dtype, ranks
        self._channels = [
            (name, channel, declared, agent.size_of(declared))
            for name, agent in graph.agents.items()
            for channel, declared in graph.channels[name].items()
            if declared.kept and graph.nodes[name].keeper(declared) == name
        ]
        self.wanted: list[tuple[str, str, tuple[int | None, ...]]] = [
            (name, channel, (*(axis.size for axis in graph.nodes[name].layout(declared)), *local))
            for name, channel, declared, local in self._channels
        ]

    def fresh(self, seed: int, batch_size: int | None) -> State:
        """A state of its own for each seed; see :meth:`Program.init`."""
        check = Arguments("program.init")
        seed = check.integer("seed", seed, -(2**63), 2**63 - 1)
        batch_size = None if batch_size is None else check.integer("batch_size", batch_size, 1)
        state: State = {}
        with on_cpu(self.device):
            for name, channel, declared, _ in self._channels:
                if declared.extent == "carry" and batch_size is None:
                    raise StateError(
                        f"channel {channel!r} of node {name!r} keeps one value for each example: call "
                        "program.init(seed, batch_size=...)"
                    )
                initial = self._initial(name, channel, seed, self._whole(batch_size or 0))
                if declared.extent == "carry":
                    initial = self._own(initial, batch_size or 0)
                state.setdefault(name, {})[channel] = initial
            counters = {"seed": torch.tensor(seed), "step": torch.tensor(0)}
        state["program"] = {k: v.to(self.device) for k, v in counters.items()}
        return state

    def _whole(self, size: int) -> int:
        """The size of the batch of which ``size`` examples are here."""
        return size if self.ranks is None else size * self.ranks.size

    def _own(self, tensor: Tensor, size: int) -> Tensor:
        """The rows of the examples that are here."""
        return tensor if self.ranks is None else self.ranks.rows(tensor, size).clone()

    def _initial(self, name: str, channel: str, seed: int, batch_size: int) -> Tensor:
        """The initial value of one channel, in memory of its own."""
        node, agent, declared = self.graph.nodes[name], self.graph.agents[name], self.graph.channels[name][channel]
        local = agent.size_of(declared)
        shape = (*(batch_size if axis.size is None else axis.size for axis in node.layout(declared)), *local)
        given = self._given(node, channel, shape, len(local))
        if given is not None:
            return given.to(device=self.device, dtype=self.dtype)
        generator = torch.Generator("cpu").manual_seed(_seed(seed, name, channel))
        tensor = agent.init_of(declared)(shape, node, generator, self.dtype)
        return tensor.to(device=self.device, dtype=self.dtype, copy=True)  # it may be the rule's own

    def reset(self, state: State, batch_size: int | None) -> State:
        """The state with fresh memories of examples; see :meth:`Program.reset`."""
        self.check(state, None)
        seed, size = state["program"]["seed"], batch_size or self.slots(state) or 0
        if batch_size is not None:
            size = Arguments("program.reset").integer("batch_size", batch_size, 1)
        fresh = {name: dict(channels) for name, channels in state.items()}
        with on_cpu(self.device):
            for name, channel, declared, _ in self._channels:
                if declared.extent == "carry" and not declared.learned:
                    initial = self._initial(name, channel, int(seed), self._whole(size))
                    fresh[name][channel] = self._own(initial, size)
        return fresh

    def brief(self) -> dict[tuple[str, str], Tensor]:
        """Initial values of memories that live for one step, for one example."""
        return self.memories(
            (name, channel) for name, channel, declared, _ in self._channels if declared.life == "step"
        )

    def memories(self, read: Iterable[tuple[str, str]]) -> dict[tuple[str, str], Tensor]:
        """Initial values of memories of examples, for one example."""
        with on_cpu(self.device):
            return {(name, channel): self._initial(name, channel, 0, 1) for name, channel in read}

    def _given(self, node: AgentNode, channel: str, shape: tuple[int, ...], local: int) -> Tensor | None:
        """What the network prescribes: a connection's weight, a unit's values; zero for biases.

        A number that a rule keeps as a vector (the last ``local`` dimensions) is prescribed for each of its entries.
        """
        unit = self.graph.network.units.get(node.name.partition("@")[0])
        value = node.value if channel == "w" else unit.values.get(channel) if unit else None
        if value is not None:
            if local and tuple(value.shape) == shape[:-local]:
                value = value.reshape(*value.shape, *(1,) * local)
            elif value.ndim and tuple(value.shape) != shape:
                raise StateError(f"node {node.name!r}: given {channel} {tuple(value.shape)} for a channel {shape}")
            cast = value.to(self.dtype)
            if not bool(torch.isfinite(cast).all()):  # the numbers given are finite
                largest = float(value.abs().max())
                raise StateError(
                    f"node {node.name!r}: given {channel} holds numbers of up to {largest:g}, too large for the "
                    f"program's {self.dtype}, which ends at {torch.finfo(self.dtype).max:g}; give smaller ones"
                    + ", or mg.compile(..., dtype=torch.float64)"
                    * (self.dtype != torch.float64)
                )
            return cast.expand(shape).clone()
        return torch.zeros(shape, dtype=self.dtype, device="cpu") if node.type == "bias" and channel == "w" else None

    def slots(self, state: State) -> int | None:
        """For how many examples the state keeps memories; ``None`` if it keeps none."""
        return next((len(state[n][c]) for n, c, shape in self.wanted if shape[:1] == (None,)), None)

    def check(self, state: State, size: int | None) -> None:
        """Every kept channel is there, with its shape (and the batch's, for carries unless ``size`` is ``None``)."""
        name, channel, dtype, device, strided = "program", "step", self.dtype, self.device.type, torch.strided
        try:
            if state[name][channel].dtype is not torch.int64:
                checks.counter(channel, state[name][channel])
            channel = "seed"
            if state[name][channel].dtype is not torch.int64:
                checks.counter(channel, state[name][channel])
            for name, channel, wanted in self.wanted:
                tensor = state[name][channel]
                if (
                    tensor.shape != wanted
                    or tensor.dtype is not dtype
                    or tensor.layout is not strided
                    or tensor.device.type != device
                ):
                    checks.channel(name, channel, tensor, wanted, size, self.dtype, self.device)
        except (KeyError, TypeError, AttributeError, IndexError):
            checks.no_state(state, name, channel)

    def noise(self, state: State, needed: Mapping[str, tuple[int | None, ...]], batch_size: int) -> dict[str, Tensor]:
        """Standard normal numbers, a function of the state's seed and step; of stacked states, those of each."""
        channel = "seed"
        try:
            counters = state["program"]
            for channel in ("seed", "step"):
                if counters[channel].dtype is not torch.int64:
                    checks.counter(channel, counters[channel])
        except (KeyError, TypeError, AttributeError, IndexError):
            checks.no_state(state, "program", channel)
        if counters["seed"].ndim == 1:
            one = [{"program": {c: t[i] for c, t in counters.items()}} for i in range(len(counters["seed"]))]
            parts = [self.noise(state, needed, batch_size) for state in one]
            return {name: torch.stack([part[name] for part in parts]) for name in needed}
        seed, step = int(counters["seed"]), int(counters["step"])
        sampled = {}
        for name, shape in needed.items():
            generator = torch.Generator("cpu").manual_seed(_seed(seed, name, str(step)))
            sizes = [self._whole(batch_size) if n is None else n for n in shape]
            # One noise for every dtype; torch's float32 generator takes a third of the time of its float64 one.
            numbers = torch.randn(sizes, generator=generator, dtype=torch.float32, device="cpu")
            numbers = self._own(numbers, batch_size) if None in shape else numbers
            sampled[name] = numbers.to(device=self.device, dtype=self.dtype)
        return sampled


def _seed(*parts: Any) -> int:
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
