"""The genome of BLUR: what is learned across tasks, and held fixed while a network learns.

Names are those of Sandler et al. (2021), Table 1, with ``_tilde`` for the tilde of synapses. So is the order of
indices: ``nu[c, d]`` leads from state d of the sender to state c of the receiver. The published code stores nu and mu
transposed, nu~ ``[e, c]`` (state, channel) and mu~ ``[c, d]`` (channel, state) as they are here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

import mpgraph as mg
from mpgraph.arguments import first_match

Initial = Literal["random", "backprop"]


@dataclass(frozen=True)
class Shape:
    """What a genome is to hold.

    Attributes:
        k: states of a neuron.
        single: whether a synapse has one channel rather than k.
        steps: how many steps have values of their own, or 0 if all have the same.
        synapse: names of further numbers of a synapse: gamma (Oja's term), alpha (saturation).
        neuron: names of further numbers of a neuron: mean, deviation (normalization), rho (length of weights).
        early: whether synapses also learn after the forward pass, by numbers of their own.
    """

    k: int
    single: bool
    steps: int = 0
    synapse: tuple[str, ...] = ()
    neuron: tuple[str, ...] = ()
    early: bool = False

    def parameter(self, value: Any) -> nn.Parameter:
        """A learned tensor, one copy for each step that has its own."""
        tensor = torch.as_tensor(value, dtype=torch.get_default_dtype())
        return nn.Parameter(tensor.expand(self.steps, *tensor.shape).clone() if self.steps else tensor.clone())


class SynapseGenome(nn.Module):
    """What synapses learn by: f~, eta~ (numbers), nu~ ``(k, c)``, mu~ ``(c, k)``; ``(k,)`` both with one channel."""

    def __init__(self, shape: Shape, initial: Initial, eta_tilde: float, generator: torch.Generator) -> None:
        super().__init__()
        self.steps = shape.steps
        nu_tilde, mu_tilde = torch.eye(shape.k), torch.eye(shape.k)
        mu_tilde[:2] = mu_tilde[:2].flip(0)  # state 0 below meets state 1 above
        if initial == "random":
            nu_tilde, mu_tilde = normal(shape.k, generator), normal(shape.k, generator)
        self.f_tilde, self.eta_tilde = shape.parameter(1.0), shape.parameter(eta_tilde)
        self.nu_tilde = shape.parameter(nu_tilde[:, 0] if shape.single else nu_tilde)
        self.mu_tilde = shape.parameter(mu_tilde[0] if shape.single else mu_tilde)
        self.extra(shape, shape.synapse)

    def extra(self, shape: Shape, names: tuple[str, ...]) -> None:
        """Further numbers: a mean starts at 0, factors at 1."""
        self._parameters.update({name: shape.parameter(float(name != "mean")) for name in names})

    def at(self, s: mg.View, name: str) -> Any:
        """A parameter, or of a genome that changes its value at the present step: the last one from then on."""
        value: Any = getattr(self, name)
        if not self.steps:
            return value
        now = torch.clamp(s.step, 0, self.steps - 1)
        chosen = torch.stack([torch.eq(now, step) for step in range(self.steps)])
        return (chosen[(slice(None), *(None,) * (value.ndim - 1))] * value).sum(0)


class Genome(SynapseGenome):
    """All of it: also f, eta (numbers), nu, mu ``(k, k)``.

    ``"random"`` samples the four matrices from N(0, 1). ``"backprop"`` is the genome of Section 3.1, for any k: every
    state receives the activity (nu), errors come back state by state (mu), the activity below meets the error above.

    Args:
        shape: what it holds.
        initial: where the matrices start; f, eta and f~ start at 1.
        eta_tilde: where eta~ starts.
        generator: of random ones.
    """

    def __init__(self, shape: Shape, initial: Initial, eta_tilde: float, generator: torch.Generator) -> None:
        nu, mu = torch.zeros(shape.k, shape.k), torch.eye(shape.k)
        nu[:, 0] = 1.0
        if initial == "random":
            nu, mu = normal(shape.k, generator), normal(shape.k, generator)
        super().__init__(shape, initial, eta_tilde, generator)
        self.f, self.eta = shape.parameter(1.0), shape.parameter(1.0)
        self.nu, self.mu = shape.parameter(nu), shape.parameter(mu)
        self.extra(shape, shape.neuron)
        if shape.early:
            self.early = SynapseGenome(shape, initial, eta_tilde, generator)


def normal(k: int, generator: torch.Generator) -> Tensor:
    """A k x k matrix of standard normal numbers."""
    return torch.randn(k, k, generator=generator, dtype=torch.float64)


class Layers:
    """Which genome serves which connection: the one for all, or that of the first pattern its upper unit matches.

    Args:
        patterns: of unit names; none if there is one genome.
        genomes: one for each pattern, or the one.
    """

    def __init__(self, patterns: Sequence[str], genomes: Sequence[Genome]) -> None:
        self.patterns, self.genomes = tuple(patterns), tuple(genomes)
        self._upper: dict[str, str] = {}  # by connection, the unit that it leads to
        self._above: dict[str, set[str]] = {}  # by unit, those that it leads to

    def read(self, network: mg.Network) -> None:
        """Note the connections of a network.

        Raises:
            ProtocolError: for a unit that no pattern matches, or below connections of different genomes: which of
                their gates f, eta would apply in the backward pass?
        """
        self._upper = {name: wire.post for name, wire in network.wires.items()}
        self._upper.update({f"{name}.bias": name for name in network.units})
        self._above = {name: self._reached(network, name) for name in network.units}
        torn = [(name, posts) for name, posts in self._above.items() if len(set(map(self._of, posts))) > 1]
        if torn:
            name, posts = torn[0]
            raise mg.ProtocolError(
                f"BLUR: unit {name!r} sends to {', '.join(sorted(posts))}, which have genomes of their own, so its "
                f"backward gates are ambiguous; let one of layers={self.patterns} match all of them"
            )

    def _reached(self, network: mg.Network, name: str) -> set[str]:
        operations = [n for n, unit in network.units.items() if name in unit.operands]
        direct = {w.post for w in network.wires.values() if w.pre == name and w.post in network.units}
        return direct.union(*(self._reached(network, n) for n in operations))

    def _of(self, unit: str) -> Genome:
        """That of the connections into a unit."""
        if not self.patterns:
            return self.genomes[0]
        pattern = first_match(unit, self.patterns)
        if pattern is None:
            raise mg.ProtocolError(f"BLUR: no pattern of layers={self.patterns} matches unit {unit!r}; add '*'")
        return self.genomes[self.patterns.index(pattern)]

    def below(self, node: mg.AgentNode) -> Genome:
        """That of a connection, or of those into a unit."""
        return self._of(self._upper.get(node.owner, node.owner))

    def above(self, node: mg.AgentNode) -> Genome:
        """That of the connections from a unit."""
        return self._of(min(self._above.get(node.owner, ()), default=node.owner))
