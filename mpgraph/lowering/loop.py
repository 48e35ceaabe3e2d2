"""Loops of generated code: the body, what goes from round to round, and how much of it is needed in the end.

While a body is written (``Emitter.inside``) its calls go into a graph of their own. Whatever it reads of the code
around becomes an argument. Calls that read nothing else are the same in every round, so they move out of it
(``Emitter.hoisted``). How much of a loop anybody reads is known when the function is finished: :func:`live` plans it
and :func:`copied` writes it.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx
from torch.utils.checkpoint import checkpoint

from mpgraph.agents.repeat import Repeat
from mpgraph.environment import inside_transform


@dataclass
class Scope:
    """The body of a loop while it is written.

    Attributes:
        graph: its calls.
        given: arguments, by the node of the code around that they stand for.
        numbered: the argument that is the number of the round, once it is asked for.
        times: how many rounds, a node of the code around; ``rounds`` by default.
        name: of the repetition.
    """

    times: fx.Node
    rounds: int
    name: str
    graph: fx.Graph = field(default_factory=fx.Graph)
    given: dict[fx.Node, fx.Node] = field(default_factory=dict)
    numbered: list[fx.Node] = field(default_factory=list)

    @property
    def number(self) -> fx.Node:
        """The number of the round, an argument."""
        if not self.numbered:
            self.numbered.append(self.graph.placeholder("number"))
        return self.numbered[0]


@dataclass
class Loop:
    """One loop of the code around it.

    Attributes:
        repeat: of the schedule.
        scope: its body.
        carried: for each channel that goes from round to round its argument, where it starts and what a round gives.
        results: nodes of the body whose last values anybody may ask for.
        outside: nodes of the body that are the same in every round, and what computes them outside.
        change: by how much the channel of ``until`` has changed.
        every: indices of ``results`` of which the values of all rounds are asked for, as one tensor.
        backwards: whether the last round comes first.
    """

    repeat: Repeat
    scope: Scope
    carried: list[tuple[fx.Node, fx.Node, fx.Node]]
    results: list[fx.Node]
    outside: dict[fx.Node, fx.Node]
    change: fx.Node | None = None
    every: set[int] = field(default_factory=set)
    backwards: bool = False


@dataclass
class Plan:
    """What of a loop is needed.

    Attributes:
        carried: indices of ``Loop.carried``.
        results: indices of ``Loop.results``.
        nodes: of the body.
        plans: of loops inside.
        given: nodes of the body that stand for something outside.
    """

    carried: list[int]
    results: list[int]
    nodes: set[fx.Node]
    plans: dict[fx.Node, Plan]
    given: list[fx.Node]

    def position(self, loop: Loop, index: Any) -> int:
        """Where the finished loop returns a result."""
        node = loop.results[index]
        ends = [loop.carried[i][2] for i in self.carried]
        if index not in loop.every and node in ends:
            return ends.index(node)
        return len(ends) + self.results.index(index)


def plan_of(loop: Loop, wanted: Iterable[int]) -> Plan:
    """What is needed of a loop of which these results are."""
    wanted, carried = sorted(set(wanted)), list[int]()
    while True:
        roots = [loop.results[i] for i in wanted] + [loop.carried[i][2] for i in carried]
        nodes, plans = live(loop.scope.graph, roots + ([loop.change] if loop.change else []), loop.outside)
        more = [i for i, (start, _, _) in enumerate(loop.carried) if start in nodes and i not in carried]
        if not more:
            break
        carried += more
    ends = {loop.carried[i][2] for i in carried}
    given = [node for node in loop.outside if node in nodes]
    results = [i for i in wanted if i in loop.every or loop.results[i] not in ends]
    return Plan(carried, results, nodes, plans, given)


def live(
    graph: fx.Graph, roots: Iterable[fx.Node], outside: Mapping[fx.Node, fx.Node]
) -> tuple[set[fx.Node], dict[fx.Node, Plan]]:
    """The nodes that ``roots`` need, and what of each loop; of ``outside`` nodes not what they need themselves."""
    needed, plans = set(roots), dict[fx.Node, Plan]()
    for node in reversed(graph.nodes):
        if node not in needed or node in outside:
            continue
        loop = node.meta.get("loop")
        if loop is None:
            needed.update(node.all_input_nodes)
            continue
        plan = plans[node] = plan_of(loop, [user.args[1] for user in node.users if user in needed])
        needed.update([loop.scope.times, *(loop.carried[i][1] for i in plan.carried)])
        needed.update(loop.outside[inner] for inner in plan.given)
    return needed, plans


def copied(
    source: Iterable[fx.Node],
    target: fx.Graph,
    plans: Mapping[fx.Node, Plan],
    copies: dict[fx.Node, fx.Node],
    key_of: Callable[[Any], Any],
    loops: dict[str, LoopCode],
) -> None:
    """Copy nodes of a graph into another one, with readable names, each call once; loops become functions."""
    written: dict[Any, fx.Node] = {}  # calls written inline may say the same thing twice
    for node in source:
        if node in copies:
            continue
        plan, holder = plans.get(node), node.args[0] if node.target is operator.getitem else None
        call, given, hint, made = node.target, node.args, node.meta.get("hint"), None
        if plan is not None:
            loop = node.meta["loop"]
            made = finished(loop, plan, key_of, loops)
            starts = [loop.carried[i][1] for i in plan.carried]
            call, given, hint = (
                made.call,
                (loop.scope.times, *starts, *(loop.outside[n] for n in plan.given)),
                made.name,
            )
        elif isinstance(holder, fx.Node) and holder in plans:
            given = (holder, plans[holder].position(holder.meta["loop"], node.args[1]))
        args: Any = fx.map_arg(given, copies.__getitem__)
        kwargs: Any = fx.map_arg(node.kwargs, copies.__getitem__)
        key = (node.op, call, key_of(args), key_of(kwargs), node.meta.get("times"))
        if key not in written:
            written[key] = target.create_node(node.op, call, args, kwargs, name=hint)
            written[key].meta.update(node.meta)
            if made is not None:
                written[key].meta["loop"] = made
        copies[node] = written[key]


class LoopCode:
    """A finished loop: the code of one round, and the function that runs it.

    Attributes:
        name: of the function.
        module: one round, ``(round, *carried, *given) -> (*carried, *results[, change])``.
        carried: how many of its arguments go from round to round.
        repeat: of the schedule.
        watched: whether a round says by how much the channel of ``until`` has changed.
        every: which of its results are those of all rounds.
        backwards: whether the last round comes first.
    """

    def __init__(
        self,
        name: str,
        module: fx.GraphModule,
        carried: int,
        repeat: Repeat,
        watched: bool = False,
        every: Sequence[int] = (),
        backwards: bool = False,
    ) -> None:
        self.name, self.module, self.carried, self.repeat, self.watched = name, module, carried, repeat, watched
        self.every, self.backwards = every, backwards

        def call(times: int, *arguments: Any) -> tuple[Any, ...]:
            return self._run(times, *arguments)

        call.__module__, call.__name__, call.__qualname__ = "mpgraph", name, name
        self.call = call

    def _run(self, times: int, *arguments: Any) -> tuple[Any, ...]:
        state, given = arguments[: self.carried], arguments[self.carried :]
        one: Callable[..., Any] = self.module.forward
        if self.repeat.recompute and torch.is_grad_enabled() and not inside_transform():
            one = _recomputed(one)
        if self.watched:
            return self._until(one, times, state, given)
        results: tuple[Any, ...] = ()
        found: list[list[Any]] = [[] for _ in self.every]
        for number in reversed(range(times)) if self.backwards else range(times):
            results = one(number, *state, *given)
            state = results[: self.carried]
            for values, index in zip(found, self.every, strict=True):
                values.append(results[index])
        return self.stacked(results, found) if found else results

    def stacked(self, results: Sequence[Any], found: Sequence[list[Any]]) -> tuple[Any, ...]:
        """The results of the last round, with those of all rounds in their places."""
        whole = list(results)
        for values, index in zip(found, self.every, strict=True):
            whole[index] = torch.stack(values[::-1] if self.backwards else values)
        return tuple(whole)

    def _until(self, one: Callable[..., Any], times: int, state: Sequence[Any], given: Sequence[Any]) -> Any:
        """Rounds until nothing changes; where values cannot be looked at, later rounds change nothing."""
        hidden, done = inside_transform(), None
        results: tuple[Any, ...] = ()
        for number in range(times):
            *new, change = one(number, *state, *given)
            settled = change <= self.repeat.tolerance
            if hidden:
                new = new if done is None else [torch.where(done, *pair) for pair in zip(results, new, strict=True)]
                done = settled if done is None else done | settled
            results = tuple(new)
            state = results[: self.carried]
            if not hidden and bool(settled):
                break
        return results

    def text(self) -> str:
        """The loop as code for people."""
        number, *names = [node.name for node in self.module.graph.nodes if node.op == "placeholder"]
        code = re.sub(r";  (?:\w+ = )+None", "", self.module.code).strip().splitlines()
        body = [line.strip() for line in code[code.index(next(n for n in code if n.startswith("def "))) + 1 :]]
        end: Any = self.module.graph.output_node().args[0]
        body, returned = [line for line in body[:-1] if line], [str(node.name) for node in end]
        state, change = names[: self.carried], returned[len(returned) - self.watched :]
        rounds = "reversed(range(times))" if self.backwards else "range(times)"
        lists = {returned[index]: f"every_{returned[index]}" for index in self.every}
        lines = [f"def {self.name}({', '.join(['times', *names])}):"]
        lines += [f"    {' = '.join([*lists.values(), ''])}[]"] if len(lists) == 1 else []
        lines += [f"    {', '.join(lists.values())} = {', '.join('[]' for _ in lists)}"] if len(lists) > 1 else []
        lines += [f"    for {number} in {rounds}:"]
        lines += [f"        {line}" for line in body]
        lines += [f"        {values}.append({name})" for name, values in lists.items()]
        if state:
            lines.append(f"        {', '.join(state)} = {', '.join(returned[: self.carried])}")
        lines += [
            line
            for name in change
            for line in (f"        if {name} <= {self.repeat.tolerance:g}:", "            break")
        ]
        order = "[::-1]" * self.backwards
        results = list(state)
        for index in range(self.carried, len(returned) - self.watched):
            name = returned[index]
            results.append(f"torch.stack({lists[name]}{order})" if index in self.every else name)
        return "\n".join([*lines, f"    return ({', '.join(results)},)"]) + "\n"


def _recomputed(one: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *arguments: checkpoint(one, *arguments, use_reentrant=False)


def finished(loop: Loop, plan: Plan, key_of: Callable[[Any], Any], loops: dict[str, LoopCode]) -> LoopCode:
    """The code of a loop, as far as it is needed; it joins ``loops``."""
    graph, copies, scope = fx.Graph(), dict[fx.Node, fx.Node](), loop.scope

    def argument(name: str) -> fx.Node:
        node = graph.placeholder(name)
        node.target = node.name  # the graph makes names unique
        return node

    number = argument("number")
    if scope.numbered:
        copies[scope.number] = number
    for start, _, _ in (loop.carried[i] for i in plan.carried):
        copies[start] = argument(start.name)
    for node in plan.given:
        copies[node] = argument(loop.outside[node].meta.get("hint") or loop.outside[node].name)
        copies[node].meta.update(node.meta)
    copied([node for node in scope.graph.nodes if node in plan.nodes], graph, plan.plans, copies, key_of, loops)
    ends = [loop.carried[i][2] for i in plan.carried] + [loop.results[i] for i in plan.results]
    ends += [loop.change] if loop.change else []
    graph.output(tuple(copies[node] for node in ends))
    name, more = "".join(c if c.isalnum() else "_" for c in loop.repeat.name), 1
    while (chosen := name if more == 1 else f"{name}_{more}") in loops:
        more += 1
    module = fx.GraphModule(torch.nn.Module(), graph, class_name="Round")
    every = [len(plan.carried) + place for place, index in enumerate(plan.results) if index in loop.every]
    loops[chosen] = LoopCode(
        chosen, module, len(plan.carried), loop.repeat, loop.change is not None, every, loop.backwards
    )
    return loops[chosen]
