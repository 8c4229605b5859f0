"""From a path or bytes to text: bounded, and refusing what is not a UTF-8 text file."""

import codecs
import os
import re
import stat
from pathlib import Path

from brownout_controller.language.diagnostics import Diagnostic, InvalidExperiment, Source, Span
from brownout_controller.language.nearest import nearest

LARGEST_BYTES = 256 * 1024

_OTHER_ENCODINGS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
# YAML's printable characters without the line breaks that only YAML 1.1 knew (U+0085, U+2028, U+2029), without byte
# order marks, and without the marks that turn the direction of text: what a reviewer sees is what is read.
FORBIDDEN_CHARACTER = re.compile(
    "[^\t\n\r\x20-\x7e\xa0-\u2027\u202f-\u2065\u206a-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]"
)


def read_source(path: Path) -> Source:
    """The text of an experiment file. Opens and reads at most once, and never more than 256 KiB.

    Raises:
        InvalidExperiment: missing, not a regular file, not readable, too large, or not UTF-8 text.
    """
    name = str(path)
    try:
        with open(path, "rb", opener=_open_at_once) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise _refused("not-a-file", "this is not a regular file", name, "give the path of a YAML file")
            data = file.read(LARGEST_BYTES + 1)
    except FileNotFoundError:
        raise _refused("missing-file", "there is no such file", name, _similar_file(path)) from None
    except IsADirectoryError:
        raise _refused("not-a-file", "this is a folder", name, "give the path of a YAML file") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise _refused("unreadable-file", f"the file cannot be read: {reason}", name) from error
    return decode(data, name)


def decode(data: bytes, name: str) -> Source:
    """The text of an experiment that came as bytes, without its byte order mark.

    Raises:
        InvalidExperiment: too large, or not UTF-8 text.
    """
    if len(data) > LARGEST_BYTES:
        hint = "use `vars` for what repeats, or several experiments"
        raise _refused("too-large", f"an experiment has at most {LARGEST_BYTES // 1024} KiB", name, hint)
    for mark, encoding in _OTHER_ENCODINGS.items():
        if data.startswith(mark):
            raise _refused("not-utf-8", f"the file is {encoding}", name, f"iconv -f {encoding} -t UTF-8 {name}")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        good = error.object[: error.start].decode("utf-8")
        message = f"byte 0x{data[data.index(error.object) + error.start]:02x} is not UTF-8"
        diagnostic = Diagnostic("not-utf-8", message, _place(good, len(good)), help="save the file as UTF-8")
        raise InvalidExperiment([diagnostic], Source(name, data.decode("utf-8", "replace"))) from None
    source = Source(name, text)
    check_characters(source)
    return source


def check_characters(source: Source) -> None:
    """Refuse characters that are not text.

    Raises:
        InvalidExperiment: a control character, a direction mark, or a lone surrogate.
    """
    found = FORBIDDEN_CHARACTER.search(source.text)
    if found:
        hint = "is the file UTF-16?" if found[0] == "\0" else ""
        message = f"character U+{ord(found[0]):04X} has no place in an experiment"
        diagnostic = Diagnostic("control-character", message, _place(source.text, found.start()), hint)
        raise InvalidExperiment([diagnostic], source)


def _open_at_once(path: str, flags: int) -> int:
    """Opening a FIFO without a writer would wait for one; what was opened is looked at afterwards."""
    return os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)


def _place(text: str, offset: int) -> Span:
    before = text[:offset].replace("\r\n", "\n").replace("\r", "\n")
    return Span(before.count("\n") + 1, len(before) - (before.rfind("\n") + 1) + 1)


def _refused(code: str, message: str, name: str, hint: str = "") -> InvalidExperiment:
    return InvalidExperiment([Diagnostic(code, message, help=hint)], Source(name, ""))


def _similar_file(path: Path) -> str:
    try:
        names = [entry.name for entry in path.parent.iterdir() if entry.suffix in {".yaml", ".yml"}]
    except OSError:
        return ""
    similar = nearest(path.name, names)
    return f"did you mean {path.parent / similar}?" if similar else "brownout explain experiment"
