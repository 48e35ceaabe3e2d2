"""Whether the functions that a network was drawn with can be run: shapes and dtypes, tried on random numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mpgraph.errors import NetworkError

from .cycles import in_order
from .network import Network
from .operations import Operation

EXAMPLES = 3


def check_functions(network: Network, dtype: torch.dtype, device: torch.device) -> None:
    """Run every unit's function and every loss once.

    Raises:
        NetworkError: naming the unit or loss whose function fails, or whose result has another shape or dtype than
            the program needs.
    """
    generator = torch.Generator().manual_seed(0)

    def draw(shape: tuple[int, ...]) -> Tensor:
        return torch.randn((EXAMPLES, *shape), generator=generator, dtype=torch.float64).to(device=device, dtype=dtype)

    for name, unit in network.units.items():
        if not unit.is_input:
            given = unit.activation.operands if isinstance(unit.activation, Operation) else (unit.shape,)
            _try(
                f"unit {name!r}, {unit.activation}",
                unit.activation.apply,
                [draw(s) for s in given],
                (EXAMPLES, *unit.shape),
            )
    for name, node in network.losses.items():
        shape = network.shape(node.pre)
        target = draw(shape).softmax(-1) if shape else draw(shape)
        _try(f"loss {name!r}, {node.loss}", node.loss.apply, [draw(shape), target], (EXAMPLES,))


def _try(what: str, function: Callable[..., Any], given: list[Tensor], shape: tuple[int, ...]) -> None:
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


def check(network: Network) -> None:
    """Refuse what no rule could run.

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
    longest = [w for w in network.wires.values() if w.delay >= network.ticks]
    if longest:
        names = ", ".join(f"{w.name!r} (delay {w.delay})" for w in longest)
        raise NetworkError(
            f"the network runs for {network.ticks} tick{'s' * (network.ticks > 1)}, too few for {names}: a delayed "
            "message would never arrive; use mg.Network(ticks=...)"
        )
    for name in network.outputs:
        if not _reached(network, name):
            raise NetworkError(f"output {name!r} is not reached from any input ({', '.join(network.inputs)})")
    in_order(
        _sources(network, delayed=False),
        "cycle without a delay",
        "A unit cannot wait for itself: remove one of these connections, or give it a delay "
        "(network.connect(..., delay=1) in a mg.Network(ticks=...))",
    )


def _sources(network: Network, delayed: bool) -> dict[str, list[str]]:
    before: dict[str, list[str]] = {unit.name: list(unit.operands) for unit in network.units.values()}
    for wire in network.wires.values():
        if wire.post in before and (delayed or not wire.delay):
            before[wire.post].append(wire.pre)
    return before


def _reached(network: Network, name: str) -> bool:
    sources, stack, seen = _sources(network, delayed=True), [name], set()
    while stack:
        unit = stack.pop()
        if unit in network.inputs:
            return True
        if unit not in seen:
            seen.add(unit)
            stack += sources[unit]
    return False
