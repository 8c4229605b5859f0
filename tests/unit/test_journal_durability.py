"""The journal to its very bytes: what is synced before it returns, whose files it uses, how much of it is kept."""

import os
import stat
import subprocess
import threading
import zlib
from dataclasses import replace
from pathlib import Path

import pytest
from brownout_agent.injector import journal as journals
from brownout_agent.injector.journal import (
    CAPACITY_BYTES,
    FINISHED,
    Entry,
    Journal,
    JournalError,
    JournalHeld,
    Mark,
    decode,
    encode,
)
from brownout_agent.kernel.clock import boot_id, boottime_ns
from brownout_agent.kernel.processes import ProcessKey

from tests.support.disks import on_own_disk

FULL = Entry(
    "id-1", Mark.RESIDUE, "cpu.load", "run-1", {"percent": 50}, {"cores": [0]}, 30.0, "boot",
    (ProcessKey(1, 2), ProcessKey(3, 4)), "STOPPED", ("a table", "a process"), 5,
)  # fmt: skip


class Synced:
    """Every sync of this process, in order: which call, of what, and how large it was then."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[tuple[str, str]] = []
        for name in ("fsync", "fdatasync"):
            monkeypatch.setattr(os, name, self._noting(name))

    def _noting(self, name: str) -> object:
        real = getattr(os, name)

        def sync(descriptor: int) -> None:
            self.calls.append((name, Path(f"/proc/self/fd/{descriptor}").readlink().name))
            real(descriptor)

        return sync


def test_every_field_is_read_back_and_a_new_entry_says_nothing_that_nobody_said() -> None:
    assert decode(encode(FULL)).entries == {"id-1": FULL}
    assert Entry("id", Mark.ACTIVE) == Entry("id", Mark.ACTIVE, "", "", {}, {}, 0.0, "", (), "", (), 0)
    assert frozenset({Mark.CLEAN, Mark.REFUSED_FOR_EVER}) == FINISHED
    assert [mark.value for mark in Mark] == [
        "recorded", "held", "active", "undoing", "clean", "residue", "tombstone",
    ]  # fmt: skip


def test_a_record_carries_this_boot_and_the_time_of_its_mark(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    before_ns = boottime_ns()
    journal.record(replace(FULL, mark=Mark.ACTIVE))
    recorded = journal.entries["id-1"]
    assert (recorded.mark, recorded.boot_id) == (Mark.RECORDED, boot_id())
    assert before_ns <= recorded.at_boottime_ns <= boottime_ns()
    between_ns = boottime_ns()
    marked = journal.mark("id-1", Mark.CLEAN)
    assert journal.entries["id-1"] == marked
    assert between_ns <= marked.at_boottime_ns <= boottime_ns()
    buried = journal.bury("id-2")
    assert journal.entries["id-2"] == buried
    assert (buried.mark, buried.boot_id) == (Mark.REFUSED_FOR_EVER, boot_id())
    assert marked.at_boottime_ns <= buried.at_boottime_ns <= boottime_ns()


def test_a_new_file_is_synced_before_it_takes_its_name_and_every_line_before_it_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced = Synced(monkeypatch)
    journal = Journal(tmp_path)
    assert synced.calls == [("fdatasync", "journal.new"), ("fsync", "journal.new"), ("fsync", tmp_path.name)]
    synced.calls.clear()
    journal.record(FULL)
    journal.mark("id-1", Mark.CLEAN)
    journal.bury("id-2")
    assert synced.calls == [("fdatasync", "journal")] * 3


def test_the_latest_500_ids_that_are_over_stay_known_without_what_they_held(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    for number in range(502):
        journal.bury(f"id-{number}")
    journal.record(FULL)
    journal.mark("id-1", Mark.CLEAN)
    journal.record(replace(FULL, fault_id="open"))
    journal.close()
    again = Journal(tmp_path)
    assert len(again.entries) == 501
    assert list(again.entries)[-2:] == ["id-1", "open"]
    assert ("id-2" in again.entries, "id-3" in again.entries) == (False, True)
    clean = again.entries["id-1"]
    assert (clean.parameters, clean.facts, clean.holders) == ({}, {}, ())
    assert again.entries["open"].facts == FULL.facts
    known = list(again.entries)
    again.close()
    assert list(Journal(tmp_path).entries) == known


def test_its_files_are_its_owners_alone_and_no_links(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "state"
    Journal(folder).close()
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (folder, folder / "lock", folder / "journal")}
    assert modes == {"state": 0o700, "lock": 0o600, "journal": 0o600}
    for name in ("lock", "journal"):
        (folder / name).rename(tmp_path / name)
        (folder / name).symlink_to(tmp_path / name)
        with pytest.raises(JournalError, match="symbolic links"):
            Journal(folder)
        (folder / name).unlink()
        (tmp_path / name).rename(folder / name)
    (folder / "journal.new").symlink_to(tmp_path / "elsewhere")
    Journal(folder).close()
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: gives a folder away")
def test_a_folder_of_somebody_else_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    folder.mkdir(mode=0o700)
    os.chown(folder, 65534, 65534)
    with pytest.raises(JournalError, match="must belong to user 0"):
        Journal(folder)


@pytest.mark.parametrize("mode", [0o720, 0o702])
def test_one_bit_of_writing_for_others_is_enough_to_refuse(tmp_path: Path, mode: int) -> None:
    folder = tmp_path / "state"
    folder.mkdir()
    folder.chmod(mode)
    with pytest.raises(JournalError, match="writable by nobody else"):
        Journal(folder)


def test_another_holder_is_waited_for_and_what_was_held_can_be_had_afterwards(tmp_path: Path) -> None:
    first = Journal(tmp_path)
    for wait_s in (0.0, 0.05):
        with pytest.raises(JournalHeld):
            Journal(tmp_path, wait_s)
    open_before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(JournalHeld):
        Journal(tmp_path)
    assert len(list(Path("/proc/self/fd").iterdir())) == open_before
    closing = threading.Timer(0.2, first.close)
    closing.start()
    Journal(tmp_path, 20.0).close()
    closing.join()


def test_a_closed_journal_takes_nothing(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.close()
    with pytest.raises(JournalError, match="is closed"):
        journal.record(FULL)


def test_a_write_that_the_disk_takes_in_part_is_an_error_and_leaves_no_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(tmp_path)
    journal.record(replace(FULL, fault_id="before"))
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda file, data, offset: real(file, data[:-1], offset))
    with pytest.raises(JournalError, match=r"only \d+ of \d+ bytes were taken"):
        journal.record(FULL)
    assert set(journal.entries) == {"before"}
    monkeypatch.setattr(os, "pwrite", real)
    journal.record(replace(FULL, fault_id="after"))
    journal.close()
    assert set(Journal(tmp_path).entries) == {"before", "after"}


def test_a_renewal_that_the_disk_refuses_leaves_the_old_file_in_use_and_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Journal(tmp_path).close()

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    open_before = len(list(Path("/proc/self/fd").iterdir()))
    journal = Journal(tmp_path)
    assert not (tmp_path / "journal.new").exists()
    journal.record(FULL)
    journal.close()
    assert len(list(Path("/proc/self/fd").iterdir())) == open_before
    with pytest.raises(JournalError, match=f"it takes {CAPACITY_BYTES} free bytes"):
        Journal(tmp_path / "new")


def test_four_mebibytes_are_taken_at_once_of_which_one_is_for_marks() -> None:
    assert (CAPACITY_BYTES, journals._RESERVED_BYTES) == (4_194_304, 1_048_576)


@pytest.mark.parametrize("body", [b"{}", b"[]", b"7", b"null", encode(FULL)[9:-1].replace(b"[1,2]", b"1")])
def test_a_line_that_is_whole_and_no_entry_is_damage_and_no_crash(body: bytes) -> None:
    line = b"%08x %s\n" % (zlib.crc32(body), body)
    contents = decode(line + encode(FULL))
    assert (set(contents.entries), contents.damaged) == ({"id-1"}, True)


def test_facts_that_hold_themselves_are_refused(tmp_path: Path) -> None:
    facts: dict[str, object] = {}
    facts["itself"] = facts
    with pytest.raises(JournalError, match="not plain JSON"):
        Journal(tmp_path).record(replace(FULL, facts=facts))


def test_entries_stand_in_the_order_of_their_latest_marks(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    for fault_id in ("a", "b"):
        journal.record(replace(FULL, fault_id=fault_id))
    journal.mark("a", Mark.ACTIVE)
    assert list(journal.entries) == ["b", "a"]


def test_a_journal_that_is_renewed_again_and_again_keeps_no_descriptor_of_the_old_files(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    open_before = len(list(Path("/proc/self/fd").iterdir()))
    big = replace(FULL, facts={"text": "x" * 900_000})
    for _ in range(8):
        journal.record(big)
        journal.mark("id-1", Mark.CLEAN, facts={})
    assert len(list(Path("/proc/self/fd").iterdir())) == open_before
    journal.close()


@pytest.mark.parametrize("line", [b"X" + encode(FULL), encode(FULL)[:-1] + b"X\n", encode(FULL)[:-1]])
def test_a_line_with_something_before_or_behind_it_or_without_its_end_is_none(line: bytes) -> None:
    assert decode(line).entries == {}
    assert decode(encode(replace(FULL, fault_id="before")) + line).entries.keys() == {"before"}


def filled(length: int) -> Entry:
    """An entry whose line, once it is marked, is `length` bytes long."""
    entry = replace(FULL, mark=Mark.RECORDED, boot_id=boot_id(), at_boottime_ns=boottime_ns(), facts={"x": ""})
    return replace(entry, facts={"x": "x" * (length - len(encode(entry)))})


def test_records_may_fill_all_but_the_last_mebibyte_and_marks_that_as_well_to_the_byte(tmp_path: Path) -> None:
    room = CAPACITY_BYTES - journals._RESERVED_BYTES
    journal = Journal(tmp_path)
    with pytest.raises(JournalError, match="full of unfinished"):
        journal.record(filled(room + 1))
    inode = (tmp_path / "journal").stat().st_ino
    journal.record(filled(room))
    with pytest.raises(JournalError, match="full of unfinished"):
        journal.record(replace(FULL, fault_id="id-2"))
    renewed = (tmp_path / "journal").stat().st_ino
    journal.mark("id-1", Mark.RECORDED, facts=filled(journals._RESERVED_BYTES).facts)
    assert (tmp_path / "journal").stat().st_ino == renewed != inode, "it was renewed for the second and no other"
    assert (tmp_path / "journal").stat().st_size == CAPACITY_BYTES
    journal.close()
    assert set(Journal(tmp_path).entries) == {"id-1"}


def test_a_folder_in_the_place_of_the_lock_locks_nothing(tmp_path: Path) -> None:
    (tmp_path / "lock").mkdir()
    with pytest.raises(JournalError, match="Is a directory"):
        Journal(tmp_path)


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: mounts")
def test_what_stands_on_a_disk_that_became_read_only_is_read_and_locked_and_takes_no_mark(tmp_path: Path) -> None:
    def told() -> None:
        journal = Journal(tmp_path / "state")
        journal.record(FULL)
        journal.close()
        (tmp_path / "linked").mkdir(mode=0o700)
        (tmp_path / "linked" / "lock").symlink_to(tmp_path / "state" / "lock")
        subprocess.run(["mount", "-o", "remount,ro", tmp_path], check=True)
        with pytest.raises(JournalError, match="symbolic links"):
            Journal(tmp_path / "linked")
        journal = Journal(tmp_path / "state")
        with pytest.raises(JournalHeld):
            Journal(tmp_path / "state")
        assert [entry.fault_id for entry in journal.unfinished] == ["id-1"]
        with pytest.raises(JournalError, match="cannot write"):
            journal.mark("id-1", Mark.CLEAN)
        assert journal.entries["id-1"].mark is Mark.RECORDED
        journal.close()

    on_own_disk(tmp_path, told)
