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
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor, fx
from torch._C._functorch import TransformType
from torch._functorch.pyfunctorch import retrieve_current_functorch_interpreter

from mpgraph.environment import calls_watched
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

    def refuse(self, what: str, why: str) -> NoReturn:
        """End a call that would compile inside :meth:`compiling_nothing`.

        Raises:
            BackendError: always, naming what would be compiled, and what was before.
        """
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

    def make(self, function: Function, what: str, words: Callable[[Sequence[Tensor]], str]) -> Function:
        """Compile a function of flat tensors; torch does it on the first call, and again where guards of its fail."""
        from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException  # takes seconds to import

        started: list[float] = []  # compilations of the call that runs

        def compiler(module: fx.GraphModule, inputs: list[Tensor]) -> Any:
            started.append(time.perf_counter())
            if self.closed:
                raise _Closed
            return self._compile(module, inputs, what)

        compiled = torch.compile(_own_code(function), fullgraph=True, dynamic=False, backend=compiler)
        known = False

        def call(*tensors: Tensor) -> Any:
            nonlocal known
            start = time.perf_counter()
            try:
                with nullcontext() if known else _first_call(f"{self.name}: compiling {what}"):
                    results = compiled(*tensors)
            except (TorchDynamoException, FailOnRecompileLimitHit) as error:
                if started and self.closed:
                    started.clear()
                    self.refuse(what, words(tensors))
                raise BackendError(
                    f"backend {self.name!r} cannot compile {what} for {words(tensors)}: {_first_line(error)}. "
                    'mg.compile(..., backend="eager") runs it as it is'
                ) from error
            known = True
            if started:
                started.clear()
                self.compilations.append(Compilation(what, words(tensors), time.perf_counter() - start))
            return results

        return call

    def _compile(self, module: fx.GraphModule, inputs: list[Tensor], what: str) -> Any:
        """What a backend of ``torch.compile`` does, and note how long the backward pass takes, later."""
        if self._compiler != "inductor":
            return torch._dynamo.lookup_backend(self._compiler)(module, inputs)
        from torch._inductor.compile_fx import compile_fx, compile_fx_inner

        def timed(module: fx.GraphModule, inputs: Any, **options: Any) -> Any:
            start = time.perf_counter()
            made = compile_fx_inner(module, inputs, **options)
            if options.get("is_backward"):
                seconds = time.perf_counter() - start
                self.compilations.append(Compilation(what, "its backward pass", seconds))
            return made

        return compile_fx(module, inputs, inner_compile=timed)


class _Closed(Exception):
    """Nothing may be compiled."""


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


class _Known:
    """Generated code with what a backend made of it for each signature, and as it is for everything else.

    Args:
        backend: of the program.
        module: the generated code.
        what: its name for people.
    """

    def __init__(self, backend: Backend, module: fx.GraphModule, what: str) -> None:
        self._backend, self._what, self._flat = backend, what, Flat(module)
        self._eager = Backend.prepare(backend, module, what)
        self._known: dict[Any, Function] = {}


class _BySignature(_Known):
    """Compiled for each signature; run as it is where torch cannot compile it."""

    _backend: Inductor

    def __call__(self, *args: Any) -> Any:
        if torch.compiler.is_compiling() or not _compiles_here():
            return self._eager(*args)
        tensors = self._flat.given(*args)
        if tensors[-1].is_meta:
            return self._eager(*args)
        return self._flat.returned(*self._mapped((), tensors))

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
        """Results of plain tensors; torch looks for what else differs, such as strides and the number of threads."""
        wanted = torch.is_grad_enabled() and tuple(tensor.requires_grad for tensor in tensors)
        signature = dims, tensors[-1].shape, wanted
        function = self._known.get(signature)
        if function is None:
            nested = self._flat.function
            for axes in dims:
                nested = torch.vmap(nested, in_dims=axes)
            words = partial(self._flat.in_words, dims)
            function = self._known[signature] = self._backend.make(nested, self._what, words)
        return function(*tensors)


class _Recorded(_Known):
    """Recorded for each signature; what is passed in and returned is the caller's."""

    _backend: CudaGraphs

    def __call__(self, *args: Any) -> Any:
        if torch.compiler.is_compiling() or not _compiles_here() or torch._C._functorch.peek_interpreter_stack():
            return self._eager(*args)
        tensors = self._flat.given(*args)
        if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
            return self._eager(*args)
        signature = tuple(map(_kind, tensors))
        function = self._known.get(signature)
        if function is None:
            why = self._flat.in_words((), tensors)
            if self._backend.closed:
                self._backend.refuse(self._what, why)
            start = time.perf_counter()
            function = self._known[signature] = self._recorded(tensors)
            self._backend.compilations.append(Compilation(self._what, why, time.perf_counter() - start))
        return self._flat.returned(*function(tensors))

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
        given: the arguments of the generated code to the tensors that it reads.
        function: from those to a tuple of tensors.
        returned: from these to what the generated code returns.
    """

    DEPTH = (2, 1, 1)  # of state[node][channel], parameters[i] and noise[name]; inputs are tensors

    def __init__(self, module: fx.GraphModule) -> None:
        given, flat, returned = fx.Graph(), fx.Graph(), fx.Graph()
        read: dict[fx.Node, fx.Node] = {}  # of the code, to those of ``given``
        copies: dict[fx.Node, fx.Node] = {}  # to those of ``flat``
        left: dict[fx.Node, int] = {}  # how many keys lead from here to a tensor
        tensors, self._names = list[fx.Node](), list[str]()
        for node in module.graph.nodes:
            holder = node.args[0] if node.target is operator.getitem else None
            if node.op == "placeholder":
                place = len(read)
                read[node] = given.placeholder(node.target)
                left[node] = self.DEPTH[place] if place < len(self.DEPTH) else 0
            elif isinstance(holder, fx.Node) and left.get(holder):
                read[node] = given.node_copy(node, read.__getitem__)
                left[node] = left[holder] - 1
            elif node.op == "output":
                state = set[fx.Node]()
                if isinstance(node.args[0], tuple):
                    fx.map_arg(node.args[0][0], state.add)
                results = list[fx.Node]()

                def result(one: fx.Node, state: set[fx.Node] = state, results: list[fx.Node] = results) -> fx.Node:
                    new = one in state and one not in read
                    results.append(flat.call_method("contiguous", (copies[one],)) if new else copies[one])
                    return returned.placeholder(f"result_{len(results)}")

                returned.output(fx.map_arg(node.args[0], result))
                flat.output(tuple(results))
                given.output(tuple(tensors))
                continue
            else:
                copies[node] = flat.node_copy(node, copies.__getitem__)
            if left.get(node) == 0:
                tensors.append(read[node])
                copies[node] = flat.placeholder(node.name)
                self._names.append(node.target if node.op == "placeholder" else "")
        empty = torch.nn.Module()
        self.given, self.returned = (fx.GraphModule(empty, graph).forward for graph in (given, returned))
        self.function = fx.GraphModule(module, flat).forward

    def in_words(self, dims: tuple[Any, ...], tensors: Sequence[Tensor]) -> str:
        """A signature for people: shapes of the batch, gradients, threads, mapping."""
        shapes = [f"{n} {tuple(t.shape)}" for n, t in zip(self._names, tensors, strict=True) if n]
        wanted = sum(t.requires_grad for t in tensors) if torch.is_grad_enabled() else 0
        gradients = f"gradients of {wanted} of {len(tensors)} tensors" if wanted else "no gradients"
        threads = torch.get_num_threads()
        mapped = [f"vmap over {sum(axis is not None for axis in axes)} tensors" for axes in dims]
        return ", ".join([*shapes, gradients, f"{threads} thread{'s' * (threads > 1)}", *mapped])


def _kind(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.shape, tensor.stride(), tensor.requires_grad


def _compiles_here() -> bool:
    """Whether nothing but ``vmap`` looks at single operations: no other transform, dispatch mode or dual number."""
    if calls_watched():
        return False
    if torch._C._functorch.peek_interpreter_stack() is None:
        return True
    return all(level.key() == TransformType.Vmap for level in torch._C._functorch.get_interpreter_stack())


def _own_code(function: Function) -> Function:
    """The same function with a code object of its own, by which torch counts how often it compiled a function."""

    def call(*tensors: Tensor) -> Any:
        return function(*tensors)

    code = call.__code__.replace(co_name=f"step_{next(_numbers)}")
    return types.FunctionType(code, call.__globals__, code.co_name, None, call.__closure__)


_numbers = itertools.count()


@contextmanager
def _first_call(text: str) -> Iterator[None]:
    """Say on a terminal what a person waits for, without what torch says of its own doings."""
    start, told = time.perf_counter(), sys.stderr.isatty()
    if told:
        print(f"{text} ...", end="", file=sys.stderr, flush=True)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The .grad attribute of a Tensor that is not a leaf")
            warnings.simplefilter("ignore", DeprecationWarning)
            yield
    finally:
        if told:
            print(f" {time.perf_counter() - start:.1f} s", file=sys.stderr, flush=True)


def _first_line(error: BaseException) -> str:
    cause = getattr(error, "inner_exception", None) or error  # torch's own error holds that of its compiler
    return (str(cause).strip().splitlines() or [type(cause).__name__])[0]
