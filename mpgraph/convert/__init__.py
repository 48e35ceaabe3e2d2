"""Networks from elsewhere, and back.

======================  ==========================================  ==================================================
from and to             call                                        read
======================  ==========================================  ==================================================
networkx                ``Network.from_networkx``                   ``neurons`` (attributes, checks), ``grouping``
PyTorch Geometric       ``Network.from_pyg``, ``program.to_pyg``    ``pyg_reading``, ``pyg``
torch modules           ``Network.from_torch``                      ``torch_wrappers``, ``torch_trace``,
                        ``program.to_torch``                        ``torch_layers``, ``torch_builder``
======================  ==========================================  ==================================================

Graphs in which every node is one neuron are read into arrays (``neurons``), checked there once for both libraries, and
grouped into populations (``grouping``). A module is traced by ``torch.fx`` into calls with shapes (``torch_trace``);
each call becomes units, connections or operations (``torch_layers``, with the tables of what is supported), which
``torch_builder`` adds and names; ``torch_module`` ties that together and leads back.

What is given stays the caller's: everything is copied, so changing a tensor, module or graph later changes no network.
Whatever cannot be read is refused with a :class:`mpgraph.NetworkError` that names the neuron, edge, type or submodule.
"""
