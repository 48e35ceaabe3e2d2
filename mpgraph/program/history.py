"""Weights that autograd would keep at every step, as a history: one of many, and the small factors of the writes.

Autograd keeps a weight for each product that reads it, and each step of an unroll has weights of its own. Where their
writes can be replayed from small tensors (:mod:`mpgraph.lowering.replay`), it is given a note in place of the weight:
which one it was. The backward pass replays the writes of some steps at once, from the last weights that were kept, and
has the very same numbers.

Works under ``torch.func.vmap``; not under ``torch.func.grad``, which has no hooks for what is saved.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._pytree import tree_map_only

from mpgraph.environment import inside_transform
from mpgraph.lowering.compile import Compiled
from mpgraph.lowering.derivative import Differentiable
from mpgraph.lowering.replay import LARGE, Replay, replay_of
from mpgraph.lowering.shapes import tensors_of

Dims = list[tuple[int | None, ...]]
Replays = dict[Any, tuple[Replay, Differentiable] | None]


class Histories:
    """Inside ``with``, the history of one unroll; see :meth:`Program.histories`.

    Args:
        every: steps between two weights that are kept.
        replays: of a program, by code and shapes; grows.
    """

    def __init__(self, every: int, replays: Replays) -> None:
        self.every, self._steps = every, replays
        self._moments: dict[int, tuple[weakref.ref[Any], Moment, int, int]] = {}  # by storage
        self._waiting: dict[int, list[Wide]] = {}  # large tensors that were saved since the last step
        self._run, self._small = Run(), Small()
        self._hooks = saved_tensors_hooks(self._pack, _unpack)

    @property
    def slack(self) -> int:
        """Bytes that were allocated for small tensors and are still free."""
        return self._small.slack

    def __enter__(self) -> Histories:
        self._hooks.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._hooks.__exit__(*error)
        self._moments.clear()
        self._waiting.clear()
        self._small = Small()

    def step(self, compiled: Compiled, arguments: Sequence[Any]) -> Any:
        """Run the code of a step, and note what its writes need."""
        if not torch.is_grad_enabled():
            return compiled.run(*arguments)
        key = (id(compiled), tuple(tensor.shape for tensor in arguments[3:]))
        if key not in self._steps:
            one = tree_map_only(Tensor, _empty, arguments)  # of one network, whatever vmap hides behind a tensor
            replay = replay_of(compiled.module, tensors_of(compiled.module, one))
            self._steps[key] = None if replay is None else (replay, Differentiable(replay.recording))
        step = self._steps[key]
        if step is None:
            return compiled.run(*arguments)
        replay, run = step
        results, old, cut, wide = run(*arguments)
        _seen(self._noted, replay, old, cut, wide)
        return results

    def _noted(
        self, replay: Replay, writes: Callable[..., Any], old: list[Tensor], cut: list[Any], wide: list[Tensor]
    ) -> None:
        """A step was made; its tensors are those of all networks."""
        before = self._before(old)
        cut = [self._small.put(item) if isinstance(item, Tensor) else item for item in cut]
        after = Moment(before, writes, cut, replay.new, self._run)
        self._small.forget()
        if after.number % self.every == 0:
            after.kept = [wide[i] for i in replay.new]
        self._moments = {key: one for key, one in self._moments.items() if one[0]() is not None}
        for i, tensor in enumerate(wide):
            storage = tensor.untyped_storage()
            if i in replay.new:
                ref = weakref.ref(storage)
                self._moments[storage._cdata] = (ref, after, i, tensor._version)
            for saved in self._waiting.get(storage._cdata, ()):
                saved.replace(after, i)
        self._waiting = {}

    def _before(self, old: list[Tensor]) -> Moment:
        """The moment that these weights are of; a new history where they are not of one."""
        found = [self._moment(tensor) for tensor in old]
        first = found[0]
        if first is not None and all(one is not None and one[0] is first[0] for one in found):
            moment = first[0]
            if [one[1] for one in found] == moment.new:  # type: ignore[index]
                return moment
        return Moment.of(old, self._run)

    def _moment(self, tensor: Tensor) -> tuple[Moment, int] | None:
        one = self._moments.get(tensor.untyped_storage()._cdata)
        if one is None or one[0]() is None or one[3] != tensor._version:
            return None
        return one[1], one[2]

    def _pack(self, tensor: Tensor) -> Any:
        """What autograd keeps of a tensor."""
        plain = tensor.detach()  # the tensor itself would hold the graph that holds it
        if tensor.numel() < LARGE:
            return self._small.put(plain)
        found = self._moment(tensor)
        saved = Wide(plain)
        if found is not None:
            saved.replace(*found)
        else:
            self._waiting.setdefault(tensor.untyped_storage()._cdata, []).append(saved)
        return saved


def _empty(tensor: Tensor) -> Tensor:
    return torch.zeros(tensor.shape, dtype=tensor.dtype, device=tensor.device)


class Small:
    """Copies of small tensors, close to each other.

    A heap fills the place of a large tensor that was freed with small ones; if these stay, the next large tensor does
    not fit there any more, and an unroll would take nearly as much memory as if all had been kept.
    """

    BLOCK = 1 << 18  # bytes

    def __init__(self) -> None:
        self._block, self._used = torch.empty(0, dtype=torch.uint8), 0
        self._copied: dict[int, tuple[Any, Tensor]] = {}

    def put(self, tensor: Tensor) -> Tensor:
        """The same numbers; what lies in the memory of something large stays there."""
        storage = tensor.untyped_storage()
        size = storage.nbytes()
        if tensor.device.type != "cpu" or not 0 < size < LARGE * 16:
            return tensor
        if storage._cdata not in self._copied:
            if self._used + size > len(self._block):
                self._block, self._used = torch.empty(self.BLOCK, dtype=torch.uint8), 0
            copy = self._block.narrow(0, self._used, size).view(tensor.dtype)
            copy.copy_(tensor.new_empty(0).set_(storage))
            self._used += -(-size // 64) * 64
            self._copied[storage._cdata] = storage, copy  # held, so that no other one gets its address
        copy = self._copied[storage._cdata][1]
        return copy.as_strided(tensor.shape, tensor.stride(), copy.storage_offset() + tensor.storage_offset())

    @property
    def slack(self) -> int:
        """Bytes of the present block that are free."""
        return len(self._block) - self._used

    def forget(self) -> None:
        """A step is over."""
        self._copied.clear()


class Wide:
    """A large tensor that autograd saved: itself, or where it is to be found."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor: Tensor | None = tensor
        self.moment: Moment | None = None
        self.index = 0
        self.view = tensor.shape, tensor.stride(), tensor.storage_offset()

    def replace(self, moment: Moment, index: int) -> None:
        """It is a result of the writes that led to this moment."""
        if moment.kept is None:
            self.tensor, self.moment, self.index = None, moment, index
            moment.read.add(index)

    def get(self) -> Tensor:
        """The tensor."""
        if self.tensor is not None:
            return self.tensor
        assert self.moment is not None
        return self.moment.results()[self.index].as_strided(*self.view)


def _unpack(saved: Any) -> Tensor:
    return saved.get() if isinstance(saved, Wide) else saved


class Moment:
    """Large channels after a step.

    Args:
        before: those before it.
        writes: ``(*old, *cut) -> wide``.
        cut: what the writes need beside the channels before.
        new: which results of the writes are the channels.
        run: where results wait that were computed for later ones.

    Attributes:
        number: steps since the history began.
        kept: the channels, if they are kept as they are.
    """

    def __init__(
        self, before: Moment | None, writes: Callable[..., Any], cut: list[Any], new: list[int], run: Run
    ) -> None:
        self.before, self.writes, self.cut, self.new, self.run = before, writes, cut, new, run
        self.number: int = 0 if before is None else before.number + 1
        self.kept: list[Tensor] | None = None
        self.read: set[int] = set(new)  # of the results of the writes, those that anybody reads

    @staticmethod
    def of(tensors: list[Tensor], run: Run) -> Moment:
        """The start of a history."""
        first = Moment(None, list, [], [], run)
        first.kept = tensors
        return first

    def results(self) -> list[Tensor]:
        """All that the writes of this step gave."""
        found = self.run.found
        if self not in found:
            line: list[Moment] = [self]
            while (before := line[-1].before) is not None and before.kept is None and before not in found:
                line.append(before)
            start = line[-1].before
            assert start is not None
            channels = start.kept or [found[start][i] for i in start.new]
            with torch.no_grad():
                for moment in reversed(line):
                    results = list(moment.writes(*channels, *moment.cut))
                    channels = [results[i] for i in moment.new]
                    for i in set(range(len(results))) - moment.read:
                        results[i] = results[i].new_empty(0)
                    found[moment] = results
        for moment in list(found):  # the backward pass will not come back to these
            if moment.number > self.number:
                del found[moment]
        return found[self]


class Run:
    """The results of some steps in a row, the last of which the backward pass has reached."""

    def __init__(self) -> None:
        self.found: WeakKeyDictionary[Moment, list[Tensor]] = WeakKeyDictionary()


# -- what is behind vmap ----------------------------------------------------------------------------------------------


def _seen(noted: Callable[..., None], replay: Replay, old: list[Any], cut: list[Any], wide: list[Any]) -> None:
    """Call ``noted`` with the tensors of all networks that ``vmap`` runs side by side."""
    call = _Call(noted, replay, (old, cut, wide))
    tensors = [item.detach() for item in (*old, *cut, *wide) if isinstance(item, Tensor)]
    if inside_transform():
        _Behind.apply(call, *tensors)
    else:
        call.received(tensors)


class _Call:
    """One step on its way down through the levels of ``vmap``.

    Args:
        noted: called at the end.
        replay: of the step.
        lists: old, cut and wide, as the innermost level sees them.
    """

    def __init__(self, noted: Callable[..., None], replay: Replay, lists: tuple[list[Any], ...]) -> None:
        self.noted, self.replay, self.lists = noted, replay, lists
        self.dims: Dims = []

    def received(self, tensors: Sequence[Tensor]) -> None:
        """All levels are behind."""
        left = iter(tensors)
        old, cut, wide = ([next(left) if isinstance(i, Tensor) else i for i in items] for items in self.lists)
        writes = self.replay.writes
        for dims in self.dims:
            writes = _mapped(writes, self.lists, dims)
        self.noted(self.replay, _laid_out(writes, wide), old, cut, wide)


def _mapped(writes: Callable[..., Any], lists: Sequence[list[Any]], dims: Sequence[int | None]) -> Callable[..., Any]:
    """The writes of many networks; ``dims`` has one entry for each tensor of the lists."""
    left = iter(dims)
    old, cut, wide = ([next(left) if isinstance(i, Tensor) else None for i in items] for items in lists)
    places: Any = tuple(wide)
    return torch.func.vmap(writes, in_dims=(*old, *cut), out_dims=places)


def _laid_out(writes: Callable[..., Any], wide: Sequence[Tensor]) -> Callable[..., Any]:
    """The same with results laid out in memory as they were, because what was saved may be a view of them."""
    layouts = [(tensor.shape, tensor.stride()) for tensor in wide]

    def laid_out(*arguments: Any) -> list[Tensor]:
        results = []
        for tensor, (shape, stride) in zip(writes(*arguments), layouts, strict=True):
            if tensor.stride() != stride or tensor.storage_offset():
                tensor = tensor.new_empty_strided(shape, stride).copy_(tensor)
            results.append(tensor)
        return results

    return laid_out


class _Behind(torch.autograd.Function):
    """Takes tensors out of ``vmap``."""

    @staticmethod
    def forward(call: _Call, *tensors: Tensor) -> Tensor:
        call.received(tensors)
        return torch.empty(0)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        """Nothing is kept."""

    @staticmethod
    def backward(ctx: Any, error: Tensor) -> tuple[None, ...]:
        return (None,) * len(ctx.needs_input_grad)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], call: _Call, *tensors: Tensor) -> tuple[Tensor, None]:
        call.dims.append(in_dims[1:])
        if inside_transform():
            _Behind.apply(call, *tensors)
        else:
            call.received(tensors)
        return torch.empty(0), None
