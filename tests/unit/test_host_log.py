"""A host's own copy: one chain over restarts, rotations and power cuts, bounded, and refused when it cannot be kept."""

from pathlib import Path

import pytest
from brownout_agent.chain import Following, read_line
from brownout_agent.host_log import HostLog


def records(*paths: Path) -> Following:
    found = [read_line(line) for path in paths for line in path.read_text().splitlines()]
    following = Following(found[0].sequence - 1, found[0].previous)
    following.take_all(found)
    return following


def test_records_are_one_chain_over_restarts_and_rotations_and_its_size_is_bounded(tmp_path: Path) -> None:
    for restart in range(3):
        copy = HostLog(tmp_path, bytes_max=4_000)
        for number in range(20):
            copy.keep("controller", "fault.inject", "cpu.load", "ordered", fault_id=f"{restart}-{number}")
    older = tmp_path / "audit.1.jsonl"
    following = records(older, copy.path)
    assert following.breaks == []
    assert following.sequence == 60
    assert max(older.stat().st_size, copy.path.stat().st_size) <= 4_000
    assert copy.path.stat().st_mode & 0o777 == 0o600
    copy.path.write_text(copy.path.read_text().replace("cpu.load", "cpu.lead", 1))
    assert len(records(older, copy.path).breaks) == 1


def test_a_half_written_record_is_cut_off_and_a_damaged_one_is_not_built_upon(tmp_path: Path) -> None:
    HostLog(tmp_path).keep("controller", "fault.inject", "cpu.load", "ordered")
    copy = HostLog(tmp_path)
    with copy.path.open("a") as file:
        file.write('{"hash": "ab')
    copy.keep("controller", "fault.inject", "cpu.load", "ordered")
    assert records(copy.path).sequence == 2
    with copy.path.open("a") as file:
        file.write("nonsense\n")
    with pytest.raises(OSError, match="is damaged"):
        HostLog(tmp_path).keep("controller", "fault.inject", "cpu.load", "ordered")


def test_what_comes_again_and_again_is_kept_once(tmp_path: Path) -> None:
    copy = HostLog(tmp_path)
    for reason in ("no controller's", "no controller's", "stale", "stale"):
        copy.keep_if_new("unknown", "controller.session", "10.0.0.1:7700", "refused", reason)
    assert records(copy.path).sequence == 2
