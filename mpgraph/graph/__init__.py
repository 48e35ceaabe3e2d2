"""Network and rule become the multigraph of agents and the arrows of each pass. Read in this order:

- ``unroll.py``: network -> nodes and links; ticks and tied weights become uses of one node.
- ``arrows.py``: what a link and an arrow are.
- ``wiring.py``: the agent of each node, the arrows of each pass, and the order of updates (:class:`AgentGraph`).
"""
