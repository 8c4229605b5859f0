"""`network.port_occupy`: somebody else has the port, so that a service that starts cannot bind it (EADDRINUSE).

The holder binds the ports, and listens on those of TCP, as a forgotten second instance or a stray program would: `ss`
shows it. What arrives there is dropped, so that clients and health checks have no answer instead of a stranger's. Only
whoever binds from now on is hit: a service that has the port already keeps it, and the fault is refused.
"""

import errno
import ipaddress
import socket
from pathlib import Path
from typing import Annotated, Any, Literal

import psutil
from pydantic import BeforeValidator, Field, model_validator

from brownout_agent.faults.contract import (
    ABLE,
    Capability,
    Effect,
    Facts,
    Fault,
    FaultParameters,
    Hold,
    Host,
    Meter,
    Record,
    Refusal,
)
from brownout_agent.faults.network_scope import as_list, parse_port_range
from brownout_agent.kernel.credentials import has_capability
from brownout_agent.kernel.ports import PROTOCOLS, Place, can_bind, take
from brownout_agent.kernel.processes import read_stat

PORTS_MAX = 128
"""Two sockets a port and family: well below the 1024 descriptors that a process has by default."""
_ALL_ADDRESSES = ("0.0.0.0", "::")  # noqa: S104 - taken, not served
_ANY_PORT = 0
_NAMED_MAX = 5
_CAP_NET_BIND_SERVICE = 10
_UNPRIVILEGED_FROM = Path("/proc/sys/net/ipv4/ip_unprivileged_port_start")
_ALLOW_SOCKETS = "systemctl edit brownout-injector, [Service], RestrictAddressFamilies=AF_INET AF_INET6; restart it"
_ALLOW_LOW_PORTS = "systemctl edit brownout-injector, [Service], CapabilityBoundingSet=CAP_NET_BIND_SERVICE; restart it"


class PortOccupyParameters(FaultParameters):
    """Which ports are taken. They must be free: what has a port already keeps it."""

    port: Annotated[
        tuple[str, ...],
        BeforeValidator(as_list, json_schema_input_type=int | str | list[int | str]),
        Field(min_length=1, description=f"ports like 5432 or 8000-8080, one or a list; {PORTS_MAX} in all at most"),
    ]
    protocol: Literal["tcp", "udp", "any"] = Field("tcp", description="any is tcp and udp")
    address: str | None = Field(None, description="a local address, 127.0.0.1 or ::1; default every one, IPv4 and IPv6")

    @model_validator(mode="after")
    def _check(self) -> "PortOccupyParameters":
        if self.address is not None:
            ipaddress.ip_address(self.address)
        if (count := len(self.ports)) > PORTS_MAX:
            raise ValueError(f"{count} ports; {PORTS_MAX} at most")
        return self

    @property
    def ports(self) -> tuple[int, ...]:
        """Each port once, in order."""
        ranges = (parse_port_range(text) for text in self.port)
        return tuple(sorted({port for first, last in ranges for port in range(first, last + 1)}))

    @property
    def protocols(self) -> tuple[str, ...]:
        return tuple(PROTOCOLS) if self.protocol == "any" else (self.protocol,)


class NetworkPortOccupy(Fault[PortOccupyParameters]):
    """Holds one socket for each port, protocol and family."""

    kind = "network.port_occupy"
    summary = "Take ports, so that a service that starts cannot bind them: address already in use."
    reverts = "The kernel: it closes the sockets when the holder dies, with the injector or by its timer."
    Parameters = PortOccupyParameters

    def detect(self, host: Host) -> Capability:
        try:
            can_bind(Place("tcp", _ALL_ADDRESSES[0], _ANY_PORT))
        except OSError as error:
            if error.errno == errno.EAFNOSUPPORT:  # as our unit has it (RestrictAddressFamilies=)
                return Capability(False, "this injector may open no IP socket", _ALLOW_SOCKETS)
            return Capability(False, f"no port can be bound here: {error}", "see what forbids bind(2) to the injector")
        return ABLE

    def prepare(self, parameters: PortOccupyParameters, host: Host) -> Facts:
        _refuse_protected(parameters, host)
        addresses = _usable_addresses(parameters)
        wanted = _places(parameters, addresses)
        if not_free := [place for place in wanted if not can_bind(place)]:
            raise _not_to_be_had(not_free)
        return {"addresses": addresses}

    def apply(self, parameters: PortOccupyParameters, facts: Facts, hold: Hold) -> None:
        sockets = [_take(place) for place in _places(parameters, facts["addresses"])]
        hold.ready(sockets=len(sockets))
        hold.wait()

    def measure(self, record: Record[PortOccupyParameters], host: Host) -> Meter:
        return _PortMeter(record)


class _PortMeter(Meter):
    """Tries to bind each port as a server does, and asks the kernel's socket tables whose it is."""

    def __init__(self, record: Record[PortOccupyParameters]) -> None:
        self._places = _places(record.parameters, record.facts["addresses"])
        self._ports = record.parameters.ports
        self._holder = record.holders[0].pid
        self._taken: list[int] = []

    def sample(self) -> None:
        ours = _bound_by(self._holder)
        open_ports = {place.port for place in self._places if place not in ours or can_bind(place)}
        self._taken.append(len(self._ports) - len(open_ports))

    def effect(self) -> Effect:
        asked = len(self._ports)
        if not self._taken:
            return Effect(asked, None, "ports", False, "it ended before it could be measured")
        least = min(self._taken)
        text = (
            f"{least} of {asked} ports were process {self._holder}'s by the kernel's tables, and could not be bound by "
            f"another (EADDRINUSE), in each of {len(self._taken)} readings"
        )
        return Effect(asked, least, "ports", least == asked, text, len(self._taken), least, max(self._taken))


def _places(parameters: PortOccupyParameters, addresses: list[str]) -> list[Place]:
    return [
        Place(protocol, address, port)
        for port in parameters.ports
        for protocol in parameters.protocols
        for address in addresses
    ]


def _refuse_protected(parameters: PortOccupyParameters, host: Host) -> None:
    if "tcp" in parameters.protocols and (exempt := sorted({*parameters.ports} & {*host.exempt_ports})):
        raise Refusal(f"TCP port {exempt[0]} is SSH's or protected on this host", "choose another port")
    first = int(_UNPRIVILEGED_FROM.read_text())
    if parameters.ports[0] < first and not has_capability(_CAP_NET_BIND_SERVICE):
        raise Refusal(f"port {parameters.ports[0]} is below {first} and needs CAP_NET_BIND_SERVICE", _ALLOW_LOW_PORTS)


def _usable_addresses(parameters: PortOccupyParameters) -> list[str]:
    """The address that was asked for, or those of every family that this host has."""
    asked = _ALL_ADDRESSES if parameters.address is None else (str(ipaddress.ip_address(parameters.address)),)
    usable, reasons = [], []
    for address in asked:
        try:
            can_bind(Place("udp", address, _ANY_PORT))
            usable.append(address)
        except OSError as error:
            reasons.append(f"{address} cannot be bound here: {error.strerror}")
    if not usable:
        raise Refusal("; ".join(reasons), "`ip address` shows this host's own")
    return usable


def _take(place: Place) -> socket.socket:
    try:
        return take(place)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise _not_to_be_had([place]) from error
        raise Refusal(f"{place} cannot be bound: {error.strerror}", "choose another port") from error


def _not_to_be_had(places: list[Place]) -> Refusal:
    shown = "; ".join(f"{place} is taken already, by {_takers(place)}" for place in places[:_NAMED_MAX])
    more = f" and {len(places) - _NAMED_MAX} more" if len(places) > _NAMED_MAX else ""
    return Refusal(shown + more, "end who has it first: this fault is for whoever binds next. Or choose another port")


def _takers(place: Place) -> str:
    """Who has a place that is taken: a listener for choice, then whoever has a socket there."""
    there = [one for one in psutil.net_connections("inet") if _is_in_the_way(one, place)]
    listening = [one for one in there if one.status in {psutil.CONN_LISTEN, psutil.CONN_NONE}]
    return ", ".join(sorted({_named(one.pid) for one in listening or there})) or "a socket that is nowhere listed"


def _is_in_the_way(one: Any, place: Place) -> bool:
    has = Place("tcp" if one.type == socket.SOCK_STREAM else "udp", one.laddr.ip, one.laddr.port)
    if (has.protocol, has.port) != (place.protocol, place.port):
        return False
    addresses = {ipaddress.ip_address(has.address), ipaddress.ip_address(place.address)}
    return len(addresses) == 1 or any(address.is_unspecified for address in addresses)


def _named(pid: int | None) -> str:
    stat = None if pid is None else read_stat(pid)
    return "a process that cannot be seen from here" if stat is None else f"{stat.comm} (pid {pid})"


def _bound_by(pid: int) -> set[Place]:
    """What a process has bound, by its descriptors and the kernel's tables; nothing when it is gone."""
    try:
        connections = psutil.Process(pid).net_connections("inet")
    except psutil.NoSuchProcess:
        return set()
    return {
        Place("tcp" if one.type == socket.SOCK_STREAM else "udp", one.laddr.ip, one.laddr.port) for one in connections
    }
