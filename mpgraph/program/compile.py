"""``mg.compile``: arguments checked, then a program."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal, get_args

import torch

from mpgraph.agents.module import unchanged_on_error
from mpgraph.agents.protocol import Protocol
from mpgraph.agents.regions import Regions
from mpgraph.arguments import Arguments
from mpgraph.budget import DEFAULT, Memory
from mpgraph.environment import keep_freed_memory, usable
from mpgraph.errors import InputError, ProtocolError, unknown
from mpgraph.network.network import Network

from .backends import Backend, backend_of
from .checks import processes
from .execution import Checks, Execution
from .program import Program

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup  # which some builds of torch lack


def compile(
    network: Network,
    protocol: Protocol | Mapping[str, Protocol],
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    checks: Checks = "labels",
    memory: Memory = DEFAULT,
    threads: int | None = None,
    backend: Literal["eager", "inductor", "cudagraphs"] | Backend = "eager",
    group: ProcessGroup | Literal["alone"] = "alone",
    online: bool | None = None,
    sequences: bool = False,
) -> Program:
    """Compile a network with a learning rule into a program.

    Args:
        network: populations and their connections.
        protocol: the rule; its parameters are moved to the device and dtype, as ``nn.Module.to`` does. A dictionary
            gives a rule for each pattern of node names, see :class:`Regions`.
        device: where states are made and steps run; torch's default device if not given.
        dtype: of all numbers; torch's default if not given.
        checks: which *values* each eager call inspects, beside shapes and dtypes: ``"labels"`` the range of class
            labels (and that soft targets fit the loss), ``"all"`` also that inputs are finite, ``"none"`` nothing.
            On an accelerator such a check waits for it. Under ``torch.func`` and ``torch.compile`` values are
            never inspected.
        memory: how much the segments of a rule (see :meth:`mpgraph.View.segment`) may keep for backward passes that
            have not run yet: bytes, a size such as ``"2 GiB"``, or a share of what is free on the device at this
            moment, ``0.5`` or ``"50%"``. Steps that find no room are computed again in the backward pass, to the same
            gradient. It says nothing of a rule without segments, nor of steps whose gradient nobody asks for.
        threads: how many threads the slices of a segment are shared out to on the CPU; as many as torch has at the
            moment of the call (``torch.get_num_threads()``) if not given. Other operations are torch's own.
        backend: what runs the generated code: ``"eager"`` torch's own calls one after the other, ``"inductor"``
            ``torch.compile``, on the first call for each batch size and use, ``"cudagraphs"`` a recorded CUDA graph.
            All give the same numbers to rounding.
        group: of ``torch.distributed`` processes that hold one network together, such as
            ``torch.distributed.group.WORLD``. Each compiles the same and passes its own slice of every batch, all
            slices of one size; in rank order they are the batch. Whatever the rule reduces over the batch is added up
            over the processes, so all of them get the state that one process would with the whole batch, and
            ``out.losses`` are means over it. Predictions, recorded channels and memories are those of the slice. All
            processes start from one seed and call ``step`` equally often; ``predict`` too, where the code of a
            prediction reduces over the batch. See docs/scale.md.
        online: whether a step is one tick of the network, not a whole sequence; by default as the rule says
            (:attr:`mpgraph.Protocol.online`). What travels along delayed connections is then part of the state, and
            ``Network(ticks=...)`` does not matter. See docs/settling.md.
        sequences: whether a step is a sequence of any length, with targets and predictions at every tick:
            backpropagation through time, for instance. The code holds one tick, in loops. Without it a network of
            several ticks is unrolled: its code grows with them, and targets and predictions are those of the last.

    Raises:
        NetworkError: for a cycle, a unit without connections, an output that no input reaches.
        ProtocolError: for a rule that does not fit the network, or that learns at every tick with ``online=False``
            or ``sequences=True``.
        InputError: for ``online`` and ``sequences`` at once, another word for ``checks``, a dtype that is not
            floating-point, or threads that are no number.
        BackendError: for a backend that cannot run on the device.
        GroupError: for a group that is not there.

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
    if "agents" not in vars(protocol):
        raise ProtocolError(f"{type(protocol).__name__}.__init__ must call super().__init__()")
    if not isinstance(checks, str) or checks not in get_args(Checks):
        raise InputError(unknown("checks", checks, get_args(Checks)))
    found = None if isinstance(group, str) and group == "alone" else processes(group)
    place, dtype = usable(device), dtype or torch.get_default_dtype()
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise InputError(f"dtype must be a floating-point torch.dtype such as torch.float64, got {dtype!r}")
    if threads is not None:
        threads = Arguments("mg.compile").integer("threads", threads, 1)
    if online is not None:
        online = Arguments("mg.compile").flag("online", online)
    if protocol.online and online is False:
        raise ProtocolError(
            f"mg.compile(..., online=False): {protocol!r} learns at every tick, so a step of it is one tick; leave "
            "online out"
        )
    if Arguments("mg.compile").flag("sequences", sequences):
        if online:
            raise InputError(
                "mg.compile: online=True and sequences=True: a step is one tick or a whole sequence; choose one"
            )
        if protocol.online:
            raise ProtocolError(
                f"mg.compile(..., sequences=True): {protocol!r} learns at every tick, so a step of it is one tick, and "
                "sequences are passed to it as they are; leave sequences out"
            )
    chosen = backend_of(backend)
    chosen.check(place)
    keep_freed_memory()
    with unchanged_on_error(protocol):
        online = protocol.online or bool(online)
        execution = Execution(place, dtype, checks, memory, threads, chosen, found, online, sequences)
        return Program(network, protocol, execution)
