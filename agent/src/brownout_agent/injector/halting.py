"""How a running injector obeys its STOP file."""

import logging
from collections.abc import Callable

from brownout_agent.injector.stop_file import StopFile
from brownout_agent.injector.supervisor import Supervisor
from brownout_agent.kernel.inotify import FolderWatch

LOOK_EVERY_S = 1.0
"""At the latest: a file system may be mounted over the folder, which inotify does not tell."""

log = logging.getLogger(__name__)


async def obey(stop_file: StopFile, supervisor: Supervisor, changed: Callable[[], None]) -> None:
    """End every fault as soon as the STOP file is there and as long as it is, until cancelled.

    `changed` is called when the host has come to be halted, or is no longer.
    """
    halted: str | None = None
    # The folder itself may be made later, or be replaced: its parent tells.
    around = {folder for path in stop_file.paths for folder in (path.parent, path.parent.parent)}
    with FolderWatch(around) as folders:
        while True:
            reason = stop_file.reason()
            if (reason is None) != (halted is None):
                log.warning("%s", "released: orders are taken again" if reason is None else f"halted by {reason}")
                changed()
            halted = reason
            if reason is not None and (left := await supervisor.halt(f"halted by {reason}")):
                log.error("halted, and not verified gone: %s", ", ".join(left))
            await folders.changed(LOOK_EVERY_S)
