"""A graph's schedule as one generated function."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import fx, nn

from mpgraph.agents.repeat import Repeat
from mpgraph.budget import Account
from mpgraph.environment import generator_positions, inside_transform
from mpgraph.graph.wiring import AgentGraph

from .collectives import coalesce
from .ranks import Ranks
from .trace import Trace


@dataclass
class Compiled:
    """A generated function ``(state, parameters, noise, *inputs) -> (state, predictions, losses, recorded)``.

    Attributes:
        module: the generated code; ``module.forward`` is the function.
        noise: shape of each tensor of standard normal numbers that it takes; ``None`` stands for the batch.
        notes: what fell back to a materialized form, as (origin, text).
        remembers: whether it reads a memory that is kept for each example.
        rounds: of noise, the repetitions whose rounds are its first dimensions.
        passes: the schedule.
        flat: units whose derivative is zero everywhere and that a backward message met.
        no_signal: trained weights whose learning signal is zero whatever the data.
        run: what to call; a program's backend puts it here.
    """

    module: fx.GraphModule
    noise: dict[str, tuple[int | None, ...]]
    notes: list[tuple[Any, str]]
    flat: list[str]
    no_signal: list[str]
    remembers: bool
    passes: tuple[str | Repeat, ...]
    rounds: dict[str, tuple[str, ...]]
    run: Callable[..., Any] = field(init=False, repr=False)

    def repeated(self, times: Mapping[str, int]) -> Compiled:
        """The same function with other numbers of rounds, by name; nothing is traced again."""
        graph = fx.Graph()
        graph.output(graph.graph_copy(self.module.graph, {}))
        for node in graph.nodes:
            if node.meta.get("times") in times:
                node.args = (times[node.meta["times"]],)
        module = fx.GraphModule(self.module, graph, class_name="Step")
        module.segments, module.meta = self.module.segments, self.module.meta
        noise = dict(self.noise)
        for name, rounds in self.rounds.items():
            sizes = [times.get(one, size) for one, size in zip(rounds, noise[name], strict=False)]
            noise[name] = (*sizes, *noise[name][len(rounds) :])
        return replace(self, module=module, noise=noise)


def compile_passes(
    graph: AgentGraph,
    modules: nn.Module,
    dtype: torch.dtype,
    *,
    passes: Sequence[str | Repeat],
    learning: bool,
    account: Account,
    threads: int | None,
    single: bool = False,
    record: Mapping[str, Sequence[str]] | None = None,
    ranks: Ranks | None = None,
    memories: bool = False,
    ticks: int | None = None,
) -> Compiled:
    """Trace ``passes`` into one function.

    Args:
        graph: nodes, agents and arrows.
        modules: holds every parameter of the rule, in the order in which they are passed in.
        dtype: of all numbers.
        passes: the schedule.
        learning: whether targets are fed and the new state, the losses and ``record`` are returned; otherwise
            only the predictions are.
        account: of what segments keep for the backward pass.
        threads: that slices of segments are shared out to; ``None`` for torch's number.
        single: whether every batch will hold one example, so that sums over the batch have one term.
        record: fast channels to return, by node.
        ranks: processes that each have a slice of the batch.
        memories: whether the memories of examples are returned as well, where nothing is learned.
        ticks: of a graph of sequences, how long they are.

    Raises:
        ProtocolError: for a method that does not fit the network, or that samples from a global random generator.
    """
    watched = not inside_transform()  # generators cannot be read there
    before = generator_positions() if watched else b""
    trace = Trace(graph, dtype, single, learning, account, threads, ranks=ranks, ticks=ticks)
    with trace.parameters_of(modules):
        trace.follow(passes)
        outputs = trace.results(learning, record or {}, memories)
    if watched and generator_positions() != before:  # find out where: comparing them at every call is too slow
        again = Trace(graph, dtype, single, learning, ranks=ranks, ticks=ticks)
        again.watched = True
        with again.parameters_of(modules):
            again.follow(passes)
    module = trace.emitter.finish(outputs)
    if ranks is not None:
        coalesce(module, ranks)
    used = {node.meta.get("carry") for node in module.graph.nodes}
    return Compiled(
        module, trace.noise, trace.emitter.notes, trace.flat, trace.no_signal, True in used, tuple(passes), trace.rounds
    )
