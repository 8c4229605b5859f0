"""`network.ephemeral_ports`: no local port is left to connect to a service (EADDRNOTAVAIL), as by a connection leak.

A connection is told from others by its two addresses and ports, so what runs out are the local ports *towards one
address and port*: everybody else is reached as before, and so is the service over connections that stand. Each port is
taken by a socket that believes to be connected there (TCP_REPAIR, tcp(7)): the kernel counts it as a connection, sends
nothing when it is made and nothing when it is closed, and the service never hears of it. Who takes a port of their own
(bind(2)) or another source address than the kernel would is not hit; UDP is not either.
"""

import errno
import ipaddress
import json
import os
import resource
import signal
import socket
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field

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
from brownout_agent.faults.memory_room import default_reserve, read_room
from brownout_agent.faults.network_scope import Network, check_peer, look_up, parse_network
from brownout_agent.quantities import format_size

KERNEL_BYTES_PER_SOCKET = 4_096
"""What such a socket keeps in memory; some 3.7 KiB on Linux 6.18 (sock, inode, file, dentry, port)."""
_TCP_REPAIR = 19
_IP_LOCAL_PORT_RANGE = 51
_SYSCTLS = Path("/proc/sys/net/ipv4")
_PROCESSES_MAX = 64
_OWN_DESCRIPTORS = 64
_TAKE_WITHIN_S = 15.0
_REFILL_S = 0.2
"""Nothing tells of a port that becomes free, as when TIME_WAIT ends: so often it is looked for."""
_ALLOW_SOCKETS = "systemctl edit brownout-injector, [Service], RestrictAddressFamilies=AF_INET AF_INET6; restart it"


def check_host(text: str) -> str:
    """`text` itself, if it may be one address or a host name.

    Raises:
        ValueError: it is neither.
    """
    network = parse_network(check_peer(text))
    if network is not None and network.num_addresses > 1:
        raise ValueError(f"`{text}` is a network: name one address, or a host")
    return text


class EphemeralPortsParameters(FaultParameters):
    """Towards whom the ports run out."""

    to: Annotated[
        str, AfterValidator(check_host), Field(description="an address or a host name, of which every address is meant")
    ]
    port: Annotated[int, Field(ge=1, le=65_535, description="the port of the service there, like 5432")]


class NetworkEphemeralPorts(Fault[EphemeralPortsParameters]):
    """Holds a socket for every local port, in as many processes as their limits on descriptors make necessary."""

    kind = "network.ephemeral_ports"
    summary = "Use up the local ports towards a service: nobody here can connect to it any more (EADDRNOTAVAIL)."
    reverts = (
        "The kernel: it frees the ports, without a packet, when the holder dies, with the injector or by its timer."
    )
    Parameters = EphemeralPortsParameters

    def detect(self, host: Host) -> Capability:
        try:
            _seeming_connection(socket.AF_INET).close()
        except PermissionError as error:
            return Capability(False, f"TCP_REPAIR needs CAP_NET_ADMIN: {error}", "run the injector as root")
        except OSError as error:
            if error.errno == errno.EAFNOSUPPORT:  # as our unit has it (RestrictAddressFamilies=)
                return Capability(False, "this injector may open no IP socket", _ALLOW_SOCKETS)
            return Capability(False, f"the kernel has no TCP_REPAIR: {error}", "use a kernel with it, 3.5 or later")
        return ABLE

    def prepare(self, parameters: EphemeralPortsParameters, host: Host) -> Facts:
        network = parse_network(parameters.to)
        networks = look_up(parameters.to) if network is None else [network]
        _refuse_protected(networks, parameters, host)
        addresses = sorted({str(network.network_address) for network in networks})
        reachable = [address for address in addresses if _has_way(address, parameters.port)]
        if not reachable:
            raise Refusal(f"no route leads to {', '.join(addresses)}", "`ip route get` shows the way to a peer")
        _refuse_too_many(len(_local_ports()) * len(reachable))
        return {"addresses": reachable}

    def apply(self, parameters: EphemeralPortsParameters, facts: Facts, hold: Hold) -> None:
        most, ports = _descriptors_a_process(), sorted(_local_ports())
        listening = []
        for address in facts["addresses"]:
            for first in range(0, len(ports), most):
                hear, tell = os.pipe()
                hold.fork(_keep(address, parameters.port, ports[first : first + most], tell))
                os.close(tell)
                listening.append((address, hear))
        taken, complaints = 0, []
        for address, hear in listening:
            with os.fdopen(hear) as answer:
                held, why = json.loads(answer.readline() or '[0, "its process died"]')
            taken += held
            complaints += [f"towards {address} {held} were taken: {why}"] if why else []
        if complaints:
            raise Refusal("; ".join(complaints), "see `ss -s` and the injector's limits, and try again")
        hold.ready(taken=taken)
        hold.wait()

    def measure(self, record: Record[EphemeralPortsParameters], host: Host) -> Meter:
        return _ConnectMeter(record)


class _ConnectMeter(Meter):
    """Connects as any program does: where ports are left, its SYN goes out and it hangs up."""

    def __init__(self, record: Record[EphemeralPortsParameters]) -> None:
        self._addresses: list[str] = record.facts["addresses"]
        self._port = record.parameters.port
        self._text = f"{', '.join(self._addresses)} port {self._port}"
        self._taken: int = record.facts["taken"]
        self._samples = self._exhausted = 0

    def sample(self) -> None:
        self._samples += 1
        self._exhausted += all(_is_exhausted(address, self._port) for address in self._addresses)

    def effect(self) -> Effect:
        unit = "% of readings"
        if not self._samples:
            return Effect(100.0, None, unit, False, "it ended before it could be measured")
        text = (
            f"in {self._exhausted} of {self._samples} readings a program could not connect to {self._text} "
            f"(EADDRNOTAVAIL); {self._taken} local ports were taken"
        )
        share = 100 * self._exhausted / self._samples
        return Effect(100.0, share, unit, self._exhausted == self._samples, text, self._samples)


def local_ports(port_range: str, reserved: str) -> set[int]:
    """The ports from which the kernel chooses, of the two sysctls' texts (ip-sysctl). Pure."""
    first, last = map(int, port_range.split())
    ports = set(range(first, last + 1))
    for part in reserved.strip().split(","):
        low, _, high = part.partition("-")
        if low:
            ports -= set(range(int(low), int(high or low) + 1))
    return ports


def _refuse_protected(networks: list[Network], parameters: EphemeralPortsParameters, host: Host) -> None:
    if parameters.port in host.exempt_ports:
        raise Refusal(f"port {parameters.port} is SSH's or protected on this host", "choose another port")
    for peer in host.exempt_peers:
        if parse_network(peer.address) in networks and peer.port in {0, parameters.port}:
            reason = f"{peer.address} is controller or protected peer of this host, which no fault cuts off"
            raise Refusal(reason, "choose another peer")


def _refuse_too_many(count: int) -> None:
    """Each socket costs memory of the kernel and a descriptor."""
    room = read_room()
    free_bytes = room.available_bytes - default_reserve(room.total_bytes)
    if count * KERNEL_BYTES_PER_SOCKET > free_bytes:
        wanted = format_size(count * KERNEL_BYTES_PER_SOCKET)
        reason = f"{count} sockets take {wanted} of memory, of which {format_size(max(free_bytes, 0))} can be had"
        raise Refusal(reason, "name one address, or narrow net.ipv4.ip_local_port_range")
    if count > _PROCESSES_MAX * _descriptors_a_process():
        reason = f"{count} sockets are more than {_PROCESSES_MAX} processes may have open"
        raise Refusal(reason, "raise the injector's limit (LimitNOFILE=)")


def _descriptors_a_process() -> int:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return (2**20 if hard == resource.RLIM_INFINITY else hard) - _OWN_DESCRIPTORS


def _local_ports() -> set[int]:
    return local_ports(*((_SYSCTLS / name).read_text() for name in ("ip_local_port_range", "ip_local_reserved_ports")))


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET if ipaddress.ip_address(address).version == 4 else socket.AF_INET6


def _seeming_connection(family: socket.AddressFamily) -> socket.socket:
    """A socket that, once connected, is so for this host alone: no packet of it goes out, when it is closed neither."""
    made = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        made.setsockopt(socket.IPPROTO_TCP, _TCP_REPAIR, 1)
    except OSError:
        made.close()
        raise
    return made


def _has_way(address: str, port: int) -> bool:
    try:
        with _seeming_connection(_family(address)) as trial:
            trial.connect((address, port))
    except OSError as error:
        return error.errno == errno.EADDRNOTAVAIL  # somebody was faster
    return True


def _is_exhausted(address: str, port: int) -> bool:
    with socket.socket(_family(address), socket.SOCK_STREAM) as client:
        client.setblocking(False)
        return client.connect_ex((address, port)) == errno.EADDRNOTAVAIL


# ---- inside the keepers ------------------------------------------------------------------------------------------


def _keep(address: str, port: int, wanted: list[int], tell: int) -> Callable[[], None]:
    """The work of a fork: take those of these local ports that are free, tell how many, and later what becomes free."""

    def run() -> None:
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        kept: dict[int, socket.socket] = {}
        why = _take(kept, address, port, wanted)
        os.write(tell, json.dumps([len(kept), why]).encode() + b"\n")
        os.close(tell)
        while len(kept) < len(wanted):
            time.sleep(_REFILL_S)
            _take(kept, address, port, wanted)
        while True:
            signal.pause()

    return run


def _take(kept: dict[int, socket.socket], address: str, port: int, wanted: list[int]) -> str:
    """Take what is free of the wanted. Returns what kept it from that; "" for nothing."""
    give_up_s = time.monotonic() + _TAKE_WITHIN_S
    family = _family(address)
    for local_port in [one for one in wanted if one not in kept]:
        if time.monotonic() > give_up_s:
            return f"the kernel was too slow to give more in {_TAKE_WITHIN_S:g} s"
        try:
            made = _seeming_connection(family)
        except OSError as error:
            return str(error.strerror)
        is_chosen = _choose(made, local_port)
        try:
            made.connect((address, port))
        except OSError as error:
            made.close()
            if error.errno != errno.EADDRNOTAVAIL:
                return str(error.strerror)
            if not is_chosen:
                return ""  # of all there are none
        else:
            kept[local_port] = made
    return ""


def _choose(made: socket.socket, local_port: int) -> bool:
    """Have the kernel look at this local port only; False before Linux 6.3: it goes through all, which takes longer."""
    try:
        made.setsockopt(socket.IPPROTO_IP, _IP_LOCAL_PORT_RANGE, struct.pack("=I", local_port << 16 | local_port))
    except OSError:
        return False
    return True
