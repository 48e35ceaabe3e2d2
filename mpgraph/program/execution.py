"""Where and how a program runs: all that ``mg.compile`` is told beside the network and the rule."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import torch

from mpgraph.budget import DEFAULT, Memory
from mpgraph.environment import usable

from .backends import Backend, backend_of

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup  # which some builds of torch lack

Checks = Literal["none", "labels", "all"]


@dataclass(frozen=True)
class Execution:
    """The arguments of :func:`mpgraph.compile` of these names, checked.

    Attributes:
        device, dtype: where and as what states are made.
        checks: which *values* are inspected in eager calls.
        memory: the budget of segments, as it was written.
        threads: that slices of segments are shared out to; ``None`` for torch's number.
        backend: runs the generated code; serves one program.
        group: of processes that each have a slice of every batch; ``None`` for one process.
        online: whether a step is one tick of the network.
        sequences: whether a step is a sequence of any length.
    """

    device: torch.device
    dtype: torch.dtype
    checks: Checks = "labels"
    memory: Memory = DEFAULT
    threads: int | None = None
    backend: Backend = field(default_factory=Backend)
    group: ProcessGroup | None = None
    online: bool = False
    sequences: bool = False

    def again(self) -> Execution:
        """The same for another program.

        Raises:
            InputError, BackendError: if the device is not there, or cannot run the backend.
        """
        backend = backend_of(self.backend)
        backend.check(device := usable(self.device))
        return replace(self, device=device, backend=backend)

    def __deepcopy__(self, memo: dict[int, Any]) -> Execution:
        return self  # nothing in it changes, and processes are not copied
