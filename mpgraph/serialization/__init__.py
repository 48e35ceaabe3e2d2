"""States and rules on disk. Loading never runs code; writing replaces a file whole."""
