"""What commands that work on this machine's own data tell the audit log."""

import getpass
import logging
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from brownout_controller.audit.checkpoint import CheckpointError
from brownout_controller.audit.entry import AuditEntry, Auditor, Outcome
from brownout_controller.audit.log import AuditLog, audit_log
from brownout_controller.audit.logged import LogAuditor
from brownout_controller.cli.output import fail
from brownout_controller.cli.settings import authority_key
from brownout_controller.exit_codes import ExitCode
from brownout_controller.fleet.authority import AuthorityError
from brownout_controller.fleet.shared_authority import bring_audit_key
from brownout_controller.serving import authority_folder
from brownout_controller.store.audit import AuditStore
from brownout_controller.store.authorities import Authorities
from brownout_controller.store.store import Store

ORIGIN = "cli"

log = logging.getLogger(__name__)


def local_actor() -> str:
    """Who types here, as the audit log names people without an account."""
    try:
        return f"local:{getpass.getuser()}"
    except (KeyError, OSError):  # a user without a name, as containers have
        return f"local:uid {os.getuid()}"


def local_entry(
    action: str, subject: str, outcome: Outcome = Outcome.ALLOWED, reason: str = "", **detail: str
) -> AuditEntry:
    """What whoever types here does."""
    return AuditEntry(local_actor(), action, subject, outcome, ORIGIN, reason, detail)


@contextmanager
def local_audit(store: Store, data_dir: Path, export_to: Path | None = None) -> Iterator[AuditLog]:
    """The audit log of a data directory; ends the command with 4 when nothing in it can be signed."""
    try:
        with _audit_log(store, data_dir, export_to) as kept:
            yield kept
    except (CheckpointError, AuthorityError) as error:
        fail(ExitCode.REFUSED, "audit-key", str(error))


@contextmanager
def audit_of_stopping(store: Store, data_dir: Path) -> Iterator[Auditor]:
    """The same for whoever stops something: where there can be none, the program's log has to do."""
    with ExitStack() as held:
        kept: Auditor
        try:
            kept = held.enter_context(_audit_log(store, data_dir))
        except (CheckpointError, AuthorityError, OSError) as error:
            log.error("the audit log cannot be sealed, so what is stopped now stands only here: %s", error)
            kept = LogAuditor()
        yield kept


@contextmanager
def _audit_log(store: Store, data_dir: Path, export_to: Path | None = None) -> Iterator[AuditLog]:
    folder = authority_folder(data_dir)
    if store.database.folder is None:
        bring_audit_key(folder, Authorities(store.database), authority_key())
    with audit_log(AuditStore(store.database), folder, export_to) as kept:
        yield kept
