"""The ledger: epochs and counts outlive the injector, and what cannot be known or kept is an error."""

import os
import stat
from pathlib import Path

import pytest
from brownout_agent.epochs import STEP_MAX, EpochRefused
from brownout_agent.injector.ledger import DAY_NS, Ledger, LedgerError

NOW_NS = 1_800_000_000 * 10**9


def test_a_new_host_has_obeyed_nobody(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    assert (ledger.epoch, ledger.begun_within_a_day(NOW_NS)) == (0, 0)
    assert not ledger.path.exists()


def test_epochs_only_rise_and_are_found_again_by_the_next_life(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    for epoch, largest in ((3, 3), (3, 3), (7, 7), (7 + STEP_MAX, 7 + STEP_MAX)):
        ledger.take(epoch, NOW_NS, 0)
        assert (ledger.epoch, Ledger(tmp_path).epoch) == (largest, largest)


def test_an_older_epoch_and_one_that_nobody_could_follow_are_refused_and_not_kept(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.take(3, NOW_NS, 0)
    for refused in (2, 3 + STEP_MAX + 1, 2**64 - 1):
        with pytest.raises(EpochRefused):
            ledger.take(refused, NOW_NS, 5)
    assert (Ledger(tmp_path).epoch, Ledger(tmp_path).begun_within_a_day(NOW_NS)) == (3, 0)


def test_epochs_begin_anew_for_an_agent_that_joined_anew_and_a_days_faults_do_not(tmp_path: Path) -> None:
    Ledger(tmp_path).take(900, NOW_NS, 5, "before")
    with pytest.raises(EpochRefused):
        Ledger(tmp_path).take(1, NOW_NS, 5, "before")
    Ledger(tmp_path).check_epoch(0, "after")
    Ledger(tmp_path).take(1, NOW_NS, 5, "after")
    assert (Ledger(tmp_path).epoch, Ledger(tmp_path).begun_within_a_day(NOW_NS)) == (1, 2)


def test_the_page_of_an_earlier_release_holds_for_whoever_is_attached(tmp_path: Path) -> None:
    (tmp_path / "ledger").write_text('{"epoch": 3, "begun_ns": []}')
    with pytest.raises(EpochRefused, match="epoch 2 is older than 3"):
        Ledger(tmp_path).check_epoch(2, "anybody")
    Ledger(tmp_path).check_epoch(3, "anybody")


def test_begun_faults_count_for_a_day_across_lives(tmp_path: Path) -> None:
    for hour in range(5):
        Ledger(tmp_path).take(1, NOW_NS + hour * DAY_NS // 4, 20)
    last_ns = NOW_NS + DAY_NS
    # The first of the five was begun a day ago to the nanosecond, and counts no more.
    assert Ledger(tmp_path).begun_within_a_day(last_ns) == 4
    assert Ledger(tmp_path).begun_within_a_day(last_ns - 1) == 5


def test_a_clock_that_is_wrong_and_set_right_again_forgets_nothing(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    for away_days in (0, -10, 3650, 0):
        ledger.take(1, NOW_NS + away_days * DAY_NS, 20)
    assert Ledger(tmp_path).begun_within_a_day(NOW_NS) == 3  # the one of ten days ago aside


def test_no_more_is_kept_than_is_counted(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    for _ in range(10):
        ledger.take(1, NOW_NS, 3)
    assert ledger.begun_within_a_day(NOW_NS) == 3
    ledger.take(1, NOW_NS, 0)
    assert ledger.begun_within_a_day(NOW_NS) == 3


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", "7", '{"epoch": "x", "begun_ns": []}', '{"epoch": 1e999, "begun_ns": []}']
)
def test_a_ledger_that_is_no_ledger_answers_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / "ledger").write_text(text)
    ledger = Ledger(tmp_path)
    for ask in (lambda: ledger.epoch, lambda: ledger.begun_within_a_day(NOW_NS), lambda: ledger.take(1, NOW_NS, 0)):
        with pytest.raises(LedgerError, match="cannot be read"):
            ask()


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_text('{"epoch": 0, "begun_ns": []}')
    (tmp_path / "ledger").symlink_to("elsewhere")
    with pytest.raises(LedgerError):
        Ledger(tmp_path).take(1, NOW_NS, 0)


def test_what_cannot_be_kept_is_not_taken(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.take(1, NOW_NS, 5)
    (tmp_path / "ledger.new").mkdir()  # what the next page would be written to
    with pytest.raises(LedgerError, match="cannot be written"):
        ledger.take(2, NOW_NS, 5)
    assert (ledger.epoch, ledger.begun_within_a_day(NOW_NS)) == (1, 1)
    assert Ledger(tmp_path).epoch == 1


def test_only_its_owner_may_read_or_write_it(tmp_path: Path) -> None:
    Ledger(tmp_path).take(1, NOW_NS, 0)
    assert stat.S_IMODE((tmp_path / "ledger").stat().st_mode) == 0o600
    assert os.listdir(tmp_path) == ["ledger"]  # noqa: PTH208 - names alone


def test_a_day_has_86400_seconds_and_no_more_than_a_mebibyte_is_read(tmp_path: Path) -> None:
    assert DAY_NS == 86_400 * 1_000_000_000
    page = '{"epoch": 3, "begun_ns": []}'
    (tmp_path / "ledger").write_text(page + " " * (2**20 - len(page)))
    assert Ledger(tmp_path).epoch == 3
    (tmp_path / "ledger").write_text(" " * (2**20 + 1 - len(page)) + page)
    with pytest.raises(LedgerError, match="cannot be read"):
        _ = Ledger(tmp_path).epoch


@pytest.mark.parametrize(
    "text", ['{"epoch": 1}', '{"epoch": null, "begun_ns": []}', "[" * 100_000, '{"epoch": Infinity, "begun_ns": []}']
)
def test_whatever_stands_there_is_an_error_and_no_crash(tmp_path: Path, text: str) -> None:
    (tmp_path / "ledger").write_text(text)
    with pytest.raises(LedgerError, match="cannot be read"):
        _ = Ledger(tmp_path).epoch


def test_a_page_is_synced_before_it_takes_its_name_and_the_folder_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[tuple[str, int]] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        synced.append((path.name, path.stat().st_size if path.is_file() else 0))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    Ledger(tmp_path).take(7, NOW_NS, 1)
    size = (tmp_path / "ledger").stat().st_size
    assert synced == [("ledger.new", size), (tmp_path.name, 0)]


def test_a_page_that_could_not_be_written_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: int) -> None:
        raise OSError(28, "No space left on device")

    ledger = Ledger(tmp_path)
    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(LedgerError, match="No space left"):
        ledger.take(1, NOW_NS, 0)
    assert list(tmp_path.iterdir()) == []


def test_noting_keeps_no_descriptor(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    open_before = len(list(Path("/proc/self/fd").iterdir()))
    for epoch in range(1, 5):
        ledger.take(epoch, NOW_NS, 1)
    assert len(list(Path("/proc/self/fd").iterdir())) == open_before
