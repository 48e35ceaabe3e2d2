"""What a person defines: units, connections, losses. No learning rule is known here. Read in this order:

- ``network.py``: :class:`Network` and the methods that add to it; ``parts.py``: what it is made of.
- ``connections.py``: which synapses exist between two units; ``axes.py``, ``incidence.py``: which agents they join.
- ``activations.py``, ``normalization.py``, ``operations.py``, ``losses.py``: what nodes compute;
  ``stochastic.py``: units with noise.
- ``given.py``: copies of the tensors that a person gives.
- ``validation.py``: what no rule could run, and functions that are not pure.
"""

from .network import Network as Network
