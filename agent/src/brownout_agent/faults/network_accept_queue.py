"""`network.accept_queue`: a service's queue of connections that it has not accepted yet is full, as under a storm.

The holder connects to the service, holds every connection that is made, and goes on until no more are: those that the
service accepts keep it busy, and once it accepts no more they fill its queue (listen(2)). Then the kernel lets a new
client's SYN go unanswered: the client waits, and tries again after 1, 3, 7 s. A service that takes whatever comes, and
never has enough, is not hit until `connections` are held, and nothing is proved then.

When the holder dies its connections are closed. Those that still stand in the queue leave it when the service accepts
them, closed as they are: a service that does not accept at all keeps them until it does.
"""

import errno
import ipaddress
import resource
import select
import socket
import time
from typing import Annotated

from pydantic import Field, IPvAnyAddress

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
from brownout_agent.faults.network_scope import NetworkParameters, resolve
from brownout_agent.kernel.ports import Place, can_bind
from brownout_agent.kernel.tcp_connections import Address, read_listeners

CONNECTIONS_MAX = 100_000
UNANSWERED_MS = 200
"""A handshake within a host takes less than one; the kernel sends a SYN again after 1000."""
_LOOPBACK = {4: "127.0.0.1", 6: "::1"}
_OWN_DESCRIPTORS = 64
_FILL_WITHIN_S = 15.0
_TURN_MS = 50
_PENDING_MAX = 32
_ALLOW_SOCKETS = (
    "systemctl edit brownout-injector, [Service], RestrictAddressFamilies=AF_INET AF_INET6 and IPAddressAllow= with "
    "localhost and this host's own addresses; restart it"
)


class AcceptQueueParameters(FaultParameters):
    """Whose queue is filled."""

    port: Annotated[int, Field(ge=1, le=65_535, description="the TCP port on which a service of this host listens")]
    address: IPvAnyAddress | None = Field(
        None, description="the address at which it is asked, one of this host; default where it listens"
    )
    connections: Annotated[
        int, Field(ge=1, le=CONNECTIONS_MAX, description="so many connections are held at most, accepted ones included")
    ] = 5_000


class NetworkAcceptQueue(Fault[AcceptQueueParameters]):
    """Holds connections to one listening service until it takes no more."""

    kind = "network.accept_queue"
    summary = "Fill the accept queue of a listening service: new connections to it are not answered."
    reverts = "The kernel: it closes the connections when the holder dies, with the injector or by its timer."
    Parameters = AcceptQueueParameters

    def detect(self, host: Host) -> Capability:
        try:
            with socket.create_server((_LOOPBACK[4], 0)) as server:
                is_answered = not is_unanswered(_LOOPBACK[4], server.getsockname()[1])
        except OSError as error:
            if error.errno == errno.EAFNOSUPPORT:  # as our unit has it (RestrictAddressFamilies=)
                return Capability(False, "this injector may open no IP socket", _ALLOW_SOCKETS)
            return Capability(False, f"no TCP socket is to be had: {error}", "see what forbids it to the injector")
        if not is_answered:  # as our unit has it (IPAddressDeny=any)
            return Capability(False, "this injector's connections are not let through", _ALLOW_SOCKETS)
        return ABLE

    def prepare(self, parameters: AcceptQueueParameters, host: Host) -> Facts:
        targets = _targets(parameters)
        resolve(NetworkParameters(to=tuple(targets), port=(str(parameters.port),), protocol="tcp"), host)
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if hard != resource.RLIM_INFINITY and parameters.connections * len(targets) > hard - _OWN_DESCRIPTORS:
            reason = f"{parameters.connections} connections are more than the {hard} descriptors of one process"
            raise Refusal(reason, "ask for fewer, or raise the injector's limit (LimitNOFILE=)")
        return {"targets": targets}

    def apply(self, parameters: AcceptQueueParameters, facts: Facts, hold: Hold) -> None:
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        crowds = [Crowd(target, parameters.port, parameters.connections) for target in facts["targets"]]
        give_up_s = time.monotonic() + _FILL_WITHIN_S
        while not all(crowd.is_done for crowd in crowds) and time.monotonic() < give_up_s:
            for crowd in crowds:
                crowd.turn()
        hold.ready(held=sum(crowd.held for crowd in crowds))
        while True:
            for crowd in crowds:
                crowd.turn()

    def measure(self, record: Record[AcceptQueueParameters], host: Host) -> Meter:
        return _QueueMeter(record)


class Crowd:
    """Connections to one address of a service, held and being made."""

    def __init__(self, address: str, port: int, most: int) -> None:
        self._to = (address, port)
        self._most = most
        self._poll = select.epoll()
        self._held: dict[int, socket.socket] = {}
        self._pending: dict[int, tuple[socket.socket, float]] = {}
        """Each with when it was begun."""
        self._next_s = 0.0

    @property
    def held(self) -> int:
        return len(self._held)

    @property
    def is_done(self) -> bool:
        """Whether all are held that may be, or one has had no answer for so long that the queue was full."""
        since_s = time.monotonic() - UNANSWERED_MS / 1_000
        return self.held >= self._most or any(begun_s < since_s for _, begun_s in self._pending.values())

    def turn(self) -> None:
        """Wait for a moment, see which were made and which ended, and begin as many as there is reason for."""
        made = ended = 0
        for descriptor, _ in self._poll.poll(_TURN_MS / 1_000):
            if descriptor in self._pending:
                made += self._has_come(descriptor)
            elif self._is_over(descriptor):  # and a place in the queue is free
                self._held.pop(descriptor).close()
                ended += 1
        for descriptor in [*self._pending][:-_PENDING_MAX]:
            self._pending.pop(descriptor)[0].close()
        now_s = time.monotonic()
        if made or ended or now_s >= self._next_s:
            self._next_s = now_s + _TURN_MS / 1_000
            for _ in range(min(max(2 * made, ended, 1), _PENDING_MAX, self._most - self.held - len(self._pending))):
                self._begin()

    def _begin(self) -> None:
        one = _client(self._to[0])
        if one.connect_ex(self._to) not in {0, errno.EINPROGRESS}:
            one.close()  # no local port, or no service: looked at again in the next turn
            return
        self._pending[one.fileno()] = (one, time.monotonic())
        self._poll.register(one, select.EPOLLOUT)

    def _has_come(self, descriptor: int) -> bool:
        one, _ = self._pending.pop(descriptor)
        if one.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            one.close()
            return False
        self._poll.modify(one, select.EPOLLIN)
        self._held[descriptor] = one
        return True

    def _is_over(self, descriptor: int) -> bool:
        """Whether the service has closed it; what it says is not listened to."""
        try:
            return self._held[descriptor].recv(2**16) == b""
        except BlockingIOError:
            return False
        except OSError:
            return True


class _QueueMeter(Meter):
    """Connects as any client does, and reads the queue's length in /proc/net/tcp."""

    def __init__(self, record: Record[AcceptQueueParameters]) -> None:
        self._targets: list[str] = record.facts["targets"]
        self._port = record.parameters.port
        self._held: int = record.facts["held"]
        self._samples = self._full = 0
        self._waiting: list[int] = []

    def sample(self) -> None:
        self._samples += 1
        unanswered = all(is_unanswered(target, self._port) for target in self._targets)
        waiting = sum(count for (_, port), count in read_listeners().items() if port == self._port)
        self._waiting.append(waiting)
        self._full += unanswered and waiting > 0

    def effect(self) -> Effect:
        unit = "% of readings"
        if not self._samples:
            return Effect(100.0, None, unit, False, "it ended before it could be measured")
        text = (
            f"in {self._full} of {self._samples} readings a new connection to port {self._port} had no answer within "
            f"{UNANSWERED_MS} ms while {min(self._waiting)} to {max(self._waiting)} connections waited to be accepted "
            f"(/proc/net/tcp); {self._held} connections were held when it began"
        )
        share = 100 * self._full / self._samples
        return Effect(100.0, share, unit, self._full == self._samples, text, self._samples)


def is_unanswered(address: str, port: int) -> bool:
    """Whether a new connection is neither made nor refused within UNANSWERED_MS."""
    with _client(address) as client:
        if client.connect_ex((address, port)) != errno.EINPROGRESS:
            return False
        waiting = select.poll()
        waiting.register(client, select.POLLOUT)
        return not waiting.poll(UNANSWERED_MS)


def _client(address: str) -> socket.socket:
    is_v4 = ipaddress.ip_address(address).version == 4
    made = socket.socket(socket.AF_INET if is_v4 else socket.AF_INET6, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    made.setblocking(False)
    return made


def _targets(parameters: AcceptQueueParameters) -> list[str]:
    """The addresses at which the service is asked: one for each of its listening sockets' addresses."""
    listening = sorted({address for address, port in read_listeners() if port == parameters.port}, key=str)
    if parameters.address is not None:
        _refuse_elsewhere(str(parameters.address))
        listening = [one for one in listening if one == parameters.address or one.is_unspecified]
        asked = [str(parameters.address)] if listening else []
    else:
        asked = [_asked_at(address) for address in listening]
    if not asked:
        where = f"port {parameters.port}" + (f" of {parameters.address}" if parameters.address else "")
        raise Refusal(f"nobody listens on TCP {where} of this host", "`ss -Hltn` shows who listens where")
    return sorted(set(asked))


def _refuse_elsewhere(address: str) -> None:
    """Nobody else's service is meant: only an own address can be bound (bind(2))."""
    try:
        can_bind(Place("udp", address, 0))
    except OSError as error:
        raise Refusal(
            f"{address} is no address of this host: {error.strerror}", "`ip address` shows its own"
        ) from error


def _asked_at(address: Address) -> str:
    return _LOOPBACK[address.version] if address.is_unspecified else str(address)
