"""The injector's only door: one unix socket, one agent at a time, typed orders."""

import asyncio
import logging
import os
import socket
import struct
from pathlib import Path

from brownout_protos.v1 import fault_pb2, injector_pb2

from brownout_agent import __version__
from brownout_agent.faults import catalogue
from brownout_agent.faults.contract import Effect, Host, Peer, Refusal
from brownout_agent.frames import BadFrame, frame, from_values, read_frame
from brownout_agent.injector.journal import JournalError, Mark
from brownout_agent.injector.policy import Policy
from brownout_agent.injector.reaper import Watchdog
from brownout_agent.injector.supervisor import FaultStatus, Order, Supervisor
from brownout_agent.kernel.processes import ancestors

log = logging.getLogger(__name__)

_STATES = {
    Mark.RECORDED: fault_pb2.RECORDED,
    Mark.HELD: fault_pb2.RECORDED,
    Mark.ACTIVE: fault_pb2.ACTIVE,
    Mark.UNDOING: fault_pb2.UNDOING,
    Mark.CLEAN: fault_pb2.CLEAN,
    Mark.RESIDUE: fault_pb2.RESIDUE,
}
_CREDENTIALS = struct.Struct("3i")
_REPLY = fault_pb2.OrderReply


class Door:
    """Serves the socket; everything it is asked goes to the supervisor."""

    def __init__(self, policy: Policy, allowed_uid: int) -> None:
        self._policy = policy
        self._allowed_uid = allowed_uid
        self._writer: asyncio.StreamWriter | None = None
        self._host = Host()
        self.supervisor: Supervisor | None = None
        self.watchdog: Watchdog | None = None

    async def open(self, path: Path) -> asyncio.Server:
        """Listen on `path`, replacing a socket that a dead injector left.

        Raises:
            OSError: the path cannot be used.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        server = await asyncio.start_unix_server(self._serve, path)
        path.chmod(0o600)
        if self._allowed_uid != os.geteuid():
            os.chown(path, self._allowed_uid, -1)
        return server

    def tell(self, status: FaultStatus) -> None:
        """Pass a change of a fault on to the agent, if one is there; it asks for all when it comes back."""
        if self._writer is not None and not self._writer.is_closing():
            self._send(injector_pb2.FromInjector(report=to_report(status)))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        pid, uid = _peer(writer)
        if uid not in {0, self._allowed_uid}:
            log.warning("refused pid %d of uid %d: the socket is for uid %d", pid, uid, self._allowed_uid)
            writer.close()
            return
        if self._writer is not None:
            self._writer.close()  # the newest agent wins: the older one's link may be half dead
        self._writer = writer
        try:
            while (message := await read_frame(reader, injector_pb2.ToInjector)) is not None:
                await self._answer(message, pid)
                await writer.drain()
        except (BadFrame, ConnectionError) as error:
            log.warning("agent pid %d: %s", pid, error)
        finally:
            if self._writer is writer:
                self._writer = None
            writer.close()

    async def _answer(self, message: injector_pb2.ToInjector, agent_pid: int) -> None:
        assert self.supervisor is not None
        match message.WhichOneof("body"):
            case "attach":
                self._host = self._host_for(message.attach, agent_pid)
                attached = injector_pb2.Attached(injector_version=__version__, policy=self._policy.why)
                self._send(injector_pb2.FromInjector(attached=attached))
            case "inject":
                self._send(injector_pb2.FromInjector(reply=await self._inject(message.inject)))
            case "stop":
                self._send(injector_pb2.FromInjector(reply=self._stop(message.stop)))
            case "renew":
                self.supervisor.renew()
            case "inspect":
                self._send(injector_pb2.FromInjector(inspection=self._inspect()))
            case _:
                raise BadFrame("an empty message")

    async def _inject(self, inject: fault_pb2.Inject) -> fault_pb2.OrderReply:
        assert self.supervisor is not None
        order = Order(
            fault_id=inject.fault_id,
            run_id=inject.run_id,
            environment=inject.environment,
            kind=inject.kind,
            parameters=from_values(inject.parameters),
            duration_s=inject.duration_ms / 1_000,
            lease_s=inject.lease_ms / 1_000,
        )
        try:
            await self.supervisor.inject(order, self._host)
        except Refusal as refusal:
            return _REPLY(fault_id=order.fault_id, outcome=_REPLY.REFUSED, reason=refusal.reason, remedy=refusal.remedy)
        return _REPLY(fault_id=order.fault_id, outcome=_REPLY.ACCEPTED)

    def _stop(self, stop: fault_pb2.Stop) -> fault_pb2.OrderReply:
        assert self.supervisor is not None
        try:
            self.supervisor.stop(stop.fault_id, stop.reason)
        except JournalError as error:
            return _REPLY(fault_id=stop.fault_id, outcome=_REPLY.INDEFINITE, reason=str(error))
        return _REPLY(fault_id=stop.fault_id, outcome=_REPLY.ACCEPTED)

    def _inspect(self) -> injector_pb2.Inspection:
        assert self.supervisor is not None
        return injector_pb2.Inspection(
            capabilities=capabilities(self._host),
            faults=[to_report(status) for status in self.supervisor.statuses()],
            policy=self._policy.why,
            environment=self._policy.environment,
            policy_refuses_all=self._policy.file is None,
        )

    def _host_for(self, attach: injector_pb2.Attach, agent_pid: int) -> Host:
        peers = tuple(Peer(peer.address, peer.port) for peer in attach.control_peers)
        ours = {os.getpid(), agent_pid, *ancestors(os.getpid()), *ancestors(agent_pid)}
        if self.watchdog is not None:
            ours.add(self.watchdog.pid)
        return self._policy.host(peers, frozenset(ours))

    def _send(self, message: injector_pb2.FromInjector) -> None:
        if self._writer is not None:
            self._writer.write(frame(message))


def capabilities(host: Host) -> list[fault_pb2.Capability]:
    """What this host can do, fault by fault, with reasons where it cannot."""
    found = []
    for kind, fault in catalogue().items():
        able = fault.detect(host)
        found.append(fault_pb2.Capability(kind=kind, able=able.able, reason=able.reason, remedy=able.remedy))
    return found


def to_report(status: FaultStatus) -> fault_pb2.FaultReport:
    """A fault's status as it crosses the wire."""
    return fault_pb2.FaultReport(
        fault_id=status.fault_id,
        kind=status.kind,
        state=_STATES[status.state],
        at_boottime_ns=status.at_boottime_ns,
        end_cause=fault_pb2.EndCause.Value(status.cause or "END_CAUSE_UNSPECIFIED"),
        message=status.message,
        residue=status.residue,
        effect=None if status.effect is None else _to_effect(status.effect),
    )


def _to_effect(effect: Effect) -> fault_pb2.Effect:
    return fault_pb2.Effect(
        asked=effect.asked,
        achieved=effect.achieved or 0.0,
        measured=effect.achieved is not None,
        unit=effect.unit,
        proved=effect.proved,
        explanation=effect.explanation,
        samples=effect.samples,
        lowest=effect.lowest or 0.0,
        highest=effect.highest or 0.0,
    )


def _peer(writer: asyncio.StreamWriter) -> tuple[int, int]:
    raw = writer.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, _ = _CREDENTIALS.unpack(raw)
    return pid, uid
