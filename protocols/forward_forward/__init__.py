"""Forward-forward: two forward passes with opposite aims, and no backward pass."""

from .rule import ForwardForward as ForwardForward
