"""Thin wrappers over what the kernel offers. Nothing here knows what a fault is."""
