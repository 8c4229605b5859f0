"""Records that hang together: each one's hash covers the one before, so none can be changed, moved or left out unseen.

`hash = SHA-256(previous hash, 32 bytes || canonical JSON of the record)`; the first record hangs on 32 zero bytes.
Records hold texts, whole numbers and mappings of them, so their canonical JSON needs no rule for fractions
(the rest as in RFC 8785, but everything beyond ASCII written as \\uXXXX).
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

GENESIS = "0" * 64
"""What the first record hangs on."""


@dataclass(frozen=True, slots=True)
class Link:
    """One record as it is kept. `hash` and `previous` are hex."""

    sequence: int
    """1, 2, 3 ... without a gap; also stands in the record."""
    document: Mapping[str, Any]
    previous: str
    hash: str

    def line(self) -> str:
        """One line of a file, without its end."""
        return json.dumps({"previous": self.previous, "record": self.document, "hash": self.hash}, sort_keys=True)


@dataclass(frozen=True, slots=True)
class Break:
    """Where a chain is not what it was. `sequence` is that of the first record that does not fit."""

    sequence: int
    why: str

    def __str__(self) -> str:
        return f"record {self.sequence}: {self.why}"


def canonical(document: Mapping[str, Any]) -> bytes:
    """The one way to write a record.

    Raises:
        ValueError: there is a number in it that is no number.
    """
    return json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")


def hash_of(previous: str, document: Mapping[str, Any]) -> str:
    """The hash of a record that hangs on `previous`."""
    return hashlib.sha256(bytes.fromhex(previous) + canonical(document)).hexdigest()


def link(previous: str, document: Mapping[str, Any]) -> Link:
    """A record, hung on the one before."""
    return Link(int(document["sequence"]), document, previous, hash_of(previous, document))


def read_line(line: str) -> Link:
    """What `Link.line` wrote.

    Raises:
        ValueError: it is not that.
    """
    try:
        plain = json.loads(line)
        found = Link(int(plain["record"]["sequence"]), dict(plain["record"]), plain["previous"], plain["hash"])
    except (KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"no record of a chain: {error}") from error
    if not isinstance(found.previous, str) or not isinstance(found.hash, str):
        raise ValueError("no record of a chain: its hashes are no texts")
    return found


class Following:
    """Goes along a chain and notes every break. It goes on behind a break, so that one change is told once."""

    def __init__(self, sequence: int = 0, hash_: str = GENESIS) -> None:
        """Begin behind the record `sequence`, whose hash is known."""
        self.sequence = sequence
        self.hash = hash_
        self.breaks: list[Break] = []

    def take(self, one: Link) -> None:
        """The next record."""
        if one.sequence != self.sequence + 1:
            self._broken(self.sequence + 1, f"it is not there; record {one.sequence} comes next")
        elif one.previous != self.hash:
            self._broken(one.sequence, "it does not hang on the record before it")
        if one.document.get("sequence") != one.sequence:
            self._broken(one.sequence, f"it says that it is record {one.document.get('sequence')}")
        if not _fits(one):
            self._broken(one.sequence, "it is not what it was: its hash is another")
        self.sequence, self.hash = one.sequence, one.hash

    def take_all(self, links: Iterable[Link]) -> None:
        """One after the other."""
        for one in links:
            self.take(one)

    def _broken(self, sequence: int, why: str) -> None:
        self.breaks.append(Break(sequence, why))


def _fits(one: Link) -> bool:
    try:
        return hash_of(one.previous, one.document) == one.hash
    except (ValueError, RecursionError):  # what was put in its place is no hash, or no record
        return False
