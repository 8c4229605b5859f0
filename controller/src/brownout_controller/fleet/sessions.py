"""One agent as the controller sees it, and all of them together.

A session is a stream that may end at any time; a `HostState` stays. What a host says is passed on as an `Arrival` to
whoever listens: a run's engine, a command that waits for hosts.
"""

import asyncio
import random
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

import grpc
from brownout_protos.v1 import fault_pb2, fleet_pb2

from brownout_controller.fleet.authority import Peer
from brownout_controller.fleet.clocks import ClockEstimate, Exchange, measure
from brownout_controller.fleet.limits import HEARTBEAT_MS

LEASE_MS = 10_000
RENEW_EVERY_MS = HEARTBEAT_MS
_CLOCK_BURST = 8
_CLOCK_BURST_GAP_S = 0.03
_CLOCK_EVERY_S = 2.0
_OUTGOING_MAX = 10_000
_ORDERS_KEPT = 100_000


@dataclass(slots=True)
class HostState:
    """A host of the fleet, connected or not."""

    agent_id: str
    name: str
    labels: dict[str, str]
    hello: fleet_pb2.Hello
    clock: ClockEstimate = field(default_factory=ClockEstimate)
    session: "Session | None" = None

    @property
    def connected(self) -> bool:
        """Whether a stream stands now."""
        return self.session is not None

    def note(self, message: fleet_pb2.AgentMessage) -> None:
        """Keep what a message says of the host itself: an injector may come, go, and come back with another policy, and
        a fault that was on when the host came may end."""
        if message.HasField("hello") and message.hello.host == self.name:
            self.hello = message.hello
        elif message.HasField("lease"):
            self.hello.injector_attached = message.lease.injector_attached
        elif message.HasField("addresses"):
            del self.hello.addresses[:]
            self.hello.addresses.extend(message.addresses.addresses)
        elif message.HasField("report"):
            for fault in self.hello.faults:
                if fault.fault_id == message.report.fault_id:
                    fault.CopyFrom(message.report)

    @property
    def able(self) -> dict[str, fault_pb2.Capability]:
        """What the host said it can do, by kind of fault."""
        return {capability.kind: capability for capability in self.hello.capabilities}


@dataclass(frozen=True, slots=True)
class Arrival:
    """Something that a host said or did. `at_ns` is our monotonic clock; exactly one of the rest is set."""

    host: HostState
    at_ns: int
    up: bool = False
    lost: bool = False
    message: fleet_pb2.AgentMessage | None = None


class Session:
    """One stream. Everything sent goes through one queue, for a stream has one writer."""

    def __init__(self, peer: Peer, note: Callable[[str], None] = lambda _: None, epoch: int = 0) -> None:
        """Begin one for an agent; `note` is told the id of every order that is sent."""
        self.peer = peer
        self.epoch = epoch
        """With which this controller owns the host; every order of this stream carries it."""
        self.number = random.getrandbits(62)
        """Every order of this stream carries it; a replayed one carries another."""
        self.taken = False
        """Whether another controller took the host."""
        self.refusal = ""
        """Why the agent was cut off; empty while it may speak."""
        self.refusal_code = grpc.StatusCode.PERMISSION_DENIED
        self._on_cut: Callable[[], None] = lambda: None
        self._note = note
        self._challenged: dict[int, asyncio.Future[bool]] = {}
        self._queue: deque[fleet_pb2.ControllerMessage] = deque()
        self._filled = asyncio.Event()
        self._asked: dict[int, int] = {}
        # An answer to an earlier session, delivered late, must answer nothing here.
        self._number = random.getrandbits(62)
        self._closed = False

    def send(self, message: fleet_pb2.ControllerMessage) -> None:
        """Queue a message; a stop goes before everything else. A session whose agent reads nothing is closed."""
        if order_id := ordered_id(message):
            self._note(order_id)
        if message.WhichOneof("body") in {"inject", "stop"}:
            message = self._addressed(message)
        if message.WhichOneof("body") in {"stop", "pong"}:
            self._queue.appendleft(message)
        elif len(self._queue) < _OUTGOING_MAX:
            self._queue.append(message)
        else:
            self.close()
        self._filled.set()

    def _addressed(self, message: fleet_pb2.ControllerMessage) -> fleet_pb2.ControllerMessage:
        """An order as it is for this agent on this stream, and for no other."""
        addressed = fleet_pb2.ControllerMessage()
        addressed.CopyFrom(message)
        if addressed.HasField("stop"):
            addressed.stop.epoch = self.epoch
        else:
            order = addressed.inject
            order.agent_id, order.session, order.epoch = self.peer.agent_id, self.number, self.epoch
        return addressed

    def close(self) -> None:
        """Let the stream end once everything queued is written."""
        self._closed = True
        self._filled.set()
        for challenged in self._challenged.values():
            if not challenged.done():
                challenged.set_result(False)

    def cut(self, refusal: str, code: grpc.StatusCode = grpc.StatusCode.PERMISSION_DENIED) -> None:
        """End the stream now; nothing more is written, and nothing that arrives is taken."""
        if not self.refusal:
            self.refusal, self.refusal_code = refusal, code
            self._queue.clear()
            self.close()
            self._on_cut()

    def when_cut(self, act: Callable[[], None]) -> None:
        """Have something done when it is cut, for a writer that is stuck since the agent reads nothing."""
        self._on_cut = act

    @property
    def closed(self) -> bool:
        """Whether it ends."""
        return self._closed

    async def outgoing(self) -> AsyncIterator[fleet_pb2.ControllerMessage]:
        """What to write, until the session is closed. A clock question is stamped as late as can be."""
        while True:
            while not self._queue:
                if self._closed:
                    return
                self._filled.clear()
                await self._filled.wait()
            message = self._queue.popleft()
            if message.WhichOneof("body") == "clock":
                self._asked[message.clock.number] = time.monotonic_ns()
            yield message

    def answer(self, ping: fleet_pb2.Ping) -> None:
        """Say that this stream carries both ways: an agent asks while a fault on its host is on trial."""
        self.send(fleet_pb2.ControllerMessage(pong=fleet_pb2.Pong(number=ping.number)))

    def ask_clock(self) -> None:
        """Ask the agent for its clock."""
        self._number += 1
        self.send(fleet_pb2.ControllerMessage(clock=fleet_pb2.ClockAsk(number=self._number)))

    async def answers(self, within_s: float) -> bool:
        """Whether a living agent still reads and answers on this stream."""
        if self._closed:
            return False
        answered: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self.ask_clock()
        self._challenged[self._number] = answered
        done, _ = await asyncio.wait((answered,), timeout=within_s)
        return bool(done) and answered.result()

    def clock_answer(self, reply: fleet_pb2.ClockReply, now_ns: int) -> Exchange | None:
        """What an answer says of the agent's clock; None for an answer to nothing that we asked."""
        asked_ns = self._asked.pop(reply.number, None)
        challenged = self._challenged.get(reply.number)
        if challenged is not None and not challenged.done():
            challenged.set_result(True)
        if asked_ns is None:
            return None
        return measure(asked_ns, reply.received_boottime_ns, reply.sent_boottime_ns, now_ns)

    async def tend(self) -> None:
        """Renew leases and measure the clock until cancelled."""
        for _ in range(_CLOCK_BURST):
            self.ask_clock()
            await asyncio.sleep(_CLOCK_BURST_GAP_S)
        asked_s = time.monotonic()
        while True:
            renewal = fault_pb2.RenewLease(epoch=self.epoch)
            self.send(fleet_pb2.ControllerMessage(renew=renewal))
            if time.monotonic() - asked_s >= _CLOCK_EVERY_S:
                self.ask_clock()
                asked_s = time.monotonic()
            await asyncio.sleep(RENEW_EVERY_MS / 1_000)


class Fleet:
    """Every host that has been here, by name."""

    def __init__(self) -> None:
        self.hosts: dict[str, HostState] = {}
        self.turned_away: dict[str, str] = {}
        """Who could not come in and why, by the name that it gave."""
        self.ending = asyncio.Event()
        """Set once this controller ends: no session begins any more."""
        self._listeners: list[Callable[[Arrival], None]] = []
        self._ordered: dict[str, str] = {}

    def listen(self, listener: Callable[[Arrival], None]) -> Callable[[], None]:
        """Hear of every arrival from now on; call what is returned to stop."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    def arrive(self, arrival: Arrival) -> None:
        """Pass an arrival on to everybody who listens."""
        for listener in list(self._listeners):
            listener(arrival)

    def order_sent(self, order_id: str, agent_id: str) -> None:
        """Note whose order this is; of very many, the oldest are forgotten."""
        self._ordered.pop(order_id, None)
        self._ordered[order_id] = agent_id
        while len(self._ordered) > _ORDERS_KEPT:
            del self._ordered[next(iter(self._ordered))]

    def ordered_to(self, order_id: str) -> str | None:
        """The agent that an order went to; None where this controller sent none of that id."""
        return self._ordered.get(order_id)

    def sessions_of(self, agent_id: str) -> list[Session]:
        """The streams that stand for one agent, under whatever name it came."""
        return [host.session for host in self.connected if host.session and host.session.peer.agent_id == agent_id]

    def say_bye(self, reason: str) -> None:
        """End every stream in good order; the agents come back when a controller is there again."""
        self.ending.set()
        for host in self.connected:
            assert host.session is not None
            host.session.send(fleet_pb2.ControllerMessage(bye=fleet_pb2.Bye(reason=reason)))
            host.session.close()

    @property
    def connected(self) -> list[HostState]:
        """The hosts with a stream, by name."""
        return [host for _, host in sorted(self.hosts.items()) if host.connected]

    async def wait_for(self, count: int, timeout_s: float, *, with_injector: bool = False) -> bool:
        """Wait until so many hosts are connected and their clocks measured; False when time is up.

        `with_injector` counts only hosts that can inject: one that only probes needs no injector.
        """
        changed = asyncio.Event()
        forget = self.listen(lambda _: changed.set())
        try:
            async with asyncio.timeout(timeout_s):
                while sum(self._is_ready(host, with_injector) for host in self.connected) < count:
                    changed.clear()
                    await changed.wait()
        except TimeoutError:
            return False
        finally:
            forget()
        return True

    @staticmethod
    def _is_ready(host: HostState, with_injector: bool) -> bool:
        measured = host.clock.best(time.monotonic_ns()) is not None
        can_inject = bool(host.able) and host.hello.injector_attached
        return measured and (can_inject or not with_injector)


def ordered_id(message: fleet_pb2.ControllerMessage) -> str:
    """The id of what a message orders and an agent will speak of by that id; empty where it orders nothing such."""
    match message.WhichOneof("body"):
        case "inject":
            return message.inject.fault_id
        case "observe":
            return message.observe.observer_id
        case "fingerprint":
            return message.fingerprint.fingerprint_id
    return ""
