"""What others have changed: who was turned out, and which authorities count. Looked at twice a second."""

import asyncio
import logging
import time
from collections.abc import Callable

from brownout_controller.audit.entry import NOBODY, AuditEntry, Auditor, Outcome
from brownout_controller.fleet.authority import Authority, AuthorityError
from brownout_controller.fleet.knocks import OVERDUE_S, Knocks
from brownout_controller.fleet.limits import SWEEP_S
from brownout_controller.fleet.sessions import Fleet
from brownout_controller.store.database import StoreError
from brownout_controller.store.identities import Identities

_LOOK_BACK_NS = 10 * 60 * 10**9
"""Another controller's clock may be behind ours, and the database may have been away. Whoever was turned out before
that has no stream any more, and gets none: at its beginning the whole list counts."""

log = logging.getLogger(__name__)


class Sweeper:
    """Carries out here what another process decided: `brownout hosts revoke`, `brownout ca rotate`, a controller."""

    def __init__(
        self,
        fleet: Fleet,
        authority: Authority,
        identities: Identities,
        auditor: Auditor,
        knocks: Knocks,
        welcome_again: Callable[[], None],
    ) -> None:
        self._fleet = fleet
        self._authority = authority
        self._identities = identities
        self._auditor = auditor
        self._knocks = knocks
        self._welcome_again = welcome_again

    async def run(self) -> None:
        """Sweep until cancelled. A database that is away turns nobody out and nobody away who is here."""
        trouble = ""
        while True:
            try:
                await self._sweep()
                trouble = ""
            except (StoreError, AuthorityError, OSError, ValueError, KeyError) as error:
                if str(error) != trouble:
                    trouble = str(error)
                    log.warning("the deny list and the authority cannot be read, and will be read again: %s", error)
            await asyncio.sleep(SWEEP_S)

    async def _sweep(self) -> None:
        withdrawn = await asyncio.to_thread(self._identities.withdrawn_since, time.time_ns() - _LOOK_BACK_NS)
        for host in self._fleet.connected:
            if host.session is not None and (refusal := withdrawn.get(host.session.peer.agent_id)):
                host.session.cut(refusal)
        if await asyncio.to_thread(self._authority.refresh):
            log.warning("the authority is in phase %s now", self._authority.rotation.phase)
            self._welcome_again()
        if count := self._knocks.overdue():
            reason = (
                f"{count} connections of the last {OVERDUE_S:g} s had no certificate of this cluster, or said nothing"
            )
            detail = {"count": str(count)}
            entry = AuditEntry(NOBODY, "agent.connect", "fleet", Outcome.REFUSED, reason=reason, detail=detail)
            await asyncio.to_thread(self._auditor.record, entry)
