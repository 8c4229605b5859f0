"""An auditor for where no audit log is kept: it says everything in the program's log."""

import logging

from brownout_controller.audit.entry import AuditEntry
from brownout_controller.reporting.visible import visible

log = logging.getLogger(__name__)


class LogAuditor:
    """Writes entries to the log."""

    def record(self, entry: AuditEntry) -> None:
        """Write one entry."""
        words = f"{entry.actor} {entry.action} {entry.subject} from {entry.origin or 'here'}: {entry.outcome}"
        log.warning("%s", visible(f"{words} ({entry.reason})" if entry.reason else words))

    def record_later(self, entry: AuditEntry) -> None:
        """The same: a log is written at once."""
        self.record(entry)
