"""`network.interface_down`: an interface goes down, as by `ip link set eth1 down` or a driver that gave up.

Unlike a blackhole it is seen by all who watch links: routes move, a bond changes over, keepalived and routing daemons
are told. Going down takes things from an interface that coming up does not bring: IPv6 addresses, routes, permanent
neighbours. They are written down before and given back, IPv6 addresses in their old order and with what is left of
their time. What routers advertise, and temporary addresses, the kernel and the routers make anew. An IPv6 address is
free for others while it is away, so the kernel looks for duplicates again, as ever when an interface comes up; routes
that name it as their source have to wait for that, a second or two.

Nothing of the kernel brings it up when its holder dies: whoever undoes does. So no interface is taken down by which the
controller or an SSH connection comes in; where that does not show, as behind a tunnel, the fault fails its trial.
"""

import ipaddress
import socket
import time
from collections.abc import Callable, Iterator
from typing import Annotated

import psutil
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
from brownout_agent.faults.network_lifelines import Lifelines
from brownout_agent.faults.network_scope import NetworkParameters, Scope, check_interface_name, resolve
from brownout_agent.kernel.clock import boottime_ns
from brownout_agent.kernel.credentials import has_capability
from brownout_agent.kernel.interface_state import (
    NotKept,
    Possession,
    give_back,
    read_possessions,
    refuse_unkept,
)
from brownout_agent.kernel.links import (
    Link,
    fed_by,
    interface_to,
    is_up,
    packets_through,
    read_links,
    set_up,
    standing_on,
)
from brownout_agent.kernel.route_socket import RouteSocket
from brownout_agent.kernel.tcp_connections import Address, Connection, read_established

POSSESSIONS_MAX = 200
"""Some 150 bytes each in the journal, which has room for a few megabytes."""
_LOOPBACK = "lo"
_CAP_NET_ADMIN = 12
_GIVE_BACK_WITHIN_S = 10.0
"""Looking for duplicates of an IPv6 address takes 1 to 2 s (RFC 4862), a link's negotiation as long."""
_POLL_S = 0.05
_ELSEWHERE = "choose another interface; to keep packets away and leave it up: network.blackhole with `interface:`"


class InterfaceDownParameters(FaultParameters):
    """Which interface goes down."""

    interface: Annotated[
        str, AfterValidator(check_interface_name), Field(description="the name of an interface that is up, like eth1")
    ]


class NetworkInterfaceDown(Fault[InterfaceDownParameters]):
    """Takes one interface down, and brings it up with all that it had."""

    kind = "network.interface_down"
    summary = "Take a network interface down, and bring it up again with the addresses and routes that it had."
    reverts = (
        "Whoever undoes (the injector, the reaper, the injector's next start) brings it up and gives back its IPv6 "
        "addresses, routes and neighbours: an interface that is down outlives us. A reboot brings it up as configured."
    )
    Parameters = InterfaceDownParameters
    bounds = frozenset({"interfaces"})

    def detect(self, host: Host) -> Capability:
        if not has_capability(_CAP_NET_ADMIN):
            return Capability(False, "taking an interface down needs CAP_NET_ADMIN", "run the injector as root")
        try:
            with RouteSocket() as kernel:
                read_links(kernel)
        except OSError as error:
            remedy = "let the injector open AF_NETLINK sockets"
            return Capability(False, f"the kernel does not list interfaces: {error}", remedy)
        return ABLE

    def prepare(self, parameters: InterfaceDownParameters, host: Host) -> Facts:
        facts = resolve(NetworkParameters(interface=parameters.interface), host)
        try:
            with RouteSocket() as kernel:
                links = read_links(kernel)
                link = next((one for one in links.values() if one.name == parameters.interface), None)
                if link is None:
                    raise Refusal(f"interface {parameters.interface} is gone", "see `ip link`")
                _refuse_unfit(link, links, host)
                _refuse_lifelines(kernel, link, links, facts)
                refuse_unkept(kernel, link.index)
                possessions = read_possessions(kernel, link.index)
        except NotKept as error:
            raise Refusal(
                f"what {parameters.interface} has could not all be given back: {error}", _ELSEWHERE
            ) from error
        except OSError as error:
            raise Refusal(f"the kernel does not tell what {parameters.interface} has: {error}", "try again") from error
        if len(possessions) > POSSESSIONS_MAX:
            raise Refusal(
                f"{link.name} has {len(possessions)} addresses and routes", f"choose one with at most {POSSESSIONS_MAX}"
            )
        kept = [one.as_json() for one in possessions]
        return {**facts, "index": link.index, "possessions": kept, "read_ns": boottime_ns()}

    def watch_lifelines(self, record: Record[InterfaceDownParameters], host: Host) -> Callable[[], str]:
        scope = Scope.of(NetworkParameters(interface=record.parameters.interface), record.facts)
        return Lifelines(scope, record.facts["exempt_ports"]).harm

    def apply(self, parameters: InterfaceDownParameters, facts: Facts, hold: Hold) -> None:
        with RouteSocket() as kernel:
            link = read_links(kernel).get(facts["index"])
            if link is None or not link.is_up or link.name != parameters.interface:
                raise Refusal(f"somebody has taken {parameters.interface} down or away meanwhile", "try again")
            if {one.key for one in read_possessions(kernel, link.index)} != {one.key for one in _possessions(facts)}:
                raise Refusal(f"somebody has changed what {link.name} has meanwhile", "try again")
            set_up(kernel, link.index, False)
        hold.ready()
        hold.wait()

    def undo(self, record: Record[InterfaceDownParameters]) -> None:
        index = record.facts["index"]
        deadline_s = time.monotonic() + _GIVE_BACK_WITHIN_S
        with RouteSocket() as kernel:
            link = read_links(kernel).get(index)
            if link is None:
                return  # removed, with all that it had
            if not link.is_up:
                set_up(kernel, index, True)
            while missing := _missing(kernel, link, record.facts):
                elapsed_s = _elapsed_s(record.facts)
                reasons = [f"{one.text}: {why}" for one in missing if (why := give_back(kernel, one, elapsed_s))]
                if time.monotonic() > deadline_s:
                    raise Refusal(f"{link.name} is up, and the kernel does not take back {'; '.join(reasons)}")
                if len(reasons) == len(missing):  # else some may have come with others
                    time.sleep(_POLL_S)

    def residue(self, record: Record[InterfaceDownParameters]) -> list[str]:
        with RouteSocket() as kernel:
            link = read_links(kernel).get(record.facts["index"])
            if link is None:
                return []
            if not link.is_up:
                return [f"interface {link.name} is still down; next: ip link set {link.name} up"]
            return [
                f"{one.text} of {link.name} is missing; next: brownout-injector reap"
                for one in _missing(kernel, link, record.facts)
            ]

    def measure(self, record: Record[InterfaceDownParameters], host: Host) -> Meter:
        return _DownMeter(record.parameters.interface)


class _DownMeter(Meter):
    """Asks for the interface's state by netdevice(7), and for its packets in /proc/net/dev."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._before = self._latest = packets_through(name)
        self._samples = self._down = 0

    def sample(self) -> None:
        self._samples += 1
        self._down += is_up(self._name) is False
        self._latest = packets_through(self._name)

    def effect(self) -> Effect:
        unit = "% of readings"
        if not self._samples:
            return Effect(100.0, None, unit, False, "it ended before it could be measured")
        passed = self._latest - self._before
        text = (
            f"{self._name} was down in {self._down} of {self._samples} readings (SIOCGIFFLAGS), and {passed} packets "
            "went through it meanwhile (/proc/net/dev)"
        )
        is_proved = self._down == self._samples and passed == 0
        return Effect(100.0, 100 * self._down / self._samples, unit, is_proved, text, self._samples)


def _possessions(facts: Facts) -> list[Possession]:
    return [Possession.from_json(plain) for plain in facts["possessions"]]


def _missing(kernel: RouteSocket, link: Link, facts: Facts) -> list[Possession]:
    """What it had and has not now, without what would have ended by itself."""
    there, elapsed_s = {one.key for one in read_possessions(kernel, link.index)}, _elapsed_s(facts)
    return [one for one in _possessions(facts) if one.key not in there and not one.is_over(elapsed_s)]


def _elapsed_s(facts: Facts) -> float:
    return (boottime_ns() - int(facts["read_ns"])) / 1e9


def _refuse_unfit(link: Link, links: dict[int, Link], host: Host) -> None:
    if link.name == _LOOPBACK:
        raise Refusal("lo is by what programs of this host talk to each other", _ELSEWHERE)
    for kind, facts in host.unfinished:
        if kind == NetworkInterfaceDown.kind and facts["index"] == link.index:
            raise Refusal(f"{link.name} has a {kind} already, or one that is not undone yet", "wait for its end")
    if not link.is_up:
        raise Refusal(f"{link.name} is down already", "`ip link` shows which are up")
    if above := standing_on(links.values(), link.index):
        names = ", ".join(one.name for one in above)
        raise Refusal(f"{names} would go down with {link.name}, on which it stands", f"take {above[0].name} down")


def _refuse_lifelines(kernel: RouteSocket, link: Link, links: dict[int, Link], facts: Facts) -> None:
    """Refuse an interface through which somebody comes who could end the fault."""
    ways = fed_by(links, link.index)
    own = {address for index in ways if index in links for address in _addresses_of(links[index].name)}
    for who, remote, local in _lifelines(facts):
        leaves_by = 0 if remote.is_link_local else interface_to(kernel, remote, local)
        if leaves_by in ways or {local, remote} & own:
            raise Refusal(f"{link.name} carries {who}, which no fault cuts off", _ELSEWHERE)


def _lifelines(facts: Facts) -> Iterator[tuple[str, Address, Address | None]]:
    """Who must not be cut off, for people, by the addresses of both ends, the own one where it is known."""
    peers = [(ipaddress.ip_network(text).network_address, port) for text, port in facts["exempt_peers"]]
    for address, _ in peers:
        yield f"the way to {address}, controller or protected peer of this host", address, None
    for connection in read_established():
        if {connection.local_port, connection.remote_port} & {*facts["exempt_ports"]}:
            yield f"the SSH connection from {connection}", connection.remote, connection.local
        elif _is_of(connection, peers):
            yield f"the connection from {connection}", connection.remote, connection.local


def _is_of(connection: Connection, peers: list[tuple[Address, int]]) -> bool:
    return any(connection.remote == address and port in {0, connection.remote_port} for address, port in peers)


def _addresses_of(name: str) -> Iterator[Address]:
    for one in psutil.net_if_addrs().get(name, ()):
        if one.family in {socket.AF_INET, socket.AF_INET6}:
            yield ipaddress.ip_address(one.address.partition("%")[0])
