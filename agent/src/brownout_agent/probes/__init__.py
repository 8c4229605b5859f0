"""Probes: one kind, one file. They ask and never judge."""
