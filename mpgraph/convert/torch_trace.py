"""A torch module as a graph of calls, with the shape of every value; :mod:`mpgraph.convert.torch_layers` reads it."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.dropout import _DropoutNd
from torch.utils._pytree import tree_leaves

from mpgraph.errors import NetworkError, unknown

Shape = tuple[int, ...]
BATCHES = (2, 3)  # every shape is found twice: whatever differs depends on the batch


class Refused(Exception):
    """Why a submodule cannot be written out; the error that people see says which one it is."""


@dataclass
class Traced:
    """The calls on which a module's output depends.

    Attributes:
        nodes: in order; only those whose value is a tensor, or several in a tuple or list.
        inputs: name of each placeholder.
        output: the call whose value the module returns.
        shapes: of one example; ``None`` where the batch is not the first dimension, and of several tensors.
        several: calls whose value is several tensors.
        uses: how often each value is an operand.
        constants: values that are not tensors, for each of two batch sizes.
        module: what was traced.
    """

    nodes: list[fx.Node]
    inputs: dict[fx.Node, str]
    output: fx.Node
    shapes: dict[fx.Node, Shape | None]
    several: set[fx.Node]
    uses: Counter[fx.Node]
    constants: dict[fx.Node, tuple[Any, ...]]
    module: nn.Module

    def constant(self, node: fx.Node, argument: Any) -> Any:
        """An argument of a call, with numbers in place of what is computed from shapes.

        Raises:
            NetworkError: if it depends on the size of the batch.
        """

        def number(source: fx.Node) -> Any:
            one, two = self.constants[source]
            if one != two:
                raise NetworkError(f"{where(node, self.module)}: uses the size of the batch as a number")
            return one

        return fx.node.map_arg(argument, number)

    def shape(self, node: fx.Node) -> Shape:
        """Shape of one example.

        Raises:
            NetworkError: for a value that does not begin with the batch.
        """
        shape = self.shapes[node]
        if shape is None:
            raise NetworkError(
                f"{where(node, self.module)}: its result must be (batch, ...), a tensor whose first dimension is the "
                "batch"
            )
        return shape


def trace(
    module: nn.Module,
    input_shape: int | Shape | Mapping[str, int | Shape],
    is_layer: Callable[[nn.Module], bool],
    written: Callable[[nn.Module], Callable[..., Any] | None],
    check: Callable[[fx.Node], None],
) -> Traced:
    """The graph of a module; the module is neither run nor changed, a copy without numbers is.

    Args:
        module: any that ``torch.fx`` can trace.
        input_shape: of one example; by argument if there are several.
        is_layer: whether a submodule is one call, in place of what its ``forward`` calls.
        written: what is traced in place of a submodule's ``forward``, if anything.
        check: raises an error for a call that is not supported.

    Raises:
        NetworkError: naming the submodule that cannot be traced, or that fails on inputs of this shape.
    """
    shapes, fixed = _arguments(module, input_shape)
    model = deepcopy(module).to("meta")  # only shapes: nothing is computed, on no device
    graph = _traced(model, fixed, is_layer, written)
    output, arguments = _output(graph), _placeholders(graph, module)
    inputs = {node: name for node, name in arguments.items() if name in shapes}
    live = _live(output) | set(inputs)
    live_nodes = [node for node in graph.nodes if node in live]
    for node in live_nodes:
        if node.op in ("call_module", "get_attr"):
            check(node)
    model.eval()  # shapes do not depend on it, and nothing is counted or sampled
    runs, like = [], torch.empty(0, dtype=_dtype(module), device="meta")
    symbols = {name for node, name in arguments.items() if _of_symbols(node, model)}
    for batch in BATCHES:
        fed = {
            name: like.new_empty((batch, *shape), dtype=torch.long if name in symbols else None)
            for name, shape in shapes.items()
        }
        runs.append(_Shapes(model, graph, check).values([{**fixed, **fed}[name] for name in arguments.values()]))
    tensors = {node for node in graph.nodes if any(isinstance(leaf, Tensor) for leaf in tree_leaves(runs[0][node]))}
    for node in live_nodes:
        if node in tensors:
            check(node)
    if not isinstance(runs[0][output], Tensor):
        raise NetworkError(_one_output(type(runs[0][output])))
    _refuse_aliases([node for node in graph.nodes if node in tensors], model)
    several = {node for node in tensors if not isinstance(runs[0][node], Tensor)}
    found = {node: _example([run[node] for run in runs]) for node in live_nodes if node in tensors}
    constants = {node: tuple(run[node] for run in runs) for node in live_nodes if node not in tensors}
    uses: Counter[fx.Node] = Counter([output])
    for node in found:
        fx.node.map_arg((node.args, node.kwargs), lambda operand: uses.update([operand]))
    if not isinstance(input_shape, Mapping):
        inputs = dict.fromkeys(inputs, "x")
    return Traced(list(found), inputs, output, found, several, uses, constants, model)


def where(node: fx.Node, root: nn.Module) -> str:
    """A call in the user's words: ``conv1.act (nn.Softmax)``, ``block (Block), softmax()``."""
    path = node.meta.get("path", "")
    if node.op == "call_module":
        return described(path, root)
    called = str(node.target) if node.op == "get_attr" else f"{function_name(node)}()"
    return f"{described(path, root)}, {called}"


def described(path: str, root: nn.Module) -> str:
    """A submodule's path and class."""
    return titled(path, type(root.get_submodule(path)))


def titled(path: str, kind: type[nn.Module]) -> str:
    """A path with a class: ``conv1.act (nn.Softmax)``."""
    name = f"nn.{kind.__name__}" if kind.__module__.startswith("torch.nn.") else kind.__name__
    return f"{path} ({name})" if path else f"the module itself ({name})"


def function_name(node: fx.Node) -> str:
    """What a call calls, without the underscore of in-place variants."""
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
    return name.rstrip("_") if not name.startswith("_") else name


# -- arguments --------------------------------------------------------------------------------------------


def _parameters(module: nn.Module) -> dict[str, inspect.Parameter]:
    return dict(inspect.signature(module.forward).parameters)


def _arguments(module: nn.Module, given: Any) -> tuple[dict[str, Shape], dict[str, Any]]:
    """Shapes of the arguments that are fed, and the defaults of the others."""
    parameters = _parameters(module)
    free = [n for n, p in parameters.items() if p.default is p.empty]
    if not parameters or any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters.values()):
        raise NetworkError(f"{type(module).__name__}.forward must name its arguments, and have at least one")
    if not isinstance(given, Mapping):
        given = {(free or list(parameters))[0]: given}
    for name in given:
        if name not in parameters:
            raise NetworkError(
                "input_shape: " + unknown(f"argument of {type(module).__name__}.forward", name, parameters)
            )
    missing = [name for name in free if name not in given]
    if missing:
        raise NetworkError(
            f"{type(module).__name__}.forward takes {', '.join(parameters)}; give the shape of each input by its name, "
            f"input_shape={{{', '.join(f'{n!r}: (...)' for n in free)}}}"
        )
    shapes = {name: _shape(name, shape) for name, shape in given.items()}
    return shapes, {name: p.default for name, p in parameters.items() if name not in shapes}


def _shape(name: str, given: Any) -> Shape:
    shape = (given,) if isinstance(given, int) else given
    if (
        not isinstance(shape, (tuple, list))
        or not shape
        or not all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in shape)
    ):
        raise NetworkError(
            f"input_shape of {name!r} must be the shape of one example, without the batch, such as (64,) or (1, 8, 8), "
            f"got {given!r}"
        )
    return tuple(shape)


def _dtype(module: nn.Module) -> torch.dtype:
    floating = [p.dtype for p in module.parameters() if p.is_floating_point()]
    return floating[0] if floating else torch.get_default_dtype()


# -- the graph --------------------------------------------------------------------------------------------


class _Tracer(fx.Tracer):
    """Notes for every call in which submodule it happens."""

    def __init__(
        self,
        is_layer: Callable[[nn.Module], bool],
        written: Callable[[nn.Module], Callable[..., Any] | None],
    ) -> None:
        super().__init__()
        self.is_layer, self.written, self.path = is_layer, written, ""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if self.written(m) is not None:
            return False
        return self.is_layer(m) or super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        outer, self.path = self.path, self.path_of_module(m)
        instead = self.written(m)
        result = super().call_module(m, forward if instead is None else partial(instead, m), args, kwargs)
        self.path = outer  # after an error it stays at the submodule where that happened
        return result

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        if not torch.is_grad_enabled():
            raise NetworkError(f"{described(self.path, self.root)}: torch.no_grad() in forward cannot be expressed")
        node = super().create_node(*args, **kwargs)
        node.meta["path"] = self.path
        return node


def _traced(model: nn.Module, fixed: dict[str, Any], *kinds: Callable[[nn.Module], Any]) -> fx.Graph:
    tracer = _Tracer(*kinds)
    try:
        with torch.enable_grad():
            return tracer.trace(model, concrete_args=fixed or None)
    except NetworkError:
        raise
    except Refused as error:
        raise NetworkError(f"{described(tracer.path, model)}: {error}") from None
    except Exception as error:
        raise NetworkError(
            f"{described(tracer.path, model)}: torch.fx cannot trace it ({line(error)}); control flow and sizes must "
            "not depend on the values or shapes of tensors"
        ) from error


def _placeholders(graph: fx.Graph, module: nn.Module) -> dict[fx.Node, str]:
    """The argument of ``forward`` for which each placeholder stands."""
    nodes, names = [node for node in graph.nodes if node.op == "placeholder"], _parameters(module)
    if len(nodes) != len(names):
        raise NetworkError(f"{type(module).__name__}.forward: defaults of arguments must be None or a number")
    return dict(zip(nodes, names, strict=True))


def _output(graph: fx.Graph) -> fx.Node:
    (result,) = next(n for n in graph.nodes if n.op == "output").args
    if not isinstance(result, fx.Node):
        raise NetworkError(_one_output(type(result)))
    return result


def _one_output(kind: type) -> str:
    return f"the module returns a {kind.__name__}; it must return one tensor (choose it in a forward of your own)"


def _live(output: fx.Node) -> set[fx.Node]:
    stack, found = [output], {output}
    while stack:
        for source in stack.pop().all_input_nodes:
            if source not in found:
                found.add(source)
                stack.append(source)
    return found


class _Shapes(fx.Interpreter):
    """Runs a graph on tensors without numbers."""

    def __init__(self, model: nn.Module, graph: fx.Graph, check: Callable[[fx.Node], None]) -> None:
        super().__init__(model, garbage_collect_values=False, graph=graph)
        self.check, self.extra_traceback = check, False

    def values(self, given: list[Any]) -> dict[fx.Node, Any]:
        """The value of every node."""
        with torch.no_grad():
            self.run(*given)
        return self.env

    def run_node(self, n: fx.Node) -> Any:
        try:
            return super().run_node(n)
        except Exception as error:
            self.check(n)
            operands = [self.env[operand] for operand in n.all_input_nodes]
            shapes = [f"(batch, {', '.join(map(str, v.shape[1:]))})" for v in operands if isinstance(v, Tensor)]
            raise NetworkError(
                f"{where(n, self.module)} cannot be applied to {' and '.join(shapes)}: "
                f"{self._wanted(n, operands) or line(error).rstrip('.')}. input_shape is that of one example, without "
                "the batch"
            ) from error

    def _wanted(self, n: fx.Node, operands: list[Any]) -> str:
        """What a layer needs of its input, where that is what is wrong."""
        layer = self.module.get_submodule(str(n.target)) if n.op == "call_module" else None
        shape = tuple(operands[0].shape) if len(operands) == 1 and isinstance(operands[0], Tensor) else ()
        if isinstance(layer, nn.Linear) and shape and shape[-1] != layer.in_features:
            return f"it needs {layer.in_features} numbers (in_features), not {shape[-1]}"
        if isinstance(layer, _ConvNd) and len(shape) == layer.weight.ndim and shape[1] != layer.in_channels:
            return f"it needs {layer.in_channels} channels (in_channels), not {shape[1]}"
        return ""


def _of_symbols(argument: fx.Node, model: nn.Module) -> bool:
    """Whether an input holds the numbers of symbols, which an embedding looks up."""
    calls = [node for node in argument.users if node.op == "call_module"]
    return any(isinstance(model.get_submodule(str(node.target)), nn.Embedding) for node in calls)


def _example(values: list[Any]) -> Shape | None:
    """Shape without the batch, if that is the first dimension."""
    if not all(isinstance(value, Tensor) for value in values):
        return None
    shapes = [tuple(value.shape) for value in values]
    return shapes[0][1:] if shapes == [(batch, *shapes[0][1:]) for batch in BATCHES] else None


# -- writes in place --------------------------------------------------------------------------------------

_VIEWS = {
    "chunk", "contiguous", "dropout", "expand", "flatten", "getattr", "getitem", "movedim", "narrow", "permute",
    "reshape", "select", "split", "squeeze", "swapaxes", "transpose", "unbind", "unflatten", "unsqueeze", "view",
}  # fmt: skip


def in_place(node: fx.Node, model: nn.Module) -> bool:
    """Whether a call may overwrite its operand."""
    if node.op == "call_module":
        return bool(getattr(model.get_submodule(str(node.target)), "inplace", False))
    if node.op == "call_method":
        return str(node.target).endswith("_") and not str(node.target).startswith("_")
    name = getattr(node.target, "__name__", "")
    return name.endswith("_") or name in ("iadd", "imul", "isub", "itruediv") or bool(_bound(node).get("inplace"))


def _bound(node: fx.Node) -> dict[str, Any]:
    """Arguments of a function by name, where its signature is known."""
    try:
        return inspect.signature(node.target).bind(*node.args, **node.kwargs).arguments  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return {}


def _refuse_aliases(tensors: list[fx.Node], model: nn.Module) -> None:
    """A value that was overwritten must not be used again, neither itself nor through an earlier view of it."""
    base = {node: node for node in tensors}
    valid: dict[fx.Node, set[fx.Node]] = {}  # for each base that was overwritten, its views since
    writer: dict[fx.Node, fx.Node] = {}
    for node in tensors:
        for operand in node.all_input_nodes:
            origin = base.get(operand)
            if origin in valid and operand not in valid[origin]:
                raise NetworkError(
                    f"{where(writer[origin], model)}: overwrites in place a value that is used again; use the variant "
                    "that does not"
                )
        source = node.args[0] if node.args and isinstance(node.args[0], fx.Node) else None
        if source not in base:
            continue
        if in_place(node, model):
            base[node] = base[source]
            valid[base[source]], writer[base[source]] = {node}, node
        elif _is_view(node, model):
            base[node] = base[source]
            valid.get(base[source], set()).add(node)


def _is_view(node: fx.Node, model: nn.Module) -> bool:
    if node.op == "call_module":
        return isinstance(model.get_submodule(str(node.target)), (nn.Flatten, nn.Unflatten, nn.Identity, _DropoutNd))
    return function_name(node) in _VIEWS


def line(error: Exception) -> str:
    """The first line of an error's text."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
