"""Meta-training from a file of settings: what a run is, in TOML, and the trainer that does it."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

import mpgraph as mg
from mpgraph.agents.protocol import Protocol, learnable, list_protocols
from mpgraph.arguments import Arguments
from mpgraph.errors import InputError, unknown
from mpgraph.network.activations import Softplus
from mpgraph.network.network import Network
from mpgraph.registry import lookup, registered
from mpgraph.serialization.protocol import load_protocol
from mpgraph.serialization.toml import read as read

from .distributed import Group
from .episode import Episode
from .estimators import Alone, Cloning, Evolution, Growing, LogUniform, NeverEnding, Recomputed, Truncated, Unroll
from .families import PermutedLabels, RandomFilter, RandomProjection
from .fast_weights import FastWeights
from .guard import Guard
from .randomness import generator_of, seed_of
from .recurrent import MetaRNN
from .search import CMAES, Synchronised
from .task import TaskFamily, make_family
from .told import Told
from .trainer import MetaTrainer

ESTIMATORS: dict[str, Any] = {
    "alone": Alone,
    "unroll": Unroll,
    "truncated": Truncated,
    "recomputed": Recomputed,
    "evolution": Evolution,
    "cma_es": CMAES,
    "cloning": Cloning,
    "synchronised": Synchronised,
}
LEARNERS: dict[str, type[Told]] = {cls.name: cls for cls in (MetaRNN, FastWeights)}  # named as protocols are
LENGTHS: dict[str, Any] = {"growing": Growing, "log_uniform": LogUniform, "never_ending": NeverEnding}
FRESH = ("pool", "prior", "start")  # settings of [network] that say what fresh networks begin with; those of Episode
SCHEDULES = ("constant", "cosine")
USUAL: dict[str, Any] = {
    "network": {"name": "mlp"},
    "estimator": {"name": "unroll"},
    "terms": {"query": 1.0},
    "trainer": {"optimizer": "adam", "lr": 1e-3, "tasks": 1, "seed": 0},
}

TABLES = ("protocol", "network", "family", "estimator", "terms", "trainer", "guard", "record", "statistics")


def changed(settings: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with some of them replaced: ``{"trainer.lr": 1e-4}``."""
    made = copy.deepcopy(dict(settings))
    for key, value in changes.items():
        *tables, last = key.split(".")
        inside = made
        for table in tables:
            inside = inside.setdefault(table, {})
            if not isinstance(inside, dict):
                raise InputError(f"setting {key!r}: {table} is not a table")
        inside[last] = value
    return made


def complete(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with the usual ones filled in.

    Raises:
        InputError: for an unknown table, or without a protocol or a family.
    """
    for name, table in settings.items():
        if name not in TABLES:
            raise InputError("settings: " + unknown("table", name, TABLES))
        if not isinstance(table, Mapping):
            raise InputError(f"settings: {name} must be a table, as [{name}] begins it, got {table!r}")
    made = {**{name: dict(table) for name, table in USUAL.items()}, **{n: dict(t) for n, t in settings.items()}}
    made["trainer"] = {**USUAL["trainer"], **made["trainer"]}
    for name in ("protocol", "family"):
        if "name" not in made.get(name, {}) and not (name == "protocol" and "from" in made.get(name, {})):
            raise InputError(f"settings: say which {name}, by name = ... in [{name}], or --{name} NAME")
    for name in ("network", "estimator"):
        made[name].setdefault("name", USUAL[name]["name"])
    return made


def protocol_of(table: Mapping[str, Any]) -> Protocol | dict[str, Protocol]:
    """A rule; its ``learn`` table names the numbers that are meta-parameters, with their initial values.

    ``regions`` is a table of such tables by pattern of node names, for a rule of its own at each place. ``from`` is the
    folder of a saved rule, or the name of a pretrained one, to go on with: the next stage of a training in stages.
    """
    given = dict(table)
    if "from" in given:
        if len(given) > 1:
            others = ", ".join(sorted(given.keys() - {"from"}))
            raise InputError(f"protocol: from={given['from']!r} is a whole rule; leave out {others}")
        return load_protocol(given["from"])
    regions, learned, name = given.pop("regions", None), given.pop("learn", {}), given.pop("name")
    if regions is not None:
        return {pattern: protocol_of({"name": name, **given, **part}) for pattern, part in regions.items()}  # type: ignore[misc]
    cls = lookup("mpgraph.protocols", name)
    if cls is None:
        raise InputError(unknown("protocol", name, list_protocols()))
    try:
        made: Protocol = cls(**{key: learnable(value) for key, value in learned.items()}, **given)
    except TypeError as error:
        raise InputError(f"protocol {name}: {error}") from None
    return made


def network_of(table: Mapping[str, Any], family: TaskFamily) -> Network:
    """An architecture; of ``mlp``, sizes may leave out inputs and outputs, which are the family's: ``hidden``."""
    given = {key: value for key, value in table.items() if key not in FRESH}
    name = given.pop("name")
    build = lookup("mpgraph.architectures", name)
    if build is None:
        raise InputError(unknown("architecture", name, registered("mpgraph.architectures")))
    if "sizes" not in given and name == "mlp":
        sizes = [getattr(family, "inputs", None), *given.pop("hidden", [32]), getattr(family, "outputs", None)]
        if None in sizes:
            raise InputError("network: this family does not say how many inputs and outputs it needs; give sizes")
        given["sizes"] = sizes
    activation = given.get("activation")
    if isinstance(activation, Mapping):
        if list(activation) != ["softplus"]:
            raise InputError(f"network: activation={dict(activation)} must be a name, or {{ softplus = beta }}")
        given["activation"] = Softplus(float(activation["softplus"]))
    try:
        network: Network = build(**given)
    except TypeError as error:
        raise InputError(f"network {name}: {error}") from None
    return network


def family_of(table: Mapping[str, Any], root: Any = None) -> TaskFamily:
    """A family, in ``filter``, ``projection`` and ``permuted_labels`` if asked for.

    ``filter`` is a table of arguments of :class:`RandomFilter`; ``projection`` is a size, or a table of arguments of
    :class:`RandomProjection`.
    """
    given = dict(table)
    name, projection, classes = given.pop("name"), given.pop("projection", None), given.pop("permuted_labels", None)
    look = given.pop("filter", None)
    if root is not None and ("data" in given or name == "online_stream"):
        given["root"] = root
    if "families" in given:
        given["families"] = [family_of(table, root) for table in given["families"]]
    family = make_family(name, **given)
    inputs, outputs = getattr(family, "inputs", None), getattr(family, "outputs", None)
    if look is not None:
        if not isinstance(look, Mapping):
            raise InputError(f"family {name}: filter={look!r} must be a table, such as {{ channels = 8 }}")
        try:
            family = RandomFilter(family, **look)
        except TypeError as error:
            raise InputError(f"family {name}: filter: {error}") from None
    if projection is not None:
        try:
            wrapped = RandomProjection(
                family, **(projection if isinstance(projection, Mapping) else {"size": projection})
            )
        except TypeError as error:
            raise InputError(f"family {name}: projection: {error}") from None
        family, inputs = wrapped, wrapped.size or inputs
    if classes is not None:
        family = PermutedLabels(family, classes)
    for key, value in (("inputs", inputs), ("outputs", outputs)):
        if value is not None and not hasattr(family, key):
            setattr(family, key, value)
    return family


def estimator_of(table: Mapping[str, Any], episode: Episode, rule: Mapping[str, Any] | None = None) -> Any:
    """An estimator, or a search; its ``steps`` may be a schedule, as ``{ log_uniform = [10, 60] }``.

    Args:
        table: the settings.
        episode: what it is for.
        rule: settings of the rule, of which ``synchronised`` makes several, ``genomes``, with one seed after the other.
    """
    given = dict(table)
    name = given.pop("name")
    if name not in ESTIMATORS:
        raise InputError(unknown("estimator", name, ESTIMATORS))
    steps = given.get("steps")
    if isinstance(steps, Mapping):
        (kind, numbers), *more = steps.items()
        if kind not in LENGTHS or more:
            raise InputError(f"estimator: steps={dict(steps)} must be a number or one of {', '.join(LENGTHS)}")
        given["steps"] = LENGTHS[kind](*numbers)
    if name == "cloning":
        if "teacher" not in given:
            raise InputError('estimator cloning: say whom, for example teacher = { name = "backprop", lr = 0.1 }')
        if isinstance(episode, Told):
            raise InputError(f"estimator cloning: {episode.name} has no network that a teacher could have too")
        network = episode.program.graph.network
        given["teacher"] = mg.compile(network, protocol_of(given["teacher"]), dtype=episode.dtype)
    if name == "synchronised":
        count = Arguments("settings", InputError).integer("estimator.genomes", given.pop("genomes", 8), 2)
        given["starts"] = [_start({**(rule or {}), "seed": (rule or {}).get("seed", 0) + i}) for i in range(count)]
    try:
        return ESTIMATORS[name](**given)
    except TypeError as error:
        raise InputError(f"estimator {name}: {error}") from None


def _start(table: Mapping[str, Any]) -> dict[str, Tensor]:
    """The meta-parameters of a rule as the table makes it."""
    made = protocol_of(table)
    if not isinstance(made, Protocol):
        raise InputError("estimator synchronised: it takes one rule for all nodes, not regions")
    return dict(made.named_parameters())


def episode_of(settings: Mapping[str, Any], family: TaskFamily, rule: Protocol | None = None) -> Episode:
    """The episode of complete settings, with a rule of one's own in place of theirs if given."""
    shared = {"terms": settings["terms"], "penalised": settings["trainer"].get("penalised", "*")}
    learner = settings["protocol"].get("name")
    if learner in LEARNERS:
        options = {"loss": settings["network"].get("loss", "cross_entropy"), **settings["protocol"]}
        options |= {key: getattr(family, key) for key in ("inputs", "outputs") if hasattr(family, key)}
        del options["name"]
        try:
            return LEARNERS[learner](**options, **shared)
        except TypeError as error:
            raise InputError(f"protocol {learner}: {error}") from None
    network = network_of(settings["network"], family)
    made = rule or protocol_of(settings["protocol"])
    fresh = {key: value for key, value in settings["network"].items() if key in FRESH}
    if rule is not None:  # its prior is that of its own file
        fresh.pop("start", None)
    backend = settings["trainer"].get("backend", "eager")
    program = mg.compile(network, made, dtype=torch.get_default_dtype(), backend=backend)
    episode = Episode(program, **shared, **fresh)
    if rule is None and "statistics" in settings:
        prior = episode.prior_state() if "start" in fresh else None
        record_statistics(made, network, family, settings["statistics"], settings["trainer"]["seed"], prior)
    return episode


def record_statistics(
    rule: Any,
    network: Network,
    family: TaskFamily,
    table: Mapping[str, Any],
    seed: int,
    prior: Mapping[str, Mapping[str, Tensor]] | None = None,
) -> None:
    """Have a rule record what its learners read, before it is trained; a function of the seed alone.

    Args:
        rule: that standardises what its learners read by recorded statistics, with a method ``measure``.
        network: whose nodes are recorded.
        family: of the batches; each round is a task of its own and a fresh network.
        table: ``rounds`` (5) and ``share`` (0.5), what each replaces of what was recorded before; ``steps``, those of
            the family by default. Or ``alone``, how many random examples of what each agent reads, for
            :class:`Alone`.
        seed: of the run.
        prior: what every fresh network begins with, by node and channel.

    Raises:
        InputError: for a rule that records nothing, or another setting.
    """
    if not hasattr(rule, "measure"):
        raise InputError(f"settings: [statistics] is for rules that record what they read; {rule!r} has no measure")
    known = ("rounds", "share", "steps") if "alone" not in table else ("alone",)
    for name in table.keys() - set(known):
        raise InputError("settings: [statistics]: " + unknown("setting", name, known))
    check = Arguments("settings: [statistics]", InputError)
    if "alone" in table:
        count = check.integer("alone", table["alone"], 2)
        if not hasattr(rule, "measure_alone"):
            raise InputError(f"settings: [statistics]: {rule!r} does not say what its agents would do alone")
        rule.measure_alone(mg.compile(network, rule).graph, generator_of(seed, "statistics"), count)
        return
    given = {"rounds": 5, "share": 0.5, "steps": None, **table}
    for i in range(check.integer("rounds", given["rounds"], 1)):
        task = family.draw(generator_of(seed, "statistics", i), given["steps"])
        x, y = (t.to(torch.get_default_dtype()) if t.is_floating_point() else t for t in (task.x, task.y))
        batches = list(zip(x, y, strict=True))
        fresh = seed_of(seed, "statistics", "network", i)
        rule.measure(network, batches, share=given["share"], seed=fresh, state=prior)


def optimizer_of(name: str, lr: float, options: Mapping[str, Any]) -> Callable[..., torch.optim.Optimizer]:
    """A maker of optimizers of torch, by name: ``adam``, ``sgd``, ``rmsprop`` and the like."""
    classes: dict[str, Any] = {
        n.lower(): c
        for n, c in vars(torch.optim).items()
        if isinstance(c, type) and issubclass(c, torch.optim.Optimizer) and c is not torch.optim.Optimizer
    }
    if name not in classes:
        raise InputError(unknown("optimizer", name, classes))
    return lambda tensors: classes[name](tensors, lr=lr, **options)


def trainer_of(
    settings: Mapping[str, Any], *, root: Any = None, steps: int = 0, group: Group | None = None
) -> MetaTrainer:
    """The trainer that the settings describe.

    Args:
        settings: tables ``protocol``, ``network``, ``family``, ``estimator``, ``terms``, ``trainer``, ``guard``.
        root: folder of data files.
        steps: outer steps in all, for a schedule that ends with them.
        group: the processes that share the tasks.
    """
    given = complete(settings)
    family = family_of(given["family"], root)
    episode = episode_of(given, family)
    options = dict(given["trainer"])
    schedule = options.pop("schedule", "constant")
    if schedule not in SCHEDULES:
        raise InputError(unknown("schedule", schedule, SCHEDULES))
    for key in ("penalised", "backend"):  # of the episode
        options.pop(key, None)
    maker = optimizer_of(options.pop("optimizer"), options.pop("lr"), options.pop("optimizer_options", {}))
    try:
        return MetaTrainer(
            episode,
            family,
            estimator_of(given["estimator"], episode, given["protocol"]),
            optimizer=maker,
            schedule=None if schedule == "constant" else lambda t: 0.5 * (1.0 + math.cos(math.pi * t / max(1, steps))),
            guard=Guard(**given.get("guard", {})),
            group=group,
            **options,
        )
    except TypeError as error:
        raise InputError(f"settings: {error}") from None
