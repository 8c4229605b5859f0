"""Brownout on a staging host: the talking agent, the privileged injector, and the reaper."""

__version__ = "0.1.0"
