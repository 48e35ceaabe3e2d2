"""An episode: a fresh network learns a task in inner steps, and the meta-loss says how well.

Episodes of many tasks run side by side by ``vmap``. The meta-loss is a sum over inner steps, so an episode may be cut
into windows: the losses of the windows add up to the loss of the whole.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from mpgraph.agents.protocol import Protocol
from mpgraph.arguments import Arguments
from mpgraph.errors import InputError, unknown
from mpgraph.program.program import Program, State
from mpgraph.serialization.state import PRIOR_FILE, part

from .task import TaskBatch

Parameters = Mapping[str, Tensor]
PRIOR = "prior."  # begins the names of meta-parameters that are initial numbers of networks
TERMS = ("query", "final", "hint", "stream", "l1", "size")


class Window(NamedTuple):
    """What some inner steps gave.

    Attributes:
        state: after them, stacked over tasks.
        loss: their share of the meta-loss ``(tasks,)``.
        metrics: ``(tasks,)`` each: the terms without their weights, and for class labels ``accuracy`` on the query
            where the episode ends here (NaN where it does not).
    """

    state: State
    loss: Tensor
    metrics: dict[str, Tensor]


def checked_terms(owner: str, terms: Mapping[str, float] | None, allowed: tuple[str, ...]) -> dict[str, float]:
    """Weights of the meta-loss by name; that of the query by default."""
    check, made = Arguments(owner), {}
    for name, weight in ({"query": 1.0} if terms is None else terms).items():
        if name not in allowed:
            raise InputError(f"{owner}: " + unknown("term of the meta-loss", name, allowed))
        made[name] = check.number(f"terms[{name!r}]", weight)
    return made


class Episode:
    """Inner steps of a program, and the meta-loss.

    Terms of the meta-loss, each times its weight (one that is missing counts nothing), averaged over tasks:

    - ``query``: loss on the query after the last step;
    - ``final``: loss on the last support batch after the last step;
    - ``hint``: loss on each support batch right after the network learned from it, averaged over steps;
    - ``stream``: loss on each support batch before the network learns from it, averaged over steps;
    - ``l1``: sum of absolute values of the meta-parameters that ``penalised`` matches;
    - ``size``: mean square of the changes of all weights in a step, averaged over steps.

    Args:
        program: a network with one input, one output and one loss, and a rule with meta-parameters.
        terms: weights by name; ``{"query": 1.0}`` by default.
        penalised: pattern of the names of meta-parameters in ``l1``.
        pool: fresh networks are of a pool of so many, each drawn once and for all (Sandler et al., 2021, train rules
            on such a pool); all different by default.
        prior: patterns of ``node.channel``, such as ``*.w``: what networks begin with there are meta-parameters
            ``prior.node.channel`` as well, the same for all tasks (MAML; Finn et al., 2017).
        start: a file of a state, or a rule (its folder or name) that was saved with a prior: what these meta-parameters
            are at first, in place of the numbers of a fresh network. The state may be that of another rule.

    Raises:
        InputError: for an unknown term, a program whose rule has no meta-parameters, a network that does not fit,
            ``start`` without ``prior``.
        FileError: for a ``start`` without these numbers, or with such of another shape.
    """

    def __init__(
        self,
        program: Program,
        terms: Mapping[str, float] | None = None,
        penalised: str = "*",
        *,
        pool: int | None = None,
        prior: str | Sequence[str] = (),
        start: Any = None,
    ) -> None:
        check = Arguments("Episode")
        self.pool = None if pool is None else check.integer("pool", pool, 1)
        self.program, self.penalised = program, penalised
        self.device, self.dtype = program.device, program.dtype
        self.terms = checked_terms("Episode", terms, TERMS)
        network = program.graph.network
        if len(network.inputs) != 1 or len(network.outputs) != 1 or len(network.losses) != 1:
            raise InputError(
                "Episode needs a network with one input, one output and one loss; this one has "
                f"{len(network.inputs)}, {len(network.outputs)} and {len(network.losses)}"
            )
        (drawn,) = network.losses.values()
        self._loss = drawn.loss
        self._classes = program.graph.nodes[network.outputs[0]].shape[-1]
        self._prior = self._chosen((prior,) if isinstance(prior, str) else tuple(prior))
        if start is not None:
            if not self._prior:
                raise InputError("Episode: start is what the prior begins with; say which numbers it has, prior='*.w'")
            self._prior = self._started(start)
        if not self.parameters():
            raise InputError(
                f"Episode: {program.protocol.name} has no meta-parameters; make a number one: lr=mg.learnable(0.1)"
            )

    def _chosen(self, patterns: tuple[str, ...]) -> dict[str, Tensor]:
        """The initial numbers that patterns match, of one network, by the name of the meta-parameter."""
        if not patterns:
            return {}
        state = self.program.init(0)
        there = {f"{n}.{c}": t for n, cs in state.items() for c, t in cs.items() if t.is_floating_point()}
        found: dict[str, Tensor] = {}
        for pattern in patterns:
            matched = {f"{PRIOR}{name}": t for name, t in there.items() if fnmatchcase(name, pattern)}
            if not matched:
                raise InputError(f"Episode: prior={pattern!r} matches none of {', '.join(there)}")
            found |= matched
        return found

    def _started(self, start: Any) -> dict[str, Tensor]:
        """The numbers of the prior as a file has them."""
        found = part(start, {name.removeprefix(PRIOR): tuple(t.shape) for name, t in self._prior.items()})
        return {name: found[name.removeprefix(PRIOR)].to(t) for name, t in self._prior.items()}

    def parameters(self) -> dict[str, Tensor]:
        """The meta-parameters by name, as the program holds them, and the initial numbers of the prior."""
        return {**dict(self.program.protocol.named_parameters()), **self._prior}

    def network(self, parameters: Parameters, seed: int = 0) -> State:
        """The state of one network as an episode begins with it, the prior's numbers in their places."""
        state = self.program.init([seed])
        state = self.given(parameters, state, torch.ones(1, dtype=torch.bool))
        return {node: {c: t[0].detach() for c, t in channels.items()} for node, channels in state.items()}

    def prior_state(self) -> State:
        """What the prior's meta-parameters are at first, by node and channel; nothing else of a network."""
        made: State = {}
        for name, p in self._prior.items():
            node, _, channel = name.removeprefix(PRIOR).rpartition(".")
            made.setdefault(node, {})[channel] = p
        return made

    def prior_of(self, state: State) -> dict[str, Tensor]:
        """The meta-parameters of the prior, as one network has them."""
        places = {name: name.removeprefix(PRIOR).rpartition(".") for name in self._prior}
        return {name: state[node][channel] for name, (node, _, channel) in places.items()}

    def of_rule(self, parameters: Parameters) -> dict[str, Tensor]:
        """The meta-parameters of the rule, without those of the prior."""
        return {name: p for name, p in parameters.items() if not name.startswith(PRIOR)}

    def given(self, parameters: Parameters, state: State, new: Tensor, each: bool = False) -> State:
        """A state stacked over tasks, with the numbers of the prior in the networks that are new ``(tasks,)``."""
        made = {node: dict(channels) for node, channels in state.items()}
        for name in self._prior:
            node, _, channel = name.removeprefix(PRIOR).rpartition(".")
            old = state[node][channel]
            p = parameters[name] if each else parameters[name].expand(old.shape)
            made[node][channel] = torch.where(new.to(old.device).reshape(-1, *(1,) * (old.ndim - 1)), p, old)
        return made

    def prepared(self, batch: TaskBatch) -> TaskBatch:
        """The batch on the program's device and in its dtype."""
        return batch.to(self.device, self.dtype)

    def begin(self, batch: TaskBatch) -> State:
        """Fresh networks for the tasks of a batch, stacked."""
        size = batch.x.shape[2]
        if self.pool is None:
            return self.program.init(batch.seeds, batch_size=size)
        seeds = [seed % self.pool for seed in batch.seeds]
        drawn = list(dict.fromkeys(seeds))  # each network of the pool once
        state = self.program.init(drawn, batch_size=size)
        rows = torch.tensor([drawn.index(seed) for seed in seeds])
        return {node: {c: t[rows.to(t.device)] for c, t in channels.items()} for node, channels in state.items()}

    def run(self, parameters: Parameters, batch: TaskBatch) -> Window:
        """Whole episodes from fresh networks."""
        batch = self.prepared(batch)
        return self.window(parameters, self.begin(batch), batch, 0, batch.steps)

    def window(
        self,
        parameters: Parameters,
        state: State,
        batch: TaskBatch,
        start: int | Tensor,
        length: int,
        *,
        each: bool = False,
    ) -> Window:
        """Some inner steps.

        Args:
            parameters: the meta-parameters by name.
            state: stacked over tasks.
            batch: from :meth:`prepared`.
            start: inner steps that are behind, one number or one for each task ``(tasks,)``.
            length: inner steps to take; the episode of no task may end within, only at the end.
            each: whether every task has meta-parameters of its own, ``(tasks, *shape)``.

        Raises:
            InputError: for steps beyond the end of an episode.
        """
        many = len(batch.seeds)
        starts = torch.as_tensor(start).expand(many)
        if bool((starts + length > batch.lengths).any()):
            raise InputError(f"a window of {length} inner steps goes beyond the end of an episode")
        share = (1.0 / batch.lengths.double()).to(batch.x.device, self.dtype)
        state = self.given(parameters, state, starts == 0, each)
        parameters, penalised = self.of_rule(parameters), parameters
        totals = {name: torch.zeros(many, device=batch.x.device, dtype=self.dtype) for name in self.terms}
        x = y = batch.x[:, 0]
        for t in range(length):
            at = starts + t
            if isinstance(start, int):
                x, y = batch.x[:, start + t], batch.y[:, start + t]
            else:
                x, y = (tensor[torch.arange(many), at.to(tensor.device)] for tensor in (batch.x, batch.y))
            before = state
            state, loss = self._step(parameters, each, state, x, y, batch.seeds, at.tolist())
            if "stream" in totals:
                totals["stream"] = totals["stream"] + share * loss
            if "hint" in totals:
                totals["hint"] = totals["hint"] + share * self._asked(parameters, each, state, x, y)[0]
            if "size" in totals:
                totals["size"] = totals["size"] + share * _change(before, state)
        ends = starts + length == batch.lengths
        metrics = {}
        if bool(ends.any()):
            ended = ends.to(batch.x.device)
            loss, right = self._asked(parameters, each, state, batch.query_x, batch.query_y)
            if not batch.query_y.is_floating_point():
                metrics["accuracy"] = torch.where(ended, right.detach(), torch.nan)
            if "query" in totals:
                totals["query"] = torch.where(ended, loss, 0.0)
            if "final" in totals:
                totals["final"] = torch.where(ended, self._asked(parameters, each, state, x, y)[0], 0.0)
        if "l1" in totals:
            chosen = [p.abs() for name, p in penalised.items() if fnmatchcase(name, self.penalised)]
            sums = [p.reshape(many, -1).sum(1) if each else p.sum() for p in chosen]
            totals["l1"] = length * share * sum(sums)
        total = torch.zeros(many, device=batch.x.device, dtype=self.dtype)
        for name, value in totals.items():
            total = total + self.terms[name] * value
            metrics[name] = value.detach()
        return Window(state, total, metrics)

    def describe(self) -> str:
        """What a training record says of the network."""
        return repr(self.program.graph.network)

    def protocol(self, parameters: Parameters) -> Protocol:
        """The rule of the program, into which the meta-parameters are written."""
        made = self.program.protocol
        with torch.no_grad():
            for name, p in made.named_parameters():
                p.copy_(parameters[name])
        return made

    def save(self, parameters: Parameters, folder: Path, record: Mapping[str, Any]) -> None:
        """Write the rule with its training record into a folder, and the prior as one network that has it."""
        self.protocol(parameters).save(folder, record)
        if self._prior:
            self.program.save(self.network(parameters), folder / PRIOR_FILE)

    def load(self, folder: Path) -> dict[str, Tensor]:
        """The meta-parameters: those of the rule as the program has them, those of the prior from the folder."""
        prior = self.prior_of(self.program.load(folder)) if self._prior else {}
        return {name: p.detach() for name, p in {**self.parameters(), **prior}.items()}

    # -- one inner step of all tasks ------------------------------------------------------------------------------

    def _step(
        self, parameters: Parameters, each: bool, state: State, x: Tensor, y: Tensor, seeds: list[int], at: list[int]
    ) -> tuple[State, Tensor]:
        """States after a step and the losses ``(tasks,)`` before it."""
        phases = self.program.protocol.phases
        names = {self.program.protocol.phase(step) for step in at} if phases else {None}
        if len(names) > 1:
            raise InputError(f"tasks are in different phases of the rule ({sorted(map(str, names))}); run them in step")
        phase = names.pop()
        counters = {"seed": torch.tensor(seeds), "step": torch.tensor(at)}  # the state's own, where they can be read
        normal = self.program.noise({"program": counters}, x.shape[1], phase=phase)

        def one(
            state: State, x: Tensor, y: Tensor, normal: dict[str, Tensor], own: Parameters = parameters
        ) -> tuple[State, Tensor]:
            state, out = self.program.step(state, x, y, noise=normal, phase=phase, parameters=own)
            assert out.loss is not None  # the network has a loss
            return state, out.loss

        return mapped(one, state, x, y, normal, *([parameters] if each else []))

    def _asked(self, parameters: Parameters, each: bool, state: State, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Mean loss and share of right answers of each task ``(tasks,)``; NaN for targets that are not labels."""

        def one(state: State, x: Tensor, y: Tensor, own: Parameters = parameters) -> tuple[Tensor, Tensor]:
            prediction = self.program.predict(state, x, parameters=own)
            labels = not y.is_floating_point()
            target = functional.one_hot(y, self._classes).to(prediction.dtype) if labels else y
            right = (prediction.argmax(-1) == y).to(prediction.dtype).mean() if labels else prediction.sum() * torch.nan
            return self._loss.apply(prediction, target).mean(), right

        return mapped(one, state, x, y, *([parameters] if each else []))


def mapped(function: Any, *arguments: Any) -> Any:
    """``vmap`` over tasks; a single task goes without, by the faster code for it."""
    leaves = torch.utils._pytree.tree_leaves(arguments)
    if len(leaves[0]) > 1:
        return torch.func.vmap(function)(*arguments)
    result = function(*torch.utils._pytree.tree_map(lambda t: t[0], arguments))
    return torch.utils._pytree.tree_map(lambda t: t[None], result)


def _change(before: State, after: State) -> Tensor:
    """Mean square of the change of all weights, of each task."""
    nodes = [n for n in after if "w" in after[n]]
    squares = [(after[n]["w"] - before[n]["w"]).square().flatten(1).sum(1) for n in nodes]
    numbers = sum(after[n]["w"][0].numel() for n in nodes)
    return sum(squares[1:], squares[0]) / numbers
