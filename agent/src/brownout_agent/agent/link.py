"""The agent's end of the unix socket to the injector. It reconnects for ever; orders in flight become indefinite."""

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

from brownout_protos.v1 import fault_pb2, injector_pb2

from brownout_agent import __version__
from brownout_agent.frames import BadFrame, frame, read_frame

RETRY_EVERY_S = 0.5

log = logging.getLogger(__name__)


class InjectorLink:
    """One connection to the injector, for as long as the agent lives."""

    def __init__(self, path: Path, on_message: Callable[[injector_pb2.FromInjector], None], agent_id: str) -> None:
        """Stay connected to the socket at `path`; the injector refuses what is not for `agent_id`."""
        self._path = path
        self._agent_id = agent_id
        self._on_message = on_message
        self._writer: asyncio.StreamWriter | None = None
        self._waiting: set[str] = set()
        self._halting: set[str] = set()
        self._peers: tuple[tuple[str, int], ...] = ()
        self.trouble = "not connected yet"
        self.on_change: Callable[[], None] = lambda: None

    @property
    def attached(self) -> bool:
        """Whether orders can be passed on now."""
        return self._writer is not None and not self._writer.is_closing()

    def exempt(self, peers: tuple[tuple[str, int], ...]) -> None:
        """Name the control connections (address, port) that no fault may cut."""
        self._peers = peers
        self._attach()

    def inject(self, order: fault_pb2.Inject) -> bool:
        """Pass an order on; False when there is nobody to pass it to, and then nothing has happened."""
        if not self.attached:
            return False
        self._waiting.add(order.fault_id)
        self._send(injector_pb2.ToInjector(inject=order))
        return True

    def stop(self, order: fault_pb2.Stop) -> bool:
        """Pass a stop on; False when there is nobody to pass it to."""
        if not self.attached:
            return False
        self._waiting.add(order.fault_id)
        self._send(injector_pb2.ToInjector(stop=order))
        return True

    def fingerprint(self, order: fault_pb2.TakeFingerprint) -> bool:
        """Ask for a fingerprint of the host; False when there is nobody to ask."""
        if self.attached:
            self._send(injector_pb2.ToInjector(fingerprint=order))
        return self.attached

    def halt(self, order: fault_pb2.Halt) -> bool:
        """Pass a halt on; False when there is nobody to pass it to."""
        if not self.attached:
            return False
        self._halting.add(order.halt_id)
        self._send(injector_pb2.ToInjector(halt=order))
        return True

    def renew(self, order: fault_pb2.RenewLease) -> None:
        """Pass on that the controller lives."""
        if self.attached:
            self._send(injector_pb2.ToInjector(renew=order))

    def confirm(self, fault_id: str) -> None:
        """Pass on that the controller answered while this fault was in effect."""
        if self.attached:
            alive = injector_pb2.ControlAlive(fault_id=fault_id)
            self._send(injector_pb2.ToInjector(control_alive=alive))

    def inspect(self) -> None:
        """Ask for capabilities and for every fault; the answer comes as a message."""
        if self.attached:
            self._send(injector_pb2.ToInjector(inspect=injector_pb2.Inspect()))

    async def run(self) -> None:
        """Keep connected until cancelled."""
        while True:
            try:
                reader, self._writer = await asyncio.open_unix_connection(self._path)
            except OSError as error:
                self.trouble = f"the injector does not answer on {self._path}: {error.strerror or error}"
                await asyncio.sleep(RETRY_EVERY_S)
                continue
            self._attach()
            self.inspect()
            try:
                await self._read(reader)
            finally:
                self._lost()
            await asyncio.sleep(RETRY_EVERY_S)

    async def _read(self, reader: asyncio.StreamReader) -> None:
        try:
            while (message := await read_frame(reader, injector_pb2.FromInjector)) is not None:
                if message.WhichOneof("body") == "attached":
                    self.trouble = ""
                    self.on_change()
                elif message.WhichOneof("body") == "reply":
                    self._waiting.discard(message.reply.fault_id)
                elif message.WhichOneof("body") == "halted":
                    self._halting.discard(message.halted.halt_id)
                self._on_message(message)
        except (BadFrame, OSError) as error:
            log.warning("injector link: %s", error)

    def _lost(self) -> None:
        self.trouble = "the injector closed the connection"
        if self._writer is not None:
            self._writer.close()
        self._writer = None
        outcome = fault_pb2.OrderReply.INDEFINITE
        for fault_id in self._waiting:
            reply = fault_pb2.OrderReply(fault_id=fault_id, outcome=outcome, reason=self.trouble)
            self._on_message(injector_pb2.FromInjector(reply=reply))
        self._waiting.clear()
        for halt_id in self._halting:
            halted = fault_pb2.Halted(halt_id=halt_id, message=f"{self.trouble} before it said that all is clean")
            self._on_message(injector_pb2.FromInjector(halted=halted))
        self._halting.clear()
        self.on_change()

    def _attach(self) -> None:
        if self.attached:
            peers = [injector_pb2.Peer(address=address, port=port) for address, port in self._peers]
            attach = injector_pb2.Attach(agent_version=__version__, control_peers=peers, agent_id=self._agent_id)
            self._send(injector_pb2.ToInjector(attach=attach))

    def _send(self, message: injector_pb2.ToInjector) -> None:
        assert self._writer is not None
        self._writer.write(frame(message))
