"""The wires the simulator speaks, one file for each provider's format."""
