"""The controller's certificate authority: it makes every identity, and of a request it reads only the public key.

Kept in a folder that is its owner's alone: one sub-folder a generation, with key and certificate of the root, of the
agents' intermediate and of the controllers'; and `rotation.json`, which says which generations count now.
"""

import datetime
import fcntl
import hashlib
import ipaddress
import json
import os
import shutil
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from brownout_agent.agent.identity import write_durably
from brownout_agent.agent.trust import SERVER_NAME, pin_of
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from brownout_controller.fleet.certificates import (
    AGENTS,
    CONTROLLERS,
    Signer,
    make_intermediate,
    make_root,
    make_vouch,
    private_pem,
    sign_leaf,
)
from brownout_controller.fleet.keys import Generation, Keys, rotation_document, rotation_of
from brownout_controller.fleet.rotation import Phase, Rotation
from brownout_controller.store.identities import Certified

AGENT_LIFE = datetime.timedelta(hours=24)
SERVER_LIFE = datetime.timedelta(days=30)
_ROOT, _VOUCHES = "root", "vouches"


class RequestRefused(Exception):
    """A certificate request that the authority will not sign."""


class AuthorityError(Exception):
    """The authority cannot be used; the text says why and what to do."""


@dataclass(frozen=True, slots=True)
class KeyPair:
    """A private key and the certificate for it, both PEM."""

    key_pem: bytes
    certificate_pem: bytes


@dataclass(frozen=True, slots=True)
class Request:
    """A certificate request that was checked."""

    key: ec.EllipticCurvePublicKey

    @property
    def digest(self) -> str:
        """SHA-256 of the public key: two requests with the same one are the same request."""
        spki = self.key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
        return hashlib.sha256(spki).hexdigest()


@dataclass(frozen=True, slots=True)
class Peer:
    """The agent that a verified certificate names."""

    agent_id: str
    serial: str
    generation: int


class Authority:
    """One authority for one cluster. Another process may rotate it; `refresh` notices."""

    _keys: Keys

    def __init__(self, folder: Path, agent_life: datetime.timedelta = AGENT_LIFE) -> None:
        """Open the authority in `folder`, making it if there is none.

        Raises:
            AuthorityError: it is damaged, open to others, or of an earlier version.
        """
        self.folder = folder
        self._agent_life = agent_life
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with self._alone():
                if not rotation_path(folder).exists():
                    self._found()
            self._keys = self._load()
        except OSError as error:
            raise AuthorityError(f"cannot keep an authority in {folder}: {error.strerror or error}") from error
        except (ValueError, KeyError, TypeError) as error:
            raise AuthorityError(f"the authority in {folder} is damaged ({error}); restore the folder") from error

    @property
    def cluster(self) -> str:
        """The id of its cluster."""
        return self._keys.cluster

    @property
    def rotation(self) -> Rotation:
        """Which generations count now."""
        return self._keys.rotation

    @property
    def keys(self) -> Keys:
        """What it signs with, the root's key apart."""
        return self._keys

    @property
    def pin(self) -> str:
        """What agents compare before they trust anything: of the root above the certificate that is shown now."""
        return pin_of(self._presenting.root)

    @property
    def bundle_pem(self) -> bytes:
        """What agents keep to know controllers by: root and controllers' intermediate of each trusted generation.

        While there are two, each root's word for the other stands beside them: agents take no new root without it.
        """
        new = self.rotation.new
        vouches = b"" if new is None else self._keys.generations[new].vouches_pem
        return b"".join(one.controllers.certificate_pem + one.root_pem for one in self._trusted) + vouches

    @property
    def bundle_digest(self) -> str:
        """SHA-256 of `bundle_pem`, as agents say it back."""
        return hashlib.sha256(self.bundle_pem).hexdigest()

    @property
    def clients_pem(self) -> bytes:
        """What a controller knows agents by: the agents' intermediate of each trusted generation."""
        return b"".join(one.agents.certificate_pem for one in self._trusted)

    @property
    def _trusted(self) -> list[Generation]:
        keys = self._keys
        return [keys.generations[number] for number in keys.rotation.trusted]

    @property
    def _presenting(self) -> Generation:
        keys = self._keys
        return keys.generations[keys.rotation.presenting]

    def server_pair(self, also: Iterable[str] = ()) -> KeyPair:
        """A fresh key and certificate for this controller; its chain carries the root, so that agents can pin it.

        `also`: host names and addresses by which it is reached, besides SERVER_NAME and this machine's own.
        """
        generation = self._presenting
        key = ec.generate_private_key(ec.SECP256R1())
        names = [
            *map(_general_name, dict.fromkeys([SERVER_NAME, "localhost", "127.0.0.1", *also])),
            x509.UniformResourceIdentifier(f"spiffe://{self.cluster}/controller/{uuid.uuid4()}"),
        ]
        leaf = sign_leaf(
            generation.controllers, key.public_key(), names, ExtendedKeyUsageOID.SERVER_AUTH, _now(), SERVER_LIFE
        )
        chain = leaf.public_bytes(serialization.Encoding.PEM) + generation.controllers.certificate_pem
        return KeyPair(private_pem(key), chain + generation.root_pem)

    def issue(self, request: Request, agent_id: str) -> Certified:
        """A client certificate for the key of a request; its name is ours, never the request's."""
        names = [x509.UniformResourceIdentifier(f"spiffe://{self.cluster}/agent/{agent_id}")]
        keys = self._keys
        leaf = sign_leaf(
            keys.generations[keys.rotation.issuing].agents,
            request.key, names, ExtendedKeyUsageOID.CLIENT_AUTH, _now(), self._agent_life,
        )  # fmt: skip
        expires_ns = int(leaf.not_valid_after_utc.timestamp()) * 10**9
        return Certified(leaf.public_bytes(serialization.Encoding.PEM), _serial(leaf), expires_ns)

    def peer_of(self, certificate_pem: bytes) -> Peer | None:
        """The agent that a peer's certificate names, or None when it names none of this cluster.

        The transport has verified signature and dates; this reads the role, and who signed.
        """
        certificate = x509.load_pem_x509_certificate(certificate_pem)
        try:
            extensions = certificate.extensions
            names = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
            usages = extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        except x509.ExtensionNotFound:
            return None
        prefix = f"spiffe://{self.cluster}/agent/"
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
        generation = self._signed_by(certificate)
        if len(uris) != 1 or not uris[0].startswith(prefix) or generation is None:
            return None
        if list(usages) != [ExtendedKeyUsageOID.CLIENT_AUTH]:
            return None
        return Peer(uris[0].removeprefix(prefix), _serial(certificate), generation)

    # ---- rotation ------------------------------------------------------------------------------------------------

    def refresh(self) -> bool:
        """Read again what counts; whether that has changed.

        Raises:
            OSError, ValueError, KeyError: it cannot be read now.
        """
        if self._read_rotation()[0] == self.rotation:
            return False
        self._keys = self._load()
        return True

    def rotate(self, rotation: Rotation) -> None:
        """Go to another phase, durably; every process that has this authority open follows.

        Raises:
            OSError: it cannot be kept; nothing has changed.
        """
        with self._alone():
            for number in rotation.trusted:
                if not (self.folder / str(number)).is_dir():
                    self._make(number, self.cluster, before=self._root(rotation.old))
            self._keep(rotation, self.cluster)
            for number in set(self._keys.generations) - set(rotation.trusted):
                self._forget(number)
        self.refresh()

    def _forget(self, number: int) -> None:
        """Its keys are worth nothing any more, and shall not lie about."""
        over = self.folder / f"{number}.over"
        (self.folder / str(number)).rename(over)
        shutil.rmtree(over)

    def _found(self) -> None:
        if (self.folder / "authority.key").exists():
            raise AuthorityError(
                f"the authority in {self.folder} is of a version without intermediates. Next: move that folder away "
                "and let every host join again"
            )
        cluster = str(uuid.uuid4())
        self._make(1, cluster)
        self._keep(Rotation(Phase.STANDBY, 1, None, time.time_ns()), cluster)

    def _make(self, number: int, cluster: str, before: Signer | None = None) -> None:
        root = make_root(cluster, _now())
        fresh = self.folder / f"{number}.new"
        fresh.mkdir(mode=0o700, exist_ok=True)  # it may be there of an attempt that was cut off
        write_durably(fresh / f"{_ROOT}.pem", root.pem)
        for role in (AGENTS, CONTROLLERS):
            write_durably(fresh / f"{role}.pem", make_intermediate(root, cluster, role, _now()).pem)
        if before is not None:
            vouches = make_vouch(before, root), make_vouch(root, before)
            pem = b"".join(one.public_bytes(serialization.Encoding.PEM) for one in vouches)
            write_durably(fresh / f"{_VOUCHES}.pem", pem)
        fresh.rename(self.folder / str(number))

    def _keep(self, rotation: Rotation, cluster: str) -> None:
        document = rotation_document(rotation, cluster)
        write_durably(rotation_path(self.folder), json.dumps(document).encode())

    def _read_rotation(self) -> tuple[Rotation, str]:
        document = json.loads(read_own(rotation_path(self.folder)))
        return rotation_of(document), document["cluster"]

    def _load(self) -> Keys:
        rotation, cluster = self._read_rotation()
        return Keys(cluster, rotation, {number: self._load_generation(number) for number in rotation.trusted})

    def _load_generation(self, number: int) -> Generation:
        root, agents, controllers = (
            Signer.from_pem(read_own(self.folder / str(number) / f"{role}.pem"))
            for role in (_ROOT, AGENTS, CONTROLLERS)
        )
        vouches = self.folder / str(number) / f"{_VOUCHES}.pem"
        return Generation(root.certificate, agents, controllers, read_own(vouches) if vouches.exists() else b"")

    def _root(self, number: int) -> Signer:
        return Signer.from_pem(read_own(self.folder / str(number) / f"{_ROOT}.pem"))

    def _signed_by(self, certificate: x509.Certificate) -> int | None:
        try:
            known = certificate.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier
        except x509.ExtensionNotFound:
            return None
        for number, generation in self._keys.generations.items():
            public = generation.agents.key.public_key()
            if x509.SubjectKeyIdentifier.from_public_key(public).digest == known:
                return number
        return None

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """No other process makes or rotates meanwhile."""
        descriptor = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def read_request(request_pem: bytes) -> Request:
    """Check a certificate request.

    Raises:
        RequestRefused: not a request, a wrong signature, a key that is not P-256, or one that names somebody: names
            are given by the authority, and whoever asks for one means to be another.
    """
    try:
        request = x509.load_pem_x509_csr(request_pem)
        key, names_somebody = request.public_key(), bool(request.subject) or bool(list(request.extensions))
    except (ValueError, TypeError) as error:
        raise RequestRefused(f"not a certificate request: {error}") from error
    if not request.is_signature_valid:
        raise RequestRefused("the request is not signed by its own key")
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise RequestRefused("the key is not on P-256")
    if names_somebody:
        raise RequestRefused("the request asks for a name; the authority gives names, so leave subject and SAN empty")
    return Request(key)


def rotation_path(folder: Path) -> Path:
    """The file in an authority's folder that says what counts; there is an authority where there is this file."""
    return folder / "rotation.json"


def read_own(path: Path) -> bytes:
    """A file with keys.

    Raises:
        AuthorityError: others may read it.
        OSError: it cannot be read.
    """
    if path.stat().st_mode & 0o077:
        raise AuthorityError(f"{path} is open to others. Next: chmod 600 {path}, and think of who may have read it")
    return path.read_bytes()


def _general_name(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        return x509.DNSName(text)


def _serial(certificate: x509.Certificate) -> str:
    return format(certificate.serial_number, "x")


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)
