"""The transposed derivative of each torch function that generated code calls: a table for backward passes.

A function without a line here is differentiated by autograd where it stands, one call at a time; one that is no torch
function at all (a segment, a sparse product, a user's own) has no entry, and code that calls it is left to autograd.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from .tape import Product, Tape

aten = torch.ops.aten
Rule = Callable[[Tape, Any, fx.Node], None]
RULES: dict[str, Rule] = {}
STOPS = frozenset([
    "argmax", "bernoulli", "ceil", "detach", "eq", "floor", "ge", "gt", "isfinite", "isnan", "le", "logical_and",
    "logical_not", "logical_or", "lt", "ne", "new_full", "new_ones", "new_zeros", "ones_like", "round", "sign", "size",
    "trunc", "zeros_like",
])  # fmt: skip
OPTIONS = {  # what the rules below take by keyword
    "add": {"alpha"}, "sub": {"alpha"}, "rsub": {"alpha"},
    "addcmul": {"value"}, "addmm": {"alpha"}, "addmv": {"alpha"}, "sum": {"dim"},
    "cat": {"dim"}, "stack": {"dim"},
    **{f"conv{n}d": {"stride", "padding", "dilation", "groups"} for n in (1, 2, 3)},
}  # fmt: skip
COSTLY = frozenset(  # not to be computed twice
    ["index_add", "scatter_reduce", *(f"conv{n}d_{what}" for n in (1, 2, 3) for what in ("input", "weight"))]
)


def name_of(target: Any) -> str | None:
    """Of a torch function or method; ``None`` for any other function."""
    if isinstance(target, str):
        return target
    if isinstance(target, torch._ops.OpOverload):
        return target._schema.name.partition("::")[2] if target.namespace == "aten" else None
    module = getattr(target, "__module__", None) or "torch"
    if not (isinstance(target, types.BuiltinFunctionType | types.FunctionType) or module == "torch._C._nn"):
        return None
    return target.__name__ if module.partition(".")[0] in ("torch", "_operator") else None


def known(target: Any) -> bool:
    """Whether the backward pass of code that calls this can be written."""
    name = name_of(target)
    return name is not None and name not in COSTLY


def transpose(tape: Tape, node: Any, g: fx.Node) -> None:
    """Add to the gradients of what a call reads, given the gradient of its result."""
    name = name_of(node.target) or ""
    if name in STOPS:
        return
    understood = set(node.kwargs) <= OPTIONS.get(name, set())
    (RULES[name] if name in RULES and understood else _locally)(tape, node, g)


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a rule for functions of these names."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return register


def _locally(tape: Tape, node: Any, g: fx.Node) -> None:
    """By autograd, this one call."""
    wanted = [a for a in dict.fromkeys(node.all_input_nodes) if tape.wants(a)]
    places = [i for i, a in enumerate(node.args) if a in wanted]
    if len(places) != len(wanted) or len({node.args[i] for i in places}) != len(places):
        raise NotImplementedError(f"{node.target} reads {wanted} within a list, or twice")
    target, kwargs = node.target, dict(node.kwargs)

    def backward(g: Tensor, *args: Any) -> Any:
        given = list(args)
        with torch.enable_grad():
            chosen = [given[i].detach().requires_grad_() for i in places]
            for i, tensor in zip(places, chosen, strict=True):
                given[i] = tensor
            result = (
                getattr(given[0], target)(*given[1:], **kwargs) if isinstance(target, str) else target(*given, **kwargs)
            )
        result = result[0] if isinstance(result, tuple) else result
        return torch.autograd.grad(result, chosen, g, allow_unused=True, materialize_grads=True)

    backward.__name__ = backward.__qualname__ = f"{name_of(target)}_backward"
    backward.__module__ = "mpgraph"
    found = tape.call(backward, g, *node.args)
    for index, place in enumerate(places):
        tape.add(node.args[place], tape.view(getitem, found, index))


def getitem(items: Any, index: int) -> Any:
    """One of several gradients."""
    return items[index]


def _number(tape: Tape, node: fx.Node, name: str) -> Any:
    """A factor that a call takes by keyword."""
    given = node.kwargs.get(name, 1.0)
    return tape.read(given) if isinstance(given, fx.Node) else given


# -- sums and products of numbers -----------------------------------------------------------------------------


def _terms(tape: Tape, node: Any, g: fx.Node, scales: Any) -> None:
    for item, scale in zip(node.args, scales, strict=False):
        if tape.wants(item):
            part = tape.reduced(g, tape.shape(node), tape.shape(item))
            tape.add(item, part, scale)


@rule("add", "sub")
def _add(tape: Tape, node: Any, g: fx.Node) -> None:
    alpha = _number(tape, node, "alpha")
    _terms(tape, node, g, (1, alpha if name_of(node.target) == "add" else -alpha))


@rule("rsub")
def _rsub(tape: Tape, node: Any, g: fx.Node) -> None:
    _terms(tape, node, g, (-_number(tape, node, "alpha"), 1))


@rule("neg")
def _neg(tape: Tape, node: Any, g: fx.Node) -> None:
    _terms(tape, node, g, (-1,))


@rule("mul")
def _mul(tape: Tape, node: Any, g: fx.Node) -> None:
    one, two = node.args
    for item, other in ((one, two), (two, one)):
        if tape.wants(item):
            tape.add(item, tape.times(g, tape.shape(node), other, tape.shape(item)))


@rule("addcmul")
def _addcmul(tape: Tape, node: Any, g: fx.Node) -> None:
    total, one, two = node.args
    value, given = _number(tape, node, "value"), tape.shape(node)
    if tape.wants(total):
        tape.add(total, tape.reduced(g, given, tape.shape(total)))
    for item, other in ((one, two), (two, one)):
        if tape.wants(item):
            tape.add(item, tape.times(g, given, other, tape.shape(item)), value)


@rule("div", "truediv")
def _div(tape: Tape, node: Any, g: fx.Node) -> None:
    one, two = node.args
    given = tape.shape(node)
    if tape.wants(one):
        tape.add(one, tape.reduced(tape.call(torch.div, g, two), given, tape.shape(one)))
    if tape.wants(two):
        share = tape.call(torch.div, tape.call(torch.mul, g, node), two)
        tape.add(two, tape.reduced(share, given, tape.shape(two)), -1.0)


# -- functions of one number ----------------------------------------------------------------------------------


def _by(*calls: Any) -> Rule:
    """A rule for a function of its first argument: ``calls(tape, g, x, result)``."""
    (make,) = calls

    def apply(tape: Tape, node: Any, g: fx.Node) -> None:
        if tape.wants(node.args[0]):
            tape.add(node.args[0], make(tape, g, node.args[0], node))

    return apply


RULES["tanh"] = _by(lambda tape, g, x, y: tape.call(aten.tanh_backward.default, g, y))
RULES["sigmoid"] = _by(lambda tape, g, x, y: tape.call(aten.sigmoid_backward.default, g, y))
RULES["exp"] = _by(lambda tape, g, x, y: Product(g, y))
RULES["log"] = _by(lambda tape, g, x, y: tape.call(torch.div, g, x))
RULES["square"] = _by(lambda tape, g, x, y: Product(g, x, 1, 2.0))
RULES["sqrt"] = _by(lambda tape, g, x, y: Product(tape.call(torch.div, g, y), None, 1, 0.5))
RULES["relu"] = _by(lambda tape, g, x, y: tape.call(aten.threshold_backward.default, g, y, 0))
RULES["softmax"] = _by(lambda tape, g, x, y: tape.call(_softmax_backward, g, y, y.args[1]))
RULES["log_softmax"] = _by(lambda tape, g, x, y: tape.call(_log_softmax_backward, g, y, y.args[1]))
RULES["clone"] = RULES["contiguous"] = RULES["alias"] = _by(lambda tape, g, x, y: g)


def _softmax_backward(g: Tensor, y: Tensor, dim: int) -> Tensor:
    return aten._softmax_backward_data.default(g, y, dim, y.dtype)


def _log_softmax_backward(g: Tensor, y: Tensor, dim: int) -> Tensor:
    return aten._log_softmax_backward_data.default(g, y, dim, y.dtype)


@rule("softplus")
def _softplus(tape: Tape, node: Any, g: fx.Node) -> None:
    z = node.args[0]
    beta = node.args[1] if len(node.args) > 1 else 1.0
    threshold = node.args[2] if len(node.args) > 2 else 20.0
    if tape.wants(z):
        tape.add(z, tape.call(aten.softplus_backward.default, g, z, beta, threshold))


@rule("softplus_backward")
def _softplus_backward(tape: Tape, node: Any, g: fx.Node) -> None:
    e, z, beta, threshold = node.args
    if tape.wants(e):
        tape.add(e, tape.call(aten.softplus_backward.default, g, z, beta, threshold))
    if tape.wants(z):  # beta y (1 - y) of the slope y, which is 1 above the threshold
        y = tape.call(aten.softplus_backward.default, tape.call(torch.ones_like, z), z, beta, threshold)
        tape.add(z, tape.call(aten.sigmoid_backward.default, tape.call(torch.mul, g, e), y), beta)


@rule("tanh_backward")
def _tanh_backward(tape: Tape, node: Any, g: fx.Node) -> None:
    e, y = node.args
    if tape.wants(e):
        tape.add(e, tape.call(aten.tanh_backward.default, g, y))
    if tape.wants(y):
        tape.add(y, Product(tape.call(torch.mul, g, e), y, 1, -2.0))


@rule("sigmoid_backward")
def _sigmoid_backward(tape: Tape, node: Any, g: fx.Node) -> None:
    e, y = node.args
    if tape.wants(e):
        tape.add(e, tape.call(aten.sigmoid_backward.default, g, y))
    if tape.wants(y):
        both = tape.call(torch.mul, g, e)
        tape.add(y, both)
        tape.add(y, Product(both, y, 1, -2.0))


@rule("threshold_backward")
def _threshold_backward(tape: Tape, node: Any, g: fx.Node) -> None:
    e, y, threshold = node.args
    if tape.wants(e):
        tape.add(e, tape.call(aten.threshold_backward.default, g, y, threshold))


@rule("where")
def _where(tape: Tape, node: Any, g: fx.Node) -> None:
    condition, one, two = node.args
    for item, order in ((one, (g, 0.0)), (two, (0.0, g))):
        if tape.wants(item):
            part = tape.call(torch.where, condition, *order)
            tape.add(item, tape.reduced(part, tape.shape(node), tape.shape(item)))


# -- layouts and sums -----------------------------------------------------------------------------------------


@rule("view", "reshape", "flatten", "unflatten", "unsqueeze", "squeeze", "view_as", "reshape_as")
def _reshape(tape: Tape, node: Any, g: fx.Node) -> None:
    if tape.wants(node.args[0]):
        tape.add(node.args[0], tape.view("reshape", g, tuple(tape.shape(node.args[0]))))


@rule("t")
def _t(tape: Tape, node: Any, g: fx.Node) -> None:
    if tape.wants(node.args[0]):
        tape.add(node.args[0], tape.turned(g) if len(tape.shape(node)) == 2 else g)


@rule("permute")
def _permute(tape: Tape, node: Any, g: fx.Node) -> None:
    item, *order = node.args
    order = list(order[0]) if isinstance(order[0], (list, tuple)) else order
    if tape.wants(item):
        tape.add(item, tape.view("permute", g, *(order.index(i) for i in range(len(order)))))


@rule("expand", "expand_as")
def _expand(tape: Tape, node: Any, g: fx.Node) -> None:
    if tape.wants(node.args[0]):
        tape.add(node.args[0], tape.reduced(g, tape.shape(node), tape.shape(node.args[0])))


@rule("sum")
def _sum(tape: Tape, node: Any, g: fx.Node) -> None:
    item, *rest = node.args
    if not tape.wants(item):
        return
    shape = tape.shape(item)
    dims = rest[0] if rest else node.kwargs.get("dim")
    dims = range(len(shape)) if dims is None else [dims] if isinstance(dims, int) else dims
    dims = {d % len(shape) for d in dims} if shape else set()
    kept = tuple(1 if i in dims else n for i, n in enumerate(shape))
    whole = g if kept == tuple(tape.shape(node)) else tape.view("reshape", g, kept)
    tape.add(item, whole if kept == tuple(shape) else tape.view("expand", whole, *shape))


@rule("select")
def _select(tape: Tape, node: Any, g: fx.Node) -> None:
    item, dim, index = node.args
    if tape.wants(item):
        tape.add(item, tape.call(aten.select_backward.default, g, tuple(tape.shape(item)), dim, index))


@rule("narrow")
def _narrow(tape: Tape, node: Any, g: fx.Node) -> None:
    item, dim, start, length = node.args
    if tape.wants(item):
        end = start + length
        tape.add(item, tape.call(aten.slice_backward.default, g, tuple(tape.shape(item)), dim, start, end, 1))


@rule("cat", "stack")
def _cat(tape: Tape, node: Any, g: fx.Node) -> None:
    items = node.args[0]
    dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
    start, stacked = 0, name_of(node.target) == "stack"
    for item in items:
        length = 1 if stacked else tape.shape(item)[dim]
        if tape.wants(item):
            part = tape.view("select", g, dim, start) if stacked else tape.view("narrow", g, dim, start, length)
            tape.add(item, part)
        start += length


# -- products of matrices -------------------------------------------------------------------------------------


def _product(tape: Tape, g: fx.Node, one: Any, two: Any, rows: int, scale: Any = 1.0) -> None:
    """Gradients of both sides of ``scale * one @ two``, of which the result has so many rows."""
    if tape.wants(one):
        tape.add(one, Product(g, tape.turned(two), tape.shape(two)[1], scale))
    if tape.wants(two):
        tape.add(two, Product(tape.turned(one), g, rows, scale))


@rule("mm", "matmul")
def _mm(tape: Tape, node: Any, g: fx.Node) -> None:
    one, two = node.args
    if len(tape.shape(one)) > 2 == len(tape.shape(two)):  # more rows
        (*_, inner), (*_, columns) = tape.shape(one), tape.shape(node)
        rows = tape.shape(node).numel() // columns
        if tape.wants(one):
            tape.add(one, tape.call(torch.matmul, g, tape.turned(two)))
        if tape.wants(two):
            above = tape.turned(tape.view("reshape", one, (-1, inner)))
            tape.add(two, Product(above, tape.view("reshape", g, (-1, columns)), rows))
        return
    if len(tape.shape(one)) != 2 or len(tape.shape(two)) != 2:
        _locally(tape, node, g)
        return
    _product(tape, g, one, two, tape.shape(one)[0])


@rule("addmm")
def _addmm(tape: Tape, node: Any, g: fx.Node) -> None:
    total, one, two = node.args
    if tape.wants(total):
        tape.add(total, tape.reduced(g, tape.shape(node), tape.shape(total)))
    _product(tape, g, one, two, tape.shape(one)[0], _number(tape, node, "alpha"))


@rule("linear")
def _linear(tape: Tape, node: Any, g: fx.Node) -> None:
    x, weight, bias = (*node.args, None)[:3]
    shape, given = tape.shape(x), tape.shape(node)
    if tape.wants(bias):
        tape.add(bias, tape.reduced(g, given, tape.shape(bias)))
    if len(shape) == 2:
        if tape.wants(x):
            tape.add(x, Product(g, tape.read(weight), given[1]))
        if tape.wants(weight):
            tape.add(weight, Product(tape.turned(g), tape.read(x), shape[0]))
        return
    if tape.wants(x):
        tape.add(x, tape.call(torch.matmul, g, weight))
    if tape.wants(weight):
        rows = tape.view("reshape", g, (-1, given[-1]))
        inner = given.numel() // given[-1]
        tape.add(weight, Product(tape.turned(rows), tape.view("reshape", x, (-1, shape[-1])), inner))


@rule("mv", "dot")
def _mv(tape: Tape, node: Any, g: fx.Node) -> None:
    one, two = node.args
    if len(tape.shape(one)) == 1:
        for item, other in ((one, two), (two, one)):
            if tape.wants(item):
                tape.add(item, Product(g, other))
        return
    if tape.wants(one):
        tape.add(one, Product(tape.view("unsqueeze", g, 1), tape.view("unsqueeze", two, 0), 1))
    if tape.wants(two):
        tape.add(two, tape.call(torch.mv, tape.turned(one), g))


@rule("addmv")
def _addmv(tape: Tape, node: Any, g: fx.Node) -> None:
    total, matrix, vector = node.args
    alpha = _number(tape, node, "alpha")
    if tape.wants(total):
        tape.add(total, tape.reduced(g, tape.shape(node), tape.shape(total)))
    if tape.wants(matrix):
        tape.add(matrix, Product(tape.view("unsqueeze", g, 1), tape.view("unsqueeze", vector, 0), 1, alpha))
    if tape.wants(vector):
        tape.add(vector, tape.call(torch.mv, tape.turned(matrix), g), alpha)


@rule("einsum")
def _einsum(tape: Tape, node: Any, g: fx.Node) -> None:
    formula, one, two = node.args
    (left, right), result = formula.partition("->")[0].split(","), formula.partition("->")[2]
    for item, letters, other, others in ((one, left, two, right), (two, right, one, left)):
        if tape.wants(item):
            if not set(letters) <= set(result + others):
                _locally(tape, node, g)
                return
            tape.add(item, tape.call(torch.einsum, f"{result},{others}->{letters}", g, other))


@rule("conv1d", "conv2d", "conv3d")
def _convolution(tape: Tape, node: Any, g: fx.Node) -> None:
    x, weight, *bias = node.args
    names = ("stride", "padding", "dilation", "groups")
    options = [node.kwargs.get(n, 1 if n != "padding" else 0) for n in names]
    dims = len(tape.shape(weight)) - 2
    stride, padding, dilation = (list(o) if isinstance(o, (list, tuple)) else [o] * dims for o in options[:3])
    bias = bias[0] if bias else None
    mask = [tape.wants(x), tape.wants(weight), tape.wants(bias)]
    sizes = list(tape.shape(bias)) if isinstance(bias, fx.Node) else None
    found = tape.call(
        aten.convolution_backward.default,
        g,
        x,
        weight,
        sizes,
        stride,
        padding,
        dilation,
        False,
        [0] * dims,
        options[3],
        mask,
    )
    for index, item in enumerate((x, weight, bias)):
        if mask[index]:
            tape.add(item, tape.view(getitem, found, index))
