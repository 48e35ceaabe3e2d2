"""A compiled network and rule: a pure function ``(state, batch) -> (state, outputs)``."""

from __future__ import annotations

import atexit
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from copy import deepcopy
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from mpgraph.agents.module import RuleModule
from mpgraph.agents.protocol import Protocol
from mpgraph.agents.repeat import counts_of, repeats_of
from mpgraph.arguments import Arguments
from mpgraph.budget import Account, bytes_of
from mpgraph.environment import autocast_device, calls_watched, inside_transform, keep_freed_memory, on_cpu
from mpgraph.errors import FlatUnitWarning, GroupError, InputError, ProtocolError, unknown
from mpgraph.lowering.compile import Compiled, compile_passes
from mpgraph.lowering.explain import Cost, annotated, budgeted, cost, readable, rows, table
from mpgraph.lowering.ranks import Ranks
from mpgraph.lowering.stream import Stream
from mpgraph.network.network import Network
from mpgraph.serialization import state as files

from . import build, checks, memory
from .backends import Compilation
from .batches import Batch, Batches
from .execution import Execution
from .history import Histories, Replays
from .parameters import RuleParameters
from .state import State, StateLayout, stack


class Output(NamedTuple):
    """What a step returns beside the state; predictions and losses are those before the update.

    They are what ``program.predict`` says, at the moment of the step that the rule predicts at
    (:attr:`mpgraph.Protocol.predicts`), also of a rule that clamps or nudges its outputs to the target afterwards.

    Attributes:
        prediction: ``(batch, *output)``, of sequences ``(batch, ticks, *output)``; by output name if there are several.
        losses: mean over the batch, by loss name; of sequences of the sum over the ticks, but where a step is one tick
            (``online``), also the mean over those.
        recorded: channels asked for with ``record``, by node and channel.
    """

    prediction: Any
    losses: dict[str, Tensor]
    recorded: dict[str, dict[str, Tensor]]

    @property
    def loss(self) -> Tensor | None:
        """Sum of all losses; ``None`` for a network without one."""
        losses = list(self.losses.values())
        return sum(losses[1:], losses[0]) if losses else None


_in_groups: weakref.WeakSet[Program] = weakref.WeakSet()


@atexit.register
def _leave_groups() -> None:
    """The threads of a group that a program still holds when Python is torn down would end the process by SIGABRT."""
    for program in list(_in_groups):
        if program._ranks is not None:
            program._ranks.group = None
        program._execution = replace(program._execution, group=None)


class Program(nn.Module):
    """A network with a rule, compiled. Holds only the rule's (meta-)parameters; weights live in the state you pass in.

    Made by :func:`compile`. ``program(state, x, y)`` is ``program.step(state, x, y)``. A program can be pickled, saved
    with ``torch.save`` and copied if its network and rule can (functions must be importable): it is compiled again
    where it arrives. ``train()`` and ``eval()`` change nothing; ``requires_grad_`` says whether the rule's parameters
    get gradients. A program stays on the device and of the dtype that it was compiled for.

    Args:
        network: as :func:`compile` is given it.
        protocol: the rule, or the rules by region as one.
        execution: device, dtype and the other choices of :func:`compile`.
        warn: about units through which no learning signal passes.

    Attributes:
        graph: the multigraph of nodes and arrows.
        protocol: the rule.
        device, dtype: where and as what states are made.
        checks: which *values* are inspected in eager calls; see :func:`compile`.
        memory: bytes that segments keep for the backward pass, and the limit that ``mg.compile`` was given.
        threads: that the slices of segments are shared out to; ``None`` for as many as torch has.
        backend: runs the generated code.
        group: of processes that each have a slice of every batch; ``None`` for one process.
        online: whether a step is one tick of the network.
        sequences: whether a step is a sequence of any length.
    """

    def __init__(
        self,
        network: Network,
        protocol: Protocol,
        execution: Execution,
        *,
        warn: bool = True,
    ) -> None:
        super().__init__()
        self._execution = execution
        device, dtype = self.device, self.dtype = execution.device, execution.dtype
        self.checks, self.backend = execution.checks, execution.backend
        self.threads, self.online, self.sequences = execution.threads, execution.online, execution.sequences
        self._ticks = network.ticks if self.sequences else None  # of which code is written and shown first
        self.memory = Account(bytes_of("mg.compile", execution.memory, device))
        self._network = network.copy()  # before the rule rewrites it: what a pickle compiles again
        with on_cpu(device):
            self.graph = graph = build.agent_graph(network, protocol, device, dtype, self.online, self.sequences)
        self.protocol = protocol
        self.agents = build.own_agents(graph)  # after the graph: rules may make agents for its nodes
        build.place_parameters(protocol, self.agents, device, dtype)  # before anything is traced: code has its dtype
        self._ranks = None if self.group is None else Ranks(self.group, check=self.checks != "none")
        if self.group is not None:
            _in_groups.add(self)
        self._layout = StateLayout(graph, device, dtype, self._ranks)
        self._batches = Batches(graph, device, dtype, self.checks, self._ranks.size if self._ranks else 1)
        self._rule = RuleParameters(self, protocol)  # from here on no parameter is added
        self._outputs, self._phased = graph.network.outputs, bool(protocol.phases)
        self._autocast = autocast_device(device)
        self._compiled: dict[Any, Compiled] = {}
        self._streams: dict[tuple[int, bool], Stream] = {}
        self._history: Histories | None = None
        self._replays: Replays = {}
        steps = [self._function(phase=phase) for phase in protocol.phases or [None]]
        self._fresh = self._fresh_memories()
        self._brief = self._layout.brief()
        self._seal()  # last: while code is written, agents may still note what they were compiled for
        if warn:
            self._warn([name for c in steps for name in c.flat], [name for c in steps for name in c.no_signal])

    # -- compilation --------------------------------------------------------------------------------------

    def _function(
        self,
        record: Mapping[str, Sequence[str]] | None = None,
        *,
        learning: bool = True,
        single: bool = False,
        phase: str | None = None,
        repeat: Mapping[str, int] | int | None = None,
        memories: bool = False,
        ticks: int | None = None,
    ) -> Compiled:
        """The generated function for these outputs, compiled on first use; ``single`` for batches of one."""
        ticks = ticks or self._ticks
        if record is not None:
            checks.record(record)
        if repeat is not None:
            return self._repeated(repeat, record, learning, single, phase, memories)
        recorded = tuple((n, tuple(c)) for n, c in record.items()) if record else ()
        key = (learning, memories, single, phase, ticks, recorded)
        if key not in self._compiled:
            if torch.compiler.is_compiling():
                if not record and learning:
                    return self._function(phase=phase, ticks=ticks)
                raise InputError("under torch.compile, call step with this record= once eagerly first")
            passes = self.protocol.passes_of(phase) if learning else self.protocol.predict_passes
            with on_cpu(self.device):
                try:
                    compiled = compile_passes(
                        self.graph,
                        self,
                        self.dtype,
                        passes=passes,
                        learning=learning,
                        account=self.memory,
                        threads=self.threads,
                        single=single,
                        record=record,
                        ranks=self._ranks,
                        memories=memories,
                        ticks=ticks,
                    )
                except ProtocolError:
                    if not learning:
                        checks.prediction(self.graph, passes)
                    raise
            if learning or memories:
                memory.separate(compiled.module)
            compiled.module.to(self.device)  # constants: patterns of sparse connections and the like
            what = " ".join(["step" if learning else "predict", *([f"of phase {phase!r}"] if phase else [])])
            compiled.run = self.backend.prepare(compiled.module, what)
            self._compiled[key] = compiled
        return self._compiled[key]

    def prepare(self, batch_size: int, ticks: int | None = None) -> None:
        """Write the code of all steps and predictions for batches of this size, which the first calls else do.

        Of a program of sequences for those of so many ticks, by default as many as the network's.

        Threads that share a program need it before they begin: for as long as code is written, the rule's parameters
        are out of their places.
        """
        check = Arguments("program.prepare")
        single = check.integer("batch_size", batch_size, 1) == 1
        ticks = None if ticks is None else check.integer("ticks", ticks, 1)
        for phase in self.protocol.phases or [None]:
            self._function(single=single, phase=phase, ticks=ticks)
        self._function(learning=False, ticks=ticks)
        if self.online:
            self._function(learning=False, memories=True)

    def _repeated(
        self, repeat: Any, record: Any, learning: bool, single: bool, phase: str | None, memories: bool
    ) -> Compiled:
        """The generated function with other numbers of rounds."""
        passes = self.protocol.passes_of(phase) if learning else self.protocol.predict_passes
        times = counts_of(passes, repeat)
        usual = {one.name: one.times for one in repeats_of(passes)}
        compiled = self._function(record, learning=learning, single=single, phase=phase, memories=memories)
        if all(usual[name] == number for name, number in times.items()):
            return compiled
        key = id(compiled), tuple(sorted(times.items()))
        if key not in self._compiled:
            with on_cpu(self.device):
                self._compiled[key] = other = compiled.repeated(times)
                other.run = self.backend.prepare(other.module, "step" if learning else "predict")
        return self._compiled[key]

    def _fresh_memories(self) -> dict[tuple[str, str], Tensor]:
        """Where predictions start: for one example, the memories of examples that they read."""
        read = memory.read_channels(self._function(learning=False).module)
        declared = {key: self.graph.channels[key[0]][key[1]] for key in read if key[0] in self.graph.channels}
        self._reads_learned = any(c.extent == "carry" and c.learned for c in declared.values())
        return self._layout.memories(k for k, c in declared.items() if c.extent == "carry" and not c.learned)

    def _seal(self) -> None:
        agents = dict.fromkeys(self.graph.agents.values())
        for module in (*self.modules(), *(part for agent in agents for part in agent.modules())):
            if isinstance(module, RuleModule):
                module.seal()

    def _warn(self, flat: Sequence[str], without_signal: Sequence[str]) -> None:
        if flat and without_signal:
            units = ", ".join(f"{n!r} ({self.graph.nodes[n].function})" for n in dict.fromkeys(flat))
            still = ", ".join(dict.fromkeys(without_signal))
            rule = type(self.protocol).__name__
            takes = "surrogate" in self.protocol.declared
            choice = f", or choose a surrogate: {rule}(surrogate='tanh')" * takes
            warnings.warn(
                f"{rule}: {units} has zero derivative everywhere, so these receive no learning signal and stay as they "
                f"are: {still}. Use a rule that needs no derivative{choice}",
                FlatUnitWarning,
                stacklevel=4,
            )

    @property
    def group(self) -> Any:
        """Of processes that each have a slice of every batch; ``None`` for one process."""
        return self._execution.group

    @property
    def code(self) -> str:
        """The generated torch code of one step; of a rule with phases, of each."""
        phases = self.protocol.phases
        return "\n".join(f"# phase {p}\n{self.code_of(p)}" for p in phases) if phases else self.code_of()

    def code_of(self, phase: str | None = None, *, comments: bool = False) -> str:
        """The generated torch code of one step of a phase, by default the first.

        With ``comments`` each group of lines says which pass, and which arrow or update, it serves.
        """
        module = self._function(phase=self.protocol.phase_named(phase)).module
        return annotated(module) if comments else readable(module)

    def explain(self, batch_size: int = 32, phase: str | None = None, width: int | None = None) -> str:
        """A table: for each arrow and update, what it became, with shapes, FLOPs and bytes at ``batch_size``.

        With a ``width`` (of letters, at least 40) its lines are broken to fit. Of a rule with phases it shows one, by
        default the first. Where the rule has segments, a last line says what they keep for the backward pass of a step,
        and for how many steps the memory budget of ``mg.compile`` lasts.
        """
        batch_size = Arguments("program.explain").integer("batch_size", batch_size, 1)
        compiled, arguments = self._example(batch_size, phase)
        lines = rows(self.graph, compiled, arguments, batch_size)
        runs = f"\nbackend {self.backend.name}: {self.backend.note}" if self.backend.note else ""
        width = None if width is None else Arguments("program.explain").integer("width", width, 40)
        return table(lines, batch_size, width) + budgeted(compiled, self.memory, batch_size) + runs

    def cost(self, batch_size: int = 32, phase: str | None = None) -> Cost:
        """What a step costs at ``batch_size`` (of a group, the examples of this process): FLOPs, bytes, messages.

        Of a rule with phases it is that of one, by default the first. Counted from the generated code, whose shapes
        are found by running it once on zeros: on the ``meta`` device (``mg.compile(..., device="meta")``) that takes
        no memory, so that networks can be counted that would not fit here.
        """
        batch_size = Arguments("program.cost").integer("batch_size", batch_size, 1)
        return cost(*self._example(batch_size, phase), batch_size)

    def _example(self, batch_size: int, phase: str | None) -> tuple[Compiled, tuple[Any, ...]]:
        """The code of a step, and arguments of that size, all zero."""
        compiled = self._function(single=batch_size == 1, phase=self.protocol.phase_named(phase))

        def zeros(shape: Sequence[int | None]) -> Tensor:
            sizes = [batch_size if n is None else n for n in shape]
            return torch.zeros(sizes, device=self.device, dtype=self.dtype)

        counter = torch.zeros((), device=self.device, dtype=torch.int64)
        state: State = {"program": {"seed": counter, "step": counter}}
        for name, channel, shape in self._layout.wanted:
            state.setdefault(name, {})[channel] = zeros(shape)
        noise = {name: zeros(shape) for name, shape in compiled.noise.items()}
        ticks = () if self._ticks is None else (self._ticks,)
        fed = [zeros((None, *ticks, *shape)) for shape in self._batches.fed_shapes]
        return compiled, (state, self._parameters_now(), noise, *fed)

    @property
    def compilations(self) -> list[Compilation]:
        """What the backend compiled so far: which function, for which signature, in how many seconds."""
        return list(self.backend.compilations)

    def compiling_nothing(self) -> AbstractContextManager[None]:
        """Inside, whatever the backend would have to compile is an error.

        A guard for long loops: whatever changes from call to call (batch sizes, gradients on and off, threads) would be
        compiled again, which takes longer than many steps. Eager programs compile nothing.

        Raises:
            BackendError: naming what would be compiled, and what was before.
        """
        return self.backend.compiling_nothing()

    # -- states -------------------------------------------------------------------------------------------

    def init(self, seed: int | Sequence[int] = 0, batch_size: int | None = None) -> State:
        """A fresh state ``state[node][channel]``; of several seeds, their states stacked (:func:`mpgraph.stack`).

        Numbers are sampled on the CPU, each tensor from a generator of its own made from the seed and its name: one
        seed is one network on every device, and rules share the weights of a seed whatever else they sample.

        Args:
            seed: any integer of 64 bits; a sequence of them, ``range(8)``, gives every tensor a leading axis of that
                length, for ``torch.func.vmap(program.step)``.
            batch_size: needed where the rule keeps a memory for each slot of the batch (carry channels), or where the
                messages of one tick are heard in the next; of a group, the slots of this process.

        Raises:
            StateError: if ``batch_size`` is needed and missing.
            InputError: for no seed, or one that is no integer.
        """
        seeds = seed.tolist() if isinstance(seed, (Tensor, np.ndarray)) and seed.ndim == 1 else seed
        if isinstance(seeds, Sequence) and not isinstance(seeds, str):
            if not seeds:
                raise InputError("program.init: an empty sequence of seeds; give at least one")
            return stack([self._layout.fresh(one, batch_size) for one in seeds])
        return self._layout.fresh(seed, batch_size)  # type: ignore[arg-type]

    def reset(self, state: State, batch_size: int | None = None) -> State:
        """The state with the memories of examples as :meth:`init` makes them: a new sequence begins.

        What was learned stays, memories that are what was learned too. Of stacked states all are reset.

        Args:
            state: from :meth:`init` or a step.
            batch_size: examples of the new sequences; by default as many as before.

        Raises:
            InputError: under a transform, where the state's seed cannot be read.
            StateError: for a state of another program.
        """
        if inside_transform():
            raise InputError("program.reset reads the state's seed: call it outside of torch.func and torch.compile")
        seeds = state["program"]["seed"] if isinstance(state, Mapping) and "program" in state else None
        if isinstance(seeds, Tensor) and seeds.ndim == 1:
            each = [
                {n: {c: t[i] for c, t in channels.items()} for n, channels in state.items()} for i in range(len(seeds))
            ]
            return stack([self._layout.reset(one, batch_size) for one in each])
        return self._layout.reset(state, batch_size)

    def renewed(self, state: State, size: int, memories: Mapping[tuple[str, str], Tensor] | None = None) -> State:
        """The state with which a step of that many examples begins: memories that live for one step begin anew.

        Args:
            state: from :meth:`init` or a step.
            size: of the batch.
            memories: others that begin anew, by node and channel, as those of one example.
        """
        memories = {**self._brief, **(memories or {})}
        if not memories:
            return state
        state = {name: dict(channels) for name, channels in state.items()}
        for (name, channel), one in memories.items():
            state[name][channel] = one.expand(size, *one.shape[1:]).clone()
        return state

    def slots(self, state: State) -> int | None:
        """For how many examples a state keeps memories (carry channels), which is the size that batches must have.

        ``None`` for a rule that keeps nothing of single examples.
        """
        return self._layout.slots(state)

    def noise(
        self,
        state: State,
        batch_size: int,
        *,
        phase: str | None = None,
        repeat: Mapping[str, int] | int | None = None,
        ticks: int | None = None,
    ) -> dict[str, Tensor]:
        """The standard normal numbers of the next step, from the state's seed and step; empty for most rules.

        Of stacked states (:func:`mpgraph.stack`), those of each, with the same leading axis. Of a program of sequences
        those of one of so many ticks, by default as many as the network's.
        """
        check = Arguments("program.noise")
        batch_size = check.integer("batch_size", batch_size, 1)
        ticks = None if ticks is None else check.integer("ticks", ticks, 1)
        needed = self._function(phase=self.protocol.phase_at(state, phase), repeat=repeat, ticks=ticks).noise
        return self._layout.noise(state, needed, batch_size) if needed else {}

    def save(self, state: State, path: Any) -> None:
        """Write a state as safetensors with named tensors, atomically."""
        files.save(state, path)

    def load(self, path: Any) -> State:
        """Read a state that :meth:`save` wrote, onto this program's device.

        Args:
            path: of the file; or the folder or pretrained name of a rule that was trained with a prior
                (``prior.safetensors`` beside it): the state that a network begins with.

        Raises:
            FileError: for a missing or damaged file, or the state of another network.
        """
        return files.load(path, {(n, c): shape for n, c, shape in self._layout.wanted}, self.device)

    def edge_weight(self, state: State, u: Any, v: Any, key: Any = 0) -> Tensor:
        """The weight of one edge of the graph that the network was read from with ``Network.from_networkx``.

        Args:
            state: from :meth:`init` or a step.
            u, v, key: the edge, as networkx names it.

        Raises:
            NetworkError: if there is no such edge, or the network was not read from a graph.
        """
        wire, index = self.graph.network.edge(u, v, key)
        return state[self.graph.nodes[wire].owner]["w"][index]

    def to_torch(self, state: State) -> nn.Module:
        """The module that the network was read from with ``Network.from_torch``, copied, with this state's weights.

        Raises:
            NetworkError: if the network was not read from a module.
        """
        from mpgraph.convert.torch_module import to_torch

        return to_torch(self, state)

    def to_pyg(self, state: State) -> Any:
        """Network and state as a ``torch_geometric.data.HeteroData``; see :func:`mpgraph.convert.pyg.to_pyg`."""
        from mpgraph.convert.pyg import to_pyg

        return to_pyg(self, state)

    # -- running ------------------------------------------------------------------------------------------

    def forward(
        self, state: State, x: Batch | None = None, y: Batch | None = None, **options: Any
    ) -> tuple[State, Output]:
        """The same as :meth:`step`."""
        return self.step(state, x, y, **options)

    def step(
        self,
        state: State,
        x: Batch | None = None,
        y: Batch | None = None,
        *,
        record: Mapping[str, Sequence[str]] | None = None,
        noise: Mapping[str, Tensor] | None = None,
        phase: str | None = None,
        parameters: Mapping[str, Tensor] | None = None,
        repeat: Mapping[str, int] | int | None = None,
    ) -> tuple[State, Output]:
        """One learning step. Pure: nothing that is passed in changes.

        No tensor of the returned state shares memory with another that is returned, with ``x``, ``y`` or the rule's
        parameters. A channel that the step leaves alone is the very tensor of the state that was passed in. Under
        ``torch.autocast`` a step is what it is without.

        Of a program whose step is one tick (``online``), inputs with a dimension of ticks after the batch are a
        sequence: one step for each tick, from where the state is. Predictions and recorded channels are then
        ``(batch, ticks, ...)``, losses the mean over the ticks. Of a program of ``sequences`` one step is a sequence:
        inputs are ``(batch, ticks, *input)``, predictions and recorded channels ``(batch, ticks, ...)``, and losses
        are summed over the ticks of each example. Code is written for each number of ticks at the first of them.

        Args:
            state: from :meth:`init` or an earlier step.
            x: ``(batch, *input)``; a dictionary by input name if there are several. Of a group, the slice of this
                process.
            y: class labels ``(batch,)`` (integers), or targets ``(batch, *output)``; a dictionary by output name if
                there are several; nothing for a network without a loss. Of ticks nothing as well where there is no
                target; of single examples the label -100 or a target with NaN. The loss then says zero, and counts
                zero. Of a sequence ``(batch, ticks)`` or ``(batch, ticks, *output)``; without
                ticks they are those of the last.
            record: channels to return for every agent and example: ``{"h1": ["e"]}``.
            noise: standard normal numbers, see :meth:`noise`; sampled from the state if not given.
            phase: of a rule whose steps are not all alike; by default the one whose turn it is by the step counter,
                which under transforms cannot be read.
            parameters: tensors that replace parameters or buffers of the rule for this call, by their names in
                ``program.protocol.named_parameters()`` (``"optimizer.lr"``). Gradients flow to them, and
                ``torch.func.vmap`` maps over them.
            repeat: other numbers of rounds for the repetitions of the rule (:func:`mpgraph.repeat`), by name; a number
                where it has one. Nothing is compiled again for them but by a backend that compiles.

        Raises:
            InputError: for a batch that does not fit, or parameters or repetitions that the rule does not have.
            StateError: for a state of another program.
        """
        if self.online and self._batches.is_sequence(x):
            if noise is not None:
                raise InputError("noise= is that of one step, but this is a sequence; pass one tick after the other")
            return self._sequence(state, x, y, record=record, phase=phase, parameters=parameters, repeat=repeat)
        tensors, size, ticks = self._batches.fed(x, y)
        if phase is not None or self._phased:
            phase = self.protocol.phase_at(state, phase)
        compiled = self._function(record, single=size == 1, phase=phase, repeat=repeat, ticks=ticks)
        self._layout.check(state, size)
        state = self.renewed(state, size)
        if compiled.noise and noise is not None:
            checks.noise(noise, compiled.noise, size, self.dtype, self.device)
        else:
            noise = self._sampled(state, compiled, size)
        own = self._rule.now() if parameters is None else self._rule.replaced(parameters)
        state, predictions, losses, recorded = self._call(compiled, state, own, noise, *tensors)
        return state, Output(self._predicted_as(predictions), losses, recorded)

    def _sequence(
        self,
        state: State,
        x: Any,
        y: Any,
        *,
        record: Mapping[str, Sequence[str]] | None,
        phase: str | None,
        parameters: Mapping[str, Tensor] | None,
        repeat: Mapping[str, int] | int | None,
    ) -> tuple[State, Output]:
        """A step for each tick, of a program whose step is one; what is passed in is checked once."""
        tensors, size, ticks = self._batches.sequence(x, y)
        self._layout.check(state, size)
        own = self._rule.now() if parameters is None else self._rule.replaced(parameters)
        stream = self._stream(state, own, tensors, record, phase, repeat, size == 1)
        if stream is not None:
            state, predictions, losses, recorded = self._as_it_is(stream, state, own, tensors)
            return state, Output(self._predicted_as(predictions), losses, recorded)
        outputs = []
        for tick in range(ticks):
            now = self.protocol.phase_at(state, phase) if self._phased else phase
            compiled = self._function(record, single=size == 1, phase=now, repeat=repeat)
            noise = self._sampled(state, compiled, size)
            state, *out = self._call(
                compiled, self.renewed(state, size), own, noise, *(tensor.select(1, tick) for tensor in tensors)
            )
            outputs.append(Output(*out))
        losses = {name: torch.stack([out.losses[name] for out in outputs]).mean(0) for name in outputs[0].losses}
        predictions, recorded = (
            _stacked([getattr(out, part) for out in outputs]) for part in ("prediction", "recorded")
        )
        return state, Output(self._predicted_as(predictions), losses, recorded)

    def _stream(
        self,
        state: State,
        own: Sequence[Tensor],
        tensors: Sequence[Tensor],
        record: Mapping[str, Sequence[str]] | None,
        phase: str | None,
        repeat: Mapping[str, int] | int | None,
        single: bool,
    ) -> Stream | None:
        """All ticks of a sequence as one function, where each is the same code and nobody looks into it."""
        if self._phased or self._brief or self._history is not None or self.group is not None:
            return None
        if self.backend.name != "eager" or inside_transform() or calls_watched():
            return None
        compiled = self._function(record, single=single, phase=phase, repeat=repeat)
        kept = (tensor for channels in state.values() for tensor in channels.values())
        recording = torch.is_grad_enabled() and any(t.requires_grad for t in (*kept, *own, *tensors))
        if compiled.noise or recording:  # autograd gets a backward pass of each step
            return None
        key = id(compiled), torch.is_grad_enabled()
        if key not in self._streams:
            self._streams[key] = Stream(compiled.module, cheaper=not torch.is_grad_enabled())
        return self._streams[key]

    def _sampled(self, state: State, compiled: Compiled, size: int) -> dict[str, Tensor]:
        """The noise of a step, from the state's seed and step."""
        if not compiled.noise:
            return {}
        if inside_transform():
            raise InputError("under torch.func transforms pass noise= yourself: noise=program.noise(state, batch_size)")
        return self._layout.noise(state, compiled.noise, size)

    def _predicted_as(self, predictions: dict[str, Tensor]) -> Any:
        """Predictions as a caller gets them: by name if there are several outputs."""
        return predictions if len(predictions) > 1 else predictions[self._outputs[0]]

    def advance(
        self,
        state: State,
        x: Batch,
        *,
        parameters: Mapping[str, Tensor] | None = None,
        repeat: Mapping[str, int] | int | None = None,
    ) -> tuple[State, Any]:
        """A prediction, and the state with the memories of examples after it: a tick without learning.

        Args:
            state: from :meth:`init`, :meth:`reset` or a step; memories start from there.
            x: as in :meth:`step`, a sequence too.
            parameters: tensors that replace parameters of the rule for this call, as in :meth:`step`.
            repeat: other numbers of rounds, as in :meth:`step`.

        Returns:
            The state, and predictions as those of :meth:`predict`.

        Raises:
            InputError: for a batch that does not fit.
            StateError: for a state of another program.
        """
        ticks: int | None = None
        if several := self.online and self._batches.is_sequence(x):
            tensors, size, length = self._batches.sequence(x, None, learning=False)
            parts: list[Any] = [[tensor.select(1, tick) for tensor in tensors] for tick in range(length)]
        else:
            whole, size, ticks = self._batches.fed(x, None, learning=False)
            parts = [whole]
        compiled = self._function(learning=False, repeat=repeat, memories=True, ticks=ticks)
        self._layout.check(state, size)
        predictions = []
        for part in parts:
            memories, prediction = self._predicted(compiled, self.renewed(state, size), size, part, parameters)
            state = {name: {**channels, **memories.get(name, {})} for name, channels in state.items()}
            predictions.append(self._predicted_as(prediction))
        return state, _stacked(predictions) if several else predictions[0]

    def _predicted(
        self, compiled: Compiled, state: State, size: int, tensors: Sequence[Tensor], parameters: Any
    ) -> Any:
        """What a function says that learns nothing; noise is zero in it."""
        noise = {
            name: torch.zeros([size if n is None else n for n in shape], device=self.device, dtype=self.dtype)
            for name, shape in compiled.noise.items()
        }
        own = self._rule.now() if parameters is None else self._rule.replaced(parameters)
        return self._call(compiled, state, own, noise, *tensors)

    def predict(
        self,
        state: State,
        x: Batch,
        *,
        memories: Literal["fresh", "state"] | None = None,
        parameters: Mapping[str, Tensor] | None = None,
        repeat: Mapping[str, int] | int | None = None,
    ) -> Any:
        """Predictions ``(batch, *output)`` by the rule's ``predict_passes``; the state stays as it is.

        Any batch size works, but for a rule that learns in memories of its own for each slot of the batch (VS-ML), or
        with ``memories="state"``: then it is that of the state. Several outputs are returned as a dictionary.

        Of a program whose step is one tick it predicts the next one; of a sequence ``(batch, ticks, *input)`` it
        predicts ``(batch, ticks, *output)``.

        Args:
            state: from :meth:`init` or a step.
            x: ``(batch, *input)``; a dictionary by input name if there are several.
            memories: where memories of examples start: ``"fresh"`` at their initial values, the same for every
                example, ``"state"`` where the last step left them, for a stream that goes on. By default the latter
                where a step is one tick, else the former. Memories that *are* what was learned
                (``mg.carry(learned=True)``) always start from the state.
            parameters: tensors that replace parameters of the rule for this call, as in :meth:`step`.
            repeat: other numbers of rounds, as in :meth:`step`.

        Raises:
            InputError: for a batch that does not fit.
            StateError: for a state of another program.
        """
        if memories is None:
            memories = "state" if self.online else "fresh"
        if memories not in ("fresh", "state"):
            raise InputError(unknown("memories", memories, ("fresh", "state")))
        if self.online and self._batches.is_sequence(x):
            size = checks.examples(x)
            start = state if memories == "state" else self.reset(state, size)
            return self.advance(start, x, parameters=parameters, repeat=repeat)[1]
        tensors, size, ticks = self._batches.fed(x, None, learning=False)
        compiled = self._function(learning=False, repeat=repeat, ticks=ticks)
        kept = memories == "state" and bool(self._fresh)
        self._layout.check(state, size if kept or self._reads_learned else None)
        state = self.renewed(state, size, None if kept else self._fresh)
        return self._predicted_as(self._predicted(compiled, state, size, tensors, parameters))

    def run(
        self, state: State, batches: Iterable[Any], *, progress: bool = False, reset: bool = False
    ) -> tuple[State, list[float]]:
        """Steps over batches ``(x, y)`` (or ``x``, or ``(x,)``); returns the state and the loss of each step.

        Where a unit normalizes over the batch, a smaller rest of one example is left out: it has no deviation. Keeps no
        autograd graph: to differentiate through learning call :meth:`step` yourself.

        Args:
            state: from :meth:`init` or a step.
            batches: one after the other; of a program whose step is one tick also sequences.
            progress: show a bar, if stderr is a terminal.
            reset: whether a new sequence begins with each batch, see :meth:`reset`.

        Raises:
            InputError: naming the batch that does not fit.
        """
        losses, largest = [], 0
        if isinstance(batches, (str, bytes, Tensor, Mapping)) or not isinstance(batches, Iterable):
            raise InputError(f"program.run takes batches one after the other, such as [(x, y)], got {type(batches)}")
        with torch.no_grad():
            # disable=None: only on a terminal
            for number, batch in enumerate(tqdm(batches, disable=None if progress else True, leave=False)):
                x, y = checks.batch(number, batch, self._batches.given, bool(self._batches.targets))
                if self._batches.normalized:
                    size = checks.examples(x)
                    largest = max(largest, size)
                    if size == 1 < largest:
                        continue
                try:
                    state, out = self.step(self.reset(state) if reset else state, x, y)
                except InputError as error:
                    raise InputError(f"program.run: batch {number}: {error}") from None
                if out.loss is not None:
                    losses.append(out.loss)
        return state, torch.stack(losses).tolist() if losses else []

    def _call(self, compiled: Compiled, *args: Any) -> Any:
        """Run generated code, as the program's backend does."""
        return self._as_it_is(self._run, compiled, *args)

    def _as_it_is(self, function: Callable[..., Any], *args: Any) -> Any:
        """What a function returns in the program's own dtype, whatever ``torch.autocast`` says."""
        if self._autocast is not None and torch.is_autocast_enabled(self._autocast):
            with torch.autocast(self._autocast, enabled=False):
                return function(*args)
        return function(*args)

    def _run(self, compiled: Compiled, *args: Any) -> Any:
        return compiled.run(*args) if self._history is None else self._history.step(compiled, args)

    @contextmanager
    def histories(self, every: int) -> Iterator[Histories]:
        """Inside ``with``, autograd keeps weights as histories, where steps change them by outer products.

        Of the weights of ``every`` steps one is kept; for the others what they were written from, which the backward
        pass writes again, to the same numbers. Of an unroll of ``T`` steps ``every=round(T ** 0.5)`` keeps least. It
        works for plain autograd, also through ``torch.func.vmap``, but not under ``torch.func.grad``, which refuses
        it. Steps of other backends than ``eager``, and of batches whose factors are larger than their products, keep
        their weights. Only for as long as steps are run: the backward pass may come later.
        """
        every = Arguments("program.histories").integer("every", every, 1)
        before = self._history
        with Histories(every, self._replays) as history:
            self._history = history if self.backend.name == "eager" else None
            try:
                yield history
            finally:
                self._history = before

    def _parameters_now(self) -> list[Tensor]:
        """Parameters and buffers as the modules hold them at this moment (``functional_call`` replaces them)."""
        return self._rule.now()

    # -- as a module --------------------------------------------------------------------------------------

    def _apply(self, fn: Any, recurse: bool = True) -> Program:
        """Refuse moves: generated code and states are of one device and dtype."""
        probe = torch.empty(0, device=self.device, dtype=self.dtype)
        try:
            after = fn(probe)
        except (RuntimeError, AssertionError) as error:  # no such device here
            raise ProtocolError(f"a program cannot be moved: {str(error).splitlines()[0]}") from None
        if after.dtype != probe.dtype or after.device != probe.device:
            change = f"dtype={after.dtype}" if after.dtype != probe.dtype else f"device={str(after.device)!r}"
            raise ProtocolError(
                f"a program stays on the device and of the dtype that it was compiled for, {self.device} and "
                f"{self.dtype}: compile again, mg.compile(network, protocol, {change})"
            )
        return super()._apply(fn, recurse)

    def __reduce__(self) -> tuple[Any, ...]:
        """How to compile it again: generated code is not written to files."""
        if self.group is not None:
            raise GroupError("a program over a group of processes cannot be pickled: compile it in each process")
        build.check_pickles(self._network, self.protocol)
        return Program._again, self._made(), self.agents.state_dict()

    def __copy__(self) -> Program:
        other = Program._again(*self._made())
        other.__setstate__(self.agents.state_dict())
        return other

    def __deepcopy__(self, memo: dict[int, Any]) -> Program:
        made, numbers = deepcopy((self._made(), self.agents.state_dict()), memo)  # functions need not be importable
        memo[id(self)] = other = Program._again(*made)
        other.__setstate__(numbers)
        return other

    def _made(self) -> tuple[Network, Protocol, Execution]:
        return self._network, self.protocol, self._execution

    @staticmethod
    def _again(network: Network, rule: Protocol, execution: Execution) -> Program:
        keep_freed_memory()
        return Program(network, rule, execution.again(), warn=False)  # warnings were shown then

    def __setstate__(self, state: Any) -> None:
        self.agents.load_state_dict(state)

    def extra_repr(self) -> str:
        """The network's size, the rule and where it runs."""
        numbers = sum(torch.Size(n or 1 for n in shape).numel() for _, _, shape in self._layout.wanted)
        arrows = len(self.graph.all_arrows())
        return (
            f"{len(self.graph.nodes)} nodes, {arrows} arrows, {numbers} numbers of state, {self.dtype}, {self.device}"
        )


def _stacked(parts: Sequence[Any]) -> Any:
    """Tensors of several ticks as one, ticks after the batch; of dictionaries, each entry."""
    if isinstance(parts[0], Mapping):
        return {key: _stacked([part[key] for part in parts]) for key in parts[0]}
    return torch.stack(list(parts), 1)
