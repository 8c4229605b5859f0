"""Two witnesses that share no code with Brownout: a client that logs every request, and HAProxy's own log.

As a program, run inside a namespace, the client asks at a fixed rate whatever came of the request before, each on a
connection of its own, and writes one line of JSON for each answer, until SIGTERM::

    python tests/support/request_log.py http://10.77.0.10:8080/checkout OUT.ndjson RATE_HZ TIMEOUT_S
"""

import asyncio
import json
import re
import signal
import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import TextIO
from urllib.parse import urlsplit


@dataclass(frozen=True, slots=True)
class Request:
    """One request; times are Unix nanoseconds. `status` 0 is no answer, and `error` then says what came instead."""

    sent_ns: int
    done_ns: int
    status: int
    served_by: str
    error: str

    @property
    def ok(self) -> bool:
        return self.status == 200


@dataclass(frozen=True, slots=True)
class ServerChange:
    """HAProxy's log: it took a server out or back in."""

    at_ns: int
    server: str
    state: str
    """`UP` or `DOWN`."""


@dataclass(frozen=True, slots=True)
class LoggedRequest:
    """HAProxy's log: a request it has finished. `accepted_ns` is in milliseconds, as HAProxy logs it."""

    logged_ns: int
    accepted_ns: int
    server: str
    status: int
    took_ms: int
    end: str
    """How the session ended; `----` is well (HAProxy configuration manual, 8.5)."""


_STAMP = r"(?P<stamp>\d{4}-\d\d-\d\dT[\d:.]+[+-]\d\d:\d\d) "
_CHANGE = re.compile(_STAMP + r"Server [^/ ]+/(?P<server>\S+) is (?P<state>UP|DOWN)[,.]")
_REQUEST = re.compile(
    _STAMP + r"\S+ \[(?P<accepted>[^\]]+)\] \S+ [^/ ]+/(?P<server>\S+) "
    r"-?\d+/-?\d+/-?\d+/-?\d+/\+?(?P<took>\d+) (?P<status>-?\d+) \+?\d+ \S \S (?P<end>\S{4}) "
)


def read_requests(path: Path) -> list[Request]:
    """The client's lines, in order of sending; a last line that is still being written is left out."""
    lines = path.read_text().split("\n")[:-1]
    return sorted((Request(**json.loads(line)) for line in lines), key=lambda request: request.sent_ns)


def read_haproxy_log(path: Path) -> tuple[list[ServerChange], list[LoggedRequest]]:
    """What HAProxy logged with `log stdout format iso` and `option httplog`."""
    changes, requests = [], []
    for line in path.read_text().splitlines():
        if found := _CHANGE.match(line):
            changes.append(ServerChange(_iso_ns(found["stamp"]), found["server"], found["state"]))
        elif found := _REQUEST.match(line):
            logged_ns = _iso_ns(found["stamp"])
            accepted_ns = _clf_ns(found["accepted"], found["stamp"][-6:])
            took_ms, status = int(found["took"]), int(found["status"])
            requests.append(LoggedRequest(logged_ns, accepted_ns, found["server"], status, took_ms, found["end"]))
    return changes, requests


def _iso_ns(stamp: str) -> int:
    return _unix_ns(datetime.fromisoformat(stamp))


def _clf_ns(stamp: str, zone: str) -> int:
    """`22/Nov/2026:23:45:14.828`, in HAProxy's local time."""
    return _unix_ns(datetime.strptime(stamp + zone, "%d/%b/%Y:%H:%M:%S.%f%z"))


def _unix_ns(moment: datetime) -> int:
    seconds = int(moment.replace(microsecond=0).timestamp())
    return seconds * 10**9 + moment.microsecond * 1_000


async def _ask(host: str, port: int, path: str, timeout_s: float) -> Request:
    sent_ns = time.time_ns()
    status, served_by, error = 0, "", ""
    try:
        async with asyncio.timeout(timeout_s):
            status, served_by = await _exchange(host, port, path)
    except TimeoutError:
        error = "timeout"
    except (OSError, ValueError) as problem:
        error = str(problem)
    return Request(sent_ns, time.time_ns(), status, served_by, error)


async def _exchange(host: str, port: int, path: str) -> tuple[int, str]:
    reader, writer = await asyncio.open_connection(host, port)
    try:
        writer.write(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        head, separator, _ = (await reader.read(-1)).partition(b"\r\n\r\n")
    finally:
        writer.close()
    lines = head.decode("latin-1").split("\r\n")
    if not separator or not lines[0].startswith("HTTP/1."):
        raise ValueError("no HTTP answer")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
    return int(lines[0].split()[1]), headers.get("x-served-by", "")


async def _keep_asking(url: str, output: TextIO, rate_hz: float, timeout_s: float) -> None:
    target = urlsplit(url)
    assert target.hostname
    host, port, path = target.hostname, target.port or 80, target.path or "/"

    async def ask_and_write() -> None:
        output.write(json.dumps(asdict(await _ask(host, port, path, timeout_s))) + "\n")
        output.flush()

    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    due_s = asyncio.get_running_loop().time()
    async with asyncio.TaskGroup() as requests:
        while not stopped.is_set():
            requests.create_task(ask_and_write())
            due_s += 1 / rate_hz
            with suppress(TimeoutError):
                async with asyncio.timeout_at(due_s):
                    await stopped.wait()


def main() -> None:
    url, path, rate_hz, timeout_s = sys.argv[1:]
    with open(path, "w") as output:
        asyncio.run(_keep_asking(url, output, float(rate_hz), float(timeout_s)))


if __name__ == "__main__":
    main()
