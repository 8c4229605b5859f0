"""A policy that bounds where disk and network faults may work, by a real injector: links and races lead nowhere."""

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from brownout_agent.faults import catalogue
from brownout_agent.faults.contract import Host, Record, Refusal
from brownout_agent.fingerprint import Section, from_wire
from brownout_agent.frames import to_value
from brownout_agent.injector.fingerprint import NOT_LOOKED_AT
from brownout_agent.injector.holder import Holder, HolderFailed
from brownout_agent.kernel.clock import boottime_ns
from brownout_agent.kernel.folders import opened
from brownout_protos.v1 import fault_pb2

from tests.support.injectors import ACCEPTED, REFUSED, Client, connect, injector, new_id, story
from tests.support.residue import open_descriptors

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="the injector's faults need root")]

Told = Callable[[Client, Path], Awaitable[None]]


def bounded(folder: Path, told: Told) -> None:
    """An injector in a network of its own that lets disk faults work below `allowed`, and network faults on `lo`."""
    allowed = folder / "allowed"
    (allowed / "deep").mkdir(parents=True)
    (folder / "allowed-too").mkdir()
    (allowed / "out").symlink_to(folder / "allowed-too")
    (allowed / "in").symlink_to("deep")
    rule = f"{{allow: true, paths: [{allowed}]}}"
    policy = folder / "policy.yaml"
    policy.write_text(
        f"version: 1\nenvironment: staging\nlimits: {{concurrent: 9}}\nstop_file: {folder}/STOP\nfaults:\n"
        f"  disk.fill: {rule}\n  disk.io: {rule}\n  network.loss: {{allow: true, interfaces: [lo]}}\n"
    )

    async def whole(folder: Path) -> None:
        under = ("unshare", "--net", "--")
        async with injector(folder, "--policy", str(policy), embedded=False, under=under):
            await told(await connect(folder), folder)

    story(whole, folder)


async def asked(client: Client, kind: str, **parameters: object) -> fault_pb2.OrderReply:
    values = {name: to_value(value) for name, value in parameters.items()}  # type: ignore[arg-type]
    client.inject(new_id(), kind=kind, parameters=values)
    return await client.reply()


def test_disk_faults_work_below_the_allowed_folders_and_through_links_that_stay_there(tmp_path: Path) -> None:
    async def told(client: Client, folder: Path) -> None:
        allowed = folder / "allowed"
        for path in (allowed, allowed / "deep", allowed / "in", f"{allowed}/in/../deep/.", f"{allowed}//deep/"):
            reply = await asked(client, "disk.fill", path=str(path), size="1MiB")
            assert (reply.outcome, reply.reason) == (ACCEPTED, ""), path
        assert (await asked(client, "disk.io", path=str(allowed), write="1MiB/s", file_size="1MiB")).outcome == ACCEPTED

    bounded(tmp_path, told)


def test_elsewhere_they_are_refused_whatever_leads_there_and_nothing_is_told_of_what_is_there(tmp_path: Path) -> None:
    async def told(client: Client, folder: Path) -> None:
        allowed = folder / "allowed"
        for path, where in (
            (f"{allowed}-too", f"{allowed}-too is not below"),
            (f"{allowed}/out", f"{allowed}/out leads to {allowed}-too, which is not below"),
            (f"{allowed}/out/..", f"leads to {folder}, which is not below"),
            (f"{allowed}/../allowed-too", f"{allowed}/../allowed-too is not below"),
            (f"{allowed}/deep/../..", "is not below"),
            ("/proc/self/root", "/proc/self/root is not below"),
            ("/proc/self/cwd/nothing", "/proc/self/cwd/nothing is not below"),
            ("/nothing/there", "/nothing/there is not below"),
            ("/", "/ is not below"),
        ):
            reply = await asked(client, "disk.fill", path=path, size="1MiB")
            assert reply.outcome == REFUSED, path
            assert where in reply.reason
            assert f"policy allows for it: {allowed}" in reply.reason
            assert "`paths:`" in reply.remedy
        by_default = await asked(client, "disk.io", write="1MiB/s")
        assert "/var/tmp is not below" in by_default.reason

    bounded(tmp_path, told)


def test_network_faults_touch_the_allowed_interfaces_and_must_name_one(tmp_path: Path) -> None:
    async def told(client: Client, _: Path) -> None:
        everywhere = await asked(client, "network.loss", percent=5)
        assert everywhere.outcome == REFUSED
        assert "every interface, as none is named; this host's policy allows this fault on lo only" in everywhere.reason
        assert "write `interface: lo`" in everywhere.remedy
        elsewhere = await asked(client, "network.loss", percent=5, interface="eth0")
        assert "interface eth0; this host's policy allows this fault on lo only" in elsewhere.reason
        assert (await asked(client, "network.loss", percent=5, interface="lo", port=9)).outcome == ACCEPTED

    bounded(tmp_path, told)


def test_a_fingerprint_tells_of_folders_where_a_disk_fault_may_work_and_of_no_other(tmp_path: Path) -> None:
    async def told(client: Client, folder: Path) -> None:
        asked_for = [str(folder / name) for name in ("allowed/deep", "allowed/in", "allowed/out", "nothing")] + ["/etc"]
        client.send(fingerprint=fault_pb2.TakeFingerprint(fingerprint_id="look", folders=asked_for))
        answer = await client.until(lambda message: message.HasField("fingerprint"))
        found = from_wire(answer.fingerprint)
        (line,) = found.sections[Section.SPACE]
        assert line.endswith(f" {folder}/allowed/deep")
        assert found.unread == {f"space of {name}": NOT_LOOKED_AT for name in asked_for[2:]}

    bounded(tmp_path, told)


@pytest.mark.parametrize("kind", ["disk.fill", "disk.inodes", "disk.io"])
def test_a_folder_that_is_swapped_for_a_link_after_it_was_judged_is_not_worked_in(tmp_path: Path, kind: str) -> None:
    """Whoever owns a folder above it can swap it at any moment: here between the judgement and the fault."""
    inside, outside = tmp_path / "allowed/mine", tmp_path / "outside"
    inside.mkdir(parents=True)
    outside.mkdir()
    amounts: dict[str, dict[str, object]] = {
        "disk.fill": {"size": "1MiB"},
        "disk.inodes": {"count": 1},
        "disk.io": {"write": "1MiB/s", "file_size": "1MiB"},
    }
    parameters = {"path": str(inside), **amounts[kind]}

    async def told() -> None:
        fault = catalogue()[kind]
        host = Host(folders=(str(tmp_path / "allowed"),))
        wanted = fault.Parameters.model_validate(parameters)
        facts = fault.prepare(wanted, host)
        inside.rename(tmp_path / "allowed/was-mine")
        inside.symlink_to(outside)
        fault_id = new_id()
        holder = await Holder.spawn(kind, fault_id)
        try:
            ends_ns = boottime_ns() + 30 * 10**9
            with pytest.raises(HolderFailed, match="Not a directory"):
                await holder.go(parameters, facts, 30.0, lease_ends_ns=ends_ns, on_trial=False)
        finally:
            await holder.end()
        record = Record(fault_id, wanted, facts, 30.0)
        fault.undo(record)  # no injector does it here, and the holder has entered its control group already
        assert fault.residue(record) == []
        with pytest.raises(Refusal, match=f"leads to {outside}, which is not below"):
            fault.prepare(wanted, host)

    asyncio.run(told())


def test_a_path_is_opened_without_a_link_in_any_part_or_not_at_all_and_no_descriptor_stays(tmp_path: Path) -> None:
    (tmp_path / "a/b/c").mkdir(parents=True)
    (tmp_path / "link").symlink_to("a")
    (tmp_path / "file").touch()
    before = open_descriptors()
    with opened(str(tmp_path / "a/b/c")) as descriptor:
        assert os.fstat(descriptor).st_ino == (tmp_path / "a/b/c").stat().st_ino
    with opened("/") as descriptor:
        assert os.fstat(descriptor).st_ino == Path("/").stat().st_ino
    for nothing in ("link", "link/b", "a/b/none", "file", "file/x"):
        with pytest.raises(OSError, match=r"Not a directory|No such file"), opened(str(tmp_path / nothing)):
            pass
    assert open_descriptors() == before
