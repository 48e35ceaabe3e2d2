"""What a search is: it keeps candidates of its own, and hands the trainer the one to keep after each outer step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from torch import Generator, Tensor

from mpgraph.meta.distributed import Group
from mpgraph.meta.episode import Episode
from mpgraph.meta.estimators.base import Estimate
from mpgraph.meta.task import Tasks


class Search(ABC):
    """Base of searches; a :class:`MetaTrainer` takes one in place of an estimator and needs no optimizer then."""

    @abstractmethod
    def improve(
        self,
        episode: Episode,
        parameters: Mapping[str, Tensor],
        tasks: Tasks,
        generator: Generator,
        group: Group | None = None,
    ) -> tuple[dict[str, Tensor], Estimate]:
        """One outer step: the meta-parameters to keep, and the losses of the candidates.

        Args:
            episode: what is run.
            parameters: where the search starts, at its first step.
            tasks: of this outer step.
            generator: of what else is random: the length of episodes.
            group: the processes that share the candidates.
        """

    @abstractmethod
    def state(self) -> dict[str, Tensor]:
        """What a checkpoint holds."""

    @abstractmethod
    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take up what :meth:`state` gave."""

    def describe(self) -> dict[str, Any]:
        """What a training record says of it."""
        shown = {k: repr(v) if callable(v) else v for k, v in vars(self).items() if not k.startswith("_")}
        return {"class": type(self).__name__, **shown}
