"""By which names and addresses people reach this controller."""

import ipaddress
import socket

import psutil

from brownout_controller.serving import WILDCARDS


def own_names(listen_host: str, advertised_host: str) -> tuple[str, ...]:
    """What the API's certificate must name: the address it listens on (every one of this machine, where that is a
    wildcard), the one that is advertised, and the host name. Nobody is asked, so no DNS server has a say in it.
    """
    listening = _own_addresses() if listen_host in WILDCARDS else [listen_host]
    names = [*listening, advertised_host, socket.gethostname()]
    return tuple(dict.fromkeys(name for name in names if name and name.isascii()))


def _own_addresses() -> list[str]:
    """Of every interface. Link-local ones mean nothing without an interface, so nobody puts them into a URL."""
    entries = [entry for entries in psutil.net_if_addrs().values() for entry in entries]
    addresses = [entry.address for entry in entries if entry.family in {socket.AF_INET, socket.AF_INET6}]
    return [one for one in addresses if not ipaddress.ip_address(one).is_link_local]
