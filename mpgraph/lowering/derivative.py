"""Generated code with a backward pass of its own, for unrolls: one node of autograd a step instead of hundreds.

Autograd records every call, writes each term of a gradient as a tensor and adds the terms one by one. For the code of a
step, which is known, the backward pass is written once (:mod:`~mpgraph.lowering.tape`, ``transposes``): terms that are
products are added by the call that computes them, in place where nobody sees it, what nobody asks for is never
computed, and only what the backward pass reads is kept.

It is used where autograd is asked for first derivatives of plain tensors, and written at the first call of each kind
(shapes, and which arguments have gradients), which takes about a tenth of a second. It never depends on what was called
before: a run that is resumed has the same numbers, to the bit, as one that was not interrupted. Everywhere else
(``torch.func``, ``torch.compile``, second derivatives, code that calls what is no torch function) the code runs as it
is, and its results are the same but for rounding.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from mpgraph.environment import calls_watched, inside_transform

from .quick import quick, slow
from .tape import Tape
from .transposes import STOPS, known, name_of, transpose

SUMS = frozenset([torch.add, torch.sub, torch.addcmul, torch.addmm])
MAKERS = SUMS | {torch.mul, torch.mm, functional.linear}  # their results share memory with nothing
PLAIN = (Tensor, nn.Parameter)  # what may be behind any other kind of tensor is not known
KINDS = 64  # of one function whose backward passes are kept


class Differentiable:
    """A function of generated code that brings its own backward pass where that pays.

    Args:
        module: the code, a function of nested dictionaries and lists of tensors.
    """

    def __init__(self, module: fx.GraphModule) -> None:
        self.module = module
        self._flat: _Flat | None = None
        self._quick = _quick(module)
        self._able = all(known(node.target) for node in module.graph.nodes if node.op.startswith("call_"))

    def __call__(self, *args: Any) -> Any:
        """What the code returns."""
        if not torch.is_grad_enabled():
            return self.module.forward(*args) if self._quick is None or not _plain() else self._quick(*args)
        if not (self._able and _plain()):
            return self.module.forward(*args)
        if self._flat is None:
            self._flat = _Flat(self.module)
        return self._flat.outer(*args)

    @property
    def written(self) -> int:
        """For how many kinds of call there is a backward pass."""
        return sum(plan is not None for plan in self._flat.plans.values()) if self._flat else 0


def _quick(module: fx.GraphModule) -> Callable[..., Any] | None:
    """The code with cheaper calls, if it has any that become cheaper."""
    if not any(map(slow, module.graph.nodes)):
        return None
    graph = fx.Graph()
    graph.output(graph.graph_copy(module.graph, {}))
    quick(graph)
    return fx.GraphModule(module, graph).forward


def _plain() -> bool:
    """Whether nothing but autograd watches the calls."""
    return not (inside_transform() or calls_watched() or torch._C._len_torch_function_stack())


class _Flat:
    """The code as a function of tensors that returns tensors, and how to call it.

    Attributes:
        graph: of that function; its placeholders are ``leaves``.
        results: nodes that it returns.
        outer: takes and returns what the code does.
        plans: forward and backward code by kind of call; ``None`` where it cannot be written.
    """

    def __init__(self, module: fx.GraphModule) -> None:
        self.module = module
        self.graph = fx.Graph()
        outer = fx.Graph()
        inside: dict[fx.Node, fx.Node] = {}
        outside: dict[fx.Node, fx.Node] = {}
        leaves: list[fx.Node] = []
        end = next(node for node in reversed(module.graph.nodes) if node.op == "output")
        paths = {node for node in module.graph.nodes if node.op == "placeholder"}
        holders = set()  # dictionaries and lists that tensors are taken from
        for node in module.graph.nodes:
            if node.target is operator.getitem and node.args[0] in paths and isinstance(node.args[1], str | int):
                paths.add(node)
                holders.add(node.args[0])
        tensors = []
        for node in module.graph.nodes:
            if node.op == "placeholder":
                outside[node] = outer.placeholder(node.target)
                if node not in holders and node.users:
                    leaves.append(node)
            elif node in paths:
                outside[node] = outer.node_copy(node, outside.__getitem__)
                if node not in holders:
                    leaves.append(node)
            elif node is not end:
                tensors.append(node)
        for leaf in leaves:
            inside[leaf] = self.graph.placeholder(leaf.name)
        for node in tensors:
            inside[node] = self.graph.node_copy(node, inside.__getitem__)
        returned: list[fx.Node] = []
        fx.map_arg(end.args[0], returned.append)
        self.results = list(dict.fromkeys(node for node in returned if node not in outside))
        self.graph.output(tuple(inside[node] for node in self.results))
        self.results = [inside[node] for node in self.results]
        called = outer.call_function(self._call, tuple(outside[leaf] for leaf in leaves))
        positions = {node: i for i, node in enumerate(dict.fromkeys(n for n in returned if n not in outside))}
        for node, index in positions.items():
            outside[node] = outer.call_function(operator.getitem, (called, index))
        outer.output(fx.map_arg(end.args[0], outside.__getitem__))
        self.leaves = [inside[leaf] for leaf in leaves]
        self.plain = fx.GraphModule(module, self.graph).forward
        self.outer = fx.GraphModule(module, outer).forward
        self.plans: dict[Any, _Plan | None] = {}

    def _call(self, *tensors: Any) -> Any:
        wanted = tuple(isinstance(t, Tensor) and t.requires_grad for t in tensors)
        if not any(wanted) or not all(type(t) in PLAIN for t in tensors):
            return self.plain(*tensors)
        kind = (wanted, tuple(t.shape if isinstance(t, Tensor) else t for t in tensors))
        if kind not in self.plans:
            if len(self.plans) >= KINDS:
                self.plans.pop(next(iter(self.plans)))
            self.plans[kind] = self._planned(wanted, tensors)
        plan = self.plans[kind]
        return self.plain(*tensors) if plan is None else _Step.apply(plan, *tensors)

    def _planned(self, wanted: Sequence[bool], tensors: Sequence[Any]) -> _Plan | None:
        try:
            return _Plan(self, wanted, tensors)
        except NotImplementedError:
            return None


class _Values(fx.Interpreter):
    """What each node of the code holds: the shape of a tensor, or the value of anything else."""

    def __init__(self, module: Any, graph: fx.Graph) -> None:
        super().__init__(module, graph=graph)
        self.shapes: dict[fx.Node, torch.Size] = {}
        self.values: dict[fx.Node, Any] = {}
        self.floats: set[fx.Node] = set()

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, Tensor):
            self.shapes[n] = result.shape
            if result.is_floating_point():
                self.floats.add(n)
        elif not isinstance(result, tuple):
            self.values[n] = result
        return result


class _Plan:
    """Forward and backward code for one kind of call: shapes, and which arguments have gradients."""

    def __init__(self, flat: _Flat, wanted: Sequence[bool], tensors: Sequence[Any]) -> None:
        self.flat, self.wanted = flat, wanted
        with torch.no_grad():
            found = _Values(flat.module, flat.graph)
            found.run(*tensors)
        self._found = found
        active = {leaf for leaf, wants in zip(flat.leaves, wanted, strict=True) if wants}
        for node in flat.graph.nodes:  # what depends on them
            if node.op == "output":
                break
            if (
                node in found.floats
                and not active.isdisjoint(node.all_input_nodes)
                and name_of(node.target) not in STOPS
            ):
                active.add(node)
            if not active.isdisjoint(node.all_input_nodes) and node not in found.shapes and node not in found.values:
                raise NotImplementedError(f"{node.name} returns several tensors")
        self._active = active
        self.differentiable = [node in active for node in flat.results]
        self._backward: dict[tuple[bool, ...], tuple[Callable[..., Any], list[int]]] = {}
        everything, saved = self._written(self.differentiable)
        self._saved = saved
        self._backward[tuple(self.differentiable)] = everything, list(range(len(saved)))
        forward = fx.Graph()
        copies: dict[fx.Node, fx.Node] = {}
        seen = {*saved, *flat.results}
        for node in flat.graph.nodes:
            if node.op != "output":
                copies[node] = forward.node_copy(node, copies.__getitem__)
                if self._adds_in_place(node, seen):
                    copies[node].op, copies[node].target = "call_method", f"{name_of(node.target)}_"
        computed = [n for n in saved if n not in flat.leaves]
        quick(forward)
        forward.output((tuple(copies[n] for n in flat.results), tuple(copies[n] for n in computed)))
        self.forward = fx.GraphModule(flat.module, forward).forward
        places = {node: i for i, node in enumerate((*flat.leaves, *computed))}
        self._places = [places[n] for n in saved]

    def _adds_in_place(self, node: fx.Node, seen: set[fx.Node]) -> bool:
        """Whether a sum may be written over its first term, which nothing else reads."""
        if node.target not in SUMS:
            return False
        first: Any = node.args[0]
        shapes = self._found.shapes
        mine = isinstance(first, fx.Node) and first.target in MAKERS and first not in seen and len(first.users) == 1
        mine = mine and node.args.count(first) == 1
        return mine and shapes[first] == shapes[node] and node in self._found.floats

    def _written(self, given: Sequence[bool]) -> tuple[Callable[..., Any], list[fx.Node]]:
        """The backward pass for gradients of some results, and the tensors of the forward code that it reads."""
        flat, found = self.flat, self._found
        tape = Tape(found.shapes, found.values, self._active)
        for node, has in zip(flat.results, given, strict=True):
            if has:
                tape.add(node, tape.argument(f"error_{node.name}"))
        gradients = {}
        for node in reversed(flat.graph.nodes):
            if node in self._active:
                g = tape.gradient(node)
                if g is None:
                    continue
                if node.op == "placeholder":
                    gradients[node] = tape.keep(g)
                else:
                    transpose(tape, node, g)
        tape.graph.output(tuple(gradients.get(leaf) for leaf in flat.leaves))
        tape.graph.eliminate_dead_code(_stays)
        return fx.GraphModule(flat.module, tape.graph).forward, list(tape.saved)

    def backward(self, errors: Sequence[Tensor | None], kept: Sequence[Tensor]) -> Sequence[Tensor | None]:
        """Gradients of the leaves; ``kept`` are leaves and what the forward code computed."""
        given = tuple(e is not None for e in errors)
        if given not in self._backward:
            code, saved = self._written(given)
            self._backward[given] = code, [self._saved.index(node) for node in saved]
        code, chosen = self._backward[given]
        tensors = [kept[self._places[i]] for i in chosen]
        return code(*(e for e in errors if e is not None), *tensors)


def _stays(node: fx.Node) -> bool:
    """Whether a node stays though nobody reads it: what is written in place nobody else sees, so it may go as well."""
    return node.op in ("placeholder", "output")


class _Step(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, plan: _Plan, *tensors: Tensor) -> tuple[Tensor, ...]:
        results, computed = plan.forward(*tensors)
        ctx.plan = plan
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors, *computed)
        ctx.mark_non_differentiable(*(r for r, has in zip(results, plan.differentiable, strict=True) if not has))
        return results

    @staticmethod
    def backward(ctx: Any, *errors: Tensor | None) -> Any:
        plan = ctx.plan
        kept = ctx.saved_tensors
        if torch.is_grad_enabled():  # the gradients will be differentiated themselves
            own = [t.view_as(t) if wants else t for t, wants in zip(kept, plan.wanted, strict=False)]  # without a past
            chosen = [t for t, wants in zip(own, plan.wanted, strict=True) if wants]
            again = plan.flat.plain(*own)
            pairs = [(r, e) for r, e in zip(again, errors, strict=True) if e is not None and r.requires_grad]
            results, heard = ([pair[i] for pair in pairs] for i in (0, 1))
            found = iter(torch.autograd.grad(results, chosen, heard, create_graph=True, allow_unused=True))
            return (None, *(next(found) if wants else None for wants in plan.wanted))
        return (None, *plan.backward(errors, kept))
