"""Network and protocol become the multigraph of agents and the arrows of each pass."""
