"""Networks from elsewhere and back: networkx graphs, torch modules, PyTorch Geometric."""
