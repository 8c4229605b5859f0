"""Which processes a process fault means, how it tells equals apart, and where they belong. No kernel."""

from typing import Any

import pytest
from brownout_agent.faults.contract import Refusal
from brownout_agent.faults.process_cgroups import folders_named_in, is_in_group, is_in_unit, unit_named_in
from brownout_agent.faults.process_kill import KillParameters
from brownout_agent.faults.process_match import Process, ProcessParameters, Untouchable, select, split_argv
from brownout_agent.faults.process_start import Program, instances, startable_argv, untitled
from brownout_agent.kernel.listeners import parse
from brownout_agent.kernel.processes import ProcessKey
from pydantic import ValidationError

NOBODY = Untouchable(own_pids=frozenset({50, 60}), names=frozenset({"sshd", "systemd"}))


def process(pid: int, *argv: str, parent: int = 1, **changes: Any) -> Process:
    argv = argv or ("server",)
    name = argv[0].rpartition("/")[2]
    plain: dict[str, Any] = {
        "key": ProcessKey(pid, 1000 + pid), "comm": name[:15], "state": "S", "parent_pid": parent, "uid": 0,
        "argv": argv, "exe": f"/usr/sbin/{name}",
    }  # fmt: skip
    return Process(**{**plain, **changes})


def pids(parameters: dict[str, Any], *processes: Process, uid: int | None = None) -> list[int]:
    chosen = select(ProcessParameters.model_validate(parameters), uid, list(processes), NOBODY)
    return [one.key.pid for one in chosen]


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({}, "which process?"),
        ({"process": "/usr/sbin/nginx"}, "did you mean nginx?"),
        ({"process": ""}, "at least 1 character"),
        ({"pid": 0}, "greater than or equal to 1"),
        ({"pid": -1}, "greater than or equal to 1"),
        ({"name": "nginx"}, "Extra inputs are not permitted"),
    ],
)
def test_bad_parameters_are_refused(given: dict[str, Any], why: str) -> None:
    with pytest.raises(ValidationError, match=why.replace("?", r"\?")):
        ProcessParameters.model_validate(given)


@pytest.mark.parametrize("text", ["KILL", "kill", "SIGKILL", "sigkill"])
def test_signal_names_are_read_with_and_without_sig(text: str) -> None:
    assert KillParameters(pid=7, signal=text).signal == "KILL"


@pytest.mark.parametrize("value", ["STOP", "USR1", "9", 9, "", None])
def test_signals_that_do_not_end_a_process_are_refused(value: object) -> None:
    with pytest.raises(ValidationError, match="Input should be 'KILL', 'TERM'"):
        KillParameters.model_validate({"pid": 7, "signal": value})


def test_names_match_exactly_by_command_or_executable() -> None:
    mine = process(10, "/opt/app/bin/ledger")
    renamed = process(11, "ledger: worker", comm="worker-1", exe="/opt/app/bin/ledger")
    assert pids({"process": "ledger"}, mine, renamed, process(12, "ledger2"), process(13, "bookledger")) == [10, 11]


def test_a_name_that_the_kernel_has_cut_is_matched_whole() -> None:
    long = process(10, "/opt/a-very-long-program-name", exe="/usr/bin/python3")
    other = process(11, "/opt/a-very-long-procedure", exe="/usr/bin/python3")
    assert pids({"process": "a-very-long-program-name"}, long, other) == [10]


def test_everything_given_must_match() -> None:
    crowd = [process(10, "app", "--queue", "mail"), process(11, "app", "--queue", "mail", uid=33), process(12, "app")]
    assert pids({"process": "app", "command": "--queue mail", "user": "www-data"}, *crowd, uid=33) == [11]


def test_parents_come_before_their_children_whatever_their_pids() -> None:
    crowd = [process(10, parent=30), process(20, parent=10), process(30)]
    assert pids({"process": "server"}, *crowd) == [30, 10, 20]


def test_our_own_are_passed_over_unless_named_by_pid() -> None:
    ours, theirs = process(50, "python3", "brownout", "run", "nginx.yaml"), process(70, "nginx")
    assert pids({"command": "nginx"}, ours, theirs) == [70]
    with pytest.raises(Refusal, match="part of Brownout or an ancestor"):
        pids({"pid": 50}, ours, theirs)


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"process": "sshd"}, r"sshd \(pid 80\) is protected"),
        ({"command": "server"}, "is protected"),
        ({"pid": 1}, "init process"),
        ({"pid": 2}, "kernel thread"),
        ({"process": "kthreadd"}, "no process matches"),
        ({"process": "far-away"}, r"only in other network namespaces: far-away \(pid 90\)"),
    ],
)
def test_who_must_not_be_touched_refuses_the_whole_order(given: dict[str, Any], why: str) -> None:
    crowd = [
        process(1, "/sbin/init"),
        process(2, comm="kthreadd", argv=(), exe=""),
        process(70, "server"),
        process(80, "/usr/sbin/sshd", "server"),
        process(90, "far-away", own_network=False),
    ]
    with pytest.raises(Refusal, match=why):
        pids(given, *crowd)


def test_a_misspelt_name_gets_the_nearest_ones() -> None:
    with pytest.raises(Refusal) as caught:
        pids({"process": "ngins"}, process(10, "nginx"), process(11, "haproxy"))
    assert caught.value.remedy == "did you mean nginx?"


def test_a_container_is_reached_by_pid() -> None:
    assert pids({"pid": 90}, process(90, "far-away", own_network=False)) == [90]


# ---- equals, titles, places -------------------------------------------------------------------------------------


def test_an_instance_is_one_that_no_equal_has_forked() -> None:
    master, worker, twin, other = process(10), process(11, parent=10), process(12), process(13, "server", "-x")
    assert instances(Program.of(master), [master, worker, twin, other]) == [master, twin]


@pytest.mark.parametrize(
    ("raw", "argv"),
    [
        (b"", ()),
        (b"\0", ()),
        (b"sleep\x0060\0", ("sleep", "60")),
        (b"app\0\0", ("app", "")),
        (b"app\0two words\0\0", ("app", "two words", "")),
        (b"nginx: worker process\0\0\0\0", ("nginx: worker process",)),
        (b"caf\xe9\0", ("caf\udce9",)),
    ],
)
def test_command_lines_are_split_as_they_were_given(raw: bytes, argv: tuple[str, ...]) -> None:
    assert split_argv(raw) == argv


@pytest.mark.parametrize(
    "argv",
    [
        ("/usr/sbin/nginx", "-g", "daemon off; master_process on;"),
        ("nginx", "-g", "daemon off; pid /x;", "-c", "/etc/nginx/other.conf"),
        ("nginx", "-p", "/srv", "-e", "stderr", "-c", "a.conf"),
        ("nginx",),
    ],
)
def test_the_title_of_nginx_gives_its_arguments_back(argv: tuple[str, ...]) -> None:
    title = f"nginx: master process {' '.join(argv)}"
    assert untitled((title,)) == argv
    assert Program.of(process(10, title, exe="/n")) == Program.of(process(11, *argv, exe="/n"))


def test_other_titles_tell_nobody_how_to_start_again() -> None:
    with pytest.raises(Refusal, match="overwritten its command line with the title `redis-server"):
        startable_argv(process(10, "redis-server 127.0.0.1:6379"))


@pytest.mark.parametrize(
    ("text", "unit"),
    [
        ("0::/system.slice/nginx.service\n", "nginx.service"),
        ("0::/shop.slice/shop-web.slice/app@1.service/workers\n", "app@1.service"),
        ("4:memory:/x.service\n1:name=systemd:/system.slice/db.service\n0::/\n", "db.service"),
        ("0::/user.slice/user-1000.slice/user@1000.service/app.slice/vim.service\n", ""),
        ("0::/user.slice/user-1000.slice/session-2.scope\n", ""),
        ("0::/\n", ""),
    ],
)
def test_the_service_of_a_process_is_read_from_its_cgroup(text: str, unit: str) -> None:
    assert unit_named_in(text) == unit


@pytest.mark.parametrize(
    ("text", "is_in_it"),
    [
        ("0::/system.slice/nginx.service\n", True),
        ("0::/shop.slice/shop-web.slice/nginx.service/workers\n", True),
        ("4:memory:/x\n1:name=systemd:/system.slice/nginx.service\n0::/\n", True),
        ("4:memory:/system.slice/nginx.service\n1:name=systemd:/\n", False),
        ("0::/system.slice/my-nginx.service\n", False),
        ("0::/user.slice/user-1000.slice/user@1000.service/app.slice/nginx.service\n", False),
        ("0::/system.slice/docker-abc.scope/system.slice/nginx.service\n", False),
        ("0::/docker/abc/system.slice/nginx.service\n", False),
    ],
)
def test_a_unit_is_one_of_the_systems_own_manager(text: str, is_in_it: bool) -> None:
    assert is_in_unit(text, "nginx.service") is is_in_it


def test_cgroups_are_found_where_their_hierarchies_are_mounted() -> None:
    mounts = (
        "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n"
        "33 31 0:30 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct\n"
        "40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd\n"
        "41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
    )
    text = "5:cpu,cpuacct:/a\n2:pids:/unmounted\n1:name=systemd:/b.slice\n0::/\n"
    assert folders_named_in(text, mounts) == [
        "/sys/fs/cgroup/cpu,cpuacct/a",
        "/sys/fs/cgroup/systemd/b.slice",
        "/sys/fs/cgroup/unified",
    ]


# ---- places and trees -------------------------------------------------------------------------------------------


def test_only_those_that_are_where_an_order_says_are_meant() -> None:
    crowd = [process(10), process(11), process(12, "other")]
    parameters = ProcessParameters.model_validate({"process": "server", "unit": "shop.service"})
    chosen = select(parameters, None, crowd, NOBODY, frozenset({11, 12}))
    assert [one.key.pid for one in chosen] == [11]
    assert parameters.text == "process server, unit shop.service"


def test_a_tree_is_all_that_was_started_by_whatever_steps_and_nothing_beside() -> None:
    crowd = [process(10, "root"), process(11, "shell", parent=10), process(12, "work", parent=11), process(13, "work")]
    assert pids({"process": "root"}, *crowd) == [10]
    assert pids({"process": "root", "tree": True}, *crowd) == [10, 11, 12]
    assert pids({"pid": 11, "tree": True}, *crowd) == [11, 12]


def test_a_tree_spares_our_own_and_is_refused_with_somebody_protected_in_it() -> None:
    top, ours = process(10, "top"), process(50, "injector", parent=10)
    assert pids({"process": "top", "tree": True}, top, ours) == [10]
    with pytest.raises(Refusal, match="part of Brownout"):
        pids({"pid": 10, "tree": True}, top, ours)
    with pytest.raises(Refusal, match=r"sshd \(pid 80\) is protected"):
        pids({"process": "top", "tree": True}, top, process(80, "sshd", parent=10))


def test_processes_that_name_each_other_as_parents_are_a_tree_as_well() -> None:
    """A pid may go to another process between two looks at /proc."""
    assert pids({"pid": 10, "tree": True}, process(10, parent=11), process(11, parent=10)) == [10, 11]


def test_children_alone_choose_nobody() -> None:
    with pytest.raises(ValidationError, match=r"which process\? Give `process`, .* or `cgroup`"):
        ProcessParameters.model_validate({"tree": True})


@pytest.mark.parametrize(
    "wrong",
    [{"port": 0}, {"port": 65_536}, {"unit": "nginx"}, {"unit": "a/b.service"}, {"cgroup": "shop"}, {"cgroup": "/"},
     {"cgroup": "/a/"}, {"cgroup": "/a b"}],
)  # fmt: skip
def test_what_is_no_place_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ProcessParameters.model_validate(wrong)


@pytest.mark.parametrize(
    ("text", "is_in_it"),
    [
        ("0::/shop/web\n", True),
        ("0::/shop/web/worker\n", True),
        ("0::/shop/website\n", False),
        ("0::/shop\n", False),
        ("0::/other/shop/web\n", False),
        ("4:memory:/shop/web\n1:name=systemd:/\n0::/\n", True),
        ("0::/\n", False),
    ],
)
def test_a_control_group_is_meant_with_those_below_it_in_any_hierarchy(text: str, is_in_it: bool) -> None:
    assert is_in_group(text, "/shop/web") is is_in_it


def test_listening_sockets_are_those_that_wait_for_whoever_comes() -> None:
    head = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
    rows = [
        ("0100007F:1F90", "00000000:0000", "0A", 101),
        ("0100007F:1F90", "0100007F:D431", "01", 102),  # a connection that it has accepted
        ("00000000:1F91", "00000000:0000", "0A", 103),
        ("00000000000000000000000000000000:1F90", "00000000000000000000000000000000:0000", "0A", 104),
        ("0100007F:D431", "0100007F:1F90", "01", 105),
    ]
    lines = (f"   0: {own} {peer} {state} 00000000:00000000 00:00000000 00000000  33 0 {inode} 1 0\n"
             for own, peer, state, inode in rows)  # fmt: skip
    assert [*parse(head + "".join(lines), 8080, "0A")] == [101, 104]
