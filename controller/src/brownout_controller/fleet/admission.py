"""Who may speak here, and what becomes of those who may not: they are refused, told why, and written into the audit."""

import asyncio
from collections import Counter
from typing import Any, NoReturn

import grpc

from brownout_controller.audit.entry import NOBODY, AuditEntry, Auditor, Outcome
from brownout_controller.fleet.authority import Authority, Peer
from brownout_controller.fleet.limits import STRIKES
from brownout_controller.store.database import StoreError
from brownout_controller.store.identities import Identities, IdentityRefused

Context = grpc.aio.ServicerContext[Any, Any]

TWINS = "two live agents use its certificate"
_STRANGER = "no certificate of an agent that was enrolled here; join again"


class Admission:
    """Identity comes from the TLS peer and from nowhere else."""

    def __init__(self, authority: Authority, identities: Identities, auditor: Auditor) -> None:
        self._authority = authority
        self._identities = identities
        self._auditor = auditor
        self._strikes: Counter[str] = Counter()

    async def peer(self, context: Context, action: str) -> Peer:
        """The agent at the other end, by its certificate; a call of anybody else ends here."""
        pem = next(iter(context.auth_context().get("x509_pem_cert") or ()), None)
        peer = self._authority.peer_of(pem) if pem else None
        if peer is None:
            await self.refuse(context, action, NOBODY, _STRANGER)
        return peer

    async def admitted(self, context: Context, action: str) -> Peer:
        """The same, and it is enrolled, not turned out, and the only one with its certificate."""
        peer = await self.peer(context, action)
        try:
            await asyncio.to_thread(self._identities.admit, peer.agent_id, peer.serial)
        except IdentityRefused as error:
            await self.refuse(context, action, actor_of(peer.agent_id), str(error))
        except StoreError as error:
            await context.abort(grpc.StatusCode.UNAVAILABLE, str(error))
        return peer

    async def named(self, context: Context, action: str, peer: Peer, host: str) -> None:
        """An agent is the host as which it came first, and no other: who has its key must not be given the orders of
        another host, nor tell what became of them, while that one is away or at another controller."""
        try:
            first = await asyncio.to_thread(self._identities.host_of, peer.agent_id)
        except StoreError as error:
            await context.abort(grpc.StatusCode.UNAVAILABLE, str(error))
        if first not in {None, host}:
            reason = f"this agent is host `{first}`, and not `{host}`; next: join again with the other --name"
            await self.strike(context, peer.agent_id)
            await self.refuse(context, action, actor_of(peer.agent_id), reason)

    async def refuse(
        self,
        context: Context,
        action: str,
        actor: str,
        reason: str,
        code: grpc.StatusCode = grpc.StatusCode.PERMISSION_DENIED,
    ) -> NoReturn:
        """End a call and say so in the audit. A refusal stands even where it cannot be written."""
        try:
            await self.audit(context, action, actor, Outcome.REFUSED, reason)
        except StoreError as error:
            reason = f"{reason} (and the audit log does not answer: {error})"
        await context.abort(code, reason)
        raise AssertionError("abort does not return")

    async def audit(self, context: Context, action: str, actor: str, outcome: Outcome, reason: str = "") -> None:
        """Write one entry about a call.

        Raises:
            StoreError: it could not be written.
        """
        entry = AuditEntry(actor, action, actor, outcome, origin_of(context), reason)
        await asyncio.to_thread(self._auditor.record, entry)

    async def lock(self, context: Context, agent_id: str, reason: str) -> None:
        """Turn an agent out for what it did; the next sweep of every controller cuts its streams."""
        await asyncio.to_thread(self._identities.lock, agent_id, reason)
        await self.audit(context, "agent.lock", actor_of(agent_id), Outcome.ALLOWED, reason)

    async def strike(self, context: Context, agent_id: str) -> None:
        """Count a message that names what is another's; at the third one the agent is locked."""
        self._strikes[agent_id] += 1
        if self._strikes[agent_id] >= STRIKES:
            await self.lock(context, agent_id, f"it sent {STRIKES} messages that name what is another agent's")


def actor_of(agent_id: str) -> str:
    """An agent as the audit names it."""
    return f"agent:{agent_id}"


def origin_of(context: Context) -> str:
    """The peer's address, as gRPC writes it."""
    return str(context.peer())


def address_of(context: Context) -> str:
    """The same without the port, which is another one each time."""
    return origin_of(context).rpartition(":")[0]
