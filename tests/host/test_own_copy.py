"""What the injector did stands in its own copy: a real injector that is stopped, halted, killed, or has a full disk."""

import os
import signal
from pathlib import Path

import pytest
from brownout_agent.chain import Following, read_line
from brownout_agent.host_log import HostLog
from brownout_protos.v1 import fault_pb2

from tests.support.disks import MIB, ext4, free_bytes
from tests.support.injectors import ACCEPTED, REFUSED, Client, connect, injector, new_id, story
from tests.support.polling import wait_until

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="the copy is root's")]


def kept(folder: Path) -> list[tuple[str, str, str, str]]:
    """Actor, action, outcome and reason of every record; the chain is whole."""
    path = folder / "state/audit.jsonl"
    found = [read_line(line) for line in path.read_text().splitlines()] if path.exists() else []
    following = Following()
    following.take_all(found)
    assert following.breaks == []
    names = ("actor", "action", "outcome", "reason")
    return [tuple(one.document[name] for name in names) for one in found]  # type: ignore[misc]


def has(folder: Path, *record: str) -> None:
    wait_until(lambda: any(one[: len(record)] == record for one in kept(folder)), f"{record} is kept: {kept(folder)}")


async def active(client: Client) -> str:
    fault_id = new_id()
    client.inject(fault_id)
    assert (await client.reply()).outcome == ACCEPTED
    await client.state(fault_pb2.ACTIVE)
    return fault_id


def test_an_order_its_stop_and_its_end_are_kept_in_order_and_only_root_may_read_them(tmp_path: Path) -> None:
    async def told(folder: Path) -> None:
        async with injector(folder):
            client = await connect(folder)
            fault_id = await active(client)
            client.send(stop=fault_pb2.Stop(fault_id=fault_id, reason="enough"))
            await client.state(fault_pb2.CLEAN)
            client.inject(fault_id, environment="elsewhere")
            client.inject(new_id(), environment="elsewhere")
            assert (await client.until(lambda one: one.reply.outcome == REFUSED)).reply.reason
        assert [record[:3] for record in kept(folder)] == [
            ("agent:", "fault.inject", "obeyed"),
            ("injector", "fault.state", "active"),
            ("uid:0", "fault.stop", "obeyed"),
            ("injector", "fault.state", "undoing"),
            ("injector", "fault.state", "clean"),
            ("uid:0", "fault.inject", "refused"),
        ]
        assert kept(folder)[2][3] == kept(folder)[3][3] == "enough"
        assert "for environment `elsewhere`" in kept(folder)[-1][3]
        assert (folder / "state/audit.jsonl").stat().st_mode & 0o777 == 0o600

    story(told, tmp_path)


def test_halts_by_the_agent_and_by_root_and_the_release_are_kept(tmp_path: Path) -> None:
    policy, stop_file = tmp_path / "policy.yaml", tmp_path / "STOP"
    policy.write_text(
        f"version: 1\nenvironment: staging\nstop_file: {stop_file}\nfaults: {{cpu.load: {{allow: true}}}}\n"
    )

    async def told(folder: Path) -> None:
        async with injector(folder, "--policy", str(policy), embedded=False):
            client = await connect(folder)
            await active(client)
            client.send(halt=fault_pb2.Halt(halt_id="h", reason="by mistake"))
            await client.until(lambda one: one.HasField("halted"))
            has(folder, "uid:0", "host.halt", "obeyed", "by mistake")
            stop_file.write_text("smoke")
            has(folder, "root", "host.halt", "halted")
            stop_file.unlink()
            has(folder, "root", "host.halt", "released")

    story(told, tmp_path)


def test_what_a_killed_injector_left_is_kept_by_who_undid_it_and_the_chain_goes_on(tmp_path: Path) -> None:
    async def told(folder: Path) -> None:
        async with injector(folder) as process:
            await active(await connect(folder))
            process.send_signal(signal.SIGKILL)
            await process.wait()
            has(folder, "reaper", "fault.state", "clean")
        async with injector(folder):
            await active(await connect(folder))
        assert [record[:3] for record in kept(folder)][-4:] == [
            ("agent:", "fault.inject", "obeyed"),
            ("injector", "fault.state", "active"),
            ("injector", "fault.state", "undoing"),
            ("injector", "fault.state", "clean"),
        ]

    story(told, tmp_path)


def test_a_full_disk_takes_the_records_of_orders_and_undoing_all_the_same(tmp_path: Path) -> None:
    with ext4(tmp_path, 32 * MIB) as disk:
        (disk / "state").mkdir(mode=0o700)
        HostLog(disk / "state").keep("root", "test", "it", "begun")  # as on a host that is not new

        async def told(folder: Path) -> None:
            async with injector(folder):
                client = await connect(folder)
                await active(client)
                with (disk / "filler").open("wb") as filler, pytest.raises(OSError, match="No space left"):
                    while True:
                        filler.write(b"x" * 4096)
                        filler.flush()
                assert free_bytes(disk) == 0
                fault_id = await active(client)
                client.send(stop=fault_pb2.Stop(fault_id=fault_id, reason="full"))
                await client.state(fault_pb2.CLEAN)
                has(folder, "injector", "fault.state", "clean")
            assert len([one for one in kept(folder) if one[:3] == ("injector", "fault.state", "clean")]) == 2

        story(told, disk)


def test_an_order_that_cannot_be_kept_is_refused_and_nothing_is_begun(tmp_path: Path) -> None:
    async def told(folder: Path) -> None:
        async with injector(folder):
            client = await connect(folder)
            (folder / "state/audit.jsonl").write_text("nonsense\n")
            fault_id = new_id()
            client.inject(fault_id)
            reply = await client.reply()
            assert reply.outcome == REFUSED
            assert "own copy of the order cannot be kept" in reply.reason
            assert "move it away" in reply.reason
            assert fault_id.encode() not in (folder / "state/journal").read_bytes()

    story(told, tmp_path)
