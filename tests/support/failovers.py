"""A failover run by Brownout and seen by two witnesses that share no code with it; the difference, mark by mark."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from brownout_controller.demo.foreground import experiment
from brownout_controller.demo.hosts import run_experiment
from brownout_controller.demo.network import CONTROLLER
from brownout_controller.demo.staging import Staging

from tests.support.request_log import LoggedRequest, Request, ServerChange, read_haproxy_log, read_requests

CLIENT = Path(__file__).parent / "request_log.py"
ALLOWED_MS = 100 + 50
"""One probe interval of the experiment and 50 ms."""
_SHORTER = {"for: 15s": "for: 6s", "before: 5s": "before: 3s", "after: 10s": "after: 5s"}


@dataclass(frozen=True, slots=True)
class Difference:
    """One mark of the anatomy against one witness; `off_ms` is positive when Brownout says later."""

    mark: str
    vantage: str
    witness: str
    off_ms: float


@dataclass(frozen=True, slots=True)
class Failover:
    """What one run came to."""

    exit_code: int
    document: dict[str, object]
    """The run's JSON report."""
    differences: tuple[Difference, ...]


def run_failover(folder: Path) -> Failover:
    """A shorter `lose-an-app-server` in a staging network, with a client that logs 50 requests a second beside it."""
    text = experiment("getting-started/lose-an-app-server").read_text()
    for before, after in _SHORTER.items():
        assert text.count(before) == 1
        text = text.replace(before, after)
    file = folder / "lose-an-app-server.yaml"
    file.write_text(text)
    report = folder / "report"
    report.mkdir()
    log = folder / "requests.ndjson"
    with Staging() as staging:
        client = staging.popen(CONTROLLER, [sys.executable, CLIENT, f"{staging.url()}/checkout", log, "50", "0.5"])
        variables = {"shop": staging.url(), "haproxy": str(staging.haproxy_socket)}
        code = run_experiment(staging, file, report, variables)
        assert staging.stop(client) == 0
        changes, logged = read_haproxy_log(staging.log("edge", "haproxy"))
    (path,) = report.glob("*.json")
    document = json.loads(path.read_text())
    truth = witnessed(read_requests(log), changes, logged)
    return Failover(code, document, tuple(differences(document["anatomy"], truth)))


def witnessed(
    requests: Sequence[Request], changes: Sequence[ServerChange], logged: Sequence[LoggedRequest]
) -> dict[tuple[str, str], int]:
    """(mark, witness) -> Unix nanoseconds. The client's times are of sending, as the anatomy's are.

    HAProxy's are of a request's end, which is a millisecond after its server was asked: its beginning may lie a second
    back, spent on connecting to the lost server for a client that has long given up.
    """
    failed = [request.sent_ns for request in requests if not request.ok]
    down = next(change.at_ns for change in changes if (change.server, change.state) == ("app-1", "DOWN"))
    up = next(change.at_ns for change in changes if (change.server, change.state) == ("app-1", "UP"))
    finished = [request for request in logged if (request.status, request.end) == (200, "----")]
    return {
        ("first_user_error", "client"): failed[0],
        ("noticed", "haproxy"): down,
        ("moved", "client"): next(r.sent_ns for r in requests if r.ok and r.served_by == "app-2"),
        ("moved", "haproxy"): next(r.logged_ns for r in finished if r.server == "app-2"),
        ("steady", "client"): next(r.sent_ns for r in requests if r.ok and r.sent_ns > failed[-1]),
        ("failed_back", "client"): next(
            r.sent_ns for r in requests if r.ok and r.served_by == "app-1" and r.sent_ns > down
        ),
        ("failed_back", "haproxy"): next(r.logged_ns for r in finished if r.server == "app-1" and r.logged_ns > up),
    }


def differences(anatomies: Sequence[dict[str, object]], truth: dict[tuple[str, str], int]) -> list[Difference]:
    """Every mark against every witness of it; a mark that Brownout did not see is off by infinity."""
    found = []
    for anatomy in anatomies:
        marks = anatomy["marks"]
        assert isinstance(marks, dict)
        for (mark, witness), at_ns in truth.items():
            ours_ns = marks[mark]["at_ns"]
            off_ms = float("inf") if ours_ns is None else (ours_ns - at_ns) / 1e6
            found.append(Difference(mark, str(anatomy["vantage"]), witness, off_ms))
    return found
