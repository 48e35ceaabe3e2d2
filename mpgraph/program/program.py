"""A compiled network and rule: a pure function ``(state, batch) -> (state, outputs)``."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from mpgraph.agents.module import RuleModule
from mpgraph.agents.protocol import Protocol
from mpgraph.agents.regions import Regions
from mpgraph.environment import inside_transform, usable
from mpgraph.errors import FlatUnitWarning, InputError, ProtocolError, unknown
from mpgraph.graph.wiring import AgentGraph
from mpgraph.lowering.compiler import Compiled, compile_passes
from mpgraph.lowering.explain import readable, rows, table
from mpgraph.lowering.parameters import parameter_slots
from mpgraph.lowering.rehearsal import check_borders, declare_optimizers
from mpgraph.network.network import Network
from mpgraph.network.validation import check_functions
from mpgraph.serialization import state as files

from . import checks
from .state import Keeping, State

Batch = Tensor | Mapping[str, Tensor]
Checks = Literal["none", "labels", "all"]


class Output(NamedTuple):
    """What a step returns beside the state; predictions and losses are those before the update.

    Attributes:
        prediction: ``(batch, *output)``; by output name if there are several.
        losses: mean over the batch, by loss name.
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


class Program(nn.Module):
    """A network with a rule, compiled. Holds the rule's parameters alone; weights live in the state, a value.

    Made by :func:`compile`. ``program(state, x, y)`` is ``program.step(state, x, y)``.

    Attributes:
        graph: the multigraph of nodes and arrows.
        device, dtype: where and as what states are made.
        checks: which *values* are inspected in eager calls; see :func:`compile`.
    """

    def __init__(
        self,
        graph: AgentGraph,
        device: torch.device,
        dtype: torch.dtype,
        checks: Checks,
        *,
        warn: bool = True,
    ) -> None:
        super().__init__()
        self.graph, self.device, self.dtype, self.checks = graph, device, dtype, checks
        self.protocol = graph.protocol
        # What the protocol owns is found there once: torch.func.functional_call cannot restore a module with two names.
        owned = {*self.protocol.parameters(), *self.protocol.buffers()}
        agents = dict.fromkeys(graph.agents.values())
        self.agents = nn.ModuleList([a for a in agents if not owned.issuperset([*a.parameters(), *a.buffers()])])
        self.to(device=device, dtype=dtype)
        if self.protocol.waiting:  # after that, so that no number of the file is rounded to torch's default dtype
            self.protocol.waiting.fill(self.protocol)
        network = graph.network
        self._inputs, self._outputs = network.inputs, network.outputs
        self._targets = tuple(dict.fromkeys(node.pre for node in network.losses.values()))
        self._fed = {**{n: n for n in self._inputs}, **{f"{n}.target": n for n in self._targets}}
        ticks = (network.ticks,) if network.ticks > 1 else ()
        self._shapes = {
            n: (*(ticks if n in self._inputs else ()), *graph.nodes[n].shape) for n in (*self._inputs, *self._targets)
        }
        declare_optimizers(graph, self, dtype)
        self._keeping = Keeping(graph, device, dtype)
        self._slots = parameter_slots(self)
        self._one_hot = {
            name: torch.eye(shape[-1], device=device, dtype=dtype)
            for name, shape in self._shapes.items()
            if name in self._targets and len(shape) == 1 and shape[0] > 1
        }
        self._phased = bool(self.protocol.phases)
        self._compiled: dict[Any, Compiled] = {}
        compiled = [self._function(phase=phase) for phase in self.protocol.phases or [None]]
        self._function(learning=False)
        for module in (*self.modules(), *(part for agent in agents for part in agent.modules())):
            if isinstance(module, RuleModule):
                module.seal()
        if warn:
            self._warn([name for c in compiled for name in c.flat], [name for c in compiled for name in c.still])

    # -- compilation --------------------------------------------------------------------------------------

    def _function(
        self,
        record: Mapping[str, Sequence[str]] | None = None,
        *,
        learning: bool = True,
        online: bool = False,
        phase: str | None = None,
    ) -> Compiled:
        """The generated function for these outputs, compiled on first use; ``online`` for batches of one."""
        key = (learning, online, phase, tuple((n, tuple(c)) for n, c in record.items()) if record else ())
        if key not in self._compiled:
            if torch.compiler.is_compiling():
                if not record and learning:
                    return self._function(phase=phase)
                raise InputError("under torch.compile, call step with this record= once eagerly first")
            passes = self.protocol.passes_of(phase) if learning else self.protocol.predict_passes
            self._compiled[key] = compile_passes(
                self.graph, self, self.dtype, passes=passes, learning=learning, online=online, record=record
            )
            self._compiled[key].module.to(self.device)  # constants: patterns of sparse connections and the like
        return self._compiled[key]

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
    def code(self) -> str:
        """The generated torch code of one step; of a rule with phases, of each."""
        phases = self.protocol.phases
        return "\n".join(f"# phase {p}\n{self.code_of(p)}" for p in phases) if phases else self.code_of()

    def code_of(self, phase: str | None = None) -> str:
        """The generated torch code of one step of a phase, by default the first."""
        return readable(self._function(phase=self.protocol.phase_named(phase)).module)

    @property
    def predict_code(self) -> str:
        """The generated torch code of a prediction."""
        return readable(self._function(learning=False).module)

    def explain(self, batch_size: int = 32, phase: str | None = None) -> str:
        """A table: for each arrow and update, what it became, with shapes, FLOPs and bytes at ``batch_size``.

        Of a rule with phases it shows one, by default the first.
        """
        phase = self.protocol.phase_named(phase)
        compiled = self._function(online=batch_size == 1, phase=phase)
        size: dict[str, Any] = {"device": self.device, "dtype": self.dtype}
        fed = [torch.zeros((batch_size, *self._shapes[name.removesuffix(".target")]), **size) for name in self._fed]
        state = self.init(batch_size=batch_size)
        noise = self._keeping.noise(state, compiled.noise, batch_size)
        return table(rows(self.graph, compiled, (state, self._parameters_now(), noise, *fed), batch_size), batch_size)

    # -- states -------------------------------------------------------------------------------------------

    def init(self, seed: int = 0, batch_size: int | None = None) -> State:
        """A fresh state ``state[node][channel]``.

        Numbers are drawn on the CPU, each tensor from a generator of its own made from the seed and its name: one
        seed is one network on every device, and rules share the weights of a seed whatever else they draw.

        Args:
            seed: any integer.
            batch_size: needed where the rule keeps a memory for each slot of the batch (carry channels).

        Raises:
            StateError: if ``batch_size`` is needed and missing.
        """
        return self._keeping.fresh(seed, batch_size)

    def slots(self, state: State) -> int | None:
        """For how many examples a state keeps memories (carry channels), which is the size that batches must have.

        ``None`` for a rule that keeps nothing of single examples.
        """
        return self._keeping.slots(state)

    def noise(self, state: State, batch_size: int, *, phase: str | None = None) -> dict[str, Tensor]:
        """The standard normal numbers of the next step, from the state's seed and step; empty for most rules."""
        needed = self._function(phase=self.protocol.phase_at(state, phase)).noise
        return self._keeping.noise(state, needed, batch_size) if needed else {}

    def save(self, state: State, path: Any) -> None:
        """Write a state as safetensors with named tensors, atomically."""
        files.save(state, path)

    def load(self, path: Any) -> State:
        """Read a state that :meth:`save` wrote, onto this program's device.

        Raises:
            FileError: for a missing or damaged file, or the state of another network.
        """
        return files.load(path, {(n, c): shape for n, c, shape in self._keeping.wanted}, self.device)

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
    ) -> tuple[State, Output]:
        """One learning step. Pure: nothing that is passed in changes.

        Args:
            state: from :meth:`init` or an earlier step.
            x: ``(batch, *input)``; a dictionary by input name if there are several.
            y: class labels ``(batch,)`` (integers), or targets ``(batch, *output)``; a dictionary by output name if
                there are several; nothing for a network without a loss.
            record: channels to return for every agent and example: ``{"h1": ["e"]}``.
            noise: standard normal numbers, see :meth:`noise`; drawn from the state if not given.
            phase: of a rule whose steps are not all alike; by default the one whose turn it is by the step counter,
                which under transforms cannot be read.

        Raises:
            InputError: for a batch that does not fit.
            StateError: for a state of another program.
        """
        tensors, size = self._feed(x, y)
        if phase is not None or self._phased:
            phase = self.protocol.phase_at(state, phase)
        compiled = self._function(record, online=size == 1, phase=phase)
        if compiled.noise and noise is None:
            if inside_transform():
                raise InputError(
                    "under torch.func transforms pass noise= yourself: noise=program.noise(state, batch_size)"
                )
            noise = self._keeping.noise(state, compiled.noise, size)
        if compiled.noise:
            checks.noise(noise or {}, compiled.noise, size)
        self._keeping.check(state, size)
        parameters = self._parameters_now()
        state, predictions, losses, recorded = compiled.module.forward(state, parameters, noise or {}, *tensors)
        prediction = predictions if len(predictions) > 1 else predictions[self._outputs[0]]
        return state, Output(prediction, losses, recorded)

    def predict(self, state: State, x: Batch) -> Any:
        """Predictions ``(batch, *output)`` by the forward pass alone; the state stays as it is.

        Any batch size works, but for rules whose forward pass reads a memory kept for each example. Several
        outputs are returned as a dictionary.

        Raises:
            InputError: for a batch that does not fit.
            StateError: for a state of another program.
        """
        compiled = self._function(learning=False)
        tensors, size = self._feed(x, None, learning=False)
        self._keeping.check(state, size if compiled.remembers else None)
        noise = {
            name: torch.zeros([size if n is None else n for n in shape], device=self.device, dtype=self.dtype)
            for name, shape in compiled.noise.items()
        }
        parameters = self._parameters_now()
        predictions = compiled.module.forward(state, parameters, noise, *tensors)
        return predictions if len(predictions) > 1 else predictions[self._outputs[0]]

    def run(self, state: State, batches: Iterable[Any], *, progress: bool = False) -> tuple[State, list[float]]:
        """Steps over batches ``(x, y)`` (or ``x`` alone); returns the state and the loss of each step.

        Keeps no autograd graph: to differentiate through learning call :meth:`step` yourself.
        """
        losses = []
        with torch.no_grad():
            for batch in tqdm(batches, disable=not progress, leave=False):
                x, y = batch if isinstance(batch, (tuple, list)) else (batch, None)
                state, out = self.step(state, x, y)
                if out.loss is not None:
                    losses.append(out.loss)
        return state, torch.stack(losses).tolist() if losses else []

    def _parameters_now(self) -> list[Tensor]:
        """Parameters and buffers as the modules hold them at this moment (``functional_call`` replaces them)."""
        return [store[name] for store, name, _ in self._slots]

    # -- checks: one look at good batches; what is wrong with others is found out in checks.py -------------

    def _feed(self, x: Any, y: Any, learning: bool = True) -> tuple[list[Tensor], int]:
        """Inputs and one-hot targets in the order of the generated function, and the batch size."""
        given = (x,) if isinstance(x, Tensor) else x
        if len(self._inputs) != 1 or given is x:
            given = checks.by_name("x", x, self._inputs, "input")
        tensors = []
        for name, tensor in zip(self._inputs, given, strict=True):
            shape: Sequence[int] = tensor.shape if isinstance(tensor, Tensor) else ()
            if (
                shape[1:] != self._shapes[name]
                or tensor.dtype != self.dtype
                or tensor.device != self.device
                or not shape[0]
            ):
                checks.input(name, tensor, self._shapes[name], self.dtype, self.device)
            if self.checks == "all" and not inside_transform():
                checks.finite(name, tensor)
            tensors.append(tensor)
        size = tensors[0].shape[0]
        for name, tensor in zip(self._inputs[1:], tensors[1:], strict=True):
            if tensor.shape[0] != size:
                raise InputError(f"input {name!r} has {tensor.shape[0]} examples, {self._inputs[0]!r} has {size}")
        if not learning:
            return tensors, size
        if self._targets:
            given = (y,) if isinstance(y, Tensor) and len(self._targets) == 1 else None
            for name, tensor in zip(
                self._targets, given or checks.by_name("y", y, self._targets, "output"), strict=True
            ):
                tensors.append(self._target(name, tensor, size))
        elif y is not None:
            raise InputError("y was given, but the network has no loss that could use it")
        return tensors, size

    def _target(self, name: str, tensor: Any, size: int) -> Tensor:
        """Targets as numbers of the program's dtype; class labels become one-hot vectors."""
        if (
            isinstance(tensor, Tensor)
            and tensor.shape == (size,)
            and tensor.dtype in checks.LABELS
            and name in self._one_hot
        ):
            one_hot = self._one_hot[name]
            if inside_transform() or (self.checks == "none" and self.device.type != "cpu"):
                return one_hot.index_select(0, tensor.long())
            return checks.labels(name, tensor, one_hot)
        losses = [] if self.checks == "none" or inside_transform() else self.graph.network.losses.values()
        checks.target(name, tensor, size, self._shapes[name], self.dtype, self.device)
        for drawn in losses:
            problem = drawn.loss.problem(tensor) if drawn.pre == name else None
            if problem:
                raise InputError(f"target of {name!r}, loss {drawn.name!r}: {problem}")
        return tensor

    def extra_repr(self) -> str:
        """The network's size, the rule and where it runs."""
        numbers = sum(torch.Size(n or 1 for n in shape).numel() for _, _, shape in self._keeping.wanted)
        arrows = len(self.graph.all_arrows())
        return (
            f"{len(self.graph.nodes)} nodes, {arrows} arrows, {numbers} numbers of state, {self.dtype}, {self.device}"
        )


def compile(
    network: Network,
    protocol: Protocol | Mapping[str, Protocol],
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    checks: Checks = "labels",
) -> Program:
    """Compile a network with a learning rule into a program.

    Args:
        network: what was drawn.
        protocol: the rule; its parameters are moved to the device and dtype, as ``nn.Module.to`` does. A dictionary
            gives a rule for each pattern of node names, see :class:`Regions`.
        device: where states are made and steps run; torch's default device if not given.
        dtype: of all numbers; torch's default if not given.
        checks: which *values* each eager call inspects, beside shapes and dtypes: ``"labels"`` the range of class
            labels (and that soft targets fit the loss), ``"all"`` also that inputs are finite, ``"none"`` nothing.
            On an accelerator such a check waits for it. Under ``torch.func`` and ``torch.compile`` values are
            never inspected.

    Raises:
        NetworkError: for a cycle, a unit without connections, an output that no input reaches.
        ProtocolError: for a rule that does not fit the network.

    Warns:
        FlatUnitWarning: where a unit without derivative cuts off learning.
    """
    if not isinstance(network, Network):
        raise ProtocolError(f"mg.compile(network, protocol): the first argument is {type(network).__name__}")
    if isinstance(protocol, Mapping):
        protocol = Regions(protocol)
    if isinstance(protocol, type) or not isinstance(protocol, Protocol):
        hint = f"; write {protocol.__name__}()" if isinstance(protocol, type) else ""
        raise ProtocolError(f"mg.compile(network, protocol): the second argument is {protocol!r}{hint}")
    if checks not in ("none", "labels", "all"):
        raise InputError(unknown("checks", checks, ("none", "labels", "all")))
    place, dtype = usable(device), dtype or torch.get_default_dtype()
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise InputError(f"dtype must be a floating-point torch.dtype such as torch.float64, got {dtype!r}")
    if place.type == "cpu":
        # glibc hands freed memory back to the system above a threshold that follows the largest block ever freed.
        # With small tensors only, every step would fault its pages in again (measured: a quarter of LeNet's step).
        torch.empty(31 << 20, dtype=torch.uint8)
    drawn = protocol.rewrite(network.copy())
    if not isinstance(drawn, Network):
        raise ProtocolError(f"{type(protocol).__name__}.rewrite must return a network, got {drawn!r}")
    check_functions(drawn, dtype, place)
    graph = AgentGraph(drawn, protocol)
    check_borders(graph)
    return Program(graph, place, dtype, checks)
