"""One run: a state machine without I/O, and an engine that carries out what it says."""
