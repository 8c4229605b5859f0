"""The injector's only door: one unix socket, one agent at a time, typed orders."""

import asyncio
import errno
import logging
import os
import socket
import struct
from functools import partial
from pathlib import Path

from brownout_protos.v1 import fault_pb2, injector_pb2

from brownout_agent import __version__
from brownout_agent.faults import catalogue
from brownout_agent.faults.contract import Capability, Effect, Host, Peer, Refusal
from brownout_agent.fingerprint import nothing_read, to_wire
from brownout_agent.frames import FRAME_BYTES_MAX, BadFrame, frame, from_values, read_frame
from brownout_agent.injector.admission import Order
from brownout_agent.injector.fingerprint import take_fingerprint
from brownout_agent.injector.journal import JournalError, Mark
from brownout_agent.injector.policy import Policy
from brownout_agent.injector.reaper import Watchdog
from brownout_agent.injector.supervisor import FaultStatus, Supervisor
from brownout_agent.injector.threads import in_thread
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
_ORDERS_AT_ONCE = 32
_LOOKS_AT_ONCE = 4
_UNREAD_BYTES_MAX = 2**20
_MESSAGE_CHARS_MAX = 2_000
_RESIDUE_TOLD = 20
_REPLY = fault_pb2.OrderReply


class Door:
    """Serves the socket; everything it is asked goes to the supervisor."""

    def __init__(self, policy: Policy, allowed_uid: int) -> None:
        self._policy = policy
        self._allowed_uid = allowed_uid
        self._writer: asyncio.StreamWriter | None = None
        self._peers: tuple[Peer, ...] = ()
        self._orders: set[asyncio.Task[None]] = set()
        self._looks: set[asyncio.Task[None]] = set()
        self.supervisor: Supervisor | None = None
        self.watchdog: Watchdog | None = None

    async def open(self, path: Path) -> asyncio.Server:
        """Listen on `path`, replacing a socket that a dead injector left.

        Raises:
            OSError: the path cannot be used, or somebody else uses it.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_dead_socket(path)
        server = await asyncio.start_unix_server(self._serve, path)
        path.chmod(0o600)
        if self._allowed_uid != os.geteuid():
            os.chown(path, self._allowed_uid, -1)
        return server

    def tell(self, status: FaultStatus) -> None:
        """Pass a change of a fault on to the agent, if one is there; it asks for all when it comes back."""
        if self._writer is not None:
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
        self._peers = ()
        try:
            while (message := await read_frame(reader, injector_pb2.ToInjector)) is not None:
                if self._writer is not writer:
                    break
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
                self._peers = tuple(Peer(peer.address, peer.port) for peer in message.attach.control_peers)
                attached = injector_pb2.Attached(injector_version=__version__, policy=self._policy.why)
                self._send(injector_pb2.FromInjector(attached=attached))
            case "inject":
                self._take_on(message.inject, agent_pid)
            case "stop":
                self._send(injector_pb2.FromInjector(reply=self._stop(message.stop)))
            case "renew":
                self.supervisor.renew()
            case "fingerprint":
                self._look(message.fingerprint)
            case "inspect":
                self._send(injector_pb2.FromInjector(inspection=await self._inspect(agent_pid)))
            case _:
                raise BadFrame("an empty message")

    def _take_on(self, inject: fault_pb2.Inject, agent_pid: int) -> None:
        """Beside the reading: a fault that looks at the host for long must not keep a stop or a renewal waiting."""
        if len(self._orders) >= _ORDERS_AT_ONCE:
            reason = f"{_ORDERS_AT_ONCE} orders are being looked at already"
            reply = _REPLY(fault_id=inject.fault_id, outcome=_REPLY.REFUSED, reason=reason)
            self._send(injector_pb2.FromInjector(reply=reply))
            return
        task = asyncio.create_task(self._reply_to(inject, self._host(agent_pid)))
        self._orders.add(task)
        task.add_done_callback(self._orders.discard)

    async def _reply_to(self, inject: fault_pb2.Inject, host: Host) -> None:
        try:
            self._send(injector_pb2.FromInjector(reply=await self._inject(inject, host)))
        except BaseException:
            if self._writer is not None:
                self._writer.close()  # whoever waits for the answer learns that there is none
            raise

    def _look(self, asked: fault_pb2.TakeFingerprint) -> None:
        """Beside the reading, and never many at a time: a file system that hangs keeps its thread for ever."""
        if len(self._looks) >= _LOOKS_AT_ONCE:
            fingerprint = nothing_read(f"{_LOOKS_AT_ONCE} looks at this host have not come back yet")
            self._send(injector_pb2.FromInjector(fingerprint=to_wire(fingerprint, asked.fingerprint_id)))
            return
        task = asyncio.create_task(self._tell_fingerprint(asked))
        self._looks.add(task)
        task.add_done_callback(self._looks.discard)

    async def _tell_fingerprint(self, asked: fault_pb2.TakeFingerprint) -> None:
        fingerprint = await asyncio.wrap_future(in_thread(partial(take_fingerprint, tuple(asked.folders))))
        self._send(injector_pb2.FromInjector(fingerprint=to_wire(fingerprint, asked.fingerprint_id)))

    async def _inject(self, inject: fault_pb2.Inject, host: Host) -> fault_pb2.OrderReply:
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
            await self.supervisor.inject(order, host)
        except Refusal as refusal:
            return _refused(order.fault_id, refusal)
        return _REPLY(fault_id=order.fault_id, outcome=_REPLY.ACCEPTED)

    def _stop(self, stop: fault_pb2.Stop) -> fault_pb2.OrderReply:
        assert self.supervisor is not None
        try:
            self.supervisor.stop(stop.fault_id, stop.reason)
        except Refusal as refusal:
            return _refused(stop.fault_id, refusal)
        except JournalError as error:
            return _REPLY(fault_id=stop.fault_id, outcome=_REPLY.INDEFINITE, reason=str(error))
        return _REPLY(fault_id=stop.fault_id, outcome=_REPLY.ACCEPTED)

    async def _inspect(self, agent_pid: int) -> injector_pb2.Inspection:
        assert self.supervisor is not None
        able = await asyncio.wrap_future(in_thread(partial(capabilities, self._host(agent_pid))))
        inspection = injector_pb2.Inspection(
            capabilities=able,
            faults=[to_report(status) for status in self.supervisor.statuses()],
            policy=self._policy.why,
            environment=self._policy.environment,
            policy_refuses_all=self._policy.file is None,
        )
        while inspection.ByteSize() > FRAME_BYTES_MAX // 2 and len(inspection.faults) > 1:
            del inspection.faults[0]  # the one that was over first
        return inspection

    def _host(self, agent_pid: int) -> Host:
        ours = {os.getpid(), agent_pid, *ancestors(os.getpid()), *ancestors(agent_pid)}
        if self.watchdog is not None:
            ours.add(self.watchdog.pid)
        return self._policy.host(self._peers, frozenset(ours))

    def _send(self, message: injector_pb2.FromInjector) -> None:
        if self._writer is None or self._writer.is_closing():
            return
        if self._writer.transport.get_write_buffer_size() > _UNREAD_BYTES_MAX:
            log.warning("the agent reads nothing; closing its connection")
            self._writer.transport.abort()
            return
        self._writer.write(frame(message))


def capabilities(host: Host) -> list[fault_pb2.Capability]:
    """What this host can do, fault by fault, with reasons where it cannot. May block for some seconds."""
    found = []
    for kind, fault in catalogue().items():
        try:
            able = fault.detect(host)
        except Exception as error:
            log.exception("%s: detect failed", kind)
            able = Capability(False, f"{kind} has a mistake: {type(error).__name__}: {error}")
        found.append(fault_pb2.Capability(kind=kind, able=able.able, reason=able.reason, remedy=able.remedy))
    return found


def _remove_dead_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as asking:
        try:
            asking.connect(str(path))
        except FileNotFoundError:
            return
        except ConnectionRefusedError:
            if path.is_socket():  # a plain file refuses as well
                path.unlink()
                return
            raise FileExistsError(errno.EEXIST, "it is not a socket, and not ours to remove", str(path)) from None
    raise OSError(errno.EADDRINUSE, "another injector listens there", str(path))


def _refused(fault_id: str, refusal: Refusal) -> fault_pb2.OrderReply:
    reason, remedy = _told(refusal.reason), _told(refusal.remedy)
    return _REPLY(fault_id=fault_id, outcome=_REPLY.REFUSED, reason=reason, remedy=remedy)


def _told(text: str) -> str:
    """A text as a message can carry it: of bounded length, and without the surrogates of odd file names."""
    return text[:_MESSAGE_CHARS_MAX].encode(errors="replace").decode()


def to_report(status: FaultStatus) -> fault_pb2.FaultReport:
    """A fault's status as it crosses the wire."""
    return fault_pb2.FaultReport(
        fault_id=status.fault_id,
        kind=status.kind,
        state=_STATES[status.state],
        at_boottime_ns=status.at_boottime_ns,
        end_cause=fault_pb2.EndCause.Value(status.cause or "END_CAUSE_UNSPECIFIED"),
        message=_told(status.message),
        residue=[_told(line) for line in status.residue[:_RESIDUE_TOLD]],
        effect=None if status.effect is None else _to_effect(status.effect),
    )


def _to_effect(effect: Effect) -> fault_pb2.Effect:
    return fault_pb2.Effect(
        asked=effect.asked,
        achieved=effect.achieved or 0.0,
        measured=effect.achieved is not None,
        unit=effect.unit,
        proved=effect.proved,
        explanation=_told(effect.explanation),
        samples=effect.samples,
        lowest=effect.lowest or 0.0,
        highest=effect.highest or 0.0,
    )


def _peer(writer: asyncio.StreamWriter) -> tuple[int, int]:
    raw = writer.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, _ = _CREDENTIALS.unpack(raw)
    return pid, uid
