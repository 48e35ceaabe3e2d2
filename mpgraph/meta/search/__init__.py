"""Searches that need no gradient."""

from .cma_es import CMAES as CMAES
