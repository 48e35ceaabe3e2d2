"""Whether a network can be run: its structure, and its functions, each tried on random numbers.

:func:`check` looks at units and connections; :func:`check_functions` runs each activation, operation and loss to check
shape, dtype and purity.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mpgraph.environment import generator_positions
from mpgraph.errors import NetworkError

from .activations import Activation
from .losses import Loss
from .network import Network
from .operations import Operation
from .stochastic import Stochastic

EXAMPLES = 3


def check_functions(network: Network, dtype: torch.dtype, device: torch.device) -> None:
    """Run every unit's function and every loss twice, and their derivatives where a class defines its own.

    The global random generators are afterwards as they were before.

    Raises:
        NetworkError: naming the unit or loss whose function fails, whose result has another shape or dtype than the
            program needs, that changes its input, or that is not pure: random, or with a state of its own.
    """
    generator = torch.Generator().manual_seed(0)

    def sample(shape: tuple[int, ...]) -> Tensor:
        numbers = torch.randn((EXAMPLES, *shape), generator=generator, dtype=torch.float64, device="cpu")
        return numbers.to(device=device, dtype=dtype)

    with _generators_restored(device):
        for name, unit in network.units.items():
            function = unit.activation
            if unit.is_input:
                continue
            z = [sample(s) for s in (function.operands if isinstance(function, Operation) else (unit.shape,))]
            what = f"unit {name!r}, {function}"
            y = _try(what, function.apply, z, (EXAMPLES, *unit.shape))
            if type(function).vjp not in (Activation.vjp, Operation.vjp):
                operands = tuple(z) if isinstance(function, Operation) else z[0]
                _same(f"{what}, vjp", partial(function.vjp, torch.ones_like(y), operands, y))
            if isinstance(function, Stochastic):
                xi = sample(unit.shape)
                y = _try(f"{what}, sample", function.sample, [*z, xi], (EXAMPLES, *unit.shape))
                _same(f"{what}, sample_vjp", partial(function.sample_vjp, torch.ones_like(y), z[0], y, xi))
        for name, node in network.losses.items():
            shape = network.shape(node.pre)
            target = sample(shape).softmax(-1) if shape else sample(shape)
            z, what = [sample(shape), target], f"loss {name!r}, {node.loss}"
            _try(what, node.loss.apply, z, (EXAMPLES,))
            if type(node.loss).gradient is not Loss.gradient:
                _same(f"{what}, gradient", partial(node.loss.gradient, *z))


def _try(what: str, function: Callable[..., Any], given: list[Tensor], shape: tuple[int, ...]) -> Tensor:
    before = [z.clone() for z in given]
    try:
        with torch.no_grad():
            result = function(*given)
    except Exception as error:
        raise NetworkError(f"{what}: failed on a batch of shape {tuple(given[0].shape)}: {error}") from error
    if not isinstance(result, Tensor) or tuple(result.shape) != shape or result.dtype != given[0].dtype:
        found = f"{result.dtype} {tuple(result.shape)}" if isinstance(result, Tensor) else type(result).__name__
        raise NetworkError(
            f"{what}: must return {given[0].dtype} {shape} for a batch of {EXAMPLES}, got {found}"
            + ("; return one number for each example" if len(shape) == 1 and what.startswith("loss") else "")
            + ("; end it with .to(z.dtype)" if isinstance(result, Tensor) and tuple(result.shape) == shape else "")
        )
    if any(not torch.equal(a, b) for a, b in zip(before, given, strict=True)):
        raise NetworkError(f"{what}: changes its input in place; write it without in-place operations")
    _same(what, partial(function, *given))
    return result


def _same(what: str, function: Callable[[], Any]) -> None:
    """Refuse a function that samples random numbers, or returns others when it is called again.

    A generator that moved shows what two equal results may hide: a dropout that drops nothing this time.
    """
    before = generator_positions()
    try:
        with torch.no_grad():
            results = [function(), function()]
    except Exception:  # without a derivative, which not every rule needs
        return
    one, two = ([result] if isinstance(result, Tensor) else list(result) for result in results)
    if generator_positions() == before and all(torch.equal(_bits(a), _bits(b)) for a, b in zip(one, two, strict=True)):
        return
    raise NetworkError(
        f"{what}: is not a pure function: it samples random numbers, or returns other numbers when it is called again. "
        "Steps and predictions must depend on state and batch only. Units with noise are mg.Noisy(activation), "
        "mg.Dropout(p), mg.Bernoulli() or an mg.Stochastic of your own, which get their numbers from the program; "
        "noise of a rule is s.normal(); call module.eval() on a module with dropout"
    )


def _bits(result: Tensor) -> Tensor:
    """The bytes of a result, in which NaN equals NaN."""
    return result.detach().contiguous().flatten().view(torch.uint8)


@contextmanager
def _generators_restored(device: torch.device) -> Iterator[None]:
    devices = [device] if device.type == "cuda" else []
    numpy, python = np.random.get_state(), random.getstate()  # noqa: NPY002
    with torch.random.fork_rng(devices=devices):
        try:
            yield
        finally:
            np.random.set_state(numpy)  # noqa: NPY002
            random.setstate(python)


def check(network: Network, online: bool = False) -> None:
    """Refuse what no rule could run.

    Args:
        network: with units and connections.
        online: whether a step is one tick, after which another may always come.

    Raises:
        NetworkError: naming the nodes.
    """
    if not network.inputs:
        raise NetworkError("the network has no input; add one with network.input(name, size)")
    if not network.outputs:
        raise NetworkError("the network has no output: every unit feeds another; put a loss on one")
    posts = {wire.post for wire in network.wires.values()}
    lonely = [n for n, u in network.units.items() if not u.is_input and not u.operands and n not in posts]
    if lonely:
        raise NetworkError(f"nothing is connected to {', '.join(map(repr, lonely))}; connect an input or unit to it")
    longest = [w for w in network.wires.values() if w.delay >= network.ticks and not online]
    if longest:
        names = ", ".join(f"{w.name!r} (delay {w.delay})" for w in longest)
        raise NetworkError(
            f"the network runs for {network.ticks} tick{'s' * (network.ticks > 1)}, too few for {names}: a delayed "
            "message would never arrive; use mg.Network(ticks=...), mg.compile(..., sequences=True) for sequences of "
            "any length, or mg.compile(..., online=True) for one tick a step"
        )
    for name in network.outputs:
        if not _reached(network, name):
            raise NetworkError(f"output {name!r} is not reached from any input ({', '.join(network.inputs)})")


def _sources(network: Network) -> dict[str, list[str]]:
    before: dict[str, list[str]] = {unit.name: list(unit.operands) for unit in network.units.values()}
    for wire in network.wires.values():
        if wire.post in before:
            before[wire.post].append(wire.pre)
    return before


def _reached(network: Network, name: str) -> bool:
    sources, stack, seen = _sources(network), [name], set()
    while stack:
        unit = stack.pop()
        if unit in network.inputs:
            return True
        if unit not in seen:
            seen.add(unit)
            stack += sources[unit]
    return False
