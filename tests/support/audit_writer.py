"""One controller's audit log, as a process of its own: writes from four threads, and says how many a second.

python -m tests.support.audit_writer DATABASE KEYS COUNT NAME
"""

import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from brownout_controller.audit.entry import AuditEntry, Outcome
from brownout_controller.audit.log import audit_log
from brownout_controller.store.audit import AuditStore
from brownout_controller.store.database import Database

THREADS = 4


def main() -> None:
    address, keys, count, name = sys.argv[1:]
    database = Database.open(Path(address), address if "://" in address else "")
    with audit_log(AuditStore(database), Path(keys)) as log, ThreadPoolExecutor(THREADS) as pool:
        entries = [AuditEntry("user:mary", "run.start", f"{name}-{n}", Outcome.ALLOWED) for n in range(int(count))]
        begun_s = time.monotonic()
        list(pool.map(log.record, entries))
        print(f"{len(entries) / (time.monotonic() - begun_s):.0f}")
    database.close()


if __name__ == "__main__":
    main()
