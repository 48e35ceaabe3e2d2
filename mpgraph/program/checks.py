"""What is wrong with a batch, a state or a device: the slow look, taken only when the quick one failed."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor

from mpgraph.agents.repeat import Repeat, names_of
from mpgraph.errors import GroupError, InputError, ProtocolError, StateError, unknown
from mpgraph.graph.wiring import AgentGraph

LABELS = frozenset((torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8))


def processes(group: Any) -> dist.ProcessGroup:
    """The group, if it is one and this process is in it.

    Raises:
        GroupError: saying what to do.
    """
    if not dist.is_available():
        raise GroupError("mg.compile: group: this build of torch has no torch.distributed; leave group out")
    if group is None and not dist.is_initialized():
        raise GroupError(
            "mg.compile: group=None: torch.distributed.group.WORLD is None until the processes have met; call "
            "torch.distributed.init_process_group() first, or leave group out for one process"
        )
    if group is dist.GroupMember.NON_GROUP_MEMBER:
        raise GroupError("mg.compile: this process is not in the group; compile in the processes that are")
    if not isinstance(group, dist.ProcessGroup):
        raise GroupError(
            f"mg.compile: group={group!r} must be a group of torch.distributed, such as torch.distributed.group.WORLD, "
            "or be left out for one process"
        )
    return group


def by_name(what: str, given: Any, names: Sequence[str], kind: str) -> tuple[Any, ...]:
    """The batches of all inputs (or outputs) in order, whether one tensor or a dictionary was given."""
    if isinstance(given, Mapping):
        for name in given:
            if name not in names:
                raise InputError(f"{what}: " + unknown(kind, name, names))
        missing = [name for name in names if name not in given]
        if missing:
            raise InputError(f"{what} lacks {kind} {', '.join(map(repr, missing))}")
        return tuple(given[name] for name in names)
    if given is None:
        raise InputError(f"{what} is missing: the network has {kind} {', '.join(map(repr, names))}")
    if len(names) > 1:
        raise InputError(f"{what}: several {kind}s ({', '.join(names)}): pass a dictionary by name")
    return (given,)


def input(
    name: str,
    tensor: Any,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    device: torch.device,
    called: str = "x",
    ticks: bool = False,
) -> None:
    """Refuse an input batch that does not fit, in words; ``called`` is how the caller writes it."""
    what = f"input {name!r}"
    _dense(what, tensor, called)
    if tensor.ndim == 0 or tensor.shape[1:] != shape:
        how = advice(tuple(tensor.shape), shape, called, ticks)
        raise InputError(f"{what}: expected shape {_batch(shape)}, got {tuple(tensor.shape)}{how}")
    if tensor.dtype != dtype:
        raise InputError(
            f"{what}: the program was compiled for {dtype}, got {tensor.dtype}; use {called}.to({dtype})"
            + (f" or mg.compile(..., dtype={tensor.dtype})" if tensor.is_floating_point() else "")
        )
    if tensor.shape[0] == 0:
        raise InputError(f"{what}: the batch is empty")
    _on_device(what, tensor, device)


def ticks(name: str, tensor: Any, shape: tuple[int, ...], called: str = "x") -> int:
    """How many ticks a sequence has; refuse what is none."""
    _dense(f"input {name!r}", tensor, called)
    if tensor.ndim != len(shape) + 2:
        wanted = f"({', '.join(map(str, ('batch', 'ticks', *shape)))})"
        one = f"; for sequences of one tick use {called}[:, None]" if tensor.shape[1:] == shape else ""
        raise InputError(f"input {name!r}: a sequence has the shape {wanted}, got {tuple(tensor.shape)}{one}")
    if not tensor.shape[1]:
        raise InputError(f"input {name!r}: a sequence has at least one tick, got shape {tuple(tensor.shape)}")
    return int(tensor.shape[1])


def one_size(names: Sequence[str], tensors: Sequence[Tensor]) -> int:
    """How many examples all inputs have.

    Raises:
        InputError: if they differ.
    """
    size = tensors[0].shape[0]
    for name, tensor in zip(names[1:], tensors[1:], strict=True):
        if tensor.shape[0] != size:
            raise InputError(f"input {name!r} has {tensor.shape[0]} examples, {names[0]!r} has {size}")
    return size


def lengths(what: str, got: int, wanted: int) -> NoReturn:
    """Refuse parts of a sequence that have different numbers of ticks."""
    raise InputError(
        f"{what} has {got} ticks, where the input has {wanted}: a sequence has as many ticks at every input and "
        "target. Pad targets with -100 (labels) or NaN, and inputs with anything"
    )


def target_of_sequence(name: str, tensor: Tensor, size: int, ticks: int, shape: tuple[int, ...]) -> NoReturn:
    """Refuse targets that are neither those of every tick nor those of the last."""
    labels = f"class labels ({size}, {ticks}) as integers or " if len(shape) == 1 else ""
    every, last = ", ".join(map(str, (size, ticks, *shape))), ", ".join(map(str, (size, *shape)))
    raise InputError(
        f"target of {name!r}: expected {labels}targets ({every}), or those of the last tick alone, "
        f"{f'({size},) or ' if labels else ''}({last}); got {tensor.dtype} of shape {tuple(tensor.shape)}"
    )


def advice(got: tuple[int, ...], wanted: tuple[int, ...], called: str, ticks: bool = False) -> str:
    """What to write for a tensor of another shape than ``(batch, *wanted)``, or nothing if no way is plausible.

    Args:
        got: its shape.
        wanted: of one example.
        called: the tensor, in the caller's words.
        ticks: whether the first number of ``wanted`` counts ticks.
    """
    if 0 in got:
        return ""
    one = f"; for one example use {called}"
    many = f"; use {called}"
    inside = ", ".join(map(str, wanted))
    image = len(wanted) == 3
    if got == wanted:
        return f"{one}[None]"
    if ticks and len(got) == len(wanted) + 1 and got[0] == wanted[0] and got[2:] == wanted[1:]:
        return f"{many}.transpose(0, 1): the batch comes first, then ticks"
    if ticks and got[1:] == wanted[1:] and len(got) == len(wanted):
        return f"{many}[:, None].expand(-1, {wanted[0]}{', -1' * (len(wanted) - 1)}) to show it at every tick"
    if image and len(got) == 4 and (got[3], *got[1:3]) == wanted:
        return f"{many}.permute(0, 3, 1, 2): channels come before height and width"
    if image and len(got) == 3 and (got[2], *got[:2]) == wanted:
        return f"{one}.permute(2, 0, 1)[None]: channels come before height and width"
    if wanted[0] == 1 and len(wanted) > 1 and got == wanted[1:]:
        return f"{one}[None, None]"
    if wanted[0] == 1 and got[1:] == wanted[1:]:
        return f"{many}[:, None]"
    for given, start, say in ((got[1:], 1, many), (got, 0, one)):
        if sorted(given) == sorted(wanted) and len(set(wanted)) == len(wanted):
            order = [*range(start), *(given.index(n) + start for n in wanted)]
            return f"{say}.permute({', '.join(map(str, order))})" + "[None]" * (not start)
    if len(got) > 1 and _regrouped(got[1:], wanted):
        return f"{many}.flatten(1)" if len(wanted) == 1 else f"{many}.reshape(-1, {inside})"
    if got and _regrouped(got, wanted):
        return f"{one}.reshape(1, {inside})"
    return ""


def _regrouped(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    """Whether neighboring dimensions of one shape, taken together, give the other: then a reshape keeps the order."""
    many, few = sorted((one, other), key=len, reverse=True)
    rest = list(many)
    for size in few:
        taken = 1
        while rest and taken * rest[0] <= size and (taken < size or rest[0] == 1):
            taken *= rest.pop(0)
        if taken != size:
            return False
    return all(n == 1 for n in rest)


def finite(name: str, tensor: Tensor) -> None:
    """Refuse NaN and infinity."""
    bad = ~torch.isfinite(tensor).flatten(1).all(1)
    if bool(bad.any()):
        raise InputError(f"input {name!r} holds NaN or infinity, first in example {int(bad.nonzero()[0])}")


def target(
    name: str,
    tensor: Any,
    size: int,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    device: torch.device,
    called: str = "y",
    ticks: int = 0,
) -> None:
    """Refuse targets that are neither class labels nor of the output's shape.

    Args:
        name: of the output.
        tensor: what was given.
        size: of the batch.
        shape: of the output.
        dtype, device: of the program.
        called: the target's name in advice.
        ticks: of a network that is unrolled.
    """
    what = f"target of {name!r}"
    _dense(what, tensor, called)
    if tensor.ndim == 0 or tensor.shape[0] != size:
        one = f"; for one example use {called}[None]" if size == 1 and tensor.shape in (shape, ()) else ""
        raise InputError(f"{what}: expected {size} examples like x, got shape {tuple(tensor.shape)}{one}")
    if tensor.shape[1:] != shape:
        if shape == (1,) and tensor.shape == (size,):
            raise InputError(
                f"{what}: an output of one unit has no classes; pass targets of shape (batch, 1) as numbers, "
                f"{called}[:, None].to({dtype})"
            )
        labels = "class labels (batch,) as integers or " if len(shape) == 1 else ""
        columns = len(shape) == 1 and tensor.dtype in LABELS and tensor.shape.numel() == size
        how = f"; use {called}.flatten()" if columns else advice(tuple(tensor.shape), shape, called)
        if ticks and tensor.shape[1:2] == (ticks,):
            how = "; targets at every tick take mg.compile(..., sequences=True)"
        raise InputError(
            f"{what}: expected {labels}targets {_batch(shape)}, got {tensor.dtype} of shape {tuple(tensor.shape)}{how}"
        )
    if tensor.dtype != dtype:
        raise InputError(f"{what}: expected {dtype}, got {tensor.dtype}; use {called}.to({dtype})")
    _on_device(what, tensor, device)


def labels(
    name: str, tensor: Tensor, classes: int, device: torch.device, one_hot: Callable[[Tensor, int], Tensor]
) -> Tensor:
    """One-hot rows for class labels; refuse labels out of range."""
    _on_device(f"target of {name!r}", tensor, device)
    if tensor.is_cpu:
        try:  # on the CPU the look-up itself tells, at no cost
            return one_hot(tensor, classes)
        except (IndexError, RuntimeError):
            low, high = int(tensor.min()), int(tensor.max())
            if low >= 0 and high < classes:
                raise
    else:
        low, high = (int(n) for n in torch.aminmax(tensor))
        if low >= 0 and high < classes:
            return one_hot(tensor, classes)
    raise InputError(
        f"target of {name!r}: labels must lie in 0..{classes - 1}, got {low}..{high}; the output has {classes} units"
    )


def one_value(units: Sequence[str]) -> None:
    """Refuse a learning step that would normalize single numbers by themselves."""
    names = ", ".join(map(repr, units))
    raise InputError(
        f"a batch of one example gives the batch normalization of {names} one value for each channel: it would become "
        "zero, and the running variance would shrink. Learn from larger batches, or fix the statistics, "
        "mg.BatchNorm().frozen(mean, var); predict takes single examples"
    )


def batch(number: int, given: Any, inputs: Sequence[str], learning: bool) -> tuple[Any, Any]:
    """The x and y of a batch that ``program.run`` was given, or a refusal that names it."""
    what = f"program.run: batch {number}"
    allowed = "expected (x, y)" if learning else "expected x, or (x, None)"
    if isinstance(given, Mapping):
        if learning or not given.keys() <= set(inputs):
            keys = list(given)
            parts = [f"batch[{key!r}]" for key in keys]
            how = ""
            if len(keys) > learning:
                how = f". Pass ({f'({parts[0]}, {parts[1]})' if learning else parts[0]} for batch in batches)"
            listed = ", ".join(map(repr, keys)) or "none"
            raise InputError(f"{what} is a dictionary with keys {listed}; {allowed}{how}")
        return given, None
    if isinstance(given, Tensor):
        if learning:
            raise InputError(
                f"{what} is a tensor by itself, but the network has a loss, which needs targets; {allowed}: "
                "program.run(state, [(x, y)])"
            )
        return given, None
    if not isinstance(given, (tuple, list)):
        raise InputError(f"{what} is {'a ' * (given is not None)}{_kind(given)}; {allowed}")
    if len(given) == 2:
        return given[0], given[1]
    if len(given) == 1:
        return given[0], None
    first = "(x, y) for x, y, *_" if learning else "x for x, *_"
    more = f". Pass ({first} in batches)" if len(given) > 2 else ""
    raise InputError(f"{what} is a {type(given).__name__} of {len(given)}; {allowed}{more}")


def examples(x: Any) -> int:
    """How many examples a batch holds, as far as can be told."""
    first = next(iter(x.values()), None) if isinstance(x, Mapping) else x
    return len(first) if isinstance(first, Tensor) and first.ndim else 0


def prediction(graph: AgentGraph, passes: Sequence[str | Repeat]) -> None:
    """Refuse a schedule of predictions in which something receives a message that needs a target."""
    for name in names_of(passes):
        for node in graph.order[name]:
            if node.type in ("loss", "target"):
                continue
            for role, arrows in graph.arrows[name][node.name].items():
                for arrow in arrows:
                    if arrow.source.type in ("loss", "target"):
                        raise ProtocolError(
                            f"predict_passes={tuple(passes)}: in pass {name!r}, {node.name!r} receives a message "
                            f"(role {role!r}) from {arrow.source.name!r}, which needs the target; a prediction has "
                            f"none. Leave {name!r} out of predict_passes, or give the passes of a prediction names of "
                            "their own, in which the loss sends nothing"
                        ) from None


def record(given: Any) -> None:
    """Refuse a ``record`` that is not lists of channels by node."""
    example = 'record={"h1": ["e"]}'
    if not isinstance(given, Mapping):
        raise InputError(f"record: expected a dictionary of lists of channels by node, {example}, got {given!r}")
    for name, channels in given.items():
        if isinstance(channels, str) or not isinstance(channels, (list, tuple, set, frozenset)):
            hint = f": [{channels!r}]" if isinstance(channels, str) else ""
            raise InputError(f"record[{name!r}]: expected a list of channels{hint}, got {channels!r}; {example}")
        for channel in channels:
            if not isinstance(channel, str):
                raise InputError(f"record[{name!r}]: expected names of channels, got {channel!r}; {example}")


def noise(
    given: Any, wanted: Mapping[str, tuple[int | None, ...]], size: int, dtype: torch.dtype, device: torch.device
) -> None:
    """Refuse noise of the wrong names, shapes or type; ``None`` in ``wanted`` stands for the batch."""
    how = "use program.noise(state, batch_size)"
    if not isinstance(given, Mapping):
        raise InputError(f"noise: expected a dictionary of tensors by node, got {_kind(given)}; {how}")
    for name, sizes in wanted.items():
        what, shape = f"noise {name!r}", tuple(size if n is None else n for n in sizes)
        if name not in given:
            raise InputError(f"{what}: expected shape {shape}, got none; {how}")
        tensor = given[name]
        _dense(what, tensor, f"noise[{name!r}]")
        if tensor.shape != shape:
            raise InputError(f"{what}: expected shape {shape}, got {tuple(tensor.shape)}; {how}")
        if tensor.dtype != dtype:
            raise InputError(f"{what}: expected {dtype}, got {tensor.dtype}; use noise[{name!r}].to({dtype})")
        _on_device(what, tensor, device)


def no_parameter(name: str, names: Collection[str], rule: str) -> NoReturn:
    """Refuse a name that no parameter of the rule has."""
    if not names:
        raise InputError(
            f"parameters: {name!r} cannot be replaced: {rule} has no parameters, its numbers are constants of the "
            "code. Make a number one from the start with mg.learnable(...): Backprop(lr=mg.learnable(0.1))"
        )
    short = str(name).removeprefix("protocol.")
    if short in names:
        raise InputError(f"parameters: unknown parameter {name!r}; names start at the rule: {short!r}")
    raise InputError("parameters: " + unknown("parameter", name, names))


def parameter(name: str, tensor: Any, own: Tensor) -> None:
    """Refuse a tensor that cannot stand for the rule's own parameter."""
    what = f"parameters[{name!r}]"
    if not isinstance(tensor, Tensor):
        raise InputError(f"{what}: expected a tensor, got {_kind(tensor)}; use torch.as_tensor(...)")
    if tensor.shape != own.shape:
        many = tensor.ndim > 0 and tensor.shape[1:] == own.shape
        hint = "; map over its first axis with torch.func.vmap" if many else ""
        raise InputError(f"{what}: expected shape {tuple(own.shape)}, got {tuple(tensor.shape)}{hint}")
    if tensor.dtype != own.dtype:
        raise InputError(f"{what}: expected {own.dtype}, got {tensor.dtype}; use .to({own.dtype})")
    _on_device(what, tensor, own.device)


def channel(
    name: str,
    channel: str,
    tensor: Tensor,
    wanted: tuple[int | None, ...],
    size: int | None,
    dtype: torch.dtype,
    device: torch.device,
) -> None:
    """Refuse a state's tensor of the wrong shape, dtype or device; ``None`` in ``wanted`` stands for the batch."""
    where = f"state[{name!r}][{channel!r}]"
    if not isinstance(tensor, Tensor):
        raise StateError(f"{where} is {_kind(tensor)}, not a tensor; use torch.as_tensor(...).to({dtype})")
    shape = tensor.shape
    if tensor.layout is not torch.strided:
        raise StateError(f"{where} is of layout {tensor.layout}, a state holds dense tensors; use .to_dense()")
    if tensor.dtype != dtype or tensor.device.type != device.type:
        raise StateError(
            f"{where} is {tensor.dtype} on {tensor.device}, the program was compiled for {dtype} "
            f"on {device}; use .to(...) on every tensor (but those of 'program' stay integers), or mg.compile(..., "
            f"dtype={tensor.dtype})"
        )
    if len(shape) == len(wanted) and all(w is None or w == n for w, n in zip(wanted, shape, strict=True)):
        slots = [n for w, n in zip(wanted, shape, strict=True) if w is None]
        if not slots or size is None or slots[0] == size:
            return
        raise StateError(
            f"channel {channel!r} of node {name!r} keeps one value for each of {slots[0]} examples, but the batch has "
            f"{size}; make the state with program.init(seed, batch_size={size})"
        )
    stacked = len(shape) == len(wanted) + 1 and all(w in (None, n) for w, n in zip(wanted, shape[1:], strict=True))
    own = "was it made by this program's init?"
    hint = "a stack of states goes through torch.func.vmap(program.step)" if stacked else own
    raise StateError(
        f"{where} has shape {tuple(shape)}, this program needs "
        f"{tuple('batch' if n is None else n for n in wanted)}; {hint}"
    )


def counter(channel: str, tensor: Any) -> None:
    """Refuse a seed or a number of steps that is not a number; a state that was cast whole has floats here."""
    where = f"state['program'][{channel!r}]"
    if not isinstance(tensor, Tensor):
        raise StateError(f"{where} is {_kind(tensor)}, not a tensor; use torch.as_tensor(..., dtype=torch.int64)")
    if tensor.dtype.is_complex or tensor.dtype == torch.bool:
        raise StateError(f"{where} is {tensor.dtype}, not torch.int64; use .to(torch.int64)")


def no_state(state: Any, name: str, channel: str) -> NoReturn:
    """Refuse what is not a state, or lacks a tensor."""
    if isinstance(state, tuple):
        raise StateError(
            "expected a state, got a tuple; a step returns a state and an output: state, out = program.step(...)"
        )
    if not isinstance(state, Mapping):
        raise StateError(f"expected a state, as from program.init or program.step, got {_kind(state)}")
    channels = state.get(name)
    if isinstance(channels, Mapping) and channel in channels:
        raise StateError(
            f"state[{name!r}][{channel!r}] is {_kind(channels[channel])}, not a tensor; use torch.as_tensor"
        )
    raise StateError(f"the state has no tensor {channel!r} at node {name!r}; was it made by this program's init?")


def _dense(what: str, tensor: Any, called: str) -> None:
    """Refuse what is not a tensor with all its numbers."""
    if not isinstance(tensor, Tensor):
        raise InputError(f"{what}: expected a tensor, got {_kind(tensor)}; use torch.as_tensor({called})")
    if tensor.layout is not torch.strided:
        raise InputError(f"{what}: expected a dense tensor, got one of layout {tensor.layout}; use {called}.to_dense()")


def _kind(given: Any) -> str:
    """What something is, for people: ``None``, ``list``, ``numpy.ndarray``."""
    cls = type(given)
    outer = cls.__module__.partition(".")[0]
    return "None" if given is None else cls.__name__ if outer == "builtins" else f"{outer}.{cls.__name__}"


def _batch(shape: tuple[int, ...]) -> str:
    return f"({', '.join(map(str, ('batch', *shape)))})"


def _on_device(what: str, tensor: Tensor, device: torch.device) -> None:
    if tensor.device.type != device.type:
        raise InputError(f"{what} is on {tensor.device}, the program on {device}; use .to({str(device)!r})")
