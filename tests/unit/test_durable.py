"""Syncing a folder: that one and no file, and no descriptor is kept, whatever the disk says."""

import errno
import os
from pathlib import Path

import pytest
from brownout_agent.kernel.durable import sync_folder


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
