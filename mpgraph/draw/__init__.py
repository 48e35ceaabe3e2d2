"""Networks, agent graphs and runs to look at."""
