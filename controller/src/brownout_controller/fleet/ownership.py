"""Which hosts are this controller's, where several share a database: taken when they come, shown to the others, and let
go when another one takes them.

Safety does not rest on this: a host refuses whatever carries an older epoch than it has seen. This says how soon a
controller that lost a host knows of it.
"""

import asyncio
import logging
from collections.abc import Callable

import grpc
from brownout_protos.v1 import fault_pb2, fleet_pb2

from brownout_controller.audit.entry import AuditEntry, Auditor, Outcome
from brownout_controller.fleet.admission import TWINS, actor_of
from brownout_controller.fleet.limits import CHALLENGE_S
from brownout_controller.fleet.sessions import Fleet, HostState, Session
from brownout_controller.store.database import StoreError
from brownout_controller.store.identities import Identities
from brownout_controller.store.owners import Owners

LOOK_EVERY_S = 1.0
_TAKEN = "another controller owns this host now"
_STRAY = "another controller ordered it, and does not own this host any more"

log = logging.getLogger(__name__)


class Ownership:
    """One controller's hosts, by their agents."""

    def __init__(
        self,
        fleet: Fleet,
        owners: Owners,
        identities: Identities,
        auditor: Auditor,
        controller_id: str,
        describe: Callable[[HostState], str],
    ) -> None:
        """`describe` gives a host as the other controllers are to show it."""
        self.address = ""
        """Where agents reach this controller, HOST:PORT; empty where it tells none."""
        self.controllers: tuple[str, ...] = ()
        """Where agents reach all that live, this one first."""
        self._fleet = fleet
        self._owners = owners
        self._identities = identities
        self._auditor = auditor
        self._controller_id = controller_id
        self._describe = describe
        self._shown: dict[str, str] = {}
        self._leaving: set[asyncio.Task[None]] = set()

    async def take(self, agent_id: str, seen_epoch: int) -> int:
        """Own a host from now on, which says up to where it obeyed; the epoch that its orders must carry.

        Raises:
            StoreError: it could not be taken.
        """
        epoch = await asyncio.to_thread(self._owners.take, agent_id, self._controller_id, seen_epoch)
        self._shown.pop(agent_id, None)  # what stood there went when another controller had the host
        return epoch

    async def run(self, welcome_again: Callable[[], None]) -> None:
        """Keep fleet and database in step until cancelled; `welcome_again` tells every agent of other controllers."""
        trouble = ""
        try:
            while True:
                try:
                    await self._let_go_of_taken()
                    await self._show()
                    if await self._learn_controllers():
                        welcome_again()
                    trouble = ""
                except StoreError as error:
                    if str(error) != trouble:
                        log.warning("whose each host is cannot be read now: %s", error)
                    trouble = str(error)
                await asyncio.sleep(LOOK_EVERY_S)
        finally:
            for task in self._leaving:
                task.cancel()

    async def _let_go_of_taken(self) -> None:
        standing = [host.session for host in self._fleet.connected if host.session is not None]  # before the look
        owned = await asyncio.to_thread(self._owners.owned_by, self._controller_id)
        for session in standing:
            if not session.closed and not session.taken and owned.get(session.peer.agent_id) != session.epoch:
                session.taken = True
                task = asyncio.create_task(self._let_go(session))
                self._leaving.add(task)
                task.add_done_callback(self._leaving.discard)

    async def _let_go(self, session: Session) -> None:
        """An agent that went to another controller has left this stream. If somebody still answers on it, there are
        two with one certificate."""
        agent_id = session.peer.agent_id
        twins = await session.answers(CHALLENGE_S)
        if not twins:
            session.cut(_TAKEN, grpc.StatusCode.ABORTED)
            return
        session.cut(f"this agent is locked: {TWINS}")
        entry = AuditEntry(actor_of(agent_id), "agent.lock", actor_of(agent_id), Outcome.ALLOWED, reason=TWINS)
        try:
            await asyncio.to_thread(self._identities.lock, agent_id, TWINS)
            await asyncio.to_thread(self._auditor.record, entry)
        except StoreError as error:
            log.error("agent %s is used by two, and could not be locked: %s", agent_id, error)

    async def _show(self) -> None:
        here = {host.agent_id: self._describe(host) for host in self._fleet.connected}
        gone = self._shown.keys() - here.keys()
        changes: dict[str, str | None] = dict.fromkeys(gone)
        changes |= {agent_id: text for agent_id, text in here.items() if self._shown.get(agent_id) != text}
        if not changes:
            return
        before, self._shown = self._shown, here  # at once, so that a host that is taken meanwhile is shown again
        try:
            await asyncio.to_thread(self._owners.describe, self._controller_id, changes)
        except StoreError:
            self._shown = {one: text for one, text in before.items() if one in self._shown or one in gone}
            raise

    async def _learn_controllers(self) -> bool:
        """Whether there are others than before."""
        living = await asyncio.to_thread(self._owners.addresses)
        own = (self.address,) if self.address else ()
        controllers = tuple(dict.fromkeys((*own, *living)))
        changed = controllers != self.controllers
        self.controllers = controllers
        return changed


def stop_strays(host: HostState, session: Session, ordered_here: Callable[[str], bool]) -> None:
    """Stop what a host came with and this controller never ordered: whoever did cannot reach it any more."""
    for fault in host.hello.faults:
        if fault.state in {fault_pb2.RECORDED, fault_pb2.ACTIVE} and not ordered_here(fault.fault_id):
            log.warning("fault %s of %s is stopped: %s", fault.fault_id, host.name, _STRAY)
            session.send(fleet_pb2.ControllerMessage(stop=fault_pb2.Stop(fault_id=fault.fault_id, reason=_STRAY)))
