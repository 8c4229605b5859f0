"""Signed checkpoints: what the chain was at some record, by a key that the database does not have.

Each stands in the database, and as a file of its own in the folder of `--audit-export`, which belongs on another
machine: against a file there a log that was cut off or made anew as a whole is caught (after CloudTrail's digest files,
docs.aws.amazon.com/awscloudtrail/latest/userguide/cloudtrail-log-file-validation-digest-file-structure.html).
"""

import json
import uuid
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from brownout_agent.agent.identity import write_durably
from brownout_agent.chain import canonical
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

KEY_FILE = "audit-key.pem"
_FILE_BYTES_MAX = 4_096
_RAW = serialization.Encoding.Raw, serialization.PublicFormat.Raw


class CheckpointError(Exception):
    """A checkpoint or a key that is none, or cannot be read; the text says which."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """That record `sequence` had this hash at a time. Key and signature (Ed25519) are hex."""

    sequence: int
    hash: str
    at_ns: int
    public_key: str
    signature: str

    @property
    def signed(self) -> bytes:
        """What the signature is over."""
        return _signed(self.sequence, self.hash, self.at_ns)

    def is_genuine(self) -> bool:
        """Whether the key that it names has signed it. Whether that key is to be believed is another question."""
        try:
            Ed25519PublicKey.from_public_bytes(bytes.fromhex(self.public_key)).verify(
                bytes.fromhex(self.signature), self.signed
            )
        except (InvalidSignature, ValueError):
            return False
        return True

    def document(self) -> dict[str, Any]:
        """As JSON values."""
        return {name: getattr(self, name) for name in Checkpoint.__slots__}


def _signed(sequence: int, hash_: str, at_ns: int) -> bytes:
    return canonical({"brownout": "audit checkpoint", "sequence": sequence, "hash": hash_, "at_ns": at_ns})


class SealingKey:
    """The key that signs checkpoints. It lies beside the authority's keys, so controllers that share those share it."""

    def __init__(self, folder: Path) -> None:
        """The key in `folder`, made at first use.

        Raises:
            CheckpointError: it is open to others, or damaged.
            OSError: it cannot be made.
        """
        path = folder / KEY_FILE
        if not path.exists():
            _make_key(path)
        if path.stat().st_mode & 0o077:
            raise CheckpointError(f"{path} is open to others; next: chmod 600 {path}")
        self._key = _read_key(path)
        self.public_key = self._key.public_key().public_bytes(*_RAW).hex()

    def sign(self, sequence: int, hash_: str, at_ns: int) -> Checkpoint:
        """A checkpoint of the chain's record `sequence`."""
        signature = self._key.sign(_signed(sequence, hash_, at_ns)).hex()
        return Checkpoint(sequence, hash_, at_ns, self.public_key, signature)


def known_key(folder: Path) -> str:
    """The public key of the key in `folder`, hex; "" where there is none.

    Raises:
        CheckpointError: it is open to others, or damaged.
    """
    return SealingKey(folder).public_key if (folder / KEY_FILE).exists() else ""


def _make_key(path: Path) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    pem = Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    fresh = path.with_name(f"{KEY_FILE}.{uuid.uuid4().hex}")
    write_durably(fresh, pem)
    try:
        with suppress(FileExistsError):  # another program was first, and its key counts
            path.hardlink_to(fresh)
    finally:
        fresh.unlink()


def _read_key(path: Path) -> Ed25519PrivateKey:
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise CheckpointError(f"{path} is no Ed25519 key")
    return key


# ---- files -----------------------------------------------------------------------------------------------------------


def _file_name(sequence: int) -> str:
    return f"checkpoint-{sequence:012}.json"


def newest_exported(folder: Path) -> int:
    """The sequence of the newest checkpoint in a folder; 0 where there is none.

    Raises:
        OSError: the folder cannot be read.
    """
    names = (path.stem.rpartition("-")[2] for path in folder.glob("checkpoint-*.json"))
    return max((int(name) for name in names if name.isdecimal()), default=0)


def export(checkpoint: Checkpoint, folder: Path) -> None:
    """Write a checkpoint's file, durably.

    Raises:
        OSError: it cannot be written.
    """
    write_durably(folder / _file_name(checkpoint.sequence), json.dumps(checkpoint.document(), indent=1).encode())


def read_exported(folder: Path) -> list[Checkpoint]:
    """Every checkpoint of a folder, oldest first.

    Raises:
        CheckpointError: a file is none.
        OSError: one cannot be read.
    """
    found = []
    for path in sorted(folder.glob("checkpoint-*.json")):
        with path.open("rb") as file:
            raw = file.read(_FILE_BYTES_MAX)
        try:
            plain = json.loads(raw)
            checkpoint = Checkpoint(**plain)
            if not isinstance(checkpoint.sequence, int) or not isinstance(checkpoint.at_ns, int):
                raise TypeError("a number is none")
            if not all(
                isinstance(text, str) for text in (checkpoint.hash, checkpoint.public_key, checkpoint.signature)
            ):
                raise TypeError("a text is none")
        except (ValueError, TypeError, RecursionError) as error:
            raise CheckpointError(f"{path} is no checkpoint: {error}") from error
        found.append(checkpoint)
    return found
