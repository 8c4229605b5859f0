"""Who this agent is: a key that never leaves the host, and a short-lived certificate for it.

Renewed at two thirds of the certificate's life, with a fresh key each time. A fresh key is kept before it is shown, so
that a renewal whose answer was lost is asked for again with the same key, and is the same renewal.
"""

import datetime
import hashlib
import json
import os
import random
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from brownout_agent.kernel.durable import sync_folder

RENEW_AT = 2 / 3
BACKDATED = datetime.timedelta(minutes=5)
"""Certificates begin so long before they are made: clocks of hosts run behind, and they must be good at once."""
_RENEW_JITTER = 0.05
_IDENTITY, _AUTHORITY, _MEMBERSHIP, _NEXT_KEY = "identity.pem", "authority.pem", "agent.json", "next-key.pem"
_EPOCH = "epoch"


class JoinError(Exception):
    """The agent could not join, or its identity is of no use; the text says why and what to do."""


@dataclass(frozen=True, slots=True)
class Membership:
    """Where this agent belongs. Kept as `agent.json` beside key and certificates."""

    controller: str
    """Where it joined, HOST:PORT; the name may lead to several addresses."""
    enrol_port: int
    name: str
    labels: dict[str, str]
    agent_id: str = ""
    controllers: list[str] = field(default_factory=list)
    """As a controller told them last, HOST:PORT: that one first, then the others."""

    @property
    def in_order(self) -> tuple[str, ...]:
        """Every controller that is known, each once: who was there last comes first, where it joined at the end."""
        return tuple(dict.fromkeys((*self.controllers, self.controller)))


@dataclass(frozen=True, slots=True)
class Identity:
    """All that a TLS connection needs."""

    membership: Membership
    key_pem: bytes
    certificate_pem: bytes
    authority_pem: bytes

    @property
    def renew_in_s(self) -> float:
        """Seconds from now until this certificate should be renewed, with jitter; 0 when it is overdue."""
        certificate = x509.load_pem_x509_certificate(self.certificate_pem)
        begins = (certificate.not_valid_before_utc + BACKDATED).timestamp()
        ends = certificate.not_valid_after_utc.timestamp()
        share = RENEW_AT + random.uniform(-_RENEW_JITTER, _RENEW_JITTER)  # noqa: S311 - spreads load, no secret
        return max(0.0, begins + (ends - begins) * share - time.time())

    @property
    def lives_s(self) -> float:
        """Seconds until this certificate runs out; negative afterwards."""
        return x509.load_pem_x509_certificate(self.certificate_pem).not_valid_after_utc.timestamp() - time.time()

    @property
    def trusts(self) -> str:
        """SHA-256 of the authorities that it trusts, so that the controller knows which it has learnt of."""
        return hashlib.sha256(self.authority_pem).hexdigest()


def new_key() -> bytes:
    """A fresh P-256 key (PEM)."""
    return ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def request_for(key_pem: bytes) -> bytes:
    """A certificate request (PEM) that shows a key and names nobody: the authority gives the names."""
    key = serialization.load_pem_private_key(key_pem, password=None)
    assert isinstance(key, ec.EllipticCurvePrivateKey), "we made it"
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
    return request.public_bytes(serialization.Encoding.PEM)


def next_key(folder: Path, identity: Identity) -> bytes:
    """The key of the next certificate: the one that was shown already, when its answer was lost; else a fresh one."""
    path = folder / _NEXT_KEY
    if path.exists() and (kept := _read_own(path)) != identity.key_pem:
        return kept
    key_pem = new_key()
    write_durably(path, key_pem)
    return key_pem


def save(folder: Path, identity: Identity) -> None:
    """Put the identity into `folder`. Key and certificate are one file, so that they always fit together."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name, content in (
        (_AUTHORITY, identity.authority_pem),
        (_MEMBERSHIP, json.dumps(asdict(identity.membership)).encode()),
        (_IDENTITY, identity.key_pem + identity.certificate_pem),
    ):
        write_durably(folder / name, content)
    (folder / _NEXT_KEY).unlink(missing_ok=True)


def save_authority(folder: Path, authority_pem: bytes) -> None:
    """Keep the authorities to trust from now on."""
    write_durably(folder / _AUTHORITY, authority_pem)


def save_membership(folder: Path, membership: Membership) -> None:
    """Keep where this agent belongs from now on."""
    write_durably(folder / _MEMBERSHIP, json.dumps(asdict(membership)).encode())


def load_epoch(folder: Path) -> int:
    """The epoch that this agent obeys.

    Raises:
        JoinError: what is kept of it is damaged.
    """
    path = folder / _EPOCH
    if not path.exists():
        return 0
    try:
        return int(path.read_text())
    except ValueError as error:
        raise JoinError(f"{path} is damaged ({error}); next: brownout-agent join ...") from error


def save_epoch(folder: Path, epoch: int) -> None:
    """Keep the epoch that this agent obeys from now on."""
    write_durably(folder / _EPOCH, str(epoch).encode())


def forget_epoch(folder: Path) -> None:
    """Obey whoever comes first."""
    (folder / _EPOCH).unlink(missing_ok=True)


def load(folder: Path) -> Identity:
    """The identity in `folder`.

    Raises:
        JoinError: this agent has not joined, or its files are damaged or open to others.
    """
    try:
        key_pem, begin, certificate = _read_own(folder / _IDENTITY).partition(b"-----BEGIN CERTIFICATE-----")
        membership = Membership(**json.loads(_read_own(folder / _MEMBERSHIP)))
        identity = Identity(membership, key_pem, begin + certificate, _read_own(folder / _AUTHORITY))
        serialization.load_pem_private_key(identity.key_pem, password=None)
        x509.load_pem_x509_certificate(identity.certificate_pem)
    except FileNotFoundError as error:
        raise JoinError(f"{folder} holds no identity ({error.filename}); next: brownout-agent join ...") from error
    except (ValueError, TypeError) as error:
        raise JoinError(f"the identity in {folder} is damaged ({error}); next: brownout-agent join ...") from error
    return identity


def _read_own(path: Path) -> bytes:
    """A file that nobody else may read, so that nobody else can have read it."""
    if path.stat().st_mode & 0o077:
        raise JoinError(f"{path} is open to others; next: chmod 600 {path}, or join again")
    return path.read_bytes()


def write_durably(path: Path, content: bytes) -> None:
    """Replace a file by rename, synced with its folder, readable by this user alone."""
    fresh = path.with_suffix(path.suffix + ".new")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        os.fchmod(descriptor, 0o600)  # a leftover of a crash keeps the mode that it had
        file.write(content)
        file.flush()
        os.fsync(descriptor)
    fresh.rename(path)
    sync_folder(path.parent)
