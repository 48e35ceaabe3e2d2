"""What a learning rule is written with: agents, their channels, optimizers, protocols."""
