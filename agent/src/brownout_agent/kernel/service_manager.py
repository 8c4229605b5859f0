"""What a service tells systemd, by one datagram (sd_notify(3)); where nobody listens, nothing happens."""

import asyncio
import os
import socket


def tell(state: str) -> None:
    """Send `READY=1` and the like to whoever started this service.

    Raises:
        OSError: it named a socket that does not take it.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as notify:
        notify.connect(address.replace("@", "\0", 1) if address.startswith("@") else address)
        notify.sendall(state.encode())


async def keep_telling_that_we_live() -> None:
    """Feed the service's watchdog (`WatchdogSec=`) from this event loop, until cancelled; none, nothing to do."""
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return
    period_s = int(os.environ.get("WATCHDOG_USEC", "0")) / 1e6
    while period_s:
        tell("WATCHDOG=1")
        await asyncio.sleep(period_s / 3)
