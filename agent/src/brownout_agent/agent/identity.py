"""Who this agent is: a key that never leaves the host, and a short-lived certificate for it.

Joining needs a one-time token and the pin of the controller's authority (SHA-256 of its public key), and nothing is
trusted before the pin fits. Renewal at two thirds of the certificate's life, with a fresh key each time.
"""

import hashlib
import json
import os
import random
import socket
import ssl
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

SERVER_NAME = "controller.brownout.internal"
"""The name in every controller's certificate. An agent's certificate has none, so no agent can play controller."""
RENEW_AT = 2 / 3
_RENEW_JITTER = 0.05
_FETCH_TIMEOUT_S = 5.0


class JoinError(Exception):
    """The agent could not join; the text says why and what to do."""


@dataclass(frozen=True, slots=True)
class Membership:
    """Where this agent belongs. Kept as `agent.json` beside key and certificates."""

    controller: str
    enrol_port: int
    name: str
    labels: dict[str, str]
    agent_id: str = ""


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
        begins, ends = certificate.not_valid_before_utc.timestamp(), certificate.not_valid_after_utc.timestamp()
        share = RENEW_AT + random.uniform(-_RENEW_JITTER, _RENEW_JITTER)  # noqa: S311 - spreads load, no secret
        return max(0.0, begins + (ends - begins) * share - time.time())


def new_request() -> tuple[bytes, bytes]:
    """A fresh P-256 key and a certificate request for it, both PEM. The authority uses only the public key."""
    key = ec.generate_private_key(ec.SECP256R1())
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
    key_pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return key_pem, request.public_bytes(serialization.Encoding.PEM)


def pin_of(certificate: x509.Certificate) -> str:
    """`sha256:` and the hex digest of the certificate's public key (SubjectPublicKeyInfo, DER)."""
    spki = certificate.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return f"sha256:{hashlib.sha256(spki).hexdigest()}"


def fetch_authority(host: str, port: int, pin: str) -> bytes:
    """The authority's certificate (PEM), taken from the handshake and believed only because the pin fits.

    Raises:
        OSError: the controller does not answer.
        JoinError: nothing it showed has this pin.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # the pin decides, below
    context.set_alpn_protocols(["h2"])
    with socket.create_connection((host, port), timeout=_FETCH_TIMEOUT_S) as raw, context.wrap_socket(raw) as tls:
        chain = _unverified_chain(tls)
    for der in chain:
        certificate = x509.load_der_x509_certificate(der)
        if pin_of(certificate) == pin:
            return certificate.public_bytes(serialization.Encoding.PEM)
    raise JoinError(
        f"{host}:{port} shows no authority with the pin {pin}: this is another controller, or somebody in between. "
        "Next: compare with `brownout token create` on the controller"
    )


def _unverified_chain(tls: ssl.SSLSocket) -> list[bytes]:
    # Public since Python 3.13 (gh-109109); before that the same call stands on the inner object.
    if hasattr(tls, "get_unverified_chain"):
        return list(tls.get_unverified_chain())
    inner: Any = getattr(tls, "_sslobj")  # noqa: B009 - mypy's stub hides it
    return [ssl.PEM_cert_to_DER_cert(certificate.public_bytes()) for certificate in inner.get_unverified_chain()]


def save(folder: Path, identity: Identity) -> None:
    """Put the identity into `folder`, each file whole or not at all; key and folder are for this user alone."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name, content in (
        ("key.pem", identity.key_pem),
        ("authority.pem", identity.authority_pem),
        ("certificate.pem", identity.certificate_pem),
        ("agent.json", json.dumps(asdict(identity.membership)).encode()),
    ):
        write_durably(folder / name, content)


def load(folder: Path) -> Identity:
    """The identity in `folder`.

    Raises:
        JoinError: this agent has not joined, or its key is open to others.
    """
    key = folder / "key.pem"
    try:
        if key.stat().st_mode & 0o077:
            raise JoinError(f"{key} is open to others; next: chmod 600 {key}, or join again")
        membership = Membership(**json.loads((folder / "agent.json").read_text()))
        return Identity(
            membership,
            key.read_bytes(),
            (folder / "certificate.pem").read_bytes(),
            (folder / "authority.pem").read_bytes(),
        )
    except FileNotFoundError as error:
        raise JoinError(f"{folder} holds no identity ({error.filename}); next: brownout-agent join ...") from error


def write_durably(path: Path, content: bytes) -> None:
    """Replace a file by rename, synced, readable by this user alone."""
    fresh = path.with_suffix(path.suffix + ".new")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(descriptor)
    fresh.rename(path)
