"""Bidirectional learned update rules: neurons and synapses with several states, and a genome that moves them."""

from .rule import BLUR as BLUR
