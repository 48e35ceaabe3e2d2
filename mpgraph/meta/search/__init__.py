"""Searches: they keep candidates of their own, with or without gradients."""

from .base import Search as Search
from .cma_es import CMAES as CMAES
from .synchronised import Synchronised as Synchronised
