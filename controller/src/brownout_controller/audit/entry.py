"""What the audit log is told. Whoever lets somebody do a thing, or refuses it, says so here."""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

NOBODY = "unknown"
"""The actor where nobody was proved."""


class Outcome(StrEnum):
    """What became of an attempt."""

    ALLOWED = "allowed"
    REFUSED = "refused"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """Who tried what on what, from where, and what became of it."""

    actor: str
    """`user:mary`, `token:ci`, `agent:<uuid>`, `controller:<id>`, `local:root`; `unknown` where nobody was proved."""
    action: str
    """What was tried, as `object.verb`: `run.start`, `agent.session`, `token.create`."""
    subject: str
    """What it was tried on: a run's number, a host's name, a route."""
    outcome: Outcome
    origin: str = ""
    """Where it came from: an address, or `cli`."""
    reason: str = ""
    """Why it was refused or failed; empty when it was allowed."""
    detail: dict[str, str] = field(default_factory=dict)


class Auditor(Protocol):
    """Keeps entries. Keeping may not fail silently: what cannot be audited does not happen."""

    def record(self, entry: AuditEntry) -> None:
        """Keep one entry durably.

        Raises:
            StoreError: it could not be kept.
        """

    def record_later(self, entry: AuditEntry) -> None:
        """Keep one entry as soon as can be, and return at once: for stopping, which waits for nothing."""
