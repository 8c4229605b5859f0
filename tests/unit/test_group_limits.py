"""The limits of control groups without a host: what is written where, and both versions' counters."""

from pathlib import Path
from typing import Any

import pytest
from brownout_agent.faults import catalogue
from brownout_agent.faults.contract import Effect, Host, Record
from brownout_agent.faults.disk_throttle import Reading, settings, windows
from brownout_agent.faults.group_limit import Setting
from brownout_agent.faults.memory_limit import times_killed, times_reached
from brownout_agent.faults.process_freeze import is_frozen
from brownout_agent.kernel.group_io import read_io
from pydantic import ValidationError

MIB = 2**20
DISK = "254:0"


def write(folder: Path, **files: str) -> Path:
    """Files whose names have dots where these have `__`."""
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)
    return folder


@pytest.mark.parametrize(
    ("kind", "parameters", "says"),
    [
        ("memory.limit", {"limit": "1023KiB"}, "greater than or equal to 1048576"),
        ("memory.limit", {"limit": 256}, "size 256 has no unit"),
        ("memory.limit", {"limit": "1GiB", "beyond": "swap"}, "'slow' or 'kill'"),
        ("memory.limit", {"limit": "1GiB", "kill_at_once": True}, "`kill_at_once` is for `beyond: kill`"),
        ("disk.throttle", {"path": "/srv"}, "give `read`, `write`, `read_iops` or `write_iops`"),
        ("disk.throttle", {"path": "srv", "read": "1MiB/s"}, "should match pattern"),
        ("disk.throttle", {"path": "/srv", "read": "1MiB"}, "is not a rate in bytes"),
        ("disk.throttle", {"path": "/srv", "read_iops": 0}, "greater than or equal to 1"),
    ],
)
def test_an_order_that_limits_nothing_or_says_it_wrongly_is_refused(
    kind: str, parameters: dict[str, Any], says: str
) -> None:
    with pytest.raises(ValidationError) as caught:
        catalogue()[kind].Parameters.model_validate({"unit": "db.service", **parameters})
    assert says in str(caught.value)


# ---- one line of a file --------------------------------------------------------------------------------------------


def test_one_value_of_the_line_of_one_disk_is_ours_and_the_others_are_not(tmp_path: Path) -> None:
    file = write(tmp_path, io__max="8:0 rbps=1 wbps=max riops=max wiops=max\n") / "io.max"
    setting = Setting(str(file), "max", "5", DISK, "max", "wbps")
    assert (setting.now(), setting.is_ours) == ("max", False)
    setting.give_back()
    assert file.read_text().startswith("8:0"), "nothing was written"
    setting.take()
    assert file.read_text() == "254:0 wbps=5"
    assert setting.is_ours
    file.write_text("8:0 rbps=1 wbps=5 riops=max wiops=max\n254:0 rbps=max wbps=5 riops=7 wiops=max\n")
    assert setting.is_ours, "another value of it was changed by somebody else, which is none of our matter"
    setting.give_back()
    assert file.read_text() == "254:0 wbps=max"


def order(**parameters: Any) -> Any:
    return catalogue()["disk.throttle"].Parameters.model_validate({"unit": "db.service", "path": "/srv", **parameters})


def test_version_2_has_one_line_for_all_limits_of_a_disk(tmp_path: Path) -> None:
    file = write(tmp_path, io__max="254:0 rbps=9000000 wbps=max riops=max wiops=8\n") / "io.max"
    found = settings(file, DISK, order(read="1MiB/s", write="2MiB/s", read_iops=7))
    assert [(one.name, one.before, one.ours) for one in found] == [
        ("rbps", "9000000", "1048576"),
        ("wbps", "max", "2097152"),
        ("riops", "max", "7"),
    ]
    (setting,) = settings(file, "7:0", order(write="2MiB/s"))
    assert (setting.as_written(setting.before), setting.as_written(setting.ours)) == (
        "7:0 wbps=max",
        "7:0 wbps=2097152",
    )


def test_version_1_has_a_file_for_each_limit_and_none_is_0(tmp_path: Path) -> None:
    names = [f"blkio.throttle.{what}_device" for what in ("read_bps", "write_bps", "read_iops", "write_iops")]
    for name in names:
        (tmp_path / name).write_text("")
    (tmp_path / names[1]).write_text("8:0 5\n254:0 9000000\n")
    found = settings(tmp_path / names[0], DISK, order(write="2MiB/s", read_iops=7))
    assert [(Path(one.file).name, one.before, one.ours) for one in found] == [
        ("blkio.throttle.write_bps_device", "9000000", "2097152"),
        ("blkio.throttle.read_iops_device", "0", "7"),
    ]
    assert found[1].as_written(found[1].before) == "254:0 0"


# ---- the judgement on disks ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("readings", "shares"),
    [
        ([(0, 0, 0), (1_000, MIB, 0)], [0.5]),
        ([(0, 0, 0), (1_000, MIB, 10)], [1.0]),
        ([(0, 0, 0), (2, MIB, 0), (1_000, MIB, 0)], [0.5]),
        ([(0, 0, 0), (1_000, 0, 0), (1_002, MIB, 0)], [0.0]),
        ([(0, 0, 0), (2, MIB, 0)], []),
        ([(0, 0, 0)], []),
    ],
    ids=["one of two limits", "the nearer one", "at once", "just before the end", "too short", "never read"],
)
def test_a_moment_says_nothing_of_a_rate(readings: list[tuple[int, int, int]], shares: list[float]) -> None:
    """Limits of 2 MiB written and 10 reads a second; each reading in milliseconds, bytes and reads."""
    done = [Reading(at_ms * 1_000_000, {"write": written, "read_iops": reads}) for at_ms, written, reads in readings]
    assert windows(done, {"write": 2 * MIB, "read_iops": 10}) == shares


# ---- what the kernel counts ----------------------------------------------------------------------------------------


def test_both_versions_count_what_was_read_and_written(tmp_path: Path) -> None:
    nothing = {"read": 0, "write": 0, "read_iops": 0, "write_iops": 0}
    assert read_io(tmp_path, DISK) == nothing
    served = "254:0 Read 10\n254:0 Write 20\n254:0 Sync 5\n254:0 Total 30\nTotal 30\n"
    files = {"service_bytes": served, "serviced": served.replace("0\n", "\n")}
    for name, text in files.items():
        (tmp_path / f"blkio.throttle.io_{name}_recursive").write_text(text)
    assert read_io(tmp_path, DISK) == {"read": 10, "write": 20, "read_iops": 1, "write_iops": 2}
    assert read_io(tmp_path, "8:0") == nothing
    write(tmp_path, io__stat="8:0 rbytes=1 wbytes=2\n254:0 rbytes=3 wbytes=4 rios=5 wios=6 dbytes=0 dios=0\n7:0 \n")
    assert read_io(tmp_path, DISK) == {"read": 3, "write": 4, "read_iops": 5, "write_iops": 6}
    assert read_io(tmp_path, "7:0") == nothing


def test_both_versions_count_how_often_a_limit_was_reached_and_who_was_killed(tmp_path: Path) -> None:
    write(tmp_path, memory__failcnt="7\n", memory__oom_control="oom_kill_disable 0\nunder_oom 0\noom_kill 2\n")
    assert times_reached(tmp_path / "memory.limit_in_bytes") == 7
    assert times_killed(tmp_path) == 2
    write(tmp_path, memory__events="low 0\nhigh 5\nmax 6\noom 1\noom_kill 3\n")
    assert (times_reached(tmp_path / "memory.high"), times_reached(tmp_path / "memory.max")) == (5, 6)
    assert times_killed(tmp_path) == 3
    write(tmp_path, memory__events__local="low 0\nhigh 1\nmax 2\noom 1\noom_kill 0\n")
    assert (times_reached(tmp_path / "memory.high"), times_reached(tmp_path / "memory.max")) == (1, 2)
    assert times_killed(tmp_path) == 3, "who is killed may be in a group below"


def test_frozen_is_what_the_kernel_says_of_all_processes_and_not_what_was_asked_for(tmp_path: Path) -> None:
    write(tmp_path, cgroup__events="populated 1\nfrozen 0\n", cgroup__freeze="1\n")
    assert not is_frozen(tmp_path)
    write(tmp_path, cgroup__events="populated 1\nfrozen 1\n")
    assert is_frozen(tmp_path)
    write(tmp_path, freezer__state="FREEZING\n")
    assert not is_frozen(tmp_path)
    write(tmp_path, freezer__state="FROZEN\n")
    assert is_frozen(tmp_path)


# ---- the judgement on memory, whose walls differ -------------------------------------------------------------------


def judged(folder: Path, file: str, used_mib: float, events: str, beyond: str) -> Effect:
    """Of a group with a limit of 64 MiB in version 2, which used so much at the one reading."""
    write(folder, **{file.replace(".", "__"): f"{64 * MIB}\n"}, memory__events=events)
    write(folder, memory__current=f"{int(used_mib * MIB)}\n", memory__stat="anon 0\n")
    fault = catalogue()["memory.limit"]
    facts = {
        "group": str(folder),
        "settings": [{"file": str(folder / file), "before": "max", "ours": str(64 * MIB)}],
        "reached": 2,
        "killed": 0,
    }
    parameters = fault.Parameters.model_validate({"unit": "db.service", "limit": "64MiB", "beyond": beyond})
    meter = fault.measure(Record("id", parameters, facts, 1.0), Host())
    meter.sample()
    return meter.effect()


@pytest.mark.parametrize(
    ("file", "beyond", "used_mib", "events", "is_proved"),
    [
        ("memory.high", "slow", 66, "high 9\nmax 0\noom_kill 0\n", True),
        ("memory.high", "slow", 71, "high 9\nmax 0\noom_kill 0\n", False),
        ("memory.high", "slow", 40, "high 2\nmax 9\noom_kill 0\n", False),
        ("memory.max", "kill", 64, "high 0\nmax 3\noom_kill 1\n", True),
        ("memory.max", "kill", 65, "high 0\nmax 3\noom_kill 1\n", False),
        ("memory.max", "kill", 64, "high 9\nmax 2\noom_kill 0\n", False),
    ],
)
def test_a_limit_is_proved_where_it_was_reached_and_kept_and_slowness_is_no_wall(
    tmp_path: Path, file: str, beyond: str, used_mib: float, events: str, is_proved: bool
) -> None:
    effect = judged(tmp_path, file, used_mib, events, beyond)
    assert effect.proved is is_proved, effect
    assert (effect.asked, effect.achieved, effect.unit) == (64 * MIB, used_mib * MIB, "bytes")
