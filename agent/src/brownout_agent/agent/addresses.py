"""Where other hosts reach this one: what a fault means that names this host as a peer."""

import ipaddress
import socket

import psutil

ADDRESSES_MAX = 256
"""So many are told; a host with more tells none, since a part of them would cut a part of its ways."""


def own_addresses() -> tuple[str, ...]:
    """The IPv4 and IPv6 addresses of all interfaces that are up, sorted; without those that no other host can reach it
    by: of the loopback, and local to a link.
    """
    up = {name for name, state in psutil.net_if_stats().items() if state.isup}
    found = {
        entry.address.partition("%")[0]
        for name, entries in psutil.net_if_addrs().items()
        if name in up
        for entry in entries
        if entry.family in {socket.AF_INET, socket.AF_INET6}
    }
    told = sorted(text for text in found if _is_reached(text))
    return tuple(told) if len(told) <= ADDRESSES_MAX else ()


def _is_reached(text: str) -> bool:
    address = ipaddress.ip_address(text)
    return not (address.is_loopback or address.is_link_local or address.is_unspecified)
