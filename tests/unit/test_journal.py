"""The journal: what survives a crash at any byte, a full disk, damage, and another process."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from brownout_agent.injector.journal import CAPACITY_BYTES, Entry, Journal, JournalError, Mark, decode, encode
from brownout_agent.kernel.clock import boot_id
from brownout_agent.kernel.processes import ProcessKey
from hypothesis import given, settings
from hypothesis import strategies as st

ONE = Entry("id-1", Mark.RECORDED, "cpu.load", "run", {"percent": 50}, {"cores": [0, 1]}, 30.0)
TWO = Entry("id-2", Mark.RECORDED, "network.loss", "run", {"percent": 5.5}, {"table": "brownout-1"}, 60.0)


def test_a_record_outlives_its_writer_with_everything_that_undo_needs(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.record(ONE)
    journal.mark("id-1", Mark.HELD, holders=(ProcessKey(10, 20),))
    journal.mark("id-1", Mark.ACTIVE, facts={"cores": [0, 1], "more": "facts"})
    journal.close()

    (entry,) = Journal(tmp_path).unfinished
    assert (entry.fault_id, entry.mark, entry.kind, entry.parameters) == (
        "id-1",
        Mark.ACTIVE,
        "cpu.load",
        {"percent": 50},
    )
    assert entry.facts == {"cores": [0, 1], "more": "facts"}
    assert entry.holders == (ProcessKey(10, 20),)
    assert entry.boot_id == boot_id()


def test_it_says_which_state_directory_it_stands_for(tmp_path: Path) -> None:
    assert Journal(tmp_path / "state").folder == tmp_path / "state"


def test_a_clean_fault_is_no_longer_unfinished_but_its_id_stays_known(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.record(ONE)
    journal.mark("id-1", Mark.CLEAN, cause="DURATION")
    journal.close()

    again = Journal(tmp_path)
    assert again.unfinished == []
    assert again.entries["id-1"].mark is Mark.CLEAN
    assert again.entries["id-1"].cause == "DURATION"


def test_what_was_begun_and_is_not_clean_is_told_by_kind_and_facts(tmp_path: Path) -> None:
    """By which a second fault knows what the first one has."""
    journal = Journal(tmp_path)
    journal.record(ONE)
    journal.record(replace(ONE, fault_id="id-2", facts={"other": 1}))
    assert journal.begun == ((ONE.kind, ONE.facts), (ONE.kind, {"other": 1}))
    journal.mark("id-1", Mark.CLEAN, cause="DURATION")
    assert [facts for _, facts in journal.begun] == [{"other": 1}]


def test_a_crash_at_any_byte_of_a_write_loses_that_write_alone() -> None:
    whole = encode(ONE)
    second = encode(TWO)
    for cut in range(len(second)):
        contents = decode(whole + second[:cut] + b"\0" * 100)
        assert set(contents.entries) == {"id-1"}, cut
        assert not contents.damaged, cut
        assert contents.end == len(whole), cut


@given(st.binary(max_size=200), st.integers(min_value=0, max_value=3))
@settings(max_examples=300, deadline=None)
def test_no_bytes_make_reading_raise_and_good_lines_are_always_found(noise: bytes, position: int) -> None:
    lines = [encode(ONE), encode(TWO)]
    lines.insert(min(position, 2), noise.replace(b"\n", b"") + b"\n")
    contents = decode(b"".join(lines))
    assert {"id-1", "id-2"} <= set(contents.entries)


def test_a_broken_line_before_good_ones_is_damage_that_stays_until_somebody_looked(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.record(ONE)
    journal.record(TWO)
    journal.close()
    raw = bytearray((tmp_path / "journal").read_bytes())
    raw[20] ^= 0xFF
    (tmp_path / "journal").write_bytes(raw)

    again = Journal(tmp_path)
    assert again.damaged
    assert [entry.fault_id for entry in again.unfinished] == ["id-2"]
    again.close()
    assert Journal(tmp_path).damaged


def test_a_second_process_is_refused_and_may_have_it_when_the_first_is_killed(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib\nfrom brownout_agent.injector.journal import Journal\n"
        "Journal(pathlib.Path(sys.argv[1]))\nprint('mine', flush=True)\nsys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "mine\n"
        with pytest.raises(JournalError, match="another injector or reaper holds"):
            Journal(tmp_path)
        holder.kill()
    Journal(tmp_path).close()


def test_only_its_owner_may_read_it(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    Journal(folder).record(ONE)
    assert (folder / "journal").stat().st_mode & 0o077 == 0
    assert folder.stat().st_mode & 0o077 == 0


def test_it_never_grows_and_room_for_marks_is_kept(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    big = {"text": "x" * 400_000}
    recorded = 0
    with pytest.raises(JournalError, match="full of unfinished faults"):
        for number in range(100):
            journal.record(Entry(f"id-{number}", Mark.RECORDED, "cpu.load", parameters=big))
            recorded += 1
    for mark in (Mark.HELD, Mark.ACTIVE, Mark.UNDOING, Mark.CLEAN):
        for number in range(recorded):
            journal.mark(f"id-{number}", mark)
    assert recorded > 1
    assert (tmp_path / "journal").stat().st_size == CAPACITY_BYTES
    journal.close()
    assert Journal(tmp_path).unfinished == []


def test_residue_that_is_marked_again_and_again_never_fills_it(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.record(Entry("id-1", Mark.RECORDED, "process.kill", facts={"environ": "x" * 120_000}))
    for number in range(100):
        journal.mark("id-1", Mark.RESIDUE, residue=(f"try {number}",))
    journal.record(TWO)
    journal.close()
    assert [(entry.fault_id, entry.residue) for entry in Journal(tmp_path).unfinished] == [
        ("id-1", ("try 99",)),
        ("id-2", ()),
    ]


def test_space_is_taken_back_when_everything_is_clean(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    big = {"text": "x" * 400_000}
    for number in range(40):
        journal.record(Entry(f"id-{number}", Mark.RECORDED, "cpu.load", parameters=big))
        journal.mark(f"id-{number}", Mark.CLEAN, parameters={})
    assert (tmp_path / "journal").stat().st_size == CAPACITY_BYTES
    assert journal.entries["id-39"].mark is Mark.CLEAN


def test_a_stop_before_its_start_is_remembered(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.bury("id-9")
    journal.close()
    assert Journal(tmp_path).entries["id-9"].mark is Mark.REFUSED_FOR_EVER


def test_a_good_line_after_a_hole_is_found_and_the_hole_is_damage() -> None:
    contents = decode(encode(ONE) + b"\0" * 512 + encode(TWO) + b"\0" * 512)
    assert set(contents.entries) == {"id-1", "id-2"}
    assert contents.damaged
    assert contents.end == len(encode(ONE) + encode(TWO)) + 512


def test_facts_that_are_no_json_are_refused_and_the_journal_stays_usable(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    with pytest.raises(JournalError, match="not plain JSON"):
        journal.record(Entry("id-1", Mark.RECORDED, "cpu.load", facts={"cores": {1, 2}}))
    journal.record(TWO)
    assert set(journal.entries) == {"id-2"}


@pytest.mark.parametrize("mode", [0o777, 0o770])
def test_a_folder_that_others_may_write_into_is_refused(tmp_path: Path, mode: int) -> None:
    folder = tmp_path / "state"
    folder.mkdir()
    folder.chmod(mode)
    with pytest.raises(JournalError, match="writable by nobody else"):
        Journal(folder)


_ON_A_FULL_DISK = """
import os, sys
from dataclasses import replace
from pathlib import Path
from brownout_agent.injector.journal import Entry, Journal, JournalError, Mark

folder = Path(sys.argv[1])
journal = Journal(folder)
entry = Entry("id-1", Mark.RECORDED, "process.kill", facts={"environ": "x" * 100_000})
journal.record(entry)
with open(folder / "ballast", "wb", buffering=0) as ballast:
    try:
        while ballast.write(b"x" * 4096):
            pass
    except OSError as error:
        print("full:", error.strerror)
for _ in range(60):  # more than fits without tidying, for which there is no room now
    try:
        journal.mark("id-1", Mark.ACTIVE)
    except JournalError as error:
        print("marks end:", "No space left" in str(error))
        break
journal.close()
again = Journal(folder)  # what a reaper does
print("found:", [entry.fault_id for entry in again.unfinished])
try:
    again.record(replace(entry, fault_id="id-2"))
except JournalError as error:
    print("no new one:", "No space left" in str(error))
(folder / "ballast").unlink()
again.mark("id-1", Mark.CLEAN)
again.close()
print("left:", Journal(folder).unfinished)
"""


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: mounts a small disk in a mount namespace of its own")
def test_a_full_disk_stops_new_faults_and_neither_reaping_nor_what_comes_after(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=9m,mode=700", "none", str(disk)]
    code = f"import os, subprocess, sys\nsubprocess.run({mount!r}, check=True)\n{_ON_A_FULL_DISK}"
    argv = ["unshare", "--mount", "--propagation", "private", sys.executable, "-c", code, str(disk)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.stderr.count("the journal is used as it is") == 1, done.stderr
    assert done.stdout.splitlines() == [
        "full: No space left on device",
        "marks end: True",
        "found: ['id-1']",
        "no new one: True",
        "left: []",
    ]


def test_a_folder_that_cannot_be_used_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(JournalError, match="cannot use state directory"):
        Journal(tmp_path / "file")
