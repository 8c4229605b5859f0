"""Two controllers on one PostgreSQL, three hosts: one of them is killed, or sleeps, in the middle of a run."""

import json
import re
import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.cluster import BIN, KEY, Cluster, cluster, held
from tests.support.polling import wait_until
from tests.support.postgres import Postgres
from tests.support.rehoming import HOSTS, begin, killed, sleeping

pytestmark = [pytest.mark.injects, pytest.mark.timeout(300)]
REHOMED_WITHIN_S = 15.0
FINAL_WITHIN_S = 60.0


@pytest.fixture
def pair(postgres_server: Postgres) -> Iterator[Cluster]:
    """One to break."""
    with a_pair(postgres_server) as made:
        yield made


@pytest.fixture(scope="module")
def whole_pair(postgres_server: Postgres) -> Iterator[Cluster]:
    """One that stays as it is."""
    with a_pair(postgres_server) as made:
        yield made


@contextmanager
def a_pair(server: Postgres) -> Iterator[Cluster]:
    """Controllers `a`, where three hosts are, and `b`, which has the keys from the database alone."""
    with tempfile.TemporaryDirectory(prefix="bo-") as folder, cluster(Path(folder), server.make_database()) as made:
        made.start("a")
        made.start("b")
        for host in HOSTS:
            made.join(host, at="a")
        wait_until(lambda: set(made.hosts("b")) == set(HOSTS), "b shows the hosts of a", 40)
        yield made


def test_hosts_and_runs_of_one_are_seen_and_halted_at_the_other(whole_pair: Cluster) -> None:
    there = whole_pair.members["a"].agents
    assert whole_pair.hosts("a") == whole_pair.hosts("b")
    assert {host: whole_pair.hosts("b")[host] for host in HOSTS} == dict.fromkeys(HOSTS, there)
    number = begin(whole_pair, "a")
    with whole_pair.api("b", "operator") as api:
        assert number in [run["run"] for run in api.get("/runs")["items"]]
    assert halted(whole_pair, number, at="b") == "halted"
    assert not any(held(whole_pair.fault_ids(number, "busy")).values())


def test_the_root_key_stays_where_it_was_made_and_the_other_controller_enrols_hosts_all_the_same(
    whole_pair: Cluster,
) -> None:
    assert whole_pair.members["a"].pin == whole_pair.members["b"].pin
    assert (whole_pair.folder / "a/authority/rotation.json").exists()
    assert sorted(path.name for path in (whole_pair.folder / "b/authority").iterdir()) == ["audit-key.pem"]
    whole_pair.join("other-1", at="b")
    wait_until(lambda: whole_pair.hosts("a").get("other-1") == whole_pair.members["b"].agents, "a shows it", 30)


def test_a_killed_controllers_hosts_go_to_the_other_and_its_run_is_closed(pair: Cluster) -> None:
    found = killed(pair, begin(pair, "a"))
    assert found.rehomed_s <= REHOMED_WITHIN_S
    assert found.undone_s <= REHOMED_WITHIN_S
    assert found.final_s <= FINAL_WITHIN_S
    assert found.verdict == "errored"
    assert "every host confirmed that its faults are gone; NOT AUDITED for residue" in found.headline
    assert found.held_most <= 1, "a fault was on twice"


def test_a_controller_that_slept_longer_than_the_lease_gives_no_order_any_more(pair: Cluster) -> None:
    found = sleeping(pair, begin(pair, "a"))
    assert found.rehomed_s <= REHOMED_WITHIN_S
    assert found.undone_s <= REHOMED_WITHIN_S
    assert found.final_s <= FINAL_WITHIN_S
    assert found.begun_after == [], "what it ordered when it woke was carried out"
    assert found.held_most <= 1, "a fault was on twice"
    assert pair.hosts("a") == pair.hosts("b") == dict.fromkeys(HOSTS, pair.members["b"].agents), "it let go of them"
    assert halted(pair, begin(pair, "b"), at="b") == "halted", "the hosts obey the one that has them"


def test_a_controller_without_the_clusters_keys_is_refused_and_founds_no_other_cluster(whole_pair: Cluster) -> None:
    with pytest.raises(AssertionError, match="cannot be opened: it was sealed with another key"):
        _start_with_another_key(whole_pair)
    with pytest.raises(AssertionError, match=re.escape("Next: give --authority-key FILE")):
        whole_pair.start("c", with_key=False)
    assert not (whole_pair.folder / "c/authority/rotation.json").exists()


def test_a_rotation_reaches_the_controller_without_the_root(pair: Cluster) -> None:
    argv = [BIN / "brownout", "--database", pair.database, "ca", "rotate", "--data-dir"]
    environment = {"BROWNOUT_AUTHORITY_KEY": str(pair.folder / KEY)}
    refused = pair.run([*argv, pair.folder / "b"], environment)
    assert refused.returncode == 4
    assert "the root's key is not here" in refused.stderr
    done = pair.run([*argv, pair.folder / "a"], environment)
    assert done.stdout == "init\n", done.stderr
    wait_until(lambda: "phase init" in pair.members["b"].program.text(), "b is in phase init", 10)
    pair.members["a"].program.signal(signal.SIGKILL)
    there = pair.members["b"].agents
    wait_until(lambda: pair.hosts("b") == dict.fromkeys(HOSTS, there), "the hosts are at b", REHOMED_WITHIN_S)


def test_two_agents_with_one_certificate_at_two_controllers_are_both_locked(pair: Cluster) -> None:
    shutil.copytree(pair.folder / "app-1/agent", pair.folder / "twin/agent")
    kept = pair.folder / "twin/agent/agent.json"
    kept.write_text(json.dumps({**json.loads(kept.read_text()), "controllers": [pair.members["b"].agents]}))
    twin = pair.run_agent("twin")
    for agent in (pair.agents["app-1"], twin):
        wait_until(lambda agent=agent: "this agent is locked" in agent.text(), "it is told", 40)  # type: ignore[misc]
    wait_until(lambda: "app-1" not in {**pair.hosts("a"), **pair.hosts("b")}, "it is nowhere", 20)
    assert {"app-2", "app-3"} <= set(pair.hosts("b"))


def halted(pair: Cluster, number: int, at: str) -> str:
    """Halt a run at a controller, whoever carries it; its verdict."""
    with pair.api(at, "operator") as api:
        ended = api.post(f"/runs/{number}/halt", {"reason": "enough", "wait_s": 30})
    return str(ended["verdict"])


def _start_with_another_key(pair: Cluster) -> None:
    other = pair.folder / "other.key"
    other.write_text("A" * 43 + "=")
    other.chmod(0o600)
    pair.start("c", other)
