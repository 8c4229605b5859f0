"""The audit log on a real database: whatever is done to it is found."""

import json
import sqlite3
import threading
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from brownout_agent.chain import GENESIS, hash_of, read_line
from brownout_controller.audit import checkpoint as checkpoints
from brownout_controller.audit.checkpoint import CheckpointError, SealingKey
from brownout_controller.audit.entry import AuditEntry, Outcome
from brownout_controller.audit.folding import Folding
from brownout_controller.audit.log import SEAL_ROWS, AuditLog, audit_log
from brownout_controller.audit.verifying import Verified, verify
from brownout_controller.store.audit import AuditStore
from brownout_controller.store.database import Database, StoreError
from brownout_controller.store.schema import audit as tables

ROWS = 12
COLUMNS = tuple(column.name for column in tables.entries.columns)
ENTRY = AuditEntry("user:mary", "run.start", "run 7", Outcome.ALLOWED, "10.0.0.7", "", {"token": "abc"})


def entry(number: int) -> AuditEntry:
    outcome = Outcome.REFUSED if number % 3 == 0 else Outcome.ALLOWED
    return replace(ENTRY, subject=f"run {number}", outcome=outcome, reason="why" if number % 3 == 0 else "")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Rows of which some are sealed, and the checkpoints exported."""
    database = Database.in_folder(tmp_path / "data")
    store, key = AuditStore(database), SealingKey(tmp_path / "keys")
    store.append([entry(number) for number in range(1, 9)])
    store.seal(key.sign)
    store.append([entry(number) for number in range(9, ROWS + 1)])
    store.seal(key.sign)
    (tmp_path / "exported").mkdir()
    for one in store.checkpoints():
        checkpoints.export(one, tmp_path / "exported")
    database.close()
    return tmp_path


def meddle(folder: Path, *statements: str, parameters: tuple[Any, ...] = ()) -> None:
    """As somebody does who may write the database's file."""
    with closing(sqlite3.connect(folder / "data" / "brownout.db")) as connection:
        for statement in statements:
            connection.execute(statement, parameters if "?" in statement else ())
        connection.commit()


def verified(folder: Path, exported: bool = False) -> Verified:
    database = Database.in_folder(folder / "data")
    try:
        store = AuditStore(database)
        end = store.head()
        signed = store.checkpoints() + (checkpoints.read_exported(folder / "exported") if exported else [])
        return verify(store.links(), signed, {SealingKey(folder / "keys").public_key}, (end.sequence, end.hash))
    finally:
        database.close()


def test_a_log_that_nobody_touched_is_sound(folder: Path) -> None:
    found = verified(folder, exported=True)
    assert found.sound, found.breaks
    assert (found.first, found.records, found.sealed) == (1, ROWS, ROWS)


@pytest.mark.parametrize("column", COLUMNS)
def test_a_change_of_any_field_of_any_row_is_found(folder: Path, column: str) -> None:
    whole = (folder / "data" / "brownout.db").read_bytes()
    for row in range(1, ROWS + 1):
        (folder / "data" / "brownout.db").write_bytes(whole)
        new: Any = row + 1_000 if column in {"sequence", "at_ns"} else "0" * 64
        meddle(folder, f"UPDATE audit_entry SET {column} = ? WHERE sequence = {row}", parameters=(new,))
        found = verified(folder)
        assert not found.sound, f"{column} of row {row} was changed unseen"
        assert min(one.sequence for one in found.breaks) in {row, row + 1}


@pytest.mark.parametrize("detail", ['{"token": "abd"}', '{"token":"abc"}', "{}", "not json", '{"token": "abc", "x": NaN}', "[" * 9_000])  # fmt: skip  # noqa: E501
def test_another_text_of_the_details_is_found_even_where_it_means_the_same(folder: Path, detail: str) -> None:
    meddle(folder, "UPDATE audit_entry SET detail = ? WHERE sequence = 5", parameters=(detail,))
    assert [one.sequence for one in verified(folder).breaks] == [5]


def test_a_row_that_was_taken_out_anywhere_is_found(folder: Path) -> None:
    whole = (folder / "data" / "brownout.db").read_bytes()
    for row in range(1, ROWS + 1):
        (folder / "data" / "brownout.db").write_bytes(whole)
        meddle(folder, f"DELETE FROM audit_entry WHERE sequence = {row}")
        assert not verified(folder).sound, f"row {row} was taken out unseen"


def test_any_two_rows_that_changed_places_are_found(folder: Path) -> None:
    whole = (folder / "data" / "brownout.db").read_bytes()
    for one in range(1, ROWS):
        (folder / "data" / "brownout.db").write_bytes(whole)
        swap = (
            f"UPDATE audit_entry SET sequence = -1 WHERE sequence = {one}",
            f"UPDATE audit_entry SET sequence = {one} WHERE sequence = {one + 1}",
            f"UPDATE audit_entry SET sequence = {one + 1} WHERE sequence = -1",
        )
        meddle(folder, *swap)
        assert not verified(folder).sound, f"rows {one} and {one + 1} changed places unseen"


def rewrite(folder: Path, last: int, change: int = 0) -> None:
    """Cut the log off behind `last`, change one row, and mend every hash and the noted end: all but the signatures."""
    with closing(sqlite3.connect(folder / "data" / "brownout.db")) as connection:
        connection.row_factory = sqlite3.Row
        connection.execute("DELETE FROM audit_entry WHERE sequence > ?", (last,))
        connection.execute("UPDATE audit_entry SET actor = 'user:bob' WHERE sequence = ?", (change,))
        previous = GENESIS
        for row in connection.execute("SELECT * FROM audit_entry ORDER BY sequence").fetchall():
            document = {name: row[name] for name in COLUMNS if name != "hash"}
            previous = hash_of(previous, {**document, "detail": json.loads(row["detail"])})
            connection.execute("UPDATE audit_entry SET hash = ? WHERE sequence = ?", (previous, row["sequence"]))
        connection.execute("UPDATE audit_head SET sequence = ?, hash = ?", (last, previous))
        connection.commit()


def test_a_chain_that_was_made_anew_is_found_by_the_checkpoints_beside_it(folder: Path) -> None:
    rewrite(folder, ROWS, change=3)
    assert [one.sequence for one in verified(folder).breaks] == [8, ROWS]


def test_a_log_that_was_cut_off_with_its_checkpoints_is_found_by_an_exported_one(folder: Path) -> None:
    rewrite(folder, 8)
    meddle(folder, "DELETE FROM audit_checkpoint WHERE sequence > 8")
    assert verified(folder).sound, "nothing in the database itself can tell"
    (found,) = verified(folder, exported=True).breaks
    assert found.sequence == ROWS
    assert "cut off" in found.why


def test_a_whole_log_that_was_emptied_is_found_by_an_exported_checkpoint(folder: Path) -> None:
    meddle(folder, "DELETE FROM audit_entry", "DELETE FROM audit_checkpoint", "DELETE FROM audit_head")
    assert verified(folder).sound
    assert [one.sequence for one in verified(folder, exported=True).breaks] == [8, ROWS]


@pytest.mark.parametrize("column", ["sequence", "hash", "at_ns", "public_key", "signature"])
def test_a_checkpoint_that_was_changed_is_no_checkpoint(folder: Path, column: str) -> None:
    new: Any = 7 if column in {"sequence", "at_ns"} else "ab" * 32
    meddle(folder, f"UPDATE audit_checkpoint SET {column} = ? WHERE sequence = 8", parameters=(new,))
    assert "not genuine" in verified(folder).breaks[0].why


def test_a_checkpoint_of_somebody_elses_key_is_not_believed(folder: Path) -> None:
    rewrite(folder, ROWS, change=3)
    meddle(folder, "DELETE FROM audit_checkpoint", "UPDATE audit_head SET sealed_sequence = 0")
    database = Database.in_folder(folder / "data")
    AuditStore(database).seal(SealingKey(folder / "attacker").sign)
    database.close()
    (found,) = verified(folder).breaks
    assert "not known here" in found.why


def test_the_key_is_made_once_is_ours_alone_and_is_refused_when_it_is_open_to_others(tmp_path: Path) -> None:
    made: list[str] = []
    makers = [threading.Thread(target=lambda: made.append(SealingKey(tmp_path).public_key)) for _ in range(8)]
    for maker in makers:
        maker.start()
    for maker in makers:
        maker.join()
    assert len(set(made)) == 1
    assert len(made) == 8
    (path,) = tmp_path.iterdir()
    assert path.stat().st_mode & 0o777 == 0o600
    path.chmod(0o640)
    with pytest.raises(CheckpointError, match="chmod 600"):
        SealingKey(tmp_path)


def test_an_export_reads_back_as_the_same_chain(folder: Path) -> None:
    database = Database.in_folder(folder / "data")
    lines = [one.line() for one in AuditStore(database).links(after=5)]
    database.close()
    found = verify(map(read_line, lines), checkpoints.read_exported(folder / "exported"), set())
    assert found.records == ROWS - 5
    assert all("not known here" in one.why for one in found.breaks)
    del lines[2]
    assert verify(map(read_line, lines), (), ()).breaks[0].sequence == 8


def test_texts_of_others_are_harmless_and_bounded(tmp_path: Path) -> None:
    database = Database.in_folder(tmp_path)
    store = AuditStore(database)
    store.append([replace(ENTRY, subject="\x1b[2J\x00\ud800", reason="x" * 10_000)])
    (kept,) = store.newest(1)
    assert kept["subject"] == "\\x1b[2J\\x00\\ud800"
    assert len(kept["reason"]) == 2_000
    assert verify(store.links(), (), ()).sound
    database.close()


def test_what_many_threads_record_is_one_chain_and_every_entry_is_durable_when_it_returns(tmp_path: Path) -> None:
    database = Database.in_folder(tmp_path)
    store = AuditStore(database)
    with audit_log(store, tmp_path / "keys", tmp_path / "exported") as log:

        def record(thread: int) -> None:
            for number in range(40):
                subject = f"{thread}-{number}"
                log.record(replace(ENTRY, subject=subject))
                assert store.newest(1, {"subject": subject}), "it was not kept when that was said"

        threads = [threading.Thread(target=record, args=(thread,)) for thread in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert store.head().sequence == 240
    assert store.head().sealed_sequence == 240, "it is sealed at the end"
    assert [one.sequence for one in checkpoints.read_exported(tmp_path / "exported")][-1] == 240
    assert verify(store.links(), store.checkpoints(), {SealingKey(tmp_path / "keys").public_key}).sealed == 240
    database.close()


def test_a_thousand_entries_get_a_checkpoint_without_waiting(tmp_path: Path) -> None:
    database = Database.in_folder(tmp_path)
    store = AuditStore(database)
    store.append([ENTRY])
    log = AuditLog(store, SealingKey(tmp_path / "keys"))
    store.append([ENTRY] * SEAL_ROWS)
    log.record(ENTRY)
    log.record(ENTRY)
    assert store.head().sealed_sequence >= SEAL_ROWS
    log.close()
    database.close()


class Away(AuditStore):
    """A database that does not answer while `away`."""

    away = True

    def append(self, entries: Any) -> Any:
        if self.away:
            raise StoreError("it is away")
        return super().append(entries)


def test_what_cannot_be_kept_is_refused_and_stopping_is_kept_when_the_database_is_back(tmp_path: Path) -> None:
    database = Database.in_folder(tmp_path)
    store = Away(database)
    with audit_log(store, tmp_path / "keys") as log:
        log.record_later(replace(ENTRY, action="lever.pull"))
        with pytest.raises(StoreError, match="away"):
            log.record(ENTRY)
        store.away = False
        log.record(replace(ENTRY, action="run.start"))
    assert [row["action"] for row in store.newest(9)] == ["run.start", "lever.pull"]
    assert int(store.newest(9)[1]["detail"]["happened_ns"]) < store.newest(9)[1]["at_ns"]
    with pytest.raises(StoreError, match="closed"):
        log.record(ENTRY)
    database.close()


def test_repeated_refusals_of_nobody_are_one_entry_and_a_count(tmp_path: Path) -> None:
    database = Database.in_folder(tmp_path)
    store = AuditStore(database)
    knock = AuditEntry("unknown", "agent.enrol", "unknown", Outcome.REFUSED, reason="the token is not good")
    with audit_log(store, tmp_path / "keys") as log:
        for port in range(500):
            log.record(replace(knock, origin=f"ipv4:10.0.0.9:{port}"))
        log.record(replace(knock, origin="ipv4:10.0.0.10:1"))
        log.record(replace(knock, actor="agent:1"))
        log.record(replace(knock, actor="agent:1"))
    rows = store.newest(99)[::-1]
    assert [row["origin"] for row in rows][:2] == ["ipv4:10.0.0.9:0", "ipv4:10.0.0.10:1"]
    assert [row["actor"] for row in rows][2:4] == ["agent:1", "agent:1"], "who is known is never folded"
    (folded,) = rows[4:]
    assert folded["detail"] == {"count": "499", "folded": "yes"}
    database.close()


def test_folding_holds_no_more_than_so_many_addresses_and_counts_what_entries_count_themselves() -> None:
    folding = Folding(window_s=0.0)
    knock = AuditEntry("unknown", "agent.connect", "fleet", Outcome.REFUSED, detail={"count": "3"})
    assert [folding.is_repeat(replace(knock, origin=f"10.1.{n // 250}.{n % 250}")) for n in range(1_500)].count(
        True
    ) == 499
    assert sum(int(one.detail["count"]) for one in folding.over()) == 3 * 499
    assert folding.over() == []
