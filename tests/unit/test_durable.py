"""What is on disk to stay: a folder's names, and room for what is written later."""

import errno
import os
from pathlib import Path

import pytest
from brownout_agent.kernel.durable import reserve, sync_folder


def descriptors() -> list[str]:
    return os.listdir("/proc/self/fd")  # noqa: PTH208 - names alone


def test_the_folder_itself_is_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[Path] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        synced.append(Path(f"/proc/self/fd/{descriptor}").readlink())
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    before = descriptors()
    sync_folder(tmp_path)
    assert (synced, descriptors()) == ([tmp_path], before)


def test_what_is_no_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        sync_folder(tmp_path / "file")


def test_what_the_disk_says_is_passed_on_and_nothing_is_kept_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", refuse)
    before = descriptors()
    with pytest.raises(OSError, match="Input/output error"):
        sync_folder(tmp_path)
    assert descriptors() == before


def test_room_is_set_aside_behind_the_end_of_a_file_that_does_not_grow_by_it(tmp_path: Path) -> None:
    file = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        os.write(file, b"x")
        before = os.fstat(file)
        assert reserve(file, 1, 2**20) is True
        after = os.fstat(file)
        assert after.st_size == before.st_size == 1
        assert (after.st_blocks - before.st_blocks) * 512 >= 2**20 - 2 * after.st_blksize
        with open(os.devnull, "wb") as nothing:
            assert reserve(nothing.fileno(), 0, 2**20) is False
    finally:
        os.close(file)


def test_room_is_set_aside_beyond_four_gib_as_well(tmp_path: Path) -> None:
    file = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        assert reserve(file, 0, 2**20)
        first = os.fstat(file).st_blocks
        assert reserve(file, 2**33, 2**20)
        assert os.fstat(file).st_blocks - first >= first - 8, "not the same room once more"
    finally:
        os.close(file)
