"""`brownout server start` and the command line that speaks to it: every program the real one, every exit code seen."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from brownout_controller.cli.main import app
from brownout_controller.cli.remote import Remote, Server, connect
from typer.testing import CliRunner, Result

from tests.support.polling import wait_until

BIN = Path(sys.executable).parent
EXPERIMENT = """
version: 1
name: busy
hypothesis: It is busy.
steady_state: {before: 100ms, after: 100ms}
faults:
  - {inject: cpu.load, target: "role=app", with: {percent: 1, of: own, cores: 0}, for: %s}
"""
PEOPLE = (
    ("ana", "author", "staging", None),
    ("ben", "approver", "staging", None),
    ("oli", "operator", "staging", None),
    ("vic", "viewer", "staging", "role=app"),
    ("eve", "viewer", "prod", None),
)
INCONCLUSIVE = 14
"""On a machine that is busy with other tests the fault of one second may not be proved."""
DONE, USAGE, INVALID, REFUSED, UNREACHABLE, NOT_PERMITTED, HALTED, INTERRUPTED = 0, 2, 3, 4, 5, 6, 12, 130


@dataclass
class Site:
    """A controller that serves, one host, and people with tokens."""

    folder: Path
    url: str = ""
    pin: str = ""
    tokens: dict[str, str] = field(default_factory=dict)
    processes: list["subprocess.Popen[bytes]"] = field(default_factory=list)

    def spawn(self, name: str, *argv: object, **environment: str) -> "subprocess.Popen[bytes]":
        with (self.folder / f"{name}.out").open("wb") as out, (self.folder / f"{name}.err").open("wb") as err:
            self.processes.append(
                subprocess.Popen(
                    [BIN / str(argv[0]), *map(str, argv[1:])], stdout=out, stderr=err, cwd=self.folder,
                    env={**os.environ, "TMPDIR": str(self.folder), **environment}, start_new_session=True,
                )
            )  # fmt: skip
        return self.processes[-1]

    def environment(self, who: str) -> dict[str, str]:
        named = {
            "BROWNOUT_SERVER": self.url,
            "BROWNOUT_SERVER_PIN": self.pin,
            "BROWNOUT_DATA_DIR": str(self.folder / "unused"),
        }
        return named | ({"BROWNOUT_TOKEN": self.tokens[who]} if who else {})

    def brownout(self, who: str, *argv: object, **environment: str) -> Result:
        """The command, by one of the people; in this process, since most of a command's time is Python's start."""
        with contextlib.chdir(self.folder):
            done = CliRunner().invoke(app, [*map(str, argv)], env={**self.environment(who), **environment})
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        return done

    def answer(self, who: str, *argv: object) -> Any:
        done = self.brownout(who, *argv, "-o", "json")
        assert done.exit_code == DONE, done.stderr
        return json.loads(done.stdout)

    @contextlib.contextmanager
    def api(self, who: str) -> Iterator[Remote]:
        """The same API without a process for each request."""
        path = self.folder / f"{who}.token"
        path.touch(0o600)
        path.write_text(self.tokens[who])
        with connect(Server(self.url, self.pin, token_file=path)) as remote:
            yield remote

    def text(self, name: str) -> str:
        return (self.folder / name).read_text()


pytestmark = [pytest.mark.injects, pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with tempfile.TemporaryDirectory(prefix="bo-") as folder:  # short: a socket's path has 107 bytes at most
        made = Site(Path(folder))
        try:
            _open(made)
            yield made
        finally:
            for process in reversed(made.processes):
                if process.poll() is None:
                    process.terminate()
                process.wait(90)


def _open(site: Site) -> None:
    for name, text in (("short", EXPERIMENT % "1s"), ("long", EXPERIMENT % "4m"), ("invalid", "version: 1\n")):
        (site.folder / f"{name}.yaml").write_text(text)
    serving = site.spawn(
        "server", "brownout", "server", "start", "--data-dir", site.folder / "data",
        "--listen", "127.0.0.1:0", "--api", "127.0.0.1:0",
    )  # fmt: skip
    wait_until(lambda: site.text("server.out").count("\n") == 1 or serving.poll() is not None, "the server", 60)
    assert serving.poll() is None, site.text("server.err")
    site.tokens["admin"] = site.text("server.out").strip()
    found = re.search(r"API on (https://\S+)/api/v1, authority (sha256:[0-9a-f]{64})", site.text("server.err"))
    assert found is not None, site.text("server.err")
    site.url, site.pin = found[1], found[2]
    ports = re.search(r"agents on 127.0.0.1:(\d+), enrolment on port (\d+)", site.text("server.err"))
    assert ports is not None
    with site.api("admin") as api:
        joined = api.post("/join-tokens", {})
        for who, role, environment, hosts in PEOPLE:
            grants = [{"role": role, "environments": [environment], "hosts": hosts}]
            api.post("/users", {"name": who, "grants": grants})
            site.tokens[who] = api.post("/tokens", {"user": who})["token"]
        api.request("PUT", "/limits/staging", json={"hosts": 1, "percent": 100}, headers={"If-Match": '"0"'})
    site.spawn("injector", "brownout-injector", "serve", "--embedded", "--socket", site.folder / "i.sock",
               "--state-dir", site.folder / "i")  # fmt: skip
    joining = site.spawn(
        "join", "brownout-agent", "join", "--controller", f"127.0.0.1:{ports[1]}", "--enrol-port", ports[2],
        "--name", "app-1", "--label", "role=app", "--token", joined["token"], "--ca-pin", joined["ca_pin"],
        "--state-dir", site.folder / "a", "--wait", 30,
    )  # fmt: skip
    assert joining.wait(60) == 0, site.text("join.err")
    site.spawn("agent", "brownout-agent", "run", "--state-dir", site.folder / "a", "--injector-socket",
               site.folder / "i.sock")  # fmt: skip
    with site.api("ana") as api:
        wait_until(lambda: any(host["injector"] for host in api.get("/hosts")["items"]), "the host", 60)


def begun(site: Site, who: str, name: str, *argv: object) -> "subprocess.Popen[bytes]":
    """A run whose fault is on when this returns; NAME.err is what is said of it."""
    process = site.spawn(name, "brownout", "run", *argv, "--report", "json", **site.environment(who))
    wait_until(lambda: "ACTIVE" in site.text(f"{name}.err") or process.poll() is not None, "the fault is on", 40)
    assert process.poll() is None, site.text(f"{name}.err")
    return process


def number_of(site: Site, name: str) -> str:
    found = re.search(r"run (\d+) has begun", site.text(f"{name}.err"))
    assert found is not None
    return found[1]


def test_the_first_token_is_shown_once_and_another_only_to_who_may_read_the_data_folder(site: Site) -> None:
    token = site.tokens["admin"]
    assert re.fullmatch(r"bo_[0-9a-f]{12}_[0-9A-Za-z]{49}", token)
    assert token not in site.text("server.err")
    stored = (site.folder / "data/brownout.db").read_bytes()
    assert token.encode() not in stored
    assert token.split("_")[2].encode() not in stored
    fresh = site.brownout("", "server", "admin-token", "--data-dir", site.folder / "data", BROWNOUT_SERVER="")
    assert fresh.exit_code == DONE, fresh.stderr
    site.tokens["again"] = fresh.stdout.strip()
    assert site.answer("again", "whoami")["user"] == "admin"


def test_users_are_added_changed_and_listed_with_where_their_roles_hold(site: Site) -> None:
    assert site.brownout("admin", "users", "add", "sam", "--role", "viewer@staging:role=app").exit_code == DONE
    assert site.brownout("admin", "users", "set", "sam", "--role", "auditor", "--role", "author@dev").exit_code == DONE
    listed = site.brownout("admin", "users", "list")
    assert re.search(r"sam +auditor, author@dev +False", listed.stdout), listed.stdout
    assert site.brownout("admin", "users", "add", "sam").exit_code == REFUSED


def test_a_run_by_the_server_is_followed_to_its_end_and_reported_as_one_in_this_process(site: Site) -> None:
    done = site.brownout("ana", "run", "short.yaml", "--report", "json,md", "--report-dir", "reports")
    assert done.exit_code in {DONE, INCONCLUSIVE}, done.stderr
    assert [word for word in ("ordered", "ACTIVE", "undone") if word in done.stderr] == ["ordered", "ACTIVE", "undone"]
    number = re.search(r"run (\d+) has begun", done.stderr)
    assert number is not None
    written = json.loads((site.folder / f"reports/brownout-{number[1]}.json").read_text())
    assert written["verdict"] == ("held" if done.exit_code == DONE else "inconclusive")
    assert written["verdict"].upper() in done.stdout
    assert (written["residue"]["faults"], written["record"]["operator"]) == ([], "ana")
    assert site.answer("vic", "runs", "show", number[1]) == written
    assert site.answer("vic", "runs", "list")[0]["operator"] == "ana"
    page = site.brownout("vic", "report", number[1], "-o", "md")
    assert page.stdout.strip() == (site.folder / f"reports/brownout-{number[1]}.md").read_text().strip()


def test_what_others_run_is_not_there_for_who_may_not_see_it(site: Site) -> None:
    assert site.answer("eve", "runs", "list") == []
    assert site.answer("eve", "hosts", "list") == []
    for number in ("1", "4711"):
        done = site.brownout("eve", "runs", "show", number)
        assert (done.exit_code, done.stdout) == (USAGE, "")
        assert f"error[not-found]: there is no run {number}, or you may not see it" in done.stderr


def test_an_operator_runs_a_plan_once_somebody_else_has_approved_it(site: Site) -> None:
    made = site.answer("ana", "plan", "short.yaml", "--seed", 7)
    plan = made["digest"]
    assert (made["author"], made["approved"], made["approval_needed"]) == ("ana", False, "")
    denied = site.brownout("oli", "run", "--plan", plan)
    assert denied.exit_code == NOT_PERMITTED
    assert "error[approval-needed]" in denied.stderr
    assert f"brownout approve {plan}" in denied.stderr
    for who, reason in (("ana", "not permitted: approval.give"), ("oli", "not permitted: approval.give")):
        own = site.brownout(who, "approve", plan)
        assert (own.exit_code, reason in own.stderr) == (NOT_PERMITTED, True)
    approval = site.brownout("ben", "approve", plan, "--hours", 1)
    assert approval.exit_code == DONE, approval.stderr
    assert site.brownout("oli", "run", "--plan", plan, "--report", "json").exit_code in {DONE, INCONCLUSIVE}
    number = re.search(r"approval (\d+)", approval.stdout)
    assert number is not None
    assert site.brownout("ben", "approvals", "withdraw", number[1]).exit_code == DONE
    assert site.brownout("oli", "run", "--plan", plan).exit_code == NOT_PERMITTED
    assert site.brownout("oli", "run", "short.yaml").exit_code == NOT_PERMITTED


def test_above_the_limit_an_author_needs_approval_too_and_no_change_of_the_plan_uses_it(site: Site) -> None:
    assert site.brownout("admin", "approvals", "limit", "staging", "--percent", 25).exit_code == DONE
    try:
        denied = site.brownout("ana", "run", "short.yaml", "--seed", 8)
        assert denied.exit_code == NOT_PERMITTED
        assert "it reaches 1 of 1 hosts (100 %), and more than 25 % needs approval" in denied.stderr
        plan = site.answer("ana", "plan", "short.yaml", "--seed", 8)["digest"]
        assert site.brownout("ben", "approve", plan).exit_code == DONE
        assert site.brownout("ana", "run", "short.yaml", "--seed", 9).exit_code == NOT_PERMITTED
        assert site.brownout("ana", "run", "short.yaml", "--seed", 8, "--report", "json").exit_code in {
            DONE,
            INCONCLUSIVE,
        }
    finally:
        assert site.brownout("admin", "approvals", "limit", "staging", "--percent", 100).exit_code == DONE


def test_ctrl_c_leaves_the_run_alone_and_halt_ends_and_undoes_it(site: Site) -> None:
    process = begun(site, "ana", "left", "long.yaml")
    number = number_of(site, "left")
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == INTERRUPTED
    assert f"run {number} continues; to end it and undo its faults: brownout halt {number}" in site.text("left.err")
    assert site.answer("vic", "runs", "list")[0]["verdict"].startswith("running")
    assert site.brownout("vic", "halt", number).exit_code == NOT_PERMITTED
    assert site.brownout("eve", "halt", number).exit_code == NOT_PERMITTED
    halted = site.brownout("oli", "halt", number, "--reason", "enough")
    assert halted.exit_code == DONE, halted.stderr
    assert "everything of it is undone" in halted.stdout
    assert site.answer("vic", "runs", "show", number)["verdict"] == "halted"
    again = site.brownout("oli", "halt", number)
    assert (again.exit_code, f"run {number} is over" in again.stderr) == (REFUSED, True)


def test_a_halt_only_token_can_halt_and_do_nothing_else(site: Site) -> None:
    site.tokens["glass"] = site.answer("oli", "token", "issue", "--role", "halter", "--purpose", "behind glass")[
        "token"
    ]
    process = begun(site, "ana", "glass", "long.yaml")
    for refused in (["runs", "list"], ["hosts", "list"], ["token", "issue"], ["resume"], ["run", "short.yaml"]):
        assert site.brownout("glass", *refused).exit_code == NOT_PERMITTED, refused
    halted = site.brownout("glass", "halt", number_of(site, "glass"))
    assert halted.exit_code == DONE, halted.stderr
    assert process.wait(60) == HALTED


def test_the_lever_halts_everything_and_holds_until_it_is_released(site: Site) -> None:
    process = begun(site, "ana", "lever", "long.yaml")
    halted = site.brownout("oli", "halt", "--all", "--reason", "INC-204")
    assert halted.exit_code == DONE, halted.stdout + halted.stderr
    assert "clean          app-1" in halted.stdout
    assert process.wait(60) == HALTED
    try:
        denied = site.brownout("ana", "run", "short.yaml")
        assert denied.exit_code == REFUSED
        assert "INC-204 (user:oli)" in denied.stderr
        assert site.brownout("oli", "resume").exit_code == NOT_PERMITTED
    finally:
        released = site.brownout("admin", "resume")
    assert (released.exit_code, released.stdout) == (DONE, "released: INC-204 (user:oli)\n")
    assert site.brownout("ana", "run", "short.yaml", "--report", "json").exit_code in {DONE, INCONCLUSIVE}


def test_tokens_are_listed_without_their_secrets_and_revoked_at_once(site: Site) -> None:
    made = site.answer("vic", "token", "issue", "--days", 1)
    listed = site.brownout("vic", "token", "list", "-o", "json")
    assert made["id"] in listed.stdout
    assert made["token"] not in listed.stdout
    assert {row["user"] for row in json.loads(listed.stdout)} == {"vic"}
    site.tokens["short-lived"] = made["token"]
    assert site.brownout("short-lived", "whoami").exit_code == DONE
    assert site.brownout("eve", "token", "revoke", made["id"]).exit_code == USAGE
    below = site.answer("short-lived", "token", "issue", "--purpose", "ci")
    assert below["made_by"] == made["id"]
    revoked = site.brownout("vic", "token", "revoke", made["id"])
    assert revoked.exit_code == DONE
    assert revoked.stdout.splitlines()[1] == f"{below['id']} revoked (vic's, ci, made by vic by means of {made['id']})"
    assert site.brownout("vic", "token", "revoke", below["id"]).exit_code == REFUSED
    done = site.brownout("short-lived", "whoami")
    assert (done.exit_code, "error[no-token]" in done.stderr) == (NOT_PERMITTED, True)


def test_a_disabled_user_is_out_at_once_and_in_again(site: Site) -> None:
    assert site.brownout("admin", "users", "disable", "vic").exit_code == DONE
    assert site.brownout("vic", "whoami").exit_code == NOT_PERMITTED
    assert site.brownout("admin", "users", "enable", "vic").exit_code == DONE
    assert site.brownout("vic", "whoami").exit_code == DONE


@pytest.mark.parametrize(
    ("argv", "code", "says"),
    [
        (["run", "invalid.yaml"], INVALID, "invalid.yaml"),
        (["run", "missing.yaml"], INVALID, "missing-file"),
        (["run"], USAGE, "give either an experiment file or --plan"),
        (["run", "short.yaml", "--plan", "x"], USAGE, "give either"),
        (["run", "short.yaml", "--listen", "127.0.0.1:0"], USAGE, "--listen goes with"),
        (["run", "--plan", "0" * 64], USAGE, "there is no plan"),
        (["run", "--plan", "x"], USAGE, "plan"),
        (["users", "list"], NOT_PERMITTED, "these may: admin, auditor"),
        (["users", "add", "x", "--role", "root"], USAGE, "there is no role `root`"),
        (["token", "revoke", "nonsense"], USAGE, "there is no such thing"),
        (["halt", "4711"], USAGE, "there is no run 4711"),
    ],
)
def test_what_goes_wrong_has_its_exit_code_and_says_why(site: Site, argv: list[str], code: int, says: str) -> None:
    done = site.brownout("ana", *argv)
    assert (done.exit_code, says in done.stderr) == (code, True), done.stderr


def test_a_target_that_nobody_matches_is_refused_as_here(site: Site) -> None:
    (site.folder / "nobody.yaml").write_text((EXPERIMENT % "1s").replace("role=app", "role=none"))
    done = site.brownout("ana", "run", "nobody.yaml")
    assert (done.exit_code, "matches 0 hosts, so nothing was injected" in done.stderr) == (REFUSED, True), done.stderr


def test_a_controller_that_is_away_or_not_trusted_is_5(site: Site) -> None:
    away = site.brownout("ana", "whoami", BROWNOUT_SERVER="https://127.0.0.1:1")
    assert (away.exit_code, "does not answer" in away.stderr) == (UNREACHABLE, True), away.stderr
    other = site.brownout("ana", "whoami", BROWNOUT_SERVER_PIN="sha256:" + "0" * 64)
    assert (other.exit_code, "error[not-trusted]" in other.stderr) == (UNREACHABLE, True), other.stderr
    unknown = site.brownout("ana", "whoami", BROWNOUT_SERVER_PIN="")
    assert (unknown.exit_code, "error[not-trusted]" in unknown.stderr) == (UNREACHABLE, True), unknown.stderr
    plain = site.brownout("ana", "whoami", BROWNOUT_SERVER=site.url.replace("https", "http"))
    assert plain.exit_code == USAGE


def test_a_token_comes_from_a_file_of_ones_own_alone(site: Site) -> None:
    path = site.folder / "token"
    path.write_text(site.tokens["vic"] + "\n")
    path.chmod(0o644)
    named = {"BROWNOUT_TOKEN_FILE": str(path)}
    done = site.brownout("", "whoami", **named)
    assert (done.exit_code, "chmod 600" in done.stderr) == (USAGE, True)
    path.chmod(0o600)
    assert site.brownout("", "whoami", "-o", "name", **named).stdout == "vic\n"
    assert site.brownout("", "whoami").exit_code == NOT_PERMITTED


def test_a_second_controller_on_the_same_folder_is_refused(site: Site) -> None:
    done = site.brownout(
        "", "server", "start", "--data-dir", site.folder / "data", "--listen", "127.0.0.1:0", "--api", "127.0.0.1:0"
    )
    assert done.exit_code == REFUSED, done.stderr


def test_what_asks_a_controller_touches_no_data_folder_here(site: Site) -> None:
    assert site.answer("vic", "whoami")["user"] == "vic"
    assert not (site.folder / "unused").exists()


def test_when_the_controller_ends_its_runs_are_halted_and_undone_first(site: Site) -> None:
    """The last of this file: afterwards there is no controller."""
    process = begun(site, "ana", "last", "long.yaml")
    number = number_of(site, "last")
    site.processes[0].terminate()
    assert site.processes[0].wait(60) == 0, site.text("server.err")
    assert process.wait(60) in {HALTED, UNREACHABLE}, site.text("last.err")
    kept = site.brownout(
        "", "runs", "show", number, "-o", "json", "--data-dir", site.folder / "data", BROWNOUT_SERVER=""
    )
    document = json.loads(kept.stdout)
    assert (document["verdict"], document["residue"]["faults"]) == ("halted", [])
