"""Whether an update is a gradient: the asymmetry of its Jacobian."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mpgraph.errors import InputError, ProtocolError, unknown
from mpgraph.program.program import Batch, Program, State

from .channels import nodes_with


class Asymmetry(NamedTuple):
    """What :func:`asymmetry` finds.

    Attributes:
        matrix: ``|dU_i/dw_j - dU_j/dw_i|`` for all pairs of weights, ``(n, n)``.
        share: norm of the antisymmetric part of the Jacobian by that of the whole, 0 (a gradient) to 1.
        places: by node, which rows and columns are its weights.
    """

    matrix: Tensor
    share: float
    places: dict[str, slice]


def asymmetry(
    program: Program,
    state: State,
    x: Batch,
    y: Batch | None = None,
    *,
    channel: str = "w",
    nodes: Sequence[str] | None = None,
    phase: str | None = None,
    limit: int = 5000,
) -> Asymmetry:
    """Whether an update can be the gradient of any function: only if its Jacobian is symmetric.

    Sandler et al. (2021), Eq. 10. The update U is what one step on the whole batch adds to the weights.

    Args:
        program: a network with a rule.
        state: where to measure.
        x, y: a batch, as for ``program.step``; the paper's is the whole data set.
        channel: whose update; one that holds several numbers counts with all of them.
        nodes: connections and biases that count; by default all that keep the channel. Weights that do not learn
            belong to no update: leave them out.
        phase: of a rule whose steps are not all alike.
        limit: of the number of weights n, since n^2 numbers are kept.

    Raises:
        ProtocolError: for an unknown channel or node.
        InputError: for more weights than ``limit``.
    """
    keeping = nodes_with(state, channel)
    for name in nodes or ():
        if name not in keeping:
            raise ProtocolError(f"asymmetry: channel {channel!r} is kept by no " + unknown("node", name, keeping))
    chosen = keeping if nodes is None else list(nodes)
    sizes = [state[name][channel].numel() for name in chosen]
    if sum(sizes) > limit:
        raise InputError(
            f"asymmetry: {sum(sizes)} weights make a Jacobian of {sum(sizes) ** 2} numbers; the limit is {limit} "
            f"weights. Choose some, nodes=[{chosen[0]!r}], or raise limit="
        )
    size = len(next(iter(x.values())) if isinstance(x, Mapping) else x)
    phase = program.protocol.phase_at(state, phase)  # neither can be found under a transform
    noise = program.noise(state, size, phase=phase)

    def update(flat: Tensor) -> Tensor:
        parts = dict(zip(chosen, flat.split(sizes), strict=True))
        now = {n: parts[n].view_as(state[n][channel]) for n in chosen}
        moved, _ = program.step(
            {n: {**kept, channel: now[n]} if n in now else kept for n, kept in state.items()},
            x, y, noise=noise, phase=phase,
        )  # fmt: skip
        return torch.cat([(moved[n][channel] - now[n]).flatten() for n in chosen])

    start = torch.cat([state[name][channel].detach().flatten() for name in chosen])
    jacobian = torch.func.jacrev(update)(start).detach()
    difference = jacobian - jacobian.T
    whole = float(jacobian.norm())
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    places = {name: slice(end - size, end) for name, size, end in zip(chosen, sizes, ends, strict=True)}
    return Asymmetry(difference.abs(), float(difference.norm()) / (2.0 * whole) if whole else 0.0, places)
