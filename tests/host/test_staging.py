"""The demo's staging network against the kernel: what it makes, that it works, and that nothing of it stays."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from signal import SIGKILL, SIGTERM

import pytest
from brownout_agent.kernel.processes import is_alive, key_of
from brownout_controller.demo import network, services
from brownout_controller.demo.leftovers import FOLDERS, leftovers
from brownout_controller.demo.staging import Staging, StagingError, remove_abandoned

from tests.support.request_log import LoggedRequest, Request, read_haproxy_log, read_requests

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="namespaces need root")]

CLIENT = Path(__file__).parent.parent / "support/request_log.py"
HOLDER = """
import signal, sys
from brownout_controller.demo.staging import Staging
def stop(number, frame):
    raise SystemExit(3)
signal.signal(signal.SIGTERM, stop)
with Staging() as staging:
    print(staging.name, flush=True)
    signal.pause()
"""
DEAF = """
import os, signal
if os.fork():
    os._exit(0)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
os.chdir("/")
print(os.getpid(), flush=True)
signal.pause()
"""


@pytest.fixture
def staging() -> Iterator[Staging]:
    before = leftovers()
    with Staging() as network_up:
        yield network_up
    assert leftovers(network_up.name, before) == []


def ask(staging: Staging, host: str, url: str) -> str:
    argv = staging.command(host, ["curl", "--silent", "--include", "--max-time", "2", url])
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout


def links() -> list[str]:
    return sorted(path.name for path in Path("/sys/class/net").iterdir())


def test_app_1_serves_through_haproxy_and_says_so(staging: Staging) -> None:
    answers = [ask(staging, "ctl", f"{staging.url()}/checkout") for _ in range(4)]
    assert all(answer.startswith("HTTP/1.1 200 ") for answer in answers)
    assert all("\nx-served-by: app-1\n" in answer.lower() for answer in answers)
    assert "\nx-served-by: app-2\n" in ask(staging, "ctl", f"{staging.url('app-2')}/checkout").lower()


@pytest.mark.skipif(not network.has_ipv6(), reason="this kernel has no IPv6")
def test_every_host_is_reached_over_ipv6_too(staging: Staging) -> None:
    for host in ("edge", "app-1", "app-2"):
        address = network.ADDRESSES[host].v6
        assert ask(staging, "ctl", f"http://[{address}]:{services.SHOP_PORT}/healthz").startswith("HTTP/1.1 200 ")


def test_the_shops_programs_run_as_nobody(staging: Staging) -> None:
    pids = [pid for name in network.existing(staging.name) for pid in network.pids_in(name)]
    assert len(pids) == 5  # two nginx with a worker each, one haproxy
    for pid in pids:
        assert Path(f"/proc/{pid}").stat().st_uid == network.NOBODY


def test_the_machines_own_network_gets_no_link_and_no_address() -> None:
    before = links(), subprocess.check_output(["ip", "address"]), subprocess.check_output(["ip", "route"])
    with Staging():
        assert (links(), subprocess.check_output(["ip", "address"]), subprocess.check_output(["ip", "route"])) == before


def test_an_unprivileged_program_may_read_and_has_no_other_capability(staging: Staging) -> None:
    argv = staging.command("app-1", ["cat", "/proc/self/status"], unprivileged=True)
    status = dict(
        line.split(":\t", 1) for line in subprocess.check_output(argv, text=True).splitlines() if ":\t" in line
    )
    held = {name: int(status[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")}
    reads = 1 << 2  # CAP_DAC_READ_SEARCH, linux/capability.h
    assert held == {"CapInh": 0, "CapPrm": reads, "CapEff": reads, "CapBnd": reads, "CapAmb": 0}
    assert status["NoNewPrivs"] == "1"


def test_a_stopped_server_is_seen_down_in_haproxys_log_and_the_client_logs_every_request(
    staging: Staging, tmp_path: Path
) -> None:
    out = tmp_path / "requests.ndjson"
    client = staging.popen("ctl", [sys.executable, CLIENT, f"{staging.url()}/checkout", out, "50", "0.5"])
    staging.await_ready("the client", lambda: len(read_requests(out)) >= 20)
    (master,) = (
        pid
        for pid in network.pids_in(network.namespace(staging.name, "app-1"))
        if b"master" in Path(f"/proc/{pid}/cmdline").read_bytes()
    )
    killed_ns = time.time_ns()
    os.kill(master, SIGTERM)
    log = staging.log("edge", "haproxy")

    def app_1_is_down() -> bool:
        return any(change.state == "DOWN" for change in read_haproxy_log(log)[0])

    def app_2_answers() -> bool:
        return read_requests(out)[-1].served_by == "app-2"

    deadline = time.monotonic() + 5
    while not (app_1_is_down() and app_2_answers()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert staging.stop(client) == 0
    (down,), logged = read_haproxy_log(log)
    assert down.server == "app-1"
    assert 0 < down.at_ns - killed_ns < 2.5 * 10**9  # a check is every 500 ms, the second failure decides
    requests = read_requests(out)
    gaps_ms = [(later.sent_ns - sooner.sent_ns) / 1e6 for sooner, later in pairwise(requests)]
    assert sorted(gaps_ms)[len(gaps_ms) // 2] == pytest.approx(20, abs=5)
    assert {r.served_by for r in requests if r.ok and r.sent_ns < killed_ns - 10**7} == {"app-1"}
    assert requests[-1].served_by == "app-2"
    assert all(r.served_by == "app-2" for r in requests if r.ok and r.sent_ns > down.at_ns)
    answered = [r for r in requests if r.ok]
    finished = [r for r in logged if (r.status, r.end) == (200, "----")]
    assert len(answered) > 20
    assert [r for r in answered if not any(is_same(r, logged) for logged in finished)] == []


def is_same(ours: Request, its: LoggedRequest) -> bool:
    return ours.served_by == its.server and abs(ours.sent_ns - its.accepted_ns) < 50 * 10**6


def test_two_networks_stand_side_by_side(staging: Staging) -> None:
    with Staging() as other:
        assert other.name != staging.name
        assert ask(other, "ctl", f"{other.url()}/healthz").startswith("HTTP/1.1 200 ")
    assert ask(staging, "ctl", f"{staging.url()}/healthz").startswith("HTTP/1.1 200 ")


def test_an_exception_inside_leaves_nothing() -> None:
    before = leftovers()
    with pytest.raises(ZeroDivisionError), Staging() as staging:
        1 / 0  # noqa: B018
    assert leftovers(staging.name, before) == []


def test_a_service_that_cannot_start_is_named_with_its_own_words_and_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(services, "haproxy_configuration", lambda host, socket: "global\n  no-such-word\n")
    before = leftovers()
    staging = Staging()
    with pytest.raises(StagingError, match=r"(?s)the shop did not get ready.*no-such-word"):
        staging.__enter__()
    assert leftovers(staging.name, before) == []


def test_a_program_that_ignores_sigterm_and_left_its_parent_is_ended_all_the_same() -> None:
    with Staging() as staging:
        process = staging.popen("ctl", [sys.executable, "-c", DEAF], log="deaf")
        assert process.wait(5) == 0
        staging.await_ready("the deaf program", lambda: staging.log("ctl", "deaf").read_text().endswith("\n"))
        pid = int(staging.log("ctl", "deaf").read_text())
        key = key_of(pid)
        assert key is not None
        assert is_alive(key)
    assert not is_alive(key)


@pytest.mark.parametrize(("number", "left"), [(SIGTERM, False), (SIGKILL, True)])
def test_a_terminated_owner_cleans_up_and_a_killed_owners_network_is_removed_by_the_next(
    number: int, left: bool
) -> None:
    before = leftovers()
    owner = subprocess.Popen([sys.executable, "-c", HOLDER], stdout=subprocess.PIPE, text=True)
    try:
        assert owner.stdout is not None
        name = owner.stdout.readline().strip()
        assert name
        assert remove_abandoned() == []  # it is alive: not touched
        owner.send_signal(number)
        owner.wait(15)
        owner.stdout.close()
    finally:
        owner.kill()
    assert bool(leftovers(name, before)) is left
    assert remove_abandoned() == ([name] if left else [])
    assert leftovers(name, before) == []


def test_a_network_of_an_earlier_boot_or_a_reused_pid_counts_as_abandoned() -> None:
    folder = FOLDERS / "0000"
    folder.mkdir(parents=True)
    record = {"boot": Path("/proc/sys/kernel/random/boot_id").read_text().strip(), "process": [os.getpid(), 1]}
    (folder / "owner.json").write_text(json.dumps(record))
    assert remove_abandoned() == ["0000"]
    assert not folder.exists()


def test_a_folder_without_an_owner_is_what_an_interrupted_removal_left() -> None:
    folder = FOLDERS / "0001"
    (folder / "ctl").mkdir(parents=True)
    assert "0001" in remove_abandoned()
    assert not folder.exists()
