"""A rule's parameters and buffers as its modules hold them, or others for one call."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from mpgraph.agents.protocol import Protocol
from mpgraph.errors import InputError
from mpgraph.lowering.parameters import parameter_slots

from . import checks


class RuleParameters:
    """Where a program's modules hold parameters and buffers, in the order in which generated code takes them.

    Args:
        program: the module that holds all of them; none is added later.
        protocol: whose parameters have names.
    """

    def __init__(self, program: nn.Module, protocol: Protocol) -> None:
        self._protocol = protocol
        self._slots = parameter_slots(program)
        held = self.now()
        named = [*protocol.named_parameters(), *protocol.named_buffers()]
        # a tied one is held in several places
        self._places = {name: tuple(i for i, other in enumerate(held) if other is tensor) for name, tensor in named}

    def now(self) -> list[Tensor]:
        """As the modules hold them at this moment (``torch.func.functional_call`` replaces them)."""
        return [store[name] for store, name, _ in self._slots]

    def replaced(self, given: Mapping[str, Tensor]) -> list[Tensor]:
        """Some replaced by those given for one call, by their names in the rule.

        Raises:
            InputError: for a name that the rule does not have, another shape, dtype or device.
        """
        tensors = self.now()
        if not isinstance(given, Mapping):
            raise InputError(f"parameters: expected a dictionary of tensors by name, got {type(given).__name__}")
        for name, tensor in given.items():
            if name not in self._places:
                checks.no_parameter(name, self._places, self._protocol.name)
            places = self._places[name]
            checks.parameter(name, tensor, tensors[places[0]])
            for place in places:
                tensors[place] = tensor
        return tensors
