"""Builders of networks."""

from .mlp import mlp as mlp
