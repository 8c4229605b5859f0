"""The STOP file: whatever is there halts, its words are the reason, and both of its names count."""

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from brownout_agent.injector import stop_file
from brownout_agent.injector.stop_file import RELEASE, WELL_KNOWN, StopFile


@pytest.fixture
def latch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StopFile:
    """One that a policy names, beside a well-known one of this test."""
    monkeypatch.setattr(stop_file, "WELL_KNOWN", tmp_path / "well-known" / "STOP")
    return StopFile(tmp_path / "etc" / "STOP")


@pytest.fixture
def no_umask() -> Iterator[None]:
    """What is made has the mode that was asked for."""
    before = os.umask(0)
    yield
    os.umask(before)


class Synced:
    """Every fsync of this process: of what, and how large it was then."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[tuple[str, int]] = []
        self._real = os.fsync
        monkeypatch.setattr(os, "fsync", self._fsync)

    def _fsync(self, descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        self.calls.append((path.name, path.stat().st_size if path.is_file() else 0))
        self._real(descriptor)


def descriptors() -> list[str]:
    return os.listdir("/proc/self/fd")  # noqa: PTH208 - names alone


# ---- is it there? ----------------------------------------------------------------------------------------------------


def test_its_names_and_how_to_release_it_are_what_the_documents_say() -> None:
    assert Path("/etc/brownout/STOP") == WELL_KNOWN
    assert RELEASE == "on the host: brownout-injector resume"
    assert StopFile(WELL_KNOWN).paths == (WELL_KNOWN,)
    assert StopFile(Path("/srv/STOP")).paths == (Path("/srv/STOP"), WELL_KNOWN)


def test_a_host_without_one_is_not_halted_also_where_its_folder_is_none(latch: StopFile) -> None:
    assert latch.reason() is None
    latch.path.parent.write_text("a file in the folder's place")
    assert latch.reason() is None


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", ""),
        (b" \n\t", ""),
        (b"the shop\nis  on\tfire\n", ": the shop is on fire"),
        (b"caf\xc3\xa9 \xff", ": caf\u00e9 \ufffd"),
        (b"x" * 501, f": {'x' * 500}"),
    ],
)
def test_its_words_are_the_reason_in_one_line_of_500_bytes_at_most(latch: StopFile, content: bytes, words: str) -> None:
    latch.path.parent.mkdir()
    latch.path.write_bytes(content)
    before = descriptors()
    assert latch.reason() == f"{latch.path}{words}"
    assert descriptors() == before


@pytest.mark.parametrize("kind", ["folder", "pipe", "pipe with words", "dangling link", "link to words"])
def test_any_kind_of_file_halts_without_being_waited_for_or_followed(latch: StopFile, kind: str) -> None:
    latch.path.parent.mkdir()
    writer = -1
    match kind:
        case "folder":
            latch.path.mkdir()
        case "pipe" | "pipe with words":
            os.mkfifo(latch.path)
            if kind == "pipe with words":  # somebody has it open, and has written nothing yet
                writer = os.open(latch.path, os.O_RDWR)
        case "dangling link":
            latch.path.symlink_to("nothing")
        case "link to words":
            (latch.path.parent / "words").write_text("somebody else's secret")
            latch.path.symlink_to("words")
    before = descriptors()
    assert latch.reason() == str(latch.path)
    assert descriptors() == before
    if writer >= 0:
        os.close(writer)


def test_one_that_cannot_be_looked_at_halts(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 300)
    assert StopFile(path).reason() == f"{path}, which cannot be looked at: File name too long"


def test_the_well_known_one_halts_as_well_and_the_policys_is_told_first(latch: StopFile) -> None:
    own, well_known = latch.paths
    for path in (well_known, own):
        path.parent.mkdir()
        path.write_text(f"by {path.parent.name}")
        assert latch.reason() == f"{path}: by {path.parent.name}"


# ---- pulled and released ---------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_umask")
def test_it_is_pulled_durably_with_its_reason_for_everybody_to_read(
    latch: StopFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    latch = StopFile(latch.path.parent / "deeper" / "STOP")
    synced, before = Synced(monkeypatch), descriptors()
    latch.pull("INC-204: caf\u00e9 \udcff")
    assert latch.path.read_bytes() == "INC-204: caf\u00e9 ?\n".encode()
    assert synced.calls == [("STOP", latch.path.stat().st_size), ("deeper", 0)]
    assert descriptors() == before
    assert stat.S_IMODE(latch.path.stat().st_mode) == 0o644
    assert stat.S_IMODE(latch.path.parent.stat().st_mode) == 0o755
    assert latch.reason() == f"{latch.path}: INC-204: caf\u00e9 ?"


def test_a_long_reason_is_cut_off_at_500_bytes(latch: StopFile) -> None:
    latch.pull("y" * 600)
    assert latch.path.read_text() == "y" * 500 + "\n"


@pytest.mark.parametrize("is_link", [False, True])
def test_one_that_is_there_keeps_its_words_and_leads_nowhere(latch: StopFile, is_link: bool) -> None:
    latch.path.parent.mkdir()
    elsewhere = latch.path.parent / "elsewhere"
    if is_link:
        latch.path.symlink_to(elsewhere)
    else:
        latch.path.write_text("first")
    latch.pull("second")
    assert latch.path.is_symlink() == is_link
    assert not elsewhere.exists()
    assert is_link or latch.path.read_text() == "first"


def test_a_full_disk_takes_the_name_which_is_what_halts(latch: StopFile, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int, __: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    latch.pull("INC-204")
    assert latch.reason() == str(latch.path)


def test_one_that_may_not_outlive_a_power_failure_is_an_error_though_it_is_there(
    latch: StopFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fails)
    before = descriptors()
    with pytest.raises(OSError, match="Input/output error"):
        latch.pull("INC-204")
    assert descriptors() == before
    assert latch.reason() == f"{latch.path}: INC-204"


def test_a_release_takes_both_away_durably_and_says_whether_there_was_one(
    latch: StopFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert latch.release() is False
    for path in latch.paths:
        path.parent.mkdir()
    latch.paths[0].write_text("x")
    latch.paths[1].symlink_to("nothing")
    synced = Synced(monkeypatch)
    assert latch.release() is True
    assert [name for name, _ in synced.calls] == ["etc", "well-known"]
    assert (latch.reason(), latch.release()) == (None, False)
    latch.path.mkdir()
    with pytest.raises(IsADirectoryError):
        latch.release()
    assert latch.reason() == str(latch.path)
