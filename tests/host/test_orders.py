"""What an injector refuses of a controller that is old, wrong, hostile or newer than it; nothing of it is applied."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from brownout_agent.frames import frame, to_value
from brownout_agent.injector.journal import Journal
from brownout_protos.v1 import fault_pb2, injector_pb2

from tests.support.injectors import ACCEPTED, REFUSED, Client, connect, holders, injector, new_id, story

pytestmark = pytest.mark.root


@contextlib.asynccontextmanager
async def served(folder: Path, policy: str = "") -> AsyncIterator[None]:
    """An injector under a policy that allows everything but what `policy` says."""
    text = f'version: 1\nenvironment: staging\nfaults: {{"*": {{allow: true}}}}\nstop_file: {folder}/STOP\n{policy}'
    (folder / "policy.yaml").write_text(text)
    async with injector(folder, "--policy", str(folder / "policy.yaml"), embedded=False):
        yield


async def outcome(client: Client, **more: object) -> tuple[int, str]:
    fault_id = new_id()
    client.inject(fault_id, **more)
    reply = await client.reply()
    assert reply.fault_id == fault_id
    return reply.outcome, reply.reason


async def ended(client: Client, **more: object) -> str:
    """A short fault, seen through to its end."""
    fault_id = new_id()
    client.inject(fault_id, duration_ms=300, **more)
    await client.state(fault_pb2.CLEAN)
    return fault_id


def nothing_was_recorded(folder: Path) -> None:
    journal = Journal(folder / "state", wait_s=5)  # the watchdog may look once more
    assert not journal.entries
    journal.close()


def test_an_older_controller_than_one_that_was_obeyed_is_refused_for_ever(tmp_path: Path) -> None:
    async def told(folder: Path) -> None:
        async with served(folder):
            client = await connect(folder)
            assert (await outcome(client, epoch=0, environment="other"))[0] == REFUSED
            await ended(client, epoch=5)
            assert "epoch 4 is older than 5" in (await outcome(client, epoch=4))[1]
            await ended(client, epoch=5)
        async with served(folder):
            client = await connect(folder)
            assert "epoch 4 is older than 5" in (await outcome(client, epoch=4))[1]
            await ended(client, epoch=6)
        assert json.loads((folder / "state" / "ledger").read_text())["epoch"] == 6

    story(told, tmp_path)


def test_an_epoch_is_on_disk_before_its_order_is_answered(tmp_path: Path) -> None:
    async def told(folder: Path) -> None:
        async with served(folder):
            client = await connect(folder)
            (folder / "state" / "ledger.new").mkdir()  # the next page has no place
            result, reason = await outcome(client, epoch=3)
            assert (result, "cannot be written" in reason) == (REFUSED, True)
            (folder / "state" / "ledger.new").rmdir()
            assert (await outcome(client, epoch=2))[0] == ACCEPTED  # epoch 3 was never obeyed

    story(told, tmp_path)


def test_a_refused_order_of_a_large_epoch_locks_nobody_out(tmp_path: Path) -> None:
    async def told(folder: Path) -> None:
        async with served(folder):
            client = await connect(folder)
            assert (await outcome(client, epoch=2**63, environment="other"))[0] == REFUSED
            assert (await outcome(client, epoch=1))[0] == ACCEPTED

    story(told, tmp_path)


def test_a_renewal_of_an_older_controller_renews_nothing(tmp_path: Path) -> None:
    async def told(folder: Path) -> None:
        async with served(folder):
            client, fault_id = await connect(folder), new_id()
            client.inject(fault_id, epoch=5, lease_ms=8_000)
            await client.state(fault_pb2.ACTIVE)
            clean = asyncio.create_task(client.state(fault_pb2.CLEAN))
            while not clean.done():
                client.send(renew=fault_pb2.RenewLease(epoch=4))
                await asyncio.wait({clean}, timeout=0.2)
            assert clean.result().end_cause == fault_pb2.LEASE_LOST

    story(told, tmp_path)


def test_an_order_for_another_agent_is_refused(tmp_path: Path) -> None:
    async def told(folder: Path) -> None:
        async with served(folder):
            client = await connect(folder)
            assert "the order is for agent `somebody`" in (await outcome(client, agent_id="somebody"))[1]
            client.send(attach=injector_pb2.Attach(agent_id="me"))
            assert "the order is for agent ``" in (await outcome(client))[1]
            assert "the order is for agent `you`" in (await outcome(client, agent_id="you"))[1]
            assert (await outcome(client, agent_id="me"))[0] == ACCEPTED

    story(told, tmp_path)


@pytest.mark.parametrize("where", ["order", "value", "list", "no kind"])
def test_an_order_that_says_more_than_this_version_knows_is_refused_as_a_whole(tmp_path: Path, where: str) -> None:
    later = b"\xc2\x3e\x04soft"  # field 1000, four bytes of text
    order = fault_pb2.Inject(
        fault_id="later", environment="staging", kind="cpu.load", duration_ms=1_000, lease_ms=1_000
    )
    order.parameters["percent"].CopyFrom(to_value(1))
    match where:
        case "order":
            order.MergeFromString(later)
        case "value":
            order.parameters["of"].CopyFrom(to_value("own"))
            order.parameters["of"].MergeFromString(later)
        case "list":
            order.parameters["cores"].CopyFrom(to_value(["0"]))
            order.parameters["cores"].texts.MergeFromString(later)
        case _:
            order.parameters["of"].CopyFrom(fault_pb2.Value())

    async def told(folder: Path) -> None:
        async with served(folder):
            client = await connect(folder)
            client.writer.write(frame(injector_pb2.ToInjector(inject=order)))
            reply = await client.reply()
            assert reply.outcome == REFUSED
            assert ("no value" if where == "no kind" else "which this version does not know") in reply.reason
        nothing_was_recorded(folder)

    story(told, tmp_path)


def test_the_days_count_outlives_the_injector(tmp_path: Path) -> None:
    async def told(folder: Path) -> None:
        for begun in range(2):
            async with served(folder, "limits: {per_day: 2}\n"):
                client = await connect(folder)
                assert (await outcome(client, environment="other"))[0] == REFUSED  # what is refused is not counted
                await ended(client)
                assert len(json.loads((folder / "state" / "ledger").read_text())["begun_ns"]) == begun + 1
        async with served(folder, "limits: {per_day: 2}\n"):
            result, reason = await outcome(await connect(folder))
            assert (result, reason) == (REFUSED, "2 faults were begun here in the last 24 hours; this host allows 2")

    story(told, tmp_path)


def test_a_count_that_is_lost_refuses(tmp_path: Path) -> None:
    async def told(folder: Path) -> None:
        async with served(folder, "limits: {per_day: 2}\n"):
            await ended(await connect(folder))
        (folder / "state" / "ledger").write_text("{")
        async with served(folder, "limits: {per_day: 2}\n"):
            client = await connect(folder)
            result, reason = await outcome(client)
            assert (result, "cannot be kept" in reason) == (REFUSED, True)
            client.send(halt=fault_pb2.Halt(halt_id="h"))  # stopping needs no ledger
            assert (await client.until(lambda message: message.HasField("halted"))).halted.clean

    story(told, tmp_path)


def test_a_host_rests_between_faults_also_over_a_restart(tmp_path: Path) -> None:
    async def told(folder: Path) -> None:
        async with served(folder, "limits: {cooldown_s: 600}\n"):
            client = await connect(folder)
            await ended(client)
            assert "this host rests 600 s" in (await outcome(client))[1]
        async with served(folder, "limits: {cooldown_s: 600}\n"):
            assert "this host rests 600 s" in (await outcome(await connect(folder)))[1]

    story(told, tmp_path)


def test_a_host_that_lets_faults_finish_does_so_without_a_controller(tmp_path: Path) -> None:
    async def told(folder: Path) -> None:
        async with served(folder, "on_controller_loss: finish\n"):
            client, fault_id = await connect(folder), new_id()
            client.inject(fault_id, lease_ms=500, duration_ms=2_500)
            assert (await client.state(fault_pb2.CLEAN)).end_cause == fault_pb2.DURATION

    story(told, tmp_path)


HOSTILE: list[dict[str, object]] = [
    {"environment": "production"},
    {"environment": ""},
    {"duration_ms": 2**32 - 1},
    {"duration_ms": 61_000},
    {"duration_ms": 0},
    {"lease_ms": 2**32 - 1},
    {"parameters": {"percent": to_value(51)}},
    {"parameters": {"percent": to_value("51%")}},
    {"parameters": {"percent": to_value(1e308)}},
    {"parameters": {"percent": to_value(float("nan"))}},
    {"parameters": {"percent": to_value(float("-inf"))}},
    {"parameters": {"percent": to_value(True)}},
    {"parameters": {"percent": to_value(["50"])}},
    {"parameters": {"percent": to_value("50; reboot")}},
    {"parameters": {"percent": to_value(50), "command": to_value("reboot")}},
    {"kind": "cpu.melt"},
    {"kind": "CPU.LOAD"},
    {"kind": "../cpu.load"},
    {"kind": "*"},
    {"kind": ""},
    {"kind": "memory.load", "parameters": {"size": to_value("2GiB")}},
    {"kind": "memory.load", "parameters": {"size": to_value("1TiB")}},
    {"kind": "memory.load", "parameters": {"percent": to_value(1)}},
    {"kind": "disk.fill", "parameters": {"path": to_value("/"), "percent": to_value(100)}},
    {"kind": "network.blackhole", "parameters": {}},
    {"kind": "process.kill", "parameters": {"process": to_value("sshd")}},
    {"fault_id": ""},
    {"fault_id": "../../etc/passwd"},
    {"fault_id": "x" * 101},
    {"fault_id": "a b"},
    {"fault_id": "\0"},
]


def test_nothing_of_a_hostile_controllers_orders_is_applied(tmp_path: Path) -> None:
    """All at once, by an agent that is owned as well; then what the policy does allow still works."""
    allowed = "cpu.load: {allow: true, max_seconds: 60, max: {percent: 50}}"
    faults = f"faults: {{{allowed}, memory.load: {{allow: true, max: {{size: 1GiB}}}}}}"

    async def told(folder: Path) -> None:
        (folder / "policy.yaml").write_text(f"version: 1\nenvironment: staging\nstop_file: {folder}/STOP\n{faults}\n")
        async with injector(folder, "--policy", str(folder / "policy.yaml"), embedded=False):
            client = await connect(folder)
            for order in HOSTILE:
                client.inject(**{"fault_id": new_id(), **order})  # type: ignore[arg-type]
                reply = await client.reply()
                assert (reply.outcome, bool(reply.reason)) == (REFUSED, True), order
        nothing_was_recorded(folder)
        async with injector(folder, "--policy", str(folder / "policy.yaml"), embedded=False):
            assert not holders(await ended(await connect(folder), parameters={"percent": to_value(50)}))

    story(told, tmp_path)
