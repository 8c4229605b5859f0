"""The audit log of real programs: what they do stands in it, whoever knocks does not fill it, and it holds."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from brownout_agent.agent.identity import new_key, request_for
from brownout_agent.agent.trust import SERVER_NAME, controllers_of
from brownout_controller.access.guessing import PER_ORIGIN
from brownout_controller.audit.checkpoint import SealingKey
from brownout_controller.audit.entry import AuditEntry, Outcome
from brownout_controller.audit.log import audit_log
from brownout_controller.audit.verifying import verify
from brownout_controller.store.audit import AuditStore
from brownout_controller.store.database import Database
from brownout_protos.v1 import fleet_pb2, fleet_pb2_grpc

from tests.support.fleets import controller
from tests.support.postgres import Postgres

BROWNOUT = Path(sys.executable).with_name("brownout")


@pytest.fixture
def brownout(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    environment = {"PATH": "/usr/bin", "BROWNOUT_DATA_DIR": str(tmp_path / "data"), "USER": "mary", "LOGNAME": "mary"}

    def run(*argv: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [BROWNOUT, *map(str, argv)], env=environment, capture_output=True, text=True, check=False, timeout=60
        )

    return run


def test_what_is_typed_here_stands_in_the_log_and_a_change_of_it_is_found(
    brownout: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    assert brownout("token", "create").returncode == 0
    assert brownout("hosts", "revoke", "nobody").returncode == 4
    assert brownout("ca", "rotate").returncode == 0
    assert brownout("halt", "--all", "--reason", "a drill").returncode == 0
    assert brownout("resume").returncode == 0
    rows: list[dict[str, Any]] = json.loads(brownout("audit", "list", "-o", "json").stdout)[::-1]
    assert {row["actor"] for row in rows} == {"local:mary"}
    assert [(row["action"], row["outcome"]) for row in rows] == [
        ("host.enrol", "allowed"),
        ("host.revoke", "allowed"),
        ("host.revoke", "failed"),
        ("authority.rotate", "allowed"),
        ("lever.pull", "allowed"),
        ("lever.release", "allowed"),
    ]
    verified = brownout("audit", "verify", "-o", "json")
    assert verified.returncode == 0, verified.stderr
    assert json.loads(verified.stdout)["sealed"] == len(rows)
    assert brownout("audit", "export", tmp_path / "log").returncode == 0
    assert brownout("audit", "verify", "--file", tmp_path / "log").returncode == 0
    (tmp_path / "log").write_text((tmp_path / "log").read_text().replace("local:mary", "local:bob", 1))
    refused = brownout("audit", "verify", "--file", tmp_path / "log")
    assert refused.returncode == 4
    assert "record 1: it is not what it was" in refused.stderr


async def _enrol(port: int, authority_pem: bytes) -> grpc.StatusCode:
    credentials = grpc.ssl_channel_credentials(controllers_of(authority_pem))
    options = (("grpc.ssl_target_name_override", SERVER_NAME),)
    async with grpc.aio.secure_channel(f"127.0.0.1:{port}", credentials, options=options) as channel:
        request = fleet_pb2.EnrolRequest(token="bo_guess", certificate_request_pem=request_for(new_key()))
        stub: fleet_pb2_grpc.FleetAsyncStub = fleet_pb2_grpc.FleetStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.Enrol(request, timeout=20)
        code: grpc.StatusCode = refused.value.code()
        return code


def test_whoever_guesses_at_join_tokens_is_kept_waiting_and_fills_no_log(tmp_path: Path) -> None:
    async def guess() -> list[grpc.StatusCode]:
        async with controller(tmp_path / "c", auditor=log) as serving:
            return [await _enrol(serving.enrol_port, serving.authority.bundle_pem) for _ in range(PER_ORIGIN + 5)]

    database = Database.in_folder(tmp_path / "audit")
    store = AuditStore(database)
    with audit_log(store, tmp_path / "keys") as log:
        codes = asyncio.run(guess())
    assert codes == [grpc.StatusCode.PERMISSION_DENIED] * PER_ORIGIN + [grpc.StatusCode.RESOURCE_EXHAUSTED] * 5
    rows = store.newest(99, {"action": "agent.enrol"})
    assert [row["detail"].get("count") for row in rows] == [str(PER_ORIGIN - 1 + 5), None], "every guess is counted"
    assert all(row["outcome"] == "refused" and row["actor"] == "unknown" for row in rows)
    database.close()


def test_several_controllers_on_postgresql_append_to_one_chain(postgres_server: Postgres, tmp_path: Path) -> None:
    address = postgres_server.make_database()
    argv = [sys.executable, "-m", "tests.support.audit_writer", address, str(tmp_path / "keys"), "300"]
    writers = [subprocess.Popen([*argv, str(number)], stdout=subprocess.PIPE, text=True) for number in range(3)]
    for writer in writers:
        writer.communicate(timeout=120)
        assert writer.returncode == 0
    database = Database.at(address)
    store = AuditStore(database)
    head = store.head()
    found = verify(
        store.links(), store.checkpoints(), {SealingKey(tmp_path / "keys").public_key}, (head.sequence, head.hash)
    )
    assert found.sound, found.breaks
    assert (found.records, found.sealed) == (900, 900)
    subjects = [one.document["subject"] for one in store.links()]
    for number in range(3):
        own = [subject for subject in subjects if subject.startswith(f"{number}-")]
        assert len(own) == len(set(own)) == 300, "each is there once"
    database.close()


def test_an_entry_that_postgresql_cannot_keep_is_refused_and_later_ones_go_on(
    postgres_server: Postgres, tmp_path: Path
) -> None:
    entry = AuditEntry("user:mary", "run.start", "run 1\x00", Outcome.ALLOWED)
    database = Database.at(postgres_server.make_database())
    with audit_log(AuditStore(database), tmp_path / "keys") as log:
        log.record(entry)
    assert [row["subject"] for row in AuditStore(database).newest(9)] == ["run 1\\x00"]
    database.close()
