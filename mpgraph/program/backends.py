"""How the code of a program is run: as it is, compiled by torch's inductor, or as captured CUDA graphs.

A :class:`Backend` is given each generated function once and returns what the program calls in its place. What is called
takes and returns the same nested tensors, is as pure, and gives the same numbers to rounding. Where a backend cannot do
what is asked (a gradient of a CUDA graph, say), it runs the generated code as it is; ``explain()`` says when.

Code is compiled for a *signature*: shapes and strides, which tensors want gradients, whether gradients are on, the
number of threads, and what ``torch.func.vmap`` maps over. Each signature is compiled once, on its first call. Under
``vmap`` the mapped function is compiled, with the map inside, as torch cannot map over compiled code.
"""

from __future__ import annotations

import copy
import itertools
import operator
import sys
import time
import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx
from torch._C._functorch import TransformType
from torch._functorch.pyfunctorch import retrieve_current_functorch_interpreter
from torch.autograd import forward_ad

from mpgraph.errors import BackendError, InputError, unknown
from mpgraph.lowering.derivative import Differentiable

Function = Callable[..., Any]


class Compilation(NamedTuple):
    """One compilation of a program's code.

    Attributes:
        what: which function, such as ``"step"``.
        why: the signature in words.
        seconds: from the call that needed it to its result, or of the backward pass by itself.
    """

    what: str
    why: str
    seconds: float


class Backend:
    """Runs generated code; this one as it is. A backend of one's own overrides :meth:`prepare`.

    A backend serves one program. Copies and pickles of it are unused ones: compiled code stays where it is.

    Attributes:
        name: as in ``mg.compile(..., backend="eager")``.
        note: for ``explain()``, what it does and when it does not; empty where there is nothing to say.
        compilations: what was compiled so far, in order.
        closed: whether compiling anything more is an error.
    """

    name = "eager"
    note = ""

    def __init__(self) -> None:
        self.compilations: list[Compilation] = []
        self.closed = False

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), ()

    def check(self, device: torch.device) -> None:
        """Refuse a device that this backend cannot run on.

        Raises:
            BackendError: saying what is missing.
        """

    def prepare(self, module: fx.GraphModule, what: str) -> Function:
        """What to call in place of ``module.forward``.

        Args:
            module: generated code ``(state, parameters, noise, *inputs)``, complete and on its device.
            what: its name for people, such as ``"step"``.
        """
        return Differentiable(module)

    @contextmanager
    def compiling_nothing(self) -> Iterator[None]:
        """Inside, whatever would have to be compiled is an error; see :meth:`mpgraph.Program.compiling_nothing`."""
        before, self.closed = self.closed, True
        try:
            yield
        finally:
            self.closed = before

    def refuse_if_closed(self, what: str, why: str) -> None:
        """Raise the error of :meth:`compiling_nothing`, if inside it."""
        if self.closed:
            known = "; ".join(f"{c.what}, {c.why}" for c in self.compilations)
            raise BackendError(
                f"backend {self.name!r}: inside program.compiling_nothing(), and {what} would have to be compiled for "
                f"{why}. Compiled so far: {known or 'nothing'}. Make one such call before, or keep batch sizes and "
                "gradients as they were"
            )


class Inductor(Backend):
    """The whole step as one function compiled by ``torch.compile``.

    Args:
        compiler: a backend of ``torch.compile``; ``"aot_eager"`` only traces the forward and the backward pass.
    """

    name = "inductor"
    note = "compiled on the first call of each signature; eager under torch.func.grad, vjp and jvp"

    def __init__(self, compiler: str = "inductor") -> None:
        super().__init__()
        self._compiler = compiler

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._compiler,)

    def prepare(self, module: fx.GraphModule, what: str) -> Function:
        """A function that compiles the code for each signature once."""
        return _BySignature(self, module, what)

    def make(self, function: Function, what: str, why: str) -> Function:
        """Compile a function of flat tensors; torch does it on the first call."""
        compiled = torch.compile(_own_code(function), fullgraph=True, dynamic=False, backend=self._watched(what, why))
        known = False

        def call(*tensors: Tensor) -> Any:
            nonlocal known
            before, start = len(self.compilations), time.perf_counter()
            try:
                with _telling(f"{self._compiler}: compiling {what} for {why}") if not known else nullcontext():
                    results = compiled(*tensors)
            except torch._dynamo.exc.TorchDynamoException as error:
                raise BackendError(
                    f"backend {self.name!r} cannot compile {what} for {why}: {_first_line(error)}. "
                    'mg.compile(..., backend="eager") runs it as it is'
                ) from error
            if len(self.compilations) > before:
                self.compilations[before] = Compilation(what, why, time.perf_counter() - start)
                if known:  # torch saw a difference that the signature does not tell
                    self.refuse_if_closed(what, why)
                known = True
            return results

        return call

    def _watched(self, what: str, why: str) -> Function:
        """A backend of ``torch.compile`` that notes each compilation."""

        def backward(module: fx.GraphModule, inputs: Any, **options: Any) -> Any:
            from torch._inductor.compile_fx import compile_fx_inner

            start = time.perf_counter()
            made = compile_fx_inner(module, inputs, **options)
            if options.get("is_backward"):
                self.compilations.append(Compilation(f"{what}, backward", why, time.perf_counter() - start))
            return made

        def compiler(module: fx.GraphModule, inputs: list[Tensor]) -> Any:
            self.compilations.append(Compilation(what, why, 0.0))
            if self._compiler != "inductor":
                return torch._dynamo.lookup_backend(self._compiler)(module, inputs)
            from torch._inductor.compile_fx import compile_fx  # takes seconds to import

            return compile_fx(module, inputs, inner_compile=backward)

        return compiler


class CudaGraphs(Backend):
    """Steps recorded once as CUDA graphs, with memory of their own: what goes in and comes out is copied."""

    name = "cudagraphs"
    note = "recorded on the first call of each signature; eager where gradients are wanted and under torch.func"

    def check(self, device: torch.device) -> None:
        """Refuse other devices than CUDA ones."""
        if device.type != "cuda":
            here = "" if torch.cuda.is_available() else ", and torch sees none here"
            raise BackendError(
                f"backend 'cudagraphs' needs a CUDA device, got device={str(device)!r}{here}; use backend='inductor' "
                "or backend='eager'"
            )

    def prepare(self, module: fx.GraphModule, what: str) -> Function:
        """A function that records the code for each signature once."""
        return _Recorded(self, module, what)

    def record(self, function: Callable[[], Sequence[Tensor]]) -> tuple[Sequence[Tensor], Callable[[], None]]:
        """The results of a function, and a call that computes them again in the same memory."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):  # libraries choose their kernels and make their handles
                function()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            results = function()
        return results, graph.replay


BACKENDS: dict[str, type[Backend]] = {kind.name: kind for kind in (Backend, Inductor, CudaGraphs)}


def backend_of(given: Backend | str) -> Backend:
    """An unused backend by its name, or like the one given.

    Raises:
        InputError: for an unknown name.
    """
    if isinstance(given, Backend):
        return copy.copy(given)
    if not isinstance(given, str) or given not in BACKENDS:
        raise InputError(unknown("backend", given, BACKENDS))
    return BACKENDS[given]()


class _BySignature:
    """Generated code that is compiled for each signature, and run as it is where torch cannot compile it.

    Args:
        backend: compiles.
        module: the generated code.
        what: its name for people.
    """

    def __init__(self, backend: Inductor, module: fx.GraphModule, what: str) -> None:
        self._backend, self._module, self._what, self._flat = backend, module, what, Flat(module)
        self._known: dict[Any, Function] = {}

    def __call__(self, *args: Any) -> Any:
        if torch.compiler.is_compiling() or not _compiles_here():
            return self._module.forward(*args)
        tensors = self._flat.given(args)
        if tensors[-1].is_meta:
            return self._module.forward(*args)
        return self._flat.returned(self._mapped((), tensors))

    def _mapped(self, dims: tuple[Any, ...], tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        """Results, with what ``vmap`` maps over unwrapped level by level; ``dims`` are its axes, innermost first."""
        top = torch._C._functorch.peek_interpreter_stack()
        if top is None:
            return self._compiled(dims, tensors)
        level = top.level()
        pairs = [torch._C._functorch._unwrap_batched(tensor, level) for tensor in tensors]
        axes = tuple(axis for _, axis in pairs)
        mapped = any(axis is not None for axis in axes)
        with retrieve_current_functorch_interpreter().lower():
            results = self._mapped((*dims, axes) if mapped else dims, [tensor for tensor, _ in pairs])
        return [torch._C._functorch._add_batch_dim(r, 0, level) for r in results] if mapped else results

    def _compiled(self, dims: tuple[Any, ...], tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        """Results of plain tensors."""
        signature = (dims, torch.is_grad_enabled(), torch.get_num_threads(), *map(_kind, tensors))
        function = self._known.get(signature)
        if function is None:
            why = self._flat.in_words(dims, tensors)
            self._backend.refuse_if_closed(self._what, why)
            nested = self._flat.function
            for axes in dims:
                nested = torch.vmap(nested, in_dims=axes)
            function = self._known[signature] = self._backend.make(nested, self._what, why)
        return function(*tensors)


class _Recorded:
    """Generated code that is recorded for each signature; what is passed in and returned is the caller's.

    Args:
        backend: records.
        module: the generated code.
        what: its name for people.
    """

    def __init__(self, backend: CudaGraphs, module: fx.GraphModule, what: str) -> None:
        self._backend, self._module, self._what, self._flat = backend, module, what, Flat(module)
        self._known: dict[Any, Function] = {}

    def __call__(self, *args: Any) -> Any:
        if torch.compiler.is_compiling() or not _compiles_here() or torch._C._functorch.peek_interpreter_stack():
            return self._module.forward(*args)
        tensors = self._flat.given(args)
        if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
            return self._module.forward(*args)
        signature = tuple(map(_kind, tensors))
        function = self._known.get(signature)
        if function is None:
            why = self._flat.in_words((), tensors)
            self._backend.refuse_if_closed(self._what, why)
            start = time.perf_counter()
            function = self._known[signature] = self._recorded(tensors)
            self._backend.compilations.append(Compilation(self._what, why, time.perf_counter() - start))
        return self._flat.returned(function(tensors))

    def _recorded(self, tensors: Sequence[Tensor]) -> Function:
        """A call of the recording: tensors in, tensors out."""
        with torch.no_grad():
            inputs = [tensor.clone() for tensor in tensors]
            results, again = self._backend.record(lambda: self._flat.function(*inputs))
        unchanged = {id(tensor): i for i, tensor in enumerate(inputs)}

        def call(tensors: Sequence[Tensor]) -> list[Tensor]:
            with torch.no_grad():
                for mine, given in zip(inputs, tensors, strict=True):
                    mine.copy_(given)
                again()
                return [tensors[unchanged[id(r)]] if id(r) in unchanged else r.clone() for r in results]

        return call


class Flat:
    """Generated code as a function of the tensors that it reads, one after the other, to a tuple of tensors.

    Compiled code looks at everything that it is given on every call. So it is given no dictionaries, and nothing that
    it does not read. The state that it returns is contiguous, as one that a step is given, so that a second step is not
    another signature than the first.

    Args:
        module: ``(state, parameters, noise, *inputs) -> nested dictionaries and tuples``.

    Attributes:
        function: ``(*tensors) -> (*results)``.
    """

    def __init__(self, module: fx.GraphModule) -> None:
        self._paths: list[tuple[Any, ...]] = []  # the number of an argument, then keys
        self._names: list[str] = []
        paths: dict[fx.Node, tuple[Any, ...]] = {}
        graph, copies = fx.Graph(), dict[fx.Node, fx.Node]()
        for place, node in enumerate(n for n in module.graph.nodes if n.op == "placeholder"):
            paths[node] = (place,)
        depth = {0: 3, 1: 2, 2: 2}  # state[node][channel], parameters[i], noise[name]
        for node in module.graph.nodes:
            if node.op == "call_function" and node.target is operator.getitem and node.args[0] in paths:
                above = paths[node.args[0]]
                if len(above) < depth.get(above[0], 1):
                    paths[node] = (*above, node.args[1])
            if node in paths:
                if len(paths[node]) == depth.get(paths[node][0], 1):
                    copies[node] = graph.placeholder(node.name)
                    self._paths.append(paths[node])
                    self._names.append(str(node.target if node.op == "placeholder" else ""))
            elif node.op == "output":
                found: list[fx.Node] = []
                self._shape = _numbered(node.args[0], found)
                kept = set[fx.Node]()
                fx.map_arg(node.args[0][:1] if isinstance(node.args[0], tuple) else (), kept.add)
                results = [
                    graph.call_method("contiguous", (copies[n],)) if n in kept and n not in paths else copies[n]
                    for n in found
                ]
                graph.output(tuple(results))
            else:
                copies[node] = graph.node_copy(node, copies.__getitem__)
        self.function = fx.GraphModule(module, graph, class_name="Flat").forward

    def given(self, args: Sequence[Any]) -> list[Tensor]:
        """The tensors that the code reads, of the arguments of the generated code."""
        tensors = []
        for place, *keys in self._paths:
            one = args[place]
            for key in keys:
                one = one[key]
            tensors.append(one)
        return tensors

    def returned(self, results: Sequence[Tensor]) -> Any:
        """Results as the generated code returns them."""
        return _filled(self._shape, results)

    def in_words(self, dims: tuple[Any, ...], tensors: Sequence[Tensor]) -> str:
        """A signature for people: shapes of the batch, gradients, threads, mapping."""
        shapes = [f"{n} {tuple(t.shape)}" for n, t in zip(self._names, tensors, strict=True) if n]
        wanted = sum(t.requires_grad for t in tensors) if torch.is_grad_enabled() else 0
        gradients = f"gradients of {wanted} of {len(tensors)} tensors" if wanted else "no gradients"
        threads = torch.get_num_threads()
        mapped = [f"vmap over {sum(axis is not None for axis in axes)} tensors" for axes in dims]
        return ", ".join([*shapes, gradients, f"{threads} thread{'s' * (threads > 1)}", *mapped])


def _numbered(item: Any, found: list[fx.Node]) -> Any:
    """Nested dictionaries and tuples with the place of each node in a list, which is filled."""
    if isinstance(item, dict):
        return {key: _numbered(one, found) for key, one in item.items()}
    if isinstance(item, (tuple, list)):
        return tuple(_numbered(one, found) for one in item)
    found.append(item)
    return len(found) - 1


def _filled(shape: Any, results: Sequence[Tensor]) -> Any:
    """Nested dictionaries and tuples with results in place of their numbers."""
    if isinstance(shape, dict):
        return {key: _filled(one, results) for key, one in shape.items()}
    if isinstance(shape, tuple):
        return tuple(_filled(one, results) for one in shape)
    return results[shape]


def _kind(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.shape, tensor.stride(), tensor.requires_grad


def _compiles_here() -> bool:
    """Whether nothing but ``vmap`` looks at single operations: no other transform, dispatch mode or dual number."""
    if torch._C._len_torch_dispatch_stack() or forward_ad._current_level >= 0:
        return False
    stack = torch._C._functorch.get_interpreter_stack() or ()
    return all(level.key() == TransformType.Vmap for level in stack)


def _own_code(function: Function) -> Function:
    """The same function with a code object of its own, by which torch counts how often it compiled a function."""

    def call(*tensors: Tensor) -> Any:
        return function(*tensors)

    code = call.__code__.replace(co_name=f"step_{next(_numbers)}")
    return types.FunctionType(code, call.__globals__, code.co_name, None, call.__closure__)


_numbers = itertools.count()


@contextmanager
def _telling(text: str) -> Iterator[None]:
    """Say what a person waits for, on a terminal, if it takes long."""
    if not sys.stderr.isatty():
        yield
        return
    start = time.perf_counter()
    print(f"{text} ...", end="", file=sys.stderr, flush=True)
    try:
        yield
    finally:
        print(f" {time.perf_counter() - start:.1f} s", file=sys.stderr, flush=True)


def _first_line(error: BaseException) -> str:
    cause = getattr(error, "inner_exception", None) or error
    return (str(cause).strip().splitlines() or [type(cause).__name__])[0]
