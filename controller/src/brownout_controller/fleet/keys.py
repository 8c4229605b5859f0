"""What a controller signs with: every key of the cluster but the root's. And how they are sealed for other controllers.

They lie in the shared database as one Fernet token (AES-128-CBC and HMAC-SHA-256, encrypted, authenticated). Its key is
in a file of each controller's machine and never in the database: who has one of them alone has nothing.
"""

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cryptography import x509
from cryptography.fernet import Fernet, InvalidToken
from cryptography.hazmat.primitives import serialization

from brownout_controller.fleet.certificates import AGENTS, CONTROLLERS, Signer
from brownout_controller.fleet.rotation import Phase, Rotation

_ROOT, _VOUCHES = "root", "vouches"


class WrongKey(Exception):
    """What was sealed cannot be opened: another key, or somebody changed it."""


@dataclass(frozen=True, slots=True)
class Generation:
    """One generation of the authority."""

    root: x509.Certificate
    agents: Signer
    controllers: Signer
    vouches_pem: bytes = b""
    """Its root signed by the one before it, and that one by its root; empty for the first."""

    @property
    def root_pem(self) -> bytes:
        """The root's certificate (PEM)."""
        return self.root.public_bytes(serialization.Encoding.PEM)


@dataclass(frozen=True, slots=True)
class Keys:
    """The generations that count now."""

    cluster: str
    rotation: Rotation
    generations: Mapping[int, Generation]


@dataclass(frozen=True, slots=True)
class Shared:
    """What the controllers of a cluster have in common."""

    keys: Keys
    audit_key_pem: bytes
    """It signs the audit log's checkpoints: one log has one key, whoever writes it."""


def rotation_document(rotation: Rotation, cluster: str) -> dict[str, Any]:
    """A rotation as it is kept."""
    return {
        "cluster": cluster, "phase": rotation.phase, "old": rotation.old, "new": rotation.new,
        "began_ns": rotation.began_ns,
    }  # fmt: skip


def rotation_of(document: Mapping[str, Any]) -> Rotation:
    """A rotation that was kept.

    Raises:
        ValueError, KeyError: it is damaged.
    """
    return Rotation(Phase(document["phase"]), document["old"], document["new"], document["began_ns"])


def seal(shared: Shared, key: bytes) -> bytes:
    """Everything in one sealed piece."""
    keys = shared.keys
    generations = {
        str(number): {_ROOT: one.root_pem.decode(), AGENTS: one.agents.pem.decode(),
                      CONTROLLERS: one.controllers.pem.decode(), _VOUCHES: one.vouches_pem.decode()}
        for number, one in keys.generations.items()
    }  # fmt: skip
    document = {
        "rotation": rotation_document(keys.rotation, keys.cluster),
        "generations": generations,
        "audit_key": shared.audit_key_pem.decode(),
    }
    return Fernet(key).encrypt(json.dumps(document).encode())


def unseal(sealed: bytes, key: bytes) -> Shared:
    """What was sealed with this key.

    Raises:
        WrongKey: not with this one.
        ValueError, KeyError: what was sealed is of another release.
    """
    try:
        document = json.loads(Fernet(key).decrypt(sealed))
    except InvalidToken:
        raise WrongKey("it was sealed with another key, or has been changed") from None
    generations = {
        int(number): Generation(
            x509.load_pem_x509_certificate(one[_ROOT].encode()),
            Signer.from_pem(one[AGENTS].encode()),
            Signer.from_pem(one[CONTROLLERS].encode()),
            one.get(_VOUCHES, "").encode(),  # what was sealed by an earlier release has none
        )
        for number, one in document["generations"].items()
    }
    keys = Keys(document["rotation"]["cluster"], rotation_of(document["rotation"]), generations)
    return Shared(keys, document["audit_key"].encode())


def is_key(text: bytes) -> bool:
    """Whether this can be the key of a seal: 32 bytes in URL-safe base64."""
    try:
        return len(base64.urlsafe_b64decode(text)) == 32
    except ValueError:
        return False
