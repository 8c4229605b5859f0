"""Limits of control groups: finding the folders from what the kernel says, and reading both versions' files."""

from pathlib import Path

from brownout_agent.kernel.cgroups import CpuQuota, MemoryLimit, _limit_of, _quota_of, group_folders

VERSION_1 = """31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
"""
VERSION_2 = "29 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"


def folders(mountinfo: str, memberships: str, controller: str) -> list[str]:
    return [str(folder) for folder in group_folders(mountinfo, memberships, controller)]


def test_version_2_is_one_tree_from_the_group_up_to_the_root() -> None:
    assert folders(VERSION_2, "0::/system.slice/brownout.service\n", "cpu") == [
        "/sys/fs/cgroup/system.slice/brownout.service",
        "/sys/fs/cgroup/system.slice",
        "/sys/fs/cgroup",
    ]


def test_version_1_has_a_tree_for_each_controller_and_the_unified_one_beside_them() -> None:
    memberships = "3:memory:/jobs/a\n2:cpu,cpuacct:/jobs\n1:name=systemd:/x\n0::/y\n"
    assert folders(VERSION_1, memberships, "memory") == [
        "/sys/fs/cgroup/memory/jobs/a",
        "/sys/fs/cgroup/memory/jobs",
        "/sys/fs/cgroup/memory",
        "/sys/fs/cgroup/unified/y",
        "/sys/fs/cgroup/unified",
    ]
    assert folders(VERSION_1, memberships, "cpu")[:2] == [
        "/sys/fs/cgroup/cpu,cpuacct/jobs",
        "/sys/fs/cgroup/cpu,cpuacct",
    ]


def test_a_container_sees_the_tree_from_its_own_group_on() -> None:
    mountinfo = "32 31 0:29 /docker/abc /sys/fs/cgroup/cpu ro - cgroup cgroup rw,cpu\n"
    assert folders(mountinfo, "2:cpu:/docker/abc/job\n", "cpu") == ["/sys/fs/cgroup/cpu/job", "/sys/fs/cgroup/cpu"]


def write(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)
    return folder


def test_a_version_2_quota_is_in_cores_with_its_throttled_time(tmp_path: Path) -> None:
    group = write(tmp_path, cpu__max="20000 100000\n", cpu__stat="usage_usec 5\nthrottled_usec 1500000\n")
    assert _quota_of(group) == CpuQuota(group, 0.2, 1.5)


def test_a_version_1_quota_is_in_cores_with_its_throttled_time(tmp_path: Path) -> None:
    stat = "nr_periods 9\nthrottled_time 2500000000\n"
    group = write(tmp_path, cpu__cfs_quota_us="150000\n", cpu__cfs_period_us="100000\n", cpu__stat=stat)
    assert _quota_of(group) == CpuQuota(group, 1.5, 2.5)


def test_no_quota_is_no_quota_in_either_version_and_in_a_folder_without_the_controller(tmp_path: Path) -> None:
    assert _quota_of(tmp_path) is None
    assert _quota_of(write(tmp_path, cpu__cfs_quota_us="-1\n", cpu__cfs_period_us="100000\n")) is None
    assert _quota_of(write(tmp_path, cpu__max="max 100000\n")) is None


def test_a_memory_limit_leaves_what_is_unused_and_what_can_be_dropped(tmp_path: Path) -> None:
    group = write(tmp_path, memory__max="1000\n", memory__current="900\n", memory__stat="anon 1\ninactive_file 50\n")
    assert _limit_of(group) == MemoryLimit(group, 1000, 150)


def test_a_version_1_memory_limit_counts_the_groups_below_it(tmp_path: Path) -> None:
    stat = "inactive_file 7\ntotal_inactive_file 100\n"
    group = write(tmp_path, memory__limit_in_bytes="1000\n", memory__usage_in_bytes="1100\n", memory__stat=stat)
    assert _limit_of(group) == MemoryLimit(group, 1000, 0)


def test_the_largest_number_of_version_1_means_no_limit(tmp_path: Path) -> None:
    files = {"memory__limit_in_bytes": "9223372036854771712\n", "memory__usage_in_bytes": "5\n"}
    assert _limit_of(write(tmp_path, **files)) is None
