"""From a path to text: what is opened, how much is read, which bytes are text."""

import os
from pathlib import Path

import pytest
from brownout_controller.language.diagnostics import Diagnostic, InvalidExperiment
from brownout_controller.language.source import LARGEST_BYTES, decode, read_source


def _refusal(path: Path) -> Diagnostic:
    with pytest.raises(InvalidExperiment) as caught:
        read_source(path)
    (diagnostic,) = caught.value.diagnostics
    return diagnostic


def test_a_missing_file_is_named_with_the_nearest_one(tmp_path: Path) -> None:
    (tmp_path / "checkout.yaml").write_text("version: 1\n")
    found = _refusal(tmp_path / "chekcout.yaml")
    assert (found.code, found.line) == ("missing-file", 0)
    assert found.help == f"did you mean {tmp_path / 'checkout.yaml'}?"


def test_a_missing_file_in_a_missing_folder_is_a_missing_file(tmp_path: Path) -> None:
    assert _refusal(tmp_path / "no" / "where.yaml").code == "missing-file"


def test_a_folder_is_not_a_file(tmp_path: Path) -> None:
    assert _refusal(tmp_path).code == "not-a-file"


def test_a_fifo_without_a_writer_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.yaml")
    assert _refusal(tmp_path / "fifo.yaml").code == "not-a-file"


def test_an_endless_device_is_not_a_file() -> None:
    assert _refusal(Path("/dev/zero")).code == "not-a-file"


def test_a_path_with_a_nul_is_refused() -> None:
    assert _refusal(Path("a\0b.yaml")).code == "unreadable-file"


def test_a_loop_of_links_is_refused(tmp_path: Path) -> None:
    (tmp_path / "loop.yaml").symlink_to(tmp_path / "loop.yaml")
    assert _refusal(tmp_path / "loop.yaml").code == "unreadable-file"


def test_a_file_that_cannot_be_read_is_refused_with_the_reason() -> None:
    found = _refusal(Path("/proc/self/mem"))  # regular, opens, and address 0 is not mapped
    assert (found.code, found.message) == ("unreadable-file", "the file cannot be read: Input/output error")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_file_without_permission_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("version: 1\n")
    path.chmod(0)
    assert _refusal(path).code == "unreadable-file"


def test_the_largest_file_is_read_and_one_byte_more_is_not(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_bytes(b"#" * LARGEST_BYTES)
    assert len(read_source(path).text) == LARGEST_BYTES
    path.write_bytes(b"#" * (LARGEST_BYTES + 1))
    assert _refusal(path).code == "too-large"


def test_no_more_of_a_huge_file_is_read_than_tells_that_it_is_too_large(tmp_path: Path) -> None:
    path = tmp_path / "sparse.yaml"
    path.touch()
    os.truncate(path, 1 << 40)
    assert _refusal(path).code == "too-large"


def test_a_byte_order_mark_and_crlf_are_read() -> None:
    assert decode(b"\xef\xbb\xbfversion: 1\r\n", "x").text == "version: 1\r\n"


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "latin-1"])
def test_other_encodings_are_refused(encoding: str) -> None:
    with pytest.raises(InvalidExperiment) as caught:
        decode("name: größe\n".encode(encoding), "x.yaml")
    assert caught.value.diagnostics[0].code in {"not-utf-8", "control-character"}


@pytest.mark.parametrize("prefix", [b"", b"\xef\xbb\xbf"])
def test_an_invalid_byte_is_shown_at_its_line_and_column(prefix: bytes) -> None:
    with pytest.raises(InvalidExperiment) as caught:
        decode(prefix + "a: 1\r\nö: ".encode() + b"\xfc\n", "x.yaml")
    (found,) = caught.value.diagnostics
    assert (found.code, found.line, found.column) == ("not-utf-8", 2, 4)
    assert "0xfc" in found.message
