"""The injector's only door: one unix socket, one agent at a time, typed orders."""

import asyncio
import errno
import logging
import os
import pwd
import socket
import struct
from collections.abc import Coroutine
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from brownout_protos.v1 import fault_pb2, injector_pb2

from brownout_agent import __version__
from brownout_agent.faults import catalogue
from brownout_agent.faults.contract import Capability, Effect, Host, Peer, Refusal
from brownout_agent.fingerprint import nothing_read, to_wire
from brownout_agent.frames import FRAME_BYTES_MAX, BadFrame, frame, read_frame
from brownout_agent.injector.admission import Admission
from brownout_agent.injector.fingerprint import take_fingerprint
from brownout_agent.injector.journal import JournalError, Mark
from brownout_agent.injector.live import FaultStatus
from brownout_agent.injector.order import read_order
from brownout_agent.injector.own_copy import OwnCopy
from brownout_agent.injector.reaper import Watchdog
from brownout_agent.injector.stop_file import RELEASE
from brownout_agent.injector.supervisor import Supervisor
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
_REMAINING_TOLD = 500
_REPLY = fault_pb2.OrderReply


@dataclass(eq=False, slots=True)
class _Caller:
    """One connection. The agent is the one that attached last; anybody else who may connect may ask, stop and halt."""

    writer: asyncio.StreamWriter
    pid: int
    uid: int
    agent_id: str = ""
    control_peers: tuple[Peer, ...] = ()

    @property
    def name(self) -> str:
        """Who it says it is, in the own copy; the uid is the kernel's word."""
        return f"agent:{self.agent_id}" if self.agent_id else f"uid:{self.uid}"

    def send(self, message: injector_pb2.FromInjector) -> None:
        if self.writer.is_closing():
            return
        if self.writer.transport.get_write_buffer_size() > _UNREAD_BYTES_MAX:
            log.warning("pid %d reads nothing; closing its connection", self.pid)
            self.writer.transport.abort()
            return
        self.writer.write(frame(message))


class Door:
    """Serves the socket; everything it is asked goes to the supervisor."""

    def __init__(self, admission: Admission, own_copy: OwnCopy, allowed_uid: int) -> None:
        self._admission = admission
        self._own_copy = own_copy
        self._allowed_uid = allowed_uid
        self._agent: _Caller | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._looks = 0
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
        _let_in(path, self._allowed_uid)
        return server

    def tell(self, status: FaultStatus) -> None:
        """Keep a change of a fault, and tell the agent, if one is there; it asks for all when it comes back."""
        self._own_copy.tell(status)
        if self._agent is not None:
            self._agent.send(injector_pb2.FromInjector(report=to_report(status)))

    def tell_inspection(self) -> None:
        """This host was halted or released: keep that, and tell the agent anew what it can and may do."""
        halted = self._admission.halted
        self._own_copy.note("root", "host.halt", halted, "halted" if halted else "released")
        if self._agent is not None:
            self._start(self._send_inspection(self._agent))

    def ask_control(self, fault_id: str, within_ms: int) -> bool:
        """Have the agent prove that it reaches its controller while this fault is in effect; False if there is none."""
        if self._agent is None:
            return False
        trial = injector_pb2.ControlTrial(fault_id=fault_id, within_ms=within_ms)
        self._agent.send(injector_pb2.FromInjector(control_trial=trial))
        return True

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        pid, uid = _peer(writer)
        if uid not in {0, self._allowed_uid}:
            log.warning("refused pid %d of uid %d: the socket is for uid %d", pid, uid, self._allowed_uid)
            writer.close()
            return
        caller = _Caller(writer, pid, uid)
        try:
            while (message := await read_frame(reader, injector_pb2.ToInjector)) is not None:
                if writer.is_closing():
                    break
                await self._answer(message, caller)
                await writer.drain()
        except (BadFrame, ConnectionError) as error:
            log.warning("agent pid %d: %s", pid, error)
        finally:
            if self._agent is caller:
                self._agent = None
            writer.close()

    async def _answer(self, message: injector_pb2.ToInjector, caller: _Caller) -> None:
        assert self.supervisor is not None
        match message.WhichOneof("body"):
            case "attach":
                self._attach(message.attach, caller)
            case "inject":
                self._take_on(message.inject, caller)
            case "stop":
                caller.send(injector_pb2.FromInjector(reply=self._stop(message.stop, caller)))
            case "renew" | "control_alive":
                self._hear_of_controller(message, caller)
            case "inspect":
                await self._send_inspection(caller)
            case "fingerprint":
                self._look(message.fingerprint, caller)
            case "halt":
                caller.send(injector_pb2.FromInjector(halted=await self._halt(message.halt, caller)))
            case _:
                raise BadFrame("an empty message")

    def _attach(self, attach: injector_pb2.Attach, caller: _Caller) -> None:
        if self._agent not in {None, caller}:
            self._agent.writer.close()  # the newest agent wins: the older one's link may be half dead
        self._agent = caller
        caller.agent_id = attach.agent_id
        caller.control_peers = tuple(Peer(peer.address, peer.port) for peer in attach.control_peers)
        attached = injector_pb2.Attached(injector_version=__version__, policy=self._policy_in_force())
        caller.send(injector_pb2.FromInjector(attached=attached))

    def _hear_of_controller(self, message: injector_pb2.ToInjector, caller: _Caller) -> None:
        """That the controller lives: only the agent may say so."""
        assert self.supervisor is not None
        if self._agent is not caller:
            return
        if message.HasField("control_alive"):
            self.supervisor.confirm(message.control_alive.fault_id)
        elif self._admission.is_owner(message.renew.epoch):
            self.supervisor.renew()

    def _take_on(self, inject: fault_pb2.Inject, caller: _Caller) -> None:
        """Beside the reading: a fault that looks at the host for long must not keep a stop or a renewal waiting."""
        reason = ""
        if self._agent is not caller:
            reason = "orders are taken from an attached agent only"
        elif len(self._tasks) >= _ORDERS_AT_ONCE:
            reason = f"{_ORDERS_AT_ONCE} orders are being looked at already"
        if reason:
            caller.send(injector_pb2.FromInjector(reply=self._refuse(inject, caller, Refusal(reason))))
            return
        self._start(self._reply_to(inject, caller))

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _reply_to(self, inject: fault_pb2.Inject, caller: _Caller) -> None:
        try:
            caller.send(injector_pb2.FromInjector(reply=await self._inject(inject, caller)))
        except BaseException:
            caller.writer.close()  # whoever waits for the answer learns that there is none
            raise

    def _look(self, asked: fault_pb2.TakeFingerprint, caller: _Caller) -> None:
        """Beside the reading, and never many at a time: a file system that hangs keeps its thread for ever."""
        if self._looks < _LOOKS_AT_ONCE:
            self._looks += 1
            self._start(self._tell_fingerprint(asked, caller))
            return
        fingerprint = nothing_read(f"{_LOOKS_AT_ONCE} looks at this host have not come back yet")
        caller.send(injector_pb2.FromInjector(fingerprint=to_wire(fingerprint, asked.fingerprint_id)))

    async def _tell_fingerprint(self, asked: fault_pb2.TakeFingerprint, caller: _Caller) -> None:
        look = partial(take_fingerprint, tuple(asked.folders), self._admission.policy.may_look_at)
        try:
            fingerprint = await asyncio.wrap_future(in_thread(look))
        finally:
            self._looks -= 1
        caller.send(injector_pb2.FromInjector(fingerprint=to_wire(fingerprint, asked.fingerprint_id)))

    async def _inject(self, inject: fault_pb2.Inject, caller: _Caller) -> fault_pb2.OrderReply:
        assert self.supervisor is not None
        try:
            order, host = read_order(inject, caller.agent_id), self._host(caller, inject.kind)
        except OSError as error:
            return self._refuse(inject, caller, Refusal(f"this host could not be looked at: {error}"))
        except Refusal as refusal:
            return self._refuse(inject, caller, refusal)
        try:
            await self.supervisor.inject(order, host)
        except Refusal as refusal:
            return self._refuse(inject, caller, refusal)
        return _REPLY(fault_id=inject.fault_id, outcome=_REPLY.ACCEPTED)

    def _refuse(self, inject: fault_pb2.Inject, caller: _Caller, refusal: Refusal) -> fault_pb2.OrderReply:
        self._own_copy.note_cheap(caller.name, "fault.inject", inject.fault_id, "refused", refusal.reason)
        return _refused(inject.fault_id, refusal)

    def _stop(self, stop: fault_pb2.Stop, caller: _Caller) -> fault_pb2.OrderReply:
        assert self.supervisor is not None
        self._own_copy.note_cheap(caller.name, "fault.stop", stop.fault_id, "obeyed", stop.reason)
        try:
            self.supervisor.stop(stop.fault_id, stop.reason)
        except Refusal as refusal:
            return _refused(stop.fault_id, refusal)
        except JournalError as error:
            return _REPLY(fault_id=stop.fault_id, outcome=_REPLY.INDEFINITE, reason=str(error))
        return _REPLY(fault_id=stop.fault_id, outcome=_REPLY.ACCEPTED)

    async def _halt(self, halt: fault_pb2.Halt, caller: _Caller) -> fault_pb2.Halted:
        """From anybody, whatever its epoch. It holds up this connection alone: there is nothing left to do on it."""
        assert self.supervisor is not None
        self._own_copy.note_cheap(caller.name, "host.halt", "every fault", "obeyed", halt.reason)
        remaining = await self.supervisor.halt(f"halted: {_told(halt.reason)}")
        message = f"not verified gone: {', '.join(remaining)}" if remaining else ""
        return fault_pb2.Halted(
            halt_id=halt.halt_id, clean=not remaining, remaining=remaining[:_REMAINING_TOLD], message=_told(message)
        )

    async def _send_inspection(self, caller: _Caller) -> None:
        caller.send(injector_pb2.FromInjector(inspection=await self._inspect(caller)))

    async def _inspect(self, caller: _Caller) -> injector_pb2.Inspection:
        assert self.supervisor is not None
        able = await asyncio.wrap_future(in_thread(partial(capabilities, self._host(caller), self._admission.halted)))
        policy = self._admission.policy
        inspection = injector_pb2.Inspection(
            capabilities=able,
            faults=[to_report(status) for status in self.supervisor.statuses()],
            policy=self._policy_in_force(),
            environment=policy.environment,
            policy_refuses_all=policy.file is None,
        )
        while inspection.ByteSize() > FRAME_BYTES_MAX // 2 and len(inspection.faults) > 1:
            del inspection.faults[0]  # the one that was over first
        return inspection

    def _policy_in_force(self) -> str:
        halted = self._admission.halted
        return _told(f"HALTED by {halted}" if halted else self._admission.policy.why)

    def _host(self, caller: _Caller, kind: str = "") -> Host:
        ours = {os.getpid(), caller.pid, *ancestors(os.getpid()), *ancestors(caller.pid)}
        if self.watchdog is not None:
            ours.add(self.watchdog.pid)
        host = self._admission.policy.host(caller.control_peers, frozenset(ours), kind)
        return replace(host, exempt_uids=(caller.uid,) if caller.uid else ())


def capabilities(host: Host, halted: str = "") -> list[fault_pb2.Capability]:
    """What this host can do, fault by fault, with reasons where it cannot. May block for some seconds."""
    found = []
    for kind, fault in catalogue().items():
        if halted:
            found.append(fault_pb2.Capability(kind=kind, reason=f"this host is halted: {halted}", remedy=RELEASE))
            continue
        try:
            able = fault.detect(host)
        except Exception as error:
            log.exception("%s: detect failed", kind)
            able = Capability(False, f"{kind} has a mistake: {type(error).__name__}: {error}")
        found.append(fault_pb2.Capability(kind=kind, able=able.able, reason=able.reason, remedy=able.remedy))
    return found


def _let_in(path: Path, uid: int) -> None:
    """Let one user connect. By its group: to hand a file over to another user takes CAP_CHOWN, to hand it to a group
    of ours does not. Who connects is asked of the kernel as well (`_peer`)."""
    if uid == os.geteuid():
        path.chmod(0o600)
        return
    os.chown(path, -1, pwd.getpwuid(uid).pw_gid)
    path.chmod(0o660)


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
