"""The fingerprint of a host, taken by a real injector in namespaces of its own: what is left there is found by name."""

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from brownout_agent.fingerprint import Fingerprint, Section, from_wire
from brownout_agent.injector.fingerprint import take_fingerprint
from brownout_agent.kernel.cgroups import group_folders
from brownout_agent.kernel.netfilter import is_there, parse_ruleset
from brownout_agent.kernel.process_states import unnamed_files
from brownout_agent.kernel.ptrace import stop
from brownout_controller.analysis.residue import find_residue
from brownout_controller.record import HostResidue, ResidueState
from brownout_protos.v1 import fault_pb2

from tests.support.disks import MIB, ext4
from tests.support.injectors import Client, connect, injector, new_id, story
from tests.support.residue import open_descriptors

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="namespaces need root")]
ALL_KINDS = ("cpu.load", "memory.load", "disk.fill", "network.loss", "process.pause")


@dataclass
class Host:
    """An injector in a network and a mount namespace of its own, and a client at its door."""

    pid: int
    client: Client
    folder: Path

    def run(self, *argv: object, stdin: str = "", keep: tuple[int, ...] = ()) -> None:
        """A program in the host's namespaces; it inherits the descriptors of `keep`."""
        subprocess.run(self._inside(*argv), check=True, input=stdin, text=True, capture_output=True, pass_fds=keep)

    @contextmanager
    def running(self, *argv: object) -> Iterator["subprocess.Popen[bytes]"]:
        """A process of the host, killed at the end."""
        with subprocess.Popen(self._inside(*argv), stdout=subprocess.PIPE) as process:
            try:
                assert process.stdout is not None
                assert process.stdout.readline() == b"ready\n"
                yield process
            finally:
                process.kill()

    async def look(self, *folders: Path) -> Fingerprint:
        question = fault_pb2.TakeFingerprint(fingerprint_id=new_id(), folders=map(str, folders))
        self.client.send(fingerprint=question)
        answer = await self.client.until(lambda message: message.fingerprint.fingerprint_id == question.fingerprint_id)
        return from_wire(answer.fingerprint)

    def _inside(self, *argv: object) -> list[str]:
        return ["nsenter", f"--target={self.pid}", "--net", "--mount", "--", *map(str, argv)]


def on_host(folder: Path, told: Callable[[Host], Coroutine[None, None, None]]) -> None:
    async def whole(folder: Path) -> None:
        async with injector(folder, under=("unshare", "--net", "--mount", "--")) as process:
            host = Host(process.pid, await connect(folder), folder)
            host.run("ip", "link", "set", "lo", "up")
            await told(host)

    story(whole, folder)


def compare(before: Fingerprint, after: Fingerprint, *kinds: str) -> HostResidue:
    return find_residue("host", {f"f-{kind}": kind for kind in kinds or ALL_KINDS}, before, after)


def test_a_host_at_rest_is_clean_and_every_section_is_read(tmp_path: Path) -> None:
    async def told(host: Host) -> None:
        before = await host.look(tmp_path)
        after = await host.look(tmp_path)
        assert dict(before.unread) == {}
        assert set(before.sections) == {section.value for section in Section}
        assert compare(before, after) == HostResidue("host", ResidueState.CLEAN)
        assert before.boot_id == Path("/proc/sys/kernel/random/boot_id").read_text().strip()

    on_host(tmp_path, told)


SLEEPER = ("-c", "import time; print('ready', flush=True); time.sleep(60)")
LEFT_ON_THE_NETWORK = [
    (Section.QDISCS, "lo pfifo 7: parent root", ("tc", "qdisc", "add", "dev", "lo", "root", "handle", "7:", "pfifo")),
    (Section.NFT, "table inet brownout-3f00aa", ("nft", "add", "table", "inet", "brownout-3f00aa")),
    (Section.NFT, "table ip of-somebody", ("nft", "add", "table", "ip", "of-somebody")),
]


@pytest.mark.parametrize(("section", "line", "argv"), LEFT_ON_THE_NETWORK, ids=lambda part: str(part)[:30])
def test_what_is_left_on_the_network_is_residue_of_a_network_fault_and_named(
    tmp_path: Path, section: Section, line: str, argv: tuple[str, ...]
) -> None:
    async def told(host: Host) -> None:
        before = await host.look()
        host.run(*argv)
        found = compare(before, await host.look(), "network.loss")
        (left,) = found.left
        assert (found.state, left.startswith(f"+ {section.value}: {line}")) == (ResidueState.RESIDUE, True)

    on_host(tmp_path, told)


def test_a_qdisc_that_is_gone_and_one_that_is_other_are_told(tmp_path: Path) -> None:
    async def told(host: Host) -> None:
        host.run("tc", "qdisc", "add", "dev", "lo", "root", "handle", "7:", "pfifo", "limit", "5")
        before = await host.look()
        host.run("tc", "qdisc", "change", "dev", "lo", "root", "handle", "7:", "pfifo", "limit", "6")
        assert [line[:2] for line in compare(before, await host.look(), "network.loss").left] == ["+ ", "- "]
        host.run("tc", "qdisc", "delete", "dev", "lo", "root")
        (left,) = compare(before, await host.look(), "network.loss").left
        assert left.startswith("- qdiscs: lo pfifo 7:")

    on_host(tmp_path, told)


def test_rules_of_others_that_changed_are_told_and_nobodys_residue_and_counting_changes_nothing(tmp_path: Path) -> None:
    rules = "table ip firewall {{ chain in {{ type filter hook input priority 0; udp dport {port} counter; }}; }}"

    async def told(host: Host) -> None:
        host.run("nft", "-f", "-", stdin=rules.format(port=9))
        before = await host.look()
        host.run(
            sys.executable, "-c", "import socket; socket.socket(type=socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', 9))"
        )
        assert compare(before, await host.look()) == HostResidue("host", ResidueState.CLEAN)
        host.run("nft", "-f", "-", stdin=rules.format(port=10))
        found = compare(before, await host.look(), "network.loss")
        assert found.state is ResidueState.CLEAN
        assert [line.split(":")[1] for line in found.changed_meanwhile] == [" table ip firewall"] * 2

    on_host(tmp_path, told)


def test_a_stopped_process_and_a_traced_one_are_residue_of_a_process_fault(tmp_path: Path) -> None:
    async def told(host: Host) -> None:
        with host.running(sys.executable, *SLEEPER) as stopped, host.running(sys.executable, *SLEEPER) as traced:
            before = await host.look()
            stopped.send_signal(signal.SIGSTOP)
            with tracing(traced.pid) as tracer:
                (first, second) = compare(before, await host.look(), "process.pause").left
            assert f"process {stopped.pid} " in first + second
            assert f"process {traced.pid} " in first + second
            assert f"is stopped by process {tracer}" in first + second

    on_host(tmp_path, told)


@contextmanager
def tracing(pid: int) -> Iterator[int]:
    """A thread of ours, whose id this yields, traces it; the kernel lets it go when that thread ends."""
    stopped, enough = threading.Event(), threading.Event()

    def trace() -> None:
        stop(pid, 5)
        stopped.set()
        enough.wait(30)

    thread = threading.Thread(target=trace)
    thread.start()
    try:
        assert stopped.wait(10)
        yield thread.native_id or 0
    finally:
        enough.set()
        thread.join()


def test_a_mount_an_interface_a_sysctl_and_a_hosts_file_that_changed_are_named(tmp_path: Path) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text("127.0.0.1 localhost\n")
    (tmp_path / "there").mkdir()

    async def told(host: Host) -> None:
        host.run("mount", "--bind", hosts, "/etc/hosts")
        before = await host.look()
        hosts.write_text("127.0.0.1 localhost\n127.0.0.9 database\n")
        host.run("mount", "-t", "tmpfs", "left-here", tmp_path / "there")
        host.run("ip", "link", "add", "brownout-9", "type", "veth", "peer", "name", "other-end")
        host.run("sysctl", "-q", "-w", "net.ipv4.ip_forward=1")
        after = await host.look()
        changed = "\n".join(compare(before, after, "cpu.load").changed_meanwhile)
        assert f"+ mounts: {tmp_path}/there tmpfs left-here" in changed
        assert changed.count(" files: /etc/hosts sha256:") == 2
        assert "+ sysctls: net.ipv4.ip_forward = 1" in changed
        (left,) = compare(before, after, "cpu.load").left
        assert left.startswith("+ interfaces: brownout-9 down")
        assert compare(before, after, "time.skew").state is ResidueState.RESIDUE
        host.run("umount", tmp_path / "there")
        host.run("umount", "/etc/hosts")

    on_host(tmp_path, told)


def test_a_filled_file_is_residue_of_a_disk_fault(tmp_path: Path) -> None:
    with ext4(tmp_path, 128 * MIB) as disk:

        async def told(host: Host) -> None:
            before = await host.look(disk)
            with (disk / "filler").open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, 40 * MIB)
            found = compare(before, await host.look(disk), "disk.fill")
            assert [line.split(" has ")[0] for line in found.left[:1]] == [f"+ space: {disk}"]
            assert "40 MiB less (16 MiB may be lost)" in found.left[0]

        on_host(tmp_path, told)


HOLDER = """
import os, sys, time
file = os.open(sys.argv[1], os.O_TMPFILE | os.O_RDWR)
os.posix_fallocate(file, 0, 2**20)
print("ready", flush=True)
time.sleep(60)
"""


def test_an_orphaned_holder_and_the_file_without_a_name_that_it_keeps_are_residue_of_anything(tmp_path: Path) -> None:
    async def told(host: Host) -> None:
        before = await host.look()
        dead = await asyncio.create_subprocess_exec("true")
        await dead.wait()
        argv = (sys.executable, "-c", HOLDER, "/var/tmp", "brownout_agent.injector.holder")
        with host.running(*argv, "disk.io", "the-id", dead.pid) as orphan:
            found = compare(before, await host.look(), "cpu.load")
        assert f"+ holders: orphaned brownout holder, process {orphan.pid}, of disk.io the-id" in found.left
        who = f"orphaned brownout holder, process {orphan.pid}, of disk.io the-id"
        assert any(line.startswith(f"+ unnamed_files: {who}: {2**20} bytes on device") for line in found.left)

    on_host(tmp_path, told)


def test_the_output_that_an_injector_was_started_with_is_none_of_its_files(tmp_path: Path) -> None:
    with tempfile.TemporaryFile(dir=tmp_path) as output, tempfile.TemporaryFile(dir=tmp_path) as opened:
        for file in (output, opened):
            file.write(b"x")
            file.flush()
        keeping = subprocess.Popen(["sleep", "60"], stdout=output, pass_fds=[opened.fileno()])
        try:
            (only,) = unnamed_files(keeping.pid)
        finally:
            keeping.kill()
            keeping.wait()
        assert only.startswith(f"{os.fstat(opened.fileno()).st_blocks * 512} bytes on device ")


@pytest.mark.parametrize("users", [("--reuid=65533",), ("--ruid=65533",)], ids=["a user's own", "set-user-id root"])
def test_a_process_of_another_user_that_calls_itself_a_holder_is_none(tmp_path: Path, users: tuple[str, ...]) -> None:
    async def told(host: Host) -> None:
        before = await host.look()
        argv = ("setpriv", *users, "--clear-groups", "--", "/usr/bin/python3", "-c", IMPOSTOR)
        with host.running(*argv, "brownout_agent.injector.holder", "disk.io", "the-id", "0"):
            assert compare(before, await host.look()).state is ResidueState.CLEAN

    on_host(tmp_path, told)


IMPOSTOR = "import time; print('ready', flush=True); time.sleep(60)"


def test_the_holders_of_another_living_injector_are_its_own_affair(tmp_path: Path) -> None:
    async def told(host: Host) -> None:
        before = await host.look()
        argv = (sys.executable, "-c", HOLDER, "/var/tmp", "brownout_agent.injector.holder", "disk.io", "the-id")
        with host.running(*argv, os.getpid()):
            assert compare(before, await host.look()).state is ResidueState.CLEAN

    on_host(tmp_path, told)


def test_a_fault_in_effect_is_seen_and_gone_when_it_is_clean(tmp_path: Path) -> None:
    async def told(host: Host) -> None:
        before, fault_id = await host.look(), new_id()
        host.client.inject(fault_id)
        await host.client.state(fault_pb2.ACTIVE)
        during = await host.look()
        lines = find_residue("host", {fault_id: "cpu.load"}, before, during).left
        assert any(f"of cpu.load {fault_id}" in line for line in lines)
        assert compare(before, during).left == (), "to another run it is no residue"
        host.client.send(stop=fault_pb2.Stop(fault_id=fault_id))
        await host.client.state(fault_pb2.CLEAN)
        assert compare(before, await host.look()).left == ()

    on_host(tmp_path, told)


def test_a_control_group_by_our_name_is_residue(tmp_path: Path) -> None:
    mountinfo = Path("/proc/self/mountinfo").read_text()
    memberships = Path("/proc/self/cgroup").read_text()
    fault_id = new_id()
    parents = [next(group_folders(mountinfo, memberships, name), None) for name in ("pids", "memory", "")]
    group = next(parent for parent in parents if parent) / f"brownout-fault-{fault_id}"

    async def told(host: Host) -> None:
        before = await host.look()
        group.mkdir()
        try:
            found = find_residue("host", {fault_id: "cpu.load"}, before, await host.look())
        finally:
            group.rmdir()
        assert f"+ cgroups: {group} with 0 processes" in found.left

    on_host(tmp_path, told)


def test_rules_of_the_older_iptables_are_read_without_their_counters(tmp_path: Path) -> None:
    async def told(host: Host) -> None:
        host.run("iptables-legacy", "-A", "INPUT", "-p", "udp", "--dport", "9", "-j", "ACCEPT")
        before = await host.look()
        assert dict(before.unread) == {}
        host.run(
            sys.executable, "-c", "import socket; socket.socket(type=socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', 9))"
        )
        assert compare(before, await host.look()) == HostResidue("host", ResidueState.CLEAN)
        host.run("iptables-legacy", "-A", "INPUT", "-p", "udp", "--dport", "10", "-j", "ACCEPT")
        changed = compare(before, await host.look()).changed_meanwhile
        assert [line.split(":")[1] for line in changed] == [" table ip filter"] * 2

    on_host(tmp_path, told)


def test_a_table_without_a_program_to_read_it_is_not_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bare = tmp_path / "bin"
    bare.mkdir()
    for program in ("unshare", "nsenter", "ip"):
        (bare / program).symlink_to(shutil.which(program) or "")
    iptables = shutil.which("iptables-legacy")
    monkeypatch.setenv("PATH", str(bare))

    async def told(host: Host) -> None:
        host.run(iptables, "-A", "INPUT", "-j", "ACCEPT")
        assert (await host.look()).unread == {"iptables": "ip table filter cannot be read without iptables-legacy-save"}

    on_host(tmp_path, told)


def test_a_file_system_that_does_not_answer_stops_neither_orders_nor_other_looks(tmp_path: Path) -> None:
    """A FUSE file system whose server is frozen: nobody can ask it for its free space."""
    mount_point = tmp_path / "frozen"
    mount_point.mkdir()

    async def told(host: Host) -> None:
        device = os.open("/dev/fuse", os.O_RDWR)
        options = f"fd={device},rootmode=40000,user_id=0,group_id=0"
        mount = "import ctypes, sys; c = ctypes.CDLL(None, use_errno=True); "
        mount += (
            "sys.exit(c.mount(b'x', sys.argv[1].encode(), b'fuse', 0, sys.argv[2].encode()) and ctypes.get_errno())"
        )
        host.run(sys.executable, "-c", mount, mount_point, options, keep=(device,))
        try:
            for _ in range(4):
                host.client.send(fingerprint=fault_pb2.TakeFingerprint(fingerprint_id="x", folders=[str(mount_point)]))
            refused = await host.look()
            assert set(refused.unread.values()) == {"4 looks at this host have not come back yet"}
            host.client.send(stop=fault_pb2.Stop(fault_id=new_id()))
            assert (await host.client.reply()).outcome == fault_pb2.OrderReply.ACCEPTED
        finally:
            os.close(device)  # the kernel fails every request that waits
        async with asyncio.timeout(10):
            while (await host.look()).unread:
                continue

    if not Path("/dev/fuse").exists():
        pytest.skip("no FUSE on this kernel")
    on_host(tmp_path, told)


def test_looks_leave_nothing_open() -> None:
    take_fingerprint(["/var/tmp"])  # what is loaded once is loaded
    before, threads = open_descriptors(), threading.active_count()
    for _ in range(10):
        assert not take_fingerprint(["/var/tmp"]).unread
    assert open_descriptors() <= before
    assert threading.active_count() == threads


@pytest.mark.parametrize(
    ("files", "answer"),
    [
        ({}, True),
        ({"proc/modules": ""}, OSError),
        ({"proc/modules": "", "sys/module/nf_tables/refcnt": "1"}, True),
        ({"proc/modules": "", "lib/modules/{release}/modules.builtin": "kernel/net/netfilter/nf_tables.ko\n"}, True),
        ({"proc/modules": "", "lib/modules/{release}/modules.builtin": "kernel/net/ipv4/tunnel4.ko\n"}, False),
    ],
)
def test_whether_code_is_in_the_kernel_is_told_without_asking_it(
    tmp_path: Path, files: dict[str, str], answer: bool | type[OSError]
) -> None:
    for name, text in files.items():
        path = tmp_path / name.format(release=os.uname().release)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    if answer is OSError:
        with pytest.raises(OSError, match="cannot tell whether nf_tables is loaded"):
            is_there("nf_tables", tmp_path)
    else:
        assert is_there("nf_tables", tmp_path) is answer


def test_a_rule_set_is_read_table_by_table_without_its_comments() -> None:
    text = "table inet a { # progname x\n\tchain c {\n\t\taccept\n\t}\n}\n"
    text += "# Warning: table ip nat is managed by iptables-nft, do not touch!\ntable ip nat {\n}\n"
    first, second = parse_ruleset(text)
    assert (first.family, first.name, first.rules) == ("inet", "a", ("chain c {", "accept", "}"))
    assert (second.family, second.name, second.rules) == ("ip", "nat", ())
