"""Watchers: one system, one file. They read that system's own view of its health."""
