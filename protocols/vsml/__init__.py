"""Variable shared meta learning: every synapse is a recurrent network, and all share one genome."""

from .rule import VSML as VSML
