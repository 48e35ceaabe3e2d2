"""Connections between units and losses that a rule adds to a network, as a pathway of its own."""

from __future__ import annotations

from collections.abc import Iterable

import mpgraph as mg


def hidden(network: mg.Network) -> list[str]:
    """Units that are no input, no output and no operation."""
    return [
        name for name, unit in network.units.items() if not (unit.is_input or unit.operands or name in network.outputs)
    ]


def joined(network: mg.Network, units: Iterable[str], pathway: str, rule: str, purpose: str) -> mg.Network:
    """The network with a connection of that pathway between each of these units and every loss.

    Raises:
        ProtocolError: for a network without a loss; ``rule`` needs one ``purpose``.
    """
    if not network.losses:
        raise mg.ProtocolError(f"{rule}: the network has no loss {purpose}; give it one")
    for name in units:
        for loss in network.losses:
            network.connect(name, loss, pathway=pathway)
    return network
