"""Which packets a network fault means: the parameters that all network faults share, and what they are on this host."""

import difflib
import ipaddress
import re
import socket
from dataclasses import dataclass
from typing import Annotated, Literal

import psutil
from pydantic import BeforeValidator, Field, model_validator

from brownout_agent.faults.contract import Facts, FaultParameters, Host, Peer, Percent, Refusal
from brownout_agent.faults.network_group import SocketGroup, find_group
from brownout_agent.kernel.cgroups import GROUP_PATTERN, UNIT_PATTERN
from brownout_agent.kernel.tcp_connections import Connection

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
PortRange = tuple[int, int]
Connections = Literal["existing", "new", "both"]

_LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_HOST_NAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})*\.?")
# No blank, quote, slash or `*`: nftables takes a trailing `*` for "every interface that begins so".
_INTERFACE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:+-]{0,14}")
_LOOPBACK = "lo"
_SSH_SERVER = "sshd"


def parse_network(text: str) -> Network | None:
    """The network of an address or CIDR, None where the text is neither. `::ffff:10.0.0.9` is the IPv4 address."""
    try:
        network = ipaddress.ip_network(text.partition("%")[0], strict=False)
    except ValueError:
        return None
    if isinstance(network, ipaddress.IPv6Network) and network.prefixlen == 128 and network.network_address.ipv4_mapped:
        return ipaddress.ip_network(network.network_address.ipv4_mapped)
    return network


def parse_port_range(text: str) -> PortRange:
    """(8000, 8080) of `8000-8080`, (80, 80) of `80`.

    Raises:
        ValueError: not a port or a range of ports.
    """
    match = re.fullmatch(r"(\d{1,5})(?:-(\d{1,5}))?", text)
    if match is None:
        raise ValueError(f"`{text}` is not a port; write it like 5432 or 8000-8080")
    first, last = int(match[1]), int(match[2] or match[1])
    if not 1 <= first <= last <= 65_535:
        raise ValueError(f"`{text}` is not a port range within 1-65535, the lower one first")
    return first, last


def check_peer(text: str) -> str:
    """`text` itself, if it may be an address, a CIDR or a host name.

    Raises:
        ValueError: it is none.
    """
    if parse_network(text) is not None:
        return text
    if len(text) > 253 or not _HOST_NAME.fullmatch(text):
        raise ValueError(f"`{text}` is not an address, a CIDR or a host name")
    if text.rstrip(".").rpartition(".")[2].isdigit():
        raise ValueError(f"`{text}` is not an address; IPv4 addresses have four numbers of 0-255")
    return text


def check_interface_name(text: str) -> str:
    """`text` itself, if it may be the name of a network interface.

    Raises:
        ValueError: it may not.
    """
    if not _INTERFACE.fullmatch(text):
        raise ValueError(f"{text!r} is not the name of a network interface")
    return text


def as_list(value: object) -> object:
    """`80`, `"80"` and `[80, "8000-8080"]` alike: a list of texts. Anything else is left for pydantic to refuse."""
    values = value if isinstance(value, list | tuple) else [value]
    return [str(item) if isinstance(item, int) and not isinstance(item, bool) else item for item in values]


class NetworkParameters(FaultParameters):
    """What every network fault takes. Nothing given means all traffic of the host but the exempt one.

    Never touched, whatever is asked: the agent's control connection, SSH, IPv6 neighbour discovery, ARP, DHCP, traffic
    that the host forwards for others, and loopback traffic unless `interface: lo` or an address of this host is asked.
    """

    to: Annotated[
        tuple[str, ...],
        BeforeValidator(as_list, json_schema_input_type=str | list[str]),
        Field(
            description="peers: addresses, CIDRs, host names (resolved when the fault starts) or targets of the "
            "experiment; default everyone"
        ),
    ] = ()
    port: Annotated[
        tuple[str, ...],
        BeforeValidator(as_list, json_schema_input_type=int | str | list[int | str]),
        Field(
            description="service ports like 5432 or 8000-8080, TCP and UDP, whichever of the two sides is the server: "
            "a packet is meant when its source or its destination port is one of them"
        ),
    ] = ()
    protocol: Literal["tcp", "udp", "icmp", "any"] = Field("any", description="with `port`, any is tcp and udp")
    direction: Literal["ingress", "egress", "both"] = Field(
        "both", description="packets that reach this host, that leave it, or both"
    )
    interface: str | None = Field(None, description="only packets through this interface; default every one")
    unit: str | None = Field(
        None,
        pattern=UNIT_PATTERN,
        max_length=255,
        description="only packets of sockets that this systemd unit has made, like nginx.service, also when it is "
        "started anew; default everyone's (docs/scope.md)",
    )
    cgroup: str | None = Field(
        None,
        pattern=GROUP_PATTERN,
        max_length=1_000,
        description="in place of `unit`: a control group of version 2 by its path, like /system.slice/docker-1f.scope",
    )
    connections: Connections = Field(
        "both",
        description="with `protocol: tcp`: those that stand when the fault begins (existing), those that are begun "
        "while it lasts (new), or both",
    )
    share: Annotated[
        Percent,
        Field(
            description="of the flows (addresses and ports), drawn by the fault's id: each is met whole or not at all, "
            "like 30%"
        ),
    ] = 100.0

    @model_validator(mode="after")
    def _check(self) -> "NetworkParameters":
        for text in self.to:
            check_peer(text)
        for text in self.port:
            parse_port_range(text)
        for name in ("to", "port"):
            if name in self.model_fields_set and not getattr(self, name):
                raise ValueError(f"`{name}` is an empty list, which could mean all or nothing: leave it out for all")
        if self.port and self.protocol == "icmp":
            raise ValueError("icmp has no ports: leave out `port`, or choose tcp, udp or any")
        if self.interface is not None:
            check_interface_name(self.interface)
        self._check_group()
        if self.connections != "both" and self.protocol != "tcp":
            raise ValueError(f"only TCP has {self.connections} connections: write `protocol: tcp`, or leave them out")
        return self

    def _check_group(self) -> None:
        if self.unit is not None and self.cgroup is not None:
            raise ValueError("`unit` and `cgroup` both say whose sockets: leave one of them out")
        if self.cgroup is not None and {".", ".."} & set(self.cgroup.split("/")):
            raise ValueError("`cgroup` is a path from the root of the tree on, without `.` and `..`")
        if (self.unit or self.cgroup) and self.protocol == "icmp":
            raise ValueError("icmp that arrives belongs to no socket: leave out `unit` and `cgroup`")


@dataclass(frozen=True, slots=True)
class Scope:
    """The packets that one fault means on this host: nothing but typed values, so rules made of it are safe."""

    networks: tuple[Network, ...] | None
    """None is everyone."""
    ports: tuple[PortRange, ...]
    protocol: str
    direction: str
    interface: str | None
    with_loopback: bool
    exempt_peers: tuple[tuple[Network, int], ...]
    """(address, port); port 0 is every port."""
    exempt_ports: tuple[int, ...]
    group: SocketGroup | None = None
    """Whose sockets; None is everyone's."""
    connections: Connections = "both"
    standing: frozenset[Connection] = frozenset()
    """Those that stood when the fault began, in the rules of one that asks for old or new ones."""
    share_percent: float = 100.0

    @classmethod
    def of(cls, parameters: NetworkParameters, facts: Facts) -> "Scope":
        """Of parameters and what `resolve` found. Facts come from the journal and are parsed as strictly as orders."""
        networks = facts["networks"]
        return cls(
            networks=None if networks is None else tuple(ipaddress.ip_network(text) for text in networks),
            ports=tuple(parse_port_range(text) for text in parameters.port),
            protocol=parameters.protocol,
            direction=parameters.direction,
            interface=parameters.interface,
            with_loopback=bool(facts["with_loopback"]),
            exempt_peers=tuple((ipaddress.ip_network(text), int(port)) for text, port in facts["exempt_peers"]),
            exempt_ports=tuple(int(port) for port in facts["exempt_ports"]),
            group=SocketGroup.of(facts.get("group")),
            connections=parameters.connections,
            share_percent=parameters.share,
        )

    def meets(self, connection: Connection) -> bool:
        """Whether the fault means packets of this TCP connection, in either direction that it works in. The same
        judgement as the rules', reached without them, but for whose socket it is: that its addresses do not tell.
        """
        if self.protocol in {"udp", "icmp"} or self._exempts(connection):
            return False
        if not self.with_loopback and (connection.local == connection.remote or connection.remote.is_loopback):
            return False
        peers = [connection.remote]
        if self.with_loopback:
            peers.append(connection.local)  # both ends are here, and each is a peer of the other
        to_peer = self.networks is None or any(peer in network for peer in peers for network in self.networks)
        ends = (connection.local_port, connection.remote_port)
        to_port = not self.ports or any(first <= port <= last for first, last in self.ports for port in ends)
        return to_peer and to_port

    def _exempts(self, connection: Connection) -> bool:
        if {connection.local_port, connection.remote_port} & set(self.exempt_ports):
            return True
        return any(
            connection.remote in network and port in {0, connection.remote_port} for network, port in self.exempt_peers
        )

    @property
    def text(self) -> str:
        """For people: `10.0.0.9 port 5432`."""
        parts = ["any peer" if self.networks is None else ", ".join(_short(network) for network in self.networks)]
        if self.ports:
            ranges = (str(first) if first == last else f"{first}-{last}" for first, last in self.ports)
            parts.append("port " + ", ".join(ranges))
        if self.protocol != "any":
            parts.append(self.protocol)
        if self.interface:
            parts.append(f"through {self.interface}")
        if self.group:
            parts.append(f"by {self.group.name}")
        if self.connections != "both":
            parts.append(f"over {self.connections} connections")
        if self.share_percent < 100:
            parts.append(f"in {self.share_percent:g} % of the flows")
        return " ".join(parts)


def resolve(parameters: NetworkParameters, host: Host) -> Facts:
    """Names to addresses, a unit to its control group, and what must stay exempt. Touches nothing.

    Raises:
        Refusal: a name, interface or group that is not there, or nothing left once the exempt peers are taken out.
    """
    _check_interface(parameters.interface, host.interfaces)
    group = find_group(parameters.unit, parameters.cgroup)
    networks = _resolve_networks(parameters.to) if parameters.to else None
    ports = tuple(parse_port_range(text) for text in parameters.port)
    peers = tuple((_peer_network(peer), peer.port) for peer in host.exempt_peers)
    exempt_ports = tuple(sorted({*host.exempt_ports, *_ssh_server_ports()}))
    if networks is not None:
        _refuse_exempt_peers(networks, ports, peers)
    if ports and parameters.protocol != "udp" and all(a == b and a in exempt_ports for a, b in ports):
        raise Refusal(
            f"port {', '.join(parameters.port)} is SSH's on this host, which no fault touches",
            "choose another port",
        )
    with_loopback = parameters.interface == _LOOPBACK or _goes_through_loopback(networks or ())
    if with_loopback and parameters.share < 100:
        raise Refusal("both ends of a loopback flow are here, and would be drawn apart", "leave out `share`")
    return {
        "networks": None if networks is None else [str(network) for network in networks],
        "with_loopback": with_loopback,
        "exempt_peers": [[str(network), port] for network, port in peers],
        "exempt_ports": list(exempt_ports),
        "group": group.plain if group else None,
    }


def _check_interface(name: str | None, allowed: tuple[str, ...] | None) -> None:
    if allowed is not None and name not in allowed:
        asked = "every interface, as none is named" if name is None else f"interface {name}"
        raise Refusal(
            f"{asked}; this host's policy allows this fault on {', '.join(allowed)} only",
            f"write `interface: {allowed[0]}`, or add one under `interfaces:` of this fault in the policy",
        )
    names = [found for _, found in socket.if_nameindex()]
    if name is None or name in names:
        return
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}? " if near else ""
    raise Refusal(f"this host has no network interface {name}", f"{hint}it has {', '.join(sorted(names))}")


def _resolve_networks(peers: tuple[str, ...]) -> tuple[Network, ...]:
    networks: dict[Network, None] = {}  # a dict keeps the order in which people wrote them
    for peer in peers:
        network = parse_network(peer)
        for found in (network,) if network is not None else look_up(peer):
            networks[found] = None
    return tuple(networks)


def look_up(name: str) -> list[Network]:
    """The addresses of a name, or of an address itself, as this host finds them.

    Raises:
        Refusal: it finds none.
    """
    try:
        answers = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except (socket.gaierror, UnicodeError) as error:
        raise Refusal(f"cannot resolve {name}: {error}", _how_to_resolve(name)) from error
    found = (parse_network(str(answer[4][0])) for answer in answers)
    return [network for network in found if network is not None]


def _how_to_resolve(name: str) -> str:
    try:
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM).close()
    except OSError:  # as our unit has it (RestrictAddressFamilies=), and then others on this host may resolve it
        return (
            "name it by its address, or in /etc/hosts: this injector has no network, so it asks no DNS server, whatever"
            " `getent` finds; it does ask nscd, and systemd-resolved by libnss-resolve"
        )
    return f"check `getent hosts {name}` on this host"


def _peer_network(peer: Peer) -> Network:
    network = parse_network(peer.address)
    if network is None:
        raise Refusal(f"the exempt peer {peer.address!r} is not an address, so nothing can keep it reachable")
    return network


def _refuse_exempt_peers(
    networks: tuple[Network, ...], ports: tuple[PortRange, ...], peers: tuple[tuple[Network, int], ...]
) -> None:
    """Refuse when everything that was asked for is exempt, so that nothing would happen."""
    for network in networks:
        exempt = {port for peer, port in peers if peer == network}
        if not (0 in exempt or (ports and all(first == last and first in exempt for first, last in ports))):
            return
    raise Refusal(
        f"{', '.join(_short(network) for network in networks)} is the controller of this host, which no fault cuts off",
        "choose another peer",
    )


def _goes_through_loopback(networks: tuple[Network, ...]) -> bool:
    """True when one of them is a loopback network or an address of this host, which it also reaches through `lo`."""
    own = {
        parse_network(address.address)
        for addresses in psutil.net_if_addrs().values()
        for address in addresses
        if address.family in (socket.AF_INET, socket.AF_INET6)
    }
    return any(network.is_loopback or network in own for network in networks)


def _ssh_server_ports() -> set[int]:
    """The TCP ports on which a process named sshd listens. Looks at every process of the host."""
    ports: set[int] = set()
    for process in psutil.process_iter(["name"]):
        if process.info["name"] != _SSH_SERVER:
            continue
        try:
            connections = process.net_connections("tcp")
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue  # gone, or not ours to read: then this injector may not load rules either
        ports |= {connection.laddr.port for connection in connections if connection.status == psutil.CONN_LISTEN}
    return ports


def _short(network: Network) -> str:
    return str(network.network_address) if network.prefixlen == network.max_prefixlen else str(network)
